//! From resources to a published snapshot: everything is read and bound first,
//! then everything is put in force at once. What cannot be, is refused by
//! name, and its last good version stays.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use prost::Message;
use weir_proto::v1alpha1 as proto;
use weir_resilience::config;
use weir_resilience::config::ServiceId;

use crate::clock::Clock;
use crate::features;
use crate::listeners::{Listeners, Prepared};
use crate::pods::{Pods, plans};
use crate::registry::Registry;
use crate::snapshot::{Consumer, Here, Service, Snapshot};
use crate::worker::{Command, Commands, Shared, Target};

/// A resource that is in force.
struct InForce<T> {
    resource: proto::Resource,
    value: T,
}

/// Where an agent listens for one port of a service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listening {
    /// `namespace/service`.
    pub service: String,
    /// The service's port.
    pub port: u16,
    /// The agent's address for it.
    pub address: SocketAddr,
}

/// Everything that the agent was told and has put in force.
pub(crate) struct Configuration {
    clock: Clock,
    registry: Arc<Registry>,
    shared: Arc<Shared>,
    workers: Commands,
    listeners: Mutex<Listeners>,
    /// `namespace/service` → policy and endpoints; `namespace/service@consumer` →
    /// policy for the calls from one namespace.
    services: BTreeMap<String, InForce<config::Service>>,
    endpoints: BTreeMap<String, InForce<config::Endpoints>>,
    pods: BTreeMap<String, InForce<config::Pod>>,
    nodes: BTreeMap<String, InForce<config::Node>>,
    here: Here,
    /// What has this node's pods captured, where that is asked for.
    capture: Option<Pods>,
    built: BTreeMap<String, Built>,
}

/// A resource made ready for requests.
enum Built {
    Service(Arc<Service>),
    Consumer(Arc<Consumer>),
}

impl Configuration {
    pub(crate) fn new(
        clock: Clock,
        registry: Arc<Registry>,
        shared: Arc<Shared>,
        workers: Commands,
        node: String,
        capture: Option<Pods>,
    ) -> Configuration {
        let listeners = Mutex::new(Listeners::new(workers.clone()));
        Configuration {
            clock,
            registry,
            shared,
            workers,
            listeners,
            services: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            pods: BTreeMap::new(),
            nodes: BTreeMap::new(),
            here: Here {
                node,
                zone: String::new(),
            },
            capture,
            built: BTreeMap::new(),
        }
    }

    /// Listens on the explicit proxy's address and returns it.
    pub(crate) fn listen_named(&mut self, address: SocketAddr) -> Result<SocketAddr, String> {
        let mut listeners = self
            .listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut prepared = Prepared::default();
        listeners.prepare(&mut prepared, &Target::Named, address)?;
        listeners.commit(prepared, &HashMap::from([(Target::Named, address)]));
        let found = listeners
            .addresses()
            .into_iter()
            .find(|(target, _)| *target == Target::Named);
        found
            .map(|(_, actual)| actual)
            .ok_or_else(|| format!("cannot listen on {address}"))
    }

    /// What has this node's pods captured.
    pub(crate) fn capture(&self) -> Option<Pods> {
        self.capture.clone()
    }

    /// What is held, to be told to the control plane.
    pub(crate) fn held(&self) -> Vec<proto::Held> {
        self.resources()
            .map(|r| proto::Held {
                kind: r.kind,
                name: r.name.clone(),
                version: r.version.clone(),
            })
            .collect()
    }

    /// Every resource in force.
    pub(crate) fn resources(&self) -> impl Iterator<Item = &proto::Resource> {
        self.services
            .values()
            .map(|s| &s.resource)
            .chain(self.endpoints.values().map(|e| &e.resource))
            .chain(self.pods.values().map(|p| &p.resource))
            .chain(self.nodes.values().map(|n| &n.resource))
    }

