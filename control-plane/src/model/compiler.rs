//! Keeps what follows from the objects, and brings it up to date with as much
//! work as there is change.
//!
//! It compares the objects with those that it saw last, by identity, and derives
//! from the differences which Services are compiled anew and which policies are
//! judged anew ([`Dirty`]). Everything else stays as it is. What it holds is at
//! any time what a compile from nothing would give: a test holds it to that.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use weir_crds::v1alpha1::ResiliencePolicy;

use super::attachments::Target;
use super::compile::Made;
use super::mesh::covers_namespace;
use super::service::{Plans, Slices, plan, service_of, settle};
use super::targets::{in_namespace, serve};
use super::{Compiled, Policy, attach, breakers, compile, outcome};
use crate::ledger::BreakerId;
use crate::sources::manifest::Kind;
use crate::sources::shared::differences;
use crate::sources::{Key, Objects, Sourced};

/// See the module.
#[derive(Default)]
pub(crate) struct Compiler {
    objects: Arc<Objects>,
    /// What each Service asks for, its listeners settled.
    plans: Plans,
    /// Those that ask for listeners, before these are settled.
    listening: Plans,
    /// By Service.
    slices: BTreeMap<Key, Slices>,
    /// What in `compiled` is of each Service.
    made: BTreeMap<Key, Names>,
    /// When single Services change by themselves.
    until: BTreeMap<Key, Timestamp>,
    /// What is wrong with Services.
    problems: BTreeMap<Key, Vec<String>>,
    compiled: Compiled,
}

/// Names what came of one Service.
#[derive(Default)]
struct Names {
    services: Vec<Key>,
    breakers: Vec<BreakerId>,
}

/// What an update changed, or may have changed: never too little.
#[derive(Debug, Default)]
pub(crate) struct Changed {
    /// Of [`Compiled::services`].
    pub(crate) services: BTreeSet<Key>,
    /// Policies, their outcomes or their objects.
    pub(crate) policies: BTreeSet<Key>,
    /// Breakers, their plans or their objects.
    pub(crate) breakers: BTreeSet<Key>,
}

/// What must be looked at again.
#[derive(Default)]
struct Dirty {
    /// Services to compile: what they, their slices, their policies or their
    /// breakers' objects say is new.
    services: BTreeSet<Key>,
    /// Namespaces in which Services came or went, or for all of which something
    /// is said anew.
    namespaces: BTreeSet<String>,
    /// Policies that are new themselves.
    policies: BTreeSet<Key>,
}

impl Dirty {
    fn is_empty(&self) -> bool {
        self.services.is_empty() && self.namespaces.is_empty() && self.policies.is_empty()
    }

    /// Every Service of a namespace, and what is said of it as a whole.
    fn namespace(&mut self, name: &str, objects: &Objects) {
        self.services.extend(in_namespace(objects, name).cloned());
        self.namespaces.insert(name.to_owned());
    }

    /// Whatever the policy is about.
    fn targets_of(
        &mut self,
        key: &Key,
        policy: &Sourced<Arc<ResiliencePolicy>>,
        objects: &Objects,
    ) {
        for target in targets(key, policy, objects) {
            match target {
                Target::Service { service, .. } | Target::Consumer { service, .. } => {
                    self.services.insert(service);
                }
                Target::Namespace { namespace, .. } => self.namespace(&namespace, objects),
                Target::Mesh { .. } => {
                    let names = objects.namespaces.keys();
                    for name in names.filter(|name| covers_namespace(objects, name)) {
                        self.namespace(name, objects);
                    }
                }
            }
        }
    }

    /// Whether the outcome of a policy may be another.
    fn touches(
        &self,
        key: &Key,
        policy: &Sourced<Arc<ResiliencePolicy>>,
        objects: &Objects,
    ) -> bool {
        let within = |namespace: &str| {
            let from = (namespace.to_owned(), String::new());
            let first = self.services.range(from..).next();
            self.namespaces.contains(namespace)
                || first.is_some_and(|(found, _)| found == namespace)
        };
        self.policies.contains(key)
            || targets(key, policy, objects).any(|target| match target {
                Target::Service { service, .. } | Target::Consumer { service, .. } => {
                    self.services.contains(&service) || self.namespaces.contains(&service.0)
                }
                Target::Namespace { namespace, .. } => within(&namespace),
                Target::Mesh { .. } => !self.is_empty(),
            })
    }
}

