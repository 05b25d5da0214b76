//! Writes statuses, CircuitBreaker objects and Events to the API server: one
//! replica at a time, the holder of a Lease ([`lease`]).
//!
//! The writer is level-triggered: it compares what the store shows with what
//! the server holds, whoever changed it, and [`queue`] decides what is written
//! next. So it does not matter what was lost while no server, or no other
//! replica, was there.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Client;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, Preconditions};
use serde_json::{Value, json};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use weir_crds::v1alpha1::{CircuitBreakerObject, ResiliencePolicy};

use crate::events::Severity;
use crate::kubernetes::say;
use crate::leadership::Leadership;
use crate::ledger::BreakerId;
use crate::metrics::Metrics;
use crate::sources::kubernetes::{Live, MANAGER, Observed, Place, live};
use crate::sources::{Key, Objects};
use crate::stop::stopped;
use crate::store::{Changed, Collection, Store, Watch};
use crate::world::Plans;

mod budget;
mod events;
pub(crate) mod lease;
mod queue;

use events::{News, Teller, Telling};
pub(crate) use queue::Urgency;
use queue::{Action, Queue, Write};

/// What is written.
const COLLECTIONS: [Collection; 2] = [Collection::ResiliencePolicies, Collection::CircuitBreakers];
/// Writes under way at once.
const MAX_FLYING: usize = 8;
/// Events kept while they cannot be told.
const MAX_UNTOLD: usize = 1_000;
/// A write that takes longer has failed. A tenure ends early enough for it.
const PATIENCE: Duration = Duration::from_secs(1);

/// See the module.
pub(crate) struct Writer {
    pub(crate) client: Client,
    pub(crate) instance: String,
    pub(crate) store: Arc<Store>,
    pub(crate) observed: Arc<Observed>,
    pub(crate) objects: watch::Receiver<Option<Arc<Objects>>>,
    pub(crate) plans: watch::Receiver<Arc<Plans>>,
    pub(crate) leadership: Leadership,
    /// Whether what the store shows is this replica's own word.
    pub(crate) own: watch::Receiver<bool>,
    pub(crate) metrics: Arc<Metrics>,
    /// Owner of what is made: it goes with Weir.
    pub(crate) owner: Option<OwnerReference>,
}

/// How one write ended.
struct Landed {
    place: Place,
    result: Result<Option<Live>, Failure>,
    /// The status that was to be written.
    written: Option<Value>,
    /// Events that could not be told.
    untold: Vec<Telling>,
}

enum Failure {
    /// The object is not there (any more).
    Gone,
    Failed(String),
}

impl Writer {
    /// Writes while this replica holds the Lease, until `stop` is true. Must
    /// begin once the store is filled: what it does not show is removed.
    pub(crate) async fn run(self, mut stop: watch::Receiver<bool>) {
        tokio::select! {
            () = stopped(&mut stop) => {}
            () = self.write() => {}
        }
    }

