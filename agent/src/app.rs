//! The only place where the agent's parts are put together.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{Mutex, oneshot, watch};
use tokio::task::JoinHandle;

use crate::admin::{self, Admin};
use crate::beat::Beats;
use crate::callers::Callers;
use crate::cgroup::{Kernel, Sampler};
use crate::clock::Clock;
use crate::configuration::{Configuration, Listening};
use crate::connection;
use crate::control::{ControlPlane, ControlPlaneAddress};
use crate::discovery::{self, Progress};
use crate::handover::{self, Handover};
use crate::load;
use crate::pods::{Capturing, Keeper, Pods};
use crate::probes::Node;
use crate::registry::Registry;
use crate::report::{Reporter, Transitions};
use crate::store::Store;
use crate::worker::{self, Command, Commands, Shared};

/// How often machines that nobody asks for any more are swept away.
const SWEEP: Duration = Duration::from_secs(10);

/// How long what is known of endpoints is believed without a control plane,
/// unless an agent is told otherwise.
pub const STALE_AFTER: Duration = Duration::from_secs(30);

/// How long capture may take to send nobody here any more.
const RETREAT: Duration = Duration::from_secs(2);

/// What an agent is started with.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of the node, unique among agents.
    pub node: String,
    /// Where the control plane is.
    pub control_plane: ControlPlaneAddress,
    /// The namespace that callers are taken to be in, so that policies of its
    /// own hold for their calls; `None`: unknown, and the policies of the
    /// destinations' owners hold.
    pub caller_namespace: Option<String>,
    /// Address of the explicit HTTP proxy, if there shall be one. Port 0:
    /// any free one.
    pub proxy: Option<SocketAddr>,
    /// Address for health, readiness and metrics.
    pub admin: Option<SocketAddr>,
    /// Where the last good configuration is kept.
    pub state_dir: Option<PathBuf>,
    /// Where the agents of this node hand over what breakers know: a directory that
    /// all of them see ([`prepare_handover`](crate::prepare_handover)). It need not
    /// be there yet.
    pub handover: Option<PathBuf>,
    /// How the connections of this node's pods are captured, if they are.
    pub capture: Option<Capturing>,
    /// How long what is known of endpoints is believed without a control plane.
    /// After that captured connections go to the Service's own address.
    pub stale_after: Duration,
    /// Threads that carry traffic.
    pub workers: NonZeroUsize,
    /// How long requests under way may take once the agent is told to end.
    pub drain_timeout: Duration,
    /// Where the kernel tells how busy this machine and its pods are.
    pub kernel: Kernel,
}

