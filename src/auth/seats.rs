//! How many connections may be there, by who they are: places that are given back when they are dropped. Taken by handshakes and
//! `auth` messages, never by a sample.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// A place among the connections that still have to say who they are.
#[derive(Debug)]
pub struct Waiting(Arc<AtomicUsize>);

impl Waiting {
    /// A place, unless `most` are taken.
    #[must_use]
    pub fn begin(taken: &Arc<AtomicUsize>, most: usize) -> Option<Self> {
        let more = |now: usize| (now < most).then_some(now + 1);
        taken.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).ok()?;
        Some(Self(Arc::clone(taken)))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The connections of each subject. Never larger than the number of connections.
#[derive(Clone, Debug, Default)]
pub struct Seats(Arc<Mutex<HashMap<Box<str>, usize>>>);

/// A place among the connections of a subject.
#[derive(Debug)]
pub struct Seat {
    seats: Seats,
    subject: Box<str>,
}

impl Seats {
    /// A place for a connection of this subject, unless it has `most`; 0 is no limit.
    #[must_use]
    pub fn take(&self, subject: &str, most: usize) -> Option<Seat> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(subject.into()).or_default();
        if most > 0 && *count >= most {
            return None;
        }
        *count += 1;
        drop(counts);
        Some(Seat { seats: self.clone(), subject: subject.into() })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut counts = self.seats.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.subject) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.subject);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_has_so_many_and_others_theirs() {
        let seats = Seats::default();
        let mut taken: Vec<Seat> = (0..2).map(|_| seats.take("a", 2).unwrap()).collect();
        assert!(seats.take("a", 2).is_none());
        taken.push(seats.take("b", 2).unwrap());
        drop(taken.remove(0));
        taken.push(seats.take("a", 2).unwrap());
        taken.extend((0..10).map(|_| seats.take("c", 0).unwrap()));
        taken.clear();
        assert!(seats.0.lock().unwrap().is_empty(), "nobody is remembered who is not here");
    }

    #[test]
    fn strangers_have_so_many() {
        let taken = Arc::default();
        let first = Waiting::begin(&taken, 1).unwrap();
        assert!(Waiting::begin(&taken, 1).is_none());
        drop(first);
        assert!(Waiting::begin(&taken, 1).is_some());
    }
}
