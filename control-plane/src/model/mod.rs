//! From objects to what agents enforce: a pure function, without I/O or a
//! clock.
//!
//! [`compile`] finds each policy's targets ([`targets`]), merges policies per
//! port and section ([`merge`]), writes each service's configuration
//! ([`compile`](mod@compile), [`sections`], [`service`]), reads it back with
//! the agents' own decoder, and says of every policy and breaker what became
//! of it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use weir_crds::v1alpha1::{EffectiveSection, Mode, Reason, TargetRef};
use weir_proto::v1alpha1 as proto;

use crate::ledger::BreakerId;
use crate::sources::{Key, Objects};

mod breakers;
mod compile;
mod merge;
mod sections;
mod service;
mod targets;
mod unsupported;

pub(crate) use breakers::BreakerPlan;
pub(crate) use compile::refusals;

use merge::{Layer, Policy, merge};
use service::ServicePlan;
pub(crate) use service::{LISTEN, listen_address};
use targets::{Attachments, Target};

const NOT_LOOKED_FOR: &str = "not looked for: see condition Accepted";

/// What holds of something, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Whether it is as it should be.
    pub(crate) good: bool,
    /// Why, in one word.
    pub(crate) reason: Reason,
    /// For people: what is the matter, and what to do.
    pub(crate) message: String,
}

impl Verdict {
    fn new(reason: Reason, message: impl Into<String>) -> Verdict {
        Verdict {
            good: false,
            reason,
            message: message.into(),
        }
    }

    fn good(reason: Reason, message: impl Into<String>) -> Verdict {
        Verdict {
            good: true,
            reason,
            message: message.into(),
        }
    }
}

/// What became of a policy at one target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TargetOutcome {
    /// As it is in the policy.
    pub(crate) reference: TargetRef,
    /// Whether the policy is in force there.
    pub(crate) accepted: Verdict,
    /// Whether the target exists.
    pub(crate) resolved: Verdict,
    /// Sections in force there, whichever policy they came from.
    pub(crate) sections: Vec<EffectiveSection>,
}

/// What became of a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PolicyOutcome {
    /// Whether it is in force anywhere.
    pub(crate) accepted: Verdict,
    /// Whether all that it refers to exists.
    pub(crate) resolved: Verdict,
    /// Why some of it can never act, if so.
    pub(crate) ineffective: Option<Verdict>,
    /// Each of its targets, in order.
    pub(crate) targets: Vec<TargetOutcome>,
    /// What of it agents cannot enforce yet.
    pub(crate) unsupported: Vec<String>,
    /// The services that it takes part in.
    pub(crate) services: Vec<Key>,
}

/// What agents get for one service.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ServiceOutcome {
    /// What is enforced.
    pub(crate) config: proto::ServiceConfig,
    /// Where its requests go.
    pub(crate) endpoints: proto::Endpoints,
    /// What an agent must be able to do.
    pub(crate) requires: Vec<String>,
    /// What the decoder of the agents says against it; it is not sent then.
    pub(crate) refused: Option<String>,
}

/// Everything that follows from the objects.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Compiled {
    /// Services that agents must know.
    pub(crate) services: BTreeMap<Key, ServiceOutcome>,
    /// Every policy that can be read.
    pub(crate) policies: BTreeMap<Key, PolicyOutcome>,
    /// Every breaker that a policy asks for.
    pub(crate) breakers: BTreeMap<BreakerId, BreakerPlan>,
    /// CircuitBreakers that no policy asks for.
    pub(crate) orphans: BTreeMap<Key, Verdict>,
    /// What is wrong with services, for people.
    pub(crate) problems: Vec<String>,
    /// When something changes by itself: an override ends.
    pub(crate) until: Option<Timestamp>,
}