    async fn write(&self) {
        let mut queue = Queue::new(Instant::now());
        let mut teller = Teller::new(&self.instance, Instant::now());
        let [mut policies, mut breakers] = COLLECTIONS.map(|collection| {
            let mut watch = self.store.watch(collection, None);
            self.begin(&mut queue, &mut watch, collection);
            watch
        });
        let mut own = self.own.clone();
        let mut flying = FuturesUnordered::new();
        let mut leadership = self.leadership.clone();
        let mut held = false;
        let mut failing = false;
        let mut untold: Vec<Telling> = Vec::new();
        let mut telling = None;
        loop {
            let until = leadership.tenure();
            let now = Instant::now();
            // What a replica shows before it has heard the agents is not its own.
            let holds = until.filter(|until| now < *until && *own.borrow_and_update());
            if holds.is_some() && !held {
                queue.begin(|place| self.observed.get(place));
            }
            held = holds.is_some();
            self.metrics
                .holds_lease(until.is_some_and(|until| now < until));
            while let Some(until) = holds.filter(|_| flying.len() < MAX_FLYING) {
                let Some(write) = queue.pick(Instant::now(), |place| self.observed.get(place))
                else {
                    break;
                };
                let told = self.news(&write).into_iter();
                let told: Vec<_> = told.filter_map(|news| teller.tell(news, now)).collect();
                self.metrics.wrote(write.urgency, told.len());
                flying.push(self.carry_out(write, told, until));
            }
            let due = queue.due().filter(|_| held && flying.len() < MAX_FLYING);
            if held {
                untold.append(&mut teller.counts(Instant::now()));
            }
            // Told once writes succeed again.
            if held && !failing && !untold.is_empty() && telling.is_none() {
                telling = Some(Box::pin(self.tell(std::mem::take(&mut untold))));
            }
            let due = due.into_iter().chain(holds);
            let due = due.chain(teller.due().filter(|_| held)).min();
            tokio::select! {
                Some(mut landed) = flying.next(), if !flying.is_empty() => {
                    untold.append(&mut landed.untold);
                    self.land(&mut queue, landed, &mut failing);
                    self.bound(&mut untold);
                }
                mut left = async { match &mut telling { Some(telling) => telling.await, None => std::future::pending().await } } => {
                    telling = None;
                    // Nothing would be gained by asking again at once.
                    failing |= !left.is_empty();
                    untold.append(&mut left);
                }
                changed = policies.changes.recv() => self.shown(&mut queue, changed, &mut policies, Collection::ResiliencePolicies),
                changed = breakers.changes.recv() => self.shown(&mut queue, changed, &mut breakers, Collection::CircuitBreakers),
                places = self.observed.changed() => {
                    for place in places {
                        queue.look(&place, self.observed.get(&place).as_ref());
                    }
                }
                () = leadership.changed() => {}
                Ok(()) = own.changed() => {}
                () = sleep_until(due.unwrap_or(now)), if due.is_some() => {}
            }
        }
    }

    /// One collection from the beginning: what is shown, and what Weir made that
    /// is shown no more.
    fn begin(&self, queue: &mut Queue, watch: &mut Watch, collection: Collection) {
        let present = watch.present.drain(..);
        let shown: HashSet<Place> = present
            .map(|changed| self.desire(queue, &changed))
            .collect();
        queue.retain(collection, &shown, |place| self.observed.get(place));
        if collection == Collection::CircuitBreakers {
            for key in self.observed.made(collection) {
                let place = (collection, key);
                if !shown.contains(&place) {
                    queue.drop_desire(&place, self.observed.get(&place).as_ref());
                }
            }
        }
    }

    fn desire(&self, queue: &mut Queue, changed: &Changed) -> Place {
        let text = |field: &str| {
            changed.object["metadata"][field]
                .as_str()
                .unwrap_or_default()
                .to_owned()
        };
        let place = (
            changed.collection,
            (changed.namespace.clone(), text("name")),
        );
        let live = self.observed.get(&place);
        match changed.change {
            crate::store::Change::Deleted => queue.drop_desire(&place, live.as_ref()),
            _ => queue.desire(&place, &changed.object, live.as_ref()),
        }
        place
    }

    fn shown(
        &self,
        queue: &mut Queue,
        changed: Result<Changed, RecvError>,
        watch: &mut Watch,
        collection: Collection,
    ) {
        match changed {
            Ok(changed) if changed.collection == collection => {
                self.desire(queue, &changed);
            }
            Ok(_) => {}
            // Too many changes at once: everything is looked at again.
            Err(_) => {
                *watch = self.store.watch(collection, None);
                self.begin(queue, watch, collection);
            }
        }
    }

    fn land(&self, queue: &mut Queue, landed: Landed, failing: &mut bool) {
        let Landed {
            place,
            result,
            written,
            ..
        } = landed;
        let (collection, key) = &place;
        let well = match result {
            Ok(live) => {
                match live {
                    Some(live) => self.observed.see(*collection, key, live),
                    None => self.observed.forget(*collection, key),
                }
                if *failing {
                    *failing = false;
                    tracing::info!("status is written again");
                }
                true
            }
            Err(Failure::Gone) => {
                self.observed.forget(*collection, key);
                true
            }
            Err(Failure::Failed(why)) => {
                self.metrics.write_failed();
                if !*failing {
                    *failing = true;
                    tracing::warn!(
                        object = format!("{} {}/{}", collection.kind(), key.0, key.1),
                        why,
                        "status cannot be written; it is tried again"
                    );
                }
                false
            }
        };
        let live = self.observed.get(&place);
        queue.done(&place, (well, written), Instant::now(), live.as_ref());
    }

