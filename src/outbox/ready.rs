//! Which connections of a worker have something to write, in the order in which it came: filled by whoever puts something
//! into an outbox, emptied by the worker's one writer. Knows numbers only, never an outbox or a socket.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::task::{Context, Poll, Waker};

/// A connection's place in its worker's list of connections.
pub type Place = u32;

/// See the module's page. A connection puts itself in once until it had its turn, so connections bound it, with those that
/// have ended since: a place of theirs is passed over, or is an early turn for the next who has it.
#[derive(Default)]
pub struct ReadyList {
    places: RefCell<VecDeque<Place>>,
    /// The worker's writer, when it waits.
    writer: Cell<Option<Waker>>,
}

impl ReadyList {
    /// Adds a connection, and wakes the writer.
    pub fn push(&self, place: Place) {
        self.places.borrow_mut().push_back(place);
        if let Some(writer) = self.writer.take() {
            writer.wake();
        }
    }

    /// Takes the connection that has waited longest.
    #[must_use]
    pub fn pop(&self) -> Option<Place> {
        self.places.borrow_mut().pop_front()
    }

    /// Whether nobody has anything to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.places.borrow().is_empty()
    }

    /// Ready as soon as somebody has.
    pub fn poll_ready(&self, cx: &Context<'_>) -> Poll<()> {
        if !self.is_empty() {
            return Poll::Ready(());
        }
        self.writer.set(Some(cx.waker().clone()));
        Poll::Pending
    }
}

impl fmt::Debug for ReadyList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadyList").field("places", &self.places).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn the_writer_is_woken_once_and_gets_places_in_order() {
        let (list, wakes) = (ReadyList::default(), Arc::new(Wakes::default()));
        let waker = Waker::from(Arc::clone(&wakes));
        let cx = Context::from_waker(&waker);
        assert!(list.poll_ready(&cx).is_pending());
        [3, 1, 2].into_iter().for_each(|place| list.push(place));
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
        assert!(list.poll_ready(&cx).is_ready());
        assert_eq!(std::iter::from_fn(|| list.pop()).collect::<Vec<_>>(), [3, 1, 2]);
        assert!(list.is_empty() && list.poll_ready(&cx).is_pending());
    }
}