    /// Puts a change in force and returns what had to be refused.
    pub(crate) fn apply(
        &mut self,
        resources: Vec<proto::Resource>,
        removed: Vec<proto::Removed>,
    ) -> Vec<proto::Rejection> {
        let mut rejections = Vec::new();
        let mut prepared = Prepared::default();
        let mut changed = Vec::new();
        for resource in resources {
            match self.take_in(&mut prepared, &resource) {
                Ok(()) if is_of_service(resource.kind) => changed.push(resource.name),
                Ok(()) => {}
                Err(refused) => {
                    tracing::warn!(
                        resource = resource.name,
                        version = resource.version,
                        reason = refused.message,
                        "configuration refused; the last good one stays in force"
                    );
                    rejections.push(proto::Rejection {
                        kind: resource.kind,
                        name: resource.name,
                        version: resource.version,
                        message: refused.message,
                        missing_features: refused.missing,
                    });
                }
            }
        }
        for proto::Removed { kind, name } in removed {
            match proto::ResourceKind::try_from(kind) {
                Ok(proto::ResourceKind::Service) => drop(self.services.remove(&name)),
                Ok(proto::ResourceKind::Endpoints) => drop(self.endpoints.remove(&name)),
                Ok(proto::ResourceKind::Pod) => drop(self.pods.remove(&name)),
                Ok(proto::ResourceKind::Node) => drop(self.nodes.remove(&name)),
                _ => {}
            }
            if is_of_service(kind) {
                changed.push(name);
            }
        }
        let node = self.nodes.get(&self.here.node);
        let zone = node.map_or("", |node| &node.value.zone);
        let addresses = node.map_or(&[][..], |node| &node.value.addresses);
        self.shared.node.has(addresses);
        if self.here.zone != zone {
            zone.clone_into(&mut self.here.zone);
            changed = self.services.keys().cloned().collect();
        }
        self.publish(&changed, prepared);
        rejections
    }

    /// Decodes one resource and binds what it listens on.
    fn take_in(
        &mut self,
        prepared: &mut Prepared,
        resource: &proto::Resource,
    ) -> Result<(), Refused> {
        let missing = features::missing(&resource.requires);
        if !missing.is_empty() {
            let message = format!(
                "this agent cannot enforce {}: it needs a newer version",
                missing.join(", ")
            );
            return Err(Refused { message, missing });
        }
        match proto::ResourceKind::try_from(resource.kind) {
            Ok(proto::ResourceKind::Service) => {
                let decoded = proto::ServiceConfig::decode(resource.body.clone())
                    .map_err(|error| unreadable(&error))?;
                let value = config::service(&decoded).map_err(|problems| problems_of(&problems))?;
                let listeners = self
                    .listeners
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                for port in &value.ports {
                    let Some(address) = port.listen else { continue };
                    let target = Target::Port(value.id.clone(), port.number.get());
                    if let Err(message) = listeners.prepare(prepared, &target, address) {
                        prepared.abandon(&value.id);
                        return Err(Refused {
                            message,
                            missing: Vec::new(),
                        });
                    }
                }
                drop(listeners);
                self.services.insert(
                    resource.name.clone(),
                    InForce {
                        resource: resource.clone(),
                        value,
                    },
                );
            }
            Ok(proto::ResourceKind::Endpoints) => {
                let decoded = proto::Endpoints::decode(resource.body.clone())
                    .map_err(|error| unreadable(&error))?;
                let value =
                    config::endpoints(&decoded).map_err(|problems| problems_of(&problems))?;
                self.endpoints.insert(
                    resource.name.clone(),
                    InForce {
                        resource: resource.clone(),
                        value,
                    },
                );
            }
            Ok(proto::ResourceKind::Pod) => {
                let decoded = proto::Pod::decode(resource.body.clone())
                    .map_err(|error| unreadable(&error))?;
                let value = config::pod(&decoded).map_err(|problems| problems_of(&problems))?;
                let resource = resource.clone();
                let name = resource.name.clone();
                self.pods.insert(name, InForce { resource, value });
            }
            Ok(proto::ResourceKind::Node) => {
                let decoded = proto::Node::decode(resource.body.clone())
                    .map_err(|error| unreadable(&error))?;
                let value = config::node(&decoded).map_err(|problems| problems_of(&problems))?;
                let resource = resource.clone();
                let name = resource.name.clone();
                self.nodes.insert(name, InForce { resource, value });
            }
            _ => {
                let message = format!(
                    "unknown kind of resource {}: this agent needs a newer version",
                    resource.kind
                );
                return Err(Refused {
                    message,
                    missing: Vec::new(),
                });
            }
        }
        Ok(())
    }