/// Compiles `objects` as they are at `now`.
pub(crate) fn compile(objects: &Objects, now: Timestamp) -> Compiled {
    let mut compiled = Compiled::default();
    let plans = service::plan(objects);
    let attachments = attach(objects);
    let slices = service::slices_by_service(objects);
    for (key, plan) in &plans {
        if let Some(origin) = objects.services.get(key).map(|service| &service.origin) {
            let place =
                |problem: &String| format!("{origin}: Service {}/{}: {problem}", key.0, key.1);
            compiled.problems.extend(plan.problems.iter().map(place));
        }
        let slices = slices
            .get(&(key.0.as_str(), key.1.as_str()))
            .map_or(&[][..], Vec::as_slice);
        compile::service(key, plan, slices, &attachments, objects, now, &mut compiled);
    }
    for key in objects.policies.keys() {
        let outcome = outcome(objects, key, &plans, &attachments, &compiled);
        compiled.policies.insert(key.clone(), outcome);
    }
    for key in objects.breakers.keys() {
        let id = BreakerId {
            namespace: key.0.clone(),
            key: key.1.clone(),
        };
        if !compiled.breakers.contains_key(&id) {
            let verdict = breakers::nobody_asks(key, &compiled.breakers);
            compiled.orphans.insert(key.clone(), verdict);
        }
    }
    compiled
}

fn policy<'a>(objects: &'a Objects, key: &Key) -> Option<Policy<'a>> {
    let (key, policy) = objects.policies.get_key_value(key)?;
    Some(Policy {
        key,
        spec: &policy.object.spec,
        created: policy.object.metadata.creation_timestamp.as_ref(),
    })
}

fn attach(objects: &Objects) -> Attachments<'_> {
    let mut attachments = Attachments::default();
    for policy in objects
        .policies
        .keys()
        .filter_map(|key| policy(objects, key))
    {
        for reference in &policy.spec.target_refs {
            if let Ok(target) = targets::serve(policy, reference) {
                attachments.attach(target, policy);
            }
        }
    }
    attachments
}

fn outcome(
    objects: &Objects,
    key: &Key,
    plans: &BTreeMap<Key, ServicePlan>,
    attachments: &Attachments<'_>,
    compiled: &Compiled,
) -> PolicyOutcome {
    let source = objects.policies.get(key);
    let mut outcome = PolicyOutcome {
        accepted: Verdict::good(Reason::Accepted, "the policy is valid"),
        resolved: Verdict::good(Reason::ResolvedRefs, "all targets exist"),
        ineffective: None,
        targets: Vec::new(),
        unsupported: Vec::new(),
        services: Vec::new(),
    };
    let Some(policy) = policy(objects, key) else {
        return outcome;
    };
    outcome.unsupported = unsupported::unsupported(policy.spec);
    for reference in &policy.spec.target_refs {
        let target = target_outcome(
            policy,
            reference,
            objects,
            plans,
            attachments,
            &mut outcome.services,
        );
        outcome.targets.push(target);
    }
    outcome.services.sort();
    outcome.services.dedup();
    let first_bad = |of: fn(&TargetOutcome) -> &Verdict| {
        outcome.targets.iter().map(of).find(|verdict| !verdict.good)
    };
    // In force at one target is in force: what it lost is told at each target.
    let in_force = |target: &TargetOutcome| {
        target.accepted.good || target.accepted.reason == Reason::PartiallyConflicted
    };
    if !outcome.targets.iter().any(in_force)
        && let Some(bad) = first_bad(|target| &target.accepted)
    {
        outcome.accepted = bad.clone();
    }
    if let Some(bad) = first_bad(|target| &target.resolved) {
        outcome.resolved = bad.clone();
    } else if outcome
        .targets
        .iter()
        .all(|target| target.resolved.message == NOT_LOOKED_FOR)
    {
        outcome.resolved.message = NOT_LOOKED_FOR.to_owned();
    }
    for service in &outcome.services {
        let Some(found) = compiled.services.get(service) else {
            continue;
        };
        if let Some(refused) = &found.refused {
            let message = format!(
                "Service {}/{} cannot be configured: {refused}",
                service.0, service.1
            );
            outcome.accepted = Verdict::new(Reason::Invalid, message);
        }
        if let (None, Some(port)) = (&outcome.ineffective, without_endpoints(found)) {
            let message = format!(
                "port {port} of Service {}/{} has no endpoint that is ready: add an EndpointSlice labelled kubernetes.io/service-name: {}",
                service.0, service.1, service.1
            );
            outcome.ineffective = Some(Verdict::new(Reason::NoReadyEndpoints, message));
        }
    }
    if let Some(problem) = source.and_then(|source| source.problem.as_ref()) {
        let message = format!("{problem}; the last good version stays in force");
        outcome.accepted = Verdict::new(Reason::Invalid, message);
    }
    outcome
}

