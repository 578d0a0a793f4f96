//! TLS: what is let in, what is refused and how, and certificates that change. Certificates are made anew for each test.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use prost::Message as _;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use serde_json::{Value, json};
use tidewire::client::{Client, Trust};
use tidewire::config::Config;
use tidewire::wire::Codec;
use tidewire::wire::proto::{Block, Frame, Publish, Sample, sample};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use x509_cert::der::pem::{LineEnding, encode_string};

use crate::support::{DEADLINE, Process, TestServer};

/// A certificate and its key.
struct Pair {
    certificate: CertificateDer<'static>,
    key: KeyPair,
}

impl Pair {
    fn certificate_pem(&self) -> String {
        encode_string("CERTIFICATE", LineEnding::LF, &self.certificate).unwrap()
    }

    fn key_pem(&self) -> String {
        encode_string("PRIVATE KEY", LineEnding::LF, self.key.serialized_der()).unwrap()
    }
}

/// A CA.
struct Authority {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().der().clone();
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    fn pem(&self) -> String {
        encode_string("CERTIFICATE", LineEnding::LF, &self.certificate).unwrap()
    }

    fn sign(&self, change: impl FnOnce(&mut CertificateParams)) -> Pair {
        let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        Pair { certificate, key }
    }

    /// A certificate for a server at 127.0.0.1.
    fn server(&self) -> Pair {
        self.sign(|_| {})
    }

    /// A certificate of this client.
    fn client(&self, name: &str) -> Pair {
        self.sign(|params| params.distinguished_name.push(DnType::CommonName, name))
    }

    /// The settings of a client that trusts it.
    fn trusting(&self) -> ClientConfig {
        self.client_config(&[&rustls::version::TLS13, &rustls::version::TLS12], None)
    }

    /// The same for a client that shows a certificate.
    fn trusting_as(&self, pair: Option<&Pair>) -> ClientConfig {
        self.client_config(&[&rustls::version::TLS13], pair)
    }

    fn client_config(
        &self,
        versions: &[&'static SupportedProtocolVersion],
        pair: Option<&Pair>,
    ) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots);
        match pair {
            None => builder.with_no_client_auth(),
            Some(Pair { certificate, key }) => {
                let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
                builder.with_client_auth_cert(vec![certificate.clone()], key).unwrap()
            }
        }
    }
}

/// The files of a server.
struct Files {
    directory: tempfile::TempDir,
}

impl Files {
    fn new(pair: &Pair) -> Self {
        let files = Self { directory: tempfile::tempdir().unwrap() };
        files.put(pair);
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes a file that only its owner can read.
    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, text).unwrap();
        set_mode(&path, 0o600);
        path
    }

    fn put(&self, pair: &Pair) {
        self.write("cert.pem", &pair.certificate_pem());
        self.write("key.pem", &pair.key_pem());
    }

    fn set(&self, config: &mut Config) {
        config.tls.certificate_file = text(&self.path("cert.pem")).parse().unwrap();
        config.tls.key_file = text(&self.path("key.pem")).parse().unwrap();
    }

    /// The settings as `--set` takes them.
    fn settings(&self) -> [String; 2] {
        [("certificate_file", "cert.pem"), ("key_file", "key.pem")]
            .map(|(key, name)| format!("tls.{key}={}", text(&self.path(name))))
    }
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// What takes longer hangs.
async fn soon<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, work).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

async fn shake_hands(stream: TcpStream, config: &ClientConfig) -> std::io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from("127.0.0.1").unwrap();
    soon("a handshake", TlsConnector::from(Arc::new(config.clone())).connect(name, stream)).await
}

async fn connect(address: SocketAddr, config: &ClientConfig) -> std::io::Result<TlsStream<TcpStream>> {
    shake_hands(TcpStream::connect(address).await.unwrap(), config).await
}

