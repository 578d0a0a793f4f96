//! What the hub and a connection's two loops share on their worker's thread: the outbox, its wake-up, and the wish to end.
//! Never leaves the thread, so it needs no lock.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;
use std::task::{Context, Waker};

use bytes::Bytes;

use super::memory::HeldFrame;
use super::ready::{Place, ReadyList};
use super::{Outbox, Slot};
use crate::clock::Now;
use crate::close::CloseReason;
use crate::config::OutboxLimits;
use crate::wire::control::{ErrorCode, Event};
use crate::wire::seal;

/// See the module's page.
pub struct OutboxHandle {
    outbox: RefCell<Outbox>,
    ending: Cell<Option<CloseReason>>,
    cut: Cell<bool>,
    peer_close: Cell<Option<u16>>,
    /// The worker's list, and the place that it knows the connection by; none before it is complete.
    ready: Rc<ReadyList>,
    place: Cell<Option<Place>>,
    writing: Cell<Writing>,
    /// The connection's own outbound loop, when it waits.
    task: Cell<Option<Waker>>,
    /// The inbound loop, when it waits for an answer of another worker.
    reader: Cell<Option<Waker>>,
    /// Requests that another worker has not answered yet; the inbound loop reads no further meanwhile.
    unanswered: Cell<u32>,
    errors: RefCell<Vec<ErrorCode>>,
}

/// Who writes what the outbox holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writing {
    /// Nobody: it is empty.
    Idle,
    /// The worker's writer, in its turn: the connection is in the list.
    Listed,
    /// The connection's own loop: the socket takes no more for now, or the connection is ending.
    Own,
}

impl OutboxHandle {
    /// A handle with an empty outbox, of a worker whose list is `ready`.
    #[must_use]
    pub fn new(limits: OutboxLimits, ready: Rc<ReadyList>) -> Self {
        Self {
            outbox: RefCell::new(Outbox::new(limits)),
            ending: Cell::new(None),
            cut: Cell::new(false),
            peer_close: Cell::new(None),
            ready,
            place: Cell::new(None),
            writing: Cell::new(Writing::Idle),
            task: Cell::new(None),
            reader: Cell::new(None),
            unanswered: Cell::new(0),
            errors: RefCell::new(Vec::new()),
        }
    }

    /// The outbox. Not to be held over anything that may reach the hub.
    #[must_use]
    pub const fn outbox(&self) -> &RefCell<Outbox> {
        &self.outbox
    }

    /// Queues a frame; a refusal by policy ends the connection.
    pub fn push_data(&self, slot: Slot, frame: &Rc<HeldFrame>, now: Now) {
        if self.outbox.borrow_mut().push_data(slot, frame, now).is_err() {
            self.end(CloseReason::SlowConsumer);
        }
        self.wake_writer();
    }

    /// Puts a mark behind the frames of a subscription.
    pub fn push_mark(&self, slot: Slot, mark: Rc<HeldFrame>) {
        self.outbox.borrow_mut().push_mark(slot, mark);
        self.wake_writer();
    }

    /// Drops the frames that came up to a generation; see [`Outbox::shed`]. A refusal by policy ends the connection. The ticker
    /// sees to it that the gaps are told.
    pub fn shed(&self, upto: u64, now: Now) {
        if self.outbox.borrow_mut().shed(upto, now).is_err() {
            self.end(CloseReason::SlowConsumer);
        }
    }

    /// Queues a message for the control lane; a full lane ends the connection.
    pub fn push_message(&self, message: Bytes) {
        if self.outbox.borrow_mut().push_control(message).is_err() {
            self.end(CloseReason::SlowConsumer);
        }
        self.wake_writer();
    }

    /// Queues a control message.
    pub fn push_event(&self, event: &Event<'_>) {
        if let Event::Error { code, .. } = event {
            self.errors.borrow_mut().push(*code);
        }
        self.push_message(seal::event(event));
    }

    /// The codes of the errors that were queued since the last call, for the metrics.
    #[must_use]
    pub fn take_errors(&self) -> Vec<ErrorCode> {
        std::mem::take(&mut *self.errors.borrow_mut())
    }

    /// Asks the connection to end; the first reason counts.
    pub fn end(&self, reason: CloseReason) {
        if self.ending.get().is_none() {
            self.ending.set(Some(reason));
        }
        self.write_alone();
    }

    /// Why the connection was asked to end.
    #[must_use]
    pub const fn ending(&self) -> Option<CloseReason> {
        self.ending.get()
    }

    /// Ends the connection at once, whatever waits.
    pub fn cut(&self) {
        self.cut.set(true);
        self.end(CloseReason::Drain);
    }

    /// Whether the connection is to end at once.
    #[must_use]
    pub const fn is_cut(&self) -> bool {
        self.cut.get()
    }

    /// The peer has sent its close frame, with this code.
    pub fn set_peer_close(&self, code: Option<u16>) {
        self.peer_close.set(code);
    }

    /// The code of the peer's close frame.
    #[must_use]
    pub const fn peer_close(&self) -> Option<u16> {
        self.peer_close.get()
    }

    /// The connection is complete: from here on its worker knows it by this place.
    pub fn set_place(&self, place: Place) {
        self.place.set(Some(place));
        if self.outbox.borrow().is_waiting() {
            self.wake_writer();
        }
    }

    /// The connection has left its worker's lists; whoever ends it writes what is left.
    pub fn clear_place(&self) {
        self.place.set(None);
    }

