//! One agent's `Discover` stream: carries what [`Session`] decides.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use weir_proto::v1alpha1 as proto;
use weir_proto::v1alpha1::ResourceKind;
use weir_proto::v1alpha1::discover_request::Message;
use weir_proto::v1alpha1::discovery_server::Discovery;

use super::resolve::{Asked, resolve};
use super::session::{Answer, MAX_HELD, Refusal, Session};
use super::{Catalog, ResourceId};
use crate::capture::Callers;
use crate::events::{Event, Events, Severity};
use crate::identity::Peer;
use crate::leadership::Access;
use crate::ledger::{Ledger, Presence, contested};
use crate::metrics::Metrics;
use crate::stop::stopped;

/// First synchronisations under way at once; more agents wait their turn.
const MAX_FULL_SYNCS: usize = 64;
/// Responses between the session and the socket: the one unanswered response,
/// and the stream's last word.
const OUTBOX: usize = 2;
/// An agent that was told to open its stream anew counts as connected for so long.
const RENEWAL: Duration = Duration::from_secs(5);

/// How patient the push is.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// An agent that takes longer to say hello, or to read and answer a
    /// response, loses its stream.
    pub answer: Duration,
    /// Between two changes of endpoints for one agent.
    pub endpoints: Duration,
}

impl Default for Timing {
    fn default() -> Timing {
        Timing {
            answer: Duration::from_secs(10),
            endpoints: Duration::from_secs(1),
        }
    }
}

/// The `Discovery` service.
#[derive(Clone)]
pub(crate) struct Pusher {
    catalog: watch::Receiver<Arc<Catalog>>,
    callers: Arc<Callers>,
    asked: Arc<Asked>,
    ledger: Arc<Ledger>,
    events: Arc<Events>,
    metrics: Arc<Metrics>,
    stop: watch::Receiver<bool>,
    timing: Timing,
    access: Access,
    full_syncs: Arc<Semaphore>,
}

impl Pusher {
    /// Pushes what `catalog` holds until `stop` is true, and keeps `ledger`
    /// up to date with what agents answer. `access` decides whose streams are
    /// served.
    #[allow(
        clippy::too_many_arguments,
        reason = "each is another part of the program, named where it is made"
    )]
    pub(crate) fn new(
        catalog: watch::Receiver<Arc<Catalog>>,
        callers: Arc<Callers>,
        ledger: Arc<Ledger>,
        events: Arc<Events>,
        metrics: Arc<Metrics>,
        stop: watch::Receiver<bool>,
        timing: Timing,
        access: Access,
    ) -> Pusher {
        Pusher {
            catalog,
            callers,
            asked: Arc::default(),
            ledger,
            events,
            metrics,
            stop,
            timing,
            access,
            full_syncs: Arc::new(Semaphore::new(MAX_FULL_SYNCS)),
        }
    }
}

#[tonic::async_trait]
impl Discovery for Pusher {
    type DiscoverStream = ReceiverStream<Result<proto::DiscoverResponse, Status>>;

    async fn discover(
        &self,
        request: Request<Streaming<proto::DiscoverRequest>>,
    ) -> Result<Response<Self::DiscoverStream>, Status> {
        let peer = self.access.admit(&request).await?;
        let (outbox, responses) = mpsc::channel(OUTBOX);
        let pusher = self.clone();
        tokio::spawn(async move {
            if let Err(status) = pusher.serve(peer, request.into_inner(), &outbox).await {
                tracing::debug!(code = ?status.code(), message = status.message(), "a discovery stream ends");
                // Full only where the agent does not read; it then sees the end alone.
                let _ = outbox.try_send(Err(status));
            }
        });
        Ok(Response::new(ReceiverStream::new(responses)))
    }

    /// Every replica knows who has an address, whoever leads.
    async fn resolve(
        &self,
        request: Request<proto::ResolveRequest>,
    ) -> Result<Response<proto::ResolveResponse>, Status> {
        let gate = &self.access.gate;
        let peer = gate
            .admit_call(request.metadata(), request.extensions())
            .await?;
        if let Some(node) = peer.node() {
            self.asked.admit(node, Instant::now())?;
        }
        Ok(Response::new(resolve(&self.callers, request.get_ref())?))
    }
}

type Outbox = mpsc::Sender<Result<proto::DiscoverResponse, Status>>;

impl Pusher {
    async fn serve(
        mut self,
        peer: Peer,
        mut requests: Streaming<proto::DiscoverRequest>,
        outbox: &Outbox,
    ) -> Result<(), Status> {
        let hello = self.hello(&mut requests).await?;
        peer.may_speak_for(&hello.node)?;
        let mut session = Session::new(&hello, self.timing.endpoints);
        let presence = self
            .ledger
            .connect(&hello.node, session.holding(), session.captures())?;
        tracing::info!(
            node = hello.node,
            version = hello.agent_version,
            held = hello.held.len(),
            "agent connected"
        );
        let leadership = self.access.leadership.clone();
        let ended = tokio::select! {
            moved = leadership.lost() => Err(moved),
            ended = self.converse(&mut requests, outbox, &mut session, &presence) => ended,
            // No error: the agent opens the next with the token that it has by then.
            () = peer.worn() => {
                tracing::debug!(node = hello.node, "a discovery stream is to be opened anew");
                // It counts as connected meanwhile, or conditions would flicker.
                tokio::spawn(async move { timeout(RENEWAL, presence.superseded()).await });
                return Ok(());
            }
        };
        let reason = ended
            .as_ref()
            .err()
            .map_or("the agent left", Status::message);
        tracing::info!(node = hello.node, reason, "agent disconnected");
        ended
    }

