//! The limit: the same bytes to the same sockets, and no protocol at all. One thread, one epoll, one buffer for everybody;
//! each turn reads what the publishers sent and writes it to each subscriber with one `send`. A server can hardly cost
//! less. It checks nothing, frames nothing and knows no channels.
//!
//! The first byte of a connection says what it is: `P` publishes frames that are ready to be sent on, `S` gets them all.
//! With `--per-message` each frame is a `send` of its own: the limit for a server that does not batch.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::fd::OwnedFd;
use tidewire_peers::log::{Log, frames, whole};
use tidewire_peers::{arguments, is_later, listen};

/// Read from a publisher in a turn.
const READ_BYTES: usize = 256 << 10;

/// Sockets per turn.
const EVENTS_MAX: usize = 1024;

const LISTENER: u64 = u64::MAX;

enum Role {
    /// It has not said it yet.
    Unknown,
    /// Holds the beginning of a frame.
    Publisher(Vec<u8>),
    Subscriber {
        position: u64,
        /// Of a frame that was given up in the middle: goes out before anything else.
        rest: Vec<u8>,
        is_blocked: bool,
    },
}

struct Connection {
    stream: TcpStream,
    role: Role,
}

struct Limit {
    epoll: OwnedFd,
    listener: TcpListener,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    /// The subscribers' places, so that a turn does not look at the publishers.
    subscribers: Vec<usize>,
    log: Log,
    buffer: Vec<u8>,
    per_message: bool,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let per_message = arguments(concat!("limit ", env!("CARGO_PKG_VERSION")), &["--per-message"])?.len() == 1;
    let listener = listen()?;
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    epoll::add(&epoll, &listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
    let mut limit = Limit {
        epoll,
        listener,
        connections: Vec::new(),
        free: Vec::new(),
        subscribers: Vec::new(),
        log: Log::default(),
        buffer: vec![0; READ_BYTES],
        per_message,
    };
    let none = Event { flags: EventFlags::empty(), data: EventData::new_u64(0) };
    let mut events = vec![none; EVENTS_MAX];
    loop {
        let count = match epoll::wait(&limit.epoll, events.as_mut_slice(), None) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other?,
        };
        for event in &events[..count] {
            let (data, flags) = (event.data, event.flags);
            if data.u64() == LISTENER {
                limit.accept()?;
            } else if let Ok(index) = usize::try_from(data.u64()) {
                limit.on_event(index, flags)?;
            }
        }
        limit.fan_out()?;
    }
}

impl Limit {
    fn accept(&mut self) -> io::Result<()> {
        loop {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if is_later(&error) => return Ok(()),
                // Of a connection that is gone already, or without room for one more: the others go on.
                Err(_) => return Ok(()),
            };
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            let index = self.free.pop().unwrap_or_else(|| {
                self.connections.push(None);
                self.connections.len() - 1
            });
            epoll::add(&self.epoll, &stream, EventData::new_u64(index as u64), EventFlags::IN)?;
            self.connections[index] = Some(Connection { stream, role: Role::Unknown });
        }
    }

    fn on_event(&mut self, index: usize, flags: EventFlags) -> io::Result<()> {
        let Some(connection) = self.connections.get_mut(index).and_then(Option::as_mut) else {
            return Ok(());
        };
        if flags.contains(EventFlags::OUT)
            && let Role::Subscriber { is_blocked, .. } = &mut connection.role
        {
            *is_blocked = false;
            epoll::modify(&self.epoll, &connection.stream, EventData::new_u64(index as u64), EventFlags::IN)?;
        }
        if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) && !self.read(index) {
            self.remove(index);
        }
        Ok(())
    }

    /// Whether the connection lives on.
    fn read(&mut self, index: usize) -> bool {
        let Some(connection) = self.connections[index].as_mut() else { return true };
        let end = match &connection.role {
            // What follows is the publisher's stream.
            Role::Unknown => 1,
            _ => self.buffer.len(),
        };
        let count = match connection.stream.read(&mut self.buffer[..end]) {
            Ok(0) => return false,
            Ok(count) => count,
            Err(error) => return is_later(&error),
        };
        match &mut connection.role {
            Role::Unknown if self.buffer[0] == b'P' => connection.role = Role::Publisher(Vec::new()),
            Role::Unknown if self.buffer[0] == b'S' => {
                let position = self.log.end();
                connection.role = Role::Subscriber { position, rest: Vec::new(), is_blocked: false };
                self.subscribers.push(index);
            }
            Role::Unknown => return false,
            Role::Publisher(carry) if carry.is_empty() => {
                let bytes = &self.buffer[..count];
                let cut = whole(bytes);
                self.log.append(&bytes[..cut]);
                carry.extend_from_slice(&bytes[cut..]);
            }
            Role::Publisher(carry) => {
                carry.extend_from_slice(&self.buffer[..count]);
                let cut = whole(carry);
                self.log.append(&carry[..cut]);
                carry.drain(..cut);
                // No frame is that long: it is none.
                return carry.len() < READ_BYTES;
            }
            Role::Subscriber { .. } => {}
        }
        true
    }

    fn remove(&mut self, index: usize) {
        // Closing the socket takes it out of the epoll.
        self.connections[index] = None;
        self.free.push(index);
        self.subscribers.retain(|&it| it != index);
    }

    fn fan_out(&mut self) -> io::Result<()> {
        let mut slowest = self.log.end();
        let mut gone = Vec::new();
        for &index in &self.subscribers {
            let Some(Connection { stream, role: Role::Subscriber { position, rest, is_blocked } }) =
                self.connections[index].as_mut()
            else {
                continue;
            };
            if !*is_blocked {
                match send(stream, &self.log, position, rest, self.per_message) {
                    Ok(true) => {}
                    Ok(false) => {
                        *is_blocked = true;
                        let both = EventFlags::IN | EventFlags::OUT;
                        epoll::modify(&self.epoll, &*stream, EventData::new_u64(index as u64), both)?;
                    }
                    Err(_) => gone.push(index),
                }
            }
            if *is_blocked && rest.is_empty() {
                self.log.keep_up(position, rest);
            }
            slowest = slowest.min(*position);
        }
        self.log.forget(slowest);
        gone.into_iter().for_each(|index| self.remove(index));
        Ok(())
    }
}

/// Sends what there is; `false` if the socket took less.
fn send(
    stream: &mut TcpStream,
    log: &Log,
    position: &mut u64,
    rest: &mut Vec<u8>,
    per_message: bool,
) -> io::Result<bool> {
    if !rest.is_empty() {
        let sent = write(stream, rest)?;
        rest.drain(..sent);
        if !rest.is_empty() {
            return Ok(false);
        }
    }
    let bytes = log.from(*position);
    if !per_message {
        let sent = if bytes.is_empty() { 0 } else { write(stream, bytes)? };
        *position += sent as u64;
        return Ok(sent == bytes.len());
    }
    let mut start = 0;
    for length in frames(bytes) {
        let sent = write(stream, &bytes[start..start + length])?;
        *position += sent as u64;
        start += length;
        if sent < length {
            // From here on the reader is in the middle of a frame, where no frame can be told from another.
            rest.extend_from_slice(&bytes[start - length + sent..start]);
            *position += (length - sent) as u64;
            return Ok(false);
        }
    }
    Ok(true)
}

/// What the socket took.
fn write(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<usize> {
    match stream.write(bytes) {
        Err(error) if is_later(&error) => Ok(0),
        other => other,
    }
}
