//! The subscribers that are not healthy: slow ones, stalled ones, tabs that pause, networks that fail. One thread acts all
//! of them, by the clock. Each has books of its own; what it reads is recorded as the age of samples, not as latency.
//!
//! A subscriber that goes for good before the publishers have stopped cannot know what was published while it was there. So it
//! goes at the first moment at which its books balance (what it got and what it was told of are all that it knows of), or when
//! it has waited long enough for that; what then is missing counts as lost without a word. One that comes back goes at any
//! moment: its books go on with the next connection, which brings what it missed, or says that it does not.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::books::Books;
use crate::clock::nanos;
use crate::comeback::{Attempts, is_worth_it};
use crate::dialect::Dialect;
use crate::fleet::Times;
use crate::ledger::Account;
use crate::measure::Recorder;
use crate::poll::Poll;
use crate::run::Target;
use crate::scenario::{Behaviour, Policy, Scenario};
use crate::subscribers::{Options, QUIET, Shared, Subscriber};
use crate::ws::{Endpoint, READ_BUFFER_BYTES};

/// Longest sleep.
const TURN: Duration = Duration::from_millis(20);

/// How often a slow subscriber reads.
const SIP: Duration = Duration::from_millis(10);

/// Connections that are opened between two looks at the sockets. Each blocks until the server has answered; where many come at once,
/// those that are there must not wait for all of them, or the age of what they read would be the generator's.
const OPENINGS_PER_TURN: usize = 8;

/// Never.
const NEVER: u64 = u64::MAX;

/// Where they go.
#[derive(Debug)]
pub(crate) struct Way {
    /// The servers. Who was at one of them tries the next.
    pub servers: Arc<[Endpoint]>,
    /// Name or pattern.
    pub channel: String,
}

/// One of them.
#[derive(Debug)]
pub(crate) struct Other {
    options: Options,
    behaviour: Behaviour,
    /// From and to, in order, apart from one another. The last one may end with the run.
    present: Vec<(u64, u64)>,
    state: State,
    subscriber: Option<Subscriber>,
    /// Those of the connection before, until the next one goes on with them.
    books: Option<Books>,
    /// The server that it is at, or tries next.
    at: usize,
    /// While it tries to come back.
    attempts: Option<Attempts>,
    /// What its last return took, and when that was.
    before: Option<(Attempts, Instant)>,
    /// Whether the poll watches its socket.
    watched: bool,
}

/// What it is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Not connected until then.
    Away { until_ns: u64 },
    /// Reads what comes until then.
    Reading { until_ns: u64 },
    /// Connected, reads nothing until then.
    Resting { until_ns: u64 },
    /// Reads a little at a time.
    Sipping { last_ns: u64, budget: u64 },
    /// Goes now, and is away until `until_ns`.
    Leaving { until_ns: u64 },
    /// Reads until its books balance, then goes, then is away until `until_ns`.
    Going { deadline_ns: u64, until_ns: u64 },
    /// The publishers have stopped: reads everything.
    CatchingUp { deadline_ns: u64 },
    /// Not coming back.
    Done,
}

