//! A pod that is captured.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, Type};

use super::connections::{self, ConnectionsError};
use super::namespaces::{Identity, Namespace, Namespaces};
use super::nft::{self, BatchError, Family};
use super::routing;
use super::rules::{OURS, Tables, Wanted};
use super::wire::{Given, INBOUND_PORT, OUTBOUND_PORT};

/// Connections that wait to be accepted by the proxy. The system may allow
/// fewer (`net.core.somaxconn`).
const BACKLOG: i32 = 4096;

/// What every table of ours is called, an instance's name apart.
pub(super) const PREFIX: &str = "weir_";

/// Sockets for the proxy, by what they are.
pub(super) type Gifts = Vec<(Given, OwnedFd)>;

/// Why something could not be done in a pod's network namespace.
#[derive(Debug, thiserror::Error)]
pub(super) enum PodError {
    #[error("cannot enter its network namespace: {0}")]
    Enter(io::Error),
    #[error("cannot listen on {address}: {error}")]
    Listen {
        address: SocketAddr,
        error: io::Error,
    },
    #[error("cannot make a socket that {what}: {error}")]
    Socket {
        what: &'static str,
        error: io::Error,
    },
    #[error("cannot speak with nftables: {0}")]
    Open(io::Error),
    #[error("cannot change the {0}")]
    Rules(#[from] BatchError),
    #[error(transparent)]
    Connections(#[from] ConnectionsError),
    #[error("cannot route replies back: {0}")]
    Route(io::Error),
}

/// A pod, its namespace, and what is there of ours.
pub(super) struct Pod {
    namespace: Namespace,
    addresses: Vec<IpAddr>,
    wanted: Wanted,
    /// None: nothing is redirected, and nothing of ours is there but sockets.
    tables: Option<Tables>,
    /// Whether it has IPv6. Known once it was listened for.
    ipv6: bool,
    /// What of the listeners the proxy has been given.
    outbound_given: bool,
    inbound_given: bool,
    /// Whether the proxy has its share of what open connections need.
    lasting_given: bool,
}

impl Pod {
    pub(super) fn new(namespace: Namespace, addresses: Vec<IpAddr>) -> Pod {
        Pod {
            namespace,
            addresses,
            wanted: Wanted::default(),
            tables: None,
            ipv6: false,
            outbound_given: false,
            inbound_given: false,
            lasting_given: false,
        }
    }

    pub(super) fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    pub(super) fn identity(&self) -> Identity {
        self.namespace.identity()
    }

    pub(super) fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// Captures as `wanted`, and not otherwise; or, unless `redirecting`, is
    /// ready to. Returns the listeners that the proxy has not got yet: they
    /// listen before anything is redirected to them.
    ///
    /// After an error all is as it was, or nothing is redirected.
    pub(super) fn capture(
        &mut self,
        namespaces: &Namespaces,
        table: &str,
        wanted: Wanted,
        redirecting: bool,
    ) -> Result<Gifts, PodError> {
        let inbound = !wanted.inbound.is_empty() && !self.inbound_given;
        let mut gifts = Gifts::new();
        if inbound || !self.outbound_given || (redirecting && self.tables.is_none()) {
            let done = namespaces.within(&self.namespace, || {
                if !self.outbound_given {
                    listen_outbound(&mut gifts)?;
                    self.ipv6 = gifts.iter().any(|(given, _)| *given == Given::Outbound6);
                }
                if inbound {
                    listen_inbound(&mut gifts, self.ipv6)?;
                }
                if redirecting {
                    redirect(&mut self.tables, table, self.ipv6, &wanted)?;
                }
                Ok(())
            });
            done.map_err(PodError::Enter)
                .and_then(|done: Result<(), PodError>| done)?;
        } else if let Some(tables) = &mut self.tables {
            tables.change(&wanted, redirecting)?;
        }
        if !self.lasting_given
            && let Some(tables) = &self.tables
        {
            gifts.push((Given::Lasting, tables.lasting().map_err(PodError::Open)?));
            self.lasting_given = true;
        }
        self.outbound_given = true;
        self.inbound_given |= !wanted.inbound.is_empty();
        self.wanted = wanted;
        Ok(gifts)
    }

    /// Redirects again as it was asked for last.
    pub(super) fn put_back(
        &mut self,
        namespaces: &Namespaces,
        table: &str,
    ) -> Result<(), PodError> {
        namespaces
            .within(&self.namespace, || {
                redirect(&mut self.tables, table, self.ipv6, &self.wanted)
            })
            .map_err(PodError::Enter)
            .and_then(|done| done)
    }

    /// Redirects nothing more, and lets open connections go on. If even that
    /// fails the tables go.
    pub(super) fn retreat(&mut self) {
        if let Some(tables) = &mut self.tables
            && tables.redirecting()
            && tables.change(&self.wanted, false).is_err()
        {
            self.tables = None;
        }
    }

    /// Ends what the proxy has accepted. As long as the tables are there, so
    /// that who made the connections hears it.
    pub(super) fn end_accepted(&self, namespaces: &Namespaces) -> Result<(), PodError> {
        namespaces
            .within(&self.namespace, connections::end_accepted)
            .map_err(PodError::Enter)??;
        Ok(())
    }

    /// Takes the tables away, and open connections' translation with them.
    pub(super) fn let_go(&mut self, namespaces: &Namespaces) {
        let Some(tables) = self.tables.take() else {
            return;
        };
        let inbound = tables.inbound();
        tables.remove();
        self.lasting_given = false;
        if inbound {
            let ipv6 = self.ipv6;
            // A namespace that cannot be entered any more keeps two rules that
            // nothing matches.
            let _ = namespaces.within(&self.namespace, || clear_routes(ipv6));
        }
    }

    /// The proxy that had the listeners is gone: the next one gets others.
    pub(super) fn forget_proxy(&mut self) {
        self.outbound_given = false;
        self.inbound_given = false;
        self.lasting_given = false;
    }

    /// Sockets in its namespace to connect with, known by their mark.
    /// `transparent` ones may take any address.
    pub(super) fn sockets(
        &self,
        namespaces: &Namespaces,
        ipv6: bool,
        transparent: bool,
        count: usize,
    ) -> Result<Gifts, PodError> {
        namespaces
            .within(&self.namespace, || {
                (0..count)
                    .map(|_| Ok((Given::Socket, upstream(ipv6, transparent)?.into())))
                    .collect()
            })
            .map_err(PodError::Enter)
            .and_then(|made| made)
    }
}

/// Has the rules redirect, in the namespace that the thread is in.
fn redirect(
    there: &mut Option<Tables>,
    name: &str,
    ipv6: bool,
    wanted: &Wanted,
) -> Result<(), PodError> {
    let tables = match there {
        Some(tables) => {
            tables.change(wanted, true)?;
            tables
        }
        None => {
            let open = || nft::open().map_err(PodError::Open);
            there.insert(Tables::make([open()?, open()?], name, ipv6, wanted)?)
        }
    };
    if tables.inbound() {
        for family in Family::all(ipv6) {
            if let Err(error) = routing::replies_come_back(family) {
                // Callers' connections would be redirected and never answered.
                *there = None;
                return Err(PodError::Route(error));
            }
        }
    }
    Ok(())
}

/// Takes routes for replies away, unless another instance needs them.
fn clear_routes(ipv6: bool) -> io::Result<()> {
    let socket = nft::open()?;
    for family in Family::all(ipv6) {
        if nft::has_table(&socket, family, PREFIX)? {
            continue;
        }
        routing::replies_leave(family)?;
        // One that came meanwhile found them there: its table came first.
        if nft::has_table(&socket, family, PREFIX)? {
            routing::replies_come_back(family)?;
        }
    }
    Ok(())
}

fn listen_outbound(gifts: &mut Gifts) -> Result<(), PodError> {
    let port = OUTBOUND_PORT;
    gifts.push((
        Given::Outbound4,
        listen((Ipv4Addr::LOCALHOST, port).into())?,
    ));
    match listen((Ipv6Addr::LOCALHOST, port).into()) {
        Ok(listener) => gifts.push((Given::Outbound6, listener)),
        // Pods without IPv6 are usual.
        Err(PodError::Listen { error, .. }) if has_no_ipv6(&error) => {}
        Err(error) => return Err(error),
    }
    Ok(())
}

fn has_no_ipv6(error: &io::Error) -> bool {
    [Errno::ADDRNOTAVAIL, Errno::AFNOSUPPORT]
        .iter()
        .any(|without| error.raw_os_error() == Some(without.raw_os_error()))
}

fn listen_inbound(gifts: &mut Gifts, ipv6: bool) -> Result<(), PodError> {
    let port = INBOUND_PORT;
    gifts.push((
        Given::Inbound4,
        listen((Ipv4Addr::UNSPECIFIED, port).into())?,
    ));
    if ipv6 {
        let listener = listen((Ipv6Addr::UNSPECIFIED, port).into())?;
        gifts.push((Given::Inbound6, listener));
    }
    Ok(())
}

fn listen(address: SocketAddr) -> Result<OwnedFd, PodError> {
    let listener = || {
        // CLOEXEC, as every socket here.
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        // Connections of one that ended may still be there.
        socket.set_reuse_address(true)?;
        // Two instances share a port while one follows the other.
        socket.set_reuse_port(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        prefer_second(&socket)?;
        Ok(socket.into())
    };
    listener().map_err(|error| PodError::Listen { address, error })
}

/// Where two listeners share a port, has every new connection come to the one
/// that was there second: the first is of an instance that goes, and what comes
/// between its last accept and its end would be reset. A listener that is alone has
/// them all: a place that is not there counts as none said.
fn prefer_second(listener: &Socket) -> io::Result<()> {
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let mut program = [libc::sock_filter {
        code: RETURN,
        jt: 0,
        jf: 0,
        k: 1,
    }];
    let program = libc::sock_fprog {
        len: 1,
        filter: program.as_mut_ptr(),
    };
    setsockopt(listener, sockopt::AttachReusePortCbpf, &program)?;
    Ok(())
}

pub(super) fn upstream(ipv6: bool, transparent: bool) -> Result<Socket, PodError> {
    let failed = |what| move |error| PodError::Socket { what, error };
    let domain = if ipv6 { Domain::IPV6 } else { Domain::IPV4 };
    let socket = Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP))
        .map_err(failed("connects"))?;
    socket
        .set_mark(OURS)
        .map_err(failed("marks what it sends"))?;
    if transparent {
        if ipv6 {
            socket.set_ip_transparent_v6(true)
        } else {
            socket.set_ip_transparent_v4(true)
        }
        .map_err(failed("takes any address"))?;
    }
    Ok(socket)
}
