//! Idle connections to endpoints, of one worker. Last in, first out: what was
//! used a moment ago is the least likely to be closed.

use std::collections::HashMap;
use std::pin::Pin;
use std::task::{Context, Waker};
use std::time::Duration;

use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;
use weir_resilience::Time;

use crate::dial::Exit;

/// Idle connections per endpoint and worker.
const PER_ENDPOINT: usize = 64;
/// Idle connections per worker.
const PER_WORKER: usize = 2048;
/// How long a connection may idle.
const IDLE: Duration = Duration::from_secs(30);

/// The pool of one worker.
#[derive(Default)]
pub(crate) struct Pool {
    idle: HashMap<Exit, Vec<(TcpStream, Time)>>,
    count: usize,
}

impl Pool {
    /// A connection that is open as far as the last look at the sockets told.
    pub(crate) fn take(&mut self, exit: Exit, now: Time) -> Option<TcpStream> {
        let idle = self.idle.get_mut(&exit)?;
        while let Some((mut io, since)) = idle.pop() {
            self.count -= 1;
            if now.since(since) < IDLE && is_quiet(&mut io) {
                return Some(io);
            }
        }
        None
    }

    /// Keeps a connection for the next request.
    pub(crate) fn give(&mut self, exit: Exit, io: TcpStream, now: Time) {
        let idle = self.idle.entry(exit).or_default();
        if idle.len() < PER_ENDPOINT && self.count < PER_WORKER {
            idle.push((io, now));
            self.count += 1;
        }
    }

    /// Closes what has idled too long or was closed at the other end.
    pub(crate) fn sweep(&mut self, now: Time) {
        for idle in self.idle.values_mut() {
            idle.retain_mut(|(io, since)| now.since(*since) < IDLE && is_quiet(io));
        }
        self.idle.retain(|_, idle| !idle.is_empty());
        self.count = self.idle.values().map(Vec::len).sum();
    }

    /// Resets what is in a pod's network namespace. A goodbye could not be
    /// delivered once the pod's network is gone: the kernel would keep the
    /// socket, and with it the namespace, until it has tried often enough.
    pub(crate) fn forget(&mut self, pod: u64) {
        self.idle.retain(|exit, idle| {
            if exit.pod != pod {
                return true;
            }
            for (io, _) in idle {
                let _ = socket2::SockRef::from(&*io).set_linger(Some(Duration::ZERO));
            }
            false
        });
        self.count = self.idle.values().map(Vec::len).sum();
    }

    /// Connections that idle.
    pub(crate) fn len(&self) -> usize {
        self.count
    }
}

/// An idle connection has nothing to say: bytes, an end or an error mean that
/// it is of no use. Costs no system call while nothing has happened.
fn is_quiet(io: &mut TcpStream) -> bool {
    let mut cx = Context::from_waker(Waker::noop());
    let mut byte = [0; 1];
    Pin::new(io)
        .poll_read(&mut cx, &mut ReadBuf::new(&mut byte))
        .is_pending()
}
