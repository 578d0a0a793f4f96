//! The one table of counters: each line gives the field, its labels and its help, and with them the name in the
//! exposition. Docs and exposition are made from it, so neither can drift. Never does I/O, never locks, never allocates.

use std::ops::{Index, IndexMut};

use crate::close::CloseReason;
use crate::wire::control::{ErrorCode, ReplayOutcome};

/// A closed list that a counter is split by: one value for each item.
pub trait Label: Copy + 'static {
    /// Name of the label in the exposition.
    const KEY: &'static str;
    /// Values of the label, in the order of [`Label::index`].
    const VALUES: &'static [&'static str];
    /// One count for each value.
    type Counts: AsRef<[u64]> + AsMut<[u64]> + Clone + Default;

    /// Position in [`Label::VALUES`].
    fn index(self) -> usize;
}

/// A counter split by a label; `counters.flushes[FlushCause::Deadline] += 1`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct By<L: Label>(L::Counts);

impl<L: Label> Default for By<L> {
    fn default() -> Self {
        Self(L::Counts::default())
    }
}

impl<L: Label> By<L> {
    /// Adds other counts.
    pub fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.0.as_mut().iter_mut().zip(other.0.as_ref()) {
            *mine = mine.saturating_add(*theirs);
        }
    }

    /// All values of the label together.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.as_ref().iter().sum()
    }
}

impl<L: Label> Index<L> for By<L> {
    type Output = u64;

    fn index(&self, label: L) -> &u64 {
        &self.0.as_ref()[label.index()]
    }
}

impl<L: Label> IndexMut<L> for By<L> {
    fn index_mut(&mut self, label: L) -> &mut u64 {
        &mut self.0.as_mut()[label.index()]
    }
}