/// A page over TLS: everything up to the end of the stream, which has to be in order. A server that refuses a client's
/// certificate says so behind the handshake, since TLS 1.3 lets the client speak first.
async fn get(address: SocketAddr, config: &ClientConfig, path: &str) -> std::io::Result<String> {
    let mut stream = connect(address, config).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut page = String::new();
    soon("a page", stream.read_to_string(&mut page)).await?;
    Ok(page)
}

async fn metric(address: SocketAddr, config: &ClientConfig, name: &str) -> f64 {
    let page = get(address, config, "/metrics").await.unwrap();
    let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("no metric {name}")).parse().unwrap()
}

async fn failed(address: SocketAddr, config: &ClientConfig, reason: &str) -> f64 {
    metric(address, config, &format!("tidewire_tls_handshakes_failed_total{{reason=\"{reason}\"}}")).await
}

/// A WebSocket by a library that knows nothing of this server.
struct Socket {
    inner: WebSocketStream<TlsStream<TcpStream>>,
}

impl Socket {
    async fn over(stream: TlsStream<TcpStream>) -> Self {
        let mut request = "wss://localhost/ws".into_client_request().unwrap();
        request.headers_mut().insert("Sec-WebSocket-Protocol", "tidewire.v1".parse().unwrap());
        let (inner, response) =
            soon("an upgrade", tokio_tungstenite::client_async(request, stream)).await.unwrap();
        assert_eq!(response.headers()["sec-websocket-protocol"], "tidewire.v1");
        let mut socket = Self { inner };
        socket.event("welcome").await;
        socket
    }

    async fn connect(address: SocketAddr, config: &ClientConfig) -> Self {
        Self::over(connect(address, config).await.unwrap()).await
    }

    async fn message(&mut self) -> Message {
        soon("a message", self.inner.next()).await.expect("no end").expect("no fault")
    }

    async fn event(&mut self, kind: &str) -> Value {
        loop {
            if let Message::Text(text) = self.message().await {
                let event: Value = serde_json::from_str(&text).unwrap();
                assert_ne!(event["type"], "gap", "{event}");
                if event["type"] == kind {
                    return event;
                }
            }
        }
    }

    async fn frame(&mut self) -> Frame {
        loop {
            match self.message().await {
                Message::Binary(bytes) => return Frame::decode(&*bytes).unwrap(),
                Message::Text(text) => assert!(!text.contains("\"gap\""), "{text}"),
                _ => {}
            }
        }
    }

    async fn request(&mut self, request: Value, answer: &str) -> Value {
        soon("room", self.inner.send(Message::text(request.to_string()))).await.unwrap();
        self.event(answer).await
    }

    async fn subscribe(&mut self, channel: &str) {
        // What is late is wanted, too: these tests are about bytes that may be lost.
        let options = json!({"type": "subscribe", "id": 1, "channel": channel, "max_delay_ms": 0, "max_age_ms": 60_000});
        self.request(options, "subscribed").await;
    }

    async fn advertise(&mut self, channel: &str) -> u32 {
        let answer =
            self.request(json!({"type": "advertise", "id": 2, "channel": channel}), "advertised").await;
        u32::try_from(answer["channel"].as_u64().unwrap()).unwrap()
    }

    /// Publishes a sample and waits until the server has taken it: its sequence.
    async fn publish(&mut self, channel: u32, value: sample::Value) -> u64 {
        let samples = vec![Sample { source_delta_ns: 0, value: Some(value) }];
        let block = Block { source_ns: 0, received_ns: 0, samples };
        let publish = Publish { channel, block: Some(block), ack: 9 }.encode_to_vec();
        soon("room", self.inner.send(Message::binary(publish))).await.unwrap();
        self.event("ack").await["seq"].as_u64().unwrap()
    }
}

