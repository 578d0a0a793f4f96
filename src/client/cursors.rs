//! Where a client stands in each stream of each channel, across connections: what a `since` is made of, what a sample that
//! comes twice is known by, and what was missed. Pure: text from a server is kept, never trusted or shown.
//!
//! A cursor may not pass over a sample that is still to come. Gaps come ahead of frames that were sealed before, and a gap's
//! span may hold samples that do come, so a place moves on only when the count is even: as many samples came or were told
//! as gaps as there are sequences. What came beyond it is remembered, for it comes again. Heartbeats and `goodbye` move
//! nothing: what they speak of has come already, or is still on its way.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::event::{ChannelEntry, Gap};
use crate::wire::Seq;
use crate::wire::cursor::{CURSOR_STREAMS_MAX, Cursor, Place};

/// Channels that are remembered: ten times what a server takes at once by default. The oldest are forgotten in a watch of many
/// short-lived ones.
const CHANNELS_MAX: usize = 10_240;

/// Spans of samples of a stream that came beyond its place. More are as many holes that nobody has explained: then its place is
/// behind all of them.
const SPANS_MAX: usize = 64;

/// What is known of a channel's samples when a connection is told of it.
#[derive(Debug, PartialEq, Eq)]
pub enum Met {
    /// Not seen before.
    New,
    /// It goes on where it was.
    Same,
    /// Samples that were published meanwhile and will not come.
    Missed {
        /// The first of them.
        from: Seq,
        /// The last of them.
        to: Seq,
    },
    /// Its sequence has started again, so what was missed cannot be told.
    Restarted {
        /// The life that was seen before.
        epoch_before: u32,
    },
}

/// One life of a channel's sequence.
#[derive(Clone, Debug)]
struct Stream {
    epoch: u32,
    /// Everything up to here has come or was told as a gap.
    place: Seq,
    /// The newest sample that has come or was told.
    newest: Seq,
    /// Samples beyond `place` that came in this connection, and those that were told as gaps.
    came: u64,
    told: u64,
    /// Spans beyond `place` that have come, in any connection, in order.
    seen: Vec<(Seq, Seq)>,
    /// Its place is somebody's word: nothing of it has come here.
    claimed: bool,
    /// Where it began in this connection, if nobody had asked for it.
    uninvited: Option<Seq>,
}

impl Stream {
    const fn new(epoch: u32, place: Seq) -> Self {
        Self {
            epoch,
            place,
            newest: place,
            came: 0,
            told: 0,
            seen: Vec::new(),
            claimed: false,
            uninvited: None,
        }
    }

    /// Its past is asked for by now, and begins behind `place`.
    fn go_back(&mut self, place: Seq) {
        if let Some(began) = self.uninvited.take()
            && place < self.place
        {
            if began < self.place {
                self.seen.insert(0, (began + 1, self.place));
            }
            self.place = place;
        }
    }

    /// Another connection goes on with it.
    fn go_on(&mut self) {
        (self.newest, self.came, self.told) = (self.place, 0, 0);
    }

    /// Whether the sample has not come before.
    fn take(&mut self, seq: Seq) -> bool {
        if seq <= self.place {
            return false;
        }
        self.claimed = false;
        self.came = self.came.saturating_add(1);
        self.newest = self.newest.max(seq);
        let at = self.seen.partition_point(|&(_, last)| last < seq);
        let is_new = self.seen.get(at).is_none_or(|&(first, _)| seq < first);
        if is_new {
            match at.checked_sub(1).map(|before| &mut self.seen[before]) {
                Some((_, last)) if *last + 1 == seq => *last = seq,
                _ => self.seen.insert(at, (seq, seq)),
            }
        }
        self.settle();
        is_new
    }

    fn settle(&mut self) {
        let is_even = self.came.saturating_add(self.told) >= self.newest.saturating_sub(self.place);
        if is_even || self.seen.len() > SPANS_MAX {
            self.move_to(self.newest);
        }
    }

    fn move_to(&mut self, place: Seq) {
        (self.place, self.newest) = (place, self.newest.max(place));
        (self.came, self.told) = (0, 0);
        self.seen.retain(|&(_, last)| last > place);
    }
}

#[derive(Clone, Debug)]
struct Known {
    name: Arc<str>,
    epoch: u32,
    replays: bool,
}

/// The streams of a channel, the one that was met last behind the others.
type Streams = Vec<Stream>;

