//! The rules in a pod's network namespace: one table for each family, with what
//! the pod connects to and is connected to that goes through the proxy.
//!
//! - `out`: a new connection to a captured address goes to the proxy's
//!   listener on the loopback address. What the proxy itself sends is known by
//!   its mark.
//! - `pre`: one that comes to a captured port goes to the proxy's other listener.
//! - `mark`, `reply`: the proxy connects to the pod with the address of
//!   whoever called. The pod's replies would leave for the caller: their
//!   connection is marked when it begins, and by that mark they are routed back
//!   to the proxy's socket ([`routing`](super::routing)).
//! - `guard`: who connects to the proxy's ports without having been redirected
//!   there is refused before the proxy hears of it.
//!
//! A kernel translates addresses only while somebody has a chain for that. So
//! to end capturing only the rules go at first, and what is open goes on; the
//! table follows when the proxy has ended. And so that what is open outlives
//! capture, what it needs (`open`, `mark`, `reply`) is in a second table whose
//! socket the proxy holds too. Without a capability it can do nothing with
//! that but close it.

use std::io;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV4};
use std::os::fd::OwnedFd;

use super::netlink::Socket;
use super::nft::{
    Batch, BatchError, ChainType, Expression as E, Family, Field, Hook, Key, KeyType,
};
use super::wire::{INBOUND_PORT, OUTBOUND_PORT};

/// What the proxy's own sockets mark their packets with.
///
/// Marks leave no network namespace. Within a pod's, both keep clear of those
/// of Istio (0x539, 0x111), kube-proxy (0x4000, 0x8000), Cilium and Calico (0xf00
/// and the upper 16 bits), AWS (0x80).
pub(super) const OURS: u32 = 0x3057;
/// The mark of a connection that the proxy made with its caller's address,
/// and of the packets that answer on it.
pub(super) const REPLY: u32 = 0x3052;

const TCP: [u8; 1] = [6];
/// A packet that opens a connection: SYN, and none of FIN, RST and ACK.
///
/// A kernel that begins to track takes the next packet of a connection that was
/// open before for a new one; redirected, it would break.
const OPENS: E<'static> = E::Within {
    field: Field::Flags,
    value: &[0x02],
    mask: &[0x17],
};
/// The connection's destination was translated.
const TRANSLATED: u32 = 1 << 5;

const DESTINATIONS: &str = "destinations";
const PORTS: &str = "ports";
const OPEN: &str = "open";
const OUT: &str = "out";
const PRE: &str = "pre";
const MARK: &str = "mark";
const REPLIES: &str = "reply";
const GUARD: &str = "guard";

/// What of a pod's traffic goes through the proxy. Each list is sorted and
/// says nothing twice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) outbound4: Vec<SocketAddrV4>,
    pub(super) outbound6: Vec<(Ipv6Addr, u16)>,
    pub(super) inbound: Vec<u16>,
}

impl Wanted {
    pub(super) fn new(outbound: impl IntoIterator<Item = SocketAddr>, inbound: Vec<u16>) -> Wanted {
        let mut wanted = Wanted {
            inbound,
            ..Wanted::default()
        };
        for address in outbound {
            match address {
                SocketAddr::V4(address) => wanted.outbound4.push(address),
                SocketAddr::V6(address) => wanted.outbound6.push((*address.ip(), address.port())),
            }
        }
        wanted.outbound4.sort_unstable();
        wanted.outbound4.dedup();
        wanted.outbound6.sort_unstable();
        wanted.outbound6.dedup();
        wanted.inbound.sort_unstable();
        wanted.inbound.dedup();
        wanted
    }
}

/// The tables in one network namespace. They go when this is dropped.
pub(super) struct Tables {
    socket: Socket,
    name: String,
    /// Whether there is one for IPv6.
    ipv6: bool,
    /// Whether what is needed for inbound connections is there. Once there it
    /// stays as long as the tables: open connections need it.
    inbound: bool,
    redirecting: bool,
    now: Wanted,
    lasting: Lasting,
}

/// What open connections need, in tables of its own. They go when this is
/// dropped and the proxy has closed its share.
struct Lasting {
    socket: Socket,
    name: String,
    inbound: bool,
}

impl Lasting {
    fn make(socket: Socket, name: &str, ipv6: bool) -> Result<Lasting, BatchError> {
        // Those of a capture that ended may still be there.
        let name = format!("{name}_open_{:08x}", fastrand::u32(..));
        let mut batch = Batch::new(&name);
        for family in Family::all(ipv6) {
            batch.turn_to(family);
            batch.table();
            batch.chain(OPEN, Hook::Output, ChainType::Nat);
            // Without a rule that asks for it, a kernel does not track, and what
            // it does not track it does not translate.
            batch.rule(
                OPEN,
                &[E::HasSome(Field::ConnectionStatus, TRANSLATED), E::Accept],
            );
        }
        batch.commit(&socket)?;
        Ok(Lasting {
            socket,
            name,
            inbound: false,
        })
    }

