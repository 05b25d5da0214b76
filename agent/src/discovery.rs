//! The stream on which configuration comes. Whatever happens to the control
//! plane, what is in force stays in force.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use weir_proto::v1alpha1 as proto;
use weir_proto::v1alpha1::discovery_client::DiscoveryClient;

use crate::configuration::{Configuration, is_of_service};
use crate::control::{ControlPlane, Way, is_elsewhere};
use crate::features;
use crate::store::Store;

/// Waits between two attempts are drawn from zero up to a bound that doubles
/// between these.
const FIRST_WAIT: Duration = Duration::from_millis(200);
const MAX_WAIT: Duration = Duration::from_secs(10);
/// The bound of the wait before another replica is tried, at first and at most:
/// when the one that answered is gone, seconds pass until another does.
const FIRST_TURN: Duration = Duration::from_millis(100);
const LAST_TURN: Duration = Duration::from_millis(1_500);
/// How long an answer waits for pods to be captured as it says. What is not by
/// then is told with the coverage.
const SETTLE: Duration = Duration::from_secs(5);
/// The largest message that is taken.
pub(crate) const MAX_MESSAGE: usize = 4 * 1024 * 1024;

/// How far configuration has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Something is in force: from disk or from the control plane.
    pub(crate) enforcing: bool,
    /// A stream is open and has sent everything.
    pub(crate) synced: bool,
}

/// The wait before attempt `attempt` (0 is the first repetition): full jitter,
/// so that a fleet does not come back together.
pub(crate) fn reconnect_wait(attempt: u32) -> Duration {
    let bound = FIRST_WAIT
        .saturating_mul(1 << attempt.min(10))
        .min(MAX_WAIT);
    bound.mul_f64(fastrand::f64())
}

/// The wait before another replica is tried, after `turns` that sent this agent
/// on.
pub(crate) fn turn_wait(turns: u32) -> Duration {
    let bound = FIRST_TURN.saturating_mul(1 << turns.min(10)).min(LAST_TURN);
    bound.mul_f64(0.2 + 0.8 * fastrand::f64())
}

/// Follows the control plane for ever.
pub(crate) async fn run(
    control_plane: ControlPlane,
    node: String,
    configuration: Arc<Mutex<Configuration>>,
    store: Option<Store>,
    progress: watch::Sender<Progress>,
) {
    let mut attempt = 0;
    let mut turns = 0;
    let mut said = false;
    loop {
        let way = control_plane.way();
        let ended = follow(
            &control_plane,
            &way,
            &node,
            &configuration,
            store.as_ref(),
            &progress,
        )
        .await;
        let was_synced = progress.borrow().synced;
        progress.send_modify(|p| p.synced = false);
        let contested = ended.code() == tonic::Code::Aborted;
        if was_synced && !contested {
            attempt = 0;
            said = false;
        }
        if is_elsewhere(&ended) {
            // Nothing is wrong; but a fleet that is sent on must not rush.
            control_plane.turn(&way);
            tokio::time::sleep(turn_wait(turns)).await;
            turns += 1;
            continue;
        }
        turns = 0;
        // Said once per outage; the next line is the reconnection's.
        let first = !std::mem::replace(&mut said, true);
        if was_synced && ended.code() == tonic::Code::Ok {
            // The control plane wants a newer token: nothing is wrong.
            said = false;
        } else if contested && first {
            tracing::error!(node, "{}", ended.message());
        } else if is_refusal(&ended) && first {
            tracing::error!(
                node,
                "the control plane refuses this agent: {}; what is in force stays in force",
                ended.message()
            );
        } else if first {
            tracing::warn!(
                reason = root_cause(&ended),
                "control plane out of reach; what is in force stays in force"
            );
        }
        tokio::time::sleep(reconnect_wait(attempt)).await;
        attempt += 1;
    }
}

/// One stream, until it ends; why it did.
async fn follow(
    control_plane: &ControlPlane,
    way: &Way,
    node: &str,
    configuration: &Mutex<Configuration>,
    store: Option<&Store>,
    progress: &watch::Sender<Progress>,
) -> tonic::Status {
    let (requests, outgoing) = mpsc::channel(4);
    let capture = configuration.lock().await.capture();
    let hello = proto::Hello {
        node: node.to_owned(),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        features: features::all(capture.is_some()),
        held: configuration.lock().await.held(),
    };
    // There is room: the channel is new.
    let _ = requests
        .send(request(proto::discover_request::Message::Hello(hello)))
        .await;
    let mut client = DiscoveryClient::new(way.channel()).max_decoding_message_size(MAX_MESSAGE);
    let request_stream = match control_plane.request(ReceiverStream::new(outgoing)).await {
        Ok(request) => request,
        Err(status) => return status,
    };
    let mut responses = match client.discover(request_stream).await {
        Ok(responses) => responses.into_inner(),
        Err(status) => return status,
    };
    loop {
        let response = match responses.message().await {
            Ok(Some(response)) => response,
            Ok(None) => return ended(),
            Err(status) => return status,
        };
        let of_services = response.resources.iter().any(|r| is_of_service(r.kind))
            || response.removed.iter().any(|r| is_of_service(r.kind))
            || response.synced;
        let rejections = {
            let mut configuration = configuration.lock().await;
            let rejections = configuration.apply(response.resources, response.removed);
            // Half of a first synchronisation is nothing to start with. Pods come and
            // go too often to write everything each time, and a pod that is gone does
            // no harm.
            if let Some(store) = store
                && of_services
                && (response.synced || progress.borrow().synced)
                && let Err(error) = store.save(configuration.resources())
            {
                tracing::error!(%error, "cannot save the configuration; a restart would need the control plane");
            }
            rejections
        };
        if let Some(capture) = &capture {
            // Late is better than never: the rest goes on.
            let _ = tokio::time::timeout(SETTLE, capture.settled()).await;
        }
        if response.synced && !progress.borrow().synced {
            tracing::info!("connected to the control plane");
        }
        progress.send_modify(|p| {
            p.enforcing |= response.synced;
            p.synced |= response.synced;
        });
        let ack = proto::Ack {
            nonce: response.nonce,
            rejections,
        };
        if requests
            .send(request(proto::discover_request::Message::Ack(ack)))
            .await
            .is_err()
        {
            return tonic::Status::unavailable("the stream was closed");
        }
    }
}

/// The control plane ended a stream without an error.
pub(crate) fn ended() -> tonic::Status {
    tonic::Status::new(tonic::Code::Ok, "the control plane ended the stream")
}

/// Whether it says that this agent is not one of the control plane's.
pub(crate) fn is_refusal(status: &tonic::Status) -> bool {
    matches!(
        status.code(),
        tonic::Code::Unauthenticated | tonic::Code::PermissionDenied
    )
}

/// What is at the bottom of a status: "Connection refused (os error 111)"
/// rather than the names of the layers above.
pub(crate) fn root_cause(status: &tonic::Status) -> String {
    let mut source = std::error::Error::source(status);
    let mut last = None;
    while let Some(error) = source {
        last = Some(error.to_string());
        source = error.source();
    }
    last.unwrap_or_else(|| status.message().to_owned())
}

fn request(message: proto::discover_request::Message) -> proto::DiscoverRequest {
    proto::DiscoverRequest {
        message: Some(message),
    }
}
