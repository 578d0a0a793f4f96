//! [`Reader`]: a client's byte stream, cut anywhere, to whole messages. Strict (RFC 6455, every MUST), incremental, and
//! without I/O; never holds more than the message limit, and nothing between messages.
//!
//! All connections of a worker share one read buffer. A message that lies in it whole, which is nearly every one, is
//! unmasked in place and borrowed from there. Only the piece of a message that a read leaves behind is copied.

use std::mem;

use thiserror::Error;

use super::{CLOSE_CODE_BYTES, CONTROL_BYTES_MAX, FIN, LENGTH_16, LENGTH_64, Opcode, is_close_code};
use crate::close::CloseReason;

/// Fragments of one message, at the most. Empty fragments add nothing to a message's size, so the limit on bytes never
/// ends them; and each costs a pass for 6 bytes. Libraries fragment by the kilobyte: the largest message of a default
/// server could come in pieces of 16 bytes and pass.
pub const FRAGMENTS_MAX: u16 = 4_096;

/// Smallest memory that a message in pieces gets, so that one which dribbles in byte by byte is not moved for each of its
/// first bytes.
const ASSEMBLY_BYTES_MIN: usize = 256;

/// A client's header: two bytes, 64 bits of length, the mask.
const CLIENT_HEADER_BYTES_MAX: usize = 2 + 8 + MASK_BYTES;
const MASK_BYTES: usize = 4;

const RESERVED_BITS: u8 = 0x70;
const OPCODE_BITS: u8 = 0x0F;
const MASK_BIT: u8 = 0x80;
const LENGTH_BITS: u8 = 0x7F;
const CONTINUATION: u8 = 0x0;

