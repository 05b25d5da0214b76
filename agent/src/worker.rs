//! A worker: a thread with a runtime, listeners, connections and upstream pools
//! of its own. Nothing on a request's way is shared with another worker but
//! the published snapshot and the machines in it.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::net::TcpListener as StdListener;
use std::net::TcpStream as StdStream;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::task::Waker;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures::future::LocalBoxFuture;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinHandle, LocalSet};
use weir_resilience::config::ServiceId;

use crate::buffer::Spare;
use crate::callers::Callers;
use crate::clock::Clock;
use crate::h1::pool::Pool;
use crate::h2::pool::Pool as H2Pool;
use crate::pipeline::Held;
use crate::pods::Pod;
use crate::probes::Node;
use crate::replay::Share;
use crate::snapshot::Snapshot;

/// How often a worker shows that it moves.
const BEAT: Duration = Duration::from_millis(250);
/// While draining, a listener is kept until nobody has knocked for this long.
pub(crate) const QUIET: Duration = Duration::from_millis(50);
/// How often idle upstream connections are looked at.
const SWEEP: Duration = Duration::from_secs(5);
/// While draining, a listener is closed after this long although somebody still
/// knocks: those who were accepted need the rest of the time.
const LAST_CALL: Duration = Duration::from_secs(1);

/// When the kernel asks whether the other side is still there, and when it
/// takes it for gone. Connections without traffic, tunnels above all, would
/// otherwise outlive a machine that died.
pub(crate) const KEEP_ALIVE: socket2::TcpKeepalive = socket2::TcpKeepalive::new()
    .with_time(Duration::from_secs(60))
    .with_interval(Duration::from_secs(10))
    .with_retries(6);

/// What a listener's callers want.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Target {
    /// One port of one service.
    Port(ServiceId, u16),
    /// Whatever the request names.
    Named,
}

/// By which door callers come.
#[derive(Clone, Debug)]
pub(crate) enum Entrance {
    /// A listener of the agent's own.
    Own(Target),
    /// The listener in a pod for what it calls.
    Outbound(Arc<Pod>),
    /// The listener in a pod for those who call it.
    Inbound(Arc<Pod>),
}

impl Entrance {
    /// The pod in whose network namespace it is.
    pub(crate) fn pod(&self) -> Option<&Arc<Pod>> {
        match self {
            Entrance::Own(_) => None,
            Entrance::Outbound(pod) | Entrance::Inbound(pod) => Some(pod),
        }
    }
}

/// What the control thread tells a worker.
pub(crate) enum Command {
    /// Accept on this listener from now on.
    Listen(u64, StdListener, Entrance),
    /// Stop accepting on it.
    Close(u64),
    /// Stop accepting on it once nobody knocks any more.
    Retire(u64),
    /// A pod is gone: let go of all that is in its network namespace.
    Forget(u64),
    /// Something has changed that connections look at when they are woken.
    Wake,
    /// A connection that another worker accepted.
    Take(StdStream, Entrance),
    /// A new snapshot is published; drop the old one.
    Refresh,
    /// Stop accepting and finish what is under way. Answered once every
    /// listener is closed.
    Drain(oneshot::Sender<()>),
}

/// What all workers share.
pub(crate) struct Shared {
    pub(crate) snapshot: ArcSwap<Snapshot>,
    /// The namespace that all callers are in, where that is known.
    callers_namespace: Option<String>,
    /// Who has which address.
    pub(crate) callers: Arc<Callers>,
    /// Where this node's own calls come from.
    pub(crate) node: Node,
    /// Connections per worker.
    pub(crate) loads: Vec<Load>,
    /// Upstream connections that idle, per worker.
    pub(crate) idle: Vec<AtomicUsize>,
    /// Counts up in each worker as long as it moves.
    pub(crate) beats: Vec<Load>,
    /// What is known of endpoints may be stale: the control plane has been away
    /// for too long.
    pub(crate) stale: AtomicBool,
    /// Connections that ended because a task panicked.
    pub(crate) panics: AtomicUsize,
    /// Pods that are captured, that should be and are not, and connections of
    /// captured pods that go past Weir.
    pub(crate) captured_pods: AtomicUsize,
    pub(crate) uncaptured_pods: AtomicUsize,
    pub(crate) bypassing: AtomicUsize,
    /// Connections to a capture port that no rule had sent there.
    pub(crate) strays: AtomicUsize,
    /// Requests that named no service.
    unrouted: AtomicUsize,
    /// Requests that could not be read.
    malformed: AtomicUsize,
}

