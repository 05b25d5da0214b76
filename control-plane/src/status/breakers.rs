//! CircuitBreaker objects: one for each breaker that a policy asks for, and
//! those that people wrote for none.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;
use tokio::time::Instant;
use weir_crds::v1alpha1 as api;
use weir_crds::v1alpha1::{
    BreakerCounts, BreakerReason, BreakerState, BreakerSummary, CircuitBreakerObject,
    CircuitBreakerSpec, CircuitBreakerStatus, ConditionStatus, ConditionType, NodeCounts, OpenNode,
    Reason,
};
use weir_proto::v1alpha1 as proto;

use super::{Memory, View, metadata, time, whole};
use crate::ledger::Aggregate;
use crate::model::Verdict;
use crate::sources::manifest::{Kind, ObjectId};
use crate::sources::{Key, Sourced};

/// Figures alone are shown no more often.
const FIGURES_EVERY: Duration = Duration::from_secs(10);

/// What changes all the time, and the state that it was shown with.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Figures {
    shown_with: Option<(proto::BreakerState, i64, u32, u32)>,
    failure_percent: u32,
    request_rate_milli: u64,
    rejected_total: u64,
}

type Counts = BTreeMap<Key, BreakerCounts>;

impl Memory {
    /// Every CircuitBreaker with its status; the states counted by policy; and
    /// when figures that are held back are due.
    pub(super) fn breakers(
        &mut self,
        view: &View<'_>,
    ) -> (BTreeMap<Key, Value>, Counts, Option<Instant>) {
        let mut objects = BTreeMap::new();
        let mut counts = Counts::new();
        let mut again: Option<Instant> = None;
        for (id, plan) in &view.compiled.breakers {
            let key = (id.namespace.clone(), id.key.clone());
            let word = view.ledger.breaker(id);
            count(
                counts.entry(plan.policy.clone()).or_default(),
                word.as_ref(),
            );
            let source = view.objects.breakers.get(&key);
            let generation = source.map_or(0, |source| source.generation);
            let of = format!("CircuitBreaker/{}/{}", id.namespace, id.key);
            let asked = format!(
                "asked for by ResiliencePolicy {}/{}",
                plan.policy.0, plan.policy.1
            );
            let asked = (Reason::Accepted, asked.as_str());
            let mut conditions = vec![self.condition(
                &of,
                ConditionType::Accepted,
                ConditionStatus::True,
                asked,
                generation,
                view.now,
            )];
            let broken = broken(view, &key);
            if let Some(verdict) = broken.as_ref().or(plan.forced.as_ref()) {
                conditions.push(self.verdict(
                    &of,
                    ConditionType::OverrideAccepted,
                    verdict,
                    generation,
                    view.now,
                ));
            }
            let mut status = CircuitBreakerStatus {
                conditions,
                service: Some(plan.about.clone()),
                shadow: Some(plan.shadow),
                ..CircuitBreakerStatus::default()
            };
            if let Some(word) = &word {
                let (figures, due) = self.figures_of(&key, word, view.instant);
                again = again.into_iter().chain(due).min();
                fill(&mut status, word, &figures);
            }
            let object = self.object(&key, source, status, view.now);
            objects.insert(key, object);
        }
        for (key, verdict) in &view.compiled.orphans {
            let source = view.objects.breakers.get(key);
            let generation = source.map_or(0, |source| source.generation);
            let of = format!("CircuitBreaker/{}/{}", key.0, key.1);
            let conditions =
                vec![self.verdict(&of, ConditionType::Accepted, verdict, generation, view.now)];
            let status = CircuitBreakerStatus {
                conditions,
                ..CircuitBreakerStatus::default()
            };
            let object = self.object(key, source, status, view.now);
            objects.insert(key.clone(), object);
        }
        (objects, counts, again)
    }

    fn figures_of(
        &mut self,
        key: &Key,
        word: &Aggregate,
        now: Instant,
    ) -> (Figures, Option<Instant>) {
        let fresh = Figures {
            shown_with: Some((
                word.worst.state,
                word.worst.since_unix_ms,
                word.open,
                word.half_open,
            )),
            failure_percent: word.failure_percent,
            request_rate_milli: word.request_rate_milli,
            rejected_total: word.rejected_total,
        };
        let current = fresh.clone();
        let (shown, figures) = self
            .figures
            .keep_or(key.clone(), (now, fresh), |(shown, last)| {
                last.shown_with == current.shown_with
                    && (*last == current || now < *shown + FIGURES_EVERY)
            });
        let due = (figures != current).then_some(shown + FIGURES_EVERY);
        (figures, due)
    }

    fn object(
        &mut self,
        key: &Key,
        source: Option<&Sourced<Arc<CircuitBreakerObject>>>,
        status: CircuitBreakerStatus,
        now: Timestamp,
    ) -> Value {
        let created = self.created.keep_or(key.clone(), now, |_| true);
        let mut object = match source {
            Some(source) => {
                let mut object = CircuitBreakerObject::clone(&source.object);
                object.metadata = metadata(&object.metadata, source);
                object
            }
            None => {
                let mut object = CircuitBreakerObject::new(&key.1, CircuitBreakerSpec::default());
                object.metadata.namespace = Some(key.0.clone());
                object.metadata.generation = Some(1);
                object.metadata.creation_timestamp = time(created);
                object
            }
        };
        object.status = Some(status);
        whole(&object)
    }
}