/// A whole message, valid by the rules of RFC 6455. Borrowed until the next call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'m> {
    /// A text message.
    Text(&'m str),
    /// A binary message.
    Binary(&'m [u8]),
    /// A ping, to be answered with its payload.
    Ping(&'m [u8]),
    /// A pong.
    Pong(&'m [u8]),
    /// The peer's last frame: its code and reason, `None` if it gave none.
    Close(Option<(u16, &'m str)>),
}

/// What a client did wrong. The stream cannot be read any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ReadError {
    /// Section 5.1: a client masks.
    #[error("a frame without a mask")]
    Unmasked,
    /// Section 5.2: no extension was agreed on that gives them a meaning.
    #[error("a reserved bit is set")]
    ReservedBits,
    /// Section 5.2: 3 to 7 and 11 to 15.
    #[error("the reserved opcode {opcode}")]
    ReservedOpcode {
        /// As it came.
        opcode: u8,
    },
    /// Section 5.5: at most 125 bytes.
    #[error("a control frame of more than {CONTROL_BYTES_MAX} bytes")]
    LongControl,
    /// Section 5.5: control frames come in one piece.
    #[error("a fragmented control frame")]
    FragmentedControl,
    /// Section 5.4: nothing to continue.
    #[error("a continuation outside a message")]
    OrphanContinuation,
    /// Section 5.4: a message has to end before the next one.
    #[error("a new message inside a fragmented one")]
    Interleaved,
    /// Section 5.2: the shortest encoding is a MUST, and the most significant of 64 bits is 0.
    #[error("a payload length that is not encoded as it has to be")]
    BadLength,
    /// Section 5.5.1: no payload, or a code of two bytes and a reason.
    #[error("a close frame with half a code")]
    ShortClose,
    /// Section 7.4: unassigned, or not for the wire.
    #[error("a close frame with the code {code}")]
    BadCloseCode {
        /// As it came.
        code: u16,
    },
    /// Section 8.1: text, or the reason of a close frame.
    #[error("text that is not UTF-8")]
    BadUtf8,
    /// The frame that was announced makes the message longer than the reader takes.
    #[error("a message of {bytes} bytes or more")]
    TooBig {
        /// Of the message, the announced frame included.
        bytes: u64,
    },
    /// More than [`FRAGMENTS_MAX`].
    #[error("a message in more than {FRAGMENTS_MAX} fragments")]
    TooManyFragments,
}

impl ReadError {
    /// How the connection ends.
    #[must_use]
    pub const fn close_reason(self) -> CloseReason {
        match self {
            Self::Unmasked
            | Self::ReservedBits
            | Self::ReservedOpcode { .. }
            | Self::LongControl
            | Self::FragmentedControl
            | Self::OrphanContinuation
            | Self::Interleaved
            | Self::BadLength
            | Self::ShortClose
            | Self::BadCloseCode { .. } => CloseReason::Protocol,
            Self::BadUtf8 => CloseReason::BadUtf8,
            Self::TooBig { .. } => CloseReason::TooBig,
            Self::TooManyFragments => CloseReason::Abuse,
        }
    }
}

/// Takes the frames of one client apart. It owns memory only while a message or a control frame is in pieces: the bytes
/// that came, never the bytes that were announced.
#[derive(Debug)]
pub struct Reader {
    message_bytes_max: usize,
    state: State,
    /// The message that is in fragments or whose frame is not complete.
    message: Option<Message>,
    /// What has come of it.
    assembly: Vec<u8>,
    /// How many bytes of it are whole characters, if it is text.
    assembly_checked: usize,
    /// Payload of a control frame that was split by a read, at its full length: there may be a message around it.
    control: Box<[u8]>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// The first `have` bytes of a header.
    Header { bytes: [u8; CLIENT_HEADER_BYTES_MAX], have: u8 },
    /// Somewhere in a payload.
    Payload(Frame),
    /// After a close frame or an error. Nothing that follows counts (section 1.4).
    Ended,
}

impl State {
    const BETWEEN_FRAMES: Self = Self::Header { bytes: [0; CLIENT_HEADER_BYTES_MAX], have: 0 };
}

/// A frame whose header was read, and what of it is still to come.
#[derive(Clone, Copy, Debug)]
struct Frame {
    /// Of the message, if this is a continuation.
    opcode: Opcode,
    /// Whether it ends its message.
    is_final: bool,
    /// Rotated, so that it begins with the key of the next byte.
    mask: [u8; MASK_BYTES],
    remaining: usize,
}

#[derive(Clone, Copy, Debug)]
struct Message {
    opcode: Opcode,
    fragments: u16,
}

/// Where a complete payload lies.
enum Place<'i> {
    Input(&'i [u8]),
    Assembly,
    Control,
}

impl Reader {
    /// A reader at the start of a stream, which takes messages of up to `message_bytes_max` bytes of payload.
    #[must_use]
    pub fn new(message_bytes_max: usize) -> Self {
        Self {
            message_bytes_max,
            state: State::BETWEEN_FRAMES,
            message: None,
            assembly: Vec::new(),
            assembly_checked: 0,
            control: Box::default(),
        }
    }

    /// Takes messages of up to `message_bytes_max` bytes from now on, which are no fewer than before.
    pub fn take_messages_of(&mut self, message_bytes_max: usize) {
        self.message_bytes_max = self.message_bytes_max.max(message_bytes_max);
    }

    /// The next message, taken off the front of `input`; `None` when all of `input` is used up. To be called until then:
    /// only after that may the buffer be used for something else. What `input` held is unmasked, that is, overwritten.
    ///
    /// After a close frame or an error, all input is used up without a look at it.
    ///
    /// # Errors
    /// At the first byte that no valid stream could have there. For text that is inside a frame, too.
    pub fn next<'m, 'i: 'm>(&'m mut self, input: &mut &'i mut [u8]) -> Result<Option<Event<'m>>, ReadError> {
        self.release();
        let result = match self.advance(input) {
            Ok(None) => Ok(None),
            Ok(Some((opcode, place))) => {
                if opcode == Opcode::Close {
                    self.state = State::Ended;
                    self.message = None;
                }
                let payload = match place {
                    Place::Input(payload) => payload,
                    Place::Assembly => &self.assembly,
                    Place::Control => &self.control,
                };
                event(opcode, payload).map(Some)
            }
            Err(error) => Err(error),
        };
        if result.is_err() {
            self.state = State::Ended;
            self.message = None;
        }
        result
    }

    /// Whether a message or a frame has begun and not ended: what a deadline for slow senders has to watch.
    #[must_use]
    pub const fn is_mid_message(&self) -> bool {
        match self.state {
            State::Header { have, .. } => have > 0 || self.message.is_some(),
            State::Payload(_) => true,
            State::Ended => false,
        }
    }

    /// Heap memory that it holds, in bytes: at most the message limit and a control frame, none between messages.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        self.assembly.capacity() + self.control.len()
    }

    /// Gives back the memory of what the last call handed out. A split message comes about once a read, so allocating
    /// anew costs nothing beside the system call, and an idle connection holds nothing.
    fn release(&mut self) {
        if self.message.is_none() && self.assembly.capacity() > 0 {
            self.assembly = Vec::new();
            self.assembly_checked = 0;
        }
        if !self.control.is_empty() && !matches!(self.state, State::Payload(_)) {
            self.control = Box::default();
        }
    }

    /// Reads frames until one completes a message.
    fn advance<'i>(&mut self, input: &mut &'i mut [u8]) -> Result<Option<(Opcode, Place<'i>)>, ReadError> {
        loop {
            let mut frame = match self.state {
                State::Header { .. } => match self.read_header(input)? {
                    Some(frame) => frame,
                    None => return Ok(None),
                },
                State::Payload(frame) => frame,
                State::Ended => {
                    *input = &mut [];
                    return Ok(None);
                }
            };
            let chunk = take_front(input, frame.remaining);
            unmask(chunk, frame.mask);
            frame.mask.rotate_left(chunk.len() % MASK_BYTES);
            frame.remaining -= chunk.len();

            let is_complete = frame.remaining == 0;
            self.state = if is_complete { State::BETWEEN_FRAMES } else { State::Payload(frame) };
            if frame.opcode.is_control() {
                if is_complete && self.control.is_empty() {
                    return Ok(Some((frame.opcode, Place::Input(chunk))));
                }
                self.keep_control(&frame, chunk);
                return Ok(is_complete.then_some((frame.opcode, Place::Control)));
            }
            let is_last = is_complete && frame.is_final;
            if is_last {
                self.message = None;
                if self.assembly.is_empty() {
                    return Ok(Some((frame.opcode, Place::Input(chunk))));
                }
            }
            self.keep_data(&frame, chunk);
            if is_last {
                return Ok(Some((frame.opcode, Place::Assembly)));
            }
            if frame.opcode == Opcode::Text {
                self.check_text()?;
            }
            if !is_complete {
                return Ok(None);
            }
        }
    }

    /// The next frame, if its header is complete; begins or continues the message that it belongs to.
    fn read_header(&mut self, input: &mut &mut [u8]) -> Result<Option<Frame>, ReadError> {
        let State::Header { mut bytes, have } = self.state else { return Ok(None) };
        let mut have = usize::from(have);
        // The common case is a header in one piece, which is read where it lies.
        let (frame, used) = if have == 0 {
            match self.parse_header(input)? {
                Some((frame, header_bytes)) => (Some(frame), header_bytes),
                None => {
                    have = input.len();
                    bytes[..have].copy_from_slice(input);
                    (None, have)
                }
            }
        } else {
            let mut frame = None;
            let mut used = 0;
            // Byte by byte, because it ends where the bytes that come say.
            for byte in input.iter() {
                bytes[have] = *byte;
                have += 1;
                used += 1;
                frame = self.parse_header(&bytes[..have])?.map(|(frame, _)| frame);
                if frame.is_some() {
                    break;
                }
            }
            (frame, used)
        };
        take_front(input, used);
        match frame {
            None => {
                let have = u8::try_from(have).unwrap_or(u8::MAX);
                self.state = State::Header { bytes, have };
            }
            Some(frame) if !frame.opcode.is_control() => {
                let fragments = self.message.map_or(0, |message| message.fragments);
                self.message = Some(Message { opcode: frame.opcode, fragments: fragments + 1 });
            }
            Some(_) => {}
        }
        Ok(frame)
    }

    /// Reads a header from bytes that may end inside it: each rule is checked as soon as its bytes are there. Returns the
    /// frame and the length of the header, or `None` if more bytes are needed.
    fn parse_header(&self, bytes: &[u8]) -> Result<Option<(Frame, usize)>, ReadError> {
        let Some(&first) = bytes.first() else { return Ok(None) };
        let opcode = self.check_first_byte(first)?;
        let Some(&second) = bytes.get(1) else { return Ok(None) };
        if second & MASK_BIT == 0 {
            return Err(ReadError::Unmasked);
        }
        let short_length = second & LENGTH_BITS;
        if opcode.is_control() && usize::from(short_length) > CONTROL_BYTES_MAX {
            return Err(ReadError::LongControl);
        }
        let Some((length, rest)) = parse_length(short_length, &bytes[2..])? else { return Ok(None) };
        let remaining =
            if opcode.is_control() { usize::from(short_length) } else { self.check_size(length)? };
        let Some(mask) = rest.first_chunk() else { return Ok(None) };
        let frame = Frame { opcode, is_final: first & FIN != 0, mask: *mask, remaining };
        Ok(Some((frame, bytes.len() - rest.len() + MASK_BYTES)))
    }

    /// Checks FIN, the reserved bits and the opcode against each other and against the message that is open. Returns the
    /// opcode, that of the message for a continuation.
    fn check_first_byte(&self, first: u8) -> Result<Opcode, ReadError> {
        if first & RESERVED_BITS != 0 {
            return Err(ReadError::ReservedBits);
        }
        let opcode = match first & OPCODE_BITS {
            CONTINUATION => match self.message {
                None => return Err(ReadError::OrphanContinuation),
                Some(message) if message.fragments >= FRAGMENTS_MAX => {
                    return Err(ReadError::TooManyFragments);
                }
                Some(message) => return Ok(message.opcode),
            },
            0x1 => Opcode::Text,
            0x2 => Opcode::Binary,
            0x8 => Opcode::Close,
            0x9 => Opcode::Ping,
            0xA => Opcode::Pong,
            opcode => return Err(ReadError::ReservedOpcode { opcode }),
        };
        match (opcode.is_control(), first & FIN != 0) {
            (true, false) => Err(ReadError::FragmentedControl),
            (false, _) if self.message.is_some() => Err(ReadError::Interleaved),
            _ => Ok(opcode),
        }
    }

    /// Checks the announced length of a data frame, together with the fragments before it, against the limit.
    fn check_size(&self, length: u64) -> Result<usize, ReadError> {
        let room = self.message_bytes_max - self.assembly.len();
        match usize::try_from(length) {
            Ok(length) if length <= room => Ok(length),
            _ => Err(ReadError::TooBig { bytes: length.saturating_add(self.assembly.len() as u64) }),
        }
    }

    /// Keeps a piece of a control frame.
    fn keep_control(&mut self, frame: &Frame, chunk: &[u8]) {
        if self.control.is_empty() {
            self.control = vec![0; chunk.len() + frame.remaining].into();
        }
        let end = self.control.len() - frame.remaining;
        self.control[end - chunk.len()..end].copy_from_slice(chunk);
    }

    /// Keeps a piece of a message. Memory doubles as bytes come, but not past the end of the message where that is known,
    /// nor past the limit.
    fn keep_data(&mut self, frame: &Frame, chunk: &[u8]) {
        let needed = self.assembly.len() + chunk.len();
        if needed > self.assembly.capacity() {
            let end = if frame.is_final { needed + frame.remaining } else { self.message_bytes_max };
            let capacity = needed.max(self.assembly.capacity() * 2).max(ASSEMBLY_BYTES_MIN).min(end);
            self.assembly.reserve_exact(capacity - self.assembly.len());
        }
        self.assembly.extend_from_slice(chunk);
    }

    /// Checks the text that has come since the last time. It may end inside a character, as long as there is a valid one
    /// that begins so.
    fn check_text(&mut self) -> Result<(), ReadError> {
        match simdutf8::compat::from_utf8(&self.assembly[self.assembly_checked..]) {
            Ok(text) => self.assembly_checked += text.len(),
            Err(error) if error.error_len().is_none() => self.assembly_checked += error.valid_up_to(),
            Err(_) => return Err(ReadError::BadUtf8),
        }
        Ok(())
    }
}

/// Takes up to `bytes_max` bytes off the front.
fn take_front<'i>(input: &mut &'i mut [u8], bytes_max: usize) -> &'i mut [u8] {
    let bytes = bytes_max.min(input.len());
    let (front, rest) = mem::take(input).split_at_mut(bytes);
    *input = rest;
    front
}

