//! The books of one subscriber and one channel: what was published to it, what came, what was announced as lost. Pure.
//!
//! The figure that matters is `published - received - announced`: it must be 0. Sequences make it exact; nothing here
//! trusts a counter of the server except the `gap` notices that are being checked.

use std::ops::AddAssign;

/// A place up to which everything came or was announced, and what had come and been announced there.
#[derive(Clone, Copy, Debug)]
struct Even {
    upto: u64,
    received: u64,
    announced: u64,
}

/// The running count of one channel, from `subscribed` on.
#[derive(Clone, Debug)]
pub(crate) struct Ledger {
    epoch: u32,
    /// Sequence of the first sample that was to come.
    first: u64,
    /// The sequence after the newest one received.
    next: u64,
    received: u64,
    announced: u64,
    irregular: u64,
    /// The newest sequence that came or that a notice named.
    newest: u64,
    /// The last place at which nothing was missing: where it goes on in another connection.
    even: Even,
    /// Whether what is missing is announced: then only a notice accounts for it. Else a newer sequence does.
    has_notices: bool,
    /// The next frame says where the books begin.
    opens_late: bool,
}

impl Ledger {
    /// Opens the books with what `subscribed` said.
    pub(crate) fn new(epoch: u32, first: u64) -> Self {
        Self {
            epoch,
            first,
            next: first,
            received: 0,
            announced: 0,
            irregular: 0,
            newest: first.saturating_sub(1),
            even: Even { upto: first.saturating_sub(1), received: 0, announced: 0 },
            has_notices: true,
            opens_late: false,
        }
    }

    /// Books about a server that announces nothing, in epoch 0: from sequence 1, or from the first that comes.
    pub(crate) fn without_notices(opens_late: bool) -> Self {
        Self { has_notices: false, opens_late, ..Self::new(0, 1) }
    }

    /// A frame with `count` samples, the first of sequence `first`, the last of `last`.
    pub(crate) fn on_frame(&mut self, epoch: u32, first: u64, last: u64, count: u64) {
        if self.opens_late {
            (self.first, self.next, self.opens_late) = (first, first, false);
        }
        let fits = last >= first && count <= last - first + 1 && count > 0;
        if epoch != self.epoch || first < self.next || !fits {
            // Out of order, repeated, or of another life: not counted as received, so the sum shows it as lost too.
            self.irregular += 1;
            return;
        }
        self.received += count;
        self.next = last + 1;
        self.newest = self.newest.max(last);
        self.settle();
    }

    /// A `gap` notice for `count` samples, the last of them `to` at the most.
    pub(crate) fn on_gap(&mut self, to: u64, count: u64) {
        self.announced += count;
        self.newest = self.newest.max(to);
        self.settle();
    }

    fn settle(&mut self) {
        if self.has_notices && self.received + self.announced == (self.newest + 1).saturating_sub(self.first)
        {
            let Self { received, announced, .. } = *self;
            self.even = Even { upto: self.newest, received, announced };
        }
    }

    /// Up to where nothing is missing. A notice may come ahead of frames, so this may be before the newest sample.
    pub(crate) const fn place(&self) -> u64 {
        self.even.upto
    }

    /// Another connection goes on behind [`place`](Self::place): what came or was announced beyond it does so again.
    pub(crate) fn go_on(&mut self) {
        let Even { upto, received, announced } = self.even;
        (self.received, self.announced, self.next, self.newest) = (received, announced, upto + 1, upto);
    }

    /// The life of the sequence.
    pub(crate) const fn epoch(&self) -> u32 {
        self.epoch
    }

    /// Sequence of the first sample that was to come.
    pub(crate) const fn first(&self) -> u64 {
        self.first
    }

    /// How far this subscriber has come: samples received or announced, or without notices those up to the newest.
    pub(crate) fn progress(&self) -> u64 {
        if self.has_notices { self.received + self.announced } else { self.next - self.first }
    }

    /// Whether everything up to and including sequence `head` has come or has been announced.
    pub(crate) fn is_settled(&self, head: u64) -> bool {
        self.progress() >= self.published(head)
    }

    /// Whether everything up to the newest sample received has come or has been announced, and nothing else.
    pub(crate) fn is_even(&self) -> bool {
        self.progress() == self.next - self.first
    }

    /// The newest sequence that it knows of. What was announced ahead of frames that are still to come was published, too.
    pub(crate) fn known(&self) -> u64 {
        self.next.max(self.first + self.progress()).saturating_sub(1)
    }

    /// Closes the books of a subscriber that goes: over what it knows of, since nobody knows what was published meanwhile.
    pub(crate) fn close_here(&self) -> Account {
        self.close(self.known())
    }

