//! What people and their tools read, over plain HTTP on the admin address:
//! health, metrics, events, and the objects with their status in the form that
//! Kubernetes gives them, so that `weir get` reads both alike.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::timeout;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use crate::events::Events;
use crate::ledger::Ledger;
use crate::metrics::{Gauges, Metrics};
use crate::readiness::Readiness;
use crate::stop::stopped;
use crate::store::{Changed, Collection, Store};

/// Watchers at once.
const MAX_WATCHERS: usize = 256;
/// Lines that may wait for a watcher to read them.
const OUTBOX: usize = 16;
/// A watcher that reads nothing for so long, while there is something to read,
/// is cut off.
const READ_WITHIN: Duration = Duration::from_secs(30);

/// What the pages show.
#[derive(Clone)]
pub(crate) struct Api {
    pub(crate) store: Arc<Store>,
    pub(crate) events: Arc<Events>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) ledger: Arc<Ledger>,
    /// What the last compile found; agents are counted when asked.
    pub(crate) gauges: watch::Receiver<Gauges>,
    pub(crate) readiness: Arc<Readiness>,
    pub(crate) stop: watch::Receiver<bool>,
    watchers: Arc<Semaphore>,
}

impl Api {
    pub(crate) fn new(
        store: Arc<Store>,
        events: Arc<Events>,
        metrics: Arc<Metrics>,
        ledger: Arc<Ledger>,
        gauges: watch::Receiver<Gauges>,
        readiness: Arc<Readiness>,
        stop: watch::Receiver<bool>,
    ) -> Api {
        let watchers = Arc::new(Semaphore::new(MAX_WATCHERS));
        Api {
            store,
            events,
            metrics,
            ledger,
            gauges,
            readiness,
            stop,
            watchers,
        }
    }

    pub(crate) fn router(self) -> Router {
        Router::new()
            .route("/healthz", get(async || "ok\n"))
            .route("/readyz", get(readyz))
            .route("/metrics", get(metrics))
            .route("/events", get(events))
            .route("/apis/weir.dev/v1alpha1/{plural}", get(objects))
            .with_state(self)
    }
}

/// Ready once everything was read and compiled; else what is waited for.
async fn readyz(State(api): State<Api>) -> Response {
    match api.readiness.waits_for() {
        None => "ok\n".into_response(),
        Some(what) => (StatusCode::SERVICE_UNAVAILABLE, what + "\n").into_response(),
    }
}

async fn metrics(State(api): State<Api>) -> Response {
    let mut gauges = *api.gauges.borrow();
    gauges.agents = api.ledger.connected() as u64;
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    (kind, api.metrics.render(&gauges)).into_response()
}

async fn events(State(api): State<Api>) -> Response {
    Json(json!({ "items": api.events.kept() })).into_response()
}

#[derive(Deserialize)]
struct Selection {
    #[serde(default)]
    watch: bool,
    namespace: Option<String>,
}

async fn objects(
    State(api): State<Api>,
    Path(plural): Path<String>,
    Query(selection): Query<Selection>,
) -> Response {
    let Some(collection) = Collection::named(&plural) else {
        let message = format!(
            "weir.dev/v1alpha1 has no {plural}: ask for resiliencepolicies or circuitbreakers"
        );
        return failure(StatusCode::NOT_FOUND, "NotFound", &message);
    };
    if selection.watch {
        return watch_objects(api, collection, selection.namespace);
    }
    let list = api.store.watch(collection, selection.namespace.as_deref());
    let items: Vec<&Value> = list
        .present
        .iter()
        .map(|changed| &*changed.object)
        .collect();
    Json(json!({
        "apiVersion": "weir.dev/v1alpha1",
        "kind": format!("{}List", collection.kind()),
        "metadata": { "resourceVersion": list.revision.to_string() },
        "items": items,
    }))
    .into_response()
}

/// A failure in the form of Kubernetes.
fn failure(code: StatusCode, reason: &str, message: &str) -> Response {
    let body = json!({
        "apiVersion": "v1", "kind": "Status", "status": "Failure",
        "reason": reason, "message": message, "code": code.as_u16(),
    });
    (code, Json(body)).into_response()
}

/// Lines of `{"type", "object"}`, the present state first. A watcher that falls
/// too far behind loses its stream and asks again.
fn watch_objects(api: Api, collection: Collection, namespace: Option<String>) -> Response {
    let Ok(permit) = Arc::clone(&api.watchers).try_acquire_owned() else {
        let message = format!("{MAX_WATCHERS} watches are open already: try again later");
        return failure(StatusCode::TOO_MANY_REQUESTS, "TooManyRequests", &message);
    };
    let (outbox, lines) = mpsc::channel::<Bytes>(OUTBOX);
    tokio::spawn(async move {
        let mut stop = api.stop.clone();
        tokio::select! {
            () = stopped(&mut stop) => {}
            () = outbox.closed() => {}
            () = feed(&api, collection, namespace.as_deref(), &outbox) => {}
        }
        drop(permit);
    });
    let body = Body::from_stream(ReceiverStream::new(lines).map(Ok::<_, Infallible>));
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

async fn feed(
    api: &Api,
    collection: Collection,
    namespace: Option<&str>,
    outbox: &mpsc::Sender<Bytes>,
) {
    let mut watch = api.store.watch(collection, namespace);
    for changed in watch.present.drain(..) {
        if !send(api, outbox, &changed).await {
            return;
        }
    }
    loop {
        match watch.changes.recv().await {
            Ok(changed) if changed.collection != collection => {}
            Ok(changed) if namespace.is_some_and(|namespace| changed.namespace != namespace) => {}
            Ok(changed) => {
                if !send(api, outbox, &changed).await {
                    return;
                }
            }
            Err(RecvError::Lagged(_)) => return cut(api),
            Err(RecvError::Closed) => return,
        }
    }
}

/// False where the watch is over.
async fn send(api: &Api, outbox: &mpsc::Sender<Bytes>, changed: &Changed) -> bool {
    match timeout(READ_WITHIN, outbox.send(line(changed))).await {
        Ok(sent) => sent.is_ok(),
        Err(_) => {
            cut(api);
            false
        }
    }
}

fn cut(api: &Api) {
    api.metrics.watcher_cut();
    tracing::info!("a watcher reads too slowly and is cut off");
}

fn line(changed: &Changed) -> Bytes {
    let mut line =
        json!({ "type": changed.change.as_str(), "object": &*changed.object }).to_string();
    line.push('\n');
    line.into()
}
