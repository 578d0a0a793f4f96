//! The books of one subscriber across the lives of its connection: a ledger for each stream, by the channel's name and the life
//! of its sequence, since a channel has another number in each connection and on each server. Reads messages, holds no socket.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use crate::codecs;
use crate::control::{Channel, Event, Outcome, Since};
use crate::data::{FrameHead, Run, read_frame};
use crate::ledger::{Account, Ledger};
use crate::measure::Recorder;
use crate::scenario::Codec;
use crate::ws::{Ended, Message, Opcode};

/// Streams that a cursor may name; the newest are.
const CURSOR_STREAMS_MAX: usize = 32;

/// Channels that a `since` may name.
const SINCE_CHANNELS_MAX: usize = 1024;

/// Bytes of all that a `since` names: of the 64 KiB that a server takes in a message if it is not set otherwise, 2 KiB are left to
/// the rest of the `subscribe`.
const SINCE_BYTES_MAX: usize = 62 << 10;

/// Bytes of a channel's entry in `since` beside its name and its cursor: quotes, colon and comma.
const ENTRY_BYTES: usize = 6;

/// RFC 6455, section 7.4.1: going away. What a server that says goodbye closes with.
pub(crate) const GOING_AWAY: u16 = 1001;

/// One life of a channel's sequence.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Stream {
    /// The channel's name.
    pub name: String,
    /// The epoch.
    pub epoch: u32,
}

/// Where a stream ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    /// Newest sequence.
    pub seq: u64,
    /// Whether there may be more: this is what was acknowledged when its publisher was cut off.
    pub at_least: bool,
    /// How it began, if that was while the run went on. Who was subscribed by then was to be told of it.
    pub begun: Option<Begun>,
}

/// How a stream began that is new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Begun {
    /// When its publisher began to open it.
    pub at: Instant,
    /// The sequence of its first sample. Behind 1 where it goes on from a life that the server had kept.
    pub first: u64,
}

impl Head {
    /// Of a stream that ends here, and was there from the beginning.
    pub(crate) const fn of(seq: u64) -> Self {
        Self { seq, at_least: false, begun: None }
    }

    /// The newest sequence that a subscriber with this ledger has to account for.
    fn seq_for(&self, ledger: &Ledger) -> u64 {
        if self.at_least { self.seq.max(ledger.known()) } else { self.seq }
    }
}

/// Of each stream.
pub(crate) type Heads = HashMap<Stream, Head>;

/// See the module's page.
#[derive(Debug, Default)]
pub(crate) struct Books {
    streams: Vec<Stream>,
    /// Of each stream, in the same order. The number is that of a publisher of a server other than Tidewire.
    pub ledgers: Vec<(u32, Ledger)>,
    /// How it met each.
    met: Vec<Met>,
    /// The channels of this connection.
    here: Vec<Here>,
    /// Whether any of them replays. Without, which is nearly always, no frame need be looked at twice.
    any_replays: bool,
    /// Where the last frame's channel was found: mostly the next one's too.
    last: usize,
    codec: Codec,
    /// Whether the server has answered in this connection.
    pub subscribed: bool,
    /// Connections that were subscribed.
    lives: u64,
    /// When the first one was.
    since: Option<Instant>,
    /// When this one was, if the server has answered.
    answered: Option<Instant>,
    /// Whether this is not the first one.
    is_back: bool,
    /// Books of streams that could not go on.
    closed: Account,
    replayed: u64,
    resets: u64,
    /// Of channels that had begun anew when it came back, the stream that it had seen.
    begun_anew: Vec<usize>,
    /// Cursors that had no room in a `since`.
    left_out: u64,
}

/// How a stream was met.
#[derive(Clone, Copy, Debug)]
struct Met {
    /// The first sequence that was told.
    first: u64,
    /// When the life of the connection that was told of it was subscribed; `None` until it is.
    life: Option<Instant>,
    /// Whether this life's `since` names it.
    is_named: bool,
}

impl Met {
    /// Samples of the stream that were not told of, and whether that is right: who was not subscribed before the stream began
    /// could not be told of its first sample.
    fn missed(&self, begun: Begun) -> (u64, bool) {
        (self.first.saturating_sub(begun.first), self.life.is_none_or(|life| life > begun.at))
    }
}

