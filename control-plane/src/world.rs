//! The one task in which everything comes together: objects come in, the
//! catalog goes out to the agents, what they say goes into the statuses.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use weir_proto::v1alpha1::ResourceKind;

use crate::events::{Event, Events, Severity};
use crate::leadership::{Leadership, Role};
use crate::ledger::{BreakerId, Ledger, NodeView, Verdict};
use crate::metrics::{Gauges, Metrics};
use crate::model::{BreakerPlan, Compiled, compile};
use crate::push::{Catalog, Encoded, ResourceId};
use crate::readiness::Readiness;
use crate::sources::kubernetes::Observed;
use crate::sources::{Key, Objects};
use crate::status::{Memory, Versions, View};
use crate::stop::stopped;
use crate::store::{Collection, Store};

/// Statuses are computed no more often; what agents say in between is taken
/// together.
const STATUS_EVERY: Duration = Duration::from_millis(20);

/// A replica that begins to lead does not know yet what agents enforce. Until
/// all have come, or for so long, it shows and writes what its predecessor did.
const TAKEOVER: Duration = Duration::from_secs(5);

/// See the module.
pub(crate) struct World {
    pub(crate) objects: watch::Receiver<Option<Arc<Objects>>>,
    pub(crate) catalog: watch::Sender<Arc<Catalog>>,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) store: Arc<Store>,
    pub(crate) events: Arc<Events>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) gauges: watch::Sender<Gauges>,
    pub(crate) plans: watch::Sender<Arc<Plans>>,
    pub(crate) readiness: Arc<Readiness>,
    pub(crate) observed: Arc<Observed>,
    pub(crate) leadership: Leadership,
}

/// The breakers that policies ask for.
pub(crate) type Plans = BTreeMap<BreakerId, BreakerPlan>;

/// What the last compile left.
#[derive(Default)]
pub(crate) struct State {
    objects: Arc<Objects>,
    compiled: Compiled,
    versions: Versions,
    memory: Memory,
    problems: Vec<String>,
    /// When services changed that some agent does not enforce yet.
    unsettled: Option<Instant>,
    /// When something changes by itself.
    again: Option<Instant>,
    /// Until when statuses stay as the API server holds them, unless all agents
    /// have come before; `None`: those shown are this replica's own.
    held: Option<Instant>,
}

impl World {
    /// Compiles and shows what is there now. Before that no agent may be
    /// answered: it would be told to drop what it holds.
    pub(crate) fn begin(&mut self) -> State {
        let mut state = State::default();
        if state_is_elsewhere(&self.objects) {
            state.held = Some(Instant::now() + TAKEOVER);
        }
        self.compile(&mut state);
        self.show(&mut state);
        self.readiness.ready();
        state
    }

    /// Goes on from what [`World::begin`] gave, until `stop` is true; `None`
    /// where the source has not given anything yet.
    pub(crate) async fn run(mut self, state: Option<State>, mut stop: watch::Receiver<bool>) {
        let mut state = match state {
            Some(state) => state,
            None => {
                tokio::select! {
                    () = stopped(&mut stop) => return,
                    () = first(&mut self.objects) => {}
                }
                self.begin()
            }
        };
        let mut next_status = Instant::now();
        let mut dirty = false;
        loop {
            let overridden = state.compiled.until.map(in_instants);
            let again = state.again.into_iter().chain(overridden).min();
            tokio::select! {
                biased;
                () = stopped(&mut stop) => return,
                changed = self.objects.changed() => {
                    if changed.is_err() {
                        // The source has ended; what it gave stays in force.
                        return stopped(&mut stop).await;
                    }
                    self.compile(&mut state);
                    dirty = true;
                }
                () = sleep_until(next_status), if dirty => {
                    dirty = false;
                    self.show(&mut state);
                    next_status = Instant::now() + STATUS_EVERY;
                }
                () = self.leadership.changed() => {
                    if self.leadership.role() == Role::Follows {
                        state.held = Some(Instant::now() + TAKEOVER);
                    }
                    dirty = true;
                }
                () = self.ledger.changed(), if !dirty => {
                    self.settle(&mut state);
                    dirty = true;
                }
                () = sleep_until(again.unwrap_or(next_status)), if again.is_some() => {
                    if overridden.is_some_and(|overridden| overridden <= Instant::now()) {
                        self.compile(&mut state);
                    }
                    dirty = true;
                    state.again = None;
                }
            }
        }
    }

