//! Subscribers and publishers whose connection has ended, on their way back to the same server or to another one. They connect on a
//! thread of their own, one after the other, so that the thread of the others never waits for a server that does not answer.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::ws::{Ended, Endpoint, READ_BUFFER_BYTES};

/// Ceiling of the time before the first attempt. It doubles with each; the time is a random part of it, so that those whose server
/// went do not all come to the next one at once.
const DELAY_BASE: Duration = Duration::from_millis(50);

/// Ceiling of all of them.
const DELAY_CAP: Duration = Duration::from_secs(2);

/// How long one tries: longer than a server takes to drain and to start again.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// How long a connection has to hold before attempts count anew. A server that takes a connection and ends it at once would keep a
/// run going for ever.
const HOLD: Duration = Duration::from_secs(5);

/// Close codes after which the same attempt ends the same way: `never` in docs/PROTOCOL.md, and 4413: too slow would be so again.
const NEVER: [u16; 8] = [1002, 1003, 1007, 1008, 1009, 4401, 4403, 4413];

/// Whether one who comes back comes back after this. A goodbye and a lost connection are no fault of the client's; what does
/// not belong into the protocol is the server's, and one that is too slow would be so again.
pub(crate) fn is_worth_it(why: &Ended) -> bool {
    match why {
        Ended::Closed { code, .. } => !NEVER.contains(code),
        // So is a token that is not taken.
        Ended::Refused(why) => !why.is_for_good(),
        Ended::Io(_) | Ended::EndOfStream => true,
        Ended::Protocol(_) | Ended::Unexpected(_) => false,
    }
}

/// When to try, and until when.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attempts {
    count: u32,
    give_up_at: Instant,
}

impl Attempts {
    /// None yet.
    pub(crate) fn new(now: Instant) -> Self {
        Self { count: 0, give_up_at: now + PATIENCE }
    }

    /// Of one that had come back by then, and has lost that connection, too: those before still count, unless it has held.
    pub(crate) fn again(before: Option<(Self, Instant)>, now: Instant) -> Self {
        match before {
            Some((attempts, back_at)) if now.saturating_duration_since(back_at) < HOLD => attempts,
            _ => Self::new(now),
        }
    }

    /// How long to wait before the next one; `None` if there is none any more. `random` is from 0 up to 1.
    pub(crate) fn delay(&mut self, now: Instant, random: f64) -> Option<Duration> {
        let ceiling = DELAY_BASE.saturating_mul(1 << self.count.min(16)).min(DELAY_CAP);
        self.count += 1;
        (now < self.give_up_at).then(|| ceiling.mul_f64(random))
    }
}

/// One whose connection has ended: what it takes along, and how it begins again.
pub(crate) trait Traveller: Send + 'static {
    /// What it is when it is back.
    type Back: Send + 'static;

    /// Connects, and blocks until the server has answered. May be called again if it fails.
    fn begin_again(&mut self, server: &Endpoint, buffer: &mut [u8]) -> Result<Self::Back, Ended>;
}

/// On the way.
#[derive(Debug)]
struct Trip<T> {
    token: usize,
    traveller: T,
    /// The server to try next.
    at: usize,
    attempts: Attempts,
    /// When the first one is.
    due: Instant,
}

#[derive(Debug)]
struct Returned<B> {
    token: usize,
    /// Its server.
    at: usize,
    attempts: Attempts,
    answer: Result<B, String>,
}

/// To the thread, and from it.
type Ways<T> = (SyncSender<Trip<T>>, Receiver<Returned<<T as Traveller>::Back>>);

/// Those of one thread.
#[derive(Debug)]
pub(crate) struct Comeback<T: Traveller> {
    /// Who was at one of them tries the next.
    servers: Arc<[Endpoint]>,
    /// The server of each, by its token.
    places: Vec<usize>,
    thread: Option<Ways<T>>,
    /// Those on the way.
    away: Vec<usize>,
    /// Of each that came back, what that took, and when it was.
    before: Vec<Option<(Attempts, Instant)>>,
}

