//! Weir's control plane: objects come from `sources`, `model` compiles
//! them, `push` brings the result to the agents, `ledger` hears what they
//! make of it, and the status of every object is shown by the API.
//!
//! [`ControlPlane::start`] is the only place where the parts meet.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{broadcast, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tonic::transport::Server;
use weir_proto::v1alpha1::discovery_server::DiscoveryServer;
use weir_proto::v1alpha1::reporting_server::ReportingServer;

mod api;
mod capture;
pub mod events;
mod identity;
mod kubernetes;
mod leadership;
mod ledger;
mod metrics;
mod model;
mod push;
mod readiness;
pub mod sources;
mod status;
mod stop;
pub mod store;
mod world;
mod writer;

pub use identity::Lifetimes;
pub use kubernetes::Kubernetes;
pub use push::Timing;

use capture::Callers;
use events::{Event, Events};
use identity::{Door, Gate, Refusals};
use leadership::{Access, Leadership, Role};
use ledger::{Ledger, Reporter};
use metrics::{Gauges, Metrics};
use push::{Catalog, Pusher};
use readiness::Readiness;
use sources::files::{Files, OpenError};
use sources::kubernetes::Observed;
use stop::stopped;
use store::{Collection, Store, Watch};
use world::World;

/// Streams and watchers get so long to end before they are cut off.
const GRACE: Duration = Duration::from_secs(5);
/// How often a connection without traffic is asked whether it is still there.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// Streams of one connection; an agent has two.
const MAX_STREAMS: u32 = 16;
/// A hello names what an agent holds, some 80 bytes each.
const MAX_REQUEST_BYTES: usize = 8 << 20;

/// How a control plane runs.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where objects come from.
    pub source: Source,
    /// Where agents connect; port 0 takes any.
    pub grpc: SocketAddr,
    /// Where people and their tools ask; `None` for nowhere. It has no
    /// authentication: keep it on a loopback address.
    pub admin: Option<SocketAddr>,
    /// How patient the push is.
    pub timing: Timing,
}

impl Config {
    /// Reads `files`, and listens on any free ports of 127.0.0.1.
    pub fn new(files: Vec<PathBuf>) -> Config {
        Config {
            source: Source::Files(files),
            ..Config::default()
        }
    }
}

impl Default for Config {
    /// Reads nothing, and listens on any free ports of 127.0.0.1.
    fn default() -> Config {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        Config {
            source: Source::Files(Vec::new()),
            grpc: any,
            admin: Some(any),
            timing: Timing::default(),
        }
    }
}

/// Where objects come from, and where their status goes.
#[derive(Clone, Debug)]
pub enum Source {
    /// Directories and files with manifests.
    Files(Vec<PathBuf>),
    /// The API server of a cluster.
    Kubernetes(Kubernetes),
}

/// Why a control plane cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A path with manifests is not there.
    #[error(transparent)]
    Files(#[from] OpenError),
    /// There is no way to ask an API server.
    #[error(transparent)]
    Kubernetes(#[from] kubernetes::ClientError),
    /// An address cannot be listened on.
    #[error(
        "cannot listen on {address}: {error}: choose another address, or port 0 for any free one"
    )]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        error: std::io::Error,
    },
}

