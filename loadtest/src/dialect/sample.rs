//! The sample of the peers: opaque bytes for the server, which begin with what the books and the recorder need. Pure.

/// One sample, as far as it is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sample {
    /// When it was due, by the publisher's clock.
    pub source_ns: u64,
    /// From 1, for each publisher.
    pub seq: u64,
    /// From 0.
    pub publisher: u32,
}

/// Fewer bytes do not hold a [`Sample`].
pub(super) const BYTES_MIN: usize = 20;

impl Sample {
    /// Reads the beginning of a payload.
    #[inline]
    pub(super) fn read(payload: &[u8]) -> Option<Self> {
        let (source_ns, rest) = payload.split_first_chunk()?;
        let (seq, rest) = rest.split_first_chunk()?;
        let publisher = rest.first_chunk()?;
        Some(Self {
            source_ns: u64::from_le_bytes(*source_ns),
            seq: u64::from_le_bytes(*seq),
            publisher: u32::from_le_bytes(*publisher),
        })
    }

    /// Writes the beginning of a payload of at least [`BYTES_MIN`].
    pub(super) fn write(&self, payload: &mut [u8]) {
        payload[..8].copy_from_slice(&self.source_ns.to_le_bytes());
        payload[8..16].copy_from_slice(&self.seq.to_le_bytes());
        payload[16..BYTES_MIN].copy_from_slice(&self.publisher.to_le_bytes());
    }
}

/// The rest of a payload: not all alike, so that nothing on the way can profit from it.
pub(super) fn padding(bytes: usize) -> Box<[u8]> {
    (0u8..=250).cycle().take(bytes).collect()
}
