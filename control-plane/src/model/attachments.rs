//! Policies by what they are about.

use std::collections::BTreeMap;

use super::merge::{Layer, Policy, Rank};
use crate::sources::Key;

/// A target that is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// A Service, or one port of it, for all callers.
    Service { service: Key, port: Option<String> },
    /// The same, for calls from the namespace `consumer` alone.
    Consumer {
        service: Key,
        port: Option<String>,
        consumer: String,
    },
    /// Every Service of a namespace.
    Namespace { namespace: String, overrides: bool },
    /// Every Service that asks for it.
    Mesh { overrides: bool },
}

/// What requests have in common, as far as the merge asks.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Place<'p> {
    /// Where the Service is; `None` for the mesh as a whole.
    pub(super) namespace: Option<&'p str>,
    /// Which Service; `None` for all.
    pub(super) service: Option<&'p Key>,
    /// Name of the port; `None` for what all ports have.
    pub(super) port: Option<&'p str>,
    /// The callers' namespace, where it has a say.
    pub(super) consumer: Option<&'p str>,
    /// Whether policies for the whole mesh hold.
    pub(super) in_mesh: bool,
}

/// What is said of a Service, by one side.
#[derive(Debug, Default)]
struct Said<'a> {
    whole: Layer<'a>,
    ports: BTreeMap<String, Layer<'a>>,
}

impl<'a> Said<'a> {
    fn layer_mut(&mut self, port: Option<String>) -> &mut Layer<'a> {
        match port {
            None => &mut self.whole,
            Some(port) => self.ports.entry(port).or_default(),
        }
    }

    fn layer(&self, port: Option<&str>) -> Option<&Layer<'a>> {
        match port {
            None => Some(&self.whole),
            Some(port) => self.ports.get(port),
        }
    }
}

/// Everything that is said of one Service.
#[derive(Debug, Default)]
struct OfService<'a> {
    owner: Said<'a>,
    /// By the callers' namespace.
    consumers: BTreeMap<String, Said<'a>>,
}

/// What is said of many Services at once.
#[derive(Debug, Default)]
struct Wide<'a> {
    overrides: Layer<'a>,
    defaults: Layer<'a>,
}

impl<'a> Wide<'a> {
    fn layer_mut(&mut self, overrides: bool) -> &mut Layer<'a> {
        match overrides {
            true => &mut self.overrides,
            false => &mut self.defaults,
        }
    }

    fn layer(&self, overrides: bool) -> &Layer<'a> {
        match overrides {
            true => &self.overrides,
            false => &self.defaults,
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Attachments<'a> {
    services: BTreeMap<Key, OfService<'a>>,
    namespaces: BTreeMap<String, Wide<'a>>,
    mesh: Wide<'a>,
}

impl<'a> Attachments<'a> {
    pub(super) fn attach(&mut self, target: Target, policy: Policy<'a>) {
        let layer = match target {
            Target::Service { service, port } => self
                .services
                .entry(service)
                .or_default()
                .owner
                .layer_mut(port),
            Target::Consumer {
                service,
                port,
                consumer,
            } => self
                .services
                .entry(service)
                .or_default()
                .consumers
                .entry(consumer)
                .or_default()
                .layer_mut(port),
            Target::Namespace {
                namespace,
                overrides,
            } => self
                .namespaces
                .entry(namespace)
                .or_default()
                .layer_mut(overrides),
            Target::Mesh { overrides } => self.mesh.layer_mut(overrides),
        };
        layer.add(policy);
    }

    /// The policies that have the very same target.
    pub(super) fn layer(&self, target: &Target) -> Option<&Layer<'a>> {
        match target {
            Target::Service { service, port } => {
                self.services.get(service)?.owner.layer(port.as_deref())
            }
            Target::Consumer {
                service,
                port,
                consumer,
            } => self
                .services
                .get(service)?
                .consumers
                .get(consumer)?
                .layer(port.as_deref()),
            Target::Namespace {
                namespace,
                overrides,
            } => Some(self.namespaces.get(namespace)?.layer(*overrides)),
            Target::Mesh { overrides } => Some(self.mesh.layer(*overrides)),
        }
    }

    /// The namespaces whose callers have a say over their calls to `service`.
    pub(super) fn consumers(&self, service: &Key) -> impl Iterator<Item = &str> {
        self.services
            .get(service)
            .into_iter()
            .flat_map(|of| of.consumers.keys().map(String::as_str))
    }

    /// The layers that hold at `place`, the nearest first.
    pub(super) fn layers(&self, place: Place<'_>) -> [(Rank, Option<&Layer<'a>>); 8] {
        let mesh = place.in_mesh.then_some(&self.mesh);
        let namespace = place.namespace.and_then(|name| self.namespaces.get(name));
        let service = place.service.and_then(|key| self.services.get(key));
        let owner = service.map(|of| &of.owner);
        let consumer = place
            .consumer
            .and_then(|consumer| service?.consumers.get(consumer));
        // A port without a name cannot be a target of its own.
        let port = place.port.filter(|port| !port.is_empty());
        [
            (Rank::MeshOverrides, mesh.map(|wide| wide.layer(true))),
            (Rank::Overrides, namespace.map(|wide| wide.layer(true))),
            (Rank::ConsumerPort, of_port(consumer, port)),
            (Rank::Consumer, consumer.map(|said| &said.whole)),
            (Rank::Port, of_port(owner, port)),
            (Rank::Service, owner.map(|said| &said.whole)),
            (Rank::Namespace, namespace.map(|wide| wide.layer(false))),
            (Rank::Mesh, mesh.map(|wide| wide.layer(false))),
        ]
    }
}

fn of_port<'s, 'a>(said: Option<&'s Said<'a>>, port: Option<&str>) -> Option<&'s Layer<'a>> {
    said?.layer(Some(port?))
}
