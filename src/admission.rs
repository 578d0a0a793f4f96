//! How much one client address, and all of them together, may open: new sockets a second, sockets that are no WebSocket yet,
//! connections. A table of what each address has. Pure: time is an argument, and no socket is ever seen; `door.rs` has the
//! lock around it.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use crate::bucket::Bucket;
use crate::config::ServerLimits;
use crate::metrics::SocketRefusal;

pub mod door;

/// Sockets that are no WebSocket yet, of all addresses, for each worker: handshakes under way, health checks, scrapes.
pub const PLAIN_SOCKETS_MAX: usize = 1_024;

/// Sockets of one address that are no WebSocket yet: a sixteenth of the least that a server has, so that one address cannot
/// keep out the others. A handshake takes some round trips, so even a network behind one address sets up hundreds a second.
pub const PLAIN_SOCKETS_PER_ADDRESS_MAX: u32 = 64;

/// Addresses that have nothing open and are remembered for their rate, some 2 MiB. One more makes the oldest forgotten, which
/// then has its whole rate again: with so many new addresses a second it is not one address that is the trouble.
pub const IDLE_ADDRESSES_MAX: usize = 1 << 14;

/// How long an address is remembered after its last socket: then its bucket is full, and to forget it changes nothing.
const REMEMBERED: Duration = Duration::from_secs(1);

/// Most idle addresses that one call looks at while there are not too many; more than it can add.
const LOOKS_MAX: usize = 8;

/// What addresses are counted by: who has one address of IPv6 has the 2^64 of its network. Nothing for this machine's own,
/// which are not limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Network(IpAddr);

impl Network {
    /// The network of an address.
    #[must_use]
    pub fn of(address: IpAddr) -> Option<Self> {
        let address = address.to_canonical();
        match address {
            _ if address.is_loopback() => None,
            IpAddr::V4(_) => Some(Self(address)),
            IpAddr::V6(v6) => Some(Self(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into())),
        }
    }
}

/// See the module's page.
#[derive(Debug)]
pub struct Admission {
    per_address_per_s: u64,
    connections_max: u32,
    rate: Bucket,
    rows: HashMap<Network, Row>,
    /// Every row that has nothing open, once, by the time of its last socket; and some that have something again.
    idle: VecDeque<(Instant, Network)>,
    /// Rows that have nothing open.
    idle_rows: usize,
}

#[derive(Debug)]
struct Row {
    rate: Bucket,
    sockets: u32,
    connections: u32,
    seen: Instant,
    /// Whether it is in `idle`.
    listed: bool,
}

impl Row {
    const fn is_idle(&self) -> bool {
        self.sockets == 0 && self.connections == 0
    }
}

impl Admission {
    /// Nothing is open, and every bucket is full.
    #[must_use]
    pub fn new(limits: &ServerLimits, now: Instant) -> Self {
        Self {
            per_address_per_s: u64::from(limits.accepts_per_address_per_s_max),
            // More than a `u32` do not fit a process.
            connections_max: u32::try_from(limits.connections_per_address_max).unwrap_or(u32::MAX),
            rate: Bucket::new(u64::from(limits.accepts_per_s_max), now),
            rows: HashMap::new(),
            idle: VecDeque::new(),
            idle_rows: 0,
        }
    }

    /// A socket was accepted, of an address that is not limited or not known yet.
    ///
    /// # Errors
    /// The server has enough of them this second.
    pub fn accept_any(&mut self, now: Instant) -> Result<(), SocketRefusal> {
        if !self.rate.has(1, now) {
            return Err(SocketRefusal::Rate);
        }
        self.rate.take(1);
        Ok(())
    }

    /// A socket of `network` was accepted; it is in the table until [`Admission::leave`].
    ///
    /// # Errors
    /// There is enough of them. What is refused takes nothing from the others: no token of the server's, no place.
    pub fn accept(&mut self, network: Network, now: Instant) -> Result<(), SocketRefusal> {
        if !self.rate.has(1, now) {
            return Err(SocketRefusal::Rate);
        }
        self.enter(network, now)?;
        self.rate.take(1);
        Ok(())
    }

