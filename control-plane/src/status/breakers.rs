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

use super::{Conditions, Look, Memory, Transitions, View, metadata, time, whole};
use crate::ledger::{Aggregate, BreakerId};
use crate::model::{BreakerPlan, Verdict};
use crate::sources::manifest::{Kind, ObjectId};
use crate::sources::{Key, Sourced};

/// Figures alone are shown no more often.
const FIGURES_EVERY: Duration = Duration::from_secs(10);

/// What changes all the time, and the state that it was shown with.
#[derive(Clone, Debug, PartialEq)]
struct Figures {
    shown_with: (proto::BreakerState, i64, u32, u32),
    failure_percent: u32,
    request_rate_milli: u64,
    rejected_total: u64,
}

/// What must be remembered of a breaker that is shown.
#[derive(Debug)]
pub(super) struct Shown {
    transitions: Transitions,
    created: Timestamp,
    /// The figures that are shown, since when, and when newer ones are due.
    figures: Option<(Instant, Figures, Option<Instant>)>,
    /// The policy that asks for it, and the state that it counts with.
    counts_for: Option<(Key, State)>,
}

impl Shown {
    /// When figures that are held back may be shown.
    pub(super) fn due(&self) -> Option<Instant> {
        self.figures.as_ref()?.2
    }
}

/// How a breaker is counted. One that nobody has reported yet has refused
/// nothing: it counts as closed, and its object shows no state until an agent
/// says one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Closed,
    Open,
    HalfOpen,
}

/// The states of the breakers of each policy.
pub(super) type Counts = BTreeMap<Key, BreakerCounts>;

impl Memory {
    /// The states of all breakers, counted by policy.
    pub(super) fn counts(&self) -> Counts {
        let mut counts = Counts::new();
        for (policy, state) in self
            .breakers
            .values()
            .filter_map(|shown| shown.counts_for.as_ref())
        {
            if !counts.contains_key(policy) {
                counts.insert(policy.clone(), BreakerCounts::default());
            }
            let Some(of) = counts.get_mut(policy) else {
                continue;
            };
            match state {
                State::Closed => of.closed += 1,
                State::Open => of.open += 1,
                State::HalfOpen => of.half_open += 1,
            }
        }
        counts
    }

    /// The CircuitBreakers in `look`, and those with figures that are due, with
    /// their status. Policies whose counts change with them are added to `look`.
    pub(super) fn look_at_breakers(
        &mut self,
        view: &View<'_>,
        look: &mut Look,
    ) -> BTreeMap<Key, Option<Value>> {
        let due = |shown: &Shown| shown.due().is_some_and(|due| due <= view.instant);
        let shown = self.breakers.iter();
        let shown = shown.filter(|(_, shown)| look.all_breakers || due(shown));
        look.breakers.extend(shown.map(|(key, _)| key.clone()));
        if look.all_breakers {
            let asked = view.compiled.breakers.keys();
            look.breakers
                .extend(asked.map(|id| (id.namespace.clone(), id.key.clone())));
            look.breakers.extend(view.compiled.orphans.keys().cloned());
        }
        let mut objects = BTreeMap::new();
        for key in &look.breakers {
            let last = self.breakers.remove(key);
            let was_there = last.is_some();
            let counted = last.as_ref().and_then(|last| last.counts_for.clone());
            let mut counts = None;
            match breaker(view, key, last) {
                Some((object, shown)) => {
                    counts = shown.counts_for.clone();
                    self.breakers.insert(key.clone(), shown);
                    objects.insert(key.clone(), Some(object));
                }
                None if was_there => {
                    objects.insert(key.clone(), None);
                }
                None => {}
            }
            if counts != counted {
                let concerned = counts.into_iter().chain(counted);
                look.policies.extend(concerned.map(|(policy, _)| policy));
            }
        }
        objects
    }
}

