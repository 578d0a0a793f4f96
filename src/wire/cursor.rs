//! Cursors: where a client stands in a channel, across connections and lives of the server. Text on the wire, read within
//! bounds. Pure: whether what a cursor speaks of still exists is for the history to say.
//!
//! `EPOCH:SEQ` is one stream of a channel: the life of its sequence, and the last sample that the client has or was told it
//! will not get. A channel may have had several; they are joined by `,`.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use super::Seq;

/// Streams that one cursor may name: more than a channel has nodes that publish to it. Bounds what a subscription remembers.
pub const CURSOR_STREAMS_MAX: usize = 32;

/// A place in one stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The life of the stream's sequence.
    pub epoch: u32,
    /// The last sample that the client has, or was told it will not get; 0 before the first.
    pub seq: Seq,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.epoch, self.seq)
    }
}

impl Serialize for Place {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The text is not a cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CursorError {
    /// A part that is not two numbers.
    #[error(
        "is not a cursor: EPOCH:SEQ in decimal digits without leading zeros, several joined by ','; give back what the server \
         gave, or the epoch and the last sequence of a frame"
    )]
    Malformed,
    /// An epoch that comes twice.
    #[error("names epoch {0} twice; keep the larger sequence")]
    Twice(u32),
    /// More than [`CURSOR_STREAMS_MAX`] parts.
    #[error("names more than {CURSOR_STREAMS_MAX} streams; keep the newest ones")]
    TooMany,
}

/// Where a client stands in each stream of one channel that it has seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor(Box<[Place]>);

impl Cursor {
    /// A place in one of these lives, which are those of one stream: the newest, and before it the epochs that it has gone on
    /// from, each with the sequence that it had reached then (see [`Lineage`]). `None` if the cursor knows none of them.
    #[must_use]
    pub fn seq_in(&self, epoch: u32, lineage: &Lineage) -> Option<Seq> {
        let seq_of = |epoch| self.0.iter().find(|place| place.epoch == epoch).map(|place| place.seq);
        // The newest life that it knows: what it has of an older one is less.
        seq_of(epoch).or_else(|| {
            lineage.0.iter().rev().find_map(|&(epoch, upto)| seq_of(epoch).map(|seq| seq.min(upto)))
        })
    }

    /// The places.
    #[must_use]
    pub const fn places(&self) -> &[Place] {
        &self.0
    }
}

impl From<Place> for Cursor {
    fn from(place: Place) -> Self {
        Self([place].into())
    }
}

impl FromStr for Cursor {
    type Err = CursorError;

    fn from_str(text: &str) -> Result<Self, CursorError> {
        let mut places: Vec<Place> = Vec::new();
        for part in text.split(',') {
            if places.len() == CURSOR_STREAMS_MAX {
                return Err(CursorError::TooMany);
            }
            let (epoch, seq) = part.split_once(':').ok_or(CursorError::Malformed)?;
            let place = Place {
                epoch: number(epoch)
                    .and_then(|epoch| u32::try_from(epoch).ok())
                    .ok_or(CursorError::Malformed)?,
                seq: number(seq).ok_or(CursorError::Malformed)?,
            };
            if places.iter().any(|other| other.epoch == place.epoch) {
                return Err(CursorError::Twice(place.epoch));
            }
            places.push(place);
        }
        Ok(Self(places.into()))
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, place) in self.0.iter().enumerate() {
            let comma = if position > 0 { "," } else { "" };
            write!(f, "{comma}{place}")?;
        }
        Ok(())
    }
}

/// Digits alone, as they are written by a program: `parse` would take a sign, too.
fn number(text: &str) -> Option<u64> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let canonical = text == "0" || !text.starts_with('0');
    (digits && canonical).then(|| text.parse().ok()).flatten()
}

/// The lives that a stream has gone on from, the oldest first: each epoch with the last sequence that is the same in the lives
/// after it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lineage(pub Box<[(u32, Seq)]>);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn cursor(text: &str) -> Cursor {
        text.parse().unwrap()
    }

    #[test]
    fn what_is_not_a_cursor_is_refused() {
        for text in [
            "",
            ",",
            "1",
            "1:",
            ":1",
            "1:2,",
            ",1:2",
            "1:2:3",
            "+1:2",
            "1:-2",
            "01:2",
            "1:02",
            " 1:2",
            "1:2 ",
            "1:2, 3:4",
            "4294967296:1",
            "1:18446744073709551616",
            "1:99999999999999999999999999999999999999",
            "a:b",
            "\u{0661}:1",
        ] {
            assert_eq!(text.parse::<Cursor>(), Err(CursorError::Malformed), "{text:?}");
        }
        assert_eq!("7:1,8:1,7:2".parse::<Cursor>(), Err(CursorError::Twice(7)));
        let many = |count: usize| (0..count).map(|n| format!("{n}:0")).collect::<Vec<_>>().join(",");
        assert!(many(CURSOR_STREAMS_MAX).parse::<Cursor>().is_ok());
        assert_eq!(many(CURSOR_STREAMS_MAX + 1).parse::<Cursor>(), Err(CursorError::TooMany));
    }

    #[test]
    fn a_cursor_of_an_earlier_life_is_a_place_in_this_one() {
        let lineage = Lineage([(1, 100), (2, 250)].into());
        let rows = [
            ("3:7", Some(7)),
            ("3:7,1:90", Some(7)),
            ("2:200", Some(200)),
            ("2:300", Some(250)),
            ("1:90", Some(90)),
            ("1:120", Some(100)),
            ("1:120,2:251", Some(250)),
            ("4:1", None),
        ];
        for (text, seq) in rows {
            assert_eq!(cursor(text).seq_in(3, &lineage), seq, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text in "[0-9:,]{0,40}|.{0,40}") {
            if let Ok(cursor) = text.parse::<Cursor>() {
                prop_assert_eq!(cursor.to_string(), text);
            }
        }

        #[test]
        fn what_is_written_is_read(places in vec((any::<u32>(), any::<u64>()), 1..=CURSOR_STREAMS_MAX)) {
            let mut places: Vec<Place> = places.into_iter().map(|(epoch, seq)| Place { epoch, seq }).collect();
            places.sort_by_key(|place| place.epoch);
            places.dedup_by_key(|place| place.epoch);
            let cursor = Cursor(places.into());
            prop_assert_eq!(cursor.to_string().parse(), Ok(cursor));
        }
    }
}
