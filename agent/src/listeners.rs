//! Listening sockets: bound here, accepted on by workers. A socket outlives a
//! change of what it is for.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};
use weir_resilience::config::ServiceId;

use crate::worker::{Command, Commands, Entrance, Target};

/// Connections that wait to be accepted, per listener.
const BACKLOG: i32 = 1024;

/// One listener.
struct Bound {
    /// As it was asked for; the port may be 0.
    wanted: SocketAddr,
    actual: SocketAddr,
    /// Number of the listener and of the worker that accepts on it.
    id: u64,
    worker: usize,
    /// Another handle to the worker's socket.
    socket: TcpListener,
}

/// Every listener of the agent.
pub(crate) struct Listeners {
    workers: Commands,
    bound: HashMap<Target, Bound>,
    next: u64,
}

/// Sockets that are bound and not used yet.
#[derive(Default)]
pub(crate) struct Prepared(Vec<(Target, SocketAddr, TcpListener)>);

impl Prepared {
    /// Lets go of what was bound for `id`: its resource was refused.
    pub(crate) fn abandon(&mut self, id: &ServiceId) {
        self.0
            .retain(|(target, ..)| !matches!(target, Target::Port(service, _) if service == id));
    }
}

impl Listeners {
    pub(crate) fn new(workers: Commands) -> Listeners {
        Listeners {
            workers,
            bound: HashMap::new(),
            next: 0,
        }
    }

    /// Binds what `target` asks for, without accepting yet. Nothing happens
    /// where it has that address already.
    pub(crate) fn prepare(
        &self,
        into: &mut Prepared,
        target: &Target,
        wanted: SocketAddr,
    ) -> Result<(), String> {
        if self.bound.get(target).is_some_and(|b| b.wanted == wanted) {
            return Ok(());
        }
        // Its present owner gives it up with the same change, or the control
        // plane would have refused the second.
        let own = self
            .bound
            .values()
            .find(|b| b.wanted == wanted && wanted.port() != 0);
        let socket = match own {
            Some(own) => own.socket.try_clone(),
            None => bind(wanted),
        };
        let socket = socket.map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => {
                format!("cannot listen on {wanted}: another process does; choose another port")
            }
            _ => format!("cannot listen on {wanted}: {error}"),
        })?;
        into.0.push((target.clone(), wanted, socket));
        Ok(())
    }

    /// Starts accepting on what was prepared, and stops whatever is not in
    /// `wanted` any more.
    pub(crate) fn commit(&mut self, prepared: Prepared, wanted: &HashMap<Target, SocketAddr>) {
        for (target, address, socket) in prepared.0 {
            if let Some(old) = self.bound.remove(&target) {
                self.close(&old);
            }
            if let Err(error) = self.listen(target, address, socket) {
                tracing::error!(%address, %error, "cannot listen");
            }
        }
        let gone: Vec<_> = self
            .bound
            .keys()
            .filter(|t| !wanted.contains_key(*t))
            .cloned()
            .collect();
        for target in gone {
            if let Some(old) = self.bound.remove(&target) {
                self.close(&old);
            }
        }
    }

    /// Where each listener listens, with its real port.
    pub(crate) fn addresses(&self) -> Vec<(Target, SocketAddr)> {
        self.bound
            .iter()
            .map(|(target, bound)| (target.clone(), bound.actual))
            .collect()
    }

    fn listen(
        &mut self,
        target: Target,
        wanted: SocketAddr,
        socket: TcpListener,
    ) -> io::Result<()> {
        let actual = socket.local_addr()?;
        let id = self.next;
        self.next += 1;
        // A listener has a home worker; connections are spread from there.
        let worker = usize::try_from(id).unwrap_or(0) % self.workers.len();
        let command = Command::Listen(id, socket.try_clone()?, Entrance::Own(target.clone()));
        if self.workers[worker].send(command).is_err() {
            return Err(io::Error::other("its worker has ended"));
        }
        self.bound.insert(
            target,
            Bound {
                wanted,
                actual,
                id,
                worker,
                socket,
            },
        );
        Ok(())
    }

    fn close(&self, bound: &Bound) {
        // A worker that has ended has closed it already.
        let _ = self.workers[bound.worker].send(Command::Close(bound.id));
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    // A restart need not wait for old connections to be forgotten.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}
