//! A message of another server, as a broker delivers it, whoever wrote it: what is taken can be relayed to clients as it is.

use prost::Message as _;
use tidewire::history::cut;
use tidewire::wire::encode::{self, FrameHeader};
use tidewire::wire::relay::{self, Found, RelayHeader};
use tidewire::wire::{ChannelId, proto};

use super::publish::SAMPLES_MAX;

/// Scans `data`, and has prost decode the frame that clients would get.
pub fn check(data: &[u8]) {
    // Looks at less, and must stand as much.
    let _ = relay::peek(data);
    let mut found = Found::default();
    let scanned = relay::scan(data, SAMPLES_MAX, &mut found);
    assert!(found.spans.len() <= SAMPLES_MAX);
    let Ok(header) = scanned else { return };
    assert!(header.node.0 > 0 && header.epoch > 0 && header.seq > 0);
    assert!(header.seq.checked_add(u64::from(header.count)).is_some());

    check_cut(header, found.body(data, 0..found.blocks.len()));

    let header = FrameHeader {
        channel: ChannelId(7),
        epoch: header.epoch,
        seq: header.seq,
        count: header.count,
        flushed_ns: header.flushed_ns,
    };
    let mut frame = encode::frame_header(&header).to_vec();
    frame.extend_from_slice(found.body(data, 0..found.blocks.len()));
    let frame = proto::Frame::decode(&frame[..]).expect("the scan is stricter than prost");
    assert_eq!((frame.channel, frame.epoch, frame.seq), (7, header.epoch, header.seq));
    assert_eq!(frame.blocks.len(), found.blocks.len());
    let samples: usize = frame.blocks.iter().map(|block| block.samples.len()).sum();
    assert_eq!((samples, header.count as usize), (found.spans.len(), found.spans.len()));
    for (block, place) in frame.blocks.iter().zip(&found.blocks) {
        assert_eq!((place.source_ns, place.received_ns), (block.source_ns, block.received_ns));
        let content = &data[place.content.clone()];
        let spans = &found.spans[place.samples.clone()];
        assert_eq!(spans.len(), block.samples.len());
        for (span, sample) in spans.iter().zip(&block.samples) {
            let alone = &content[span.start as usize..span.end as usize];
            let alone = proto::Block::decode(alone).expect("a span is a whole field");
            let [alone] = &alone.samples[..] else { panic!("a span is one sample") };
            // By their bytes: of two NaN `==` says nothing.
            assert_eq!(alone.encode_to_vec(), sample.encode_to_vec());
            assert!(sample.value.is_some());
        }
    }
}

/// What is left when the first samples are known already is taken like the whole.
fn check_cut(header: RelayHeader, body: &[u8]) {
    let known = header.count / 2;
    if header.count == 0 {
        return;
    }
    let payload = cut::relay_without_first(header, body, known).expect("the scan has taken it");
    let rest = RelayHeader { seq: header.seq + u64::from(known), count: header.count - known, ..header };
    let mut found = Found::default();
    assert_eq!(relay::scan(&payload, SAMPLES_MAX, &mut found), Ok(rest));
}