#[tokio::test]
async fn samples_come_over_every_version_of_tls_that_is_spoken() {
    let ca = Authority::new("ca");
    let files = Files::new(&ca.server());
    let server = TestServer::start(|config| {
        config.workers = 2;
        files.set(config);
    });
    let trusting = ca.trusting();
    let mut publisher = Socket::connect(server.address, &trusting).await;
    let channel = publisher.advertise("robot.7.imu").await;
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let only = ca.client_config(&[version], None);
        let stream = connect(server.address, &only).await.unwrap();
        assert_eq!(stream.get_ref().1.protocol_version(), Some(version.version));
        let mut viewer = Socket::over(stream).await;
        viewer.subscribe("robot.*.imu").await;
        let seq = publisher.publish(channel, sample::Value::Number(1.5)).await;
        let frame = viewer.frame().await;
        assert_eq!((frame.seq, frame.count), (seq, 1));
        assert_eq!(frame.blocks[0].samples[0].value, Some(sample::Value::Number(1.5)));
        viewer.inner.close(None).await.unwrap();
        while let Some(message) = soon("the end", viewer.inner.next()).await {
            message.expect("an end in order");
        }
    }
    assert!(get(server.address, &trusting, "/healthz").await.unwrap().ends_with("ok\n"));
    // Two viewers, a publisher, a page, and this.
    assert_eq!(metric(server.address, &trusting, "tidewire_tls_handshakes_total").await, 5.0);
}

/// A ClientHello (RFC 4346 section 7.4.1.2) of a client whose newest version is TLS 1.1.
fn hello_of_tls_1_1() -> Vec<u8> {
    let mut hello = vec![3, 2];
    hello.extend([7; 32]);
    // No session; TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA and TLS_RSA_WITH_AES_128_CBC_SHA; no compression.
    hello.extend([0, 0, 4, 0xC0, 0x13, 0x00, 0x2F, 1, 0]);
    // supported_groups (RFC 8422): secp256r1.
    hello.extend([0, 8, 0, 10, 0, 4, 0, 2, 0, 23]);
    let length = |bytes: usize| u8::try_from(bytes).unwrap();
    let mut record = vec![0x16, 3, 1, 0, length(hello.len() + 4), 1, 0, 0, length(hello.len())];
    record.append(&mut hello);
    record
}

/// Everything that comes up to the end of the stream, however it ends.
async fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A reset is an end, too.
    let _ = soon("the end", stream.read_to_end(&mut bytes)).await;
    bytes
}

