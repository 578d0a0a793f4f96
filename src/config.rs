//! The typed configuration: every limit with its name, unit, default, range and reason, grouped by the stage that
//! enforces it. Each is declared once, below; the file, the environment, `--set`, `config --print-default` and the
//! reference in `docs/` follow from that. Never reads a clock, a file or the environment; `load.rs` builds it.

use std::net::SocketAddr;
use std::time::Duration;

mod broker_url;
mod history;
mod log;
mod networks;
mod origins;
mod path;
mod print;
mod problem;
mod relation;
mod rule;
mod secret;
mod setting;

pub mod file;
pub mod load;

pub use broker_url::BrokerUrl;
pub use history::{Bounds, Exceptions};
pub use log::{LogFilter, LogFilterError, LogFormat};
pub use networks::{Network, NetworkError, Networks};
pub use origins::{Origin, OriginError, Origins, is_local};
pub use path::{FilePath, FilePathError};
pub use print::{default_file, reference};
pub use secret::Secret;
pub use setting::{Key, VARIABLE_PREFIX};

use setting::{Any, Setting, settings, store};

/// The longest duration that can be set, in milliseconds: a week. Keeps every deadline far from overflow.
const WEEK: u64 = 7 * 24 * 60 * 60 * 1_000;

/// The most samples that any limit allows in one message or frame.
const SAMPLES: u64 = 1_000_000;

/// Connections on a channel that are told one by one; of more than that only the count. As many as a person looks through, and
/// an answer of 16 KiB with users of usual length.
pub const PRESENCE_MEMBERS_MAX: usize = 100;

/// The largest message or frame that any limit allows, in bytes.
const MESSAGE: u64 = 64 << 20;

/// Fewer bytes than the hash has are easier to guess (RFC 7518 section 3.2).
const SECRET_BYTES_MIN: usize = 32;

