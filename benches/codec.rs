//! What does a sample cost on its way in and out, in each codec: nanoseconds and bytes?
//!
//! * `check`: a `Publish` becomes what the server relays. Protobuf is scanned; the other two are decoded, encoded as protobuf
//!   and then scanned.
//! * `decode`: a `Publish` becomes the model. The server does it in the other two codecs only; protobuf is there to compare.
//! * `seal`: a `Frame` of one relayed block is written, with the parts of `wire::encode`. What every protobuf frame costs,
//!   once for each delivery class.
//! * `encode`: the model becomes a `Frame`.
//!
//! Every figure is per message: the number after the last `/` is its samples. `thrpt` is samples per second. The bytes are
//! printed first; they are exact, the same on every machine, and without WebSocket headers.
//!
//! What would make it lie: the messages are warm in the cache and always the same, so branches are predicted better than in
//! life; the output buffers are reused, so growth is not counted; text samples and vectors are left out. It compares
//! commits and codecs on one machine, and says nothing about sockets. On a busy machine only the lower bounds are of use.
//!
//! `cargo bench --bench codec`; `cargo bench --bench codec -- --test` runs each once, to see that it works.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput};
use prost::Message;
use tidewire::wire::codec::{
    ChannelRef, decode_publish_json, decode_publish_msgpack, encode_frame_json, encode_frame_msgpack,
    encode_publish_json, encode_publish_msgpack,
};
use tidewire::wire::decode::scan_publish;
use tidewire::wire::encode::{FrameHeader, block_prefix, frame_header, received_ns};
use tidewire::wire::proto::sample::Value;
use tidewire::wire::proto::{Block, Frame, Publish, Sample};
use tidewire::wire::{ChannelId, Codec};

/// The server's default limit on samples in a message.
const SAMPLES_MAX: usize = 4_096;

/// Samples in a message: one from a publisher that sends at once, and some of one that collects.
const COUNTS: [usize; 2] = [1, 32];

const NAME: &str = "robot.7.imu";

/// The value of the sample at an index.
type MakeValue = fn(usize) -> Value;

/// One payload in all its forms.
struct Case {
    payload: &'static str,
    samples: usize,
    publish: Publish,
    frame: Frame,
}

impl Case {
    fn all() -> Vec<Self> {
        let payloads: [(&str, MakeValue); 2] = [
            ("double", |index| Value::Number(21.5 + index as f64 / 7.0)),
            ("bytes128", |index| {
                Value::Bytes((0..128).map(|byte| (byte * 37 + index * 11).to_le_bytes()[0]).collect())
            }),
        ];
        let case = |(payload, value): (_, MakeValue), samples| {
            // A thousand samples a second, with nanoseconds that are not round.
            let sample = |index| Sample {
                source_delta_ns: i64::try_from(index).expect("small") * 1_000_037,
                value: Some(value(index)),
            };
            let block = Block {
                source_ns: 1_763_864_091_123_456_789,
                received_ns: 0,
                samples: (0..samples).map(sample).collect(),
            };
            let frame = Frame {
                channel: 300,
                epoch: 2_890_124_113,
                seq: 1_000_000,
                count: u32::try_from(samples).expect("small"),
                flushed_ns: 1_763_864_091_133_456_789,
                blocks: vec![Block { received_ns: 1_763_864_091_123_999_999, ..block.clone() }],
                seq_deltas: Vec::new(),
            };
            Self { payload, samples, publish: Publish { channel: 300, block: Some(block), ack: 0 }, frame }
        };
        payloads.into_iter().flat_map(|payload| COUNTS.map(|count| case(payload, count))).collect()
    }

    fn publish(&self, codec: Codec) -> Vec<u8> {
        let mut out = Vec::new();
        match codec {
            Codec::Protobuf => out = self.publish.encode_to_vec(),
            Codec::MessagePack => encode_publish_msgpack(&self.publish, &mut out),
            Codec::Json => {
                encode_publish_json(&ChannelRef::Id(ChannelId(300)), &self.publish, &mut out);
            }
        }
        out
    }

    fn encode_frame(&self, codec: Codec, out: &mut Vec<u8>) {
        match codec {
            Codec::Protobuf => self.frame.encode(out).expect("a Vec takes every byte"),
            Codec::MessagePack => encode_frame_msgpack(&self.frame, out),
            Codec::Json => encode_frame_json(&self.frame, NAME, out),
        }
    }