/// A channel of this connection.
#[derive(Clone, Copy, Debug)]
struct Here {
    number: u32,
    /// Of its stream.
    index: usize,
    /// What comes of it is of the past.
    replays: bool,
}

impl Books {
    /// Of nobody who has been anywhere.
    pub(crate) fn new(codec: Codec) -> Self {
        Self { codec, ..Self::default() }
    }

    /// About so many publishers of a server that says nothing about them.
    pub(crate) fn of_publishers(count: u32, joins_late: bool) -> Self {
        let streams = (0..count).map(|publisher| Stream { name: publisher.to_string(), epoch: 0 });
        let ledgers = (0..count).map(|publisher| (publisher, Ledger::without_notices(joins_late)));
        Self { streams: streams.collect(), ledgers: ledgers.collect(), ..Self::default() }
    }

    /// Another connection begins: what its `subscribe` of this channel or pattern has to say.
    pub(crate) fn begin_again(&mut self, channel: &str) -> Option<Since> {
        self.here.clear();
        (self.subscribed, self.any_replays, self.answered) = (false, false, None);
        self.is_back = self.lives > 0;
        if !self.is_back {
            return None;
        }
        self.met.iter_mut().for_each(|met| met.is_named = false);
        // The streams of each name, the newest last.
        let mut streams: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (index, stream) in self.streams.iter().enumerate() {
            streams.entry(&stream.name).or_default().push(index);
        }
        let is_pattern = channel.contains(['*', '>']);
        streams.retain(|name, _| is_pattern || *name == channel);
        // What there is no room for counts as not seen: the newest of all names come first.
        let mut room = SINCE_BYTES_MAX;
        let mut named: BTreeMap<&str, String> = BTreeMap::new();
        for age in 1..=CURSOR_STREAMS_MAX {
            for (name, streams) in &streams {
                let Some(&index) = streams.len().checked_sub(age).and_then(|at| streams.get(at)) else {
                    continue;
                };
                let ledger = &self.ledgers[index].1;
                let place = format!("{}:{}", ledger.epoch(), ledger.place());
                let is_new = !named.contains_key(name);
                let bytes = place.len() + if is_new { name.len() + ENTRY_BYTES } else { 1 };
                // An older one without the newer ones would be of no use.
                if bytes > room || is_new && (age > 1 || named.len() == SINCE_CHANNELS_MAX) {
                    continue;
                }
                room -= bytes;
                self.met[index].is_named = true;
                let cursor = named.entry(name).or_default();
                *cursor = if cursor.is_empty() { place } else { format!("{place},{cursor}") };
            }
        }
        let known = streams.values().flatten().count();
        let left_out = known - streams.values().flatten().filter(|&&index| self.met[index].is_named).count();
        let since = match named.remove(channel) {
            Some(cursor) if !is_pattern => Since::One(cursor),
            _ => Since::Named(named.into_iter().map(|(name, cursor)| (name.to_owned(), cursor)).collect()),
        };
        self.left_out += left_out as u64;
        Some(since)
    }

    /// Takes a message.
    pub(crate) fn on_message(
        &mut self,
        message: Message<'_>,
        recorder: Option<&mut Recorder>,
    ) -> Result<(), Ended> {
        match message.opcode {
            Opcode::Binary if self.codec == Codec::Protobuf => self.on_frame(message.payload, recorder),
            Opcode::Binary => self.on_decoded(codecs::read_msgpack(message.payload), recorder),
            Opcode::Text if self.codec == Codec::Json && codecs::is_json_frame(message.payload) => {
                self.on_decoded(codecs::read_json(message.payload), recorder)
            }
            Opcode::Text => self.on_event(message.payload, recorder),
            Opcode::Close | Opcode::Ping | Opcode::Pong => Ok(()),
        }
    }

