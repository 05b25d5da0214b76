//! A pod of this node, as its connections see it.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use weir_resilience::{Time, config};

/// Sockets that are made at once where one is missing.
const BATCH: u32 = 8;
/// How long capture may take to make them. It does so within a
/// millisecond; one that takes longer hangs, and callers are told so.
const MAKING: Duration = Duration::from_secs(1);

/// Why there is no socket to connect with: nothing that the destination could
/// be blamed for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoSocket {
    #[error("capture is away: no socket can be made in the pod")]
    Away,
    #[error("capture does not answer: no socket can be made in the pod")]
    Silent,
    #[error("no socket can be made in the pod: {0}")]
    Refused(String),
}

impl NoSocket {
    /// The same for people, where every reason is one of a few.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            NoSocket::Away => "capture, a process of Weir's on this node, is away",
            NoSocket::Silent => "capture, a process of Weir's on this node, does not answer",
            NoSocket::Refused(_) => "capture, a process of Weir's on this node, made no socket",
        }
    }
}

impl From<NoSocket> for io::Error {
    fn from(reason: NoSocket) -> io::Error {
        io::Error::other(reason)
    }
}

/// A pod whose connections are captured. What is made again under the same name
/// is another.
pub(crate) struct Pod {
    /// Unique among all pods of this agent's life; never 0.
    pub(crate) id: u64,
    pub(crate) config: config::Pod,
    /// Its rules are gone or going: connections end when they can.
    leaving: AtomicBool,
    /// By family and whether they may take a caller's address.
    stock: [Mutex<VecDeque<OwnedFd>>; 4],
    wants: Wants,
    /// What keeps its open connections open though capture ends.
    lasting: Mutex<Option<OwnedFd>>,
    /// The endpoints that it keeps, by the address it calls, and when they were
    /// used last. As many as there are Services with `sessionAffinity`.
    kept: Mutex<HashMap<SocketAddr, (SocketAddr, Time)>>,
}

/// What kind of socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kind {
    pub(crate) ipv6: bool,
    /// May take the address of whoever called.
    pub(crate) transparent: bool,
}

impl Kind {
    fn index(self) -> usize {
        usize::from(self.ipv6) * 2 + usize::from(self.transparent)
    }
}

/// Sockets that somebody waits for.
pub(crate) struct Want {
    /// The pod's UID.
    pub(crate) pod: String,
    pub(crate) kind: Kind,
    pub(crate) count: u32,
    pub(crate) made: oneshot::Sender<Result<Vec<OwnedFd>, String>>,
}

/// Where sockets are asked for.
#[derive(Clone)]
pub(super) struct Wants {
    asked: mpsc::Sender<Want>,
    /// Capture owes an answer for longer than [`MAKING`]. Until it comes nobody
    /// else waits for one.
    silent: Arc<AtomicBool>,
}

impl Wants {
    /// What is asked for comes out at the other end.
    pub(super) fn new(most: usize) -> (Wants, mpsc::Receiver<Want>) {
        let (asked, wants) = mpsc::channel(most);
        let silent = Arc::new(AtomicBool::new(false));
        (Wants { asked, silent }, wants)
    }

    /// Capture has answered, or is another.
    pub(super) fn answered(&self) {
        self.silent.store(false, Relaxed);
    }

    async fn make(&self, want: Want, made: Made) -> Result<Vec<OwnedFd>, NoSocket> {
        if self.silent.load(Relaxed) {
            return Err(NoSocket::Silent);
        }
        let answer = async {
            let asked = self.asked.send(want).await;
            asked.map_err(|_| NoSocket::Away)?;
            made.await.map_err(|_| NoSocket::Away)
        };
        match tokio::time::timeout(MAKING, answer).await {
            Ok(answer) => answer?.map_err(NoSocket::Refused),
            Err(_) => {
                if !self.silent.swap(true, Relaxed) {
                    tracing::error!(
                        "capture does not answer: calls that need a new connection to an endpoint fail until it does"
                    );
                }
                Err(NoSocket::Silent)
            }
        }
    }
}

type Made = oneshot::Receiver<Result<Vec<OwnedFd>, String>>;

impl Pod {
    pub(super) fn new(id: u64, config: config::Pod, wants: Wants) -> Pod {
        Pod {
            id,
            config,
            leaving: AtomicBool::new(false),
            stock: Default::default(),
            wants,
            lasting: Mutex::default(),
            kept: Mutex::default(),
        }
    }

    /// Whether its connections should end after what they are doing: new ones
    /// do not come through Weir any more.
    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving.load(Relaxed)
    }

    /// Its rules are gone.
    pub(super) fn leave(&self) {
        self.leaving.store(true, Relaxed);
    }

    /// Its open connections go on as long as this is not closed.
    pub(super) fn hold(&self, lasting: OwnedFd) {
        *lock(&self.lasting) = Some(lasting);
    }

    /// It is gone: a socket at hand would only keep its network namespace alive.
    pub(super) fn forget(&self) {
        self.leave();
        lock(&self.lasting).take();
        for stock in &self.stock {
            lock(stock).clear();
        }
    }

    /// A socket in the pod's network namespace, to connect with. Where none is
    /// at hand some are made, which takes a word with capture and back.
    pub(crate) async fn socket(&self, kind: Kind) -> io::Result<OwnedFd> {
        let stock = &self.stock[kind.index()];
        if let Some(socket) = lock(stock).pop_front() {
            return Ok(socket);
        }
        let (made, answer) = oneshot::channel();
        let want = Want {
            pod: self.config.uid.clone(),
            kind,
            count: if self.is_leaving() { 1 } else { BATCH },
            made,
        };
        let mut sockets = self.wants.make(want, answer).await?.into_iter();
        let first = sockets.next().ok_or(NoSocket::Away)?;
        if !self.is_leaving() {
            lock(stock).extend(sockets);
        }
        Ok(first)
    }

    /// The endpoint that it keeps for calls to `service`, if it has called
    /// within this time.
    pub(crate) fn endpoint(
        &self,
        service: SocketAddr,
        keep: Duration,
        now: Time,
    ) -> Option<SocketAddr> {
        let kept = lock(&self.kept);
        let (endpoint, used) = kept.get(&service)?;
        (now.since(*used) <= keep).then_some(*endpoint)
    }

    /// Its calls to `service` go to this endpoint for now.
    pub(crate) fn keep_endpoint(&self, service: SocketAddr, endpoint: SocketAddr, now: Time) {
        lock(&self.kept).insert(service, (endpoint, now));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl std::fmt::Debug for Pod {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "pod {}/{}", self.config.namespace, self.config.name)
    }
}