impl Shared {
    pub(crate) fn new(
        workers: usize,
        callers_namespace: Option<String>,
        callers: Arc<Callers>,
        node: Node,
    ) -> Shared {
        Shared {
            snapshot: ArcSwap::from_pointee(Snapshot::default()),
            callers_namespace,
            callers,
            node,
            loads: (0..workers).map(|_| Load::default()).collect(),
            idle: (0..workers).map(|_| AtomicUsize::new(0)).collect(),
            beats: (0..workers).map(|_| Load::default()).collect(),
            stale: AtomicBool::new(false),
            panics: AtomicUsize::new(0),
            captured_pods: AtomicUsize::new(0),
            uncaptured_pods: AtomicUsize::new(0),
            bypassing: AtomicUsize::new(0),
            strays: AtomicUsize::new(0),
            unrouted: AtomicUsize::new(0),
            malformed: AtomicUsize::new(0),
        }
    }

    /// Counts a request that named no service.
    pub(crate) fn unrouted(&self) {
        self.unrouted.fetch_add(1, Relaxed);
    }

    /// Counts a request that could not be read.
    pub(crate) fn malformed(&self) {
        self.malformed.fetch_add(1, Relaxed);
    }

    pub(crate) fn malformed_total(&self) -> usize {
        self.malformed.load(Relaxed)
    }

    pub(crate) fn unrouted_total(&self) -> usize {
        self.unrouted.load(Relaxed)
    }
}

/// A number alone on its cache line.
#[derive(Default)]
#[repr(align(128))]
pub(crate) struct Load(pub(crate) AtomicUsize);

/// Serves one connection until it ends.
pub(crate) type Serve = fn(Rc<Worker>, u64, TcpStream, Entrance) -> LocalBoxFuture<'static, ()>;

/// One worker, as its connections see it.
pub(crate) struct Worker {
    serve: Serve,
    pub(crate) index: usize,
    pub(crate) clock: Clock,
    pub(crate) shared: Arc<Shared>,
    pub(crate) spare: RefCell<Spare>,
    pub(crate) pool: RefCell<Pool>,
    pub(crate) h2_pool: RefCell<H2Pool>,
    /// Memory for bodies that are kept for another try.
    pub(crate) replay: Rc<Share>,
    held: RefCell<Held>,
    peers: Vec<mpsc::UnboundedSender<Command>>,
    drain: watch::Sender<bool>,
    /// Tasks to wake when draining begins, by connection.
    wakers: RefCell<HashMap<u64, Waker>>,
    /// Connections that are in a pod's network namespace, to be ended with it.
    of_pods: RefCell<HashMap<u64, (u64, AbortHandle)>>,
    next_connection: Cell<u64>,
}

impl Worker {
    /// The namespace that callers are in; `None`: nobody knows.
    pub(crate) fn callers_namespace(&self) -> Option<&str> {
        self.shared.callers_namespace.as_deref()
    }

    /// The snapshot in force.
    pub(crate) fn snapshot(&self) -> Held {
        let current = self.shared.snapshot.load();
        let mut held = self.held.borrow_mut();
        if !Arc::ptr_eq(&current, &held) {
            *held = Rc::new(Arc::clone(&current));
        }
        held.clone()
    }

    /// Whether connections should end after what they are doing.
    pub(crate) fn draining(&self) -> bool {
        *self.drain.borrow()
    }

    /// Randomness for the machines.
    pub(crate) fn random(&self) -> u64 {
        fastrand::u64(..)
    }

    /// Has the connection's task woken when draining begins.
    pub(crate) fn wake_on_drain(&self, connection: u64, waker: &Waker) {
        let mut wakers = self.wakers.borrow_mut();
        match wakers.get_mut(&connection) {
            Some(known) => known.clone_from(waker),
            None => {
                wakers.insert(connection, waker.clone());
            }
        }
    }

    fn load(&self) -> &AtomicUsize {
        &self.shared.loads[self.index].0
    }

    /// Another worker that has clearly less to do: this one is above 1.5 times
    /// the mean. With few connections chance alone would leave workers idle.
    fn less_loaded(&self) -> Option<usize> {
        let loads: Vec<usize> = self
            .shared
            .loads
            .iter()
            .map(|l| l.0.load(Relaxed))
            .collect();
        let mine = loads[self.index] + 1;
        let sum = loads.iter().sum::<usize>() + 1;
        if mine * loads.len() * 2 <= sum * 3 {
            return None;
        }
        (0..loads.len())
            .min_by_key(|i| loads[*i])
            .filter(|i| *i != self.index)
    }

