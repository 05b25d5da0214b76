//! The status of every object, from what was compiled and what agents say:
//! computed again where something of it may be new ([`Look`]).

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde::Serialize;
use serde_json::Value;
use tokio::time::Instant;
use weir_crds::v1alpha1::{Condition, ConditionStatus, ConditionType, Reason};

use crate::capture::Covers;
use crate::ledger::{Ledger, NodeView};
use crate::model::{Compiled, Verdict};
use crate::push::ResourceId;
use crate::sources::{Key, Objects, Sourced};

mod breakers;
mod policies;

use breakers::Shown;

/// Characters of a condition's message.
const MAX_MESSAGE: usize = 1024;

/// The service versions that are to be enforced.
pub(crate) type Versions = BTreeMap<Key, (ResourceId, Arc<str>)>;

/// What statuses are made from.
pub(crate) struct View<'a> {
    pub(crate) objects: &'a Objects,
    pub(crate) compiled: &'a Compiled,
    pub(crate) versions: &'a Versions,
    pub(crate) ledger: &'a Ledger,
    pub(crate) nodes: &'a [NodeView],
    /// What is to be said of capture.
    pub(crate) covers: &'a Covers,
    pub(crate) now: Timestamp,
    pub(crate) instant: Instant,
}

/// Which objects to look at: those of which something may be new.
#[derive(Debug, Default)]
pub(crate) struct Look {
    /// Every policy.
    pub(crate) all_policies: bool,
    /// Every breaker.
    pub(crate) all_breakers: bool,
    /// Policies, their outcomes or their objects.
    pub(crate) policies: BTreeSet<Key>,
    /// Breakers: plan, object, or what agents say.
    pub(crate) breakers: BTreeSet<Key>,
    /// Services of which the version or what agents say of it is new.
    pub(crate) services: HashSet<ResourceId>,
}

/// What must be remembered from one status to the next. Holds only what is
/// shown, and so no more than there are objects.
#[derive(Default)]
pub(crate) struct Memory {
    policies: BTreeMap<Key, Transitions>,
    breakers: BTreeMap<Key, Shown>,
}

/// What is new.
pub(crate) struct Statuses {
    /// ResiliencePolicies that were looked at, whole; `None`: gone.
    pub(crate) policies: BTreeMap<Key, Option<Value>>,
    /// CircuitBreakers, likewise.
    pub(crate) breakers: BTreeMap<Key, Option<Value>>,
    /// Breakers by state, for the metrics.
    pub(crate) counts: crate::metrics::BreakerCounts,
    /// When figures that are held back may be shown.
    pub(crate) again: Option<Instant>,
}

/// Since when each condition is what it is, by target and type.
type Transitions = Vec<((Option<usize>, ConditionType), (ConditionStatus, Timestamp))>;

/// Writes the conditions of one object.
struct Conditions {
    last: Transitions,
    next: Transitions,
    generation: i64,
    now: Timestamp,
}

impl Conditions {
    fn new(last: Transitions, generation: i64, now: Timestamp) -> Conditions {
        Conditions {
            last,
            next: Transitions::new(),
            generation,
            now,
        }
    }

    /// A condition of the object, or of one of its targets; its time is that of
    /// the last change.
    fn condition(
        &mut self,
        target: Option<usize>,
        r#type: ConditionType,
        status: ConditionStatus,
        (reason, message): (Reason, &str),
    ) -> Condition {
        let name = (target, r#type);
        let last = self.last.iter().find(|(last, _)| *last == name);
        let since = match last {
            Some((_, (last, since))) if *last == status => *since,
            _ => self.now,
        };
        self.next.push((name, (status, since)));
        Condition {
            r#type: r#type.to_string(),
            status,
            observed_generation: (self.generation > 0).then_some(self.generation),
            last_transition_time: since.into(),
            reason: reason.to_string(),
            message: cut(message),
        }
    }

    fn verdict(
        &mut self,
        target: Option<usize>,
        r#type: ConditionType,
        verdict: &Verdict,
    ) -> Condition {
        let status = if verdict.good {
            ConditionStatus::True
        } else {
            ConditionStatus::False
        };
        self.condition(target, r#type, status, (verdict.reason, &verdict.message))
    }
}

impl Memory {
    /// Computes the statuses of the objects in `look`, and of those that depend on
    /// them or on the time.
    pub(crate) fn statuses(&mut self, view: &View<'_>, mut look: Look) -> Statuses {
        let breakers = self.look_at_breakers(view, &mut look);
        let states = self.counts();
        let policies = self.look_at_policies(view, &look, &states);
        let mut counts = crate::metrics::BreakerCounts::default();
        for count in states.values() {
            counts.closed += u64::from(count.closed);
            counts.open += u64::from(count.open);
            counts.half_open += u64::from(count.half_open);
        }
        Statuses {
            policies,
            breakers,
            counts,
            again: self.breakers.values().filter_map(Shown::due).min(),
        }
    }

    /// How many policies are shown.
    pub(crate) fn policies_shown(&self) -> usize {
        self.policies.len()
    }
}

fn cut(message: &str) -> String {
    match message.char_indices().nth(MAX_MESSAGE - 1) {
        Some((end, _)) => format!("{}…", &message[..end]),
        None => message.to_owned(),
    }
}

/// The metadata of an object that a source gave, as Kubernetes would show it.
fn metadata<T>(written: &ObjectMeta, source: &Sourced<T>) -> ObjectMeta {
    let mut metadata = written.clone();
    metadata.generation = Some(source.generation);
    metadata.creation_timestamp = metadata
        .creation_timestamp
        .or_else(|| time(source.first_seen));
    metadata
}

/// The same in the types of Kubernetes, which count whole seconds.
fn time(at: Timestamp) -> Option<Time> {
    k8s_openapi::jiff::Timestamp::from_second(at.as_second())
        .ok()
        .map(Time)
}

/// Objects are made of types that always can be written.
fn whole(object: &impl Serialize) -> Value {
    serde_json::to_value(object).unwrap_or_default()
}
