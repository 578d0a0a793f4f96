//! Frames in MessagePack and JSON, as `docs/PROTOCOL.md` has them, decoded as a whole: for subscribers whose codec is being
//! tried, not for speed. Own types, independent of the server's code. Pure.

use serde::Deserialize;

use crate::data::{FrameHead, Run};

/// A number, or a string of digits.
#[derive(Clone, Copy, Debug, Default)]
struct Number<T>(T);

impl<'de, T> Deserialize<'de> for Number<T>
where
    T: TryFrom<u64> + TryFrom<i64> + std::str::FromStr,
{
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor<T>(std::marker::PhantomData<T>);
        impl<T: TryFrom<u64> + TryFrom<i64> + std::str::FromStr> serde::de::Visitor<'_> for Visitor<T> {
            type Value = T;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an integer or a string of digits")
            }
            fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<T, E> {
                T::try_from(value).map_err(|_| E::custom("a number does not fit its field"))
            }
            fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<T, E> {
                T::try_from(value).map_err(|_| E::custom("a number does not fit its field"))
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<T, E> {
                text.parse().map_err(|_| E::custom("a string is not digits that fit their field"))
            }
        }
        deserializer.deserialize_any(Visitor(std::marker::PhantomData)).map(Self)
    }
}

#[derive(Debug, Deserialize)]
struct Frame {
    channel: u32,
    epoch: u32,
    seq: Number<u64>,
    count: u64,
    blocks: Vec<Block>,
    #[serde(default)]
    seq_deltas: Vec<Number<u64>>,
}

#[derive(Debug, Deserialize)]
struct Block {
    source_ns: Number<u64>,
    samples: Vec<Sample>,
}

#[derive(Debug, Deserialize)]
struct Sample {
    #[serde(default)]
    source_delta_ns: Number<i64>,
}

/// Whether a text message is data and not control.
pub(crate) fn is_json_frame(text: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Typed<'a> {
        #[serde(rename = "type")]
        kind: &'a str,
    }
    serde_json::from_slice::<Typed<'_>>(text).is_ok_and(|it| it.kind == "frame")
}

/// Reads a frame in JSON.
pub(crate) fn read_json(text: &[u8]) -> Result<(FrameHead, Vec<Run>), String> {
    serde_json::from_slice(text).map_err(|error| error.to_string()).and_then(take_apart)
}

/// Reads a frame in MessagePack.
pub(crate) fn read_msgpack(bytes: &[u8]) -> Result<(FrameHead, Vec<Run>), String> {
    rmp_serde::from_slice(bytes).map_err(|error| error.to_string()).and_then(take_apart)
}

fn take_apart(frame: Frame) -> Result<(FrameHead, Vec<Run>), String> {
    let Frame { channel, epoch, seq: Number(first), count, blocks, seq_deltas } = frame;
    let mut runs: Vec<Run> = Vec::new();
    for Block { source_ns, samples } in blocks {
        for sample in samples {
            let source_ns = source_ns.0.saturating_add_signed(sample.source_delta_ns.0);
            match runs.last_mut() {
                Some(last) if last.source_ns == source_ns => last.count += 1,
                _ => runs.push(Run { source_ns, count: 1 }),
            }
        }
    }
    let found: u64 = runs.iter().map(|run| run.count).sum();
    if found != count || found == 0 {
        return Err(format!("a frame says {count} samples and has {found}"));
    }
    let span = match seq_deltas.as_slice() {
        [] => found - 1,
        deltas => deltas.iter().fold(0u64, |sum, delta| sum.saturating_add(delta.0)),
    };
    let last = first.saturating_add(span);
    Ok((FrameHead { channel, epoch, first, last, count }, runs))
}

#[cfg(test)]
mod tests {
    use super::*;

    const JSON: &str = r#"{"type":"frame","channel":3,"name":"a.b","epoch":2890124113,"seq":17,"count":3,
        "flushed_ns":"1763864091133000000","seq_deltas":[2,5],"later":1,"blocks":[{"source_ns":"1763864091123456789",
        "received_ns":"1763864091124000000","samples":[{"source_delta_ns":"0","number":21.5},{"source_delta_ns":"0",
        "bytes":"AAECAw=="},{"source_delta_ns":"-5","vector":[0.1,"NaN"]}]}]}"#;

    fn expected() -> (FrameHead, Vec<Run>) {
        let head = FrameHead { channel: 3, epoch: 2_890_124_113, first: 17, last: 24, count: 3 };
        let run = |source_ns, count| Run { source_ns, count };
        (head, vec![run(1_763_864_091_123_456_789, 2), run(1_763_864_091_123_456_784, 1)])
    }

    #[test]
    fn json_frames() {
        assert!(is_json_frame(JSON.as_bytes()));
        assert!(!is_json_frame(br#"{"type":"gap","channel":1}"#));
        assert_eq!(read_json(JSON.as_bytes()), Ok(expected()));
        for (from, to) in
            [("\"count\":3", "\"count\":4"), ("17", "\"x\""), ("\"epoch\"", "\"apoch\""), ("]}]}", "")]
        {
            assert!(read_json(JSON.replace(from, to).as_bytes()).is_err(), "{from} -> {to}");
        }
    }

    #[test]
    fn messagepack_frames() {
        // The same frame, written by another encoder: maps with names, integers as integers, bytes as bin.
        let mut value: serde_json::Value = serde_json::from_str(JSON).unwrap();
        value["flushed_ns"] = 1_763_864_091_133_000_000u64.into();
        value["blocks"][0]["source_ns"] = 1_763_864_091_123_456_789u64.into();
        value["blocks"][0]["received_ns"] = 1_763_864_091_124_000_000u64.into();
        value["blocks"][0]["samples"][2]["source_delta_ns"] = (-5).into();
        let bytes = rmp_serde::to_vec_named(&value).unwrap();
        assert_eq!(read_msgpack(&bytes), Ok(expected()));
        for end in 0..bytes.len() {
            assert!(read_msgpack(&bytes[..end]).is_err(), "{end}");
        }
    }

    proptest::proptest! {
        /// Any bytes end in an answer.
        #[test]
        fn any_bytes_are_answered(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            let _ = (read_msgpack(&bytes), read_json(&bytes), is_json_frame(&bytes));
        }
    }
}