    fn on_frame(&mut self, payload: &[u8], recorder: Option<&mut Recorder>) -> Result<(), Ended> {
        let unexpected = |error| Ended::Unexpected(format!("the server sent a bad frame: {error}"));
        let head = match recorder {
            Some(recorder) if !self.any_replays => recorder.record_frame(payload).map_err(unexpected)?,
            recorder => {
                let head = read_frame(payload, |_| ()).map_err(unexpected)?;
                match recorder {
                    Some(recorder) if self.replays(head.channel) => recorder.count(head.count),
                    Some(recorder) => drop(recorder.record_frame(payload).map_err(unexpected)?),
                    None => {}
                }
                head
            }
        };
        self.enter(head)
    }

    /// A frame of a codec that is decoded as a whole.
    fn on_decoded(
        &mut self,
        decoded: Result<(FrameHead, Vec<Run>), String>,
        recorder: Option<&mut Recorder>,
    ) -> Result<(), Ended> {
        let (head, runs) =
            decoded.map_err(|error| Ended::Unexpected(format!("the server sent a bad frame: {error}")))?;
        if let Some(recorder) = recorder {
            if !self.replays(head.channel) {
                runs.into_iter().for_each(|run| recorder.record(run));
            }
            recorder.count(head.count);
        }
        self.enter(head)
    }

    fn enter(&mut self, head: FrameHead) -> Result<(), Ended> {
        let Here { index, replays, .. } = self.find(head.channel)?;
        if replays {
            self.replayed += head.count;
        }
        self.ledgers[index].1.on_frame(head.epoch, head.first, head.last, head.count);
        Ok(())
    }

    fn on_event(&mut self, payload: &[u8], recorder: Option<&mut Recorder>) -> Result<(), Ended> {
        match Event::parse(payload).map_err(Ended::Unexpected)? {
            Event::Subscribed { channels } => {
                self.subscribed = true;
                self.lives += 1;
                let now = Instant::now();
                self.since.get_or_insert(now);
                self.answered = Some(now);
                for met in &mut self.met {
                    met.life.get_or_insert(now);
                }
                for channel in channels {
                    // Of some it was told before, and they have begun.
                    if !self.here.iter().any(|here| here.number == channel.channel) {
                        self.meet(channel);
                    }
                }
            }
            Event::Channel(channel) => self.meet(channel),
            Event::Live { channel } => {
                self.find(channel)?;
                self.here[self.last].replays = false;
                self.any_replays = self.here.iter().any(|here| here.replays);
            }
            Event::Ended { channel } => self.here.retain(|here| here.number != channel),
            Event::Gap { channel, to, count } => {
                if let Some(recorder) = recorder {
                    recorder.on_gap(count);
                }
                let index = self.find(channel)?.index;
                self.ledgers[index].1.on_gap(to, count);
            }
            Event::Error { code, message } => {
                return Err(Ended::Unexpected(format!("the server refused a request: {code}: {message}")));
            }
            Event::Goodbye { reason } => {
                return Err(Ended::Closed { code: GOING_AWAY, reason: format!("goodbye: {reason}") });
            }
            Event::Advertised(_) | Event::Ack { .. } | Event::Pong { .. } | Event::Unused => {}
        }
        Ok(())
    }

    /// A channel that will come.
    fn meet(&mut self, channel: Channel) {
        let outcome = channel.replay.map(|replay| replay.outcome);
        let is_reset = self.is_back && outcome == Some(Outcome::Reset);
        let stream = Stream { name: channel.name, epoch: channel.epoch };
        let fresh = Ledger::new(channel.epoch, channel.seq);
        let index = match self.streams.iter().position(|known| *known == stream) {
            Some(index) => {
                let ledger = &mut self.ledgers[index].1;
                if is_reset {
                    self.resets += 1;
                    self.closed += ledger.close_here();
                    // It goes on from what it is told, and says nothing of what lies between.
                    let hole = fresh.first().saturating_sub(ledger.known() + 1);
                    self.closed.published += hole;
                    if self.met[index].is_named {
                        self.closed.unannounced += hole;
                    } else {
                        self.closed.unseen += hole;
                    }
                    *ledger = fresh;
                } else if !self.here.iter().any(|here| here.index == index) {
                    ledger.go_on();
                }
                index
            }
            None => {
                // A name that was seen in another life only has begun again.
                let is_here = |at: usize| self.here.iter().any(|here| here.index == at);
                let mut lives =
                    self.streams.iter().enumerate().filter(|(_, known)| known.name == stream.name);
                if is_reset
                    && let Some((newest, _)) = lives.clone().next_back()
                    && !lives.any(|(at, _)| is_here(at))
                {
                    self.begun_anew.push(newest);
                }
                self.streams.push(stream);
                self.ledgers.push((channel.channel, fresh));
                self.met.push(Met { first: channel.seq, life: self.answered, is_named: false });
                self.streams.len() - 1
            }
        };
        self.here.retain(|here| here.number != channel.channel);
        self.here.push(Here { number: channel.channel, index, replays: outcome.is_some() });
        self.any_replays |= outcome.is_some();
    }

