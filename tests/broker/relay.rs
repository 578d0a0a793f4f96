//! A wire between a node and its broker, which can be cut, and which can stop carrying.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

/// See the module's page. Its threads end with their connections.
pub(crate) struct Relay {
    pub(crate) port: u16,
    wire: Arc<Wire>,
}

#[derive(Default)]
struct Wire {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    cut: bool,
    stalled: bool,
    sockets: Vec<TcpStream>,
}

impl Relay {
    pub(crate) fn start(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let wire = Arc::new(Wire::default());
        let shared = Arc::clone(&wire);
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect(("127.0.0.1", server)) else { continue };
                let mut state = shared.state.lock().unwrap();
                if state.cut {
                    // Dropped, so that it sees an end.
                    continue;
                }
                for (from, to) in [(&client, &server), (&server, &client)] {
                    drop(from.set_nodelay(true));
                    state.sockets.push(from.try_clone().unwrap());
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let shared = Arc::clone(&shared);
                    thread::spawn(move || shared.carry(from, to));
                }
            }
        });
        Self { port, wire }
    }

    /// Ends every connection, and lets none come to be.
    pub(crate) fn cut(&self) {
        let mut state = self.wire.state.lock().unwrap();
        state.cut = true;
        for socket in state.sockets.drain(..) {
            drop(socket.shutdown(Shutdown::Both));
        }
    }

    /// Carries nothing from now on.
    pub(crate) fn stall(&self) {
        self.wire.state.lock().unwrap().stalled = true;
    }

    /// All is well again.
    pub(crate) fn mend(&self) {
        let mut state = self.wire.state.lock().unwrap();
        state.cut = false;
        state.stalled = false;
        drop(state);
        self.wire.changed.notify_all();
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.mend();
        self.cut();
    }
}

impl Wire {
    fn carry(&self, mut from: TcpStream, mut to: TcpStream) {
        let mut chunk = [0; 16 << 10];
        loop {
            let bytes = from.read(&mut chunk).unwrap_or(0);
            let state = self.state.lock().unwrap();
            drop(self.changed.wait_while(state, |state| state.stalled).unwrap());
            if bytes == 0 || to.write_all(&chunk[..bytes]).is_err() {
                drop((from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both)));
                return;
            }
        }
    }
}