    /// Builds what changed, publishes the whole, and moves the listeners.
    fn publish(&mut self, changed: &[String], prepared: Prepared) {
        let moment = self.clock.moment();
        for name in changed {
            match self.services.get(name) {
                Some(service) => {
                    let (config, registry) = (&service.value, &self.registry);
                    let built = match &config.consumer {
                        None => {
                            let endpoints = self.endpoints.get(name).map(|e| &e.value);
                            let service =
                                Service::build(config, endpoints, &self.here, registry, moment);
                            Built::Service(Arc::new(service))
                        }
                        Some(consumer) => {
                            let consumer = Consumer::build(config, consumer, registry, moment);
                            Built::Consumer(Arc::new(consumer))
                        }
                    };
                    self.built.insert(name.clone(), built);
                }
                None => drop(self.built.remove(name)),
            }
        }
        let mut services = Vec::new();
        let mut consumers = Vec::new();
        for built in self.built.values() {
            match built {
                Built::Service(service) => services.push(service.clone()),
                Built::Consumer(consumer) => consumers.push(consumer.clone()),
            }
        }
        let pods = self.pods.values().map(|pod| &pod.value);
        let local = pods.clone().flat_map(|pod| pod.addresses.iter().copied());
        let snapshot = Arc::new(Snapshot::new(services, consumers, &local.collect()));
        // What comes by a rule that is about to go, or is there already, is served
        // either way.
        if let Some(capture) = &self.capture {
            capture.want(plans(&snapshot, pods, capture.existing));
        }
        let mut wanted: HashMap<Target, SocketAddr> = snapshot
            .services
            .iter()
            .flat_map(|s| {
                s.ports
                    .iter()
                    .filter_map(|p| Some((Target::Port(s.id.clone(), p.number), p.listen?)))
            })
            .collect();
        self.shared.snapshot.store(snapshot);
        for worker in &self.workers {
            // A worker that has ended holds no snapshot.
            let _ = worker.send(Command::Refresh);
        }
        let mut listeners = self
            .listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        wanted.extend(
            listeners
                .addresses()
                .into_iter()
                .filter(|(target, _)| *target == Target::Named),
        );
        listeners.commit(prepared, &wanted);
    }

    /// Where services are listened for.
    pub(crate) fn listening(&self) -> Vec<Listening> {
        let listeners = self
            .listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = listeners
            .addresses()
            .into_iter()
            .filter_map(|(target, address)| match target {
                Target::Port(ServiceId { namespace, name }, port) => Some(Listening {
                    service: format!("{namespace}/{name}"),
                    port,
                    address,
                }),
                Target::Named => None,
            })
            .collect();
        all.sort();
        all
    }
}

/// Whether a resource of this kind says something of a service.
pub(crate) fn is_of_service(kind: i32) -> bool {
    matches!(
        proto::ResourceKind::try_from(kind),
        Ok(proto::ResourceKind::Service | proto::ResourceKind::Endpoints)
    )
}

/// Why a resource is not put in force.
struct Refused {
    message: String,
    missing: Vec<String>,
}

fn unreadable(error: &prost::DecodeError) -> Refused {
    Refused {
        message: format!("cannot be read: {error}"),
        missing: Vec::new(),
    }
}

fn problems_of(problems: &[config::Problem]) -> Refused {
    let all: Vec<_> = problems.iter().map(ToString::to_string).collect();
    Refused {
        message: all.join("; "),
        missing: Vec::new(),
    }
}