/// Why an agent does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The explicit proxy's address cannot be listened on.
    #[error("explicit proxy: {0}")]
    Proxy(String),
    /// The admin address cannot be listened on.
    #[error("admin: cannot listen on {address}")]
    Admin {
        /// As it was given.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// The state directory cannot be used.
    #[error("the state directory {path} cannot be used")]
    State {
        /// As it was given.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// No threads.
    #[error("cannot start the workers: {0}")]
    Workers(std::io::Error),
}

/// A running agent. Dropping it ends it at once; [`Agent::shutdown`] lets
/// requests finish.
pub struct Agent {
    proxy: Option<SocketAddr>,
    admin: Option<SocketAddr>,
    drain_timeout: Duration,
    configuration: Arc<Mutex<Configuration>>,
    shared: Arc<Shared>,
    workers: Commands,
    threads: Vec<std::thread::JoinHandle<()>>,
    stops: Vec<oneshot::Sender<()>>,
    tasks: Vec<JoinHandle<()>>,
    progress: watch::Receiver<Progress>,
    draining: watch::Sender<bool>,
    pods: Option<Pods>,
    registry: Arc<Registry>,
    clock: Clock,
    handover: Option<Arc<Handover>>,
    memories: Option<handover::File>,
}

impl Agent {
    /// Starts the workers, puts the last good configuration in force, listens,
    /// and begins to follow the control plane. The control plane need not be
    /// there.
    pub async fn start(config: Config) -> Result<Agent, StartError> {
        let clock = Clock::start();
        let serve: worker::Serve =
            |worker, id, io, entrance| Box::pin(connection::serve(worker, id, io, entrance));
        let control_plane = ControlPlane::new(config.control_plane);
        let workers = config.workers.get();
        let (callers, asker) = Callers::new(clock);
        let node = Node::new(&config.kernel.proc);
        let shared = Shared::new(workers, config.caller_namespace, callers, node);
        let shared = Arc::new(shared);
        let sampler = Arc::new(Sampler::new(config.kernel));
        let registry = Arc::new(Registry::new(workers, sampler.clone()));
        let store = match &config.state_dir {
            None => None,
            Some(path) => Some(Store::open(path).map_err(|source| StartError::State {
                path: path.clone(),
                source,
            })?),
        };
        let memories = config
            .state_dir
            .as_deref()
            .map(handover::File::in_directory);
        match memories.as_ref().map(handover::File::load).transpose() {
            Ok(known) => registry.remember(known.unwrap_or_default(), clock.moment()),
            Err(error) => {
                tracing::error!(%error, "what breakers knew cannot be read; starting without");
            }
        }
        let mut tasks = Vec::new();
        let handover = config
            .handover
            .map(|directory| Arc::new(Handover::new(directory, registry.clone(), clock)));
        if let Some(handover) = &handover {
            tasks.extend(handover.ask().await);
        }
        let worker::Started {
            commands,
            threads,
            stops,
        } = worker::start(&shared, clock, serve).map_err(StartError::Workers)?;
        let (keeper, pods) = config
            .capture
            .map(|capturing| {
                let beats = Beats::new(shared.clone());
                Keeper::new(capturing, commands.clone(), beats, sampler.clone())
            })
            .unzip();
        let mut configuration = Configuration::new(
            clock,
            registry.clone(),
            shared.clone(),
            commands.clone(),
            config.node.clone(),
            pods.clone(),
        );
        let mut enforcing = false;
        if let Some(store) = &store {
            match store.load() {
                Ok(resources) if !resources.is_empty() => {
                    let count = resources.len();
                    let refused = configuration.apply(resources, Vec::new()).len();
                    enforcing = true;
                    tracing::info!(
                        resources = count,
                        refused,
                        "enforcing the last good configuration"
                    );
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::error!(%error, "the saved configuration cannot be read; starting without")
                }
            }
        }
        let proxy = match config.proxy {
            None => None,
            Some(address) => Some(
                configuration
                    .listen_named(address)
                    .map_err(StartError::Proxy)?,
            ),
        };
        let configuration = Arc::new(Mutex::new(configuration));
        let (progress_tx, progress) = watch::channel(Progress {
            enforcing,
            synced: false,
        });
        let (draining, draining_rx) = watch::channel(false);
        let transitions = Arc::new(Transitions::default());
        let admin = match config.admin {
            None => None,
            Some(address) => {
                let bound = TcpListener::bind(address).await;
                let bound = bound.and_then(|listener| Ok((listener.local_addr()?, listener)));
                let (actual, listener) =
                    bound.map_err(|source| StartError::Admin { address, source })?;
                let pages = admin::router(Admin {
                    clock,
                    shared: shared.clone(),
                    registry: registry.clone(),
                    transitions: transitions.clone(),
                    configuration: configuration.clone(),
                    progress: progress.clone(),
                    pods: pods.clone(),
                    draining: draining_rx,
                });
                tasks.push(tokio::spawn(async move {
                    if let Err(error) = axum::serve(listener, pages).await {
                        tracing::error!(%error, "the admin server ended");
                    }
                }));
                Some(actual)
            }
        };
        let serving = handover
            .clone()
            .map(|handover| tokio::spawn(handover.serve()));
        tasks.extend(serving);
        let following = memories.clone().map(|memories| {
            let registry = registry.clone();
            tokio::spawn(memories.follow(registry, clock))
        });
        tasks.extend(following);
        tasks.extend(keeper.map(|keeper| tokio::spawn(keeper.run())));
        tasks.push(tokio::spawn(age(
            progress.clone(),
            shared.clone(),
            config.stale_after,
        )));
        tasks.push(tokio::spawn(asker.run(control_plane.clone())));
        let node = config.node.clone();
        tasks.push(tokio::spawn(discovery::run(
            control_plane.clone(),
            node,
            configuration.clone(),
            store,
            progress_tx,
        )));
        let reporter = Reporter {
            clock,
            node: config.node,
            shared: shared.clone(),
            transitions,
            coverage: pods.as_ref().map(Pods::coverage),
        };
        tasks.push(tokio::spawn(reporter.run(control_plane)));
        let sheds = shared.clone();
        tasks.push(tokio::spawn(async move {
            let tell = |now| load::tell(&sheds.snapshot.load(), now);
            sampler.run(|| clock.now(), tell).await;
        }));
        let swept = registry.clone();
        tasks.push(tokio::spawn(async move {
            let mut sweep = tokio::time::interval(SWEEP);
            loop {
                sweep.tick().await;
                swept.sweep(clock.now());
            }
        }));
        Ok(Agent {
            proxy,
            admin,
            drain_timeout: config.drain_timeout,
            configuration,
            shared,
            workers: commands,
            threads,
            stops,
            tasks,
            progress,
            draining,
            pods,
            registry,
            clock,
            handover,
            memories,
        })
    }

    /// Where the explicit proxy listens.
    pub fn proxy_addr(&self) -> Option<SocketAddr> {
        self.proxy
    }

    /// Where health, readiness and metrics are served.
    pub fn admin_addr(&self) -> Option<SocketAddr> {
        self.admin
    }

    /// Where services are listened for, by service and port.
    pub async fn listening(&self) -> Vec<Listening> {
        self.configuration.lock().await.listening()
    }

    /// Returns once the control plane has sent everything and it is enforced.
    pub async fn synced(&self) {
        // The sender lives as long as the tasks do.
        let _ = self.progress.clone().wait_for(|p| p.synced).await;
    }

    /// Ends the agent without losing a request: listeners are kept until
    /// nobody knocks any more, callers are told to go elsewhere, and requests
    /// under way have `drain_timeout` to end.
    pub async fn shutdown(mut self) {
        self.draining.send_replace(true);
        let end = tokio::time::Instant::now() + self.drain_timeout;
        if let Some(handover) = &self.handover {
            handover.farewell().await;
        }
        if let Some(pods) = &self.pods {
            // From here on nobody is sent to this agent any more.
            // Where capture does not answer, those who are there need the time.
            let _ = tokio::time::timeout(RETREAT.min(self.drain_timeout), pods.retreat()).await;
        }
        let mut closed = Vec::new();
        for worker in &self.workers {
            let (done, when_done) = oneshot::channel();
            if worker.send(Command::Drain(done)).is_ok() {
                closed.push(when_done);
            }
        }
        for done in closed {
            let _ = tokio::time::timeout_at(end, done).await;
        }
        while tokio::time::Instant::now() < end && self.connections() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let left = self.connections();
        if left > 0 {
            tracing::warn!(
                connections = left,
                "ending with connections that did not drain in time"
            );
        }
        self.end();
        if let Some(memories) = &self.memories {
            memories.save(&self.registry, self.clock);
        }
        let threads = std::mem::take(&mut self.threads);
        let joined =
            tokio::task::spawn_blocking(move || threads.into_iter().try_for_each(|t| t.join()));
        if !matches!(joined.await, Ok(Ok(()))) {
            tracing::error!("a worker had panicked");
        }
    }

    fn connections(&self) -> usize {
        self.shared.loads.iter().map(|l| l.0.load(Relaxed)).sum()
    }

    fn end(&mut self) {
        for stop in self.stops.drain(..) {
            // It may have ended by itself.
            let _ = stop.send(());
        }
        for task in self.tasks.drain(..) {
            task.abort();
        }
    }
}

/// Says when what is known of endpoints is too old to be believed. What was read
/// from disk is of unknown age.
async fn age(mut progress: watch::Receiver<Progress>, shared: Arc<Shared>, after: Duration) {
    shared.stale.store(true, Relaxed);
    loop {
        if progress.wait_for(|p| p.synced).await.is_err() {
            return;
        }
        shared.stale.store(false, Relaxed);
        if progress.wait_for(|p| !p.synced).await.is_err() {
            return;
        }
        let back = tokio::time::timeout(after, progress.wait_for(|p| p.synced));
        if back.await.is_err() {
            shared.stale.store(true, Relaxed);
            tracing::warn!(
                ?after,
                "the control plane is away for too long to believe its endpoints; \
                 captured connections go to their Services' own addresses"
            );
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.end();
    }
}
