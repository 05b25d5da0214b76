//! Who calls: an address, told as namespace, ServiceAccount and workload.
//!
//! A map of all pods on every agent would not fit, so the control plane is asked,
//! and only for callers of ports where a section needs to know. A request waits
//! at most [`PATIENCE`] for that, once for each connection; whom nobody knows by
//! then is anybody. While the control plane is away nobody waits.
//!
//! It is no authentication. An address that another pod has taken is told apart
//! once what is known of it has grown old: for connections that are made within
//! [`KNOWN`] of that it may still be the one before.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tonic::Status;
use weir_proto::v1alpha1 as proto;
use weir_proto::v1alpha1::discovery_client::DiscoveryClient;
use weir_resilience::Time;
use weir_resilience::config::{self, Caller};

use crate::clock::Clock;
use crate::control::ControlPlane;

#[cfg(test)]
mod tests;

/// How long a request waits to be told who calls.
const PATIENCE: Duration = Duration::from_millis(200);
/// How long what the control plane knows of an address holds.
const KNOWN: Duration = Duration::from_secs(60);
/// How long it holds that it knows nothing: a pod that has just started gets its
/// address before everybody has heard of it.
const UNKNOWN: Duration = Duration::from_secs(5);
/// How long nobody asks again after a failure.
const FAILED: Duration = Duration::from_secs(1);
/// Addresses that are remembered; of more, those that came first are forgotten.
const MOST: usize = 16_384;
/// Addresses of one question: what the control plane takes.
const BATCH: usize = 64;
/// Addresses that wait to be asked for; a caller beyond that is anybody.
const WAITING: usize = 1_024;
/// Questions under way.
const AT_ONCE: usize = 4;
/// An answer that takes longer is a failure.
const ANSWER: Duration = Duration::from_secs(2);

/// What is known of an address, and until when that holds.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) caller: Option<Arc<Caller>>,
    pub(crate) until: Time,
}

/// Who is at the other end of a connection. What is known of it holds as long as
/// the connection does: its other end cannot become another.
pub(crate) struct Identity {
    /// `None` where the connection has none any more.
    address: Option<IpAddr>,
    found: RefCell<Option<Found>>,
}

impl Identity {
    pub(crate) fn of(address: Option<IpAddr>) -> Identity {
        Identity {
            address,
            found: RefCell::default(),
        }
    }

    /// Who it is; the error is the address that somebody has to be asked for.
    pub(crate) fn known(&self, now: Time) -> Result<Option<Arc<Caller>>, IpAddr> {
        let Some(address) = self.address else {
            return Ok(None);
        };
        match &*self.found.borrow() {
            Some(found) if found.caller.is_some() || found.until > now => Ok(found.caller.clone()),
            _ => Err(address),
        }
    }

    /// Keeps an answer.
    pub(crate) fn keep(&self, found: Found) {
        *self.found.borrow_mut() = Some(found);
    }
}

/// What is known of callers.
pub(crate) struct Callers {
    clock: Clock,
    inner: Mutex<Inner>,
    ask: mpsc::Sender<IpAddr>,
    /// The last question was not answered.
    away: AtomicBool,
    known: AtomicU64,
    unknown: AtomicU64,
    failed: AtomicU64,
}

#[derive(Default)]
struct Inner {
    found: HashMap<IpAddr, Found>,
    /// In the order in which they came; what was found anew since is in it twice.
    order: VecDeque<(IpAddr, Time)>,
    /// Asked for; whoever else wants to know waits for the same answer.
    asked: HashMap<IpAddr, watch::Sender<Option<Found>>>,
}

/// Puts the questions.
pub(crate) struct Asker {
    callers: Arc<Callers>,
    asked: mpsc::Receiver<IpAddr>,
}

impl Callers {
    pub(crate) fn new(clock: Clock) -> (Arc<Callers>, Asker) {
        let (ask, asked) = mpsc::channel(WAITING);
        let callers = Arc::new(Callers {
            clock,
            inner: Mutex::default(),
            ask,
            away: AtomicBool::new(false),
            known: AtomicU64::new(0),
            unknown: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        });
        let asker = Asker {
            callers: callers.clone(),
            asked,
        };
        (callers, asker)
    }

    /// Who has this address. Dropping it asks on for others.
    pub(crate) async fn find(&self, address: IpAddr) -> Found {
        let nobody = Found {
            caller: None,
            until: self.clock.now() + FAILED,
        };
        let mut answer = match self.look(address) {
            Ok(found) => return found,
            Err(Some(answer)) => answer,
            Err(None) => return nobody,
        };
        if self.away.load(Relaxed) {
            return nobody;
        }
        match timeout(PATIENCE, answer.wait_for(Option::is_some)).await {
            Ok(Ok(found)) => found.clone().unwrap_or(nobody),
            // Too late, or there is no answer.
            _ => nobody,
        }
    }

