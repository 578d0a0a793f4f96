//! What the frames in the outboxes of a worker take, each counted once however many outboxes hold it, by the order in which
//! they came; and up to which one they have to go where that is too much. Knows no outbox. Never counts for a delivery: a frame
//! is counted when it comes and when the last outbox lets it go.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ops::Deref;
use std::rc::Rc;

use crate::wire::Frame;

/// Parts of the ceiling that are told apart by age. More would free less that could stay; a worker looks at each when it is over
/// the ceiling.
const PARTS: usize = 64;

/// What a frame takes beside its bytes: itself, and the two counts of its `Rc`.
const OVERHEAD_BYTES: usize = size_of::<HeldFrame>() + 2 * size_of::<usize>();

/// A frame that outboxes hold: counted until the last of them lets it go.
#[derive(Debug)]
pub struct HeldFrame {
    frame: Frame,
    generation: Rc<Generation>,
}

/// Frames that came one after the other, and go together.
#[derive(Debug)]
struct Generation {
    number: u64,
    /// Of those that are still held.
    bytes: Cell<usize>,
    /// Of all generations.
    total: Rc<Cell<usize>>,
}

/// See the module's page.
#[derive(Debug)]
pub struct FrameMemory {
    bytes_max: usize,
    total: Rc<Cell<usize>>,
    /// The oldest first. The last one is open, those without bytes may be missing.
    generations: RefCell<VecDeque<Rc<Generation>>>,
    /// Bytes that the open one has ever taken.
    opened_bytes: Cell<usize>,
}

impl FrameMemory {
    /// Nothing is held; `bytes_max` may be.
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        let total = Rc::new(Cell::new(0));
        let first = Generation { number: 0, bytes: Cell::new(0), total: Rc::clone(&total) };
        let generations = RefCell::new(VecDeque::from([Rc::new(first)]));
        Self { bytes_max, total, generations, opened_bytes: Cell::new(0) }
    }

    /// Counts a frame.
    pub fn hold(&self, frame: Frame) -> Rc<HeldFrame> {
        let bytes = bytes_of(&frame);
        if self.opened_bytes.get() + bytes > self.bytes_max / PARTS {
            self.begin_generation();
        }
        self.opened_bytes.set(self.opened_bytes.get() + bytes);
        let generations = self.generations.borrow();
        let generation = Rc::clone(&generations[generations.len() - 1]);
        generation.bytes.set(generation.bytes.get() + bytes);
        self.total.set(self.total.get() + bytes);
        Rc::new(HeldFrame { frame, generation })
    }

    /// Tells what comes from what was there. To be called about ten times a second: what was held for long is not of one age
    /// with what has just come, where little comes.
    pub fn begin_generation(&self) {
        if self.opened_bytes.replace(0) == 0 {
            return;
        }
        let mut generations = self.generations.borrow_mut();
        let number = generations.back().map_or(0, |open| open.number + 1);
        generations.retain(|generation| generation.bytes.get() > 0);
        let total = Rc::clone(&self.total);
        generations.push_back(Rc::new(Generation { number, bytes: Cell::new(0), total }));
    }

    /// Bytes of all frames that are held, with what each takes beside its own.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.total.get()
    }

    /// What may be held.
    #[must_use]
    pub const fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    /// The generation up to which frames have to go to free that many bytes, if those up to `gone` cannot; the last one before
    /// the open one if all of them are less. `None` if nothing is left that could go.
    #[must_use]
    pub fn cutoff(&self, bytes: usize, gone: Option<u64>) -> Option<u64> {
        let generations = self.generations.borrow();
        let closed = generations.iter().take(generations.len() - 1);
        let mut freed = 0;
        let mut cutoff = None;
        for generation in closed.filter(|it| gone.is_none_or(|gone| it.number > gone)) {
            if freed >= bytes {
                break;
            }
            freed += generation.bytes.get();
            cutoff = Some(generation.number);
        }
        cutoff
    }
}

impl HeldFrame {
    /// Which one it came with: rises with time.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation.number
    }
}

impl Deref for HeldFrame {
    type Target = Frame;

    fn deref(&self) -> &Frame {
        &self.frame
    }
}