/// What a policy is about, as far as that is served.
fn targets<'p>(
    key: &'p Key,
    policy: &'p Sourced<Arc<ResiliencePolicy>>,
    objects: &'p Objects,
) -> impl Iterator<Item = Target> + 'p {
    let spec = &policy.object.spec;
    let seen = Policy {
        key,
        spec,
        created: None,
        annotations: None,
    };
    let references = spec.target_refs.iter();
    references.filter_map(move |reference| serve(seen, reference, objects).ok())
}

impl Compiler {
    /// What follows from the objects seen last.
    pub(crate) fn compiled(&self) -> &Compiled {
        &self.compiled
    }

    /// The objects seen last.
    pub(crate) fn objects(&self) -> &Arc<Objects> {
        &self.objects
    }

    /// Takes in `objects` as they are at `now`.
    pub(crate) fn update(&mut self, objects: &Arc<Objects>, now: Timestamp) -> Changed {
        if objects.own_namespace != self.objects.own_namespace {
            // The rest of a process's life it stays the same.
            *self = Compiler::default();
        }
        let before = std::mem::replace(&mut self.objects, Arc::clone(objects));
        let mut changed = Changed::default();
        let mut dirty = Dirty::default();
        self.services_changed(&before, &mut dirty);
        self.slices_changed(&before, &mut dirty);
        self.words_changed(&before, &mut dirty, &mut changed);
        let over = self.until.iter().filter(|(_, until)| **until <= now);
        dirty.services.extend(over.map(|(key, _)| key.clone()));
        if !dirty.is_empty() {
            self.compile(&dirty, now, &mut changed);
        }
        self.orphans(&mut changed);
        changed
    }

    /// Services, and what they ask for.
    fn services_changed(&mut self, before: &Objects, dirty: &mut Dirty) {
        let objects = Arc::clone(&self.objects);
        let mut resettle = false;
        for (key, old, new) in before.services.differences(&objects.services, Sourced::is) {
            dirty.services.insert(key.clone());
            if old.is_none() || new.is_none() {
                dirty.namespaces.insert(key.0.clone());
            }
            resettle |= self.listening.remove(key).is_some();
            self.plans.remove(key);
            let Some(service) = new else { continue };
            let plan = plan(&service.object);
            if plan.listens() {
                resettle = true;
                self.listening.insert(key.clone(), plan.clone());
            }
            self.plans.insert(key.clone(), plan);
        }
        if resettle {
            let mut settled = self.listening.clone();
            settle(&mut settled);
            for (key, plan) in settled {
                if self.plans.get(&key) != Some(&plan) {
                    dirty.services.insert(key.clone());
                    self.plans.insert(key, plan);
                }
            }
        }
    }

    fn slices_changed(&mut self, before: &Objects, dirty: &mut Dirty) {
        let objects = Arc::clone(&self.objects);
        for (key, old, new) in before.slices.differences(&objects.slices, Sourced::is) {
            if let Some(service) = old.and_then(|old| service_of(&key.0, &old.object)) {
                if let Some(slices) = self.slices.get_mut(&service) {
                    slices.remove(key);
                    if slices.is_empty() {
                        self.slices.remove(&service);
                    }
                }
                dirty.services.insert(service);
            }
            if let Some((slice, service)) =
                new.and_then(|new| Some((new, service_of(&key.0, &new.object)?)))
            {
                let slices = self.slices.entry(service.clone()).or_default();
                slices.insert(key.clone(), Arc::clone(&slice.object));
                dirty.services.insert(service);
            }
        }
    }

    /// What people say: policies, breakers' objects, labels of namespaces, and
    /// what of it cannot be read.
    fn words_changed(&self, before: &Objects, dirty: &mut Dirty, changed: &mut Changed) {
        let objects = &self.objects;
        for (name, _, _) in before
            .namespaces
            .differences(&objects.namespaces, PartialEq::eq)
        {
            dirty.namespace(name, objects);
        }
        for (key, old, new) in before.policies.differences(&objects.policies, Sourced::is) {
            for policy in old.into_iter().chain(new) {
                dirty.targets_of(key, policy, objects);
            }
            dirty.policies.insert(key.clone());
            changed.policies.insert(key.clone());
        }
        for (key, _, _) in before.breakers.differences(&objects.breakers, Sourced::is) {
            let id = breaker_id(key);
            let plan = self.compiled.breakers.get(&id);
            dirty.services.extend(plan.map(|plan| plan.service.clone()));
            changed.breakers.insert(key.clone());
        }
        let same = |a: &crate::sources::Refused, b: &crate::sources::Refused| {
            a.problem == b.problem && a.written == b.written && a.first_seen == b.first_seen
        };
        for (id, _, _) in before.refused.differences(&objects.refused, same) {
            let key = (id.namespace.clone(), id.name.clone());
            match id.kind {
                Kind::ResiliencePolicy => changed.policies.insert(key),
                Kind::CircuitBreaker => changed.breakers.insert(key),
                _ => dirty.namespaces.insert(key.0),
            };
        }
    }

