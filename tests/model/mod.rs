//! What the tests of the hub have in common: connections without a socket, and what comes out of them.

use std::rc::Rc;

use tidewire::config::Config;
use tidewire::hub::access::Standing;
use tidewire::hub::membership::NewMember;
use tidewire::outbox::handle::OutboxHandle;
use tidewire::wire::{Codec, ConnectionId};

/// A connection to be taken in by a hub, of a server without keys, and its outbox.
pub(crate) fn new_member(
    config: &Config,
    id: u64,
    codec: Codec,
    user: Option<&str>,
) -> (NewMember, Rc<OutboxHandle>) {
    let handle = Rc::new(OutboxHandle::new(config.outbox.clone(), Rc::default()));
    let new = NewMember {
        id: ConnectionId(id),
        handle: Rc::clone(&handle),
        codec,
        standing: Standing::Open { user: user.map(Into::into) },
        seat: None,
        remote: Box::from("a peer"),
    };
    (new, handle)
}

/// The first WebSocket message of a stream: its opcode, its payload, and what follows.
pub(crate) fn split_message(stream: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[first, short], rest) = stream.split_first_chunk::<2>()?;
    assert_eq!(first & 0xF0, 0x80, "one unmasked message is one frame");
    let (length, rest) = match short {
        126 => {
            let (length, rest) = rest.split_first_chunk::<2>()?;
            (usize::from(u16::from_be_bytes(*length)), rest)
        }
        127 => {
            let (length, rest) = rest.split_first_chunk::<8>()?;
            (usize::try_from(u64::from_be_bytes(*length)).unwrap(), rest)
        }
        short => (usize::from(short), rest),
    };
    let (payload, rest) = rest.split_at_checked(length)?;
    Some((first & 0xF, payload, rest))
}
