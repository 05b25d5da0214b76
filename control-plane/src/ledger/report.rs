//! The `Reporting` service: how breakers' states and figures come back.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use weir_proto::v1alpha1 as proto;
use weir_proto::v1alpha1::BreakerState;
use weir_proto::v1alpha1::reporting_server::Reporting;

use super::Ledger;
use super::breakers::{bounded, breaker_id};
use super::contested;
use crate::events::{Event, Events, Severity};
use crate::identity::Peer;
use crate::leadership::Access;
use crate::metrics::Metrics;
use crate::stop::stopped;

/// Answers that may wait for an agent to read them.
const OUTBOX: usize = 16;
/// An agent that does not read its answers for so long loses its stream.
const READ_WITHIN: Duration = Duration::from_secs(10);

/// The `Reporting` service.
#[derive(Clone)]
pub(crate) struct Reporter {
    ledger: Arc<Ledger>,
    events: Arc<Events>,
    metrics: Arc<Metrics>,
    stop: watch::Receiver<bool>,
    access: Access,
}

impl Reporter {
    /// Writes reports into `ledger` and transitions into `events`, until `stop`
    /// is true. `gate` decides whose streams are read.
    pub(crate) fn new(
        ledger: Arc<Ledger>,
        events: Arc<Events>,
        metrics: Arc<Metrics>,
        stop: watch::Receiver<bool>,
        access: Access,
    ) -> Reporter {
        Reporter {
            ledger,
            events,
            metrics,
            stop,
            access,
        }
    }
}

#[tonic::async_trait]
impl Reporting for Reporter {
    type ReportStream = ReceiverStream<Result<proto::ReportResponse, Status>>;

    async fn report(
        &self,
        request: Request<Streaming<proto::ReportRequest>>,
    ) -> Result<Response<Self::ReportStream>, Status> {
        let peer = self.access.admit(&request).await?;
        let (outbox, responses) = mpsc::channel(OUTBOX);
        let reporter = self.clone();
        tokio::spawn(async move {
            if let Err(status) = reporter.serve(peer, request.into_inner(), &outbox).await {
                tracing::debug!(code = ?status.code(), message = status.message(), "a report stream ends");
                let _ = outbox.try_send(Err(status));
            }
        });
        Ok(Response::new(ReceiverStream::new(responses)))
    }
}

type Outbox = mpsc::Sender<Result<proto::ReportResponse, Status>>;

/// One stream's reports; ends with it.
struct Speaker {
    ledger: Arc<Ledger>,
    node: String,
    stream: u64,
}

impl Drop for Speaker {
    fn drop(&mut self) {
        self.ledger
            .breakers
            .end(&self.node, self.stream, Instant::now());
        self.ledger.changed.notify_one();
    }
}

impl Reporter {
    async fn serve(
        mut self,
        peer: Peer,
        mut requests: Streaming<proto::ReportRequest>,
        outbox: &Outbox,
    ) -> Result<(), Status> {
        let mut worn = pin!(peer.worn());
        let leadership = self.access.leadership.clone();
        let mut moved = pin!(leadership.lost());
        let mut speaker: Option<Speaker> = None;
        loop {
            let request = tokio::select! {
                biased;
                () = stopped(&mut self.stop) => {
                    return Err(Status::unavailable("the control plane is stopping: reconnect"));
                }
                // No error: the agent opens the next with the token that it has by then.
                () = &mut worn => return Ok(()),
                moved = &mut moved => return Err(moved),
                request = requests.message() => request?,
            };
            let Some(request) = request else {
                return Ok(());
            };
            let speaker = match &mut speaker {
                Some(speaker) => speaker,
                first => {
                    peer.may_speak_for(&request.node)?;
                    first.insert(self.introduce(&request.node)?)
                }
            };
            if !request.node.is_empty() && request.node != speaker.node {
                return Err(Status::permission_denied(format!(
                    "this stream reports for node {} only",
                    speaker.node
                )));
            }
            let breakers = &self.ledger.breakers;
            let Some(news) = breakers.take(&speaker.node, speaker.stream, &request) else {
                return Err(Status::aborted(contested(&speaker.node)));
            };
            if let Some(coverage) = &request.coverage {
                let all = &self.ledger.coverage;
                all.take(&speaker.node, speaker.stream, coverage);
            }
            for transition in news {
                self.transition(&speaker.node, transition);
            }
            self.ledger.changed.notify_one();
            let answer = proto::ReportResponse {
                sequence: request.sequence,
            };
            match timeout(READ_WITHIN, outbox.send(Ok(answer))).await {
                Ok(Ok(())) => {}
                _ => return Err(Status::cancelled("the agent no longer reads")),
            }
        }
    }

    fn introduce(&self, node: &str) -> Result<Speaker, Status> {
        if node.is_empty() || node.len() > 253 {
            return Err(Status::invalid_argument(
                "the first report must name its node, in 1 to 253 characters",
            ));
        }
        let stream = self.ledger.next_stream();
        if !self.ledger.breakers.begin(node, stream) {
            return Err(Status::resource_exhausted("too many nodes report"));
        }
        Ok(Speaker {
            ledger: Arc::clone(&self.ledger),
            node: node.to_owned(),
            stream,
        })
    }

    fn transition(&self, node: &str, transition: &proto::BreakerTransition) {
        let Some(id) = breaker_id(transition.id.as_ref()) else {
            return;
        };
        let (reason, severity) = match transition.to() {
            BreakerState::Open | BreakerState::ForcedOpen => ("CircuitOpened", Severity::Warning),
            BreakerState::HalfOpen => ("CircuitHalfOpen", Severity::Normal),
            BreakerState::Closed | BreakerState::ForcedClosed => {
                ("CircuitClosed", Severity::Normal)
            }
            BreakerState::Unspecified => return,
        };
        self.metrics.transition(transition.to());
        let message = bounded(&transition.message);
        tracing::info!(
            node,
            namespace = id.namespace,
            breaker = id.key,
            from = state_name(transition.from()),
            to = state_name(transition.to()),
            shadow = transition.shadow,
            message,
            "breaker"
        );
        self.events.push(Event {
            at_unix_ms: transition.at_unix_ms,
            severity,
            reason,
            kind: "CircuitBreaker",
            namespace: id.namespace,
            name: id.key,
            node: Some(node.to_owned()),
            from: Some(state_name(transition.from())),
            to: Some(state_name(transition.to())),
            shadow: transition.shadow,
            message,
        });
    }
}

/// As people read it; "Unknown" for a state of a later version.
fn state_name(state: BreakerState) -> &'static str {
    match state {
        BreakerState::Closed => "Closed",
        BreakerState::Open => "Open",
        BreakerState::HalfOpen => "HalfOpen",
        BreakerState::ForcedOpen => "ForcedOpen",
        BreakerState::ForcedClosed => "ForcedClosed",
        BreakerState::Unspecified => "Unknown",
    }
}