    /// A socket that was accepted before turns out to be of `network`; as [`Admission::accept`] otherwise.
    ///
    /// # Errors
    /// The address has enough of them.
    pub fn enter(&mut self, network: Network, now: Instant) -> Result<(), SocketRefusal> {
        let row = self.row(network, now);
        let outcome = if row.sockets >= PLAIN_SOCKETS_PER_ADDRESS_MAX {
            Err(SocketRefusal::AddressSockets)
        } else {
            row.take_token(now)
        };
        if outcome.is_ok() {
            self.change(network, |row| row.sockets += 1);
        }
        outcome
    }

    /// A request of `network` that came over another's socket and wants to become a connection.
    ///
    /// # Errors
    /// The address has enough of them this second.
    pub fn pass(&mut self, network: Network, now: Instant) -> Result<(), SocketRefusal> {
        self.row(network, now).take_token(now)
    }

    /// A socket that was let in is a WebSocket now, or has ended.
    pub fn leave(&mut self, network: Network) {
        self.change(network, |row| row.sockets = row.sockets.saturating_sub(1));
    }

    /// Counts a connection of `network`, unless it has all that it may have; says which. Where they are not limited there is
    /// nothing to count.
    pub fn connect(&mut self, network: Network, now: Instant) -> bool {
        let most = self.connections_max;
        if most == 0 {
            return true;
        }
        let free = self.row(network, now).connections < most;
        if free {
            self.change(network, |row| row.connections += 1);
        }
        free
    }

    /// A connection that was counted has ended.
    pub fn disconnect(&mut self, network: Network) {
        if self.connections_max > 0 {
            self.change(network, |row| row.connections = row.connections.saturating_sub(1));
        }
    }

    /// Addresses in the table.
    #[must_use]
    pub fn addresses(&self) -> usize {
        self.rows.len()
    }

    /// The row of a network, which is made if there is none.
    fn row(&mut self, network: Network, now: Instant) -> &mut Row {
        self.forget_idle(now);
        let row = match self.rows.entry(network) {
            Entry::Occupied(row) => row.into_mut(),
            Entry::Vacant(place) => {
                self.idle.push_back((now, network));
                self.idle_rows += 1;
                let rate = Bucket::new(self.per_address_per_s, now);
                place.insert(Row { rate, sockets: 0, connections: 0, seen: now, listed: true })
            }
        };
        row.seen = now;
        row
    }

    /// Changes what a network has open; lists it if that is nothing.
    fn change(&mut self, network: Network, change: impl FnOnce(&mut Row)) {
        let Some(row) = self.rows.get_mut(&network) else { return };
        let before = row.is_idle();
        change(row);
        match (before, row.is_idle()) {
            (false, true) => {
                self.idle_rows += 1;
                if !row.listed {
                    row.listed = true;
                    self.idle.push_back((row.seen, network));
                }
            }
            (true, false) => self.idle_rows -= 1,
            _ => {}
        }
    }

    /// Forgets addresses whose bucket is full by now, and as many more as are too many.
    fn forget_idle(&mut self, now: Instant) {
        for look in 0.. {
            // If it is full, one that is idle is in the list.
            let full = self.idle_rows >= IDLE_ADDRESSES_MAX;
            if look >= LOOKS_MAX && !full {
                return;
            }
            let old = |at: Instant| now.saturating_duration_since(at) >= REMEMBERED;
            let Some((_, network)) = self.idle.pop_front_if(|(at, _)| full || old(*at)) else { return };
            let Entry::Occupied(mut row) = self.rows.entry(network) else { continue };
            if !row.get().is_idle() {
                row.get_mut().listed = false;
            } else if full || old(row.get().seen) {
                row.remove();
                self.idle_rows -= 1;
            } else {
                self.idle.push_back((row.get().seen, network));
            }
        }
    }
}

