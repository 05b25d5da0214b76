//! What became of each policy, for its status.

use std::collections::BTreeSet;

use weir_crds::v1alpha1::{EffectiveSection, Mode, Reason, TargetKind, TargetRef};
use weir_proto::v1alpha1 as proto;

use super::attachments::{Attachments, Place, Target};
use super::merge::{Layer, Policy, merge};
use super::mesh::{covers, covers_namespace};
use super::service::{Plans, ServicePlan};
use super::{
    Compiled, PolicyOutcome, TargetOutcome, Verdict, consumer_key, existing, policy, targets,
    unsupported,
};
use crate::sources::{Key, Objects};

const NOT_LOOKED_FOR: &str = "not looked for: see condition Accepted";

pub(super) fn outcome(
    objects: &Objects,
    key: &Key,
    plans: &Plans,
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
    // The calls of other namespaces inherit from it, too.
    let beside: Vec<Key> = outcome
        .services
        .iter()
        .flat_map(|service| {
            let consumers = attachments.consumers(service);
            consumers.map(|consumer| consumer_key(service, consumer))
        })
        .collect();
    outcome.services.extend(beside);
    // One that has no port that is served is not there for agents.
    outcome
        .services
        .retain(|service| compiled.services.contains_key(service));
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
        // What another namespace made of its own calls is not this policy's fault.
        let concerned = found.config.consumer.is_empty() || found.config.consumer == key.0;
        if let Some(refused) = found.refused.as_ref().filter(|_| concerned) {
            let message = format!(
                "Service {}/{} cannot be configured: {refused}",
                found.config.namespace, found.config.name
            );
            outcome.accepted = Verdict::new(Reason::Invalid, message);
        }
    }
    // It is about nothing that a section does: the policy is valid without it.
    if let Some(problem) = existing::problem(policy).filter(|_| outcome.accepted.good) {
        outcome.accepted.message = format!("the policy is valid, apart from {problem}");
    }
    outcome.ineffective = without_endpoints(policy, &outcome.services, compiled);
    if let Some(problem) = source.and_then(|source| source.problem.as_ref()) {
        let message = format!("{problem}; the last good version stays in force");
        outcome.accepted = Verdict::new(Reason::Invalid, message);
    }
    outcome
}

/// Which requests have nowhere to go. A policy for many Services can act as long
/// as one of these has endpoints.
fn without_endpoints(policy: Policy<'_>, services: &[Key], compiled: &Compiled) -> Option<Verdict> {
    let places = || {
        let found = services.iter().filter_map(|key| compiled.services.get(key));
        found.filter_map(|service| service.endpoints.as_ref())
    };
    let empty = |of: &proto::Endpoints| {
        let is_ready = |endpoint: &proto::Endpoint| !endpoint.unready && !endpoint.terminating;
        let mut ports = of.ports.iter();
        let port = ports.find(|port| !port.endpoints.iter().any(is_ready));
        port.map(|port| port.port)
    };
    let is_wide =
        |reference: &TargetRef| matches!(reference.kind, TargetKind::Namespace | TargetKind::Mesh);
    let wide = policy.spec.target_refs.iter().any(is_wide);
    if wide && places().any(|of| empty(of).is_none()) {
        return None;
    }
    let (of, port) = places().find_map(|of| Some((of, empty(of)?)))?;
    let message = format!(
        "port {port} of Service {}/{} has no endpoint that is ready: see that its pods are, or that an EndpointSlice labelled kubernetes.io/service-name: {} names some",
        of.namespace, of.name, of.name
    );
    Some(Verdict::new(Reason::NoReadyEndpoints, message))
}

fn target_outcome(
    policy: Policy<'_>,
    reference: &TargetRef,
    objects: &Objects,
    plans: &Plans,
    attachments: &Attachments<'_>,
    services: &mut Vec<Key>,
) -> TargetOutcome {
    let mut outcome = TargetOutcome {
        reference: reference.clone(),
        accepted: Verdict::good(Reason::Accepted, "in force"),
        resolved: Verdict::good(Reason::ResolvedRefs, "the target exists"),
        sections: Vec::new(),
    };
    let target = match targets::serve(policy, reference, objects) {
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
    outcome.sections = merge(&attachments.layers(place(&target, objects)))
        .sections()
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

/// What the requests to a target have in common.
fn place<'t>(target: &'t Target, objects: &Objects) -> Place<'t> {
    match target {
        Target::Service { service, port } => Place {
            namespace: Some(&service.0),
            service: Some(service),
            port: port.as_deref(),
            consumer: None,
            in_mesh: covers(objects, service),
        },
        Target::Consumer {
            service,
            port,
            consumer,
        } => Place {
            namespace: Some(&service.0),
            service: Some(service),
            port: port.as_deref(),
            consumer: Some(consumer),
            in_mesh: covers(objects, service),
        },
        Target::Namespace { namespace, .. } => Place {
            namespace: Some(namespace),
            in_mesh: covers_namespace(objects, namespace),
            ..Place::default()
        },
        Target::Mesh { .. } => Place {
            in_mesh: true,
            ..Place::default()
        },
    }
}

/// What a policy loses to others of its rank.
fn conflict(layer: &Layer<'_>, policy: Policy<'_>) -> Option<Verdict> {
    let (lost, all) = layer.lost(policy.key);
    let (_, winner) = lost.first()?;
    let sections: Vec<&str> = lost.iter().map(|(item, _)| item.as_str()).collect();
    let winners: BTreeSet<String> = lost.iter().map(|(_, winner)| winner.name()).collect();
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
    let whole = matches!(
        target,
        Target::Service { port: None, .. } | Target::Consumer { port: None, .. }
    );
    let (name, transport) = plan.unserved.first().filter(|_| whole)?;
    let message = format!("port {name} is {transport}, and only TCP is served; other ports are");
    Some(Verdict::new(Reason::UnsupportedProtocol, message))
}
