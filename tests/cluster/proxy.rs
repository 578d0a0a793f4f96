//! nginx in front of the servers, as its users set it up: WebSockets go through, and a server that refuses is passed over. Ends
//! with its process.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::support::wait_for;

/// Of its log, where a test fails: it says the same thing at each attempt.
const LINES_SHOWN: usize = 10;

/// What only this nginx answers.
const HERE: &str = "/nginx-is-here";

pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    dir: TempDir,
    child: Child,
}

impl Proxy {
    pub(crate) fn start(servers: &[SocketAddr]) -> Self {
        // Another process may take the port before nginx does.
        (0..10).find_map(|_| Self::try_start(servers)).expect("nginx starts on some port")
    }

    fn try_start(servers: &[SocketAddr]) -> Option<Self> {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("nginx.conf");
        fs::write(&config, configuration(address, servers, dir.path().to_str().unwrap())).unwrap();
        let log = fs::File::create(dir.path().join("stderr.log")).unwrap();
        let child = Command::new("nginx")
            // Debian has it where only root looks.
            .env("PATH", format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default()))
            .arg("-p")
            .arg(dir.path())
            .arg("-c")
            .arg(&config)
            // What it logs before it has read the configuration.
            .args(["-e", "stderr"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| {
                panic!("nginx: {error}. These tests need nginx on the PATH (Debian: apt-get install nginx)")
            });
        let mut proxy = Self { address, dir, child };
        wait_for("nginx", || {
            if proxy.child.try_wait().unwrap().is_some() {
                return Some(false);
            }
            // Another process may have the port meanwhile, and answers otherwise.
            is_there(address).then_some(true)
        })
        .then_some(proxy)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
        if std::thread::panicking() {
            let log = fs::read_to_string(self.dir.path().join("stderr.log")).unwrap_or_default();
            log.lines().take(LINES_SHOWN).for_each(|line| eprintln!("nginx: {line}"));
        }
    }
}

fn is_there(address: SocketAddr) -> bool {
    let ask = || -> io::Result<String> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(stream, "GET {HERE} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.starts_with("HTTP/1.1 204"))
}

/// One process, which is the one that was started, so that nothing is left behind it. A server that refuses is passed over for the
/// request at hand, and asked again with the next one (`max_fails=0`): nginx counts a server as failed until a request to it has ended,
/// and a WebSocket ends with its connection, so one that is back would get one client in each `fail_timeout`.
fn configuration(address: SocketAddr, servers: &[SocketAddr], dir: &str) -> String {
    let servers: String = servers.iter().map(|it| format!("server {it} max_fails=0;\n")).collect();
    format!(
        "daemon off;
master_process off;
pid {dir}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 512; }}
http {{
  access_log off;
  client_body_temp_path {dir}/body;
  proxy_temp_path {dir}/proxy;
  fastcgi_temp_path {dir}/fastcgi;
  uwsgi_temp_path {dir}/uwsgi;
  scgi_temp_path {dir}/scgi;
  upstream tidewire {{
    {servers}
  }}
  server {{
    listen {address};
    location = {HERE} {{ return 204; }}
    location / {{
      proxy_pass http://tidewire;
      proxy_http_version 1.1;
      proxy_set_header Host $http_host;
      proxy_set_header X-Forwarded-For $remote_addr;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection upgrade;
      proxy_connect_timeout 2s;
      proxy_read_timeout 1h;
      # A server that drains refuses with 503.
      proxy_next_upstream error timeout http_503;
    }}
  }}
}}
"
    )
}