/// The first port without endpoints.
fn without_endpoints(service: &ServiceOutcome) -> Option<u32> {
    service
        .endpoints
        .ports
        .iter()
        .find(|port| port.endpoints.is_empty())
        .map(|port| port.port)
}

fn target_outcome(
    policy: Policy<'_>,
    reference: &TargetRef,
    objects: &Objects,
    plans: &BTreeMap<Key, ServicePlan>,
    attachments: &Attachments<'_>,
    services: &mut Vec<Key>,
) -> TargetOutcome {
    let mut outcome = TargetOutcome {
        reference: reference.clone(),
        accepted: Verdict::good(Reason::Accepted, "in force"),
        resolved: Verdict::good(Reason::ResolvedRefs, "the target exists"),
        sections: Vec::new(),
    };
    let target = match targets::serve(policy, reference) {
        Ok(target) => target,
        Err(verdict) => {
            match verdict.reason {
                Reason::RefNotPermitted => outcome.resolved = verdict.clone(),
                _ => outcome.resolved.message = NOT_LOOKED_FOR.to_owned(),
            }
            outcome.accepted = verdict;
            return outcome;
        }
    };
    match targets::resolve(&target, objects, plans) {
        Ok(found) => {
            if let Some(verdict) = found
                .iter()
                .find_map(|service| service_problem(plans.get(service)?, &target))
            {
                outcome.resolved = verdict;
            }
            services.extend(found);
        }
        Err(verdict) => {
            outcome.resolved = verdict;
            return outcome;
        }
    }
    if let Some(verdict) = attachments
        .layer(&target)
        .and_then(|layer| conflict(layer, policy))
    {
        outcome.accepted = verdict;
    }
    let layers = match &target {
        Target::Service { service, port } => {
            attachments.layers(&service.0, Some(service), port.as_deref())
        }
        Target::Namespace { namespace, .. } => attachments.layers(namespace, None, None),
    };
    outcome.sections = merge(&layers)
        .sections
        .into_iter()
        .filter(|(section, _)| unsupported::is_built(*section))
        .map(|(section, winner)| EffectiveSection {
            section,
            from: winner.policy.name(),
            mode: if winner.policy.is_shadow(section) {
                Mode::Shadow
            } else {
                Mode::Enforce
            },
        })
        .collect();
    outcome
}

/// What a policy loses to others of its rank.
fn conflict(layer: &Layer<'_>, policy: Policy<'_>) -> Option<Verdict> {
    let (lost, all) = layer.lost(policy.key);
    let (_, winner) = lost.first()?;
    let sections: Vec<&str> = lost.iter().map(|(item, _)| item.as_str()).collect();
    let winners: std::collections::BTreeSet<String> =
        lost.iter().map(|(_, winner)| winner.name()).collect();
    let winners: Vec<&str> = winners.iter().map(String::as_str).collect();
    let why = match (winner.created, policy.created) {
        (Some(a), Some(b)) if a != b => "older",
        _ => "first by name",
    };
    let (reason, what) = match all {
        true => (Reason::Conflicted, "all of it is"),
        false => (Reason::PartiallyConflicted, "some of it is"),
    };
    let message = format!(
        "{what} given for the same target by {} ({why}), and that counts: {}; write these sections in one policy",
        winners.join(", "),
        sections.join(", ")
    );
    Some(Verdict::new(reason, message))
}

/// What of a service cannot be served, as far as the target is about it.
fn service_problem(plan: &ServicePlan, target: &Target) -> Option<Verdict> {
    if let Some(problem) = plan.problems.first() {
        return Some(Verdict::new(Reason::InvalidListener, problem.clone()));
    }
    let whole = matches!(target, Target::Service { port: None, .. });
    let (name, spoken) = plan.unserved.first().filter(|_| whole)?;
    let message = format!(
        "port {name} speaks {spoken}, which is not served yet: HTTP and gRPC are; other ports are served"
    );
    Some(Verdict::new(Reason::UnsupportedProtocol, message))
}

#[cfg(test)]
mod tests;