    fn replays(&self, channel: u32) -> bool {
        self.any_replays && self.here.iter().any(|here| here.number == channel && here.replays)
    }

    fn find(&mut self, channel: u32) -> Result<Here, Ended> {
        if self.here.get(self.last).is_none_or(|here| here.number != channel) {
            self.last = self.here.iter().position(|here| here.number == channel).ok_or_else(|| {
                Ended::Unexpected(format!("the server sent channel {channel}, which was not subscribed"))
            })?;
        }
        Ok(self.here[self.last])
    }

    /// How far it has come, over all channels.
    pub(crate) fn progress(&self) -> u64 {
        self.closed.published + self.ledgers.iter().map(|(_, ledger)| ledger.progress()).sum::<u64>()
    }

    /// Whether everything up to the heads has come or has been announced.
    pub(crate) fn is_settled(&self, heads: &Heads) -> bool {
        let is_settled = |(stream, ledger): (&Stream, &Ledger)| {
            heads.get(stream).is_none_or(|head| ledger.is_settled(head.seq_for(ledger)))
        };
        let has_begun = |(met, begun, _): (Option<Met>, Begun, &Head)| {
            met.is_some_and(|met| matches!(met.missed(begun), (0, _) | (_, true)))
        };
        self.all().all(is_settled) && self.late(heads).all(has_begun)
    }

    /// Whether it knows of nothing that has neither come nor been announced.
    pub(crate) fn is_even(&self) -> bool {
        self.ledgers.iter().all(|(_, ledger)| ledger.is_even())
    }

    /// Of each stream the newest sequence before the subscription.
    pub(crate) fn heads_at_start(&self) -> Heads {
        let before = |ledger: &Ledger| Head::of(ledger.first().saturating_sub(1));
        self.all().map(|(stream, ledger)| (stream.clone(), before(ledger))).collect()
    }

    /// Closes the books over the streams whose heads are known, and over what it knows of those whose life has ended.
    pub(crate) fn close(&self, heads: &Heads) -> Account {
        let mut sum = self.sum_so_far();
        // Where it is known how the stream before ended, nothing is unknown.
        let is_unknown = |index: &&usize| !heads.contains_key(&self.streams[**index]);
        sum.resets += self.begun_anew.iter().filter(is_unknown).count() as u64;
        for (index, (stream, ledger)) in self.all().enumerate() {
            match heads.get(stream) {
                Some(head) => sum += ledger.close(head.seq_for(ledger)),
                None if self.lives > 1 && !self.here.iter().any(|here| here.index == index) => {
                    sum += ledger.close_here();
                }
                None => {}
            }
        }
        for (met, begun, head) in self.late(heads) {
            let all = (head.seq + 1).saturating_sub(begun.first);
            let (missed, is_right) = met.map_or((all, false), |met| met.missed(begun));
            sum.published += missed;
            if is_right {
                sum.unseen += missed;
            } else {
                sum.unannounced += missed;
            }
        }
        sum
    }

