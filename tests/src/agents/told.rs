//! A control plane that says what a test tells it, on the real wire.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use prost::Message;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};
use weir_proto::v1alpha1 as proto;
use weir_proto::v1alpha1::discovery_server::{Discovery, DiscoveryServer};
use weir_proto::v1alpha1::reporting_server::{Reporting, ReportingServer};

use crate::wait::eventually;

/// Going away takes no longer than this.
const END: Duration = Duration::from_secs(10);

/// The kind and name of a resource.
type Name = (i32, String);

/// What is told, and what was heard.
#[derive(Default)]
struct State {
    /// By the node that it is for; empty: for all.
    resources: BTreeMap<(String, Name), proto::Resource>,
    /// What each node has acknowledged.
    enforced: HashMap<String, BTreeMap<Name, String>>,
    rejected: Vec<proto::Rejection>,
    coverage: HashMap<String, proto::Coverage>,
    breakers: HashMap<(String, String), proto::BreakerReport>,
    callers: HashMap<String, proto::Caller>,
    asked: u64,
}

/// A control plane. It ends with the value.
pub struct Told {
    address: SocketAddr,
    shared: Shared,
    /// With every connection: they end with it.
    server: Option<Runtime>,
}

#[derive(Clone)]
struct Shared {
    state: Arc<Mutex<State>>,
    changed: watch::Sender<u64>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A resource with this body. Its version is a hash of the body.
pub fn resource(kind: proto::ResourceKind, name: &str, body: &impl Message) -> proto::Resource {
    let body = body.encode_to_vec();
    let hash = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    proto::Resource {
        kind: kind.into(),
        name: name.to_owned(),
        version: format!("{:x}", body.iter().fold(0xcbf2_9ce4_8422_2325, hash)),
        requires: Vec::new(),
        body: body.into(),
    }
}

impl Told {
    /// Starts one on any free port of this machine's loopback.
    ///
    /// # Errors
    /// When there is no port.
    pub async fn start() -> Result<Told> {
        let mut told = Told {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            shared: Shared {
                state: Arc::default(),
                changed: watch::Sender::new(0),
            },
            server: None,
        };
        told.come_back().await?;
        Ok(told)
    }

    /// Where it is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Goes away: every stream ends, and nobody answers.
    pub async fn go_away(&mut self) {
        if let Some(server) = self.server.take() {
            // Waits until the last of them has ended.
            let ended = tokio::task::spawn_blocking(|| server.shutdown_timeout(END));
            let _ = ended.await;
        }
    }

    /// Answers again, at the same place.
    ///
    /// # Errors
    /// When the port was taken meanwhile.
    pub async fn come_back(&mut self) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let listener = tokio::net::TcpListener::bind(self.address);
        let listener = runtime.spawn(listener).await??;
        self.address = listener.local_addr()?;
        let shared = self.shared.clone();
        runtime.spawn(async move {
            let served = tonic::transport::Server::builder()
                .add_service(DiscoveryServer::new(shared.clone()))
                .add_service(ReportingServer::new(shared))
                .serve_with_incoming(TcpListenerStream::new(listener));
            if let Err(error) = served.await {
                println!("the control plane ended: {error}");
            }
        });
        self.server = Some(runtime);
        Ok(())
    }

    /// Has every agent hold this resource.
    pub fn set(&self, resource: proto::Resource) {
        self.set_on("", resource);
    }

    /// Has one node's agents hold this resource.
    pub fn set_on(&self, node: &str, resource: proto::Resource) {
        let name = (resource.kind, resource.name.clone());
        let key = (node.to_owned(), name);
        self.shared.state().resources.insert(key, resource);
        self.shared.changed.send_modify(|n| *n += 1);
    }

    /// Takes a resource away.
    pub fn remove(&self, node: &str, kind: proto::ResourceKind, name: &str) {
        let key = (node.to_owned(), (kind.into(), name.to_owned()));
        self.shared.state().resources.remove(&key);
        self.shared.changed.send_modify(|n| *n += 1);
    }

    /// Says who has an address.
    pub fn caller(&self, address: &str, caller: proto::Caller) {
        let mut state = self.shared.state();
        state.callers.insert(address.to_owned(), caller);
    }

    /// How many addresses agents have asked for.
    pub fn asked(&self) -> u64 {
        self.shared.state().asked
    }

    /// Waits until a node's agent enforces all that it was told.
    pub async fn enforced(&self, node: &str) {
        eventually("an agent that enforces everything", || async {
            let state = self.shared.state();
            let wanted = state.wanted(node);
            let held = state.enforced.get(node).cloned().unwrap_or_default();
            if wanted == held {
                Ok(())
            } else {
                Err(format!("{wanted:?}, {held:?}, {:?}", state.rejected))
            }
        })
        .await;
    }

    /// What a node's agent says it does not capture.
    pub fn coverage(&self, node: &str) -> Option<proto::Coverage> {
        self.shared.state().coverage.get(node).cloned()
    }

