//! A frame from parts of others: without its first samples, or several as one. Reads blocks with the scanner of publishes, never
//! decodes a sample, never allocates but for what it makes.

use crate::wire::decode::{DecodeError, SampleSpan, next_block, scan_content};
use crate::wire::relay::RelayHeader;
use crate::wire::{encode, seal};

/// The most samples of a block: that of any message.
pub const BLOCK_SAMPLES_MAX: usize = u32::MAX as usize;

/// Appends a body to `out` without its first `skip` samples. The block in which the cut lies goes on as a block of fewer samples,
/// with everything else that its publisher has put into it.
///
/// # Errors
/// It is no body of a frame.
pub fn without_first(mut body: &[u8], mut skip: usize, out: &mut Vec<u8>) -> Result<(), DecodeError> {
    let mut spans: Vec<SampleSpan> = Vec::new();
    while skip > 0 {
        let Some(block) = next_block(&mut body)? else { return Ok(()) };
        scan_content(block.content, BLOCK_SAMPLES_MAX, &mut spans)?;
        if spans.len() <= skip {
            skip -= spans.len();
            continue;
        }
        let dropped = &spans[..skip];
        let bytes: usize = dropped.iter().map(|span| (span.end - span.start) as usize).sum();
        out.extend_from_slice(&encode::block_prefix(block.content.len() - bytes));
        let mut from = 0;
        for span in dropped {
            out.extend_from_slice(&block.content[from..span.start as usize]);
            from = span.end as usize;
        }
        out.extend_from_slice(&block.content[from..]);
        out.extend_from_slice(&encode::received_ns(block.received_ns));
        skip = 0;
    }
    out.extend_from_slice(body);
    Ok(())
}

/// A relay without its first `skip` samples, of which it has more: header and body.
///
/// # Errors
/// It is no body of a frame.
pub fn relay_without_first(header: RelayHeader, body: &[u8], skip: u32) -> Result<Vec<u8>, DecodeError> {
    debug_assert!(skip < header.count, "something is left");
    let rest = RelayHeader { seq: header.seq + u64::from(skip), count: header.count - skip, ..header };
    let mut payload = rest.encode().to_vec();
    without_first(body, skip as usize, &mut payload)?;
    Ok(payload)
}

/// How many samples of a body were received before an instant, in the order in which they were published: the first one that was
/// not ends the count.
#[must_use]
pub fn received_before(mut body: &[u8], instant_ns: u64) -> u64 {
    let mut spans: Vec<SampleSpan> = Vec::new();
    let mut before = 0;
    while let Ok(Some(block)) = next_block(&mut body) {
        if block.received_ns >= instant_ns
            || scan_content(block.content, BLOCK_SAMPLES_MAX, &mut spans).is_err()
        {
            break;
        }
        before += spans.len() as u64;
    }
    before
}

/// A buffer for [`seal::seal`] with the bodies one after the other.
pub fn joined<'a>(bodies: impl Iterator<Item = &'a [u8]> + Clone) -> Vec<u8> {
    let mut buffer = seal::buffer(bodies.clone().map(<[u8]>::len).sum());
    bodies.for_each(|body| buffer.extend_from_slice(body));
    buffer
}