impl Row {
    fn take_token(&mut self, now: Instant) -> Result<(), SocketRefusal> {
        if !self.rate.has(1, now) {
            return Err(SocketRefusal::AddressRate);
        }
        self.rate.take(1);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn table(per_s: u32, per_address_per_s: u32, connections: usize) -> (Admission, Instant) {
        let limits = ServerLimits {
            accepts_per_s_max: per_s,
            accepts_per_address_per_s_max: per_address_per_s,
            connections_per_address_max: connections,
            ..ServerLimits::default()
        };
        let now = Instant::now();
        (Admission::new(&limits, now), now)
    }

    fn network(address: &str) -> Network {
        Network::of(address.parse().unwrap()).unwrap()
    }

    fn numbered(number: u32) -> Network {
        Network(IpAddr::V4(number.into()))
    }

    #[test]
    fn an_address_of_ipv6_is_its_network_and_this_machine_is_none() {
        assert_eq!(network("2001:db8::1"), network("2001:db8::2:0:0:1"));
        assert_ne!(network("2001:db8::1"), network("2001:db8:0:1::1"));
        assert_eq!(network("192.0.2.1"), network("::ffff:192.0.2.1"));
        assert_ne!(network("192.0.2.1"), network("192.0.2.2"));
        for own in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"] {
            assert_eq!(Network::of(own.parse().unwrap()), None, "{own}");
        }
    }

    #[test]
    fn one_address_does_not_take_the_rate_of_all() {
        let (mut table, now) = table(10, 3, 0);
        let (loud, quiet) = (network("192.0.2.1"), network("192.0.2.2"));
        for turn in 0..100 {
            assert_eq!(table.accept(loud, now).is_ok(), turn < 3);
        }
        assert_eq!(table.accept(loud, now), Err(SocketRefusal::AddressRate));
        for _ in 0..3 {
            assert_eq!(table.accept(quiet, now), Ok(()));
        }
        for _ in 0..4 {
            assert_eq!(table.accept_any(now), Ok(()));
        }
        assert_eq!(table.accept_any(now), Err(SocketRefusal::Rate));
        assert_eq!(table.accept(network("192.0.2.3"), now), Err(SocketRefusal::Rate));
        assert_eq!(table.addresses(), 2, "who is refused by the server's rate gets no row");
        let later = now + Duration::from_secs(1);
        assert_eq!((table.accept(loud, later), table.accept_any(later)), (Ok(()), Ok(())));
    }

    #[test]
    fn sockets_of_an_address_are_counted_and_given_back() {
        let (mut table, now) = table(0, 0, 0);
        let (loud, quiet) = (network("192.0.2.1"), network("192.0.2.2"));
        for _ in 0..PLAIN_SOCKETS_PER_ADDRESS_MAX {
            assert_eq!(table.accept(loud, now), Ok(()));
        }
        assert_eq!(table.accept(loud, now), Err(SocketRefusal::AddressSockets));
        assert_eq!(table.accept(quiet, now), Ok(()));
        table.leave(loud);
        assert_eq!(table.accept(loud, now), Ok(()));
        assert_eq!(table.accept(loud, now), Err(SocketRefusal::AddressSockets));
    }

    #[test]
    fn connections_of_an_address_are_counted_and_given_back() {
        let (mut table, now) = table(0, 0, 2);
        let (one, other) = (network("2001:db8::1"), network("192.0.2.1"));
        assert_eq!([one, one, one, other].map(|it| table.connect(it, now)), [true, true, false, true]);
        table.disconnect(one);
        assert_eq!([one, one].map(|it| table.connect(it, now)), [true, false]);
    }

    #[test]
    fn a_request_of_another_socket_takes_the_rate_alone() {
        let (mut table, now) = table(1, 2, 0);
        let client = network("192.0.2.1");
        let mut pass = || table.pass(client, now);
        assert_eq!([pass(), pass(), pass()], [Ok(()), Ok(()), Err(SocketRefusal::AddressRate)]);
    }