    /// Lookups by how they ended: known, unknown, failed.
    pub(crate) fn counts(&self) -> [(&'static str, u64); 3] {
        [
            ("known", self.known.load(Relaxed)),
            ("unknown", self.unknown.load(Relaxed)),
            ("failed", self.failed.load(Relaxed)),
        ]
    }

    /// What is known, or where it will be told; `Err(None)` where too many wait.
    fn look(&self, address: IpAddr) -> Result<Found, Option<watch::Receiver<Option<Found>>>> {
        let now = self.clock.now();
        let mut inner = self.lock();
        if let Some(found) = inner.found.get(&address).filter(|found| found.until > now) {
            return Ok(found.clone());
        }
        if let Some(asked) = inner.asked.get(&address) {
            return Err(Some(asked.subscribe()));
        }
        if self.ask.try_send(address).is_err() {
            self.failed.fetch_add(1, Relaxed);
            return Err(None);
        }
        let (asked, answer) = watch::channel(None);
        inner.asked.insert(address, asked);
        Err(Some(answer))
    }

    /// An answer has come, or will not.
    fn take_in(&self, address: IpAddr, answer: Result<Option<Caller>, ()>) {
        let (counter, holds) = match &answer {
            Ok(Some(_)) => (&self.known, KNOWN),
            Ok(None) => (&self.unknown, UNKNOWN),
            Err(()) => (&self.failed, FAILED),
        };
        counter.fetch_add(1, Relaxed);
        let found = Found {
            caller: answer.unwrap_or_default().map(Arc::new),
            until: self.clock.now() + holds,
        };
        let mut inner = self.lock();
        inner.remember(address, found.clone());
        let asked = inner.asked.remove(&address);
        drop(inner);
        if let Some(asked) = asked {
            asked.send_replace(Some(found));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn remember(&mut self, address: IpAddr, found: Found) {
        self.order.push_back((address, found.until));
        self.found.insert(address, found);
        while self.order.len() > MOST {
            let Some((address, until)) = self.order.pop_front() else {
                break;
            };
            // What was found anew since stays for that.
            if (self.found.get(&address)).is_some_and(|found| found.until == until) {
                self.found.remove(&address);
            }
        }
    }
}

impl Asker {
    /// As long as the agent runs.
    pub(crate) async fn run(mut self, control_plane: ControlPlane) {
        let mut under_way = FuturesUnordered::new();
        loop {
            let mut batch = Vec::new();
            tokio::select! {
                Some(()) = under_way.next() => {}
                count = self.asked.recv_many(&mut batch, BATCH), if under_way.len() < AT_ONCE => {
                    if count == 0 {
                        return;
                    }
                    under_way.push(ask(&self.callers, &control_plane, batch));
                }
            }
        }
    }
}

/// One question and what comes of it.
async fn ask(callers: &Callers, control_plane: &ControlPlane, addresses: Vec<IpAddr>) {
    let answer = timeout(ANSWER, resolve(control_plane, &addresses)).await;
    let answer = answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in 2 s")));
    let failed = answer.is_err();
    if callers.away.swap(failed, Relaxed) != failed {
        match &answer {
            Ok(_) => tracing::info!("the control plane tells again who calls"),
            Err(status) => tracing::warn!(
                reason = crate::discovery::root_cause(status),
                "the control plane does not tell who calls; new callers are taken for anybody"
            ),
        }
    }
    let told = answer.unwrap_or_default();
    for (n, address) in addresses.into_iter().enumerate() {
        let caller = match told.get(n).map(config::caller) {
            Some(Ok(caller)) => Ok(caller),
            Some(Err(problems)) => {
                tracing::warn!(%address, ?problems, "what the control plane says of a caller makes no sense");
                Err(())
            }
            None => Err(()),
        };
        callers.take_in(address, caller);
    }
}

async fn resolve(
    control_plane: &ControlPlane,
    addresses: &[IpAddr],
) -> Result<Vec<proto::Caller>, Status> {
    let question = proto::ResolveRequest {
        addresses: addresses.iter().map(ToString::to_string).collect(),
    };
    let mut client = DiscoveryClient::new(control_plane.way().channel());
    let request = control_plane.request(question).await?;
    let answer = client.resolve(request).await?;
    Ok(answer.into_inner().callers)
}
