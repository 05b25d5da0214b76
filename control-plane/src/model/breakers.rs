//! Breakers that policies ask for, and what people want of them.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use weir_crds::v1alpha1::{OverrideState, Reason};
use weir_proto::v1alpha1 as proto;

use super::Verdict;
use crate::ledger::BreakerId;
use crate::sources::{Key, Objects};

/// An override may last so long from when it was written.
const LONGEST: SignedDuration = SignedDuration::from_hours(24);

/// A breaker that a policy asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BreakerPlan {
    /// The policy that its section came from.
    pub(crate) policy: Key,
    /// The service that it is about.
    pub(crate) service: Key,
    /// Service, port and route, as far as it is about them: `payments:http/refunds`.
    pub(crate) about: String,
    /// Whether it only decides and counts.
    pub(crate) shadow: bool,
    /// What became of the override, if somebody asked for one.
    pub(crate) forced: Option<Verdict>,
}

/// What people want of one breaker.
#[derive(Default)]
pub(super) struct Word {
    pub(super) forced: Option<proto::BreakerOverride>,
    pub(super) reset: String,
    pub(super) verdict: Option<Verdict>,
    /// When the verdict changes by itself.
    pub(super) until: Option<Timestamp>,
}

/// What people want of the breaker `id`, judged at `now`.
///
/// The 24 hours count from when this version of the override was first seen:
/// counted from now, one that was refused would come into force a day before
/// its end, when nobody expects it.
pub(super) fn word(objects: &Objects, id: &BreakerId, now: Timestamp) -> Word {
    let Some(object) = objects
        .breakers
        .get(&(id.namespace.clone(), id.key.clone()))
    else {
        return Word::default();
    };
    let mut word = Word {
        reset: object.object.spec.reset.clone().unwrap_or_default(),
        ..Word::default()
    };
    let Some(wanted) = &object.object.spec.r#override else {
        return word;
    };
    let expires = wanted.expires_at.get();
    let latest = object
        .written
        .saturating_add(LONGEST)
        .unwrap_or(Timestamp::MAX);
    word.until = (expires > now).then_some(expires);
    word.verdict = Some(if expires <= now {
        let message = format!(
            "it ended at {}: write a later expiresAt, or remove it",
            wanted.expires_at
        );
        Verdict::new(Reason::Expired, message)
    } else if expires > latest {
        let message =
            format!("expiresAt is more than 24 hours ahead: write {latest:.0} or earlier");
        Verdict::new(Reason::ExpiryTooFar, message)
    } else {
        let state = match wanted.state {
            OverrideState::Open => proto::BreakerState::Open,
            OverrideState::Closed => proto::BreakerState::Closed,
        };
        word.forced = Some(proto::BreakerOverride {
            state: state.into(),
            reason: wanted.reason.clone(),
            expires_at_unix_ms: expires.as_millisecond(),
        });
        Verdict::good(
            Reason::InForce,
            format!("until {}: {}", wanted.expires_at, wanted.reason),
        )
    });
    word
}

/// For a CircuitBreaker that no policy asks for.
pub(super) fn nobody_asks(id: &Key, plans: &BTreeMap<BreakerId, BreakerPlan>) -> Verdict {
    let from = BreakerId {
        namespace: id.0.clone(),
        key: String::new(),
    };
    let known: Vec<&str> = plans
        .range(from..)
        .map(|(plan, _)| plan)
        .take_while(|plan| plan.namespace == id.0)
        .map(|plan| plan.key.as_str())
        .take(10)
        .collect();
    let known = match known.is_empty() {
        true => format!("no policy of namespace {} asks for any", id.0),
        false => format!("those of namespace {} are {}", id.0, known.join(", ")),
    };
    Verdict::new(
        Reason::NoSuchBreaker,
        format!("no policy asks for a circuit breaker {}: {known}", id.1),
    )
}
