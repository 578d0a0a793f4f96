//! What the programs share: the command line, and the line that says where they listen. No server is in it.

pub mod log;

use std::io::{self, ErrorKind, Write};
use std::net::TcpListener;

/// Whether the flag is on the command line. `--version` prints the library and ends the process.
pub fn arguments(library: &str, flags: &[&str]) -> Result<Vec<String>, String> {
    let given: Vec<String> = std::env::args().skip(1).collect();
    if given.iter().any(|it| it == "--version") {
        println!("{library}");
        std::process::exit(0);
    }
    match given.iter().find(|it| !flags.contains(&it.as_str())) {
        Some(unknown) => Err(format!("unknown argument {unknown}; there are: --version {}", flags.join(" "))),
        None => Ok(given),
    }
}

/// Listens on a free port of 127.0.0.1 and says which, for the program that waits for it.
pub fn listen() -> io::Result<TcpListener> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    listener.set_nonblocking(true)?;
    let mut out = io::stdout().lock();
    writeln!(out, "listening ws://{}/", listener.local_addr()?)?;
    out.flush()?;
    Ok(listener)
}

/// Whether the operation is to be tried again later.
pub fn is_later(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