impl Drop for HeldFrame {
    fn drop(&mut self) {
        let bytes = bytes_of(&self.frame);
        for count in [&self.generation.bytes, &*self.generation.total] {
            count.set(count.get() - bytes);
        }
    }
}

const fn bytes_of(frame: &Frame) -> usize {
    frame.bytes.len() + OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{ChannelId, TIMED_SAMPLES};
    use bytes::Bytes;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::time::Instant;

    fn frame(bytes: usize) -> Frame {
        let now = Instant::now();
        let (flushed_at, received_at) = (now, [now; TIMED_SAMPLES]);
        let bytes = Bytes::from(vec![0; bytes]);
        Frame {
            bytes,
            channel: ChannelId(1),
            first: 1,
            last: 1,
            count: 1,
            head_bytes: 0,
            replayed: false,
            flushed_at,
            received_at,
        }
    }

    #[test]
    fn a_frame_counts_once_until_the_last_has_let_it_go() {
        let memory = FrameMemory::new(1 << 20);
        let held = memory.hold(frame(1_000));
        let bytes = memory.bytes();
        assert_eq!(bytes, 1_000 + OVERHEAD_BYTES);
        let more: Vec<_> = (0..1_000).map(|_| Rc::clone(&held)).collect();
        drop(held);
        assert_eq!(memory.bytes(), bytes);
        drop(more);
        assert_eq!(memory.bytes(), 0);
    }

    #[test]
    fn the_open_generation_stays_and_what_is_gone_is_passed_over() {
        let memory = FrameMemory::new(usize::MAX);
        let mut held = Vec::new();
        for _ in 0..3 {
            held.push(memory.hold(frame(1_000)));
            memory.begin_generation();
            memory.begin_generation();
        }
        held.push(memory.hold(frame(1_000)));
        assert_eq!(held.iter().map(|it| it.generation()).collect::<Vec<_>>(), [0, 1, 2, 3]);
        assert_eq!(memory.cutoff(1, None), Some(0));
        assert_eq!(memory.cutoff(1_000 + OVERHEAD_BYTES + 1, None), Some(1));
        assert_eq!(memory.cutoff(usize::MAX, None), Some(2));
        assert_eq!(memory.cutoff(1, Some(0)), Some(1));
        assert_eq!(memory.cutoff(1, Some(2)), None);
        held.clear();
        assert_eq!(memory.bytes(), 0);
    }

    proptest! {
        /// The counts are those of the frames that are held, generations rise, and none is larger than its part of the ceiling
        /// unless one frame is.
        #[test]
        fn counts_are_those_of_the_frames(steps in vec((0..3_000_usize, any::<prop::sample::Index>(), any::<[bool; 2]>()), 1..200)) {
            const MAX: usize = 64 << 10;
            let memory = FrameMemory::new(MAX);
            let mut held: Vec<Rc<HeldFrame>> = Vec::new();
            for (bytes, index, [drops, ticks]) in steps {
                if drops && !held.is_empty() {
                    held.remove(index.index(held.len()));
                }
                if ticks {
                    memory.begin_generation();
                }
                held.push(memory.hold(frame(bytes)));
                let sum = |upto: u64| -> usize {
                    held.iter().filter(|it| it.generation() <= upto).map(|it| bytes_of(it)).sum()
                };
                prop_assert_eq!(memory.bytes(), sum(u64::MAX));
                prop_assert!(held.is_sorted_by_key(|it| it.generation()));
                let generations = memory.generations.borrow();
                prop_assert!(generations.iter().rev().skip(2).all(|it| it.bytes.get() > 0) || !ticks);
                for generation in generations.iter() {
                    let frames = held.iter().filter(|it| it.generation() == generation.number).count();
                    prop_assert!(generation.bytes.get() <= MAX / PARTS || frames == 1);
                }
                // The cutoff is the first that is enough, and never the newest.
                let newest = held[held.len() - 1].generation();
                let wanted = memory.bytes() / 3;
                if let Some(cutoff) = memory.cutoff(wanted, None) {
                    prop_assert!(cutoff < newest);
                    prop_assert!(sum(cutoff) >= wanted || sum(cutoff) == sum(newest - 1));
                    prop_assert!(cutoff == 0 || sum(cutoff - 1) < wanted);
                } else {
                    prop_assert_eq!(sum(newest), memory.bytes());
                }
            }
        }
    }
}