    /// Has replies to the proxy's inbound connections come back to it.
    fn begin_inbound(&mut self, ipv6: bool) -> Result<(), BatchError> {
        let mut batch = Batch::new(&self.name);
        for family in Family::all(ipv6) {
            batch.turn_to(family);
            // What is ours and comes in was sent to the pod itself, over its loopback
            // interface: marks do not come from elsewhere.
            batch.chain(MARK, Hook::Prerouting, ChainType::FilterMangle);
            batch.rule(
                MARK,
                &[
                    E::Is(Field::Mark, &OURS.to_ne_bytes()),
                    E::SetConnectionMark(REPLY),
                ],
            );
            batch.chain(REPLIES, Hook::Output, ChainType::RouteMangle);
            batch.rule(
                REPLIES,
                &[
                    E::Is(Field::ConnectionMark, &REPLY.to_ne_bytes()),
                    E::SetMark(REPLY),
                ],
            );
        }
        batch.commit(&self.socket)?;
        self.inbound = true;
        Ok(())
    }
}

impl Tables {
    /// Makes the tables in the network namespace that the thread is in, where
    /// both sockets are too.
    pub(super) fn make(
        [socket, lasting]: [Socket; 2],
        name: &str,
        ipv6: bool,
        wanted: &Wanted,
    ) -> Result<Tables, BatchError> {
        let mut lasting = Lasting::make(lasting, name, ipv6)?;
        if !wanted.inbound.is_empty() {
            lasting.begin_inbound(ipv6)?;
        }
        let mut tables = Tables {
            lasting,
            socket,
            name: name.to_owned(),
            ipv6,
            inbound: false,
            redirecting: false,
            now: Wanted::default(),
        };
        let mut batch = Batch::new(name);
        for family in Family::all(ipv6) {
            batch.turn_to(family);
            begin(&mut batch);
            tables.difference(&mut batch, wanted, true);
        }
        batch.commit(&tables.socket)?;
        tables.is_now(wanted, true);
        Ok(tables)
    }

    /// Redirects this and nothing else; or, if not `redirecting`, nothing.
    ///
    /// All of it changes at once, and what both the old and the new ask for is
    /// redirected at any moment. After an error all is as it was.
    pub(super) fn change(&mut self, wanted: &Wanted, redirecting: bool) -> Result<(), BatchError> {
        if !wanted.inbound.is_empty() && !self.lasting.inbound {
            self.lasting.begin_inbound(self.ipv6)?;
        }
        let mut batch = Batch::new(&self.name);
        for family in Family::all(self.ipv6) {
            batch.turn_to(family);
            self.difference(&mut batch, wanted, redirecting);
        }
        batch.commit(&self.socket)?;
        self.is_now(wanted, redirecting);
        Ok(())
    }

    /// Takes the tables away. Closing the socket does it as well, unless a
    /// process that has just been forked shares it for a moment.
    pub(super) fn remove(self) {
        let both = [
            (&self.name, &self.socket),
            (&self.lasting.name, &self.lasting.socket),
        ];
        for (name, socket) in both {
            let mut batch = Batch::new(name);
            for family in Family::all(self.ipv6) {
                batch.turn_to(family);
                batch.remove_table();
            }
            if let Err(error) = batch.commit(socket) {
                tracing::warn!(%error, "tables are left to the kernel to remove");
            }
        }
    }

    /// What keeps open connections open for as long as somebody has it.
    pub(super) fn lasting(&self) -> io::Result<OwnedFd> {
        self.lasting.socket.share()
    }

    pub(super) fn redirecting(&self) -> bool {
        self.redirecting
    }

    /// Whether replies of inbound connections have rules.
    pub(super) fn inbound(&self) -> bool {
        self.inbound
    }

    fn is_now(&mut self, wanted: &Wanted, redirecting: bool) {
        self.inbound |= !wanted.inbound.is_empty();
        self.redirecting = redirecting;
        self.now.clone_from(wanted);
    }