    /// Makes one write, the Events first: told twice they are one, and a write
    /// that is made is no longer a reason to tell.
    async fn carry_out(&self, write: Write, told: Vec<Telling>, until: Instant) -> Landed {
        let Write { place, action, .. } = write;
        let untold = self.tell(told).await;
        let written = match &action {
            Action::Create(status) | Action::Status(status) => Some(status.clone()),
            Action::Remove { .. } => None,
        };
        let made = async {
            // A timeout would begin the request before it looks at the clock, and
            // another replica may write from then on.
            if Instant::now() >= until {
                return Err(Failure::Failed("the Lease ran out before it".to_owned()));
            }
            match action {
                Action::Create(status) => {
                    self.create(&place).await?;
                    self.patch(&place, &status).await.map(Some)
                }
                Action::Status(status) => self.patch(&place, &status).await.map(Some),
                Action::Remove { uid, version } => {
                    self.remove(&place, uid, version).await.map(|()| None)
                }
            }
        };
        let result = match timeout_at(until.min(Instant::now() + PATIENCE), made).await {
            Ok(result) => result,
            Err(_) => Err(Failure::Failed("no answer in time".to_owned())),
        };
        Landed {
            place,
            result,
            written,
            untold,
        }
    }

    /// Tells what it can, and gives the rest back.
    async fn tell(&self, told: Vec<Telling>) -> Vec<Telling> {
        let mut untold = Vec::new();
        for telling in told {
            let again = telling.clone();
            match timeout(PATIENCE / 2, events::carry_out(&self.client, telling)).await {
                Ok(Ok(())) => {}
                // The API server will not have it: no second try would help.
                Ok(Err(kube::Error::Api(status)))
                    if (400..500).contains(&status.code) && status.code != 429 =>
                {
                    self.metrics.event_lost();
                    tracing::warn!(why = status.message, "an Event is refused");
                }
                Ok(Err(_)) | Err(_) => untold.push(again),
            }
        }
        untold
    }

    fn api(&self, (collection, key): &Place) -> (Api<DynamicObject>, ApiResource) {
        let resource = match collection {
            Collection::ResiliencePolicies => ApiResource::erase::<ResiliencePolicy>(&()),
            Collection::CircuitBreakers => ApiResource::erase::<CircuitBreakerObject>(&()),
        };
        (
            Api::namespaced_with(self.client.clone(), &key.0, &resource),
            resource,
        )
    }

    /// Makes the object, without a `spec`: that is people's.
    async fn create(&self, place: &Place) -> Result<(), Failure> {
        let (api, resource) = self.api(place);
        let mut object = json!({
            "apiVersion": resource.api_version, "kind": resource.kind,
            "metadata": {"name": place.1.1, "namespace": place.1.0},
        });
        if let Some(owner) = &self.owner {
            object["metadata"]["ownerReferences"] = json!([owner]);
        }
        let params = PatchParams::apply(MANAGER).force();
        api.patch(&place.1.1, &params, &Patch::Apply(&object))
            .await
            .map_err(failed)?;
        Ok(())
    }

    async fn patch(&self, place: &Place, status: &Value) -> Result<Live, Failure> {
        let (api, resource) = self.api(place);
        let object = json!({
            "apiVersion": resource.api_version, "kind": resource.kind,
            "metadata": {"name": place.1.1, "namespace": place.1.0},
            "status": status,
        });
        let params = PatchParams::apply(MANAGER).force();
        let written = api
            .patch_status(&place.1.1, &params, &Patch::Apply(&object))
            .await
            .map_err(failed)?;
        Ok(live(&written))
    }

