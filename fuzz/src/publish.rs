//! The decoders of `Publish`, all on the same bytes: what one of them takes can be relayed, and says the same in each codec.

use prost::Message as _;
use tidewire::wire::codec::{self, ChannelRef};
use tidewire::wire::decode::scan_publish;
use tidewire::wire::encode::{self, FrameHeader};
use tidewire::wire::{ChannelId, proto};

/// Low, so that short inputs reach it.
pub const SAMPLES_MAX: usize = 20;

/// Reads `data` as protobuf, as MessagePack and as JSON.
pub fn check(data: &[u8]) {
    check_protobuf(data);
    if let Ok(publish) = codec::decode_publish_msgpack(data, SAMPLES_MAX) {
        check_decoded(&publish);
    }
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(text) = codec::decode_publish_json(text, SAMPLES_MAX)
    {
        assert!(matches!(text.channel, ChannelRef::Name(_)) || text.channel == channel_of(&text.publish));
        check_decoded(&text.publish);
    }
}

/// The scan against prost, which decodes everything; and the frame that relays the block.
fn check_protobuf(data: &[u8]) {
    let mut spans = Vec::new();
    let scanned = scan_publish(data, SAMPLES_MAX, &mut spans);
    assert!(spans.len() <= SAMPLES_MAX);
    let Ok(scanned) = scanned else { return };
    let publish = proto::Publish::decode(data).expect("the scan is stricter than prost");
    assert_eq!((scanned.channel, scanned.ack), (ChannelId(publish.channel), publish.ack));
    let block = publish.block.expect("the scan asks for a block");
    assert_eq!((scanned.source_ns, 0), (block.source_ns, block.received_ns));
    assert_eq!(spans.len(), block.samples.len());

    let mut end = 0;
    for (span, sample) in spans.iter().zip(&block.samples) {
        assert!(end <= span.start && span.start < span.end, "spans are in order");
        end = span.end;
        let alone = &scanned.block[span.start as usize..span.end as usize];
        let alone = proto::Block::decode(alone).expect("a span is a whole field");
        let [alone] = &alone.samples[..] else { panic!("a span is one sample") };
        assert_eq!(bytes_of(alone), bytes_of(sample));
        assert_eq!(span.source_delta_ns, sample.source_delta_ns);
        assert!(sample.value.is_some());
    }

    let count = u32::try_from(spans.len()).expect("the limit is far lower");
    let header = FrameHeader { channel: scanned.channel, epoch: 7, seq: 1, count, flushed_ns: 9 };
    let mut frame = encode::frame_header(&header).to_vec();
    frame.extend_from_slice(&encode::block_prefix(scanned.block.len()));
    frame.extend_from_slice(scanned.block);
    frame.extend_from_slice(&encode::received_ns(8));
    let frame = proto::Frame::decode(&frame[..]).expect("a frame around a scanned block is valid");
    let [relayed] = &frame.blocks[..] else { panic!("one block was relayed") };
    assert_eq!(bytes_of(relayed), bytes_of(&proto::Block { received_ns: 8, ..block }));
}

/// A publish from another codec is one in protobuf, and comes back from each codec as it was.
fn check_decoded(publish: &proto::Publish) {
    let protobuf = bytes_of(publish);
    scan_publish(&protobuf, SAMPLES_MAX, &mut Vec::new()).expect("what is decoded can be relayed");

    let mut msgpack = Vec::new();
    codec::encode_publish_msgpack(publish, &mut msgpack);
    let again = codec::decode_publish_msgpack(&msgpack, SAMPLES_MAX).expect("own MessagePack");
    assert_eq!(bytes_of(&without_nan(&again)), bytes_of(&without_nan(publish)));

    let mut json = Vec::new();
    codec::encode_publish_json(&channel_of(publish), publish, &mut json);
    let json = String::from_utf8(json).expect("JSON is text");
    let again = codec::decode_publish_json(&json, SAMPLES_MAX).expect("own JSON");
    assert_eq!(bytes_of(&without_nan(&again.publish)), bytes_of(&without_nan(publish)));
}

fn channel_of(publish: &proto::Publish) -> ChannelRef {
    ChannelRef::Id(ChannelId(publish.channel))
}

/// Equal bytes where `==` would call two NaN different.
fn bytes_of(message: &impl prost::Message) -> Vec<u8> {
    message.encode_to_vec()
}

/// JSON has one NaN, whatever its bits.
fn without_nan(publish: &proto::Publish) -> proto::Publish {
    use proto::sample::Value;
    let one_nan = |number: &mut f64| {
        if number.is_nan() {
            *number = f64::NAN;
        }
    };
    let mut publish = publish.clone();
    for sample in publish.block.iter_mut().flat_map(|block| &mut block.samples) {
        match &mut sample.value {
            Some(Value::Number(number)) => one_nan(number),
            Some(Value::Vector(vector)) => vector.values.iter_mut().for_each(one_nan),
            _ => {}
        }
    }
    publish
}
