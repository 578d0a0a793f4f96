//! What a channel keeps of its past. Never a socket.

pub mod store;