impl Other {
    /// Everybody in the scenario who is not healthy.
    pub(crate) fn all(scenario: &Scenario, times: &Times, target: &Target, publishers: u32) -> Vec<Self> {
        let (dialect, is_one) = (target.dialect, target.others.is_empty());
        let parts = scenario.parts();
        let groups = scenario.groups.iter().filter(|group| group.behaviour != Behaviour::Healthy);
        groups
            .flat_map(|group| {
                let mut present: Vec<(u64, u64)> = Vec::new();
                for (index, _) in parts.iter().enumerate().filter(|(_, part)| group.is_in(&part.name)) {
                    let (from_ns, to_ns) = times.phase(index);
                    match present.last_mut() {
                        Some((_, last_ns)) if *last_ns == from_ns => *last_ns = to_ns,
                        _ => present.push((from_ns, to_ns)),
                    }
                }
                // Who is there from the beginning connects before the first message.
                if let Some((first_ns, _)) = present.first_mut().filter(|it| it.0 == times.span.start_ns) {
                    *first_ns = 0;
                }
                // Who is there at the end stays until the books are closed.
                if let Some((_, last_ns)) = present.last_mut().filter(|it| it.1 == times.span.end_ns) {
                    *last_ns = NEVER;
                }
                let until_ns = present.first().map_or(NEVER, |it| it.0);
                let mut options = Options::of(group, dialect, publishers);
                options.comes_back |= !is_one;
                (0..group.count).map(move |at| Self {
                    options,
                    behaviour: group.behaviour,
                    present: present.clone(),
                    state: State::Away { until_ns },
                    subscriber: None,
                    books: None,
                    at,
                    attempts: None,
                    before: None,
                    watched: false,
                })
            })
            .collect()
    }

    /// Its name in results.
    pub(crate) const fn label(&self) -> &'static str {
        self.behaviour.label()
    }

    /// When it has to go, if it is here at `now_ns`.
    fn leaves_at(&self, now_ns: u64) -> u64 {
        self.present.iter().find(|(from_ns, to_ns)| (*from_ns..*to_ns).contains(&now_ns)).map_or(0, |it| it.1)
    }

    /// When it comes next.
    fn comes_at(&self, now_ns: u64) -> u64 {
        self.present.iter().map(|it| it.0).find(|&from_ns| from_ns > now_ns).unwrap_or(NEVER)
    }

    /// What it does first when it has connected.
    fn first_state(&self, now_ns: u64) -> State {
        match self.behaviour {
            Behaviour::Stalled => State::Resting { until_ns: NEVER },
            Behaviour::Slow { .. } => State::Sipping { last_ns: now_ns, budget: 0 },
            Behaviour::Paused { every_s, .. } | Behaviour::Flaky { every_s, .. } => {
                State::Reading { until_ns: now_ns + nanos(every_s) }
            }
            Behaviour::Healthy => State::Reading { until_ns: NEVER },
        }
    }

    /// What follows when the time of its state is over.
    fn next_state(&self, now_ns: u64) -> State {
        let going = |until_ns| State::Going { deadline_ns: now_ns + nanos(QUIET), until_ns };
        match (self.state, self.behaviour) {
            (State::Reading { until_ns }, Behaviour::Paused { for_s, .. }) if now_ns >= until_ns => {
                State::Resting { until_ns: now_ns + nanos(for_s) }
            }
            (State::Resting { until_ns }, Behaviour::Paused { every_s, .. }) if now_ns >= until_ns => {
                State::Reading { until_ns: now_ns + nanos(every_s) }
            }
            (State::Reading { until_ns }, Behaviour::Flaky { away_s, .. }) if now_ns >= until_ns => {
                let until_ns = now_ns + nanos(away_s);
                match self.options.dialect {
                    // Only Tidewire's goes on.
                    Dialect::Tidewire if now_ns < self.leaves_at(now_ns) => State::Leaving { until_ns },
                    _ => going(until_ns),
                }
            }
            (State::Reading { .. } | State::Resting { .. } | State::Sipping { .. }, _)
                if now_ns >= self.leaves_at(now_ns) =>
            {
                going(self.comes_at(now_ns))
            }
            (state, _) => state,
        }
    }

    /// Whether it wants everything that comes.
    const fn reads_all(&self) -> bool {
        matches!(self.state, State::Reading { .. } | State::Going { .. } | State::CatchingUp { .. })
    }
}

/// What came of them.
#[derive(Debug, Default)]
pub(crate) struct Others {
    /// Books, by behaviour.
    pub accounts: BTreeMap<String, Account>,
    /// Connections that ended although they should not, and why; and those that could not be opened.
    pub ended: Vec<String>,
}

