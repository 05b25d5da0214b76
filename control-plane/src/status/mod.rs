//! The status of every object, from what was compiled and what agents say.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde::Serialize;
use serde_json::Value;
use tokio::time::Instant;
use weir_crds::v1alpha1::{Condition, ConditionStatus, ConditionType, Reason};

use crate::ledger::{Ledger, NodeView};
use crate::model::{Compiled, Verdict};
use crate::push::ResourceId;
use crate::sources::{Key, Objects, Sourced};

mod breakers;
mod policies;

use breakers::Figures;

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
    pub(crate) now: Timestamp,
    pub(crate) instant: Instant,
}

/// What must be remembered from one status to the next. Holds only what the
/// last status had, and so no more than there are objects.
#[derive(Default)]
pub(crate) struct Memory {
    transitions: Aging<String, (ConditionStatus, Timestamp)>,
    created: Aging<Key, Timestamp>,
    figures: Aging<Key, (Instant, Figures)>,
}

/// All statuses.
pub(crate) struct Statuses {
    /// ResiliencePolicies, whole.
    pub(crate) policies: BTreeMap<Key, Value>,
    /// CircuitBreakers, whole.
    pub(crate) breakers: BTreeMap<Key, Value>,
    /// Breakers by state, for the metrics.
    pub(crate) counts: crate::metrics::BreakerCounts,
    /// When figures that are held back may be shown.
    pub(crate) again: Option<Instant>,
}

/// A map of which only what was asked for since the last turn is kept.
struct Aging<K, V> {
    last: HashMap<K, V>,
    next: HashMap<K, V>,
}

impl<K, V> Default for Aging<K, V> {
    fn default() -> Aging<K, V> {
        Aging {
            last: HashMap::new(),
            next: HashMap::new(),
        }
    }
}

impl<K: Hash + Eq, V: Clone> Aging<K, V> {
    /// The remembered value if `keep` says so, else `new`.
    fn keep_or(&mut self, key: K, new: V, keep: impl FnOnce(&V) -> bool) -> V {
        let value = self.last.remove(&key).filter(keep).unwrap_or(new);
        self.next.insert(key, value.clone());
        value
    }

    fn turn(&mut self) {
        self.last = std::mem::take(&mut self.next);
    }
}

impl Memory {
    /// Computes all statuses.
    pub(crate) fn statuses(&mut self, view: &View<'_>) -> Statuses {
        let (breakers, states, again) = self.breakers(view);
        let policies = self.policies(view, &states);
        self.transitions.turn();
        self.created.turn();
        self.figures.turn();
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
            again,
        }
    }

    /// A condition of the object `of`; its time is that of the last change.
    fn condition(
        &mut self,
        of: &str,
        r#type: ConditionType,
        status: ConditionStatus,
        (reason, message): (Reason, &str),
        generation: i64,
        now: Timestamp,
    ) -> Condition {
        let key = format!("{of}/{type}");
        let (_, since) = self
            .transitions
            .keep_or(key, (status, now), |(last, _)| *last == status);
        Condition {
            r#type: r#type.to_string(),
            status,
            observed_generation: (generation > 0).then_some(generation),
            last_transition_time: since.into(),
            reason: reason.to_string(),
            message: cut(message),
        }
    }

    fn verdict(
        &mut self,
        of: &str,
        r#type: ConditionType,
        verdict: &Verdict,
        generation: i64,
        now: Timestamp,
    ) -> Condition {
        let status = if verdict.good {
            ConditionStatus::True
        } else {
            ConditionStatus::False
        };
        self.condition(
            of,
            r#type,
            status,
            (verdict.reason, &verdict.message),
            generation,
            now,
        )
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
