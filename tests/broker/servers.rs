//! The real servers: started on free ports of 127.0.0.1 with directories of their own, ended by their processes.

use std::fs;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// What runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    Redis,
    Nats,
    JetStream,
}

/// How it runs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    pub(crate) password: Option<&'static str>,
    /// What only NATS has: lines of its configuration.
    pub(crate) more: Option<String>,
    /// Directory with the server's certificate and key.
    pub(crate) tls: Option<PathBuf>,
    /// Little room: for messages that are kept.
    pub(crate) small: bool,
}

/// The largest payload that every server is told to take, but for NATS, whose default is half of it.
const REDIS_PAYLOAD: &str = "2mb";

/// How long a server may take to start.
const START: Duration = Duration::from_secs(30);

/// A server, which ends with this.
pub(crate) struct Server {
    program: Program,
    options: Options,
    pub(crate) port: u16,
    pub(crate) dir: TempDir,
    child: Option<Child>,
}

impl Server {
    pub(crate) fn start(program: Program, options: Options) -> Self {
        // Another process may take the port before the server does.
        for _ in 0..10 {
            let mut server = Self::absent(program, options.clone());
            if server.launch() {
                return server;
            }
        }
        panic!("{program:?} does not start on any port");
    }

    /// One that does not run yet.
    pub(crate) fn absent(program: Program, options: Options) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        Self { program, options, port, dir: tempfile::tempdir().unwrap(), child: None }
    }

    /// Starts it, with what is in its directory.
    pub(crate) fn restart(&mut self) {
        assert!(self.launch(), "{:?} does not start again", self.program);
    }

    fn launch(&mut self) -> bool {
        assert!(self.child.is_none(), "it runs already");
        let (mut command, ready) = match self.program {
            Program::Redis => (self.redis(), "Ready to accept connections"),
            Program::Nats | Program::JetStream => (self.nats(), "Server is ready"),
        };
        let name = command.get_program().to_string_lossy().into_owned();
        // Debian has one of them where only root looks.
        command.env("PATH", format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default()));
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| {
                panic!(
                    "{name}: {error}. These tests need {name} on the PATH (Debian: apt-get install {name})"
                )
            });
        // Read to the end, so that the server is never held up by its log.
        let (said, says) = sync_channel(1);
        let (out, err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        for log in [Box::new(out) as Box<dyn Read + Send>, Box::new(err)] {
            let said = said.clone();
            thread::spawn(move || {
                for line in BufReader::new(log).lines().map_while(Result::ok) {
                    if line.contains(ready) {
                        // Told once is enough.
                        let _ = said.try_send(true);
                    }
                }
            });
        }
        drop(said);
        // An error is that both logs have ended: it did not start.
        let started = says.recv_timeout(START).is_ok();
        self.child = Some(child);
        if !started {
            self.kill();
        }
        started
    }

    fn redis(&self) -> Command {
        let mut command = Command::new("redis-server");
        let port = self.port.to_string();
        let mut set = |name: &str, values: &[&str]| {
            command.arg(format!("--{name}")).args(values);
        };
        set("bind", &["127.0.0.1"]);
        set("save", &[""]);
        set("appendonly", &["no"]);
        set("dir", &[self.dir.path().to_str().unwrap()]);
        set("proto-max-bulk-len", &[REDIS_PAYLOAD]);
        set("client-output-buffer-limit", &["pubsub", "8mb", "4mb", "1"]);
        if let Some(password) = self.options.password {
            set("requirepass", &[password]);
        }
        if self.options.small {
            set("maxmemory", &["4mb"]);
            set("maxmemory-policy", &["noeviction"]);
        }
        match &self.options.tls {
            None => set("port", &[&port]),
            Some(dir) => {
                set("port", &["0"]);
                set("tls-port", &[&port]);
                set("tls-cert-file", &[dir.join("cert.pem").to_str().unwrap()]);
                set("tls-key-file", &[dir.join("key.pem").to_str().unwrap()]);
                set("tls-ca-cert-file", &[dir.join("ca.pem").to_str().unwrap()]);
                set("tls-auth-clients", &["no"]);
            }
        }
        command
    }

    fn nats(&self) -> Command {
        let mut text =
            format!("listen: \"127.0.0.1:{}\"\nmax_pending: 8MB\nwrite_deadline: \"1s\"\n", self.port);
        if self.program == Program::JetStream {
            let most = if self.options.small { "4MB" } else { "1GB" };
            let dir = self.dir.path().join("store");
            text += &format!(
                "jetstream {{ store_dir: {dir:?}, max_file_store: {most}, max_memory_store: 64MB }}\n"
            );
        }
        if let Some(password) = self.options.password {
            text += &format!("authorization {{ user: tide, password: \"{password}\" }}\n");
        }
        text += self.options.more.as_deref().unwrap_or_default();
        if let Some(dir) = &self.options.tls {
            let (cert, key) = (dir.join("cert.pem"), dir.join("key.pem"));
            text += &format!("tls {{ cert_file: {cert:?}, key_file: {key:?} }}\n");
        }
        let path = self.dir.path().join("nats.conf");
        fs::write(&path, text).unwrap();
        let mut command = Command::new("nats-server");
        command.arg("-c").arg(path);
        command
    }

    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            drop(child.kill());
            child.wait().unwrap();
        }
    }

    /// Stops its process, which keeps its sockets and says nothing.
    pub(crate) fn suspend(&self) {
        self.signal(Signal::STOP);
    }

    pub(crate) fn resume(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("it runs");
        kill_process(Pid::from_child(child), signal).unwrap();
    }

    /// One command of Redis that it takes; its answer.
    pub(crate) fn redis_command(&self, arguments: &[&[u8]]) -> String {
        let line = self.redis_try_command(arguments);
        assert!(!line.starts_with('-'), "{line}");
        line
    }

    /// One command of Redis; the first line of its answer, as it came.
    pub(crate) fn redis_try_command(&self, arguments: &[&[u8]]) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let mut request = format!("*{}\r\n", arguments.len()).into_bytes();
        for argument in arguments {
            request.extend_from_slice(format!("${}\r\n", argument.len()).as_bytes());
            request.extend_from_slice(argument);
            request.extend_from_slice(b"\r\n");
        }
        stream.write_all(&request).unwrap();
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        line
    }

    /// One message of NATS, and an answer if there is a subject for it.
    pub(crate) fn nats_publish(&self, subject: &str, answer: Option<&str>, payload: &[u8]) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let mut request = b"CONNECT {\"verbose\":false}\r\n".to_vec();
        if let Some(inbox) = answer {
            request.extend_from_slice(format!("SUB {inbox} 1\r\n").as_bytes());
        }
        let inbox = answer.map_or_else(String::new, |inbox| format!(" {inbox}"));
        request.extend_from_slice(format!("PUB {subject}{inbox} {}\r\n", payload.len()).as_bytes());
        request.extend_from_slice(payload);
        request.extend_from_slice(b"\r\nPING\r\n");
        stream.write_all(&request).unwrap();
        let wanted = if answer.is_some() { "{" } else { "PONG" };
        let mut lines = BufReader::new(stream).lines().map(Result::unwrap).skip(1);
        lines.find(|line| line.starts_with(wanted)).expect("an answer")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A CA, and in the directory its certificate (`ca.pem`) with a server's own (`cert.pem`, `key.pem`).
pub(crate) fn certificates(dir: &Path) {
    let write = |name: &str, tag: &str, der: Vec<u8>| {
        fs::write(dir.join(name), pem::encode(&pem::Pem::new(tag, der))).unwrap();
    };
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "a CA for a test");
    write("ca.pem", "CERTIFICATE", params.self_signed(&key).unwrap().der().to_vec());
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate().unwrap();
    let own = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    write("cert.pem", "CERTIFICATE", own.der().to_vec());
    write("key.pem", "PRIVATE KEY", key.serialize_der());
}
