//! The watches, and how their words reach the model.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{BoxStream, SelectAll, StreamExt};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject};
use kube::core::PartialObjectMeta;
use kube::runtime::WatchStreamExt;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, Config, Event, watcher};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use weir_crds::v1alpha1::{CircuitBreakerObject, ResiliencePolicy};

use super::crds;
use super::index::{Change, Index, Kind, Object};
use super::observed::Observed;
use super::pods::Written;
use crate::kubernetes::say;
use crate::metrics::Metrics;
use crate::readiness::Readiness;
use crate::sources::Objects;
use crate::stop::stopped;

/// A watch is asked for anew after so many seconds, so that a connection on
/// which nothing comes any more is noticed.
const WATCH_SECONDS: u32 = 60;
/// A failed watch is tried again after at most so long, with jitter: an API
/// server that is back should be heard at once.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(2));
/// Changes that come together are taken together: so long after the last one,
/// and so long after the first at most.
const QUIET: Duration = Duration::from_millis(5);
const LONGEST: Duration = Duration::from_millis(50);

/// Waits between tries: full jitter over a growing bound.
struct Waits {
    bound: Duration,
}

impl Waits {
    fn new() -> Waits {
        Waits { bound: RETRY.0 }
    }
}

impl Iterator for Waits {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let wait = RETRY.0 / 2 + self.bound.mul_f64(fastrand::f64());
        self.bound = (self.bound * 2).min(RETRY.1);
        Some(wait)
    }
}

impl Backoff for Waits {
    fn reset(&mut self) {
        self.bound = RETRY.0;
    }
}

type Word = (Kind, Result<Option<Change>, watcher::Error>);

/// Gives `objects` everything that the API server holds, for ever, beginning
/// once all of it was read. What it holds of Weir's own objects goes to
/// `observed`.
pub(crate) async fn run(
    client: Client,
    own_namespace: String,
    objects: watch::Sender<Option<Arc<Objects>>>,
    observed: Arc<Observed>,
    readiness: Arc<Readiness>,
    metrics: Arc<Metrics>,
    mut stop: watch::Receiver<bool>,
) {
    let watching = async {
        crds::wait(&client, &readiness).await;
        let mut watching = Watching {
            index: Index::new(&own_namespace, observed),
            failing: BTreeMap::new(),
            objects,
            readiness,
            metrics,
        };
        watching.tell_missing();
        watching.run(watches(&client)).await;
    };
    tokio::select! {
        () = stopped(&mut stop) => {}
        () = watching => {}
    }
}

fn watches(client: &Client) -> SelectAll<BoxStream<'static, Word>> {
    let all = || Config::default().timeout(WATCH_SECONDS);
    let dynamic = |resource: ApiResource| Api::<DynamicObject>::all_with(client.clone(), &resource);
    let policies = dynamic(ApiResource::erase::<ResiliencePolicy>(&()));
    let breakers = dynamic(ApiResource::erase::<CircuitBreakerObject>(&()));
    let services: Api<Service> = Api::all(client.clone());
    let slices: Api<EndpointSlice> = Api::all(client.clone());
    let namespaces: Api<PartialObjectMeta<Namespace>> = Api::all(client.clone());
    let pods: Api<Written> = Api::all_with(client.clone(), &ApiResource::erase::<Pod>(&()));
    let nodes = dynamic(ApiResource::erase::<Node>(&()));
    let mut watches = SelectAll::new();
    watches.push(words(Kind::Policies, watcher(policies, all()), |object| {
        Object::Policy(Box::new(object))
    }));
    watches.push(words(Kind::Breakers, watcher(breakers, all()), |object| {
        Object::Breaker(Box::new(object))
    }));
    watches.push(words(Kind::Services, watcher(services, all()), |object| {
        Object::Service(Box::new(object))
    }));
    watches.push(words(Kind::Slices, watcher(slices, all()), |object| {
        Object::Slice(Box::new(object))
    }));
    watches.push(words(
        Kind::Namespaces,
        watcher(namespaces, all()),
        |object| Object::Namespace(Box::new(object)),
    ));
    watches.push(words(Kind::Pods, watcher(pods, all()), |object| {
        Object::Pod(Box::new(object))
    }));
    watches.push(words(Kind::Nodes, watcher(nodes, all()), |object| {
        Object::Node(Box::new(object))
    }));
    watches
}