    /// What a node's agent said last of a breaker.
    pub fn breaker(&self, node: &str, key: &str) -> Option<proto::BreakerReport> {
        let key = (node.to_owned(), key.to_owned());
        self.shared.state().breakers.get(&key).cloned()
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            server.shutdown_background();
        }
    }
}

impl State {
    /// What a node should hold, by version.
    fn wanted(&self, node: &str) -> BTreeMap<Name, String> {
        let of_node = |(of, _): &&(String, Name)| of.is_empty() || of == node;
        let keys = self.resources.keys().filter(of_node);
        keys.map(|key| (key.1.clone(), self.resources[key].version.clone()))
            .collect()
    }
}

type Responses = ReceiverStream<Result<proto::DiscoverResponse, Status>>;

#[tonic::async_trait]
impl Discovery for Shared {
    type DiscoverStream = Responses;

    async fn discover(
        &self,
        request: Request<Streaming<proto::DiscoverRequest>>,
    ) -> Result<Response<Responses>, Status> {
        use proto::discover_request::Message;
        let (responses, stream) = mpsc::channel(4);
        let shared = self.clone();
        let mut requests = request.into_inner();
        tokio::spawn(async move {
            let Ok(Some(first)) = requests.message().await else {
                return;
            };
            let Some(Message::Hello(hello)) = first.message else {
                return;
            };
            let held = hello.held.into_iter();
            let mut held: BTreeMap<Name, String> =
                held.map(|h| ((h.kind, h.name), h.version)).collect();
            let mut changed = shared.changed.subscribe();
            changed.mark_changed();
            for nonce in 1.. {
                tokio::select! {
                    moved = changed.changed() => if moved.is_err() { return },
                    // Nothing else is due: it is the end.
                    _ = requests.message() => return,
                }
                let response = shared.difference(&hello.node, &mut held, nonce);
                if responses.send(Ok(response)).await.is_err() {
                    return;
                }
                let Ok(Some(answer)) = requests.message().await else {
                    return;
                };
                if let Some(Message::Ack(ack)) = answer.message {
                    let mut state = shared.state();
                    state.rejected = ack.rejections;
                    let mut enforced = held.clone();
                    for rejection in &state.rejected {
                        enforced.remove(&(rejection.kind, rejection.name.clone()));
                    }
                    state.enforced.insert(hello.node.clone(), enforced);
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn resolve(
        &self,
        request: Request<proto::ResolveRequest>,
    ) -> Result<Response<proto::ResolveResponse>, Status> {
        let mut state = self.state();
        let addresses = request.into_inner().addresses;
        state.asked += addresses.len() as u64;
        let of = |address| state.callers.get(address).cloned().unwrap_or_default();
        let callers = addresses.iter().map(of).collect();
        Ok(Response::new(proto::ResolveResponse { callers }))
    }
}

impl Shared {
    fn take_in(&self, report: &proto::ReportRequest) {
        let mut state = self.state();
        if let Some(coverage) = &report.coverage {
            let node = report.node.clone();
            state.coverage.insert(node, coverage.clone());
        }
        for breaker in &report.breakers {
            let key = breaker.id.clone().unwrap_or_default().key;
            let key = (report.node.clone(), key);
            state.breakers.insert(key, breaker.clone());
        }
    }

    /// What leads from what a node holds to what it should. That is what it
    /// holds from then on: both of one moment, or a change between them would
    /// never be told.
    fn difference(
        &self,
        node: &str,
        held: &mut BTreeMap<Name, String>,
        nonce: u64,
    ) -> proto::DiscoverResponse {
        let state = self.state();
        let wanted = state.wanted(node);
        let news = |((of, name), resource): (&(String, Name), &proto::Resource)| {
            let here = of.is_empty() || of == node;
            (here && held.get(name) != Some(&resource.version)).then(|| resource.clone())
        };
        let gone = held.keys().filter(|name| !wanted.contains_key(*name));
        let response = proto::DiscoverResponse {
            nonce,
            resources: state.resources.iter().filter_map(news).collect(),
            removed: gone
                .map(|(kind, name)| proto::Removed {
                    kind: *kind,
                    name: name.clone(),
                })
                .collect(),
            synced: true,
        };
        *held = wanted;
        response
    }
}

#[tonic::async_trait]
impl Reporting for Shared {
    type ReportStream = ReceiverStream<Result<proto::ReportResponse, Status>>;

    async fn report(
        &self,
        request: Request<Streaming<proto::ReportRequest>>,
    ) -> Result<Response<Self::ReportStream>, Status> {
        let (responses, stream) = mpsc::channel(4);
        let shared = self.clone();
        let mut requests = request.into_inner();
        tokio::spawn(async move {
            while let Ok(Some(report)) = requests.message().await {
                shared.take_in(&report);
                let taken_in = proto::ReportResponse {
                    sequence: report.sequence,
                };
                if responses.send(Ok(taken_in)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}
