//! The one table of addresses of a server, and the places that sockets and connections hold in it: they give them back when
//! they are dropped. Taken by accepts, handshakes and ends of connections, never by a sample.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::{Admission, Network};
use crate::config::ServerLimits;
use crate::metrics::{By, SocketRefusal};

/// See the module's page.
#[derive(Clone, Debug)]
pub struct Door(Arc<Mutex<Inside>>);

#[derive(Debug)]
struct Inside {
    admission: Admission,
    refused: By<SocketRefusal>,
}

impl Door {
    /// The door of a server with these limits.
    #[must_use]
    pub fn new(limits: &ServerLimits, now: Instant) -> Self {
        let inside = Inside { admission: Admission::new(limits, now), refused: By::default() };
        Self(Arc::new(Mutex::new(inside)))
    }

    /// Lets a socket in that was just accepted. `address` is nothing for a proxy's: whose it is will be seen later.
    ///
    /// # Errors
    /// Says what there is too much of; it is counted.
    pub fn accept(&self, address: Option<IpAddr>, now: Instant) -> Result<Place, SocketRefusal> {
        let network = address.and_then(Network::of);
        self.counted(|admission| match network {
            Some(network) => admission.accept(network, now),
            None => admission.accept_any(now),
        })?;
        Ok(Place { door: self.clone(), network, kind: Kind::Socket })
    }

    /// Lets the socket in that a proxy has accepted for this client, or that is not counted with those of all. `client` is nothing
    /// for a proxy's own.
    ///
    /// # Errors
    /// Says what there is too much of; it is counted.
    pub fn enter(&self, client: Option<IpAddr>, now: Instant) -> Result<Place, SocketRefusal> {
        let network = client.and_then(Network::of);
        self.counted(|admission| network.map_or(Ok(()), |network| admission.enter(network, now)))?;
        Ok(Place { door: self.clone(), network, kind: Kind::Socket })
    }

    /// Whether this client may ask for one more connection this second, over a socket of a proxy.
    #[must_use]
    pub fn passes(&self, client: IpAddr, now: Instant) -> bool {
        let network = Network::of(client);
        network.is_none_or(|network| self.inside().admission.pass(network, now).is_ok())
    }

    /// A place for a connection of this address; nothing if it has all that it may have.
    #[must_use]
    pub fn connect(&self, address: IpAddr, now: Instant) -> Option<Place> {
        let network = Network::of(address);
        let free = network.is_none_or(|network| self.inside().admission.connect(network, now));
        free.then(|| Place { door: self.clone(), network, kind: Kind::Connection })
    }

    /// Counts a socket that was refused elsewhere.
    pub fn count(&self, refusal: SocketRefusal) {
        self.inside().refused[refusal] += 1;
    }

    /// The sockets that were refused.
    #[must_use]
    pub fn refused(&self) -> By<SocketRefusal> {
        self.inside().refused.clone()
    }

    /// Addresses in the table.
    #[must_use]
    pub fn addresses(&self) -> usize {
        self.inside().admission.addresses()
    }

    fn counted(
        &self,
        work: impl FnOnce(&mut Admission) -> Result<(), SocketRefusal>,
    ) -> Result<(), SocketRefusal> {
        let mut inside = self.inside();
        let outcome = work(&mut inside.admission);
        if let Err(refusal) = outcome {
            inside.refused[refusal] += 1;
        }
        outcome
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        // A panic inside leaves the counts consistent enough to go on.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in the table; given back when it is dropped.
#[derive(Debug)]
pub struct Place {
    door: Door,
    /// Where it is counted; nothing for who is not limited.
    network: Option<Network>,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Socket,
    Connection,
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(network) = self.network else { return };
        let admission = &mut self.door.inside().admission;
        match self.kind {
            Kind::Socket => admission.leave(network),
            Kind::Connection => admission.disconnect(network),
        }
    }
}