    /// The streams that began after its first subscription, and how it met them, if it ever did.
    fn late<'a>(&'a self, heads: &'a Heads) -> impl Iterator<Item = (Option<Met>, Begun, &'a Head)> {
        heads.iter().filter_map(|(stream, head)| {
            let begun = head.begun.filter(|begun| self.since.is_some_and(|since| begun.at > since))?;
            let known = self.streams.iter().position(|known| known == stream);
            Some((known.map(|index| self.met[index]), begun, head))
        })
    }

    /// Closes the books over what it knows of: it goes before the publishers have stopped.
    pub(crate) fn close_here(&self) -> Account {
        let mut sum = self.sum_so_far();
        sum.resets += self.begun_anew.len() as u64;
        self.ledgers.iter().for_each(|(_, ledger)| sum += ledger.close_here());
        sum
    }

    fn sum_so_far(&self) -> Account {
        let mut sum = self.closed;
        sum.replayed += self.replayed;
        sum.resumed += self.lives.saturating_sub(1);
        sum.resets += self.resets;
        sum.left_out += self.left_out;
        sum
    }

    fn all(&self) -> impl Iterator<Item = (&Stream, &Ledger)> {
        self.streams.iter().zip(self.ledgers.iter().map(|(_, ledger)| ledger))
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use tidewire::wire::proto;

    use super::*;

    /// What comes from a server.
    #[derive(Clone, Copy)]
    enum Said {
        /// Another connection: the channel's number, epoch, first sequence, and what comes of the past.
        Begin(u32, u32, u64, &'static str),
        /// Another connection, whose answer is to come.
        Back,
        /// The answer.
        Answer(u32, u32, u64, &'static str),
        /// Another stream of the same name.
        Channel(u32, u32, u64, &'static str),
        /// Number, epoch, first and last sequence.
        Frame(u32, u32, u64, u64),
        /// Number, first and last sequence.
        Gap(u32, u64, u64),
        Live(u32),
        End(u32),
    }
    use Said::{Answer, Back, Begin, Channel, End, Frame, Gap, Live};

    fn tell(books: &mut Books, said: Said) -> Result<(), Ended> {
        let entry = |number, epoch, seq, outcome: &str| {
            let replay = match outcome {
                "" => String::new(),
                _ => format!(r#","replay":{{"outcome":"{outcome}","samples":1}}"#),
            };
            format!(r#""channel":{number},"name":"a","epoch":{epoch},"seq":{seq}{replay}"#)
        };
        let text = match said {
            Frame(channel, epoch, first, last) => {
                let count = u32::try_from(last - first + 1).unwrap();
                let samples = vec![proto::Sample::default(); usize::try_from(count).unwrap()];
                let blocks = vec![proto::Block { samples, ..proto::Block::default() }];
                let frame =
                    proto::Frame { channel, epoch, seq: first, count, blocks, ..proto::Frame::default() };
                let payload = frame.encode_to_vec();
                return books.on_message(Message { opcode: Opcode::Binary, payload: &payload }, None);
            }
            Back => {
                books.begin_again("a");
                return Ok(());
            }
            Begin(number, epoch, seq, outcome) | Answer(number, epoch, seq, outcome) => {
                if matches!(said, Begin(..)) {
                    books.begin_again("a");
                }
                format!(r#"{{"type":"subscribed","channels":[{{{}}}]}}"#, entry(number, epoch, seq, outcome))
            }
            Channel(number, epoch, seq, outcome) => {
                format!(r#"{{"type":"channel",{}}}"#, entry(number, epoch, seq, outcome))
            }
            Gap(number, from, to) => {
                let count = to - from + 1;
                format!(
                    r#"{{"type":"gap","channel":{number},"from":{from},"to":{to},"count":{count},"reason":"slow"}}"#
                )
            }
            Live(number) => format!(r#"{{"type":"live","channel":{number},"seq":1}}"#),
            End(number) => format!(r#"{{"type":"ended","channel":{number}}}"#),
        };
        books.on_message(Message { opcode: Opcode::Text, payload: text.as_bytes() }, None)
    }

    /// One case: what it shows, what was said, the cursor then, the heads, and the account's
    /// [published, received, announced, unannounced, irregular, replayed, resets].
    type Case = (&'static str, &'static [Said], &'static str, &'static [(u32, u64)], [u64; 7]);

    #[test]
    fn books_go_on_across_lives() {
        let cases: [Case; 14] = [
            ("one life", &[Begin(3, 7, 5, ""), Frame(3, 7, 5, 8)], "7:8", &[(7, 8)], [4, 4, 0, 0, 0, 0, 0]),
            (
                "on another server, under another number",
                &[
                    Begin(3, 7, 5, ""),
                    Frame(3, 7, 5, 8),
                    Begin(9, 7, 9, "replayed"),
                    Frame(9, 7, 9, 10),
                    Live(9),
                    Frame(9, 7, 11, 11),
                ],
                "7:11",
                &[(7, 11)],
                [7, 7, 0, 0, 0, 2, 0],
            ),
            (
                "some is not kept",
                &[
                    Begin(3, 7, 5, ""),
                    Frame(3, 7, 5, 8),
                    Begin(3, 7, 9, "partial"),
                    Gap(3, 9, 10),
                    Frame(3, 7, 11, 12),
                    Live(3),
                ],
                "7:12",
                &[(7, 12)],
                [8, 6, 2, 0, 0, 2, 0],
            ),
            (
                "a hole that was not explained in time comes, and what lay behind it again",
                &[
                    Begin(3, 7, 5, ""),
                    Frame(3, 7, 5, 5),
                    Frame(3, 7, 8, 8),
                    Begin(3, 7, 6, "replayed"),
                    Frame(3, 7, 6, 8),
                    Live(3),
                ],
                "7:8",
                &[(7, 8)],
                [4, 4, 0, 0, 0, 3, 0],
            ),
            (
                "the server goes on too late",
                &[
                    Begin(3, 7, 5, ""),
                    Frame(3, 7, 5, 6),
                    Begin(3, 7, 9, "replayed"),
                    Frame(3, 7, 9, 9),
                    Live(3),
                ],
                "7:6",
                &[(7, 9)],
                [5, 3, 0, 2, 0, 1, 0],
            ),
            (
                "the server repeats what it was not asked for",
                &[
                    Begin(3, 7, 5, ""),
                    Frame(3, 7, 5, 6),
                    Begin(3, 7, 5, "replayed"),
                    Frame(3, 7, 5, 6),
                    Live(3),
                ],
                "7:6",
                &[(7, 6)],
                [2, 2, 0, 0, 1, 2, 0],
            ),
            (
                "the server has begun anew",
                &[Begin(3, 7, 5, ""), Frame(3, 7, 5, 6), Begin(3, 8, 1, "reset"), Frame(3, 8, 1, 2), Live(3)],
                "7:6,8:2",
                &[(8, 2)],
                [4, 4, 0, 0, 0, 2, 1],
            ),
            (
                "the server is behind",
                &[Begin(3, 7, 5, ""), Frame(3, 7, 5, 8), Begin(3, 7, 4, "reset"), Frame(3, 7, 4, 6), Live(3)],
                "7:6",
                &[(7, 6)],
                [7, 7, 0, 0, 0, 3, 1],
            ),
            (
                "the server lost what lay between",
                &[
                    Begin(3, 7, 5, ""),
                    Frame(3, 7, 5, 6),
                    Begin(3, 7, 10, "reset"),
                    Frame(3, 7, 10, 10),
                    Live(3),
                ],
                "7:10",
                &[(7, 10)],
                [6, 3, 0, 3, 0, 1, 1],
            ),
            (
                "the server has begun anew, and where it ended before is known",
                &[Begin(3, 7, 5, ""), Frame(3, 7, 5, 6), Begin(3, 8, 1, "reset"), Frame(3, 8, 1, 2), Live(3)],
                "7:6,8:2",
                &[(7, 6), (8, 2)],
                [4, 4, 0, 0, 0, 2, 0],
            ),
            (
                "a life that goes on from the one before",
                &[
                    Begin(3, 7, 5, ""),
                    Frame(3, 7, 5, 8),
                    Begin(3, 8, 7, "replayed"),
                    Frame(3, 8, 7, 7),
                    Live(3),
                ],
                "7:8,8:7",
                &[(8, 7)],
                [5, 5, 0, 0, 0, 1, 0],
            ),
            (
                "two servers' streams, and one that is found late",
                &[
                    Begin(3, 7, 5, ""),
                    Channel(4, 8, 1, ""),
                    Frame(3, 7, 5, 5),
                    Frame(4, 8, 1, 2),
                    Begin(4, 8, 3, "replayed"),
                    Channel(3, 7, 6, "replayed"),
                    Frame(3, 7, 6, 6),
                    Live(3),
                    Live(4),
                    End(3),
                ],
                "7:6,8:2",
                &[(7, 6), (8, 2)],
                [4, 4, 0, 0, 0, 1, 0],
            ),
            (
                "one that is told of before the answer, and has begun by then",
                &[
                    Begin(3, 7, 5, ""),
                    Frame(3, 7, 5, 5),
                    Back,
                    Channel(4, 8, 3, "reset"),
                    Frame(4, 8, 3, 4),
                    Answer(4, 8, 5, "reset"),
                    Live(4),
                    Frame(4, 8, 5, 5),
                ],
                "7:5,8:5",
                &[(7, 5), (8, 5)],
                [4, 4, 0, 0, 0, 2, 0],
            ),
            (
                "one that does not come back is missed",
                &[Begin(3, 7, 5, ""), Frame(3, 7, 5, 5), Begin(4, 8, 1, "reset"), Live(4)],
                "7:5,8:0",
                &[(7, 9), (8, 0)],
                [5, 1, 0, 4, 0, 0, 0],
            ),
        ];
        for (name, said, cursor, heads, expected) in cases {
            let mut books = Books::new(Codec::Protobuf);
            for &said in said {
                tell(&mut books, said).unwrap();
            }
            let heads = heads.iter().map(|&(epoch, head)| (stream(epoch), Head::of(head))).collect();
            let it = books.close(&heads);
            let got = [
                it.published,
                it.received,
                it.announced,
                it.unannounced,
                it.irregular,
                it.replayed,
                it.resets,
            ];
            assert_eq!(got, expected, "{name}");
            // What is missing in closed books does not come any more.
            let is_settled = it.unannounced == books.closed.unannounced;
            assert_eq!(books.is_settled(&heads), is_settled, "{name}");
            assert_eq!(books.begin_again("a"), Some(Since::One(cursor.to_owned())), "{name}");
            let named = [("a".to_owned(), cursor.to_owned())].into();
            assert_eq!(books.begin_again("*"), Some(Since::Named(named)), "{name}");
        }
        assert_eq!(Books::new(Codec::Protobuf).begin_again("a"), None, "nothing to go on with");
    }

    fn stream(epoch: u32) -> Stream {
        Stream { name: "a".to_owned(), epoch }
    }

    #[test]
    fn streams_that_begin_meanwhile_are_missed_from_their_first_sample() {
        let before = Instant::now();
        let mut books = Books::new(Codec::Protobuf);
        for said in [Begin(3, 7, 5, ""), Frame(3, 7, 5, 9)] {
            tell(&mut books, said).unwrap();
        }
        let meanwhile = Instant::now();
        for said in [Back, Channel(5, 6, 2, "reset"), Answer(4, 8, 3, "reset"), Frame(4, 8, 3, 6)] {
            tell(&mut books, said).unwrap();
        }
        let head = |seq, at| Head { seq, at_least: false, begun: Some(Begun { at, first: 1 }) };
        let kept = |seq, at, first| Head { begun: Some(Begun { at, first }), ..head(seq, at) };
        // That which ended was acknowledged up to 7, and more of it came.
        let left = Head { at_least: true, ..Head::of(7) };
        let account = |more: &[(u32, Head)]| {
            let all = more.iter().copied().chain([(7, left)]);
            let heads = all.map(|(epoch, head)| (stream(epoch), head)).collect();
            let it = books.close(&heads);
            assert_eq!(it.is_exact(), books.is_settled(&heads), "{it:?}");
            (it.published, it.received, it.unseen, it.unannounced)
        };
        let now = Instant::now();
        assert_eq!(account(&[(8, head(6, meanwhile))]), (11, 9, 2, 0), "it was away, and sees it from 3 on");
        assert_eq!(account(&[(8, head(6, now))]), (11, 9, 0, 2), "it was there, and sees it from 3 on");
        assert_eq!(account(&[(8, kept(6, meanwhile, 2))]), (10, 9, 1, 0), "a stream that began with 2");
        assert_eq!(account(&[(8, kept(6, now, 4))]), (9, 9, 0, 0), "it was told of what was kept, too");
        assert_eq!(account(&[(6, head(1, meanwhile))]), (6, 5, 1, 0), "told of before the answer");
        assert_eq!(account(&[(8, head(6, before))]), (9, 9, 0, 0), "it was there before");
        let never = [(8, head(6, meanwhile)), (9, head(4, now))];
        assert_eq!(account(&never), (15, 9, 2, 4), "never heard of");
        assert_eq!(account(&[(9, kept(14, now, 11))]), (9, 5, 0, 4), "nor of what went on behind 10");
        assert_eq!(account(&[(9, head(4, before))]), (5, 5, 0, 0), "before its time");
    }

    #[test]
    fn a_cursor_has_room_for_the_newest() {
        let mut books = Books::new(Codec::Protobuf);
        let long = "x".repeat(100);
        let told = |books: &mut Books, count: u32, epoch: u32| {
            let entry = |at| format!(r#"{{"channel":{at},"name":"{long}.{at}","epoch":{epoch},"seq":1}}"#);
            let entries: Vec<_> = (0..count).map(entry).collect();
            let text = format!(r#"{{"type":"subscribed","channels":[{}]}}"#, entries.join(","));
            books.on_message(Message { opcode: Opcode::Text, payload: text.as_bytes() }, None).unwrap();
        };
        let named = |books: &mut Books| match books.begin_again(">") {
            Some(Since::Named(named)) => named,
            other => panic!("{other:?}"),
        };
        told(&mut books, 400, 7);
        assert_eq!((named(&mut books).len(), books.left_out), (400, 0));
        // Of each name the newest life, and no life before it where there is no room for all.
        told(&mut books, 400, 4_000_000_000);
        let all = named(&mut books);
        assert!(all.values().all(|cursor| cursor == "7:0,4000000000:0"), "{all:?}");
        told(&mut books, 2_000, 4_000_000_001);
        let some = named(&mut books);
        let bytes = serde_json::to_string(&some).unwrap().len();
        assert!((SINCE_BYTES_MAX - 200..=SINCE_BYTES_MAX + 2).contains(&bytes), "{bytes}");
        assert!(some.values().all(|cursor| cursor.ends_with("4000000001:0")), "{some:?}");
        assert_eq!(
            books.left_out,
            2_800 - some.len() as u64 - some.values().map(|it| it.matches(',').count() as u64).sum::<u64>()
        );
        assert_eq!(books.close_here().left_out, books.left_out);
        // Whose cursor was left out goes on from what is kept, and that is no fault of the server's.
        let name_of = |at: u32| format!("{long}.{at}");
        let again = |books: &mut Books, at: u32| {
            let before = books.close_here();
            let text = format!(
                r#"{{"type":"channel","channel":{at},"name":"{}","epoch":4000000001,"seq":5,"replay":{{"outcome":"reset","samples":0}}}}"#,
                name_of(at)
            );
            books.on_message(Message { opcode: Opcode::Text, payload: text.as_bytes() }, None).unwrap();
            let after = books.close_here();
            (after.unseen - before.unseen, after.unannounced - before.unannounced)
        };
        let find = |is_named| (0..2_000).find(|&at| some.contains_key(&name_of(at)) == is_named).unwrap();
        assert_eq!(again(&mut books, find(false)), (4, 0));
        assert_eq!(again(&mut books, find(true)), (0, 4));
    }

    #[test]
    fn numbers_are_of_one_connection() {
        let mut books = Books::new(Codec::Protobuf);
        tell(&mut books, Begin(3, 7, 5, "")).unwrap();
        tell(&mut books, Begin(4, 7, 5, "replayed")).unwrap();
        assert!(tell(&mut books, Frame(3, 7, 5, 5)).is_err());
        tell(&mut books, Frame(4, 7, 5, 5)).unwrap();
        tell(&mut books, End(4)).unwrap();
        assert!(tell(&mut books, Frame(4, 7, 6, 6)).is_err());
        // Nobody knows where it ended: what came is what there was.
        assert_eq!((books.close(&Heads::new()).published, books.close(&Heads::new()).received), (1, 1));
    }
}