    fn id(&self, codec: Codec) -> BenchmarkId {
        BenchmarkId::new(format!("{}/{}", label(codec), self.payload), self.samples)
    }
}

fn label(codec: Codec) -> &'static str {
    match codec {
        Codec::Protobuf => "protobuf",
        Codec::MessagePack => "msgpack",
        Codec::Json => "json",
    }
}

fn decode(codec: Codec, message: &[u8]) -> Publish {
    match codec {
        Codec::Protobuf => Publish::decode(message).expect("valid"),
        Codec::MessagePack => decode_publish_msgpack(message, SAMPLES_MAX).expect("valid"),
        Codec::Json => {
            let text = std::str::from_utf8(message).expect("UTF-8");
            decode_publish_json(text, SAMPLES_MAX).expect("valid").publish
        }
    }
}

fn check(c: &mut Criterion, cases: &[Case]) {
    let mut group = c.benchmark_group("check");
    for case in cases {
        group.throughput(Throughput::Elements(case.samples as u64));
        for codec in Codec::ALL {
            let message = case.publish(codec);
            let mut spans = Vec::with_capacity(SAMPLES_MAX);
            let mut block = Vec::new();
            group.bench_function(case.id(codec), |b| {
                b.iter(|| {
                    let message = black_box(message.as_slice());
                    if codec == Codec::Protobuf {
                        let publish = scan_publish(message, SAMPLES_MAX, &mut spans).expect("valid");
                        black_box((publish, spans.as_slice()));
                    } else {
                        block.clear();
                        let publish = decode(codec, message);
                        publish.encode(&mut block).expect("a Vec takes every byte");
                        let publish = scan_publish(&block, SAMPLES_MAX, &mut spans).expect("valid");
                        black_box((publish, spans.as_slice()));
                    }
                });
            });
        }
    }
}

fn decode_all(c: &mut Criterion, cases: &[Case]) {
    let mut group = c.benchmark_group("decode");
    for case in cases {
        group.throughput(Throughput::Elements(case.samples as u64));
        for codec in Codec::ALL {
            let message = case.publish(codec);
            group.bench_function(case.id(codec), |b| b.iter(|| decode(codec, black_box(&message))));
        }
    }
}

fn seal(c: &mut Criterion, cases: &[Case]) {
    let mut group = c.benchmark_group("seal");
    for case in cases {
        group.throughput(Throughput::Elements(case.samples as u64));
        let content = case.publish.block.as_ref().expect("set above").encode_to_vec();
        let header = FrameHeader {
            channel: ChannelId(case.frame.channel),
            epoch: case.frame.epoch,
            seq: case.frame.seq,
            count: case.frame.count,
            flushed_ns: case.frame.flushed_ns,
        };
        let mut out = Vec::new();
        group.bench_function(case.id(Codec::Protobuf), |b| {
            b.iter(|| {
                out.clear();
                out.extend_from_slice(&frame_header(black_box(&header)));
                out.extend_from_slice(&block_prefix(content.len()));
                out.extend_from_slice(black_box(&content));
                out.extend_from_slice(&received_ns(1_763_864_091_123_999_999));
                black_box(out.as_slice());
            });
        });
    }
}

fn encode(c: &mut Criterion, cases: &[Case]) {
    let mut group = c.benchmark_group("encode");
    for case in cases {
        group.throughput(Throughput::Elements(case.samples as u64));
        for codec in Codec::ALL {
            let mut out = Vec::new();
            group.bench_function(case.id(codec), |b| {
                b.iter(|| {
                    out.clear();
                    black_box(case).encode_frame(codec, &mut out);
                    black_box(out.as_slice());
                });
            });
        }
    }
}

fn print_sizes(cases: &[Case]) {
    println!("bytes per sample: payload/samples  codec  publish  frame");
    for case in cases {
        for codec in Codec::ALL {
            let mut frame = Vec::new();
            case.encode_frame(codec, &mut frame);
            let per_sample = |bytes: usize| bytes as f64 / case.samples as f64;
            println!(
                "{:>10}/{:<2}  {:<8}  {:>6.1}  {:>6.1}",
                case.payload,
                case.samples,
                label(codec),
                per_sample(case.publish(codec).len()),
                per_sample(frame.len()),
            );
        }
    }
}

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(40)
        .configure_from_args();
    let cases = Case::all();
    print_sizes(&cases);
    check(&mut criterion, &cases);
    decode_all(&mut criterion, &cases);
    seal(&mut criterion, &cases);
    encode(&mut criterion, &cases);
    criterion.final_summary();
}