impl<T: Traveller> Comeback<T> {
    /// Of those that are at the servers of these numbers.
    pub(crate) fn new(servers: Arc<[Endpoint]>, places: Vec<usize>) -> Self {
        let before = vec![None; places.len()];
        Self { servers, places, thread: None, away: Vec::new(), before }
    }

    /// Whether nobody is on the way.
    pub(crate) const fn is_empty(&self) -> bool {
        self.away.is_empty()
    }

    /// The connection of one has ended. Says why if it does not come back.
    pub(crate) fn left(&mut self, token: usize, traveller: T, why: &Ended) -> Option<String> {
        if !is_worth_it(why) {
            return Some(why.to_string());
        }
        let (at, now) = (self.places[token] + 1, Instant::now());
        let mut attempts = Attempts::again(self.before[token].take(), now);
        let Some(delay) = attempts.delay(now, fastrand::f64()) else {
            return Some(format!("no connection held: {why}"));
        };
        let trip = Trip { token, traveller, at, attempts, due: now + delay };
        let sender = match &self.thread {
            Some((sender, _)) => sender,
            None => match self.start() {
                Ok(sender) => sender,
                Err(error) => return Some(format!("{why}, and no thread could be started: {error}")),
            },
        };
        // The thread has gone only if it panicked.
        if sender.send(trip).is_err() {
            return Some(why.to_string());
        }
        self.away.push(token);
        None
    }

    fn start(&mut self) -> io::Result<&SyncSender<Trip<T>>> {
        // Room for all: neither side ever waits for the other.
        let (sender, trips) = sync_channel(self.places.len().max(1));
        let (returned, receiver) = sync_channel(self.places.len().max(1));
        let servers = Arc::clone(&self.servers);
        thread::Builder::new()
            .name("comeback".to_owned())
            .spawn(move || bring_back(&servers, &trips, &returned))?;
        Ok(&self.thread.insert((sender, receiver)).0)
    }

    /// Those who have come back by now, or who have given up.
    pub(crate) fn returned(&mut self) -> Vec<(usize, Result<T::Back, String>)> {
        let mut all = Vec::new();
        while !self.away.is_empty()
            && let Some((_, receiver)) = &self.thread
        {
            match receiver.try_recv() {
                Ok(Returned { token, at, attempts, answer }) => {
                    self.away.retain(|&away| away != token);
                    self.places[token] = at;
                    self.before[token] = Some((attempts, Instant::now()));
                    all.push((token, answer));
                }
                Err(TryRecvError::Empty) => break,
                // A defect of this program; the others shall not wait for ever.
                Err(TryRecvError::Disconnected) => {
                    let lost = self.away.drain(..);
                    all.extend(lost.map(|token| (token, Err("the comeback thread panicked".to_owned()))));
                }
            }
        }
        all
    }
}