    async fn hello(
        &self,
        requests: &mut Streaming<proto::DiscoverRequest>,
    ) -> Result<proto::Hello, Status> {
        let first = timeout(self.timing.answer, requests.message())
            .await
            .map_err(|_| {
                Status::deadline_exceeded("no hello: the first message must say who the agent is")
            })??;
        match first.and_then(|request| request.message) {
            Some(Message::Hello(hello)) if hello.held.len() > MAX_HELD => Err(
                Status::resource_exhausted(format!("the hello may name {MAX_HELD} resources")),
            ),
            Some(Message::Hello(hello)) => Ok(hello),
            _ => Err(Status::failed_precondition(
                "the first message must be a hello",
            )),
        }
    }

    async fn converse(
        &mut self,
        requests: &mut Streaming<proto::DiscoverRequest>,
        outbox: &Outbox,
        session: &mut Session,
        presence: &Presence,
    ) -> Result<(), Status> {
        // One wait for the whole stream, or a stream that is woken often would
        // lose its place.
        let mut waiting = pin!(Arc::clone(&self.full_syncs).acquire_owned());
        let mut turn: Option<OwnedSemaphorePermit> = None;
        let mut deadline = Instant::now();
        loop {
            let catalog = Arc::clone(&self.catalog.borrow_and_update());
            let now = Instant::now();
            if (session.is_synced() || turn.is_some())
                && let Some(response) = session.next(&catalog, now)
            {
                self.metrics.pushed(response.resources.len());
                deadline = now + self.timing.answer;
                if outbox.try_send(Ok(response)).is_err() {
                    return Err(Status::cancelled("the agent no longer reads"));
                }
            }
            let due = session.due(&catalog);
            drop(catalog);
            tokio::select! {
                biased;
                () = stopped(&mut self.stop) => {
                    return Err(Status::unavailable("the control plane is stopping: reconnect"));
                }
                () = presence.superseded() => {
                    return Err(Status::aborted(contested(presence.node())));
                }
                request = requests.message() => match request?.map(|request| request.message) {
                    None => return Ok(()),
                    Some(Some(Message::Ack(ack))) => self.answered(session, presence, &ack, &mut turn),
                    Some(Some(Message::Hello(_))) => {
                        return Err(Status::failed_precondition("a stream has one hello: open another stream"));
                    }
                    // A message of a later version.
                    Some(None) => {}
                },
                () = sleep_until(deadline), if session.is_waiting() => {
                    return Err(Status::deadline_exceeded("the last response was not answered in time: reconnect"));
                }
                permit = &mut waiting, if turn.is_none() && !session.is_synced() => {
                    turn = permit.ok();
                }
                changed = self.catalog.changed(), if !session.is_waiting() => {
                    changed.map_err(|_| Status::unavailable("the control plane is stopping: reconnect"))?;
                }
                () = sleep_until(due.unwrap_or(deadline)), if due.is_some() => {}
            }
        }
    }

    fn answered(
        &self,
        session: &mut Session,
        presence: &Presence,
        ack: &proto::Ack,
        turn: &mut Option<OwnedSemaphorePermit>,
    ) {
        match session.answer(ack) {
            Answer::Stale => {
                self.metrics.answered_late();
                tracing::debug!(
                    node = presence.node(),
                    nonce = ack.nonce,
                    "an answer to no open question"
                );
            }
            Answer::Taken(taken) => {
                self.metrics.answered(taken.refused.len());
                for (id, refusal) in &taken.refused {
                    tracing::warn!(
                        node = presence.node(),
                        resource = %id.name,
                        version = %refusal.version,
                        message = refusal.message,
                        "an agent refuses a resource"
                    );
                    if matches!(id.kind, ResourceKind::Service | ResourceKind::Endpoints) {
                        self.events.push(rejected(presence.node(), id, refusal));
                    }
                }
                if taken.synced {
                    *turn = None;
                }
                presence.answered(&taken);
            }
        }
    }
}

fn rejected(node: &str, id: &ResourceId, refusal: &Refusal) -> Event {
    let (namespace, name) = id.name.split_once('/').unwrap_or(("", &id.name));
    Event {
        at_unix_ms: jiff::Timestamp::now().as_millisecond(),
        severity: Severity::Warning,
        reason: "PolicyRejected",
        kind: "Service",
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        node: Some(node.to_owned()),
        from: None,
        to: None,
        shadow: false,
        message: refusal.message.clone(),
    }
}