    /// Serves a connection here, in a task of its own. It is counted in
    /// [`Shared::loads`] already.
    fn serve(self: &Rc<Worker>, io: TcpStream, entrance: Entrance) {
        let id = self.next_connection.get();
        self.next_connection.set(id + 1);
        let worker = self.clone();
        let pod = entrance.pod().map(|pod| pod.id);
        let task = tokio::task::spawn_local(async move {
            let guard = ConnectionGuard {
                worker: worker.clone(),
                id,
            };
            // A caller's machine that is gone says nothing; the kernel asks.
            let _ = socket2::SockRef::from(&io).set_tcp_keepalive(&KEEP_ALIVE);
            if io.set_nodelay(true).is_ok() {
                (worker.serve)(worker, id, io, entrance).await;
            }
            drop(guard);
        });
        if let Some(pod) = pod {
            let mut of_pods = self.of_pods.borrow_mut();
            of_pods.insert(id, (pod, task.abort_handle()));
        }
    }

    /// Lets go of everything in a pod's network namespace.
    fn forget(&self, pod: u64) {
        self.pool.borrow_mut().forget(pod);
        self.h2_pool.borrow_mut().forget(pod);
        // Their guards take them out once they are gone.
        for (of, task) in self.of_pods.borrow().values() {
            if *of == pod {
                task.abort();
            }
        }
    }

    fn wake_all(&self) {
        for (_, waker) in self.wakers.borrow_mut().drain() {
            waker.wake();
        }
    }
}

/// Counts a connection out, also when its task panics.
struct ConnectionGuard {
    worker: Rc<Worker>,
    id: u64,
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.worker.load().fetch_sub(1, Relaxed);
        self.worker.wakers.borrow_mut().remove(&self.id);
        self.worker.of_pods.borrow_mut().remove(&self.id);
        if std::thread::panicking() {
            self.worker.shared.panics.fetch_add(1, Relaxed);
        }
    }
}

/// The workers' command channels.
pub(crate) type Commands = Vec<mpsc::UnboundedSender<Command>>;

/// The workers, as the control thread holds them.
pub(crate) struct Started {
    pub(crate) commands: Commands,
    pub(crate) threads: Vec<std::thread::JoinHandle<()>>,
    /// Each ends its worker at once, when sent to or dropped.
    pub(crate) stops: Vec<oneshot::Sender<()>>,
}

/// Starts the workers.
pub(crate) fn start(shared: &Arc<Shared>, clock: Clock, serve: Serve) -> std::io::Result<Started> {
    let (commands, receivers): (Vec<_>, Vec<_>) = shared
        .loads
        .iter()
        .map(|_| mpsc::unbounded_channel())
        .unzip();
    let mut threads = Vec::new();
    let mut stops = Vec::new();
    for (index, receiver) in receivers.into_iter().enumerate() {
        let (shared, peers) = (shared.clone(), commands.clone());
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let run = move || {
            let held = Rc::new(shared.snapshot.load_full());
            let worker = Rc::new(Worker {
                index,
                clock,
                serve,
                shared,
                spare: RefCell::default(),
                pool: RefCell::default(),
                h2_pool: RefCell::default(),
                replay: Share::of(peers.len()),
                held: RefCell::new(held),
                peers,
                drain: watch::Sender::new(false),
                wakers: RefCell::default(),
                of_pods: RefCell::default(),
                next_connection: Cell::new(0),
            });
            let local = LocalSet::new();
            local.block_on(&runtime, async {
                tokio::select! {
                    () = run(&worker, receiver) => {}
                    _ = stopped => {}
                }
            });
        };
        threads.push(
            std::thread::Builder::new()
                .name(format!("weir-worker-{index}"))
                .spawn(run)?,
        );
        stops.push(stop);
    }
    Ok(Started {
        commands,
        threads,
        stops,
    })
}