/// What the exposition and the docs need to know of a counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Family {
    /// Name in the exposition.
    pub name: &'static str,
    /// One sentence that says what is counted.
    pub help: &'static str,
    /// Name and values of the label, where the counter has one.
    pub label: Option<(&'static str, &'static [&'static str])>,
}

/// What a field of [`Counters`] can be: one number, or one for each value of a label.
trait Series {
    const LABEL: Option<(&'static str, &'static [&'static str])>;

    fn values(&self) -> &[u64];
    fn values_mut(&mut self) -> &mut [u64];
}

impl Series for u64 {
    const LABEL: Option<(&'static str, &'static [&'static str])> = None;

    fn values(&self) -> &[u64] {
        std::slice::from_ref(self)
    }

    fn values_mut(&mut self) -> &mut [u64] {
        std::slice::from_mut(self)
    }
}

impl<L: Label> Series for By<L> {
    const LABEL: Option<(&'static str, &'static [&'static str])> = Some((L::KEY, L::VALUES));

    fn values(&self) -> &[u64] {
        self.0.as_ref()
    }

    fn values_mut(&mut self) -> &mut [u64] {
        self.0.as_mut()
    }
}

/// Declares an enum that is a label; the name of each value stands beside it.
macro_rules! label {
    ($(#[$doc:meta])* $name:ident, $key:literal { $($(#[$variant_doc:meta])* $variant:ident = $value:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)*
        }

        impl $name {
            /// Every value, in the order of their index.
            pub const ALL: [Self; [$($value),*].len()] = [$(Self::$variant),*];

            /// The value's name in metrics and logs.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self {
                    $(Self::$variant => $value,)*
                }
            }
        }

        label!($name, $key);
    };
    ($name:ident, $key:literal) => {
        impl Label for $name {
            const KEY: &'static str = $key;
            const VALUES: &'static [&'static str] = &{
                let mut values = [""; $name::ALL.len()];
                let mut index = 0;
                while index < values.len() {
                    values[index] = $name::ALL[index].label();
                    index += 1;
                }
                values
            };
            type Counts = [u64; $name::ALL.len()];

            fn index(self) -> usize {
                self as usize
            }
        }
    };
}

label!(CloseReason, "reason");
label!(ErrorCode, "code");
label!(ReplayOutcome, "outcome");

label! {
    /// Why a request for an upgrade was refused, before there was a connection.
    HandshakeRefusal, "reason" {
        /// Every connection slot is taken: 503.
        Capacity = "capacity",
        /// The server is shutting down: 503.
        Drain = "drain",
        /// The address has all the connections that one may have: 429.
        Address = "address",
        /// The address, told by a proxy, asks for too many connections a second: 429.
        Rate = "rate",
        /// A web page from a place that may not connect: 403.
        Origin = "origin",
        /// The subject has all the connections that one may have: 429.
        Subject = "subject",
        /// No token, or one that is not taken: 401.
        Unauthorized = "unauthorized",
        /// A token that has been revoked: 403.
        Revoked = "revoked",
        /// Not a WebSocket handshake as RFC 6455 section 4.2.1 wants it: 400.
        BadRequest = "bad_request",
        /// A method other than GET: 405.
        Method = "method",
        /// No upgrade, or another version than 13: 426.
        Upgrade = "upgrade",
        /// A head over the limits of size: 414 or 431.
        TooLarge = "too_large",
        /// No whole request head within the handshake timeout.
        Timeout = "timeout",
    }
}

label! {
    /// Why a socket was closed right after its accept, before anything was read from it but a proxy's header.
    SocketRefusal, "reason" {
        /// `server.accepts_per_s_max`: 503.
        Rate = "rate",
        /// `server.accepts_per_address_per_s_max`: 429.
        AddressRate = "address_rate",
        /// Its address has too many sockets that are no WebSocket yet: 429.
        AddressSockets = "address_sockets",
        /// The worker has too many sockets that are no WebSocket yet: 503.
        Sockets = "sockets",
        /// A trusted proxy sent no whole and valid PROXY header in time.
        ProxyHeader = "proxy_header",
    }
}

label! {
    /// Why a TLS handshake failed, before there was a request.
    TlsFailure, "reason" {
        /// Not whole within the handshake timeout.
        Timeout = "timeout",
        /// The socket ended first.
        Gone = "gone",
        /// Not TLS, such as plain HTTP.
        NotTls = "not_tls",
        /// No version or cipher suite in common.
        Incompatible = "incompatible",
        /// No application protocol in common: the client wants another than HTTP/1.1.
        Alpn = "alpn",
        /// The client has no certificate, and `tls.client_certificate_required`.
        NoCertificate = "no_certificate",
        /// The client's certificate is not trusted, or not valid now.
        Certificate = "certificate",
        /// The client's certificate has no common name that can be used.
        CertificateName = "certificate_name",
        /// The client refused: as a rule, it does not trust the server's certificate.
        Alert = "alert",
        /// Anything else.
        Other = "other",
    }
}

label! {
    /// Why a batch was sealed.
    FlushCause, "cause" {
        /// Its channel was quiet: the first sample goes out at once.
        LeadingEdge = "leading_edge",
        /// The flush window of its first sample ended.
        Deadline = "deadline",
        /// The next publish would have passed the byte limit.
        Bytes = "bytes",
        /// The next publish would have passed the sample limit.
        Samples = "samples",
        /// A subscription with a delay of zero.
        Immediate = "immediate",
        /// A subscription began or changed, which must not see the samples before it.
        Join = "join",
        /// The server is shutting down.
        Drain = "drain",
    }
}

label! {
    /// Why a sample that was queued for a subscriber was dropped.
    DropReason, "reason" {
        /// The outbox was full.
        Overflow = "overflow",
        /// It waited longer than the subscription's age limit.
        Age = "age",
        /// All outboxes together took more than `outbox.total_bytes_max`.
        Memory = "memory",
        /// Its connection or subscription ended first.
        Ended = "ended",
    }
}

label! {
    /// Why a message of the broker on a channel's topic was not handed on.
    RelayRefusal, "reason" {
        /// It is no frame of a server of ours, or not a sound one.
        Malformed = "malformed",
        /// This server has sent it, in this life or in one that its history goes on from.
        Own = "own",
        /// It was here before.
        Duplicate = "duplicate",
        /// There is no room for one more stream or name.
        Full = "full",
    }
}

label! {
    /// Why a subscription that wants fewer samples did not get this one.
    ConflationCause, "cause" {
        /// Policy `latest`: a newer sample took its place.
        Latest = "latest",
        /// `max_rate_hz`.
        Rate = "rate",
    }
}

label! {
    /// Why a frame of the history was let go.
    HistoryEviction, "cause" {
        /// It was older than its channel's age limit.
        Age = "age",
        /// Its channel had more bytes than it may.
        Bytes = "bytes",
        /// Its channel had more samples than it may.
        Samples = "samples",
        /// All channels together had more than `history.total_bytes_max`.
        Ceiling = "ceiling",
    }
}

/// Declares [`Counters`] and its table: field, optional label, help.
macro_rules! counters {
    ($($field:ident $(by $label:ty)? = $help:literal;)*) => {
        /// Everything that one worker counts, from its start. Plain fields: the worker is their only writer.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct Counters {
            $(#[doc = $help] pub $field: series!($($label)?),)*
        }

        impl Counters {
            /// The table, in the order of the fields.
            pub const FAMILIES: &'static [Family] = &[
                $(Family {
                    name: concat!("tidewire_", stringify!($field), "_total"),
                    help: $help,
                    label: <series!($($label)?) as Series>::LABEL,
                },)*
            ];

            /// Each family with its values: one, or one for each value of its label.
            pub fn families(&self) -> impl Iterator<Item = (&'static Family, &[u64])> {
                Self::FAMILIES.iter().zip([$(self.$field.values()),*])
            }

            /// Becomes what was counted between two copies of the same counters.
            pub fn set_to_interval(&mut self, earlier: &Self, later: &Self) {
                $(for ((mine, earlier), later) in
                    self.$field.values_mut().iter_mut().zip(earlier.$field.values()).zip(later.$field.values())
                {
                    *mine = later.saturating_sub(*earlier);
                })*
            }

            /// Adds the counts of another worker.
            pub fn merge(&mut self, other: &Self) {
                $(for (mine, theirs) in self.$field.values_mut().iter_mut().zip(other.$field.values()) {
                    *mine = mine.saturating_add(*theirs);
                })*
            }
        }
    };
}

macro_rules! series {
    () => { u64 };
    ($label:ty) => { By<$label> };
}

counters! {
    connections_opened = "Connections that were upgraded to WebSocket.";
    connections_closed by CloseReason = "Connections that ended, by reason.";
    sockets_refused by SocketRefusal = "Sockets that were closed before a request was read, by reason.";
    forwarded_unreadable = "Requests of trusted proxies that did not tell their client in X-Forwarded-For.";
    handshakes_refused by HandshakeRefusal = "Requests for an upgrade that were refused, by reason.";
    tls_handshakes = "TLS handshakes that were completed.";
    tls_handshakes_failed by TlsFailure = "TLS handshakes that failed, by reason.";
    bytes_received = "Bytes of WebSocket messages that were received, headers left out.";
    messages_received = "WebSocket text and binary messages that were received, valid or not.";
    control_messages_received = "Control requests that were received and understood.";
    control_messages_sent = "Control messages that were put into an outbox.";
    publishes_received = "Publish messages that were accepted.";
    publishes_forwarded = "Publish messages that were handed to the channel's home worker.";
    samples_received = "Samples that were accepted.";
    samples_refused = "Samples that were not taken because their publisher was above its rate limit.";
    samples_without_source_time = "Samples accepted without a source time.";
    samples_source_ahead = "Samples accepted with a source time after their received time: clocks that disagree.";
    publisher_pauses = "Times that a publisher's socket was left unread because an inbox between workers was full.";
    flushes by FlushCause = "Batches that were sealed, by cause.";
    frames_sealed = "Frames that were encoded: one for each delivery class of a flush.";
    frame_bytes_sealed = "Bytes of the frames that were encoded, WebSocket headers included.";
    frames_lost_between_workers = "Frames that a full inbox of another worker did not take.";
    history_frames_refused = "Frames that the store of the history had no room for: they are not safe on the disk.";
    relays_sent = "Messages with samples that were sent to the broker for other servers.";
    relays_received = "Messages with new samples of other servers that came from the broker.";
    samples_relayed = "Samples of other servers that came from the broker.";
    samples_missed_from_broker = "Samples of other servers that did not come: found by their sequences.";
    relays_refused by RelayRefusal = "Messages on the topics of channels, and names in messages about who is on channels, that were not taken, by reason.";
    node_messages_refused = "Messages on the topic that all servers read that were none.";
    topics_refused = "Times that the topic of a channel could not be subscribed to: what other servers publish there does not come.";
    samples_after_drain = "Samples that came when the server was ending, and were not taken; nobody was told that they were.";
    frames_delivered = "Frames that were handed to the kernel, once for each receiver.";
    samples_delivered = "Samples that were handed to the kernel, once for each receiver.";
    samples_dropped by DropReason = "Samples lost to a subscriber, by reason, once for each receiver.";
    samples_conflated by ConflationCause = "Samples left out because the subscription asked for fewer, by cause, once for each receiver.";
    history_evicted by HistoryEviction = "Frames of the history that were let go, by cause.";
    replays by ReplayOutcome = "Channels that a subscription began with samples of the past, by outcome.";
    samples_replayed = "Samples of the past that were put into an outbox, once for each receiver.";
    bytes_replayed = "Bytes of their frames.";
    gaps_sent = "Gap notices that were put into an outbox.";
    heartbeats_sent = "Heartbeats that were put into an outbox.";
    presence_changes = "Samples on $presence channels that said who had come or gone, or how many there were.";
    errors_sent by ErrorCode = "Error messages that were put into an outbox, by code.";
    bytes_written = "Bytes that the kernel took from outboxes.";
    writes = "Writes to a connection: a system call each, or one for each 16 KiB with TLS.";
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    /// The values of a label are unique, fit for the exposition and indexed in order.
    fn check_label<L: Label>(all: &[L]) {
        assert_eq!(all.len(), L::VALUES.len());
        assert_eq!(all.len(), L::Counts::default().as_ref().len());
        for (index, label) in all.iter().enumerate() {
            assert_eq!(label.index(), index, "{}", L::VALUES[index]);
        }
        let unique: HashSet<_> = L::VALUES.iter().collect();
        assert_eq!(unique.len(), all.len());
        for text in L::VALUES.iter().chain([&L::KEY]) {
            assert!(
                !text.is_empty() && text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'))
            );
        }
    }

    #[test]
    fn labels_are_closed_lists_in_order() {
        check_label(&CloseReason::ALL);
        check_label(&ErrorCode::ALL);
        check_label(&SocketRefusal::ALL);
        check_label(&HandshakeRefusal::ALL);
        check_label(&TlsFailure::ALL);
        check_label(&FlushCause::ALL);
        check_label(&DropReason::ALL);
        check_label(&RelayRefusal::ALL);
        check_label(&ConflationCause::ALL);
        check_label(&HistoryEviction::ALL);
        check_label(&ReplayOutcome::ALL);
    }

    #[test]
    fn the_table_has_unique_names_and_sentences_as_help() {
        let names: HashSet<_> = Counters::FAMILIES.iter().map(|family| family.name).collect();
        assert_eq!(names.len(), Counters::FAMILIES.len());
        for family in Counters::FAMILIES {
            assert!(family.help.ends_with('.') && !family.help.contains(['\n', '\\']), "{}", family.name);
        }
    }

    #[test]
    fn a_count_is_found_under_its_label_and_merges_add() {
        let mut counters = Counters::default();
        counters.writes += 3;
        counters.flushes[FlushCause::Deadline] += 2;
        counters.connections_closed[CloseReason::Rate] += 1;
        let mut merged = counters.clone();
        merged.merge(&counters);

        assert_eq!(merged.writes, 6);
        assert_eq!(merged.flushes[FlushCause::Deadline], 4);
        assert_eq!(merged.flushes.total(), 4);
        let (family, values) = merged
            .families()
            .find(|(family, _)| family.name == "tidewire_connections_closed_total")
            .expect("it is in the table");
        let (_, labels) = family.label.expect("it is split by reason");
        let counted: Vec<_> = labels.iter().zip(values).filter(|(_, value)| **value > 0).collect();
        assert_eq!(counted, [(&"rate", &2)]);
    }
}