/// What is wrong with the manifest of a breaker, if anything.
fn broken(view: &View<'_>, key: &Key) -> Option<Verdict> {
    let id = ObjectId {
        kind: Kind::CircuitBreaker,
        namespace: key.0.clone(),
        name: key.1.clone(),
    };
    let last = view
        .objects
        .breakers
        .get(key)
        .and_then(|source| source.problem.as_ref());
    let message = match (last, view.objects.refused.get(&id)) {
        (Some(problem), _) => format!("{problem}; the last good version stays in force"),
        (None, Some(refused)) => refused.problem.to_string(),
        (None, None) => return None,
    };
    Some(Verdict {
        good: false,
        reason: Reason::Invalid,
        message,
    })
}

/// A breaker that nobody has reported yet has refused nothing: it counts as
/// closed, and its object shows no state until an agent says one.
fn count(counts: &mut BreakerCounts, word: Option<&Aggregate>) {
    match word.map(|word| word.worst.state) {
        Some(proto::BreakerState::Open | proto::BreakerState::ForcedOpen) => counts.open += 1,
        Some(proto::BreakerState::HalfOpen) => counts.half_open += 1,
        _ => counts.closed += 1,
    }
}

fn fill(status: &mut CircuitBreakerStatus, word: &Aggregate, figures: &Figures) {
    status.state = state(word.worst.state);
    status.reason = reason(word.worst.reason).map(|reason| reason.as_str().to_owned());
    status.message = some(&word.worst.message);
    status.since = moment(word.worst.since_unix_ms);
    status.nodes = Some(NodeCounts {
        total: word.total,
        open: word.open,
        half_open: word.half_open,
    });
    status.open_nodes = word
        .not_closed
        .iter()
        .filter_map(|(node, word)| {
            Some(OpenNode {
                node: node.clone(),
                state: state(word.state)?,
                reason: reason(word.reason)
                    .map_or_else(String::new, |reason| reason.as_str().to_owned()),
                since: moment(word.since_unix_ms)?,
                failure_percent: word.failure_percent,
            })
        })
        .collect();
    status.failure_percent = Some(figures.failure_percent);
    let tenths = figures.request_rate_milli.div_ceil(100);
    status.request_rate = Some(format!("{}.{}/s", tenths / 10, tenths % 10));
    status.rejected_total = i64::try_from(figures.rejected_total).ok();
    status.shadow = Some(word.worst.shadow);
    status.observed_reset = some(&word.worst.observed_reset);
    status.summary = Some(BreakerSummary {
        nodes: format!("{}/{}", word.open + word.half_open, word.total),
        failed: format!("{}%", figures.failure_percent),
    });
}

fn some(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

fn moment(unix_ms: i64) -> Option<api::Timestamp> {
    Timestamp::from_millisecond(unix_ms).ok().map(Into::into)
}

fn state(state: proto::BreakerState) -> Option<BreakerState> {
    Some(match state {
        proto::BreakerState::Closed => BreakerState::Closed,
        proto::BreakerState::Open => BreakerState::Open,
        proto::BreakerState::HalfOpen => BreakerState::HalfOpen,
        proto::BreakerState::ForcedOpen => BreakerState::ForcedOpen,
        proto::BreakerState::ForcedClosed => BreakerState::ForcedClosed,
        proto::BreakerState::Unspecified => return None,
    })
}

fn reason(reason: proto::BreakerReason) -> Option<BreakerReason> {
    Some(match reason {
        proto::BreakerReason::FailureRate => BreakerReason::FailureRate,
        proto::BreakerReason::SlowRequests => BreakerReason::SlowRequests,
        proto::BreakerReason::ConsecutiveFailures => BreakerReason::ConsecutiveFailures,
        proto::BreakerReason::ProbeFailed => BreakerReason::ProbeFailed,
        proto::BreakerReason::ProbeTimeout => BreakerReason::ProbeTimeout,
        proto::BreakerReason::OpenElapsed => BreakerReason::OpenElapsed,
        proto::BreakerReason::Recovered => BreakerReason::Recovered,
        proto::BreakerReason::Override => BreakerReason::Override,
        proto::BreakerReason::OverrideEnded => BreakerReason::OverrideEnded,
        proto::BreakerReason::Reset => BreakerReason::Reset,
        proto::BreakerReason::Unspecified => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Word;

    fn word(state: proto::BreakerState, percent: u32) -> Aggregate {
        Aggregate {
            worst: Word {
                state,
                ..Word::default()
            },
            total: 1,
            open: 0,
            half_open: 0,
            not_closed: Vec::new(),
            failure_percent: percent,
            request_rate_milli: 0,
            rejected_total: 0,
        }
    }

    /// The percentage that is shown at `now`, and when to come again.
    fn shown(memory: &mut Memory, word: &Aggregate, now: Instant) -> (u32, Option<Instant>) {
        let (figures, due) = memory.figures_of(&("shop".into(), "payments".into()), word, now);
        memory.figures.turn();
        (figures.failure_percent, due)
    }

    #[test]
    fn figures_alone_are_shown_every_ten_seconds_and_with_a_new_state_at_once() {
        let mut memory = Memory::default();
        let begin = Instant::now();
        let later = begin + Duration::from_secs(3);
        let closed = proto::BreakerState::Closed;
        assert_eq!(shown(&mut memory, &word(closed, 1), begin), (1, None));
        let due = Some(begin + FIGURES_EVERY);
        assert_eq!(shown(&mut memory, &word(closed, 2), later), (1, due));
        assert_eq!(
            shown(&mut memory, &word(proto::BreakerState::Open, 61), later),
            (61, None)
        );
        let due = later + FIGURES_EVERY;
        assert_eq!(
            shown(&mut memory, &word(proto::BreakerState::Open, 70), later),
            (61, Some(due))
        );
        assert_eq!(
            shown(&mut memory, &word(proto::BreakerState::Open, 70), due),
            (70, None)
        );
    }
}