/// See the module's page.
#[derive(Debug, Default)]
pub struct Cursors {
    /// Of this connection.
    by_number: BTreeMap<u32, Known>,
    channels: HashMap<Arc<str>, Streams>,
    /// The names, the oldest first.
    order: BTreeMap<u64, Arc<str>>,
    met: u64,
}

impl Cursors {
    /// Takes a channel of `subscribed` or `channel`.
    pub fn meet(&mut self, entry: &ChannelEntry) -> Met {
        let place = entry.seq.saturating_sub(1);
        if let Some(known) = self.by_number.get(&entry.channel)
            && known.epoch == entry.epoch
            && entry.replay.is_none()
        {
            // Two patterns match it.
            return Met::Same;
        }
        let replays = entry.replay.is_some();
        let is_reset = entry.replay.as_ref().is_none_or(|replay| replay.outcome == "reset");
        let name = self.name_of_a_channel(&entry.name);
        let streams = self.channels.entry(Arc::clone(&name)).or_default();
        let met = match streams.iter().position(|stream| stream.epoch == entry.epoch) {
            Some(at) => {
                let mut stream = streams.remove(at);
                if stream.claimed && is_reset {
                    stream = Stream::new(entry.epoch, place);
                }
                stream.go_back(place);
                stream.go_on();
                let met = if stream.place < place {
                    let from = stream.place + 1;
                    stream.move_to(place);
                    Met::Missed { from, to: place }
                } else {
                    Met::Same
                };
                streams.push(stream);
                met
            }
            None => {
                let before = streams.last().map(|stream| stream.epoch);
                if streams.len() >= CURSOR_STREAMS_MAX {
                    streams.remove(0);
                }
                streams.push(Stream::new(entry.epoch, place));
                let is_beside = self.by_number.values().any(|known| known.name == name);
                match before {
                    Some(epoch_before) if is_reset && !is_beside => Met::Restarted { epoch_before },
                    Some(_) if !is_beside => Met::Same,
                    _ => Met::New,
                }
            }
        };
        self.number(entry.channel, Known { name, epoch: entry.epoch, replays });
        met
    }

    /// Gives a channel its name, and nothing else: one that nobody has asked for, whose past may still be asked for.
    pub fn introduce(&mut self, entry: &ChannelEntry) {
        let name = self.name_of_a_channel(&entry.name);
        let place = entry.seq.saturating_sub(1);
        let streams = self.channels.entry(Arc::clone(&name)).or_default();
        if let Some(stream) = streams.iter_mut().find(|stream| stream.epoch == entry.epoch) {
            stream.go_on();
        } else if streams.is_empty() {
            streams.push(Stream { uninvited: Some(place), ..Stream::new(entry.epoch, place) });
        }
        // Else the cursor of what it was before is asked for next, and then this one is met.
        self.number(entry.channel, Known { name, epoch: entry.epoch, replays: false });
    }

    /// Begins behind a cursor that somebody else has kept.
    pub fn begin_behind(&mut self, name: &str, cursor: &Cursor) {
        let name = self.name_of_a_channel(name);
        let streams = self.channels.entry(name).or_default();
        for &Place { epoch, seq } in cursor.places() {
            streams.retain(|stream| stream.epoch != epoch);
            streams.push(Stream { claimed: true, ..Stream::new(epoch, seq) });
        }
        let more = streams.len().saturating_sub(CURSOR_STREAMS_MAX);
        streams.drain(..more);
    }

    fn number(&mut self, channel: u32, known: Known) {
        if self.by_number.len() >= CHANNELS_MAX {
            self.by_number.pop_first();
        }
        self.by_number.insert(channel, known);
    }