/// The length that follows the first two bytes, and the bytes behind it; `None` if it is not complete.
fn parse_length(short_length: u8, bytes: &[u8]) -> Result<Option<(u64, &[u8])>, ReadError> {
    let (length, shortest, rest) = match short_length {
        LENGTH_16 => {
            let Some((length, rest)) = bytes.split_first_chunk() else { return Ok(None) };
            (u64::from(u16::from_be_bytes(*length)), u64::from(LENGTH_16), rest)
        }
        LENGTH_64 => {
            let Some((length, rest)) = bytes.split_first_chunk() else { return Ok(None) };
            (u64::from_be_bytes(*length), 0x1_0000, rest)
        }
        length => (u64::from(length), 0, bytes),
    };
    if length < shortest || length > i64::MAX.unsigned_abs() {
        return Err(ReadError::BadLength);
    }
    Ok(Some((length, rest)))
}

/// The event of a complete payload, if the payload is what its opcode says.
fn event(opcode: Opcode, payload: &[u8]) -> Result<Event<'_>, ReadError> {
    Ok(match opcode {
        Opcode::Text => Event::Text(utf8(payload)?),
        Opcode::Binary => Event::Binary(payload),
        Opcode::Ping => Event::Ping(payload),
        Opcode::Pong => Event::Pong(payload),
        Opcode::Close => Event::Close(match payload.split_first_chunk::<CLOSE_CODE_BYTES>() {
            None if payload.is_empty() => None,
            None => return Err(ReadError::ShortClose),
            Some((code, reason)) => {
                let code = u16::from_be_bytes(*code);
                if !is_close_code(code) {
                    return Err(ReadError::BadCloseCode { code });
                }
                Some((code, utf8(reason)?))
            }
        }),
    })
}