    async fn remove(&self, place: &Place, uid: String, version: u64) -> Result<(), Failure> {
        let (api, _) = self.api(place);
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: Some(uid),
                // Somebody may have written an override just now.
                resource_version: Some(version.to_string()),
            }),
            ..DeleteParams::default()
        };
        api.delete(&place.1.1, &params).await.map_err(failed)?;
        Ok(())
    }

    /// Drops the oldest Events that could not be told, beyond the bound.
    fn bound(&self, untold: &mut Vec<Telling>) {
        let excess = untold.len().saturating_sub(MAX_UNTOLD);
        for _ in untold.drain(..excess) {
            self.metrics.event_lost();
        }
    }

    /// What the write is worth telling of.
    fn news(&self, write: &Write) -> Vec<News> {
        let Action::Status(status) = &write.action else {
            return Vec::new();
        };
        let (collection, key) = &write.place;
        match collection {
            Collection::CircuitBreakers => self.transition(key, &write.before, status),
            Collection::ResiliencePolicies => self
                .rejection(key, &write.before, status)
                .into_iter()
                .collect(),
        }
    }

    fn transition(&self, key: &Key, before: &Value, status: &Value) -> Vec<News> {
        let (Some(to), from) = (status["state"].as_str(), before["state"].as_str()) else {
            return Vec::new();
        };
        if from == Some(to) || (from.is_none() && to == "Closed") {
            return Vec::new();
        }
        let (reason, severity, verb) = match to {
            "Open" => ("CircuitOpened", Severity::Warning, "opened"),
            "ForcedOpen" => ("CircuitOpened", Severity::Warning, "is held open"),
            "HalfOpen" => (
                "CircuitHalfOpen",
                Severity::Normal,
                "tries whether the destination is well",
            ),
            "ForcedClosed" => ("CircuitClosed", Severity::Normal, "is held closed"),
            _ => ("CircuitClosed", Severity::Normal, "closed"),
        };
        let nodes = match (status["summary"]["nodes"].as_str(), to) {
            (Some(nodes), "Open" | "HalfOpen") => {
                format!(" on {} nodes", nodes.replacen('/', " of ", 1))
            }
            _ => String::new(),
        };
        let shadow = if status["shadow"] == true {
            " (shadow: it only decides)"
        } else {
            ""
        };
        let why = status["message"].as_str().unwrap_or_default();
        let why = if why.is_empty() {
            String::new()
        } else {
            format!(": {why}")
        };
        let note = format!("circuit breaker {} {verb}{nodes}{shadow}{why}", key.1);
        let id = BreakerId {
            namespace: key.0.clone(),
            key: key.1.clone(),
        };
        let plans = self.plans.borrow();
        let Some(plan) = plans.get(&id) else {
            return Vec::new();
        };
        let breaker = self.reference(Collection::CircuitBreakers, key);
        let objects = self.objects.borrow();
        let service = objects.as_ref().and_then(|objects| {
            let (key, service) = objects.services.get_key_value(&plan.service)?;
            Some(ObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Service".into()),
                namespace: Some(key.0.clone()),
                name: Some(key.1.clone()),
                uid: service.object.metadata.uid.clone(),
                ..ObjectReference::default()
            })
        });
        let policy = self.reference(Collection::ResiliencePolicies, &plan.policy);
        let about = [Some(policy), service].into_iter().flatten();
        let news = about.map(|regarding| News {
            regarding,
            related: Some(breaker.clone()),
            severity,
            reason,
            note: note.clone(),
            identity: format!("{} {to} {}", key.1, status["since"]),
        });
        news.collect()
    }

    /// Agents that refuse a policy.
    fn rejection(&self, key: &Key, before: &Value, status: &Value) -> Option<News> {
        let programmed = |status: &Value| {
            let conditions = status["conditions"].as_array()?;
            conditions
                .iter()
                .find(|condition| condition["type"] == "Programmed")
                .cloned()
        };
        let now = programmed(status)?;
        let refused = |condition: &Value| {
            condition["reason"] == "Rejected" || condition["reason"] == "UnsupportedSection"
        };
        let was = programmed(before);
        let same = was.is_some_and(|was| {
            refused(&was) && was["observedGeneration"] == now["observedGeneration"]
        });
        if !refused(&now) || same {
            return None;
        }
        Some(News {
            regarding: self.reference(Collection::ResiliencePolicies, key),
            related: None,
            severity: Severity::Warning,
            reason: "PolicyRejected",
            note: now["message"].as_str().unwrap_or_default().to_owned(),
            identity: format!("{} {}", now["reason"], now["observedGeneration"]),
        })
    }

    fn reference(&self, collection: Collection, key: &Key) -> ObjectReference {
        let live = self.observed.get(&(collection, key.clone()));
        ObjectReference {
            api_version: Some(weir_crds::crd::API_VERSION.to_owned()),
            kind: Some(collection.kind().to_owned()),
            namespace: Some(key.0.clone()),
            name: Some(key.1.clone()),
            uid: live.map(|live| live.uid),
            ..ObjectReference::default()
        }
    }
}

#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
fn failed(error: kube::Error) -> Failure {
    match error {
        kube::Error::Api(status) if status.code == 404 => Failure::Gone,
        error => Failure::Failed(say(&error)),
    }
}