    /// Compiles, and publishes what changed.
    fn compile(&mut self, state: &mut State) {
        if let Some(objects) = &*self.objects.borrow_and_update() {
            state.objects = Arc::clone(objects);
        }
        let compiled = compile(&state.objects, Timestamp::now());
        self.metrics.compiled();
        let before = Arc::clone(&self.catalog.borrow());
        let catalog = encode(&compiled, &before, state.objects.partial);
        state.versions = versions(&compiled, &catalog);
        let services = |catalog: &Catalog| -> Vec<(ResourceId, Arc<str>)> {
            let services = catalog
                .resources
                .iter()
                .filter(|(id, _)| id.kind == ResourceKind::Service);
            services
                .map(|(id, resource)| (id.clone(), Arc::clone(&resource.version)))
                .collect()
        };
        if services(&catalog) != services(&before) {
            state.unsettled = Some(Instant::now());
        }
        if catalog != *before {
            self.catalog.send_replace(Arc::new(catalog));
        }
        if **self.plans.borrow() != compiled.breakers {
            self.plans.send_replace(Arc::new(compiled.breakers.clone()));
        }
        self.tell_problems(state, &compiled);
        state.compiled = compiled;
        self.settle(state);
    }

    /// Each problem is told once, when it comes.
    fn tell_problems(&self, state: &mut State, compiled: &Compiled) {
        let problems: Vec<String> = state
            .objects
            .problems
            .iter()
            .chain(&compiled.problems)
            .cloned()
            .collect();
        for problem in problems
            .iter()
            .filter(|problem| !state.problems.contains(problem))
        {
            tracing::warn!(problem, "manifest");
            self.events.push(Event {
                at_unix_ms: Timestamp::now().as_millisecond(),
                severity: Severity::Warning,
                reason: "ManifestInvalid",
                kind: "File",
                namespace: String::new(),
                name: problem.split(':').next().unwrap_or_default().to_owned(),
                node: None,
                from: None,
                to: None,
                shadow: false,
                message: problem.clone(),
            });
        }
        if problems.is_empty() && !state.problems.is_empty() {
            tracing::info!("all manifests are good again");
        }
        state.problems = problems;
    }

    /// Notes how long the last change took, once every agent that is there
    /// enforces or refuses it.
    fn settle(&self, state: &mut State) {
        let Some(since) = state.unsettled else { return };
        let services: Vec<_> = state.versions.values().cloned().collect();
        let nodes = self.ledger.nodes();
        let mut here = nodes.iter().filter(|node| node.connected).peekable();
        if here.peek().is_some() && here.all(|node| node.verdict(&services) != Verdict::Pending) {
            self.metrics.settled(since.elapsed());
            tracing::debug!(took = ?since.elapsed(), "a change is enforced everywhere");
            state.unsettled = None;
        }
    }

    /// Computes all statuses, and shows what changed.
    fn show(&self, state: &mut State) {
        let now = Instant::now();
        let forget = self.ledger.forget(now);
        let nodes = self.ledger.expected(state.objects.agents.as_ref());
        let view = View {
            objects: &state.objects,
            compiled: &state.compiled,
            versions: &state.versions,
            ledger: &self.ledger,
            nodes: &nodes,
            now: Timestamp::now(),
            instant: now,
        };
        let mut statuses = state.memory.statuses(&view);
        state.again = forget.into_iter().chain(statuses.again).min();
        if self.is_held(state, &nodes, now) {
            self.hold(Collection::ResiliencePolicies, &mut statuses.policies);
            self.hold(Collection::CircuitBreakers, &mut statuses.breakers);
            state.again = state.again.into_iter().chain(state.held).min();
        }
        self.gauges.send_replace(Gauges {
            agents: 0,
            services: state.versions.len() as u64,
            endpoints: state.versions.len() as u64,
            policies: statuses.policies.len() as u64,
            source_problems: state.problems.len() as u64,
            breakers: statuses.counts,
        });
        self.store
            .replace(Collection::ResiliencePolicies, statuses.policies);
        self.store
            .replace(Collection::CircuitBreakers, statuses.breakers);
        // What passed too quickly for one look is shown in the next.
        self.ledger.step();
    }
}