#[tokio::test]
async fn what_is_not_tls_gets_an_alert_and_the_end() {
    let ca = Authority::new("ca");
    let files = Files::new(&ca.server());
    let server = TestServer::start(|config| files.set(config));
    let rows: [(&[u8], &str); 5] = [
        (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", "not_tls"),
        (b"\0\0\0\0\0\0\0\0\0\0", "not_tls"),
        (&[0x16, 3, 1, 0xFF, 0xFF, 1, 0, 0, 0], "not_tls"),
        // A record with a handshake message that no client begins with.
        (&[0x16, 3, 1, 0, 4, 2, 0, 0, 0], "not_tls"),
        (&hello_of_tls_1_1(), "incompatible"),
    ];
    let trusting = ca.trusting();
    for (sent, reason) in rows {
        let before = failed(server.pages, &trusting, reason).await;
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(sent).await.unwrap();
        let answer = rest(&mut stream).await;
        // RFC 8446 section 6: an alert is a record of type 21 with two bytes, of which the first says that it is fatal.
        assert_eq!((answer.len(), answer[0], answer[5]), (7, 21, 2), "{answer:?} to {sent:?}");
        drop(stream);
        while failed(server.pages, &trusting, reason).await < before + 1.0 {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn only_http_1_is_agreed_on() {
    let ca = Authority::new("ca");
    let files = Files::new(&ca.server());
    let server = TestServer::start(|config| files.set(config));
    /// What the client offers, and what is agreed on; an error where nothing can be.
    type Row<'a> = (&'a [&'a str], Result<Option<&'a str>, ()>);
    let rows: [Row<'_>; 4] = [
        (&[], Ok(None)),
        (&["http/1.1"], Ok(Some("http/1.1"))),
        (&["h2", "http/1.1"], Ok(Some("http/1.1"))),
        (&["h2"], Err(())),
    ];
    for (offered, agreed) in rows {
        let mut config = ca.trusting();
        config.alpn_protocols = offered.iter().map(|name| name.as_bytes().to_vec()).collect();
        match (connect(server.address, &config).await, agreed) {
            (Ok(stream), Ok(agreed)) => {
                assert_eq!(stream.get_ref().1.alpn_protocol(), agreed.map(str::as_bytes), "{offered:?}");
            }
            (Err(error), Err(())) => assert!(error.to_string().contains("NoApplicationProtocol"), "{error}"),
            (found, _) => panic!("{found:?} for {offered:?}"),
        }
    }
    assert_eq!(failed(server.address, &ca.trusting(), "alpn").await, 1.0);
}

#[tokio::test]
async fn who_stalls_is_cut_off() {
    let ca = Authority::new("ca");
    let files = Files::new(&ca.server());
    let server = TestServer::start(|config| {
        config.server.first_byte_timeout = Duration::from_millis(200);
        config.server.handshake_timeout = Duration::from_millis(400);
        files.set(config);
    });
    // Silence, and half a hello.
    for sent in [&[][..], &hello_of_tls_1_1()[..20]] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(sent).await.unwrap();
        assert!(rest(&mut stream).await.is_empty());
    }
    // Silence, and half a request, behind a whole handshake.
    for sent in ["", "GET / HT"] {
        let mut stream = connect(server.address, &ca.trusting()).await.unwrap();
        stream.write_all(sent.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let _ = soon("the end", stream.read_to_end(&mut answer)).await;
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 408"), "{answer:?}");
    }
    assert_eq!(failed(server.address, &ca.trusting(), "timeout").await, 1.0);
}

/// A reader whose kernel takes few bytes, and who reads nothing while `frames` frames are published.
async fn read_late(server: &TestServer, ca: &Authority, publisher: &mut Socket, frames: usize) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4 << 10).unwrap();
    let stream = socket.connect(server.address).await.unwrap();
    let mut viewer = Socket::over(shake_hands(stream, &ca.trusting()).await.unwrap()).await;
    let name = format!("late.{frames}");
    viewer.subscribe(&name).await;
    let channel = publisher.advertise(&name).await;
    let mut sent = Vec::new();
    for _ in 0..frames {
        sent.push(publisher.publish(channel, sample::Value::Bytes(vec![7; 8 << 10])).await);
    }
    let mut seen = Vec::new();
    while seen.len() < sent.len() {
        let frame = viewer.frame().await;
        assert_eq!(frame.count, 1);
        seen.push(frame.seq);
    }
    assert_eq!(seen, sent);
}

/// TLS takes bytes that a full socket does not take. With nothing more to send, nobody but the socket itself could wake who
/// has to write them. One of these counts of frames is that with which the socket is full in the last one.
#[tokio::test]
async fn who_reads_late_gets_the_last_byte() {
    const FRAMES_MAX: usize = 40;
    let ca = Authority::new("ca");
    let files = Files::new(&ca.server());
    let server = TestServer::start(|config| {
        // Nothing else is to be sent.
        config.server.ping_interval = Duration::from_secs(600);
        config.outbox.heartbeat_interval = Duration::from_secs(600);
        files.set(config);
    });
    let mut publisher = Socket::connect(server.address, &ca.trusting()).await;
    for frames in 1..=FRAMES_MAX {
        read_late(&server, &ca, &mut publisher, frames).await;
    }
}

/// The lines of a log.
fn lines(process: &mut Process) -> Receiver<String> {
    let log = BufReader::new(process.take_log());
    let (tell, told) = std::sync::mpsc::sync_channel(1_000);
    std::thread::spawn(move || {
        for line in log.lines().map_while(Result::ok) {
            if tell.send(line).is_err() {
                break;
            }
        }
    });
    told
}

async fn logged(log: &mut Option<Receiver<String>>, what: &'static str) -> String {
    let taken = log.take().unwrap();
    let (line, taken) = tokio::task::spawn_blocking(move || {
        loop {
            let line = taken.recv_timeout(DEADLINE).unwrap_or_else(|_| panic!("no {what:?} in the log"));
            if line.contains(what) {
                return (line, taken);
            }
        }
    })
    .await
    .unwrap();
    *log = Some(taken);
    line
}

async fn shown(address: SocketAddr, config: &ClientConfig) -> CertificateDer<'static> {
    let stream = connect(address, config).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_files_are_for_new_connections_and_nobody_notices() {
    let ca = Authority::new("ca");
    let (first, second, third) = (ca.server(), ca.server(), ca.server());
    let files = Files::new(&first);
    let settings = files.settings();
    let mut server = Process::start(&[&settings[0], &settings[1], "log_filter=info"]);
    let (address, trusting) = (server.address, ca.trusting());
    let mut log = Some(lines(&mut server));
    let mut viewer = Socket::connect(address, &trusting).await;
    viewer.subscribe("a").await;
    let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
    let publisher = tokio::spawn({
        let trusting = trusting.clone();
        async move {
            let mut publisher = Socket::connect(address, &trusting).await;
            let channel = publisher.advertise("a").await;
            loop {
                let last = publisher.publish(channel, sample::Value::Number(0.5)).await;
                if stopped.try_recv().is_ok() {
                    return last;
                }
            }
        }
    });
    let (tell, mut told) = tokio::sync::watch::channel(None);
    let reader = tokio::spawn(async move {
        let (mut next, mut last) = (None, None);
        while last.is_none_or(|last| next.is_none_or(|next| next <= last)) {
            tokio::select! {
                biased;
                Ok(()) = told.changed() => last = *told.borrow_and_update(),
                frame = viewer.frame() => {
                    assert!(next.is_none_or(|next| next == frame.seq), "{} instead of {next:?}", frame.seq);
                    next = Some(frame.seq + u64::from(frame.count));
                }
            }
        }
    });
    assert_eq!(shown(address, &trusting).await, first.certificate);

    files.put(&second);
    logged(&mut log, "new TLS files are in use").await;
    assert_eq!(shown(address, &trusting).await, second.certificate);

    // A key that others can read, then a certificate without its key: the pair before stays.
    // There is no moment at which the new one could be used.
    files.write("key.pem", &third.key_pem());
    set_mode(&files.path("key.pem"), 0o640);
    files.write("cert.pem", &third.certificate_pem());
    let line = logged(&mut log, "mode 640").await;
    assert!(line.contains("WARN") && line.contains("cannot be used"), "{line}");
    assert_eq!(shown(address, &trusting).await, second.certificate);
    files.write("cert.pem", &first.certificate_pem());
    set_mode(&files.path("key.pem"), 0o600);
    let line = logged(&mut log, "does not belong").await;
    assert!(line.contains("WARN") && line.contains("cannot be used"), "{line}");
    assert_eq!(shown(address, &trusting).await, second.certificate);

    // Mended, by links that are made to point elsewhere, as container hosts do it.
    files.write("next.pem", &third.certificate_pem());
    std::os::unix::fs::symlink("next.pem", files.path("link")).unwrap();
    std::fs::rename(files.path("link"), files.path("cert.pem")).unwrap();
    logged(&mut log, "new TLS files are in use").await;
    assert_eq!(shown(address, &trusting).await, third.certificate);

    stop.send(()).unwrap();
    let last = soon("the publisher", publisher).await.unwrap();
    tell.send(Some(last)).unwrap();
    soon("every sample up to the last", reader).await.unwrap();
}

#[tokio::test]
async fn clients_are_who_their_certificate_says() {
    let (ca, clients, foreign) =
        (Authority::new("servers"), Authority::new("clients"), Authority::new("others"));
    let files = Files::new(&ca.server());
    let ca_file = files.write("clients.pem", &clients.pem());
    let good = clients.client("robot 7");
    // rcgen begins with a common name of its own.
    let nameless = clients.sign(|params| assert!(params.distinguished_name.remove(DnType::CommonName)));
    let long = clients.client(&"x".repeat(201));
    let unseen = clients.client("a\u{202E}b");
    let not_theirs = foreign.client("robot 7");
    // (Certificate, the reason for a refusal where one is optional, and where it is required.)
    let rows: [(Option<&Pair>, Option<&str>, Option<&str>); 6] = [
        (Some(&good), None, None),
        (None, None, Some("no_certificate")),
        (Some(&not_theirs), Some("certificate"), Some("certificate")),
        (Some(&nameless), Some("certificate_name"), Some("certificate_name")),
        (Some(&long), Some("certificate_name"), Some("certificate_name")),
        (Some(&unseen), Some("certificate_name"), Some("certificate_name")),
    ];
    for required in [false, true] {
        let server = TestServer::start(|config| {
            files.set(config);
            config.tls.client_ca_file = text(&ca_file).parse().unwrap();
            config.tls.client_certificate_required = required;
            // Its pages are for known names, too; those of this listener are for whoever is let in at all.
            config.admin.listen = Some(([127, 0, 0, 1], 0).into());
        });
        let trusting = ca.trusting_as(Some(&good));
        for (pair, optional, needed) in rows {
            let refused = if required { needed } else { optional };
            let before = match refused {
                Some(reason) => failed(server.pages, &trusting, reason).await,
                None => 0.0,
            };
            let page = get(server.address, &ca.trusting_as(pair), "/healthz").await;
            match (page, refused) {
                (Ok(page), None) => assert!(page.ends_with("ok\n"), "{page}"),
                (Err(error), Some(reason)) => {
                    // The alert arrives, though the client had sent a request meanwhile.
                    assert!(error.to_string().starts_with("received fatal alert"), "{reason}: {error}");
                    while failed(server.pages, &trusting, reason).await < before + 1.0 {
                        tokio::task::yield_now().await;
                    }
                }
                (page, refused) => panic!("{page:?} instead of {refused:?}, required: {required}"),
            }
        }
    }
}

#[tokio::test]
async fn a_certificate_is_an_identity_with_rights() {
    let (ca, clients) = (Authority::new("servers"), Authority::new("clients"));
    let files = Files::new(&ca.server());
    let ca_file = files.write("clients.pem", &clients.pem());
    let server = TestServer::start(|config| {
        files.set(config);
        config.tls.client_ca_file = text(&ca_file).parse().unwrap();
        config.auth.certificate_rights = r#"{"subscribe":["robot.>"]}"#.into();
    });
    let named = clients.client("robot 7");
    let mut socket = Socket::connect(server.address, &ca.trusting_as(Some(&named))).await;
    assert_eq!(socket.event("subscribed").await["subscription"], "$user.robot%207");
    socket.subscribe("robot.>").await;
    let beyond = json!({"type": "subscribe", "id": 2, "channel": "plant.a"});
    assert_eq!(socket.request(beyond, "error").await["code"], "forbidden");
    let nobody = get(server.address, &ca.trusting_as(None), "/metrics").await.unwrap();
    assert!(nobody.starts_with("HTTP/1.1 401"), "{nobody}");
    let robot = get(server.address, &ca.trusting_as(Some(&named)), "/metrics").await.unwrap();
    assert!(robot.starts_with("HTTP/1.1 403"), "it has not the right admin: {robot}");
}

#[tokio::test]
async fn a_client_without_tls_learns_where_to_go() {
    let ca = Authority::new("ca");
    let files = Files::new(&ca.server());
    let server = TestServer::start(|config| files.set(config));
    let url = format!("ws://{}/ws", server.address).parse().unwrap();
    let connected = Client::connect(&url, Codec::Protobuf, &Trust::default(), None).await;
    let error = connected.err().unwrap().to_string();
    assert!(error.ends_with("a server with TLS is at wss://"), "{error}");
}

/// Runs `tidewire` to its end.
fn run(arguments: &[&str], trusted: &Path, input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_tidewire"))
        .args(arguments)
        .env_clear()
        .env("SSL_CERT_FILE", trusted)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may have ended by itself.
    drop(std::io::Write::write_all(&mut child.stdin.take().unwrap(), input.as_bytes()));
    child.wait_with_output().unwrap()
}

fn printed(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn files_that_cannot_be_used_are_refused_at_the_start() {
    let (ca, other) = (Authority::new("ca"), Authority::new("other"));
    let pair = ca.server();
    let files = Files::new(&pair);
    let [certificate, key] = ["cert.pem", "key.pem"].map(|name| text(&files.path(name)).to_owned());
    let open = text(&files.write("open.pem", &pair.key_pem())).to_owned();
    set_mode(Path::new(&open), 0o644);
    let stranger = text(&files.write("stranger.pem", &other.server().key_pem())).to_owned();
    let broken = text(&files.write("broken.pem", &pair.certificate_pem()[..100])).to_owned();
    let absent = text(&files.path("absent.pem")).to_owned();
    let directory = text(files.directory.path()).to_owned();
    /// Settings, the setting and the file that the message names, and what it says.
    type Row<'a> = (&'a [(&'a str, &'a str)], &'a str, &'a str, &'a str);
    let rows: [Row<'_>; 10] = [
        (&[("certificate_file", &absent), ("key_file", &key)], "certificate_file", &absent, "cannot be read"),
        (&[("certificate_file", &certificate), ("key_file", &absent)], "key_file", &absent, "cannot be read"),
        (
            &[("certificate_file", &directory), ("key_file", &key)],
            "certificate_file",
            &directory,
            "not a file",
        ),
        (
            &[("certificate_file", &certificate), ("key_file", &open)],
            "key_file",
            &open,
            "others can read or write the key (mode 644); run chmod 600 on it",
        ),
        (&[("certificate_file", &key), ("key_file", &key)], "certificate_file", &key, "holds no certificate"),
        (&[("certificate_file", &broken), ("key_file", &key)], "certificate_file", &broken, "broken PEM"),
        (
            &[("certificate_file", &certificate), ("key_file", &certificate)],
            "key_file",
            &certificate,
            "no private key",
        ),
        (
            &[("certificate_file", &certificate), ("key_file", &stranger)],
            "key_file",
            &stranger,
            "does not belong",
        ),
        (
            &[("certificate_file", &certificate), ("key_file", &key), ("client_ca_file", &key)],
            "client_ca_file",
            &key,
            "holds no certificate",
        ),
        // It is not the file of an earlier trial.
        (&[("self_signed_file", &key)], "self_signed_file", &key, "holds something else"),
    ];
    let secrets: Vec<String> = pair.key_pem().lines().map(str::to_owned).collect();
    for (settings, setting, file, what) in rows {
        let mut arguments = vec!["serve".to_owned(), "--listen".to_owned(), "127.0.0.1:0".to_owned()];
        for (key, value) in settings {
            arguments.extend(["--set".to_owned(), format!("tls.{key}={value}")]);
        }
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        let output = run(&arguments, Path::new(&certificate), "");
        let error = printed(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
        assert!(error.starts_with(&format!("tidewire: tls.{setting} = \"{file}\": ")), "{error}");
        assert!(error.contains(what), "{error}");
        assert!(!secrets[1..secrets.len() - 1].iter().any(|line| error.contains(line.as_str())), "{error}");
    }
    assert_eq!(std::fs::read_to_string(&key).unwrap(), pair.key_pem(), "it was not written over");
}

#[test]
fn a_newcomer_tries_tls_in_two_commands() {
    let directory = tempfile::tempdir().unwrap();
    let other = directory.path().join("other.pem");
    std::fs::write(&other, Authority::new("other").pem()).unwrap();
    let file = directory.path().join("trial.pem");
    let mut before = None;
    // Twice: the second start makes another certificate.
    for _ in 0..2 {
        let server = Process::start(&[&format!("tls.self_signed_file={}", text(&file))]);
        let certificate = std::fs::read_to_string(&file).unwrap();
        assert!(certificate.contains("BEGIN CERTIFICATE") && !certificate.contains("PRIVATE"));
        assert_ne!(before.replace(certificate.clone()), Some(certificate));
        let url = format!("wss://{}/ws", server.address);
        let published = run(&["pub", "a", "--url", &url, "--ca", text(&file), "--ack"], &other, "1.5\n");
        assert_eq!(published.status.code(), Some(0), "{}", printed(&published.stderr));
        assert!(printed(&published.stdout).contains('a'));
        let named = url.replace("127.0.0.1", "localhost");
        let watched =
            run(&["sub", "$sys.>", "--url", &named, "--ca", text(&file), "--count", "1"], &other, "");
        assert_eq!(watched.status.code(), Some(0), "{}", printed(&watched.stderr));
        assert!(printed(&watched.stdout).contains("$sys."), "{}", printed(&watched.stdout));
    }
    let server = Process::start(&[&format!("tls.self_signed_file={}", text(&file))]);
    let url = format!("wss://{}/ws", server.address);
    let plain = url.replace("wss", "ws");
    let old = directory.path().join("old.pem");
    std::fs::write(&old, before.unwrap()).unwrap();
    // (Arguments, what the error says.)
    let rows: [(&[&str], &str); 6] = [
        (
            &["--url", &url],
            "it is signed by nobody who is trusted; give its CA, or a self-signed certificate itself, with --ca FILE",
        ),
        (&["--url", &url, "--ca", text(&other)], "--ca FILE"),
        (&["--url", &url, "--ca", text(&old)], "--ca FILE with the newest certificate"),
        (&["--url", &url, "--ca", "/nowhere.pem"], "--ca \"/nowhere.pem\": the file cannot be read"),
        (&["--url", &url, "--ca", "/dev/null"], "it holds no certificate; give a file with PEM certificates"),
        (&["--url", &plain, "--ca", text(&file)], "--ca is for wss:// addresses"),
    ];
    for command in ["sub", "pub"] {
        for (arguments, what) in rows {
            let output = run(&[&[command, "a"], arguments].concat(), &other, "1\n");
            let error = printed(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{error}");
            assert!(error.contains(what), "{what}: {error}");
        }
    }
}

#[test]
fn certificates_for_others_and_servers_without_tls_are_told_apart() {
    let ca = Authority::new("ca");
    let elsewhere = ca.sign(|params| {
        params.subject_alt_names = vec!["panel.example".try_into().map(rcgen::SanType::DnsName).unwrap()]
    });
    let expired = ca.sign(|params| params.not_after = rcgen::date_time_ymd(2001, 1, 1));
    let files = Files::new(&elsewhere);
    let trusted = files.write("ca.pem", &ca.pem());
    let plain = TestServer::start(|_| {});
    let rows = [
        (
            Some(&elsewhere),
            "it is for another host; connect by a name that it has: DnsName(\\\"panel.example\\\")",
        ),
        (Some(&expired), "it has expired; the server needs a new one, unless this machine's clock is wrong"),
        (None, "the server does not speak TLS here; use ws://"),
    ];
    for (pair, what) in rows {
        let server = pair.map(|pair| {
            files.put(pair);
            TestServer::start(|config| files.set(config))
        });
        let address = server.as_ref().map_or(plain.address, |server| server.address);
        let output = run(&["sub", "a", "--url", &format!("wss://{address}/ws")], &trusted, "");
        let error = printed(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.contains(what) && error.contains("not connecting again"), "{error}");
    }
}