fn utf8(bytes: &[u8]) -> Result<&str, ReadError> {
    simdutf8::basic::from_utf8(bytes).map_err(|_| ReadError::BadUtf8)
}

/// Applies the mask in place (section 5.3), a word at a time; the compiler makes vectors of it.
fn unmask(payload: &mut [u8], mask: [u8; MASK_BYTES]) {
    let [a, b, c, d] = mask;
    let key = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, rest) = payload.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ key).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(mask.into_iter().cycle()) {
        *byte ^= key;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGE_BYTES_MAX: usize = 300;

    /// The key 0 leaves a payload readable in a table.
    const KEY: &[u8] = &[0; MASK_BYTES];

    /// What the stream gives: `Debug` of each event and the error, if it ends with one. The same in one read and in reads
    /// of one byte each, or it panics.
    fn read(stream: &[u8]) -> (Vec<String>, Option<ReadError>) {
        let whole = read_in_pieces(stream, stream.len().max(1));
        assert_eq!(whole, read_in_pieces(stream, 1), "differs byte by byte: {stream:02x?}");
        whole
    }

    fn read_in_pieces(stream: &[u8], piece_bytes: usize) -> (Vec<String>, Option<ReadError>) {
        let mut reader = Reader::new(MESSAGE_BYTES_MAX);
        let mut events = Vec::new();
        for piece in stream.to_vec().chunks_mut(piece_bytes) {
            let mut input = piece;
            loop {
                match reader.next(&mut input) {
                    Ok(Some(event)) => events.push(format!("{event:?}")),
                    Ok(None) => break,
                    Err(error) => return (events, Some(error)),
                }
            }
            assert!(input.is_empty());
        }
        (events, None)
    }

    /// Joins the parts of a stream.
    macro_rules! bytes {
        ($($part:expr),+ $(,)?) => { [$(&$part[..]),+].concat() };
    }

    #[test]
    fn valid_streams() {
        let exactly_max = bytes!([0x82, 0xFE, 1, 0x2C], KEY, [7; 300]);
        let rows: [(Vec<u8>, &[&str]); 19] = [
            (bytes!(b""), &[]),
            (bytes!(b"\x81\x80", KEY), &["Text(\"\")"]),
            (bytes!(b"\x81\x85\x37\xFA\x21\x3D\x7F\x9F\x4D\x51\x58"), &["Text(\"Hello\")"]),
            (bytes!(b"\x82\x83", KEY, b"\x01\x02\xFF"), &["Binary([1, 2, 255])"]),
            (bytes!(b"\x81\x81", KEY, b"a", b"\x81\x81", KEY, b"b"), &["Text(\"a\")", "Text(\"b\")"]),
            (bytes!(b"\x82\xFE\0\x7E", KEY, [7; 126]), &[&format!("Binary({:?})", [7; 126])]),
            (exactly_max.clone(), &[&format!("Binary({:?})", [7; 300])]),
            // In fragments, empty ones among them; with a control frame in between.
            (bytes!(b"\x01\x81", KEY, b"a", b"\x80\x81", KEY, b"b"), &["Text(\"ab\")"]),
            (bytes!(b"\x01\x80", KEY, b"\0\x80", KEY, b"\x80\x81", KEY, b"b"), &["Text(\"b\")"]),
            (bytes!(b"\x02\x81", KEY, b"a", b"\x80\x80", KEY), &["Binary([97])"]),
            (
                bytes!(b"\x01\x81", KEY, b"a", b"\x89\x81", KEY, b"p", b"\x80\x81", KEY, b"b"),
                &["Ping([112])", "Text(\"ab\")"],
            ),
            // A character over two fragments.
            (bytes!(b"\x01\x81", KEY, b"\xC3", b"\x80\x81", KEY, b"\xA4"), &["Text(\"ä\")"]),
            (bytes!(b"\x8A\x80", KEY), &["Pong([])"]),
            (bytes!(b"\x89\xFD", KEY, [1; 125]), &[&format!("Ping({:?})", [1; 125])]),
            (bytes!(b"\x88\x80", KEY), &["Close(None)"]),
            (bytes!(b"\x88\x82", KEY, b"\x03\xE8"), &["Close(Some((1000, \"\")))"]),
            (bytes!(b"\x88\x84", KEY, b"\x0B\xB8\xC3\xA4"), &["Close(Some((3000, \"ä\")))"]),
            // Nothing that follows a close frame counts.
            (bytes!(b"\x88\x80", KEY, b"\xFF\xFF", exactly_max), &["Close(None)"]),
            (bytes!(b"\x01\x81", KEY, b"a", b"\x88\x80", KEY, b"\x80\x80", KEY), &["Close(None)"]),
        ];
        for (stream, expected) in rows {
            let (events, error) = read(&stream);
            assert_eq!(error, None, "{stream:02x?}");
            assert_eq!(events, expected, "{stream:02x?}");
        }
    }

    #[test]
    fn invalid_headers_fail_at_their_first_wrong_byte() {
        use ReadError::*;
        let rows: [(&[u8], ReadError); 33] = [
            (b"\x81\x01", Unmasked),
            (b"\x88\x00", Unmasked),
            (b"\xC1", ReservedBits),
            (b"\xA1", ReservedBits),
            (b"\x91", ReservedBits),
            (b"\x83", ReservedOpcode { opcode: 0x3 }),
            (b"\x84", ReservedOpcode { opcode: 0x4 }),
            (b"\x85", ReservedOpcode { opcode: 0x5 }),
            (b"\x86", ReservedOpcode { opcode: 0x6 }),
            (b"\x87", ReservedOpcode { opcode: 0x7 }),
            (b"\x8B", ReservedOpcode { opcode: 0xB }),
            (b"\x8C", ReservedOpcode { opcode: 0xC }),
            (b"\x8D", ReservedOpcode { opcode: 0xD }),
            (b"\x8E", ReservedOpcode { opcode: 0xE }),
            (b"\x8F", ReservedOpcode { opcode: 0xF }),
            (b"\x88\xFE", LongControl),
            (b"\x89\xFE", LongControl),
            (b"\x8A\xFF", LongControl),
            (b"\x08", FragmentedControl),
            (b"\x09", FragmentedControl),
            (b"\x0A", FragmentedControl),
            (b"\x80", OrphanContinuation),
            (b"\x00", OrphanContinuation),
            (b"\x82\x80\0\0\0\0\x80", OrphanContinuation),
            (b"\x02\x80\0\0\0\0\x82", Interleaved),
            (b"\x02\x80\0\0\0\0\x01", Interleaved),
            (b"\x82\xFE\0\x7D", BadLength),
            (b"\x82\xFF\0\0\0\0\0\0\xFF\xFF", BadLength),
            (b"\x82\xFF\x80\0\0\0\0\0\0\0", BadLength),
            (b"\x82\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF", BadLength),
            (b"\x82\xFF\x7F\xFF\xFF\xFF\xFF\xFF\xFF\xFF", TooBig { bytes: i64::MAX as u64 }),
            (b"\x82\xFE\x01\x2D", TooBig { bytes: 301 }),
            (b"\x02\x81\0\0\0\0a\x80\xFE\x01\x2C", TooBig { bytes: 301 }),
        ];
        for (stream, expected) in rows {
            let (_, error) = read(stream);
            assert_eq!(error, Some(expected), "{stream:02x?}");
            let (_, error) = read(&stream[..stream.len() - 1]);
            assert_eq!(error, None, "too early: {stream:02x?}");
        }
    }

    #[test]
    fn close_codes() {
        let valid = [1000, 1001, 1002, 1003, 1007, 1008, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999];
        let invalid = [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1999, 2000, 2999, 5000, 0xFFFF];
        for (codes, is_valid) in [(&valid[..], true), (&invalid[..], false)] {
            for &code in codes {
                let (events, error) = read(&bytes!(b"\x88\x82", KEY, u16::to_be_bytes(code)));
                let expected = if is_valid { None } else { Some(ReadError::BadCloseCode { code }) };
                assert_eq!((events.len(), error), (usize::from(is_valid), expected));
            }
        }
        assert_eq!(read(&bytes!(b"\x88\x81", KEY, b"\x03")).1, Some(ReadError::ShortClose));
        assert_eq!(read(&bytes!(b"\x88\x83", KEY, b"\x03\xE8\xFF")).1, Some(ReadError::BadUtf8));
    }

    #[test]
    fn bad_text_fails_at_its_first_wrong_byte() {
        // What UTF-8 does not allow, up to the byte at which that is certain.
        let wrong: [&[u8]; 9] = [
            b"\x80",
            b"\xC0",
            b"\xC3\x28",
            b"\xE0\x80",
            b"\xED\xA0",
            b"\xF0\x80",
            b"\xF4\x90",
            b"\xF5",
            b"\xE2\x82\xFF",
        ];
        for text in wrong {
            // The frames announce more, which never comes.
            let in_frame = bytes!(b"\x81\x90", KEY, b"ab", text);
            let (begin, end) = text.split_at(text.len() - 1);
            let length = [0x82 + u8::try_from(begin.len()).unwrap()];
            let in_fragments = bytes!(b"\x01", length, KEY, b"ab", begin, b"\x00\x84", KEY, end);
            for stream in [in_frame, in_fragments] {
                assert_eq!(read(&stream).1, Some(ReadError::BadUtf8), "{stream:02x?}");
                assert_eq!(read(&stream[..stream.len() - 1]).1, None, "too early: {stream:02x?}");
            }
        }
        for unfinished in [&b"\xC3"[..], b"\xE2\x82", b"\xF0\x9F\x98"] {
            let length = u8::try_from(unfinished.len()).unwrap();
            let whole = bytes!(b"\x81", [MASK_BIT | length], KEY, unfinished);
            let in_fragments = bytes!(b"\x01", [MASK_BIT | length], KEY, unfinished, b"\x80\x80", KEY);
            for stream in [whole, in_fragments] {
                assert_eq!(read(&stream).1, Some(ReadError::BadUtf8), "{stream:02x?}");
            }
        }
    }

    #[test]
    fn fragments_are_counted() {
        let message = |fragments: u16| {
            let mut stream = bytes!(b"\x02\x80", KEY);
            for _ in 2..fragments {
                stream.extend_from_slice(&bytes!(b"\x00\x80", KEY));
            }
            stream.extend_from_slice(&bytes!(b"\x80\x80", KEY));
            stream
        };
        assert_eq!(read(&message(FRAGMENTS_MAX)), (vec!["Binary([])".to_owned()], None));
        assert_eq!(read(&message(FRAGMENTS_MAX + 1)), (vec![], Some(ReadError::TooManyFragments)));
    }

    #[test]
    fn a_whole_message_is_borrowed_from_the_input() {
        let mut stream = bytes!(b"\x82\x82", KEY, b"ab", b"\x89\x81", KEY, b"p");
        let range = stream.as_ptr_range();
        let mut reader = Reader::new(MESSAGE_BYTES_MAX);
        let mut input = &mut stream[..];
        while let Some(event) = reader.next(&mut input).unwrap() {
            let (Event::Binary(payload) | Event::Ping(payload)) = event else { panic!("{event:?}") };
            assert!(range.contains(&payload.as_ptr()));
            assert_eq!(reader.heap_bytes(), 0);
        }
    }

    #[test]
    fn memory_follows_what_came_and_goes_with_the_message() {
        let mut reader = Reader::new(64 << 10);
        let feed = |reader: &mut Reader, bytes: &[u8]| {
            let mut bytes = bytes.to_vec();
            let mut input = &mut bytes[..];
            while reader.next(&mut input).unwrap().is_some() {}
            (reader.is_mid_message(), reader.heap_bytes())
        };
        assert_eq!(feed(&mut reader, b""), (false, 0));
        assert_eq!(feed(&mut reader, b"\x82"), (true, 0));
        // 65,536 bytes are announced.
        assert_eq!(feed(&mut reader, b"\xFF\0\0\0\0\0\x01\0\0\0\0\0\0"), (true, 0));
        assert_eq!(feed(&mut reader, b"a"), (true, ASSEMBLY_BYTES_MIN));
        assert_eq!(feed(&mut reader, &[0; 999]), (true, 1_000));
        assert_eq!(feed(&mut reader, &[0; 1]), (true, 2_000));
        assert_eq!(feed(&mut reader, &[0; 64_534]), (true, 65_535));
        // The message was handed out within the call, and the memory went with the next.
        assert_eq!(feed(&mut reader, &[0; 1]), (false, 0));
        // A split control frame takes its own length, inside a message, too.
        assert_eq!(feed(&mut reader, b"\x02\x80\0\0\0\0\x89\x83\0\0\0\0p"), (true, 3));
        assert_eq!(feed(&mut reader, b"qr"), (true, 0));
        assert_eq!(feed(&mut reader, b"\x80\x80\0\0\0\0"), (false, 0));
        assert_eq!(feed(&mut reader, b"\x88\x80\0\0\0\0\x81"), (false, 0));
    }

    #[test]
    fn an_error_ends_the_stream_and_frees_the_memory() {
        let mut reader = Reader::new(MESSAGE_BYTES_MAX);
        let mut stream = bytes!(b"\x01\x81", KEY, b"a", b"\xFF", b"\x82\x80", KEY);
        let mut input = &mut stream[..];
        assert_eq!(reader.next(&mut input), Err(ReadError::ReservedBits));
        assert_eq!(reader.next(&mut input), Ok(None));
        assert!(input.is_empty());
        assert_eq!((reader.is_mid_message(), reader.heap_bytes()), (false, 0));
    }

    #[test]
    fn the_mask_keeps_its_phase_over_any_cut() {
        let mask = [1, 2, 4, 8];
        let plain: Vec<u8> = (0..40).collect();
        let masked: Vec<u8> =
            plain.iter().zip(mask.into_iter().cycle()).map(|(byte, key)| byte ^ key).collect();
        for piece_bytes in 1..plain.len() {
            let stream = bytes!(b"\x82\xA8", mask, masked);
            let expected = vec![format!("Binary({plain:?})")];
            assert_eq!(read_in_pieces(&stream, piece_bytes), (expected, None));
        }
    }

    #[test]
    fn errors_close_with_their_own_reason() {
        let rows = [
            (ReadError::Unmasked, CloseReason::Protocol),
            (ReadError::BadCloseCode { code: 1006 }, CloseReason::Protocol),
            (ReadError::BadUtf8, CloseReason::BadUtf8),
            (ReadError::TooBig { bytes: 301 }, CloseReason::TooBig),
            (ReadError::TooManyFragments, CloseReason::Abuse),
        ];
        for (error, reason) in rows {
            assert_eq!(error.close_reason(), reason, "{error}");
        }
    }

    #[test]
    fn a_reader_is_small_because_every_connection_has_one() {
        assert!(size_of::<Reader>() <= 96, "{}", size_of::<Reader>());
        assert!(size_of::<ReadError>() <= 16);
    }
}