settings! {
    /// Everything that `tidewire serve` can be told.
    Config {
        /// Address of the listener for WebSocket and HTTP.
        listen: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 9400)), "", Any;
        /// Threads that own connections and channels. Default: the machine's cores.
        workers: usize = std::thread::available_parallelism().map_or(1, |cores| cores.get().min(1_024)),
            "threads", 1..=1_024, varies "the machine's cores";
        /// Whether an address that others can reach may be served without any key: then everybody may do everything.
        insecure_open: bool = false, "", Any;
        /// Whether `/echo` is served, for conformance suites. Off: it is a reflector.
        enable_echo: bool = false, "", Any;
        /// Whether the host's telemetry is published on `host.NAME.*`.
        host_telemetry: bool = true, "", Any;
        /// Samples per second of each channel of the host's telemetry.
        host_telemetry_hz: f64 = 10.0, "samples/s", 0.01..=1_000.0;
        /// How log lines look on standard error: `text` for people, `json` for collectors.
        log_format: LogFormat = LogFormat::Text, "", Any;
        /// Which events are logged.
        log_filter: LogFilter = LogFilter::usual(), "", Any;
    }

    /// Where and when connections are refused and ended.
    server: ServerLimits {
        /// Connections at once; one more gets HTTP 503 with `Retry-After`.
        connections_max: usize = 10_000, "connections", 1..=10_000_000;
        /// Connections at once of one address, or of one network of 64 bits with IPv6; one more gets HTTP 429. Behind a proxy
        /// the address is the client's, if `trusted_proxies` names the proxy; otherwise all clients have the proxy's. Loopback
        /// addresses are not counted; 0 is no limit, since many may share an address.
        connections_per_address_max: usize = 0, "connections", 0..=10_000_000;
        /// Connections at once of one subject of tokens or certificates; one more gets HTTP 429, or 1013 after the upgrade. So what a
        /// subject can do is that many times what a connection can. The default is a tenth of `connections_max`; 0 is no limit.
        connections_per_subject_max: usize = 1_000, "connections", 0..=10_000_000;
        /// New sockets per second; one more gets HTTP 503 with `Retry-After` and is closed. 0 is no limit: what is right depends
        /// on the cores and on TLS. A core takes some 10,000 plain connections a second, and does nothing else then.
        accepts_per_s_max: u32 = 0, "sockets/s", 0..=1_000_000;
        /// New sockets per second of one address (see `connections_per_address_max`); one more gets HTTP 429 with `Retry-After` and
        /// is closed. The default is far more than people behind one address need, and less than a hundredth of a core. 0 is no
        /// limit. A proxy's own sockets are not counted, if `trusted_proxies` names it: each request for a connection counts
        /// for its client.
        accepts_per_address_per_s_max: u32 = 100, "sockets/s", 0..=1_000_000;
        /// Networks of proxies, joined by commas: from them alone the address of a client is believed, in `X-Forwarded-For` or, with
        /// `proxy_protocol`, in a PROXY header. The client's is the rightmost address of `X-Forwarded-For` that is not one of
        /// these. If it cannot be read, or is not there, the client has the proxy's own address and shares its limits.
        trusted_proxies: Networks = Networks::default(), "", Any;
        /// Whether each socket of `trusted_proxies` begins with a header of the PROXY protocol, version 2, within
        /// `first_byte_timeout_ms`; without one it is closed. Health checks of a proxy have to send one, too (command LOCAL).
        proxy_protocol: bool = false, "", Any;
        /// Web pages that may connect, by origin (RFC 6454): `same` are those that came from the host that they connect to,
        /// `*` are all, and a list is compared exactly. Others get HTTP 403. Without keys on a loopback address, the host has
        /// to be `localhost` or an address, or of the list: any other name may have been made to point here (DNS rebinding).
        origins: Origins = Origins::Same, "", Any;
        /// Whether a client without an `Origin` header gets HTTP 403, too. Programs send none; browsers always do.
        origin_required: bool = false, "", Any;
        /// From accept of the TCP connection to the end of the HTTP request head; then the socket is closed.
        handshake_timeout: Duration = Duration::from_secs(10), "ms", 1..=WEEK;
        /// From accept of the TCP connection to the first byte of the HTTP request; then the socket is closed. Shorter
        /// than `handshake_timeout`, since a socket that never says anything is no slow client.
        first_byte_timeout: Duration = Duration::from_secs(5), "ms", 1..=WEEK;
        /// How long a socket may speak plain HTTP before it has to connect anew: one that asks and does not read must not stay.
        plain_timeout: Duration = Duration::from_secs(120), "ms", 1..=WEEK;
        /// How long a connection may be without subscription and advertised channel before it is closed with 4408;
        /// zero is off.
        idle_timeout: Duration = Duration::from_secs(120), "ms", 0..=WEEK;
        /// Time between WebSocket pings to a connection.
        ping_interval: Duration = Duration::from_secs(25), "ms", 1..=WEEK;
        /// Time to answer a ping; then 4408. A ghost is gone within `ping_interval + pong_timeout`.
        pong_timeout: Duration = Duration::from_secs(10), "ms", 1..=WEEK;
        /// How long the server waits for the peer to answer its close frame and end the socket.
        close_timeout: Duration = Duration::from_secs(2), "ms", 0..=WEEK;
        /// How long a drain may take before connections are cut.
        drain_timeout: Duration = Duration::from_secs(10), "ms", 0..=WEEK;
    }

    /// Who is let in, by tokens (JWT, RFC 7519). Without a key the server is open.
    auth: AuthSettings {
        /// Keys that tokens are signed with: a JWK set (RFC 7517), or public keys as PEM. Read again when it changes. A file
        /// with a secret in it must be readable by its owner only.
        keys_file: FilePath = FilePath::default(), "", Any;
        /// A key for HS256, beside those of the file. Only from the environment or a configuration file that its owner
        /// alone can read.
        secret: Secret = Secret::default(), "bytes", SECRET_BYTES_MIN;
        /// Who has to have issued a token (`iss`), where its key does not say so.
        issuer: Option<String> = None, "", Any;
        /// Whom a token has to be for (`aud`), where its key does not say so. A token that is for somebody is refused where
        /// neither says who this server is.
        audience: Option<String> = None, "", Any;
        /// By how much the clocks of issuer and server may differ.
        leeway: Duration = Duration::from_secs(5), "ms", 0..=10 * 60 * 1_000;
        /// How far away the end of a token (`exp`) may be: a stolen one is of no use for longer.
        token_lifetime_max: Duration = Duration::from_secs(24 * 60 * 60), "ms", 1_000..=366 * 24 * 60 * 60 * 1_000;
        /// Whether a connection may bring its token in a first message instead of the handshake, which is all that a browser
        /// can do without showing it to proxies. Such connections may have a quarter of `server.connections_max`.
        first_message: bool = true, "", Any;
        /// From the upgrade to that message; then 4408.
        first_message_timeout: Duration = Duration::from_secs(10), "ms", 1..=WEEK;
        /// How long before the end of its token a connection is told (`token_expiring`).
        expiry_warning: Duration = Duration::from_secs(60), "ms", 0..=WEEK;
        /// What a client certificate gives the right to, as the claim `tidewire` of a token says it. Its common name is the
        /// subject.
        certificate_rights: String = r#"{"subscribe":[">"],"publish":[">"]}"#.into(), "", Any;
        /// Cookie that may carry the token. With it, an `Origin` header is needed.
        cookie: Option<String> = None, "", Any;
        /// Whether `?token=` may carry it. Off: addresses end up in logs of proxies and in histories of browsers.
        query: bool = false, "", Any;
    }

    /// Pages for those who run the server: metrics, lists, revocation.
    admin: AdminSettings {
        /// A listener of its own for them. Without one they stand beside the stream.
        listen: Option<SocketAddr> = None, "", Any;
        /// Who sends this as `Authorization: Bearer` may see them, as may a token with the right `admin` for all channels.
        /// One of both is needed once there are keys, or where others can reach the listener. From the environment or a file.
        token: Secret = Secret::default(), "bytes", SECRET_BYTES_MIN;
    }

    /// TLS (`wss` and `https`, versions 1.2 and 1.3): on where a certificate is named. Every listener speaks it then, and
    /// nothing else. Files that change are read again within seconds, for new connections.
    tls: TlsSettings {
        /// The server's certificate, with those between it and its CA behind it (PEM).
        certificate_file: FilePath = FilePath::default(), "", Any;
        /// The private key that belongs to it (PEM). Nobody but its owner may be able to read or write the file.
        key_file: FilePath = FilePath::default(), "", Any;
        /// Certificates of the CAs whose clients are let in (PEM). Then clients are asked for a certificate, and its common
        /// name is who they are.
        client_ca_file: FilePath = FilePath::default(), "", Any;
        /// Whether a client without a certificate is refused.
        client_certificate_required: bool = false, "", Any;
        /// For trials, in place of the two files: a certificate that this server makes for itself at each start. It is
        /// written here, for clients to trust; its key stays in memory.
        self_signed_file: FilePath = FilePath::default(), "", Any;
    }

    /// The way to other nodes. Without a broker this is the only one.
    broker: BrokerConfig {
        /// The broker: `redis://`, `redis-streams://`, `nats://` or `jetstream://`, each with TLS as `rediss://`,
        /// `rediss-streams://`, `nats+tls://` and `jetstream+tls://`, then `[USER[:PASSWORD]@]HOST[:PORT]`. Several hosts are
        /// joined by commas and tried in turn. With a password in it only from the environment or a configuration file that its
        /// owner alone can read.
        url: BrokerUrl = BrokerUrl::default(), "", Any;
        /// A file with the password of that user, which its owner alone can read. Read for each connection.
        password_file: FilePath = FilePath::default(), "", Any;
        /// NATS only: a file with a JWT and the seed of an NKEY, which its owner alone can read. Read for each connection.
        credentials_file: FilePath = FilePath::default(), "", Any;
        /// With TLS: certificates of the CAs whose broker is trusted (PEM). By default those that this machine trusts.
        ca_file: FilePath = FilePath::default(), "", Any;
        /// What the names begin with that the broker sees, so that several systems can share one: nodes with the same are of one
        /// system.
        prefix: String = "tidewire".into(), "", Any;
        /// The longest that connecting may take, and that the broker may leave a question without an answer; then it is tried
        /// anew. It is asked twice in that time, so that one that is dead or cut off is known as quickly.
        timeout: Duration = Duration::from_secs(5), "ms", 100..=60_000;
        /// What may wait to be published while the broker is slow or away. Above, the oldest is dropped, and counted. The default
        /// is some seconds of what a busy node publishes.
        outgoing_bytes_max: usize = 16 << 20, "bytes", 1 << 20..=4 << 30;
        /// What may wait here of what the broker sends. Above, what the broker keeps stays with it until there is room, and of
        /// the rest the oldest is dropped, and counted.
        incoming_bytes_max: usize = 32 << 20, "bytes", 1 << 20..=4 << 30;
        /// How long Streams and JetStream keep messages: how long a client may be away and resume with another node, or a node
        /// without the broker, and nothing is lost.
        keep: Duration = Duration::from_secs(60), "ms", 1_000..=WEEK;
        /// About how much of each channel Redis Streams keep, and how much a node reads of a channel that it begins to follow.
        keep_channel_bytes: usize = 1 << 20, "bytes", 4 << 10..=1 << 30;
        /// How much JetStream keeps of all channels together. A stream that is there already keeps its own limits.
        keep_total_bytes: u64 = 1 << 30, "bytes", 1 << 20..=1 << 44;
    }

    /// What one peer may send.
    inbound: InboundLimits {
        /// Largest message, in bytes of payload: exactly that many are taken, one more is 1009. The least lets a
        /// `subscribe` with the longest name pass.
        message_bytes_max: usize = 64 << 10, "bytes", 1_024..=MESSAGE;
        /// Most samples in one publish: bounds what a message of tiny samples costs.
        message_samples_max: usize = 4_096, "samples", 1..=SAMPLES;
        /// From the first byte of a message to its last; then 1008. Stops a dribble of single bytes.
        message_timeout: Duration = Duration::from_secs(10), "ms", 1..=WEEK;
        /// Publishes per second of a connection, averaged over a second; 0 is no limit. Above: `rate_limited`.
        publish_messages_per_s_max: u32 = 200_000, "messages/s", 0..=u64::from(u32::MAX);
        /// Published bytes per second of a connection; 0 is no limit. Above: `rate_limited`.
        publish_bytes_per_s_max: u64 = 256 << 20, "bytes/s", 0..=1 << 40;
        /// Published samples per second of a connection; 0 is no limit. Above: `rate_limited`. The default is more than a core
        /// takes in: only what is cheap in bytes and dear in samples meets it.
        publish_samples_per_s_max: u64 = 10_000_000, "samples/s", 0..=1 << 40;
        /// How long a peer may stay above its publish rate before 4429.
        rate_grace: Duration = Duration::from_secs(5), "ms", 0..=WEEK;
        /// Control messages and WebSocket control frames per second of a connection. Above: `rate_limited`.
        control_messages_per_s_max: u32 = 1_000, "messages/s", 1..=1_000_000;
        /// Invalid messages within `invalid_interval` before 1008.
        invalid_messages_max: u32 = 10, "messages", 1..=1_000_000;
        /// See `invalid_messages_max`.
        invalid_interval: Duration = Duration::from_secs(10), "ms", 1..=WEEK;
    }

    /// What channels and subscriptions may cost.
    channel: ChannelLimits {
        /// Subscriptions (names and patterns) of one connection.
        subscriptions_max: usize = 256, "subscriptions", 1..=100_000;
        /// Channels that one connection is subscribed to, by name or pattern; as many may be advertised.
        channels_max: usize = 1_024, "channels", 1..=100_000;
        /// Channels of the whole server.
        channels_total_max: usize = 100_000, "channels", 1..=10_000_000;
        /// Bytes of a name or pattern.
        channel_name_bytes_max: usize = 255, "bytes", 16..=512;
        /// Delivery classes (codec, delay, rate) of one channel: each costs an encode per frame.
        classes_max: usize = 32, "classes", 1..=1_024;
        /// How long a channel without publisher and subscriber keeps its number, epoch and sequence.
        linger: Duration = Duration::from_secs(60), "ms", 0..=WEEK;
    }

    /// When a batch is sealed.
    batch: BatchLimits {
        /// The flush window: the longest that a sample waits in a batch, where a subscription does not ask otherwise.
        /// Zero sends every publish at once.
        window: Duration = Duration::from_millis(10), "ms", 0..=WEEK;
        /// The widest that the window gets under overload.
        window_max: Duration = Duration::from_millis(100), "ms", 0..=WEEK;
        /// A batch is sealed before it passes this: a size that browsers take well and that fills a write.
        frame_bytes_max: usize = 16 << 10, "bytes", 256..=MESSAGE;
        /// A batch is sealed at this many samples.
        frame_samples_max: usize = 4_096, "samples", 1..=SAMPLES;
    }

    /// What is kept of each channel for those who come back (`since`, `last`, `last_ms`). Of a channel with a history, frames are made
    /// also while nobody receives them.
    history: HistorySettings {
        /// Bytes of frames that are kept of a channel, with some 120 for each frame itself; the newest frame stays, however large. 0 keeps
        /// nothing of any channel that `channels` does not name. The default is what 10 s have at 25 kB/s.
        bytes_max: usize = 256 << 10, "bytes", 0..=1 << 30;
        /// Age at which a frame is let go, the newest aside. The default is longer than a client takes to find that its connection
        /// is dead and to come back. Frames that were put together for a replay may be an eighth older.
        age_max: Duration = Duration::from_secs(10), "ms", 1..=WEEK;
        /// Samples that are kept of a channel: tiny ones are small in `bytes_max`, and large in the JSON of a replay, 64 bytes or
        /// more each. The default is 10 s of 2,000 samples a second.
        samples_max: u64 = 20_000, "samples", 1..=1 << 30;
        /// Bytes that all channels keep together; each worker has its share of it. Over it the channels that nobody published to or
        /// resumed for longest lose theirs first. The default holds `bytes_max` of 1,000 busy channels.
        total_bytes_max: usize = 256 << 20, "bytes", 0..=1 << 40;
        /// Channels with other bounds, by pattern; the first that matches counts. `off` keeps nothing.
        channels: Exceptions = Exceptions::default(), "", Any;
        /// Folder in which the history outlasts the server, and an `ack` waits until its samples are safe there. Without one it is in memory
        /// alone. Made if it is not there; no two servers may share one.
        dir: FilePath = FilePath::default(), "", Any;
        /// The longest that a frame waits to be written to `dir`; all that came meanwhile is synced at once. What is lost with the power is
        /// what was sealed within this and one sync. Shorter costs syncs, which are what a disk has least of.
        commit_interval: Duration = Duration::from_millis(100), "ms", 1..=60_000;
        /// Bytes of frames in memory that wait to be safe in `dir`; more are not stored. The default is what comes within a
        /// second at 50 MB/s: a disk that is slow for longer is too slow.
        in_flight_bytes_max: usize = 64 << 20, "bytes", 1 << 20..=1 << 34;
        /// Bytes that all files of `dir` take. A channel's share is what it keeps; if that is too much for all, the oldest goes,
        /// whosever it is. Up to half of it may wait to be given back.
        dir_bytes_max: u64 = 1 << 30, "bytes", 16 << 20..=1 << 44;
    }

    /// What one slow reader may cost, and how it is told.
    outbox: OutboxLimits {
        /// Bytes of data frames that wait for one connection. Worst case for the server: `connections_max` times this.
        data_bytes_max: usize = 1 << 20, "bytes", 1_024..=1 << 30;
        /// Bytes that all outboxes together take, each frame counted once for each worker that holds it; each worker has its share
        /// of it (the buffer of a frame may be twice the frame), and at least `data_bytes_max`. Over it the oldest frames go, from every outbox, as gaps with reason `slow`
        /// (policy `disconnect`: 4413). The default is everything that is sealed within the default `max_age_ms` at 2 Gbit/s.
        /// Control messages have half of it; over that the connections with the most of them end with 4413, and ten times a second
        /// it is looked at. Not in it: 16 bytes for each frame that waits for a connection.
        total_bytes_max: usize = 256 << 20, "bytes", 1 << 20..=1 << 40;
        /// Data frames that wait for one connection.
        data_frames_max: usize = 1_024, "frames", 1..=1_000_000;
        /// Age at which a waiting frame becomes a gap, where a subscription does not ask otherwise.
        max_age: Duration = Duration::from_secs(1), "ms", 1..=WEEK;
        /// Bytes of control messages that wait; one more ends the connection with 4413.
        control_bytes_max: usize = 1 << 20, "bytes", 1_024..=1 << 30;
        /// How long a write may make no progress; then 4413.
        write_deadline: Duration = Duration::from_secs(10), "ms", 1..=WEEK;
        /// `TCP_NOTSENT_LOWAT`: unsent bytes in the kernel, where they can only get old.
        notsent_lowat_bytes: u32 = 16 << 10, "bytes", 1..=1 << 30;
        /// Silence before a `heartbeat`.
        heartbeat_interval: Duration = Duration::from_secs(10), "ms", 1..=WEEK;
    }
}