    /// Closes the books: `head` is the newest sequence of the channel.
    pub(crate) fn close(&self, head: u64) -> Account {
        let published = self.published(head);
        let accounted = self.received + self.announced;
        Account {
            published,
            received: self.received,
            announced: self.announced,
            unannounced: published.saturating_sub(accounted),
            excess: accounted.saturating_sub(published),
            irregular: self.irregular,
            ..Account::default()
        }
    }

    fn published(&self, head: u64) -> u64 {
        if self.opens_late {
            return 0;
        }
        (head + 1).saturating_sub(self.first)
    }
}

/// Closed books, of one ledger or the sum of many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Account {
    /// Samples published since the subscription.
    pub published: u64,
    /// Samples that came.
    pub received: u64,
    /// Samples that a `gap` named as lost.
    pub announced: u64,
    /// Samples that neither came nor were named: the failure that this program exists to find.
    pub unannounced: u64,
    /// Samples that came and were named as lost as well.
    pub excess: u64,
    /// Frames out of order, repeated or of a wrong epoch.
    pub irregular: u64,
    /// Samples among those that came which are of the past: of the time without a connection, mostly.
    #[serde(default)]
    pub replayed: u64,
    /// Connections that went on where another had ended.
    #[serde(default)]
    pub resumed: u64,
    /// Channels that could not go on, since the server does not have what was seen of them: their books begin anew.
    #[serde(default)]
    pub resets: u64,
    /// Samples of streams that began while it was away, before the first one that the subscriber was told of, and of those that
    /// it had no room to ask for. They are published, too.
    #[serde(default)]
    pub unseen: u64,
    /// Cursors of streams that had no room in a `since`.
    #[serde(default)]
    pub left_out: u64,
}

impl Account {
    /// Whether `published = received + announced + unseen` holds exactly, in order.
    pub(crate) fn is_exact(&self) -> bool {
        self.unannounced == 0 && self.excess == 0 && self.irregular == 0
    }
}