impl World {
    /// Whether statuses are not this replica's own to tell now.
    fn is_held(&self, state: &mut State, nodes: &[NodeView], now: Instant) -> bool {
        if self.leadership.role() == Role::Follows {
            state.held = Some(now + TAKEOVER);
            return true;
        }
        let Some(until) = state.held else {
            return false;
        };
        if now >= until || self.ledger.is_complete(nodes) {
            state.held = None;
        }
        state.held.is_some()
    }

    /// Shows statuses as the API server holds them, where it holds one.
    fn hold(&self, collection: Collection, objects: &mut BTreeMap<Key, Value>) {
        for (key, object) in objects {
            let live = self.observed.get(&(collection, key.clone()));
            if let Some(status) = live
                .map(|live| live.status)
                .filter(|status| !status.is_null())
            {
                object["status"] = status;
            }
        }
    }
}

/// Returns once the source has given everything; never, if it ended before.
async fn first(objects: &mut watch::Receiver<Option<Arc<Objects>>>) {
    if objects.wait_for(Option::is_some).await.is_err() {
        std::future::pending().await
    }
}

/// Whether an API server holds statuses of before.
fn state_is_elsewhere(objects: &watch::Receiver<Option<Arc<Objects>>>) -> bool {
    let objects = objects.borrow();
    objects
        .as_ref()
        .is_some_and(|objects| objects.agents.is_some())
}

/// The moment on the clock that timers use.
fn in_instants(at: Timestamp) -> Instant {
    let left = at.duration_since(Timestamp::now());
    Instant::now() + Duration::try_from(left).unwrap_or(Duration::ZERO)
}

/// Encodes what changed. A service that agents could not read keeps its last
/// good version. `partial`: some manifest cannot be read.
pub(crate) fn encode(compiled: &Compiled, before: &Catalog, partial: bool) -> Catalog {
    let mut resources = BTreeMap::new();
    for ((namespace, name), outcome) in &compiled.services {
        let ids = [
            ResourceId::service(namespace, name),
            ResourceId::endpoints(namespace, name),
        ];
        let encoded = match outcome.refused {
            Some(_) => ids.each_ref().map(|id| before.resources.get(id).cloned()),
            None => [
                Some(Arc::new(Encoded::new(
                    &outcome.config,
                    outcome.requires.clone(),
                ))),
                outcome
                    .endpoints
                    .as_ref()
                    .map(|endpoints| Arc::new(Encoded::new(endpoints, Vec::new()))),
            ],
        };
        for (id, fresh) in ids.into_iter().zip(encoded) {
            let Some(fresh) = fresh else { continue };
            let kept = before
                .resources
                .get(&id)
                .filter(|old| **old == fresh)
                .cloned();
            resources.insert(id, kept.unwrap_or(fresh));
        }
    }
    let removed = match partial {
        true => {
            let gone = before
                .resources
                .keys()
                .filter(|id| !resources.contains_key(*id));
            let still = before
                .removed
                .iter()
                .filter(|id| !resources.contains_key(*id));
            gone.chain(still).cloned().collect()
        }
        false => BTreeSet::new(),
    };
    Catalog {
        resources,
        partial,
        removed,
    }
}

/// The versions that agents should enforce.
pub(crate) fn versions(compiled: &Compiled, catalog: &Catalog) -> Versions {
    compiled
        .services
        .keys()
        .filter_map(|key| {
            let id = ResourceId::service(&key.0, &key.1);
            let version = Arc::clone(&catalog.resources.get(&id)?.version);
            Some((key.clone(), (id, version)))
        })
        .collect()
}