    /// Makes room for it where it is new.
    fn name_of_a_channel(&mut self, name: &str) -> Arc<str> {
        if let Some((name, _)) = self.channels.get_key_value(name) {
            return Arc::clone(name);
        }
        if self.channels.len() >= CHANNELS_MAX
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.channels.remove(&oldest);
        }
        let name: Arc<str> = name.into();
        self.met += 1;
        self.order.insert(self.met, Arc::clone(&name));
        self.channels.insert(Arc::clone(&name), Streams::new());
        name
    }

    fn stream(&mut self, channel: u32) -> Option<&mut Stream> {
        let known = self.by_number.get(&channel)?;
        let streams = self.channels.get_mut(&known.name)?;
        streams.iter_mut().find(|stream| stream.epoch == known.epoch)
    }

    /// The name of a number; the number itself for one that no message has named.
    #[must_use]
    pub fn name(&self, channel: u32) -> Arc<str> {
        self.by_number
            .get(&channel)
            .map_or_else(|| format!("channel-{channel}").into(), |known| Arc::clone(&known.name))
    }

    /// Whether what comes of the channel is its past.
    #[must_use]
    pub fn replays(&self, channel: u32) -> bool {
        self.by_number.get(&channel).is_some_and(|known| known.replays)
    }

    /// What comes of the channel from here on is live.
    pub fn live(&mut self, channel: u32) {
        if let Some(known) = self.by_number.get_mut(&channel) {
            known.replays = false;
        }
    }

    /// Takes a sample: whether it has not come before. Samples of a channel that no message has named are all new.
    pub fn take(&mut self, channel: u32, seq: Seq) -> bool {
        self.stream(channel).is_none_or(|stream| stream.take(seq))
    }

    /// Takes a gap.
    pub fn gap(&mut self, gap: &Gap) {
        if let Some(stream) = self.stream(gap.channel)
            && gap.to > stream.place
        {
            stream.told = stream.told.saturating_add(gap.count);
            stream.newest = stream.newest.max(gap.to);
            stream.settle();
        }
    }

    /// The channel of this number is no more. Its place is kept: another server may have it.
    pub fn ended(&mut self, channel: u32) {
        self.by_number.remove(&channel);
    }

    /// The numbers are no longer valid; the places are.
    pub fn disconnected(&mut self) {
        self.by_number.clear();
    }

    /// The place in each stream of a channel, for its `since`; `None` if nothing is known of it.
    #[must_use]
    pub fn cursor(&self, name: &str) -> Option<String> {
        let streams = self.channels.get(name)?;
        let places = streams.iter().map(|stream| Place { epoch: stream.epoch, seq: stream.place });
        let text = places.map(|place| place.to_string()).collect::<Vec<_>>().join(",");
        (!text.is_empty()).then_some(text)
    }

    /// The names of which something is known, the newest first.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.order.values().rev().map(|name| &**name)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::client::event::Replay;

    fn entry(channel: u32, epoch: u32, seq: Seq) -> ChannelEntry {
        ChannelEntry { channel, name: "a".to_owned(), epoch, seq, cursor: None, replay: None }
    }

    fn replayed(channel: u32, epoch: u32, seq: Seq, outcome: &str) -> ChannelEntry {
        let replay = Some(Replay { outcome: outcome.to_owned(), samples: 0 });
        ChannelEntry { replay, ..entry(channel, epoch, seq) }
    }

    fn gap(channel: u32, from: Seq, to: Seq, count: u64) -> Gap {
        Gap { channel, from, to, count, reason: "slow".to_owned() }
    }

    /// Channel 3, of epoch 1, from 17 on; samples up to 20 have come.
    fn seen() -> Cursors {
        let mut cursors = Cursors::default();
        assert_eq!(cursors.meet(&entry(3, 1, 17)), Met::New);
        assert!((17..=20).all(|seq| cursors.take(3, seq)));
        cursors
    }

    #[test]
    fn what_was_missed_is_told() {
        let rows = [
            (entry(3, 1, 21), Met::Same, "1:20"),
            (entry(3, 1, 22), Met::Missed { from: 21, to: 21 }, "1:21"),
            (entry(3, 1, 31), Met::Missed { from: 21, to: 30 }, "1:30"),
            (entry(3, 1, 0), Met::Same, "1:20"),
            (entry(9, 1, 31), Met::Missed { from: 21, to: 30 }, "1:30"),
            (entry(3, 2, 1), Met::Restarted { epoch_before: 1 }, "1:20,2:0"),
            (replayed(3, 2, 5, "reset"), Met::Restarted { epoch_before: 1 }, "1:20,2:4"),
            // A life that has gone on from the one before.
            (replayed(3, 2, 21, "replayed"), Met::Same, "1:20,2:20"),
            (replayed(3, 1, 21, "partial"), Met::Same, "1:20"),
            // A server that is behind: what it has comes again, and is known.
            (replayed(3, 1, 11, "reset"), Met::Same, "1:20"),
        ];
        for (after, expected, cursor) in rows {
            let mut cursors = seen();
            cursors.disconnected();
            assert_eq!(&*cursors.name(3), "channel-3");
            assert_eq!(cursors.meet(&after), expected, "{after:?}");
            assert_eq!(&*cursors.name(after.channel), "a");
            assert_eq!(cursors.cursor("a").as_deref(), Some(cursor), "{after:?}");
            assert_eq!(cursors.replays(after.channel), after.replay.is_some());
            cursors.live(after.channel);
            assert!(!cursors.replays(after.channel));
        }
        assert_eq!(seen().cursor("b"), None);
    }

    #[test]
    fn a_cursor_passes_over_nothing_that_may_still_come() {
        enum Step {
            Came(Seq),
            Told(Seq, Seq, u64),
        }
        use Step::{Came, Told};
        let rows: [(&str, &[Step], &str); 7] = [
            ("nothing", &[], "1:20"),
            ("a hole that nobody has explained", &[Came(21), Came(25)], "1:21"),
            ("and that is explained", &[Came(25), Told(21, 24, 4)], "1:25"),
            ("a gap that is ahead of frames", &[Told(23, 30, 8), Came(21)], "1:20"),
            ("and the frames", &[Told(23, 30, 8), Came(21), Came(22)], "1:30"),
            ("a gap with samples within", &[Came(22), Told(21, 24, 2)], "1:20"),
            ("and all of them", &[Came(22), Told(21, 24, 2), Came(23)], "1:24"),
        ];
        for (name, steps, expected) in rows {
            let mut cursors = seen();
            for step in steps {
                match *step {
                    Came(seq) => assert!(cursors.take(3, seq)),
                    Told(from, to, count) => cursors.gap(&gap(3, from, to, count)),
                }
            }
            assert_eq!(cursors.cursor("a").as_deref(), Some(expected), "{name}");
        }
    }

    #[test]
    fn what_comes_again_is_known() {
        let mut cursors = seen();
        assert!(cursors.take(3, 24) && cursors.take(3, 25));
        cursors.disconnected();
        assert_eq!(cursors.meet(&replayed(7, 1, 21, "replayed")), Met::Same);
        let fresh: Vec<_> = (19..=27).filter(|&seq| cursors.take(7, seq)).collect();
        assert_eq!(fresh, [21, 22, 23, 26, 27]);
        assert_eq!(cursors.cursor("a").as_deref(), Some("1:27"));
    }

    #[test]
    fn streams_of_one_name_stand_side_by_side() {
        let mut cursors = seen();
        assert_eq!(cursors.meet(&entry(4, 2, 1)), Met::New);
        assert!(cursors.take(4, 1));
        assert_eq!(cursors.cursor("a").as_deref(), Some("1:20,2:1"));
        cursors.ended(3);
        assert!(cursors.take(3, 9), "nothing is known of the number");
        // The one that was met last is the last to be forgotten.
        cursors.meet(&entry(5, 1, 21));
        for epoch in 3..=33 {
            cursors.meet(&entry(epoch + 10, epoch, 1));
        }
        let cursor = cursors.cursor("a").unwrap();
        assert!(cursor.parse::<Cursor>().is_ok(), "{cursor}");
        assert!(cursor.starts_with("1:20,3:0,") && cursor.ends_with(",33:0"), "{cursor}");
    }

    #[test]
    fn a_place_may_be_given() {
        let rows = [
            (replayed(3, 7, 6, "replayed"), Met::Same, "8:9,7:5"),
            (replayed(3, 7, 9, "partial"), Met::Missed { from: 6, to: 8 }, "8:9,7:8"),
            // Somebody's word against the server's.
            (replayed(3, 7, 1, "reset"), Met::Same, "8:9,7:0"),
            (replayed(3, 6, 1, "reset"), Met::Restarted { epoch_before: 8 }, "7:5,8:9,6:0"),
        ];
        for (after, expected, cursor) in rows {
            let mut cursors = Cursors::default();
            cursors.begin_behind("a", &"7:5,8:9".parse().unwrap());
            assert_eq!(cursors.names().collect::<Vec<_>>(), ["a"]);
            assert_eq!(cursors.meet(&after), expected, "{after:?}");
            assert_eq!(cursors.cursor("a").as_deref(), Some(cursor), "{after:?}");
        }
    }

    #[test]
    fn a_channel_that_was_not_asked_for_keeps_its_place() {
        let mut cursors = seen();
        cursors.disconnected();
        cursors.introduce(&entry(8, 1, 31));
        assert!(cursors.take(8, 31));
        assert_eq!(cursors.cursor("a").as_deref(), Some("1:20"));
        assert_eq!((&*cursors.name(8), cursors.replays(8)), ("a", false));
        // Its past is asked for now.
        assert_eq!(cursors.meet(&replayed(8, 1, 21, "replayed")), Met::Same);
        assert!(cursors.replays(8));
        let fresh: Vec<_> = (21..=32).filter(|&seq| cursors.take(8, seq)).collect();
        assert_eq!(fresh, (21..=30).chain([32]).collect::<Vec<_>>());
        // Of one that is new, the past may be asked for when the first has come.
        let mut cursors = Cursors::default();
        cursors.introduce(&entry(8, 1, 31));
        assert!(cursors.take(8, 31));
        assert_eq!(cursors.cursor("a").as_deref(), Some("1:31"));
        cursors.meet(&replayed(8, 1, 21, "replayed"));
        let fresh: Vec<_> = (21..=32).filter(|&seq| cursors.take(8, seq)).collect();
        assert_eq!(fresh, (21..=30).chain([32]).collect::<Vec<_>>());
    }

    #[test]
    fn a_failed_connection_in_between_forgets_nothing() {
        let mut cursors = seen();
        cursors.disconnected();
        cursors.disconnected();
        assert_eq!(cursors.meet(&entry(3, 1, 22)), Met::Missed { from: 21, to: 21 });
        assert_eq!(cursors.meet(&entry(3, 1, 22)), Met::Same);
    }

    #[test]
    fn memory_is_bounded() {
        let mut cursors = Cursors::default();
        let many = u32::try_from(CHANNELS_MAX).unwrap() + 10;
        for _ in 0..2 {
            for channel in 0..many {
                cursors.meet(&ChannelEntry { name: format!("c.{channel}"), ..entry(channel, 1, 1) });
            }
            assert_eq!((cursors.by_number.len(), cursors.channels.len()), (CHANNELS_MAX, CHANNELS_MAX));
            assert_eq!(cursors.order.len(), CHANNELS_MAX);
            cursors.disconnected();
        }
        let mut cursors = seen();
        for seq in (22..1_000).step_by(2) {
            cursors.take(3, seq);
            assert!(cursors.stream(3).unwrap().seen.len() <= SPANS_MAX);
        }
    }

    proptest! {
        /// Whatever is lost, announced ahead of its place, and cut off: after a connection that brings everything behind the
        /// cursor, every sample was new exactly once or lies in a gap.
        #[test]
        fn nothing_is_passed_over_and_nothing_comes_twice(
            fates in prop::collection::vec((any::<bool>(), 0_usize..4), 1..60),
            cut in 0_usize..80,
        ) {
            // Gaps are told up to three messages early.
            let mut script: Vec<(usize, Seq, bool)> = (1..).zip(&fates)
                .map(|(seq, &(lost, early))| (usize::try_from(seq).unwrap() - if lost { early } else { 0 }.min(usize::try_from(seq).unwrap()), seq, lost))
                .collect();
            script.sort_by_key(|&(at, seq, _)| (at, seq));
            let mut cursors = Cursors::default();
            cursors.meet(&entry(3, 1, 1));
            let (mut fresh, mut told) = (Vec::new(), Vec::new());
            for &(_, seq, lost) in script.iter().take(cut) {
                if lost {
                    cursors.gap(&gap(3, seq, seq, 1));
                    told.push(seq);
                } else if cursors.take(3, seq) {
                    fresh.push(seq);
                }
            }
            cursors.disconnected();
            let place: Seq = cursors.cursor("a").unwrap().strip_prefix("1:").unwrap().parse().unwrap();
            cursors.meet(&replayed(5, 1, place + 1, "replayed"));
            let head = Seq::try_from(fates.len()).unwrap();
            fresh.extend((place + 1..=head).filter(|&seq| cursors.take(5, seq)));
            let mut all = [fresh.clone(), told].concat();
            all.sort_unstable();
            all.dedup();
            prop_assert_eq!(all, (1..=head).collect::<Vec<_>>());
            fresh.sort_unstable();
            prop_assert!(fresh.windows(2).all(|pair| pair[0] < pair[1]));
            prop_assert_eq!(cursors.cursor("a").unwrap(), format!("1:{head}"));
        }
    }
}