impl AddAssign for Account {
    fn add_assign(&mut self, other: Self) {
        self.published += other.published;
        self.received += other.received;
        self.announced += other.announced;
        self.unannounced += other.unannounced;
        self.excess += other.excess;
        self.irregular += other.irregular;
        self.replayed += other.replayed;
        self.resumed += other.resumed;
        self.resets += other.resets;
        self.unseen += other.unseen;
        self.left_out += other.left_out;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    enum Step {
        Frame(u32, u64, u64, u64),
        /// Up to this sequence, and how many.
        Gap(u64, u64),
    }
    use Step::{Frame, Gap};

    #[test]
    fn books() {
        // (what it shows, steps, head, [received, announced, unannounced, excess, irregular])
        let cases: [(&str, Vec<Step>, u64, [u64; 5]); 9] = [
            ("nothing published", vec![], 4, [0, 0, 0, 0, 0]),
            ("all came", vec![Frame(1, 5, 6, 2), Frame(1, 7, 7, 1)], 7, [3, 0, 0, 0, 0]),
            ("a hole, announced", vec![Frame(1, 5, 5, 1), Gap(7, 2), Frame(1, 8, 8, 1)], 8, [2, 2, 0, 0, 0]),
            ("a hole, not announced", vec![Frame(1, 5, 5, 1), Frame(1, 8, 8, 1)], 8, [2, 0, 2, 0, 0]),
            ("the tail is missing", vec![Frame(1, 5, 5, 1)], 8, [1, 0, 3, 0, 0]),
            ("the tail is announced", vec![Frame(1, 5, 5, 1), Gap(8, 3)], 8, [1, 3, 0, 0, 0]),
            ("conflated, announced", vec![Frame(1, 5, 9, 2), Gap(9, 3)], 9, [2, 3, 0, 0, 0]),
            ("announced and delivered", vec![Frame(1, 5, 6, 2), Gap(6, 1)], 6, [2, 1, 0, 1, 0]),
            (
                "repeated, another epoch, impossible count",
                vec![Frame(1, 5, 6, 2), Frame(1, 6, 6, 1), Frame(2, 7, 7, 1), Frame(1, 7, 7, 2)],
                6,
                [2, 0, 0, 0, 3],
            ),
        ];
        for (name, steps, head, expected) in cases {
            let mut ledger = Ledger::new(1, 5);
            for step in steps {
                match step {
                    Frame(epoch, first, last, count) => ledger.on_frame(epoch, first, last, count),
                    Gap(to, count) => ledger.on_gap(to, count),
                }
            }
            let account = ledger.close(head);
            let got =
                [account.received, account.announced, account.unannounced, account.excess, account.irregular];
            assert_eq!(got, expected, "{name}");
            assert_eq!(account.is_exact(), expected[2..] == [0, 0, 0], "{name}");
            assert_eq!(ledger.is_settled(head), account.unannounced == 0, "{name}");
        }
    }

    #[test]
    fn without_notices_a_newer_sequence_accounts_for_what_is_missing() {
        let mut ledger = Ledger::without_notices(false);
        ledger.on_frame(0, 1, 1, 1);
        ledger.on_frame(0, 4, 4, 1);
        assert_eq!((ledger.progress(), ledger.is_settled(4), ledger.is_settled(5)), (4, true, false));
        assert_eq!(
            ledger.close(5),
            Account { published: 5, received: 2, unannounced: 3, ..Account::default() }
        );
        let mut late = Ledger::without_notices(true);
        assert_eq!((late.close(9), late.is_settled(9)), (Account::default(), true));
        late.on_frame(0, 7, 7, 1);
        late.on_frame(0, 9, 9, 1);
        assert_eq!(
            late.close(9),
            Account { published: 3, received: 2, unannounced: 1, ..Account::default() }
        );
    }

    #[test]
    fn books_of_one_that_goes() {
        // (steps, even, [published, unannounced, excess])
        let cases: [(Vec<Step>, bool, [u64; 3]); 5] = [
            (vec![], true, [0, 0, 0]),
            (vec![Frame(1, 5, 6, 2)], true, [2, 0, 0]),
            (vec![Frame(1, 5, 6, 2), Frame(1, 9, 9, 1)], false, [5, 2, 0]),
            (vec![Frame(1, 5, 6, 2), Gap(10, 4)], false, [6, 0, 0]),
            (vec![Frame(1, 5, 6, 2), Gap(8, 2), Frame(1, 9, 9, 1)], true, [5, 0, 0]),
        ];
        for (index, (steps, even, expected)) in cases.into_iter().enumerate() {
            let mut ledger = Ledger::new(1, 5);
            for step in steps {
                match step {
                    Frame(epoch, first, last, count) => ledger.on_frame(epoch, first, last, count),
                    Gap(to, count) => ledger.on_gap(to, count),
                }
            }
            let account = ledger.close_here();
            assert_eq!([account.published, account.unannounced, account.excess], expected, "{index}");
            assert_eq!(ledger.is_even(), even, "{index}");
        }
    }

    #[test]
    fn it_goes_on_where_nothing_is_missing() {
        // (what it shows, steps of a connection, its place, [published, received] up to sequence 12 when all behind it comes)
        let cases: [(&str, Vec<Step>, u64); 6] = [
            ("nothing came", vec![], 4),
            ("all came", vec![Frame(1, 5, 6, 2), Frame(1, 7, 7, 1)], 7),
            ("a hole that was not explained in time", vec![Frame(1, 5, 6, 2), Frame(1, 9, 9, 1)], 6),
            ("a notice ahead of frames", vec![Frame(1, 5, 5, 1), Gap(9, 2), Frame(1, 6, 6, 1)], 5),
            ("and the frames", vec![Frame(1, 5, 5, 1), Gap(9, 2), Frame(1, 6, 7, 2)], 9),
            ("thinned", vec![Frame(1, 5, 9, 2), Gap(9, 3), Frame(1, 11, 11, 1)], 9),
        ];
        for (name, steps, place) in cases {
            let mut ledger = Ledger::new(1, 5);
            for step in steps {
                match step {
                    Frame(epoch, first, last, count) => ledger.on_frame(epoch, first, last, count),
                    Gap(to, count) => ledger.on_gap(to, count),
                }
            }
            assert_eq!((ledger.epoch(), ledger.place()), (1, place), "{name}");
            ledger.go_on();
            ledger.on_frame(1, place + 1, 12, 12 - place);
            let account = ledger.close(12);
            assert!(account.is_exact(), "{name}: {account:?}");
            assert_eq!((account.published, ledger.place()), (8, 12), "{name}");
            // What comes twice in a connection is a mistake of the server.
            ledger.on_frame(1, 12, 12, 1);
            assert_eq!(ledger.close(12).irregular, 1, "{name}");
        }
    }

    proptest! {
        /// Whatever is left out is found, to the sample, and announcing exactly that balances the books.
        #[test]
        fn what_is_left_out_is_found(frames in prop::collection::vec((1u64..20, any::<bool>()), 0..60)) {
            let (mut ledger, mut next, mut left_out) = (Ledger::new(9, 1), 1u64, 0);
            for (count, arrives) in frames {
                if arrives { ledger.on_frame(9, next, next + count - 1, count) } else { left_out += count }
                next += count;
            }
            prop_assert_eq!(ledger.close(next - 1).unannounced, left_out);
            ledger.on_gap(next - 1, left_out);
            prop_assert!(ledger.close(next - 1).is_exact());
        }
    }
}