/// A watch that is kept alive, in the words of the index. `None`: it goes well.
fn words<K: Send + 'static>(
    kind: Kind,
    events: impl futures::Stream<Item = watcher::Result<Event<K>>> + Send + 'static,
    object: impl Fn(K) -> Object + Send + 'static,
) -> BoxStream<'static, Word> {
    let word = move |event| {
        let change = match event {
            Event::Init => Change::Begin(kind),
            Event::InitApply(found) => Change::Listed(object(found)),
            Event::InitDone => Change::Done(kind),
            Event::Apply(found) => Change::Applied(object(found)),
            Event::Delete(found) => Change::Deleted(object(found)),
        };
        Some(change)
    };
    let events = events.backoff(Waits::new());
    events.map(move |event| (kind, event.map(&word))).boxed()
}

struct Watching {
    index: Index,
    /// Kinds whose watch does not work now, and why.
    failing: BTreeMap<Kind, String>,
    objects: watch::Sender<Option<Arc<Objects>>>,
    readiness: Arc<Readiness>,
    metrics: Arc<Metrics>,
}

impl Watching {
    async fn run(&mut self, mut watches: SelectAll<BoxStream<'static, Word>>) {
        // When the changes so far are given on, and by when at the latest.
        let mut due: Option<(Instant, Instant)> = None;
        loop {
            let at = due.map_or_else(Instant::now, |(quiet, longest)| quiet.min(longest));
            tokio::select! {
                biased;
                () = sleep_until(at), if due.is_some() => {
                    due = None;
                    self.publish();
                }
                word = watches.next() => {
                    let Some((kind, word)) = word else { return };
                    if self.hear(kind, word) && self.index.missing().is_empty() {
                        let now = Instant::now();
                        let longest = due.map_or(now + LONGEST, |(_, longest)| longest);
                        due = Some((now + QUIET, longest));
                    }
                }
            }
        }
    }

    /// Whether it is news for the model.
    fn hear(&mut self, kind: Kind, word: Result<Option<Change>, watcher::Error>) -> bool {
        match word {
            Ok(Some(change)) => {
                // A list that begins has not answered yet.
                if !matches!(change, Change::Begin(_)) && self.failing.remove(&kind).is_some() {
                    tracing::info!(kind = kind.plural(), "watched again");
                    self.metrics.watches_failing(self.failing.len());
                    self.tell_missing();
                }
                let done = matches!(change, Change::Done(_));
                let news = self.index.take(change);
                if done {
                    self.tell_missing();
                }
                news
            }
            Ok(None) => false,
            Err(error) => {
                self.metrics.watch_failed();
                let why = say(&error);
                // Once for each outage; an expired version is no outage.
                if !expired(&error) && !self.failing.contains_key(&kind) {
                    tracing::warn!(
                        kind = kind.plural(),
                        why,
                        "cannot be watched: what is known stays in force, and it is tried again"
                    );
                    self.failing.insert(kind, why);
                    self.metrics.watches_failing(self.failing.len());
                    self.tell_missing();
                }
                false
            }
        }
    }

    /// Says what is waited for, as long as something is.
    fn tell_missing(&self) {
        let missing = self.index.missing();
        let waits: Vec<String> = missing
            .iter()
            .map(|kind| match self.failing.get(kind) {
                Some(why) => format!("{}: {why}", kind.plural()),
                None => kind.plural().to_owned(),
            })
            .collect();
        if !waits.is_empty() {
            let waits = waits.join("; ");
            self.readiness
                .wait_for(format!("reading from the API server: {waits}"));
        }
    }

    fn publish(&self) {
        let objects = Arc::new(self.index.objects().clone());
        self.objects.send_replace(Some(objects));
    }
}

fn expired(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::WatchError(status) if status.code == 410)
}