/// Carries out commands; ends when draining is over.
async fn run(worker: &Rc<Worker>, mut commands: mpsc::UnboundedReceiver<Command>) {
    let mut listeners: HashMap<u64, Listening> = HashMap::new();
    let mut sweep = tokio::time::interval(SWEEP);
    let mut beat = tokio::time::interval(BEAT);
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = beat.tick() => {
                worker.shared.beats[worker.index].0.fetch_add(1, Relaxed);
            }
            command = commands.recv() => match command {
                None => break,
                Some(Command::Listen(id, listener, entrance)) => match TcpListener::from_std(listener) {
                    Ok(listener) => {
                        listeners.insert(id, Listening::start(worker, listener, entrance));
                    }
                    Err(error) => tracing::error!(%error, "cannot watch a listener"),
                },
                Some(Command::Close(id)) => {
                    if let Some(listener) = listeners.remove(&id) {
                        listener.task.abort();
                    }
                }
                Some(Command::Retire(id)) => {
                    if let Some(listener) = listeners.get(&id) {
                        listener.retire();
                    }
                    listeners.retain(|_, listener| !listener.task.is_finished());
                }
                Some(Command::Forget(pod)) => worker.forget(pod),
                Some(Command::Wake) => worker.wake_all(),
                Some(Command::Take(io, entrance)) => {
                    match TcpStream::from_std(io) {
                        Ok(io) => worker.serve(io, entrance),
                        Err(_) => {
                            worker.load().fetch_sub(1, Relaxed);
                        }
                    }
                }
                Some(Command::Refresh) => drop(worker.snapshot()),
                Some(Command::Drain(closed)) => {
                    worker.drain.send_replace(true);
                    for (_, listener) in listeners.drain() {
                        // Accepts until its queue stays empty.
                        let _ = listener.task.await;
                    }
                    let _ = closed.send(());
                    // What was accepted last has had its first poll by now.
                    worker.wake_all();
                }
            },
            _ = sweep.tick() => {
                let now = worker.clock.now();
                worker.pool.borrow_mut().sweep(now);
                worker.h2_pool.borrow_mut().sweep(now);
                let idle = worker.pool.borrow().len();
                worker.shared.idle[worker.index].store(idle, Relaxed);
            }
        }
    }
}

/// A listener that is accepted on.
struct Listening {
    task: JoinHandle<()>,
    retire: Rc<Notify>,
}

impl Listening {
    fn start(worker: &Rc<Worker>, listener: TcpListener, entrance: Entrance) -> Listening {
        let retire = Rc::new(Notify::new());
        let accept = accept(worker.clone(), listener, entrance, retire.clone());
        let task = tokio::task::spawn_local(accept);
        Listening { task, retire }
    }

    /// Nobody is sent here any more.
    fn retire(&self) {
        self.retire.notify_one();
    }
}

/// Accepts on one listener until it is closed, or, while draining or when it is
/// retired, until nobody has knocked for [`QUIET`].
async fn accept(worker: Rc<Worker>, listener: TcpListener, entrance: Entrance, retire: Rc<Notify>) {
    let mut drain = worker.drain.subscribe();
    let mut failing = false;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = drain.wait_for(|draining| *draining) => break,
            () = retire.notified() => break,
        };
        take_in(&worker, accepted, &entrance, &mut failing).await;
    }
    let last_call = tokio::time::Instant::now() + LAST_CALL;
    while tokio::time::Instant::now() < last_call
        && let Ok(accepted) = tokio::time::timeout(QUIET, listener.accept()).await
    {
        take_in(&worker, accepted, &entrance, &mut failing).await;
    }
}

async fn take_in(
    worker: &Rc<Worker>,
    accepted: std::io::Result<(TcpStream, SocketAddr)>,
    entrance: &Entrance,
    failing: &mut bool,
) {
    match accepted {
        Ok((io, _)) => {
            if std::mem::take(failing) {
                tracing::info!(?entrance, "accepting again");
            }
            let index = worker.less_loaded().unwrap_or(worker.index);
            worker.shared.loads[index].0.fetch_add(1, Relaxed);
            if index == worker.index {
                worker.serve(io, entrance.clone());
                return;
            }
            let handed = io
                .into_std()
                .map(|io| worker.peers[index].send(Command::Take(io, entrance.clone())));
            if !matches!(handed, Ok(Ok(()))) {
                worker.shared.loads[index].0.fetch_sub(1, Relaxed);
                tracing::warn!("a connection was lost on its way to another worker");
            }
        }
        // Out of file descriptors or memory: others may free some.
        Err(error) => {
            // Said once, not ten times a second.
            if !std::mem::replace(failing, true) {
                tracing::error!(%error, ?entrance, "cannot accept connections");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}
