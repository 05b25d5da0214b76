//! Where objects come from. Each source gives the same typed objects, whole:
//! [`Objects`] is everything at one moment, and the model asks nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::Value;
use weir_crds::v1alpha1::{CircuitBreakerObject, ResiliencePolicy};

pub mod files;
pub(crate) mod kubernetes;
pub mod manifest;
pub mod pods;
pub(crate) mod shared;

use manifest::{ObjectId, Typed};
use pods::{Node, Pods};
pub use shared::Shared;

/// Namespace and name of an object whose kind is clear.
pub type Key = (String, String);

/// An object, and what its source knows about it.
#[derive(Clone, Debug)]
pub struct Sourced<T> {
    /// The object, in its last good version.
    pub object: T,
    /// Counts the good versions of its spec, from 1.
    pub generation: i64,
    /// Where it was written, "shop.yaml:14".
    pub origin: Arc<str>,
    /// When the source first saw it.
    pub first_seen: Timestamp,
    /// When it first saw this generation.
    pub written: Timestamp,
    /// What is wrong with a newer version, so that this one stays in force.
    pub problem: Option<Arc<str>>,
}

/// An object of which no good version was ever seen.
#[derive(Clone, Debug)]
pub struct Refused {
    /// As it was written.
    pub written: Value,
    /// When the source first saw it.
    pub first_seen: Timestamp,
    /// What is wrong with it, with its place.
    pub problem: Arc<str>,
}

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// The namespace that Weir itself is in, unless it is told otherwise.
pub const OWN_NAMESPACE: &str = "weir-system";

/// Everything that a source holds at one moment.
#[derive(Clone, Debug)]
pub struct Objects {
    /// The policies.
    pub policies: Shared<Key, Sourced<Arc<ResiliencePolicy>>>,
    /// People's words over breakers.
    pub breakers: Shared<Key, Sourced<Arc<CircuitBreakerObject>>>,
    /// The services.
    pub services: Shared<Key, Sourced<Arc<Service>>>,
    /// Where their requests go.
    pub slices: Shared<Key, Sourced<Arc<EndpointSlice>>>,
    /// The namespaces that are known, with their labels.
    pub namespaces: Shared<String, Arc<Labels>>,
    /// The Pods, by their nodes; none from files.
    pub pods: Pods,
    /// The nodes; none from files.
    pub nodes: Shared<Arc<str>, Arc<Node>>,
    /// The namespace that Weir itself is in: policies for the whole mesh are
    /// written there.
    pub own_namespace: String,
    /// Nodes that have an agent of Weir's, connected or not; `None` where the
    /// source cannot tell, as files cannot.
    pub agents: Option<BTreeSet<String>>,
    /// Objects that cannot be used at all.
    pub refused: Shared<ObjectId, Refused>,
    /// Some manifest cannot be read, so that there may be more objects than these.
    pub partial: bool,
    /// Findings in all files, for people: "shop.yaml:14:3: …".
    pub problems: Vec<String>,
}

impl Default for Objects {
    /// Nothing at all, and Weir in [`OWN_NAMESPACE`].
    fn default() -> Objects {
        Objects {
            policies: Shared::default(),
            breakers: Shared::default(),
            services: Shared::default(),
            slices: Shared::default(),
            namespaces: Shared::default(),
            pods: Shared::default(),
            nodes: Shared::default(),
            own_namespace: OWN_NAMESPACE.to_owned(),
            agents: None,
            refused: Shared::default(),
            partial: false,
            problems: Vec::new(),
        }
    }
}

/// The labels of a namespace.
pub(crate) fn labels_of(namespace: &Namespace) -> Arc<Labels> {
    Arc::new(namespace.metadata.labels.clone().unwrap_or_default())
}

impl Objects {
    /// Adds one object; what was there under its name is replaced.
    pub fn insert(&mut self, id: &ObjectId, object: &Typed, about: Sourced<()>) {
        let key = (id.namespace.clone(), id.name.clone());
        match object {
            Typed::ResiliencePolicy(policy) => {
                self.policies.insert(key, about.with(Arc::clone(policy)));
            }
            Typed::CircuitBreaker(breaker) => {
                self.breakers.insert(key, about.with(Arc::clone(breaker)));
            }
            Typed::Service(service) => {
                self.services.insert(key, about.with(Arc::clone(service)));
            }
            Typed::EndpointSlice(slice) => {
                self.slices.insert(key, about.with(Arc::clone(slice)));
            }
            Typed::Namespace(labels) => {
                self.namespaces.insert(key.1, Arc::clone(labels));
            }
        }
    }
}

impl<T> Sourced<Arc<T>> {
    /// Whether both are the same version of the same object, as its source gave
    /// it.
    pub(crate) fn is(&self, other: &Sourced<Arc<T>>) -> bool {
        Arc::ptr_eq(&self.object, &other.object)
            && self.generation == other.generation
            && self.written == other.written
            && self.first_seen == other.first_seen
            && self.problem == other.problem
            && self.origin == other.origin
    }
}

impl Sourced<()> {
    pub(crate) fn with<T>(self, object: T) -> Sourced<T> {
        let Sourced {
            object: (),
            generation,
            origin,
            first_seen,
            written,
            problem,
        } = self;
        Sourced {
            object,
            generation,
            origin,
            first_seen,
            written,
            problem,
        }
    }
}