impl TlsSettings {
    /// Whether the server speaks TLS.
    #[must_use]
    pub const fn is_on(&self) -> bool {
        self.certificate_file.is_set() || self.self_signed_file.is_set()
    }
}

impl Config {
    /// Whether nobody has to say who they are: there is neither a key for tokens nor a CA of clients.
    #[must_use]
    pub fn is_open(&self) -> bool {
        !self.has_keys() && !self.tls.client_ca_file.is_set()
    }

    /// The longest user, in bytes: `$user.ID` is a channel name.
    #[must_use]
    pub const fn user_bytes_max(&self) -> usize {
        self.channel.channel_name_bytes_max - "$user.".len()
    }

    /// Whether there are keys for tokens.
    #[must_use]
    pub fn has_keys(&self) -> bool {
        self.auth.keys_file.is_set() || !self.auth.secret.is_empty()
    }

    /// The largest data frame that these limits let arise, in bytes. An outbox that cannot hold it would turn it into a
    /// gap for every reader.
    ///
    /// A frame is one batch within its limits, or one message that is larger than a batch. It is largest as JSON: a
    /// control character in a text takes six bytes instead of one, a number less than that; the names and braces of a
    /// sample and its entry in `seq_deltas` take less than 64 bytes, where the smallest sample of protobuf takes four.
    #[must_use]
    pub fn frame_bytes_largest(&self) -> usize {
        const VALUE_GROWTH: usize = 6;
        const SAMPLE_BYTES: usize = 64;
        const ENVELOPE_BYTES: usize = 1_024;
        let bytes = self.inbound.message_bytes_max.max(self.batch.frame_bytes_max);
        let samples = self.inbound.message_samples_max.max(self.batch.frame_samples_max);
        bytes
            .saturating_mul(VALUE_GROWTH)
            .saturating_add(samples.min(bytes / 4).saturating_mul(SAMPLE_BYTES))
            .saturating_add(ENVELOPE_BYTES)
    }

    /// The largest control message that these limits let arise, in bytes: `subscribed`, `unsubscribed` or `stats` with
    /// every channel of a connection, or `presence` with every member. An outbox that cannot hold it would end a connection for a fair request.
    #[must_use]
    pub fn control_bytes_largest(&self) -> usize {
        /// The numbers of a channel or ledger with their names, at full width.
        const ENTRY_BYTES: usize = 256;
        const ENVELOPE_BYTES: usize = 1_024;
        // A user is no longer than a name.
        self.channel
            .channel_name_bytes_max
            .saturating_add(ENTRY_BYTES)
            .saturating_mul(self.channel.channels_max.max(PRESENCE_MEMBERS_MAX))
            .saturating_add(ENVELOPE_BYTES)
    }
}
