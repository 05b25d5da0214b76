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
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use weir_proto::v1alpha1::discovery_server::DiscoveryServer;
use weir_proto::v1alpha1::reporting_server::ReportingServer;

mod api;
pub mod events;
mod ledger;
mod metrics;
mod model;
mod push;
pub mod sources;
mod status;
mod stop;
pub mod store;
mod world;

pub use push::Timing;

use events::{Event, Events};
use ledger::{Ledger, Reporter};
use metrics::{Gauges, Metrics};
use push::{Catalog, Pusher};
use sources::files::{Files, OpenError};
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
    /// Directories and files with manifests.
    pub files: Vec<PathBuf>,
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
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        Config {
            files,
            grpc: any,
            admin: Some(any),
            timing: Timing::default(),
        }
    }
}

/// Why a control plane cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A path with manifests is not there.
    #[error(transparent)]
    Files(#[from] OpenError),
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
    /// Starts it on the runtime of the caller. When this returns, the manifests
    /// have been read once and both addresses are listened on. Manifests that
    /// are wrong are shown and stop nothing.
    ///
    /// # Errors
    /// Where a path does not exist or an address cannot be listened on.
    pub async fn start(config: Config) -> Result<ControlPlane, StartError> {
        let mut files = Files::open(config.files)?;
        let (grpc_listener, grpc) = listen(config.grpc).await?;
        let admin_listener = match config.admin {
            Some(address) => Some(listen(address).await?),
            None => None,
        };

        let first = files.look(Instant::now(), jiff::Timestamp::now());
        let (objects, objects_seen) = watch::channel(Arc::new(first.changed.unwrap_or_default()));
        let (stop, stopping) = watch::channel(false);
        let (catalog, catalog_seen) = watch::channel(Arc::new(Catalog::default()));
        let (gauges, gauges_seen) = watch::channel(Gauges::default());
        let ledger = Arc::new(Ledger::default());
        let store = Arc::new(Store::default());
        let events = Arc::new(Events::default());
        let metrics = Arc::new(Metrics::default());

        let mut world = World {
            objects: objects_seen,
            catalog,
            ledger: Arc::clone(&ledger),
            store: Arc::clone(&store),
            events: Arc::clone(&events),
            metrics: Arc::clone(&metrics),
            gauges,
        };
        let state = world.begin();
        let pusher = Pusher::new(
            catalog_seen,
            Arc::clone(&ledger),
            Arc::clone(&events),
            Arc::clone(&metrics),
            stopping.clone(),
            config.timing,
        );
        let reporter = Reporter::new(
            Arc::clone(&ledger),
            Arc::clone(&events),
            Arc::clone(&metrics),
            stopping.clone(),
        );
        let api = api::Api::new(
            Arc::clone(&store),
            Arc::clone(&events),
            metrics,
            ledger,
            gauges_seen,
            stopping.clone(),
        );

        let mut tasks = JoinSet::new();
        tasks.spawn(world.run(state, stopping.clone()));
        tasks.spawn(files.run(objects, first.again, stopping.clone()));
        tasks.spawn(serve_grpc(
            grpc_listener,
            pusher,
            reporter,
            stopping.clone(),
        ));
        let admin = admin_listener.map(|(listener, address)| {
            tasks.spawn(serve_admin(listener, api, stopping));
            address
        });
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

async fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let wrong = |error| StartError::Listen { address, error };
    let listener = TcpListener::bind(address).await.map_err(wrong)?;
    let bound = listener.local_addr().map_err(wrong)?;
    Ok((listener, bound))
}

async fn serve_grpc(
    listener: TcpListener,
    pusher: Pusher,
    reporter: Reporter,
    mut stop: watch::Receiver<bool>,
) {
    let served = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .tcp_nodelay(true)
        .max_concurrent_streams(Some(MAX_STREAMS))
        .add_service(DiscoveryServer::new(pusher).max_decoding_message_size(MAX_REQUEST_BYTES))
        .add_service(ReportingServer::new(reporter))
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), stopped(&mut stop))
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
