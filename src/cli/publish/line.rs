//! Lines of input: where they end, and the values that they are. Pure.

use crate::wire::proto::{Vector, sample::Value};

/// Bytes of a line, without its end. Longer ones are not held in memory: they are skipped to their end.
pub(super) const LINE_BYTES_MAX: usize = 64 << 10;

/// How lines become values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// A number if the whole line is a finite one, a vector if it is several of them, otherwise text.
    #[default]
    Auto,
    /// A double: decimal, with or without exponent, also inf and NaN.
    Number,
    /// A signed 64-bit integer, decimal.
    Integer,
    /// Doubles with spaces or commas between them.
    Vector,
    /// The line as it is.
    Text,
}

/// Why a line was skipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadLine {
    /// Over [`LINE_BYTES_MAX`].
    #[error("is longer than {LINE_BYTES_MAX} bytes")]
    TooLong,
    /// Not UTF-8.
    #[error("is not UTF-8")]
    NotUtf8,
    /// `--type number`.
    #[error("is not a number that a double can hold")]
    NotNumber,
    /// `--type integer`.
    #[error("is not an integer from -2^63 to 2^63 - 1")]
    NotInteger,
    /// `--type vector`.
    #[error("is not a list of numbers with spaces or commas between them")]
    NotVector,
}

impl Kind {
    /// The value of a line.
    pub(super) fn parse(self, line: &[u8]) -> Result<Value, BadLine> {
        let line = std::str::from_utf8(line).map_err(|_| BadLine::NotUtf8)?;
        match self {
            Self::Auto => {
                let numbers = list(line).filter(|list| list.iter().all(|number| number.is_finite()));
                Ok(match numbers.as_deref() {
                    // A comma after a single number makes no number of it: `list` refuses "1,".
                    Some(&[number]) => Value::Number(number),
                    Some(values) => Value::Vector(Vector { values: values.to_vec() }),
                    None => Value::Text(line.to_owned()),
                })
            }
            Self::Number => number(line.trim()).map(Value::Number).ok_or(BadLine::NotNumber),
            Self::Integer => line.trim().parse().map(Value::Integer).map_err(|_| BadLine::NotInteger),
            Self::Vector => {
                list(line).map(|values| Value::Vector(Vector { values })).ok_or(BadLine::NotVector)
            }
            Self::Text => Ok(Value::Text(line.to_owned())),
        }
    }
}

/// One or more numbers; exactly one comma, or none, between two of them.
fn list(line: &str) -> Option<Vec<f64>> {
    let mut numbers = Vec::new();
    for part in line.split(',') {
        let before = numbers.len();
        for word in part.split_whitespace() {
            numbers.push(number(word)?);
        }
        if numbers.len() == before {
            return None;
        }
    }
    Some(numbers)
}

/// A double. Digits beyond its range are refused; infinity is one that was meant.
fn number(word: &str) -> Option<f64> {
    let number: f64 = word.parse().ok()?;
    let meant = word.trim_start_matches(['+', '-']).starts_with(['i', 'I']);
    (!number.is_infinite() || meant).then_some(number)
}

/// Cuts chunks of input into lines.
#[derive(Debug, Default)]
pub(super) struct Splitter {
    /// The line so far, where a chunk ended inside it.
    partial: Vec<u8>,
    too_long: bool,
    /// Number of the last line, from 1.
    number: u64,
}

impl Splitter {
    /// The next whole line of `chunk`, without its `\n` or `\r\n`, handed to `read` with its number. `None` when
    /// `chunk` is used up; an unfinished line is kept.
    pub(super) fn next<T>(
        &mut self,
        chunk: &mut &[u8],
        read: impl FnOnce(u64, Result<&[u8], BadLine>) -> T,
    ) -> Option<T> {
        let Some(at) = chunk.iter().position(|&byte| byte == b'\n') else {
            self.keep(chunk);
            *chunk = &[];
            return None;
        };
        let (end, rest) = chunk.split_at(at);
        *chunk = rest.get(1..).unwrap_or_default();
        if self.partial.is_empty() && !self.too_long {
            self.number += 1;
            return Some(read(self.number, checked(end)));
        }
        self.keep(end);
        self.finish(read)
    }

    /// The last line, if it did not end with `\n`.
    pub(super) fn finish<T>(&mut self, read: impl FnOnce(u64, Result<&[u8], BadLine>) -> T) -> Option<T> {
        if self.partial.is_empty() && !self.too_long {
            return None;
        }
        self.number += 1;
        let too_long = std::mem::take(&mut self.too_long);
        let line = if too_long { Err(BadLine::TooLong) } else { checked(&self.partial) };
        let result = read(self.number, line);
        self.partial.clear();
        Some(result)
    }

    fn keep(&mut self, bytes: &[u8]) {
        // One more than the limit, for a `\r`.
        if self.too_long || self.partial.len() + bytes.len() > LINE_BYTES_MAX + 1 {
            self.too_long = true;
            self.partial.clear();
        } else {
            self.partial.extend_from_slice(bytes);
        }
    }
}