/// A running control plane. Ends with [`ControlPlane::shutdown`]; dropped, it
/// ends at once.
pub struct ControlPlane {
    grpc: SocketAddr,
    admin: Option<SocketAddr>,
    store: Arc<Store>,
    events: Arc<Events>,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

impl ControlPlane {
    /// Starts it on the runtime of the caller. When this returns, both addresses
    /// are listened on. Manifests have been read once by then; an API server is
    /// read afterwards, and agents are answered once that is done. Objects that
    /// are wrong are shown and stop nothing.
    ///
    /// # Errors
    /// Where a path does not exist, an address cannot be listened on, or nothing
    /// says where the API server is. One that does not answer is waited for.
    pub async fn start(config: Config) -> Result<ControlPlane, StartError> {
        let source = match config.source {
            Source::Files(paths) => Opened::Files(Files::open(paths)?),
            Source::Kubernetes(kubernetes) => Opened::Kubernetes(kubernetes.open().await?),
        };
        let (grpc_listener, grpc) = listen(config.grpc).await?;
        let admin_listener = match config.admin {
            Some(address) => Some(listen(address).await?),
            None => None,
        };

        let (objects, objects_seen) = watch::channel(None);
        let (stop, stopping) = watch::channel(false);
        let (catalog, catalog_seen) = watch::channel(Arc::new(Catalog::default()));
        let (gauges, gauges_seen) = watch::channel(Gauges::default());
        let (plans, plans_seen) = watch::channel(Arc::default());
        let ledger = Arc::new(Ledger::default());
        let callers = Arc::new(Callers::default());
        let store = Arc::new(Store::default());
        let events = Arc::new(Events::default());
        let metrics = Arc::new(Metrics::default());
        let readiness = Arc::new(Readiness::default());
        let observed = Arc::new(Observed::default());
        // Without an API server there is one control plane, and nobody to ask.
        let (roles, role) = watch::channel(Role::Unknown);
        let (own, is_own) = watch::channel(false);
        let leadership = Leadership::new(role);

        let mut world = World {
            objects: objects_seen.clone(),
            catalog,
            callers: Arc::clone(&callers),
            ledger: Arc::clone(&ledger),
            store: Arc::clone(&store),
            events: Arc::clone(&events),
            metrics: Arc::clone(&metrics),
            gauges,
            plans,
            readiness: Arc::clone(&readiness),
            observed: Arc::clone(&observed),
            leadership: leadership.clone(),
            own,
        };
        let refusals = Arc::new(Refusals::new(Arc::clone(&metrics)));
        let (tls, gate, authority) = match &source {
            // Manifests in files come without an API server that knows agents.
            Opened::Files(_) => (None, Gate::Open, None),
            Opened::Kubernetes(cluster) => {
                let identity = cluster.identity(&refusals)?;
                let authority = kubernetes::Authority {
                    keeper: identity.keeper,
                    certificate: identity.certificate,
                };
                (Some(identity.tls), identity.gate, Some(authority))
            }
        };
        let access = Access {
            gate,
            leadership: leadership.clone(),
        };
        let pusher = Pusher::new(
            catalog_seen,
            callers,
            Arc::clone(&ledger),
            Arc::clone(&events),
            Arc::clone(&metrics),
            stopping.clone(),
            config.timing,
            access.clone(),
        );
        let reporter = Reporter::new(
            Arc::clone(&ledger),
            Arc::clone(&events),
            Arc::clone(&metrics),
            stopping.clone(),
            access,
        );
        let api = api::Api::new(
            Arc::clone(&store),
            Arc::clone(&events),
            Arc::clone(&metrics),
            ledger,
            gauges_seen,
            Arc::clone(&readiness),
            stopping.clone(),
        );

        let mut tasks = JoinSet::new();
        let admin = admin_listener.map(|(listener, address)| {
            tasks.spawn(serve_admin(listener, api, stopping.clone()));
            address
        });
        let state = match source {
            Opened::Files(mut files) => {
                let first = files.look(Instant::now(), jiff::Timestamp::now());
                objects.send_replace(Some(Arc::new(first.changed.unwrap_or_default())));
                let state = world.begin();
                tasks.spawn(files.run(objects, first.again, stopping.clone()));
                Some(state)
            }
            Opened::Kubernetes(cluster) => {
                let shared = kubernetes::Shared {
                    objects,
                    objects_seen,
                    plans: plans_seen,
                    store: Arc::clone(&store),
                    readiness: Arc::clone(&readiness),
                    metrics,
                    observed,
                    roles,
                    leadership,
                    own: is_own,
                };
                cluster.spawn(shared, authority, &mut tasks, &stopping);
                None
            }
        };
        tasks.spawn(world.run(state, stopping.clone()));
        tasks.spawn(serve_grpc(
            Door::new(grpc_listener, tls, refusals),
            pusher,
            reporter,
            readiness,
            stopping,
        ));
        tracing::info!(%grpc, admin = admin.map(tracing::field::display), "control plane started");
        Ok(ControlPlane {
            grpc,
            admin,
            store,
            events,
            stop,
            tasks,
        })
    }

    /// Where agents connect.
    pub fn grpc_addr(&self) -> SocketAddr {
        self.grpc
    }

    /// Where people and their tools ask.
    pub fn admin_addr(&self) -> Option<SocketAddr> {
        self.admin
    }

    /// Objects with their status: what is there, and then what changes.
    pub fn watch(&self, collection: Collection) -> Watch {
        self.store.watch(collection, None)
    }

    /// What happened, up to the last 1,000 events, oldest first.
    pub fn events(&self) -> Vec<Event> {
        self.events.kept()
    }

    /// What happens from now on. A listener 1,000 behind misses the oldest.
    pub fn subscribe_events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    /// Ends all streams, telling agents to reconnect elsewhere, and returns when
    /// everything has ended, after five seconds at most.
    pub async fn shutdown(mut self) {
        self.stop.send_replace(true);
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        if timeout(GRACE, ended).await.is_err() {
            tracing::warn!("some connections did not end in time and are cut off");
        }
        self.tasks.shutdown().await;
    }
}

impl Drop for ControlPlane {
    /// Streams are tasks of their own: they end because they are told.
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}

/// A source that can be read.
enum Opened {
    Files(Files),
    Kubernetes(kubernetes::Cluster),
}

async fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let wrong = |error| StartError::Listen { address, error };
    let listener = TcpListener::bind(address).await.map_err(wrong)?;
    let bound = listener.local_addr().map_err(wrong)?;
    Ok((listener, bound))
}

async fn serve_grpc(
    door: Door,
    pusher: Pusher,
    reporter: Reporter,
    readiness: Arc<Readiness>,
    mut stop: watch::Receiver<bool>,
) {
    // An agent that is answered before everything is read would be told to drop
    // what it holds.
    tokio::select! {
        () = readiness.is_ready() => {}
        () = stopped(&mut stop) => return,
    }
    let mut server = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .max_concurrent_streams(Some(MAX_STREAMS));
    if let Some(age) = door.connection_age() {
        server = server.max_connection_age(age);
    }
    let served = server
        .add_service(DiscoveryServer::new(pusher).max_decoding_message_size(MAX_REQUEST_BYTES))
        .add_service(ReportingServer::new(reporter))
        .serve_with_incoming_shutdown(door.open(), stopped(&mut stop))
        .await;
    if let Err(error) = served {
        tracing::error!(%error, "agents can no longer connect");
    }
}

async fn serve_admin(listener: TcpListener, api: api::Api, mut stop: watch::Receiver<bool>) {
    let stopped = async move { stopped(&mut stop).await };
    let served = axum::serve(listener, api.router())
        .with_graceful_shutdown(stopped)
        .await;
    if let Err(error) = served {
        tracing::error!(%error, "the admin address is no longer served");
    }
}
