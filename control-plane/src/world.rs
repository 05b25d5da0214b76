//! The one task in which everything comes together: objects come in, the
//! catalog goes out to the agents, what they say goes into the statuses.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::capture::{self, Callers, Covers, Scene};
use crate::events::{Event, Events, Severity};
use crate::leadership::{Leadership, Role};
use crate::ledger::{BreakerId, Ledger, NodeView, Verdict};
use crate::metrics::{Gauges, Metrics};
use crate::model::{BreakerPlan, Changed, Compiled, Compiler};
use crate::push::{Catalog, Encoded, ResourceId};
use crate::readiness::Readiness;
use crate::sources::kubernetes::Observed;
use crate::sources::shared::differences;
use crate::sources::{Key, Objects};
use crate::status::{Look, Memory, Versions, View};
use crate::stop::stopped;
use crate::store::{Collection, Store};

/// Statuses are computed no more often; what agents say in between is taken
/// together.
const STATUS_EVERY: Duration = Duration::from_millis(20);

/// A replica that does not lead shows what the leader wrote, no more often: it
/// looks at everything then.
const FOLLOWED_EVERY: Duration = Duration::from_secs(1);

/// What is said of capture is computed no more often, but for policies that
/// changed themselves: Pods come and go all the time.
const COVERAGE_EVERY: Duration = Duration::from_secs(10);

/// A replica that begins to lead does not know yet what agents enforce. Until
/// all have come, or for so long, it shows what its predecessor wrote, and
/// writes nothing.
const TAKEOVER: Duration = Duration::from_secs(10);
/// And for each agent as much longer: so many a second are let in.
const TAKEOVER_EACH: Duration = Duration::from_millis(10);

/// See the module.
pub(crate) struct World {
    pub(crate) objects: watch::Receiver<Option<Arc<Objects>>>,
    pub(crate) catalog: watch::Sender<Arc<Catalog>>,
    pub(crate) callers: Arc<Callers>,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) store: Arc<Store>,
    pub(crate) events: Arc<Events>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) gauges: watch::Sender<Gauges>,
    pub(crate) plans: watch::Sender<Arc<Plans>>,
    pub(crate) readiness: Arc<Readiness>,
    pub(crate) observed: Arc<Observed>,
    pub(crate) leadership: Leadership,
    /// Whether what is shown is this replica's own word, to be written.
    pub(crate) own: watch::Sender<bool>,
}

/// The breakers that policies ask for.
pub(crate) type Plans = BTreeMap<BreakerId, BreakerPlan>;