fn checked(line: &[u8]) -> Result<&[u8], BadLine> {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.len() > LINE_BYTES_MAX { Err(BadLine::TooLong) } else { Ok(line) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines_become_values() {
        let vector = |values: &[f64]| Ok(Value::Vector(Vector { values: values.to_vec() }));
        let text = |text: &str| Ok(Value::Text(text.to_owned()));
        let rows = [
            (Kind::Auto, "1.25", Ok(Value::Number(1.25))),
            (Kind::Auto, " -3e2\t", Ok(Value::Number(-300.0))),
            (Kind::Auto, "1 2.5", vector(&[1.0, 2.5])),
            (Kind::Auto, "1,2.5 , -3", vector(&[1.0, 2.5, -3.0])),
            (Kind::Auto, "1,,2", text("1,,2")),
            (Kind::Auto, "1,", text("1,")),
            (Kind::Auto, "nan", text("nan")),
            (Kind::Auto, "1 inf", text("1 inf")),
            (Kind::Auto, "1e999", text("1e999")),
            (Kind::Auto, "door open", text("door open")),
            (Kind::Auto, " x ", text(" x ")),
            (Kind::Auto, "", text("")),
            (Kind::Number, " 7 ", Ok(Value::Number(7.0))),
            (Kind::Number, "-inf", Ok(Value::Number(f64::NEG_INFINITY))),
            (Kind::Number, "1e999", Err(BadLine::NotNumber)),
            (Kind::Number, "1 2", Err(BadLine::NotNumber)),
            (Kind::Number, "", Err(BadLine::NotNumber)),
            (Kind::Integer, "-9223372036854775808", Ok(Value::Integer(i64::MIN))),
            (Kind::Integer, "9223372036854775808", Err(BadLine::NotInteger)),
            (Kind::Integer, "1.0", Err(BadLine::NotInteger)),
            (Kind::Vector, "7", vector(&[7.0])),
            (Kind::Vector, "1, inf", vector(&[1.0, f64::INFINITY])),
            (Kind::Vector, "", Err(BadLine::NotVector)),
            (Kind::Vector, "a b", Err(BadLine::NotVector)),
            (Kind::Text, "1.25", text("1.25")),
            (Kind::Text, "", text("")),
        ];
        for (kind, line, expected) in rows {
            assert_eq!(kind.parse(line.as_bytes()), expected, "{kind:?} {line:?}");
        }
        assert_eq!(Kind::Text.parse(b"\xFF"), Err(BadLine::NotUtf8));
        let Ok(Value::Number(number)) = Kind::Number.parse(b"NaN") else { panic!("NaN is a number here") };
        assert!(number.is_nan());
    }

    type Read = (u64, Result<Vec<u8>, BadLine>);

    fn split(chunks: &[&[u8]]) -> Vec<Read> {
        let own = |number, line: Result<&[u8], BadLine>| (number, line.map(<[u8]>::to_vec));
        let mut splitter = Splitter::default();
        let mut lines = Vec::new();
        for mut chunk in chunks.iter().copied() {
            while let Some(line) = splitter.next(&mut chunk, own) {
                lines.push(line);
            }
        }
        lines.extend(splitter.finish(own));
        lines
    }

    #[test]
    fn chunks_are_cut_into_lines() {
        let ok = |number, line: &[u8]| (number, Ok(line.to_vec()));
        let rows: [(&[&[u8]], Vec<Read>); 6] = [
            (&[], vec![]),
            (&[b"a\nb\r\n\n"], vec![ok(1, b"a"), ok(2, b"b"), ok(3, b"")]),
            (&[b"a", b"b\nc", b"", b"\n"], vec![ok(1, b"ab"), ok(2, b"c")]),
            (&[b"a\r", b"\nb"], vec![ok(1, b"a"), ok(2, b"b")]),
            (&[b"a\n", b"\n"], vec![ok(1, b"a"), ok(2, b"")]),
            (&[b"a\rb\n"], vec![ok(1, b"a\rb")]),
        ];
        for (chunks, expected) in rows {
            assert_eq!(split(chunks), expected);
        }
    }

    #[test]
    fn long_lines_are_skipped_to_their_end() {
        let fits = vec![b'x'; LINE_BYTES_MAX];
        let over = vec![b'x'; LINE_BYTES_MAX + 1];
        let rows: [(&[&[u8]], bool); 6] = [
            (&[&fits, b"\nb"], true),
            (&[&fits, b"\r\nb"], true),
            (&[&over, b"\nb"], false),
            (&[&over, &over, b"\nb"], false),
            (&[&fits, b"xx\nb"], false),
            (&[&[&over[..], b"\nb"].concat()], false),
        ];
        for (chunks, taken) in rows {
            let lines = split(chunks);
            assert_eq!(lines.len(), 2);
            assert_eq!(lines[0].1.as_ref().err(), (!taken).then_some(&BadLine::TooLong));
            assert_eq!(lines[1], (2, Ok(b"b".to_vec())));
        }
        assert_eq!(split(&[&over, &over]), vec![(1, Err(BadLine::TooLong))]);
    }

    proptest! {
        #[test]
        fn lines_do_not_depend_on_chunks(input in "[a-c\r\n]{0,40}", cuts in proptest::collection::vec(0_usize..40, 0..4)) {
            let bytes = input.as_bytes();
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let chunks: Vec<_> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            prop_assert_eq!(split(&chunks), split(&[bytes]));
        }
    }
}
