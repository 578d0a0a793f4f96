//! What is kept and what is live, against a broker that is a vector. The seed says what overtakes what.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;
use tokio::task::yield_now;

use super::*;
use crate::broker::{BrokerSettings, Event, Events, Keep, Topic, Url};

fn port(settings: impl FnOnce(&mut BrokerSettings)) -> (Port, Arc<Want>, Events) {
    let mut all = BrokerSettings::new("redis-streams://127.0.0.1");
    settings(&mut all);
    let url = Url::parse(all.url.expose()).expect("a URL");
    let port = Port::new(all, url);
    let topic = Topic::new("a").expect("a topic");
    assert!(port.interest.add(topic, Keep::Yes));
    let want = port.interest.all().remove(0);
    let events = Events { lane: Arc::clone(&port.lane) };
    (port, want, events)
}

fn payload(number: u64) -> Bytes {
    Bytes::copy_from_slice(&number.to_be_bytes())
}

fn number(payload: &[u8]) -> u64 {
    u64::from_be_bytes(payload.try_into().expect("one of ours"))
}

/// A broker with one topic: its messages are 1, 2, 3, .., each at the position of its number.
#[derive(Default)]
struct Model {
    /// The newest message, and the oldest that is still kept.
    newest: Cell<u64>,
    oldest: Cell<u64>,
    /// Published, and not delivered live yet.
    wire: RefCell<VecDeque<u64>>,
    /// What was read.
    read: RefCell<Vec<u64>>,
    /// What has to be read next.
    next: Cell<u64>,
}

impl Model {
    fn fetch(&self, from: From) -> Fetched {
        let newest = self.newest.get();
        let oldest = self.oldest.get().max(1);
        let all = |first: u64, last: u64| {
            (first..=last).map(|number| (Position(0, number), payload(number))).collect()
        };
        let count = Some(newest);
        match from {
            From::Newest => {
                let messages = all(oldest.max(newest.saturating_sub(5)), newest);
                Fetched { messages, upto: Position(0, newest), end: true, count, ..Fetched::default() }
            }
            From::After { position: Position(_, known), .. } => {
                let first = oldest.max(known + 1);
                let missing = first - known - 1;
                let gap = (missing > 0).then_some(Gap { messages: Some(missing), why: "trimmed" });
                let last = newest.min(first + 3);
                let upto = Position(0, last.max(known));
                Fetched { gap, messages: all(first, last), upto, end: last >= newest, count, anew: false }
            }
        }
    }

    fn take(&self, number: u64) {
        assert_eq!(number, self.next.get(), "after {:?}", self.read.borrow());
        self.next.set(number + 1);
        self.read.borrow_mut().push(number);
    }

    fn read(&self, events: &mut Events) {
        match events.try_recv() {
            Some(Event::Subscribed { backlog, .. }) => {
                assert!(self.read.borrow().is_empty(), "it is told once");
                self.next.set(number(&backlog[0]));
                backlog.iter().for_each(|payload| self.take(number(payload)));
            }
            Some(Event::Message { payload, .. }) => self.take(number(&payload)),
            Some(Event::Lost(lost)) => {
                self.next.set(self.next.get() + lost.messages.expect("this broker counts"));
            }
            _ => {}
        }
    }
}

