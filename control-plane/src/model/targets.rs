//! What each policy is about: its targets, found or not.

use std::ops::Bound;

use weir_crds::v1alpha1::{Reason, Strategy, TargetKind, TargetRef};

use super::Verdict;
use super::attachments::Target;
use super::merge::Policy;
use super::mesh::{MESH_POLICY, covers, covers_namespace};
use super::service::{Plans, known};
use crate::sources::manifest::{Kind, ObjectId};
use crate::sources::{Key, Objects};

/// What a reference stands for, or why it is not served.
pub(super) fn serve(
    policy: Policy<'_>,
    reference: &TargetRef,
    objects: &Objects,
) -> Result<Target, Verdict> {
    let namespace = &policy.key.0;
    let name = reference.name.clone().unwrap_or_default();
    let port = reference.section_name.clone();
    let overrides = policy.spec.strategy == Strategy::Overrides;
    let not_permitted = |message: String| Err(Verdict::new(Reason::RefNotPermitted, message));
    match reference.kind {
        TargetKind::Service => Ok(match &reference.namespace {
            Some(other) if other != namespace => Target::Consumer {
                service: (other.clone(), name),
                port,
                consumer: namespace.clone(),
            },
            _ => Target::Service {
                service: (namespace.clone(), name),
                port,
            },
        }),
        TargetKind::Namespace if name == *namespace => Ok(Target::Namespace {
            namespace: name,
            overrides,
        }),
        TargetKind::Namespace => not_permitted(format!(
            "a policy may only be about its own namespace: write `name: {namespace}`, or move the policy to {name}"
        )),
        TargetKind::Mesh if *namespace == objects.own_namespace => Ok(Target::Mesh { overrides }),
        TargetKind::Mesh => not_permitted(format!(
            "a policy for the whole mesh belongs to Weir's own namespace: move it to {}, or write `kind: Namespace, name: {namespace}`",
            objects.own_namespace
        )),
        TargetKind::Host => Err(Verdict::new(
            Reason::UnsupportedTarget,
            "hosts outside the cluster are not served yet: target a Service, a Namespace or the Mesh",
        )),
    }
}

/// The services that a target stands for, or what cannot be found.
pub(super) fn resolve(
    target: &Target,
    objects: &Objects,
    plans: &Plans,
) -> Result<Vec<Key>, Verdict> {
    let not_found = |message: String| Err(Verdict::new(Reason::TargetNotFound, message));
    match target {
        Target::Mesh { .. } => {
            let services: Vec<Key> = objects
                .services
                .keys()
                .filter(|key| covers(objects, key))
                .cloned()
                .collect();
            if services.is_empty() {
                let why = match objects
                    .namespaces
                    .keys()
                    .any(|namespace| covers_namespace(objects, namespace))
                {
                    true => format!(
                        "there is no Service for it in a namespace labelled {MESH_POLICY}: enabled"
                    ),
                    false => format!(
                        "no namespace asks for it: write `kubectl label namespace NAME {MESH_POLICY}=enabled`"
                    ),
                };
                return not_found(why);
            }
            served(services, plans)
        }
        Target::Namespace { namespace, .. } => {
            let services: Vec<Key> = in_namespace(objects, namespace).cloned().collect();
            if services.is_empty() {
                return not_found(format!("there is no Service in namespace {namespace}"));
            }
            served(services, plans)
        }
        Target::Service { service, port } => {
            find(service, port.as_deref(), objects, plans, true).map(|()| vec![service.clone()])
        }
        Target::Consumer { service, port, .. } => {
            find(service, port.as_deref(), objects, plans, false).map(|()| vec![service.clone()])
        }
    }
}

/// Those of `services` that agents can do anything for.
fn served(mut services: Vec<Key>, plans: &Plans) -> Result<Vec<Key>, Verdict> {
    services.retain(|key| plans.get(key).is_some_and(|plan| !plan.ports.is_empty()));
    match services.is_empty() {
        false => Ok(services),
        true => Err(Verdict::new(
            Reason::UnsupportedProtocol,
            "no port of any of its Services is TCP, and nothing else is served",
        )),
    }
}

/// The services of one namespace.
pub(super) fn in_namespace<'o>(
    objects: &'o Objects,
    namespace: &'o str,
) -> impl Iterator<Item = &'o Key> {
    let from = (namespace.to_owned(), String::new());
    objects
        .services
        .range((Bound::Included(from), Bound::Unbounded))
        .map(|(key, _)| key)
        .take_while(move |(within, _)| within == namespace)
}

/// Whether the service is there, and the port. `own`: those who asked may be
/// told what else there is.
fn find(
    service: &Key,
    port: Option<&str>,
    objects: &Objects,
    plans: &Plans,
    own: bool,
) -> Result<(), Verdict> {
    let Some(plan) = plans.get(service) else {
        return Err(Verdict::new(
            Reason::TargetNotFound,
            missing(service, objects, own),
        ));
    };
    let Some(port) = port else { return Ok(()) };
    if plan.ports.iter().any(|plan| plan.name == *port) {
        return Ok(());
    }
    if let Some((_, transport)) = plan.unserved.iter().find(|(name, _)| name == port) {
        let message = format!("port {port} is {transport}, and only TCP is served");
        return Err(Verdict::new(Reason::UnsupportedProtocol, message));
    }
    let mut names: Vec<&str> = plan.ports.iter().map(|port| port.name.as_str()).collect();
    names.extend(plan.unserved.iter().map(|(name, _)| name.as_str()));
    names.retain(|name| !name.is_empty());
    let names = match names.is_empty() {
        true => "its one port has no name: leave sectionName out".to_owned(),
        false => format!("its ports are {}", names.join(", ")),
    };
    let message = format!("Service {} has no port named {port}: {names}", service.1);
    Err(Verdict::new(Reason::TargetNotFound, message))
}

/// Why there is no such Service.
fn missing((namespace, name): &Key, objects: &Objects, own: bool) -> String {
    let id = ObjectId {
        kind: Kind::Service,
        namespace: namespace.clone(),
        name: name.clone(),
    };
    match objects.refused.get(&id) {
        Some(refused) if own => format!("Service {name} cannot be used: {}", refused.problem),
        _ if own => {
            let known = known(objects, namespace);
            format!("there is no Service {name} in namespace {namespace}; {known}")
        }
        // Which Services another namespace has is not everybody's to know.
        _ => format!(
            "there is no Service {name} in namespace {namespace}: check both names, or wait until it is made"
        ),
    }
}