    fn compile(&mut self, dirty: &Dirty, now: Timestamp, changed: &mut Changed) {
        let objects = Arc::clone(&self.objects);
        let attachments = attach(&objects);
        let none = Slices::new();
        for key in &dirty.services {
            let made = match self.plans.get(key) {
                Some(plan) => {
                    let slices = self.slices.get(key).unwrap_or(&none);
                    compile::service(key, plan, slices, &attachments, &objects, now)
                }
                None => Made::default(),
            };
            self.tell_problems(key);
            self.put(key, made, changed);
        }
        self.compiled.problems = self.problems.values().flatten().cloned().collect();
        self.compiled.until = self.until.values().min().copied();
        for key in &dirty.policies {
            if !objects.policies.contains_key(key) {
                self.compiled.policies.remove(key);
            }
        }
        for (key, policy) in &objects.policies {
            if !dirty.touches(key, policy, &objects) {
                continue;
            }
            let outcome =
                outcome::outcome(&objects, key, &self.plans, &attachments, &self.compiled);
            if self.compiled.policies.get(key) != Some(&outcome) {
                changed.policies.insert(key.clone());
                self.compiled.policies.insert(key.clone(), outcome);
            }
        }
    }

    fn tell_problems(&mut self, key: &Key) {
        self.problems.remove(key);
        let origin = self
            .objects
            .services
            .get(key)
            .map(|service| &service.origin);
        let problems = self.plans.get(key).map(|plan| &plan.problems);
        if let (Some(origin), Some(problems)) = (origin, problems.filter(|found| !found.is_empty()))
        {
            let place =
                |problem: &String| format!("{origin}: Service {}/{}: {problem}", key.0, key.1);
            self.problems
                .insert(key.clone(), problems.iter().map(place).collect());
        }
    }

    /// Puts what came of a Service in the place of what came of it before.
    fn put(&mut self, key: &Key, made: Made, changed: &mut Changed) {
        let before = self.made.remove(key).unwrap_or_default();
        let now = Names {
            services: made.services.keys().cloned().collect(),
            breakers: made.breakers.keys().cloned().collect(),
        };
        let compiled = &mut self.compiled;
        for gone in before
            .services
            .into_iter()
            .filter(|key| !made.services.contains_key(key))
        {
            compiled.services.remove(&gone);
            changed.services.insert(gone);
        }
        for (key, outcome) in made.services {
            if compiled.services.get(&key) != Some(&outcome) {
                changed.services.insert(key.clone());
                compiled.services.insert(key, outcome);
            }
        }
        for gone in before
            .breakers
            .into_iter()
            .filter(|id| !made.breakers.contains_key(id))
        {
            compiled.breakers.remove(&gone);
            changed.breakers.insert((gone.namespace, gone.key));
        }
        for (id, plan) in made.breakers {
            if compiled.breakers.get(&id) != Some(&plan) {
                changed
                    .breakers
                    .insert((id.namespace.clone(), id.key.clone()));
                compiled.breakers.insert(id, plan);
            }
        }
        match made.until {
            Some(until) => self.until.insert(key.clone(), until),
            None => self.until.remove(key),
        };
        if !now.services.is_empty() {
            self.made.insert(key.clone(), now);
        }
    }

    /// CircuitBreakers that no policy asks for; what is said of them names those
    /// that policies do ask for.
    fn orphans(&mut self, changed: &mut Changed) {
        if changed.breakers.is_empty() {
            return;
        }
        let plans = &self.compiled.breakers;
        let nobody_asks = |key: &&Key| !plans.contains_key(&breaker_id(key));
        let orphans: BTreeMap<_, _> = self
            .objects
            .breakers
            .keys()
            .filter(nobody_asks)
            .map(|key| (key.clone(), breakers::nobody_asks(key, plans)))
            .collect();
        let different = differences(&self.compiled.orphans, &orphans, PartialEq::eq);
        changed
            .breakers
            .extend(different.into_iter().map(|(key, _, _)| key.clone()));
        self.compiled.orphans = orphans;
    }
}

fn breaker_id(key: &Key) -> BreakerId {
    BreakerId {
        namespace: key.0.clone(),
        key: key.1.clone(),
    }
}