/// Acts all of them, until the publishers have stopped and the books are closed. `recorders` has one for each behaviour.
pub(crate) fn act(
    company: Vec<Other>,
    way: &Way,
    shared: &Shared,
    recorders: BTreeMap<&'static str, Recorder>,
) -> io::Result<Others> {
    let mut stage = Stage {
        company,
        way,
        shared,
        recorders,
        poll: Poll::new()?,
        buffer: vec![0; READ_BUFFER_BYTES],
        others: Others::default(),
        openings: 0,
    };
    stage.run()?;
    Ok(stage.others)
}

struct Stage<'a> {
    company: Vec<Other>,
    way: &'a Way,
    shared: &'a Shared,
    recorders: BTreeMap<&'static str, Recorder>,
    poll: Poll,
    buffer: Vec<u8>,
    others: Others,
    /// In this turn.
    openings: usize,
}

impl Stage<'_> {
    fn run(&mut self) -> io::Result<()> {
        loop {
            self.openings = 0;
            let now_ns = self.shared.clock.now_ns();
            for index in 0..self.company.len() {
                self.step(index, now_ns)?;
            }
            for recorder in self.recorders.values_mut() {
                recorder.rotate(now_ns);
            }
            let done = self.company.iter().all(|other| other.state == State::Done);
            if done || self.shared.abort.load(Ordering::Relaxed) {
                for (_, recorder) in std::mem::take(&mut self.recorders) {
                    recorder.finish(now_ns);
                }
                return Ok(());
            }
            let sipping = self.company.iter().any(|other| matches!(other.state, State::Sipping { .. }));
            let pause = match self.openings {
                // More may want to come.
                OPENINGS_PER_TURN => Duration::ZERO,
                _ if sipping => SIP,
                _ => TURN,
            };
            for at in 0..self.poll.wait(pause)? {
                let index = self.poll.token(at);
                self.read(index, usize::MAX)?;
            }
        }
    }

    /// Brings one up to date.
    fn step(&mut self, index: usize, now_ns: u64) -> io::Result<()> {
        let heads = self.shared.heads.get();
        let other = &mut self.company[index];
        let Some(subscriber) = &other.subscriber else {
            if let State::Away { until_ns } = other.state {
                // Whose books are open comes back once more, to close them.
                let closes = other.books.is_some() && heads.is_some() && other.attempts.is_none();
                if other.books.is_none() && (heads.is_some() || until_ns == NEVER) {
                    other.state = State::Done;
                } else if (closes || now_ns >= until_ns) && self.openings < OPENINGS_PER_TURN {
                    self.openings += 1;
                    return self.connect(index);
                }
            }
            return Ok(());
        };
        match (other.state, heads) {
            (State::Going { deadline_ns, until_ns }, _) => {
                if subscriber.books().is_even() || now_ns >= deadline_ns {
                    let account = subscriber.books().close_here();
                    return self.let_go(index, account, State::Away { until_ns });
                }
            }
            (State::CatchingUp { deadline_ns }, Some(heads)) => {
                if subscriber.books().is_settled(heads) || now_ns >= deadline_ns {
                    let account = subscriber.books().close(heads);
                    return self.let_go(index, account, State::Done);
                }
            }
            (_, Some(_)) => other.state = State::CatchingUp { deadline_ns: now_ns + nanos(QUIET) },
            (_, None) => other.state = other.next_state(now_ns),
        }
        if let State::Leaving { until_ns } = other.state {
            return self.leave(index, until_ns);
        }
        if let (State::Sipping { last_ns, budget }, Behaviour::Slow { read_bytes_per_s }) =
            (other.state, other.behaviour)
        {
            let earned =
                u128::from(now_ns.saturating_sub(last_ns)) * u128::from(read_bytes_per_s) / 1_000_000_000;
            // What it did not use up within a second is gone, as on a link.
            let budget = (budget + u64::try_from(earned).unwrap_or(u64::MAX)).min(read_bytes_per_s);
            if earned > 0 {
                other.state = State::Sipping { last_ns: now_ns, budget };
                return self.read(index, usize::try_from(budget).unwrap_or(usize::MAX));
            }
        }
        self.watch(index)
    }

    /// Keeps the poll's list right.
    fn watch(&mut self, index: usize) -> io::Result<()> {
        let other = &mut self.company[index];
        if let Some(subscriber) = &other.subscriber
            && other.watched != other.reads_all()
        {
            if other.watched {
                self.poll.remove(subscriber.stream())?;
            } else {
                self.poll.add(subscriber.stream(), index)?;
            }
            other.watched = !other.watched;
        }
        Ok(())
    }

    fn connect(&mut self, index: usize) -> io::Result<()> {
        let other = &mut self.company[index];
        let Way { servers, channel } = self.way;
        let server = &servers[other.at % servers.len()];
        let opened = match &mut other.books {
            Some(books) => Subscriber::open_again(server, channel, &other.options, books, &mut self.buffer),
            None => Subscriber::open(server, channel, &other.options, &mut self.buffer),
        };
        let now_ns = self.shared.clock.now_ns();
        match opened {
            Ok(mut subscriber) => {
                subscriber.set_nonblocking()?;
                other.before = other.attempts.take().map(|attempts| (attempts, Instant::now()));
                (other.subscriber, other.books) = (Some(subscriber), None);
                other.state = other.first_state(now_ns);
                self.watch(index)
            }
            Err(why) => {
                let now = Instant::now();
                let attempts = other.attempts.get_or_insert_with(|| Attempts::new(now));
                if other.options.comes_back
                    && is_worth_it(&why)
                    && let Some(delay) = attempts.delay(now, fastrand::f64())
                {
                    other.at += 1;
                    other.state = State::Away { until_ns: now_ns + nanos(delay) };
                    return Ok(());
                }
                other.state = State::Done;
                if let Some(books) = other.books.take() {
                    *self.others.accounts.entry(other.label().to_owned()).or_default() += books.close_here();
                }
                self.others.ended.push(format!("the {} subscriber: {why}", other.label()));
                Ok(())
            }
        }
    }

    /// Ends the connection without a word, and keeps the books for the next one.
    fn leave(&mut self, index: usize, until_ns: u64) -> io::Result<()> {
        let other = &mut self.company[index];
        if let Some(subscriber) = other.subscriber.take() {
            if std::mem::take(&mut other.watched) {
                self.poll.remove(subscriber.stream())?;
            }
            other.books = Some(subscriber.into_books());
        }
        other.state = State::Away { until_ns };
        Ok(())
    }

    /// Closes its books and its socket, without a close frame.
    fn let_go(&mut self, index: usize, account: Account, state: State) -> io::Result<()> {
        let other = &mut self.company[index];
        *self.others.accounts.entry(other.label().to_owned()).or_default() += account;
        if let Some(subscriber) = other.subscriber.take()
            && std::mem::take(&mut other.watched)
        {
            self.poll.remove(subscriber.stream())?;
        }
        other.state = state;
        Ok(())
    }

    /// Reads once, at most so many bytes.
    fn read(&mut self, index: usize, bytes_max: usize) -> io::Result<()> {
        let other = &mut self.company[index];
        let (Some(subscriber), Some(recorder)) =
            (&mut other.subscriber, self.recorders.get_mut(other.behaviour.label()))
        else {
            return Ok(());
        };
        match subscriber.read_at_most(bytes_max, &mut self.buffer, self.shared.clock, recorder) {
            Ok(bytes) => {
                match &mut other.state {
                    State::Sipping { budget, .. } => *budget = budget.saturating_sub(bytes as u64),
                    // As long as something comes there is hope.
                    State::CatchingUp { deadline_ns } if bytes > 0 => {
                        *deadline_ns = self.shared.clock.now_ns() + nanos(QUIET);
                    }
                    _ => {}
                }
                Ok(())
            }
            Err(why) => {
                if other.options.comes_back && is_worth_it(&why) {
                    let now = Instant::now();
                    let mut attempts = Attempts::again(other.before.take(), now);
                    if let Some(delay) = attempts.delay(now, fastrand::f64()) {
                        other.at += 1;
                        other.attempts = Some(attempts);
                        return self.leave(index, self.shared.clock.now_ns() + nanos(delay));
                    }
                }
                let account = subscriber.books().close_here();
                // Under this policy being cut off is what was asked for, and the close code says it.
                if other.options.policy != Some(Policy::Disconnect) {
                    self.others.ended.push(format!("the {} subscriber: {why}", other.label()));
                }
                self.let_go(index, account, State::Done)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::{Group, named};

    fn target() -> Target {
        Target::new(Endpoint::parse("ws://127.0.0.1:1/ws").unwrap())
    }

    fn company(name: &str) -> (Scenario, Times, Vec<Other>) {
        let scenario = named(name).unwrap();
        let times = Times::new(&scenario, 1_000);
        let company = Other::all(&scenario, &times, &target(), 1);
        (scenario, times, company)
    }

    #[test]
    fn they_come_for_their_phases() {
        let (_, times, company) = company("slow_reader");
        let [stalled] = company.as_slice() else { panic!("one") };
        assert_eq!(stalled.present, [(times.phase(1).0, NEVER)]);
        assert_eq!(stalled.state, State::Away { until_ns: times.phase(1).0 });

        let mut scenario = named("overload").unwrap();
        let stalled = |phases: &[&str]| Group {
            behaviour: Behaviour::Stalled,
            phases: phases.iter().map(|&it| it.to_owned()).collect(),
            ..Group::healthy(2)
        };
        scenario.groups.extend([stalled(&["half", "twice"]), stalled(&["half", "half_again"]), stalled(&[])]);
        let times = Times::new(&scenario, 5);
        let [half, twice, again] = [0, 1, 2].map(|index| times.phase(index));
        let company = Other::all(&scenario, &times, &target(), 1);
        let present: Vec<_> = company.iter().step_by(2).map(|it| it.present.clone()).collect();
        assert_eq!(present, [vec![(0, twice.1)], vec![(0, half.1), (again.0, NEVER)], vec![(0, NEVER)]]);
        assert_eq!((company[2].leaves_at(half.0), company[2].comes_at(half.0)), (half.1, again.0));
        assert_eq!((company[0].leaves_at(again.0), company[0].comes_at(again.0)), (0, NEVER));
    }

    #[test]
    fn behaviours_by_the_clock() {
        let (_, _, company) = company("rough");
        let second = 1_000_000_000;
        for mut other in company {
            let joined = 5_000;
            other.state = other.first_state(joined);
            assert_eq!(other.state, State::Reading { until_ns: joined + 2 * second });
            assert_eq!(other.next_state(joined + second), other.state);
            let later = joined + 2 * second;
            other.state = other.next_state(later);
            match other.behaviour {
                Behaviour::Paused { .. } => {
                    assert_eq!(other.state, State::Resting { until_ns: later + 3 * second });
                    assert!(!other.reads_all());
                    let back = other.next_state(later + 3 * second);
                    assert_eq!(back, State::Reading { until_ns: later + 5 * second });
                }
                Behaviour::Flaky { .. } => {
                    assert_eq!(other.state, State::Leaving { until_ns: later + second });
                    // Another server's client cannot come back for what it missed.
                    other.options.dialect = Dialect::Nats;
                    other.state = State::Reading { until_ns: later };
                    let going = other.next_state(later);
                    assert!(matches!(going, State::Going { until_ns, .. } if until_ns == later + second));
                }
                _ => panic!("{other:?}"),
            }
        }
    }
}