    /// Sees to it that what the outbox holds is written.
    pub fn wake_writer(&self) {
        match (self.writing.get(), self.place.get()) {
            (Writing::Idle, Some(place)) => {
                self.writing.set(Writing::Listed);
                self.ready.push(place);
            }
            // A socket that is full wakes the loop by itself.
            (Writing::Own, _) if self.ending.get().is_some() => self.wake_task(),
            (Writing::Idle | Writing::Listed | Writing::Own, _) => {}
        }
    }

    /// Who writes at present.
    #[must_use]
    pub const fn writing(&self) -> Writing {
        self.writing.get()
    }

    /// Everything was written.
    pub fn set_idle(&self) {
        self.writing.set(Writing::Idle);
    }

    /// There is more to write, after the others had their turn.
    pub fn list_again(&self) {
        self.writing.set(Writing::Idle);
        self.wake_writer();
    }

    /// Leaves the writing to the connection's own loop.
    pub fn write_alone(&self) {
        self.writing.set(Writing::Own);
        self.wake_task();
    }

    fn wake_task(&self) {
        if let Some(waker) = self.task.take() {
            waker.wake();
        }
    }

    /// Has the connection's own loop woken when the writing is left to it, or it has to end.
    pub fn register_task(&self, cx: &Context<'_>) {
        register(&self.task, cx);
    }

    /// A request is under way that another worker may have to answer.
    pub fn begin_request(&self) {
        self.unanswered.set(self.unanswered.get() + 1);
    }

    /// A request was answered.
    pub fn finish_request(&self) {
        self.unanswered.set(self.unanswered.get().saturating_sub(1));
        if self.unanswered.get() > 0 {
            return;
        }
        if let Some(waker) = self.reader.take() {
            waker.wake();
        }
    }

    /// A `subscribe` is under way: data waits for its answer, which names the channels.
    pub fn begin_subscribe(&self) {
        self.outbox.borrow_mut().hold_data();
        self.begin_request();
    }

    /// A `subscribe` was answered.
    pub fn finish_subscribe(&self) {
        self.outbox.borrow_mut().release_data();
        self.finish_request();
        self.wake_writer();
    }

    /// Whether a request is under way.
    #[must_use]
    pub const fn has_unanswered(&self) -> bool {
        self.unanswered.get() > 0
    }

    /// Whether a request is under way; if so, the inbound loop is woken when none is left.
    #[must_use]
    pub fn awaits_answer(&self, cx: &Context<'_>) -> bool {
        let waits = self.unanswered.get() > 0;
        if waits {
            register(&self.reader, cx);
        }
        waits
    }
}

impl fmt::Debug for OutboxHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (outbox, ending) = (&self.outbox, &self.ending);
        f.debug_struct("OutboxHandle").field("outbox", outbox).field("ending", ending).finish_non_exhaustive()
    }
}

/// Keeps the waker that is there if it wakes the same task: the common case costs no clone.
fn register(cell: &Cell<Option<Waker>>, cx: &Context<'_>) {
    let waker = match cell.take() {
        Some(waker) if waker.will_wake(cx.waker()) => waker,
        _ => cx.waker().clone(),
    };
    cell.set(Some(waker));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A handle, and the places that its list holds when asked.
    fn handle() -> (OutboxHandle, impl Fn() -> Vec<Place>) {
        let list = Rc::new(ReadyList::default());
        let handle = OutboxHandle::new(OutboxLimits::default(), Rc::clone(&list));
        (handle, move || std::iter::from_fn(|| list.pop()).collect())
    }

    #[test]
    fn a_connection_asks_once_for_its_turn() {
        let (handle, listed) = handle();
        handle.push_message(Bytes::from_static(b"welcome"));
        assert!(listed().is_empty(), "it is not complete");
        handle.set_place(7);
        handle.push_message(Bytes::from_static(b"more"));
        assert_eq!((listed(), handle.writing()), (vec![7], Writing::Listed));
        handle.push_message(Bytes::from_static(b"before its turn"));
        assert!(listed().is_empty());
        handle.list_again();
        assert_eq!(listed(), vec![7], "there is more to write");
        handle.set_idle();
        handle.push_message(Bytes::from_static(b"after its turn"));
        assert_eq!(listed(), vec![7]);
    }

    #[test]
    fn a_full_socket_and_an_end_are_the_connections_own() {
        let (handle, listed) = handle();
        handle.set_place(7);
        let wakes = std::sync::Arc::new(Wakes::default());
        let waker = Waker::from(std::sync::Arc::clone(&wakes));
        let woken = || wakes.0.load(Ordering::Relaxed);
        handle.register_task(&Context::from_waker(&waker));
        handle.write_alone();
        assert_eq!((handle.writing(), woken()), (Writing::Own, 1), "it has to wait for its socket by itself");
        handle.register_task(&Context::from_waker(&waker));
        handle.push_message(Bytes::from_static(b"a"));
        assert_eq!((listed(), woken()), (vec![], 1), "the socket wakes it");
        handle.end(CloseReason::Drain);
        handle.end(CloseReason::Abuse);
        assert_eq!((handle.ending(), woken()), (Some(CloseReason::Drain), 2));
        handle.set_idle();
        handle.clear_place();
        handle.push_message(Bytes::from_static(b"last words"));
        assert!(listed().is_empty(), "its place may be another's");
    }

    #[test]
    fn an_end_while_listed_takes_the_turn_away() {
        let (handle, listed) = handle();
        handle.set_place(7);
        handle.push_message(Bytes::from_static(b"a"));
        handle.end(CloseReason::PeerClosed);
        assert_eq!((listed(), handle.writing()), (vec![7], Writing::Own), "whoever pops it passes it over");
    }
}