proptest! {
    #[test]
    fn backlog_and_live_are_one_sequence_whatever_overtakes_what(
        seed in any::<u64>(), steps in 10_usize..400, room in 1_usize..40, keeps in 3_u64..60,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let random = RefCell::new(fastrand::Rng::with_seed(seed));
            let dice = |sides: usize| random.borrow_mut().usize(..sides);
            let (port, want, mut events) = port(|settings| settings.incoming_messages_max = room);
            let model = Model::default();
            // One for each connection; those that were before the last are gone.
            let connections = RefCell::new(vec![Rc::new(Stitcher::default())]);
            let begun = Cell::new(0);
            let newest_connection = || Rc::clone(connections.borrow().last().expect("one at the least"));
            let fetch = async |_: &Want, from| {
                for _ in 0..dice(6) {
                    yield_now().await;
                }
                let fetched = model.fetch(from);
                for _ in 0..dice(6) {
                    yield_now().await;
                }
                Ok(fetched)
            };
            let live = |number: u64| {
                let (previous, position) = (Position(0, number - 1), Position(0, number));
                let previous = number.is_multiple_of(2).then_some(previous);
                newest_connection().live(&port, &want, previous, position, payload(number));
            };
            let script = async {
                model.newest.set(7);
                newest_connection().enlist(&want);
                for _ in 0..steps {
                    match dice(8) {
                        0..=2 => {
                            model.newest.set(model.newest.get() + 1);
                            model.wire.borrow_mut().push_back(model.newest.get());
                            model.oldest.set((model.newest.get() + 1).saturating_sub(keeps));
                        }
                        3 | 4 => {
                            let next = model.wire.borrow_mut().pop_front();
                            next.into_iter().for_each(&live);
                        }
                        5 => model.read(&mut events),
                        // The connection is lost, with what was on its way.
                        6 if dice(20) == 0 => {
                            model.wire.borrow_mut().clear();
                            connections.borrow_mut().push(Rc::default());
                            while begun.get() < connections.borrow().len() {
                                yield_now().await;
                            }
                            newest_connection().enlist(&want);
                        }
                        // A message is lost on its way, and it is known that one was.
                        7 if dice(20) == 0 => {
                            if model.wire.borrow_mut().pop_front().is_some() {
                                newest_connection().again(&want);
                            }
                        }
                        _ => yield_now().await,
                    }
                }
                // All that is on its way arrives, and one more.
                let wire = std::mem::take(&mut *model.wire.borrow_mut());
                wire.into_iter().for_each(&live);
                let last = model.newest.get() + 1;
                model.newest.set(last);
                live(last);
                while model.read.borrow().last() != Some(&last) {
                    model.read(&mut events);
                    yield_now().await;
                }
            };
            let run = async {
                loop {
                    let stitcher = newest_connection();
                    begun.set(connections.borrow().len());
                    tokio::select! {
                        why = stitcher.run(&port, &fetch) => panic!("{why}"),
                        () = async {
                            while begun.get() == connections.borrow().len() {
                                yield_now().await;
                            }
                        } => {}
                    }
                }
            };
            tokio::select! {
                () = script => {}
                () = run => {}
            }
        });
    }
}

#[tokio::test]
async fn live_messages_that_do_not_fit_are_fetched_again() {
    let (port, want, mut events) = port(|_| {});
    let stitcher = Stitcher::default();
    let newest = Cell::new(0_u64);
    let large = |_: u64| Bytes::from(vec![0; HELD_BYTES_MAX / 2]);
    let fetches = Cell::new(0);
    let fetch = async |_: &Want, from| {
        fetches.set(fetches.get() + 1);
        let snapshot = newest.get();
        if fetches.get() == 1 {
            // So much comes while it is under way that the first of it is let go.
            for number in 1..=5 {
                newest.set(number);
                stitcher.live(&port, &want, None, Position(0, number), large(number));
            }
        }
        let first = if let From::After { position, .. } = from { position.1 + 1 } else { 1 };
        let messages = (first..=snapshot).map(|number| (Position(0, number), large(number))).collect();
        Ok(Fetched { messages, upto: Position(0, snapshot), end: true, ..Fetched::default() })
    };
    stitcher.enlist(&want);
    let mut messages = 0;
    let reading = async {
        while messages < 5 {
            match events.recv().await {
                Some(Event::Subscribed { backlog, .. }) => assert!(backlog.is_empty()),
                Some(Event::Message { .. }) => messages += 1,
                other => panic!("{other:?}"),
            }
        }
    };
    tokio::select! {
        () = reading => {}
        why = stitcher.run(&port, fetch) => panic!("{why}"),
    }
    assert_eq!((fetches.get(), events.try_recv()), (2, None));
}

#[tokio::test]
async fn one_that_is_refused_leaves_the_others_alone() {
    let (port, want, mut events) = port(|_| {});
    let stitcher = Stitcher::default();
    stitcher.enlist(&want);
    let fetch = async |_: &Want, _| Err(Failure::Refused("no".to_owned()));
    tokio::select! {
        event = events.recv() => {
            assert_eq!(event, Some(Event::Refused { topic: want.topic.clone(), why: "no".to_owned() }));
        }
        why = stitcher.run(&port, fetch) => panic!("{why}"),
    }
    stitcher.enlist(&want);
    let fetch = async |_: &Want, _| Err(Failure::Broken("gone".to_owned()));
    assert_eq!(stitcher.run(&port, fetch).await, "gone");
}
