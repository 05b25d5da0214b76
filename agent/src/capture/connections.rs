//! Connections of a network namespace: which ones go past the proxy, and ending
//! them.
//!
//! Nothing has to be remembered for that. An application's connection that was
//! redirected has its other end in the same namespace: outbound, a socket of the
//! proxy's at the port that is redirected to, with the application's address as
//! its peer; inbound, a marked socket of the proxy's whose address is the
//! caller's. A connection without such an end is direct.
//!
//! The numbers are those of `linux/inet_diag.h`.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::ControlFlow;

use rustix::io::Errno;
use rustix::net::netlink::SOCK_DIAG;

use super::netlink::{ACK, DUMP, Message, Messages, Socket, attributes, u32_at};
use super::nft::Family;
use super::rules::OURS;
use super::wire::{INBOUND_PORT, OUTBOUND_PORT};

/// Connections of one namespace and family that are looked at.
const MAX_CONNECTIONS: usize = 65_536;
/// Connections that are ended at once.
const MAX_RESET: usize = 1024;

const BY_FAMILY: u16 = 20;
const DESTROY: u16 = 21;
const MARK: u16 = 15;
const TCP: u8 = 6;
const ESTABLISHED: u32 = 1 << 1;
/// Both addresses and ports, the interface, and the kernel's own number for a
/// socket.
const IDENTITY: usize = 48;

/// Why connections could not be counted or ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectionsError {
    #[error("cannot list its connections: {0}")]
    List(io::Error),
    #[error("it has more than {MAX_CONNECTIONS} connections: they are not counted")]
    Many,
    #[error("this kernel cannot end connections (it is built without CONFIG_INET_DIAG_DESTROY)")]
    Unable,
    #[error("cannot end a connection: {0}")]
    End(io::Error),
}

/// An application's connection or one of the proxy's.
struct Connection {
    family: Family,
    local: SocketAddr,
    remote: SocketAddr,
    mark: u32,
    identity: [u8; IDENTITY],
}

/// Counts the open connections of the namespace that the thread is in that go
/// past the proxy: those to each destination, then those to each port. Ends at
/// most `reset` of them.
pub(super) fn existing(
    destinations: &[SocketAddr],
    ports: &[u16],
    reset: usize,
) -> Result<Vec<u32>, ConnectionsError> {
    let destination: HashMap<_, _> = (0..).zip(destinations).map(|(n, a)| (*a, n)).collect();
    let port: HashMap<_, usize> = (destinations.len()..)
        .zip(ports)
        .map(|(n, port)| (*port, n))
        .collect();
    let mut sent = HashSet::new();
    let mut received = HashSet::new();
    // To list is dear (the kernel goes through the whole machine's): once.
    let mut asked = Vec::new();
    each(|connection| {
        if connection.local.port() == OUTBOUND_PORT {
            sent.insert(connection.remote);
        } else if connection.mark == OURS {
            received.insert((connection.remote, connection.local));
        } else if destination.contains_key(&connection.remote)
            || port.contains_key(&connection.local.port())
        {
            asked.push(connection);
        }
    })?;
    let mut counts = vec![0; destinations.len() + ports.len()];
    let mut ends = Vec::new();
    for connection in asked {
        let sends = destination
            .get(&connection.remote)
            .filter(|_| !sent.contains(&connection.local));
        let receives = port
            .get(&connection.local.port())
            .filter(|_| !received.contains(&(connection.local, connection.remote)));
        for place in [sends, receives].into_iter().flatten() {
            counts[*place] += 1;
        }
        if (sends.is_some() || receives.is_some()) && ends.len() < reset.min(MAX_RESET) {
            ends.push(connection);
        }
    }
    end(&ends)?;
    Ok(counts)
}

/// Ends the connections that the proxy has accepted in the namespace that the
/// thread is in: whoever made them is told at once.
pub(super) fn end_accepted() -> Result<(), ConnectionsError> {
    let mut ends = Vec::new();
    each(|connection| {
        if [OUTBOUND_PORT, INBOUND_PORT].contains(&connection.local.port()) {
            ends.push(connection);
        }
    })?;
    end(&ends)
}

fn each(mut found: impl FnMut(Connection)) -> Result<(), ConnectionsError> {
    let socket = Socket::open(Some(SOCK_DIAG)).map_err(ConnectionsError::List)?;
    for family in [Family::Ip, Family::Ip6] {
        let mut question = Messages::default();
        let fixed = request(family, &[0; IDENTITY]);
        question.push(BY_FAMILY, DUMP, 1, &fixed, |_| {});
        let mut count = 0;
        let listed = socket.dump(&question, |message| {
            count += 1;
            if count > MAX_CONNECTIONS {
                return ControlFlow::Break(());
            }
            if let Some(connection) = read(message, family) {
                found(connection);
            }
            ControlFlow::Continue(())
        });
        if count > MAX_CONNECTIONS {
            return Err(ConnectionsError::Many);
        }
        match listed {
            // A kernel without IPv6.
            Err(Errno::NOENT | Errno::AFNOSUPPORT) if family == Family::Ip6 => {}
            listed => listed.map_err(|error| ConnectionsError::List(error.into()))?,
        }
    }
    Ok(())
}

fn read(message: &Message<'_>, family: Family) -> Option<Connection> {
    const FIXED: usize = 72;
    let body = message.body;
    let identity = <[u8; IDENTITY]>::try_from(body.get(4..4 + IDENTITY)?).ok()?;
    let mark = attributes(body.get(FIXED..).unwrap_or_default())
        .find(|(kind, _)| *kind == MARK)
        .and_then(|(_, value)| u32_at(value, 0));
    let port = |at: usize| u16::from_be_bytes([identity[at], identity[at + 1]]);
    let address = |at: usize| {
        let mut octets = [0; 16];
        octets.copy_from_slice(&identity[at..at + 16]);
        let [a, b, c, d, ..] = octets;
        match family {
            Family::Ip => Ipv4Addr::new(a, b, c, d).into(),
            // Servers that listen for both families have IPv4 so.
            Family::Ip6 => IpAddr::from(Ipv6Addr::from(octets)).to_canonical(),
        }
    };
    Some(Connection {
        family,
        local: SocketAddr::new(address(4), port(0)),
        remote: SocketAddr::new(address(20), port(2)),
        mark: mark.unwrap_or_default(),
        identity,
    })
}

/// Resets connections: both ends of each are told.
fn end(connections: &[Connection]) -> Result<(), ConnectionsError> {
    let socket = Socket::open(Some(SOCK_DIAG)).map_err(ConnectionsError::List)?;
    for connection in connections {
        let mut messages = Messages::default();
        let fixed = request(connection.family, &connection.identity);
        messages.push(DESTROY, ACK, 1, &fixed, |_| {});
        match socket
            .request(&messages, 1)
            .map_err(|refusal| refusal.error)
        {
            // Gone meanwhile.
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::OPNOTSUPP) => return Err(ConnectionsError::Unable),
            Err(error) => return Err(ConnectionsError::End(error.into())),
        }
    }
    Ok(())
}

fn request(family: Family, identity: &[u8; IDENTITY]) -> [u8; 8 + IDENTITY] {
    let mut request = [0; 8 + IDENTITY];
    request[0] = family as u8;
    request[1] = TCP;
    request[4..8].copy_from_slice(&ESTABLISHED.to_ne_bytes());
    request[8..].copy_from_slice(identity);
    request
}
