//! The WebSocket reader, fed in pieces, against [`read_naively`], which has the whole stream at once.

use tidewire::close::CloseReason;
use tidewire::wire::ws::{Event, FRAGMENTS_MAX, Reader};

/// Low, so that short inputs reach it.
pub const MESSAGE_BYTES_MAX: usize = 1_000;

const CONTROL_BYTES_MAX: usize = 125;

/// Everything that a stream gives: its messages, and how it ends if it breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// In order.
    pub messages: Vec<Message>,
    /// `None` if the stream is valid so far.
    pub error: Option<CloseReason>,
}

/// An [`Event`] that owns its payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Text.
    Text(String),
    /// Binary.
    Binary(Vec<u8>),
    /// Ping.
    Ping(Vec<u8>),
    /// Pong.
    Pong(Vec<u8>),
    /// Close, with code and reason.
    Close(Option<(u16, String)>),
}

impl From<Event<'_>> for Message {
    fn from(event: Event<'_>) -> Self {
        match event {
            Event::Text(text) => Self::Text(text.into()),
            Event::Binary(payload) => Self::Binary(payload.into()),
            Event::Ping(payload) => Self::Ping(payload.into()),
            Event::Pong(payload) => Self::Pong(payload.into()),
            Event::Close(close) => Self::Close(close.map(|(code, reason)| (code, reason.into()))),
        }
    }
}

/// The first byte says how many bytes of cuts follow (0 to 15), each a length of a piece; the rest is the stream.
pub fn check(data: &[u8]) {
    let Some((&count, rest)) = data.split_first() else { return };
    let (cuts, stream) = rest.split_at(usize::from(count % 16).min(rest.len()));
    let cuts: Vec<usize> = cuts.iter().map(|&cut| usize::from(cut) + 1).collect();
    assert_eq!(read_in_pieces(stream, &cuts), read_naively(stream));
}

/// Reads the stream with [`Reader`], in pieces of these lengths, again and again; in one piece if there are none. Panics
/// if the reader leaves input over, or holds more memory than it may.
#[must_use]
pub fn read_in_pieces(stream: &[u8], piece_bytes: &[usize]) -> Outcome {
    let mut reader = Reader::new(MESSAGE_BYTES_MAX);
    let mut outcome = Outcome { messages: Vec::new(), error: None };
    let mut stream = stream.to_vec();
    let mut rest = &mut stream[..];
    let mut lengths = piece_bytes.iter().cycle();
    while !rest.is_empty() {
        let bytes = lengths.next().map_or(rest.len(), |&bytes| bytes.min(rest.len()));
        let (mut piece, behind) = rest.split_at_mut(bytes);
        rest = behind;
        loop {
            match reader.next(&mut piece) {
                Ok(Some(event)) => outcome.messages.push(event.into()),
                Ok(None) => break,
                Err(error) => {
                    // The rest is ignored, but reading on has to be harmless.
                    assert!(outcome.error.is_none(), "a second error");
                    outcome.error = Some(error.close_reason());
                }
            }
            assert!(reader.heap_bytes() <= MESSAGE_BYTES_MAX + CONTROL_BYTES_MAX);
        }
        assert!(piece.is_empty(), "input is left over");
        assert!(reader.is_mid_message() || reader.heap_bytes() == 0, "memory without a message");
    }
    outcome
}

/// RFC 6455 as it is written, without regard to speed or memory. At the end of the stream it looks at what there is of the
/// last frame, since a fault has to be seen as soon as it is there.
#[must_use]
pub fn read_naively(stream: &[u8]) -> Outcome {
    let mut messages = Vec::new();
    let error = read_frames(stream, &mut messages).err();
    Outcome { messages, error }
}

fn read_frames(stream: &[u8], messages: &mut Vec<Message>) -> Result<(), CloseReason> {
    struct Open {
        is_text: bool,
        payload: Vec<u8>,
        fragments: u16,
    }
    let mut open: Option<Open> = None;
    let mut bytes = stream.iter().copied();
    loop {
        let Some(first) = bytes.next() else { return Ok(()) };
        let (is_final, reserved, opcode) = (first >= 128, first / 16 % 8, first % 16);
        let is_control = matches!(opcode, 8..=10);
        require(reserved == 0)?;
        match opcode {
            0 => {
                let Some(open) = &mut open else { return Err(CloseReason::Protocol) };
                open.fragments += 1;
                if open.fragments > FRAGMENTS_MAX {
                    return Err(CloseReason::Abuse);
                }
            }
            1 | 2 => {
                require(open.is_none())?;
                open = Some(Open { is_text: opcode == 1, payload: Vec::new(), fragments: 1 });
            }
            8..=10 => require(is_final)?,
            _ => return Err(CloseReason::Protocol),
        }

        let Some(second) = bytes.next() else { return Ok(()) };
        require(second >= 128)?;
        let mut length = u64::from(second - 128);
        require(!is_control || length <= CONTROL_BYTES_MAX as u64)?;
        if length >= 126 {
            let (count, shortest) = if length == 126 { (2, 126) } else { (8, 1 << 16) };
            let digits: Vec<u8> = bytes.by_ref().take(count).collect();
            if digits.len() < count {
                return Ok(());
            }
            length = digits.iter().fold(0, |length, &digit| length << 8 | u64::from(digit));
            require(length >= shortest && length < 1 << 63)?;
        }
        if let Some(open) = &open
            && !is_control
            && length > (MESSAGE_BYTES_MAX - open.payload.len()) as u64
        {
            return Err(CloseReason::TooBig);
        }
        let length = usize::try_from(length).expect("the limit is far lower");

        let mask: Vec<u8> = bytes.by_ref().take(4).collect();
        if mask.len() < 4 {
            return Ok(());
        }
        let payload: Vec<u8> =
            bytes.by_ref().take(length).enumerate().map(|(index, byte)| byte ^ mask[index % 4]).collect();
        let is_complete = payload.len() == length;

        if is_control {
            if !is_complete {
                return Ok(());
            }
            match opcode {
                8 => {
                    messages.push(Message::Close(close(payload)?));
                    return Ok(());
                }
                9 => messages.push(Message::Ping(payload)),
                _ => messages.push(Message::Pong(payload)),
            }
            continue;
        }
        let mut message = open.take().expect("a data frame has a message");
        message.payload.extend(payload);
        if message.is_text && !could_become_text(&message.payload) {
            return Err(CloseReason::BadUtf8);
        }
        if is_complete && is_final {
            messages.push(if message.is_text {
                Message::Text(String::from_utf8(message.payload).map_err(|_| CloseReason::BadUtf8)?)
            } else {
                Message::Binary(message.payload)
            });
        } else {
            open = Some(message);
        }
    }
}

fn close(mut payload: Vec<u8>) -> Result<Option<(u16, String)>, CloseReason> {
    if payload.is_empty() {
        return Ok(None);
    }
    require(payload.len() >= 2)?;
    let reason = payload.split_off(2);
    let code = u16::from(payload[0]) * 256 + u16::from(payload[1]);
    require(match code {
        1004..=1006 | 1015 => false,
        1000..=1014 | 3000..=4999 => true,
        _ => false,
    })?;
    Ok(Some((code, String::from_utf8(reason).map_err(|_| CloseReason::BadUtf8)?)))
}

fn could_become_text(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).map_or_else(|error| error.error_len().is_none(), |_| true)
}

fn require(holds: bool) -> Result<(), CloseReason> {
    if holds { Ok(()) } else { Err(CloseReason::Protocol) }
}