/// The object of the breaker `key`, if it has one. What it was shown with `last`
/// is kept where it must be.
fn breaker(view: &View<'_>, key: &Key, last: Option<Shown>) -> Option<(Value, Shown)> {
    let id = BreakerId {
        namespace: key.0.clone(),
        key: key.1.clone(),
    };
    let source = view.objects.breakers.get(key);
    let generation = source.map_or(0, |source| source.generation);
    let created = last.as_ref().map_or(view.now, |last| last.created);
    let (transitions, figures) = match last {
        Some(last) => (last.transitions, last.figures),
        None => (Transitions::new(), None),
    };
    let mut say = Conditions::new(transitions, generation, view.now);
    let mut shown = Shown {
        transitions: Transitions::new(),
        created,
        figures: None,
        counts_for: None,
    };
    let status = if let Some(plan) = view.compiled.breakers.get(&id) {
        let word = view.ledger.breaker(&id);
        shown.counts_for = Some((plan.policy.clone(), counted(word.as_ref())));
        let mut status = planned(view, key, plan, &mut say);
        if let Some(word) = &word {
            let figures = figures_of(figures, word, view.instant);
            fill(&mut status, word, &figures.1);
            shown.figures = Some(figures);
        }
        status
    } else {
        let verdict = view.compiled.orphans.get(key)?;
        CircuitBreakerStatus {
            conditions: vec![say.verdict(None, ConditionType::Accepted, verdict)],
            ..CircuitBreakerStatus::default()
        }
    };
    shown.transitions = say.next;
    Some((object(key, source, status, created), shown))
}

/// The status of a breaker that a policy asks for, but for what agents say.
fn planned(
    view: &View<'_>,
    key: &Key,
    plan: &BreakerPlan,
    say: &mut Conditions,
) -> CircuitBreakerStatus {
    let asked = format!(
        "asked for by ResiliencePolicy {}/{}",
        plan.policy.0, plan.policy.1
    );
    let asked = (Reason::Accepted, asked.as_str());
    let mut conditions =
        vec![say.condition(None, ConditionType::Accepted, ConditionStatus::True, asked)];
    let broken = broken(view, key);
    if let Some(verdict) = broken.as_ref().or(plan.forced.as_ref()) {
        conditions.push(say.verdict(None, ConditionType::OverrideAccepted, verdict));
    }
    CircuitBreakerStatus {
        conditions,
        service: Some(plan.about.clone()),
        shadow: Some(plan.shadow),
        ..CircuitBreakerStatus::default()
    }
}

/// The figures to show: those shown `last` for a while yet, if the state is the
/// same; and since when, and when newer ones are due.
fn figures_of(
    last: Option<(Instant, Figures, Option<Instant>)>,
    word: &Aggregate,
    now: Instant,
) -> (Instant, Figures, Option<Instant>) {
    let current = Figures {
        shown_with: (
            word.worst.state,
            word.worst.since_unix_ms,
            word.open,
            word.half_open,
        ),
        failure_percent: word.failure_percent,
        request_rate_milli: word.request_rate_milli,
        rejected_total: word.rejected_total,
    };
    match last {
        Some((shown, figures, _)) if figures == current => (shown, figures, None),
        Some((shown, figures, _))
            if figures.shown_with == current.shown_with && now < shown + FIGURES_EVERY =>
        {
            (shown, figures, Some(shown + FIGURES_EVERY))
        }
        _ => (now, current, None),
    }
}

fn object(
    key: &Key,
    source: Option<&Sourced<Arc<CircuitBreakerObject>>>,
    status: CircuitBreakerStatus,
    created: Timestamp,
) -> Value {
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

fn counted(word: Option<&Aggregate>) -> State {
    match word.map(|word| word.worst.state) {
        Some(proto::BreakerState::Open | proto::BreakerState::ForcedOpen) => State::Open,
        Some(proto::BreakerState::HalfOpen) => State::HalfOpen,
        _ => State::Closed,
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

    #[test]
    fn figures_alone_are_shown_every_ten_seconds_and_with_a_new_state_at_once() {
        let mut last = None;
        let mut shown = |word: Aggregate, now: Instant| {
            let figures = figures_of(last.take(), &word, now);
            let seen = (figures.1.failure_percent, figures.2);
            last = Some(figures);
            seen
        };
        let begin = Instant::now();
        let later = begin + Duration::from_secs(3);
        let (closed, open) = (proto::BreakerState::Closed, proto::BreakerState::Open);
        assert_eq!(shown(word(closed, 1), begin), (1, None));
        let due = Some(begin + FIGURES_EVERY);
        assert_eq!(shown(word(closed, 2), later), (1, due));
        assert_eq!(shown(word(open, 61), later), (61, None));
        let due = later + FIGURES_EVERY;
        assert_eq!(shown(word(open, 70), later), (61, Some(due)));
        assert_eq!(shown(word(open, 70), due), (70, None));
    }
}