    #[test]
    fn the_table_is_bounded_and_forgets_who_is_gone() {
        let (mut table, start) = table(0, 2, 0);
        let busy = network("192.0.2.1");
        assert_eq!(table.accept(busy, start), Ok(()));
        let crowd = u32::try_from(IDLE_ADDRESSES_MAX).unwrap() * 2;
        for number in 0..crowd {
            assert_eq!(table.accept(numbered(number), start), Ok(()));
            table.leave(numbered(number));
            assert!(table.addresses() <= IDLE_ADDRESSES_MAX + 1);
        }
        // A second later they are forgotten, a few with each socket.
        let later = start + REMEMBERED;
        for _ in 0..IDLE_ADDRESSES_MAX {
            assert_eq!(table.accept_any(later), Ok(()));
            let _ = table.pass(busy, later);
        }
        assert_eq!(table.addresses(), 1, "who has something open stays");
        assert!(table.idle.is_empty());
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Accept(u32),
        Enter(u32),
        Pass(u32),
        Leave(u32),
        Connect(u32),
        Disconnect(u32),
        Wait(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        let address = || 0..5_u32;
        prop_oneof![
            address().prop_map(Step::Accept),
            address().prop_map(Step::Enter),
            address().prop_map(Step::Pass),
            address().prop_map(Step::Leave),
            address().prop_map(Step::Connect),
            address().prop_map(Step::Disconnect),
            prop_oneof![0..300_u64, 900..3_000_u64].prop_map(Step::Wait),
        ]
    }

    proptest! {
        /// Beside plain counts: what is open is what was let in, nobody gets more in a second than the bucket may give at once
        /// and earn meanwhile, and a
        /// row is there as long as something is open, and not much longer.
        #[test]
        fn whatever_comes_the_counts_hold(steps in vec(step(), 0..300)) {
            const PER_S: u32 = 5;
            const CONNECTIONS: usize = 3;
            let (mut table, mut now) = table(0, PER_S, CONNECTIONS);
            let mut sockets = [0_u32; 5];
            let mut connections = [0_usize; 5];
            let mut taken: [Vec<Instant>; 5] = Default::default();
            for step in steps {
                match step {
                    Step::Accept(n) | Step::Enter(n) | Step::Pass(n) => {
                        let (network, at) = (numbered(n), n as usize);
                        let outcome = match step {
                            Step::Accept(_) => table.accept(network, now),
                            Step::Enter(_) => table.enter(network, now),
                            _ => table.pass(network, now),
                        };
                        let fresh = taken[at].iter().filter(|&&then| now - then < REMEMBERED).count();
                        let full = sockets[at] >= PLAIN_SOCKETS_PER_ADDRESS_MAX;
                        if outcome.is_ok() {
                            prop_assert!(fresh < 3 * PER_S as usize);
                            taken[at].push(now);
                            if !matches!(step, Step::Pass(_)) {
                                prop_assert!(!full);
                                sockets[at] += 1;
                            }
                        } else {
                            prop_assert!(full || fresh > 0, "whoever was quiet for a second is let in");
                        }
                    }
                    Step::Leave(n) if sockets[n as usize] > 0 => {
                        sockets[n as usize] -= 1;
                        table.leave(numbered(n));
                    }
                    Step::Connect(n) => {
                        let free = connections[n as usize] < CONNECTIONS;
                        prop_assert_eq!(table.connect(numbered(n), now), free);
                        connections[n as usize] += usize::from(free);
                    }
                    Step::Disconnect(n) if connections[n as usize] > 0 => {
                        connections[n as usize] -= 1;
                        table.disconnect(numbered(n));
                    }
                    Step::Leave(_) | Step::Disconnect(_) => {}
                    Step::Wait(ms) => now += Duration::from_millis(ms),
                }
                for (n, (sockets, connections)) in (0..).zip(sockets.iter().zip(connections)) {
                    let row = table.rows.get(&numbered(n));
                    let open = row.map_or((0, 0), |row| (row.sockets, row.connections as usize));
                    prop_assert_eq!(open, (*sockets, connections));
                }
                let idle = table.rows.values().filter(|row| row.is_idle());
                prop_assert_eq!(table.idle_rows, idle.clone().count());
                prop_assert!(idle.clone().all(|row| row.listed), "one that nobody looks for stays for ever");
                let listed = table.rows.values().filter(|row| row.listed).count();
                prop_assert_eq!(table.idle.len(), listed);
            }
            now += 2 * REMEMBERED;
            for _ in 0..20 {
                table.forget_idle(now);
            }
            let open = sockets.iter().zip(connections).filter(|(s, c)| **s > 0 || *c > 0).count();
            prop_assert_eq!(table.addresses(), open);
        }
    }
}