    fn difference(&self, batch: &mut Batch<'_>, wanted: &Wanted, redirecting: bool) {
        let begins = !self.inbound && !wanted.inbound.is_empty();
        if begins {
            begin_inbound(batch);
        }
        match batch.family() {
            Family::Ip => change_set(
                batch,
                DESTINATIONS,
                &self.now.outbound4,
                &wanted.outbound4,
                |address| key4(*address),
            ),
            Family::Ip6 => change_set(
                batch,
                DESTINATIONS,
                &self.now.outbound6,
                &wanted.outbound6,
                |address| key6(*address),
            ),
        }
        if self.inbound || begins {
            change_set(batch, PORTS, &self.now.inbound, &wanted.inbound, |port| {
                port.to_be_bytes()
            });
        }
        match (self.redirecting, redirecting) {
            (false, true) => {
                redirect_out(batch);
                if self.inbound || begins {
                    redirect_in(batch);
                }
            }
            (true, true) if begins => redirect_in(batch),
            (true, false) => {
                batch.flush(OUT);
                if self.inbound {
                    batch.flush(PRE);
                }
            }
            _ => {}
        }
    }
}

fn begin(batch: &mut Batch<'_>) {
    batch.table();
    batch.set(
        DESTINATIONS,
        match batch.family() {
            Family::Ip => KeyType::Address4AndPort,
            Family::Ip6 => KeyType::Address6AndPort,
        },
    );
    batch.chain(OUT, Hook::Output, ChainType::Nat);
    batch.chain(GUARD, Hook::Input, ChainType::Filter);
    // A packet that is not tracked has no status and is refused below.
    batch.rule(
        GUARD,
        &[E::HasSome(Field::ConnectionStatus, TRANSLATED), E::Accept],
    );
    for port in [OUTBOUND_PORT, INBOUND_PORT] {
        batch.rule(
            GUARD,
            &[
                E::Is(Field::Protocol, &TCP),
                E::Is(Field::Port, &port.to_be_bytes()),
                E::Count,
                E::Reset,
            ],
        );
    }
}

fn redirect_out(batch: &mut Batch<'_>) {
    let family = batch.family();
    batch.rule(OUT, &[E::Is(Field::Mark, &OURS.to_ne_bytes()), E::Return]);
    batch.rule(
        OUT,
        &[
            E::Is(Field::ConnectionMark, &REPLY.to_ne_bytes()),
            E::Return,
        ],
    );
    let loopback = match family {
        Family::Ip => E::Within {
            field: Field::Destination(family),
            value: &[127, 0, 0, 0],
            mask: &[255, 0, 0, 0],
        },
        Family::Ip6 => E::Is(Field::Destination(family), &LOOPBACK6),
    };
    batch.rule(OUT, &[loopback, E::Return]);
    batch.rule(
        OUT,
        &[
            E::Is(Field::Protocol, &TCP),
            OPENS,
            E::In(Key::DestinationAndPort(family), DESTINATIONS),
            E::Count,
            E::Redirect(OUTBOUND_PORT),
        ],
    );
}

const LOOPBACK6: [u8; 16] = Ipv6Addr::LOCALHOST.octets();

fn begin_inbound(batch: &mut Batch<'_>) {
    batch.set(PORTS, KeyType::Port);
    batch.chain(PRE, Hook::Prerouting, ChainType::Nat);
}

fn redirect_in(batch: &mut Batch<'_>) {
    batch.rule(PRE, &[E::Is(Field::Mark, &OURS.to_ne_bytes()), E::Return]);
    batch.rule(
        PRE,
        &[
            E::Is(Field::Protocol, &TCP),
            OPENS,
            E::In(Key::Port, PORTS),
            E::Count,
            E::Redirect(INBOUND_PORT),
        ],
    );
}

/// An address and a port as a key: each part fills 4 bytes.
fn key4(address: SocketAddrV4) -> [u8; 8] {
    let mut key = [0; 8];
    key[..4].copy_from_slice(&address.ip().octets());
    key[4..6].copy_from_slice(&address.port().to_be_bytes());
    key
}

fn key6((address, port): (Ipv6Addr, u16)) -> [u8; 20] {
    let mut key = [0; 20];
    key[..16].copy_from_slice(&address.octets());
    key[16..18].copy_from_slice(&port.to_be_bytes());
    key
}

/// Adds to a set what is new and removes what is gone. Both lists are sorted.
fn change_set<T: Ord, K: AsRef<[u8]>>(
    batch: &mut Batch<'_>,
    set: &'static str,
    from: &[T],
    to: &[T],
    key: impl Fn(&T) -> K,
) {
    let only_in = |these: &[T], those: &[T]| -> Vec<K> {
        these
            .iter()
            .filter(|each| those.binary_search(each).is_err())
            .map(&key)
            .collect()
    };
    batch.add(set, &only_in(to, from));
    batch.remove(set, &only_in(from, to));
}