fn bring_back<T: Traveller>(
    servers: &[Endpoint],
    trips: &Receiver<Trip<T>>,
    returned: &SyncSender<Returned<T::Back>>,
) {
    let mut buffer = vec![0; READ_BUFFER_BYTES];
    let mut all: Vec<Option<Trip<T>>> = Vec::new();
    let mut due: BinaryHeap<Reverse<(Instant, usize)>> = BinaryHeap::new();
    loop {
        let wait = due.peek().map(|Reverse((at, _))| at.saturating_duration_since(Instant::now()));
        let next = match wait {
            Some(wait) => trips.recv_timeout(wait),
            None => trips.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match next {
            Ok(trip) => {
                let first = trip.due;
                let place = all.iter().position(Option::is_none).unwrap_or(all.len());
                if place == all.len() {
                    all.push(None);
                }
                all[place] = Some(trip);
                due.push(Reverse((first, place)));
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => {}
        }
        let Some(Reverse((_, place))) = due.pop() else { continue };
        let Some(mut trip) = all[place].take() else { continue };
        let at = trip.at % servers.len();
        let answer = match trip.traveller.begin_again(&servers[at], &mut buffer) {
            Ok(back) => Ok(back),
            Err(why) => {
                let now = Instant::now();
                if is_worth_it(&why)
                    && let Some(delay) = trip.attempts.delay(now, fastrand::f64())
                {
                    trip.at += 1;
                    all[place] = Some(trip);
                    due.push(Reverse((now + delay, place)));
                    continue;
                }
                Err(format!("it did not come back: {why}"))
            }
        };
        let Trip { token, attempts, .. } = trip;
        if returned.send(Returned { token, at, attempts, answer }).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ws::Refusal;

    #[test]
    fn attempts_spread_and_end() {
        let now = Instant::now();
        let mut attempts = Attempts::new(now);
        let delays: Vec<_> = (0..8).map(|_| attempts.delay(now, 1.0).unwrap().as_millis()).collect();
        assert_eq!(delays, [50, 100, 200, 400, 800, 1_600, 2_000, 2_000]);
        assert_eq!(attempts.delay(now, 0.0), Some(Duration::ZERO));
        assert_eq!(attempts.delay(now + PATIENCE, 0.5), None);
    }

    #[test]
    fn attempts_begin_anew_once_a_connection_has_held() {
        let now = Instant::now();
        let mut attempts = Attempts::new(now);
        attempts.delay(now, 1.0).unwrap();
        let late = now + PATIENCE;
        // Back just before its time was over: lost at once, that was all; held, it may try as long again.
        let back_at = late - Duration::from_millis(1);
        assert_eq!(Attempts::again(Some((attempts, back_at)), late).delay(late, 1.0), None);
        let early = Attempts::again(Some((attempts, now)), now + HOLD / 2).delay(now + HOLD / 2, 1.0);
        assert_eq!(early, Some(2 * DELAY_BASE));
        for before in [Some((attempts, late - HOLD)), None] {
            assert_eq!(Attempts::again(before, late).delay(late, 1.0), Some(DELAY_BASE));
        }
    }

    struct Clumsy;

    impl Traveller for Clumsy {
        type Back = ();

        fn begin_again(&mut self, _: &Endpoint, _: &mut [u8]) -> Result<(), Ended> {
            panic!("for the test")
        }
    }

    #[test]
    fn none_is_forgotten_if_the_thread_panics() {
        let servers = [Endpoint::parse("ws://127.0.0.1:1/ws").unwrap()].into();
        let mut back = Comeback::new(servers, vec![0; 3]);
        assert_eq!(back.left(2, Clumsy, &Ended::EndOfStream), None);
        let told = loop {
            let told = back.returned();
            if !told.is_empty() {
                break told;
            }
            thread::yield_now();
        };
        assert_eq!(told, [(2, Err("the comeback thread panicked".to_owned()))]);
        assert!(back.is_empty());
        assert!(back.left(1, Clumsy, &Ended::EndOfStream).is_some(), "there is nobody to bring it back");
    }

    #[test]
    fn only_what_is_no_fault_of_anybody_is_worth_it() {
        let closed = |code| Ended::Closed { code, reason: String::new() };
        for why in [closed(1001), closed(1011), Ended::EndOfStream, Ended::Io(io::ErrorKind::TimedOut.into())]
        {
            assert!(is_worth_it(&why), "{why}");
        }
        let refused = |status| Ended::Refused(Refusal { status, why: String::new() });
        for why in [refused(Some(503)), refused(Some(429)), refused(None)] {
            assert!(is_worth_it(&why), "{why:?}");
        }
        for why in [
            refused(Some(401)),
            refused(Some(403)),
            closed(4413),
            closed(4403),
            closed(1002),
            Ended::Unexpected("a bad frame".to_owned()),
        ] {
            assert!(!is_worth_it(&why), "{why}");
        }
    }
}
