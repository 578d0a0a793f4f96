//! A wire between clients and a server that can break in the middle: what is sent vanishes, and nobody is told. A kernel
//! acknowledges on each side, as a proxy or a NAT that has lost its state may.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

/// See the module's page. Its threads end with their connections.
pub(crate) struct Relay {
    pub(crate) address: SocketAddr,
    broken: Arc<AtomicBool>,
}

impl Relay {
    /// One to this server.
    pub(crate) fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let broken = Arc::new(AtomicBool::new(false));
        let wire = Arc::clone(&broken);
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect(server) else { return };
                for (from, to) in [(&client, &server), (&server, &client)] {
                    drop((from.set_nodelay(true), to.set_nodelay(true)));
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let broken = Arc::clone(&wire);
                    thread::spawn(move || carry(from, to, &broken));
                }
            }
        });
        Self { address, broken }
    }

    /// From now on nothing arrives on the other side, not even an end.
    pub(crate) fn break_off(&self) {
        self.broken.store(true, Ordering::SeqCst);
    }
}

/// Carries bytes one way, up to the end.
fn carry(mut from: TcpStream, mut to: TcpStream, broken: &AtomicBool) {
    let mut chunk = [0; 16 << 10];
    loop {
        let bytes = from.read(&mut chunk).unwrap_or(0);
        if broken.load(Ordering::SeqCst) {
            if bytes == 0 {
                return;
            }
            continue;
        }
        if bytes == 0 || to.write_all(&chunk[..bytes]).is_err() {
            // Either side may be gone.
            drop((from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both)));
            return;
        }
    }
}
