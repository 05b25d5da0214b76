//! What each policy is about: its targets, found or not.

use std::collections::BTreeMap;

use weir_crds::v1alpha1::{Reason, Strategy, TargetKind, TargetRef};

use super::Verdict;
use super::merge::{Layer, Policy, Rank};
use super::service::{ServicePlan, known};
use crate::sources::manifest::{Kind, ObjectId};
use crate::sources::{Key, Objects};

/// A target that is served.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Target {
    /// A Service, or one port of it.
    Service { service: Key, port: Option<String> },
    /// Every Service of a namespace.
    Namespace { namespace: String, overrides: bool },
}

/// Policies by what they are about.
#[derive(Debug, Default)]
pub(super) struct Attachments<'a> {
    layers: BTreeMap<Target, Layer<'a>>,
}

impl<'a> Attachments<'a> {
    pub(super) fn attach(&mut self, target: Target, policy: Policy<'a>) {
        self.layers.entry(target).or_default().add(policy);
    }

    pub(super) fn layer(&self, target: &Target) -> Option<&Layer<'a>> {
        self.layers.get(target)
    }

    /// The layers for a port, or without one for what all ports have in common;
    /// without a service for what all services have.
    pub(super) fn layers(
        &self,
        namespace: &str,
        service: Option<&Key>,
        port: Option<&str>,
    ) -> [(Rank, Option<&Layer<'a>>); 4] {
        let of_namespace = |overrides| {
            self.layer(&Target::Namespace {
                namespace: namespace.to_owned(),
                overrides,
            })
        };
        let of_service = |port: Option<&str>| {
            let service = service?.clone();
            self.layer(&Target::Service {
                service,
                port: port.map(str::to_owned),
            })
        };
        [
            (Rank::Overrides, of_namespace(true)),
            (
                Rank::Port,
                port.filter(|port| !port.is_empty())
                    .and_then(|port| of_service(Some(port))),
            ),
            (Rank::Service, of_service(None)),
            (Rank::Namespace, of_namespace(false)),
        ]
    }
}

/// What a reference stands for, or why it is not served.
pub(super) fn serve(policy: Policy<'_>, reference: &TargetRef) -> Result<Target, Verdict> {
    let namespace = &policy.key.0;
    let name = reference.name.clone().unwrap_or_default();
    let unsupported = |what: &str| {
        let message = format!(
            "{what} are not served yet: target a Service or the Namespace of the policy itself"
        );
        Err(Verdict::new(Reason::UnsupportedTarget, message))
    };
    match reference.kind {
        TargetKind::Service => match &reference.namespace {
            Some(other) if other != namespace => unsupported("Services of another namespace"),
            _ => Ok(Target::Service {
                service: (namespace.clone(), name),
                port: reference.section_name.clone(),
            }),
        },
        TargetKind::Namespace if name == *namespace => Ok(Target::Namespace {
            namespace: name,
            overrides: policy.spec.strategy == Strategy::Overrides,
        }),
        TargetKind::Namespace => Err(Verdict::new(
            Reason::RefNotPermitted,
            format!(
                "a policy may only be about its own namespace: write `name: {namespace}`, or move the policy to {name}"
            ),
        )),
        TargetKind::Host => unsupported("hosts outside the cluster"),
        TargetKind::Mesh => unsupported("policies for the whole mesh"),
    }
}

/// The services that a target stands for, or what cannot be found.
pub(super) fn resolve(
    target: &Target,
    objects: &Objects,
    plans: &BTreeMap<Key, ServicePlan>,
) -> Result<Vec<Key>, Verdict> {
    match target {
        Target::Namespace { namespace, .. } => {
            let services: Vec<Key> = objects
                .services
                .keys()
                .filter(|(within, _)| within == namespace)
                .cloned()
                .collect();
            if services.is_empty() {
                let message = format!("there is no Service in namespace {namespace}");
                return Err(Verdict::new(Reason::TargetNotFound, message));
            }
            Ok(services)
        }
        Target::Service { service, port } => {
            let Some(plan) = plans.get(service) else {
                return Err(Verdict::new(
                    Reason::TargetNotFound,
                    missing(service, objects),
                ));
            };
            let Some(port) = port else {
                return Ok(vec![service.clone()]);
            };
            if plan.ports.iter().any(|plan| plan.name == *port) {
                return Ok(vec![service.clone()]);
            }
            if let Some((_, spoken)) = plan.unserved.iter().find(|(name, _)| name == port) {
                let message = format!(
                    "port {port} speaks {spoken}, which is not served yet: HTTP and gRPC are"
                );
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
    }
}

/// Why there is no such Service.
fn missing((namespace, name): &Key, objects: &Objects) -> String {
    let id = ObjectId {
        kind: Kind::Service,
        namespace: namespace.clone(),
        name: name.clone(),
    };
    match objects.refused.get(&id) {
        Some(refused) => format!("Service {name} cannot be used: {}", refused.problem),
        None => {
            let known = known(objects, namespace);
            format!("there is no Service {name} in namespace {namespace}; {known}")
        }
    }
}
