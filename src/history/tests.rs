//! Tables of the ring.