/// What the last compile left.
#[derive(Default)]
pub(crate) struct State {
    compiler: Compiler,
    versions: Versions,
    /// What the next status is about.
    look: Look,
    memory: Memory,
    covers: Covers,
    /// Whether something that `covers` follows from changed.
    uncovered: bool,
    /// When all of `covers` was computed last.
    covered: Option<Instant>,
    problems: Vec<String>,
    /// When services changed that some agent does not enforce yet, and which.
    unsettled: Option<(Instant, BTreeSet<Key>)>,
    /// When something changes by itself.
    again: Option<Instant>,
    /// Until when statuses stay as the API server holds them, unless all agents
    /// have come before; `None`: those shown are this replica's own.
    held: Option<Instant>,
    /// Whether this replica led when it was looked last.
    leads: bool,
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
            let overridden = state.compiler.compiled().until.map(in_instants);
            let again = state.again.into_iter().chain(overridden).min();
            tokio::select! {
                biased;
                () = stopped(&mut stop) => return,
                // First, or objects that change all the time would leave no time to tell.
                () = sleep_until(next_status), if dirty => {
                    dirty = false;
                    self.show(&mut state);
                    next_status = Instant::now() + self.pause();
                }
                changed = self.objects.changed() => {
                    if changed.is_err() {
                        // The source has ended; what it gave stays in force.
                        return stopped(&mut stop).await;
                    }
                    self.compile(&mut state);
                    dirty = true;
                }
                () = self.leadership.changed() => {
                    let leads = matches!(self.leadership.role(), Role::Leads(_));
                    if leads && !state.leads {
                        let agents = state.compiler.objects().agents.as_ref();
                        let agents = agents.map_or(0, |agents| agents.len() as u32);
                        let patience = TAKEOVER + TAKEOVER_EACH * agents;
                        state.held = Some(Instant::now() + patience);
                    }
                    if leads == state.leads {
                        continue;
                    }
                    state.leads = leads;
                    self.own.send_replace(false);
                    next_status = next_status.min(Instant::now() + STATUS_EVERY);
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

    /// How long statuses stay as they are now.
    fn pause(&self) -> Duration {
        match self.leadership.role() {
            Role::Follows => FOLLOWED_EVERY,
            _ => STATUS_EVERY,
        }
    }

    /// Compiles, and publishes what changed.
    fn compile(&mut self, state: &mut State) {
        let objects = self.objects.borrow_and_update().clone();
        let seen = Arc::clone(state.compiler.objects());
        let objects = objects.unwrap_or_else(|| Arc::clone(&seen));
        state.look.all_policies |= objects.agents != state.compiler.objects().agents;
        let partial = objects.partial;
        let changed = state.compiler.update(&objects, Timestamp::now());
        self.metrics.compiled();
        let compiled = state.compiler.compiled();
        let before = Arc::clone(&self.catalog.borrow());
        let mut catalog = encode(compiled, &changed.services, &before, partial);
        state.uncovered |= capture::renew(&seen, &objects, &mut catalog.nodes, &self.callers);
        state.uncovered |= !changed.services.is_empty();
        let renewed = renew(&mut state.versions, compiled, &changed.services, &catalog);
        if !renewed.is_empty() {
            let services = renewed
                .iter()
                .map(|key| ResourceId::service(&key.0, &key.1));
            state.look.services.extend(services);
            let waiting = state.unsettled.take();
            let mut keys = waiting.map(|(_, keys)| keys).unwrap_or_default();
            keys.extend(renewed);
            state.unsettled = Some((Instant::now(), keys));
        }
        if catalog != *before {
            self.catalog.send_replace(Arc::new(catalog));
        }
        if **self.plans.borrow() != compiled.breakers {
            self.plans.send_replace(Arc::new(compiled.breakers.clone()));
        }
        let Changed {
            policies, breakers, ..
        } = changed;
        state.look.policies.extend(policies);
        state.look.breakers.extend(breakers);
        self.tell_problems(state);
        self.settle(state);
    }

    /// Each problem is told once, when it comes.
    fn tell_problems(&self, state: &mut State) {
        let compiler = &state.compiler;
        let problems: Vec<String> = compiler
            .objects()
            .problems
            .iter()
            .chain(&compiler.compiled().problems)
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
        let Some((since, keys)) = &state.unsettled else {
            return;
        };
        let versions = keys.iter().filter_map(|key| state.versions.get(key));
        let services: Vec<_> = versions.cloned().collect();
        let nodes = self.ledger.nodes();
        let mut here = nodes.iter().filter(|node| node.connected).peekable();
        if here.peek().is_some() && here.all(|node| node.verdict(&services) != Verdict::Pending) {
            self.metrics.settled(since.elapsed());
            tracing::debug!(took = ?since.elapsed(), "a change is enforced everywhere");
            state.unsettled = None;
        }
    }

    /// Computes the statuses of which something may be new, and shows what is.
    fn show(&self, state: &mut State) {
        let now = Instant::now();
        let forget = self.ledger.forget(now);
        let news = self.ledger.news();
        let objects = Arc::clone(state.compiler.objects());
        let nodes = self.ledger.expected(objects.agents.as_ref());
        let was_held = state.held.is_some();
        let is_held = self.is_held(state, &nodes, now);
        let mut look = std::mem::take(&mut state.look);
        look.all_policies |= news.answers.nodes || was_held || is_held;
        look.all_breakers |= news.breakers.all || was_held || is_held;
        look.services.extend(news.answers.services);
        let told = news.breakers.ids.into_iter();
        look.breakers.extend(told.map(|id| (id.namespace, id.key)));
        state.uncovered |= news.coverage || news.answers.nodes;
        let covered_again = self.cover(state, &objects, &nodes, &mut look, now);
        let view = View {
            objects: &objects,
            compiled: state.compiler.compiled(),
            versions: &state.versions,
            ledger: &self.ledger,
            nodes: &nodes,
            covers: &state.covers,
            now: Timestamp::now(),
            instant: now,
        };
        let mut statuses = state.memory.statuses(&view, look);
        let again = forget.into_iter().chain(statuses.again);
        state.again = again.chain(covered_again).min();
        if is_held {
            self.hold(Collection::ResiliencePolicies, &mut statuses.policies);
            self.hold(Collection::CircuitBreakers, &mut statuses.breakers);
            state.again = state.again.into_iter().chain(state.held).min();
        }
        self.gauges.send_replace(Gauges {
            agents: 0,
            services: state.versions.len() as u64,
            endpoints: state.versions.len() as u64,
            policies: state.memory.policies_shown() as u64,
            source_problems: state.problems.len() as u64,
            breakers: statuses.counts,
        });
        self.store
            .update(Collection::ResiliencePolicies, statuses.policies);
        self.store
            .update(Collection::CircuitBreakers, statuses.breakers);
        // Not by the role as it is now: it may have changed since the hold began.
        let is_own = state.leads && !is_held;
        self.own
            .send_if_modified(|own| std::mem::replace(own, is_own) != is_own);
        // What passed too quickly for one look is shown in the next.
        self.ledger.step();
    }
}

impl World {
    /// Computes what is to be said of capture where it may be new, and adds the
    /// policies of which it is to `look`. When to come again, where it was too soon
    /// for all.
    fn cover(
        &self,
        state: &mut State,
        objects: &Objects,
        nodes: &[NodeView],
        look: &mut Look,
        now: Instant,
    ) -> Option<Instant> {
        let due = state.covered.map_or(now, |last| last + COVERAGE_EVERY);
        let all = state.uncovered && now >= due;
        let told = self.ledger.coverage().told();
        let compiled = state.compiler.compiled();
        let scene = Scene::new(objects, compiled, &self.callers, &told, nodes);
        if all {
            let covers: Covers = (objects.policies.keys())
                .filter_map(|key| Some((key.clone(), scene.covered(key)?)))
                .collect();
            let changed = differences(&state.covers, &covers, PartialEq::eq);
            let changed: Vec<Key> = changed.into_iter().map(|(key, _, _)| key.clone()).collect();
            look.policies.extend(changed);
            state.covers = covers;
            state.uncovered = false;
            state.covered = Some(now);
        } else {
            for key in &look.policies {
                match scene.covered(key) {
                    Some(covered) => state.covers.insert(key.clone(), covered),
                    None => state.covers.remove(key),
                };
            }
        }
        state.uncovered.then_some(due)
    }

    /// Whether statuses are not this replica's own to tell now.
    fn is_held(&self, state: &mut State, nodes: &[NodeView], now: Instant) -> bool {
        if self.leadership.role() == Role::Follows {
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
    fn hold(&self, collection: Collection, objects: &mut BTreeMap<Key, Option<Value>>) {
        let there = objects.iter_mut();
        for (key, object) in there.filter_map(|(key, object)| Some((key, object.as_mut()?))) {
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

/// Encodes the services `changed`, and keeps the rest as it was `before`. A
/// service that agents could not read keeps its last good version. `partial`:
/// some manifest cannot be read.
pub(crate) fn encode<'k>(
    compiled: &Compiled,
    changed: impl IntoIterator<Item = &'k Key>,
    before: &Catalog,
    partial: bool,
) -> Catalog {
    let mut resources = before.resources.clone();
    for (namespace, name) in changed {
        let key = (namespace.clone(), name.clone());
        let (service, endpoints) = match compiled.services.get(&key) {
            Some(outcome) if outcome.refused.is_some() => continue,
            Some(outcome) => {
                let requires = outcome.requires.clone();
                let service = Encoded::new(&outcome.config, requires);
                let endpoints = outcome.endpoints.as_ref();
                let endpoints = endpoints.map(Encoded::endpoints);
                (Some(service), endpoints)
            }
            None => (None, None),
        };
        let service = (ResourceId::service(namespace, name), service);
        let endpoints = (ResourceId::endpoints(namespace, name), endpoints);
        for (id, fresh) in [service, endpoints] {
            match fresh {
                Some(fresh) if resources.get(&id).is_some_and(|old| **old == fresh) => {}
                Some(fresh) => {
                    resources.insert(id, Arc::new(fresh));
                }
                None => {
                    resources.remove(&id);
                }
            }
        }
    }
    let removed = match partial {
        true => {
            let there = before.resources.keys().chain(&before.removed);
            there
                .filter(|id| !resources.contains_key(*id))
                .cloned()
                .collect()
        }
        false => BTreeSet::new(),
    };
    Catalog {
        resources,
        nodes: before.nodes.clone(),
        partial,
        removed,
    }
}

/// Brings the versions that agents should enforce up to date for the services
/// `changed`; gives back those that have another one now.
pub(crate) fn renew<'k>(
    versions: &mut Versions,
    compiled: &Compiled,
    changed: impl IntoIterator<Item = &'k Key>,
    catalog: &Catalog,
) -> Vec<Key> {
    let mut renewed = Vec::new();
    for key in changed {
        let id = ResourceId::service(&key.0, &key.1);
        let encoded = catalog.resources.get(&id);
        let wanted = encoded.filter(|_| compiled.services.contains_key(key));
        let fresh = wanted.map(|encoded| (id, Arc::clone(&encoded.version)));
        if versions.get(key) == fresh.as_ref() {
            continue;
        }
        match fresh {
            Some(fresh) => versions.insert(key.clone(), fresh),
            None => versions.remove(key),
        };
        renewed.push(key.clone());
    }
    renewed
}
