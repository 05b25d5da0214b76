//! What the API server said last, as [`Objects`]: synchronous, infallible,
//! without I/O. Watches feed it; a test needs no server.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::{DynamicObject, PartialObjectMeta};
use serde::de::DeserializeOwned;
use serde_json::Value;
use weir_crds::v1alpha1::{
    CircuitBreakerObject, CircuitBreakerSpec, ResiliencePolicy, ResiliencePolicySpec,
};

use super::observed::{Observed, live};
use super::pods;
use crate::model::refusals;
use crate::sources::manifest::{Kind as OwnKind, ObjectId};
use crate::sources::pods::{Pod, PodName};
use crate::sources::{Key, Objects, Refused, Shared, Sourced};
use crate::store::Collection;

/// Annotations of others are not kept: they can be large, and say nothing here.
const OUR_ANNOTATIONS: &str = "weir.dev/";
/// Kubernetes' own word on the topology of a Service.
const TOPOLOGY: &str = "service.kubernetes.io/topology-mode";

/// What is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    /// ResiliencePolicies.
    Policies,
    /// CircuitBreakers.
    Breakers,
    /// Services.
    Services,
    /// EndpointSlices.
    Slices,
    /// Namespaces, their metadata.
    Namespaces,
    /// Pods, what is needed of them. Weir's own agents are among them: they say
    /// which nodes have one.
    Pods,
    /// Nodes, what is needed of them.
    Nodes,
}

impl Kind {
    /// All of them.
    pub(crate) const ALL: [Kind; 7] = [
        Kind::Policies,
        Kind::Breakers,
        Kind::Services,
        Kind::Slices,
        Kind::Namespaces,
        Kind::Pods,
        Kind::Nodes,
    ];

    /// As `kubectl api-resources` names it.
    pub(crate) fn plural(self) -> &'static str {
        match self {
            Kind::Policies => "resiliencepolicies",
            Kind::Breakers => "circuitbreakers",
            Kind::Services => "services",
            Kind::Slices => "endpointslices",
            Kind::Namespaces => "namespaces",
            Kind::Pods => "pods",
            Kind::Nodes => "nodes",
        }
    }
}

/// An object as its watch gives it. Weir's own kinds come untyped: one that
/// cannot be read must not end the watch of all others.
#[derive(Clone, Debug)]
pub(crate) enum Object {
    Policy(Box<DynamicObject>),
    Breaker(Box<DynamicObject>),
    Service(Box<Service>),
    Slice(Box<EndpointSlice>),
    Namespace(Box<PartialObjectMeta<Namespace>>),
    Pod(Box<pods::Written>),
    Node(Box<DynamicObject>),
}

impl Object {
    fn kind(&self) -> Kind {
        match self {
            Object::Policy(_) => Kind::Policies,
            Object::Breaker(_) => Kind::Breakers,
            Object::Service(_) => Kind::Services,
            Object::Slice(_) => Kind::Slices,
            Object::Namespace(_) => Kind::Namespaces,
            Object::Pod(_) => Kind::Pods,
            Object::Node(_) => Kind::Nodes,
        }
    }

    fn metadata(&self) -> &ObjectMeta {
        match self {
            Object::Policy(object) | Object::Breaker(object) | Object::Node(object) => {
                &object.metadata
            }
            Object::Service(object) => &object.metadata,
            Object::Slice(object) => &object.metadata,
            Object::Namespace(object) => &object.metadata,
            Object::Pod(object) => &object.metadata,
        }
    }

    fn key(&self) -> Key {
        let metadata = self.metadata();
        (
            metadata.namespace.clone().unwrap_or_default(),
            metadata.name.clone().unwrap_or_default(),
        )
    }
}

/// One word of a watch.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    /// A list begins: what it does not name is gone when it ends.
    Begin(Kind),
    /// The list has this object.
    Listed(Object),
    /// The list has ended.
    Done(Kind),
    /// The object is new or changed.
    Applied(Object),
    /// The object is gone.
    Deleted(Object),
}

/// See the module.
pub(crate) struct Index {
    objects: Objects,
    /// What the server holds of the objects that Weir writes.
    observed: Arc<Observed>,
    /// Node of each agent's Pod.
    agents: BTreeMap<Key, String>,
    /// Node of each Pod that is in `objects`.
    places: HashMap<PodName, Arc<str>>,
    /// What the list under way has named so far.
    lists: BTreeMap<Kind, BTreeSet<Key>>,
    /// Kinds of which a whole list was seen.
    synced: BTreeSet<Kind>,
}

impl Index {
    /// An empty one; Weir itself runs in `own_namespace`.
    pub(crate) fn new(own_namespace: &str, observed: Arc<Observed>) -> Index {
        let objects = Objects {
            own_namespace: own_namespace.to_owned(),
            agents: Some(BTreeSet::new()),
            ..Objects::default()
        };
        Index {
            objects,
            observed,
            agents: BTreeMap::new(),
            places: HashMap::new(),
            lists: BTreeMap::new(),
            synced: BTreeSet::new(),
        }
    }

    /// Everything, as the model reads it.
    pub(crate) fn objects(&self) -> &Objects {
        &self.objects
    }

    /// The kinds of which no whole list was seen yet.
    pub(crate) fn missing(&self) -> Vec<Kind> {
        Kind::ALL
            .into_iter()
            .filter(|kind| !self.synced.contains(kind))
            .collect()
    }

    /// Takes one word of a watch in; true where it is news for the model. That
    /// only a status changed is not: it is Weir's own word.
    pub(crate) fn take(&mut self, change: Change) -> bool {
        match change {
            Change::Begin(kind) => {
                self.lists.insert(kind, BTreeSet::new());
                false
            }
            Change::Listed(object) => {
                if let Some(list) = self.lists.get_mut(&object.kind()) {
                    list.insert(object.key());
                }
                self.apply(object, true)
            }
            Change::Done(kind) => {
                let list = self.lists.remove(&kind).unwrap_or_default();
                let mut changed = self.synced.insert(kind);
                for key in self.keys(kind) {
                    if !list.contains(&key) {
                        changed |= self.delete(kind, &key);
                    }
                }
                changed
            }
            Change::Applied(object) => self.apply(object, false),
            Change::Deleted(object) => self.delete(object.kind(), &object.key()),
        }
    }

    fn keys(&self, kind: Kind) -> Vec<Key> {
        let refused = |own: OwnKind| {
            let of = self.objects.refused.keys().filter(move |id| id.kind == own);
            of.map(|id| (id.namespace.clone(), id.name.clone()))
        };
        match kind {
            Kind::Policies => {
                let good = self.objects.policies.keys().cloned();
                good.chain(refused(OwnKind::ResiliencePolicy)).collect()
            }
            Kind::Breakers => {
                let good = self.objects.breakers.keys().cloned();
                good.chain(refused(OwnKind::CircuitBreaker)).collect()
            }
            Kind::Services => self.objects.services.keys().cloned().collect(),
            Kind::Slices => self.objects.slices.keys().cloned().collect(),
            Kind::Namespaces => {
                let names = self.objects.namespaces.keys();
                names.map(|name| (String::new(), name.clone())).collect()
            }
            Kind::Pods => {
                let names = self.places.keys();
                let names = names.filter_map(|name| name.split_once('/'));
                names
                    .map(|(namespace, name)| (namespace.to_owned(), name.to_owned()))
                    .collect()
            }
            Kind::Nodes => {
                let names = self.objects.nodes.keys();
                names
                    .map(|name| (String::new(), name.to_string()))
                    .collect()
            }
        }
    }

    fn delete(&mut self, kind: Kind, key: &Key) -> bool {
        let objects = &mut self.objects;
        match kind {
            Kind::Policies => {
                self.observed.forget(Collection::ResiliencePolicies, key);
                let refused = remove(&mut objects.refused, &id(OwnKind::ResiliencePolicy, key));
                remove(&mut objects.policies, key) || refused
            }
            Kind::Breakers => {
                self.observed.forget(Collection::CircuitBreakers, key);
                let refused = remove(&mut objects.refused, &id(OwnKind::CircuitBreaker, key));
                remove(&mut objects.breakers, key) || refused
            }
            Kind::Services => remove(&mut objects.services, key),
            Kind::Slices => remove(&mut objects.slices, key),
            Kind::Namespaces => remove(&mut objects.namespaces, &key.1),
            Kind::Pods => {
                let counted = self.take_agent(key, None);
                self.take_pod(key, None) || counted
            }
            Kind::Nodes => remove(&mut objects.nodes, &Arc::from(&*key.1)),
        }
    }

    /// Whether it is news for the model.
    fn apply(&mut self, object: Object, listed: bool) -> bool {
        let key = object.key();
        match object {
            Object::Policy(object) => {
                self.observe(Collection::ResiliencePolicies, &key, &object, listed);
                let id = id(OwnKind::ResiliencePolicy, &key);
                let read = policy(&object).map(|policy| {
                    let about = about(&policy.metadata);
                    about.with(Arc::new(policy))
                });
                let Objects {
                    policies, refused, ..
                } = &mut self.objects;
                take(policies, refused, id, key, read, *object)
            }
            Object::Breaker(object) => {
                self.observe(Collection::CircuitBreakers, &key, &object, listed);
                let id = id(OwnKind::CircuitBreaker, &key);
                let read = breaker(&object).map(|breaker| {
                    let mut about = about(&breaker.metadata);
                    about.written = spec_written(&object.metadata).unwrap_or(about.first_seen);
                    about.with(Arc::new(breaker))
                });
                let Objects {
                    breakers, refused, ..
                } = &mut self.objects;
                take(breakers, refused, id, key, read, *object)
            }
            Object::Service(mut service) => {
                strip(&mut service.metadata);
                service.status = None;
                let about = about(&service.metadata);
                put(
                    &mut self.objects.services,
                    key,
                    about.with(Arc::from(service)),
                )
            }
            Object::Slice(mut slice) => {
                strip(&mut slice.metadata);
                let about = about(&slice.metadata);
                put(&mut self.objects.slices, key, about.with(Arc::from(slice)))
            }
            Object::Namespace(namespace) => {
                let labels = Arc::new(namespace.metadata.labels.unwrap_or_default());
                let before = self.objects.namespaces.get(&key.1);
                let changed = before != Some(&labels);
                if changed {
                    self.objects.namespaces.insert(key.1, labels);
                }
                changed
            }
            Object::Pod(written) => {
                let node = pods::agents_node(&written, &self.objects.own_namespace);
                let counted = self.take_agent(&key, node);
                self.take_pod(&key, pods::pod(&written)) || counted
            }
            Object::Node(written) => {
                let node = pods::node(&written);
                let name: Arc<str> = key.1.into();
                let changed = self.objects.nodes.get(&name).map(|old| &**old) != Some(&node);
                if changed {
                    self.objects.nodes.insert(name, Arc::new(node));
                }
                changed
            }
        }
    }

    /// The Pod is on this node and is like this, or is nowhere any more.
    fn take_pod(&mut self, (namespace, name): &Key, pod: Option<(&str, Pod)>) -> bool {
        let name: PodName = format!("{namespace}/{name}").into();
        let before = self.places.get_key_value(&name);
        let before = before.map(|(name, node)| (Arc::clone(name), Arc::clone(node)));
        let pods = &mut self.objects.pods;
        let mut changed = false;
        if let Some((name, node)) = &before
            && pod.as_ref().is_none_or(|(new, _)| **new != **node)
        {
            // One that was made again elsewhere.
            self.places.remove(name);
            if let Some(of_node) = pods.get_mut(node) {
                of_node.remove(name);
                if of_node.is_empty() {
                    pods.remove(node);
                }
            }
            changed = true;
        }
        let Some((node, pod)) = pod else {
            return changed;
        };
        let of_node = pods.get(node);
        let same = of_node
            .and_then(|of_node| of_node.get(&name))
            .is_some_and(|old| **old == pod);
        if same {
            return changed;
        }
        let node = match pods.get_key_value(node) {
            Some((node, _)) => Arc::clone(node),
            None => node.into(),
        };
        let name = before.map_or(name, |(name, _)| name);
        let of_node = pods.entry(Arc::clone(&node)).or_default();
        of_node.insert(Arc::clone(&name), Arc::new(pod));
        self.places.insert(name, node);
        true
    }

    /// The Pod is an agent of this node, or none.
    fn take_agent(&mut self, key: &Key, node: Option<&str>) -> bool {
        if self.agents.get(key).map(String::as_str) == node {
            return false;
        }
        match node {
            Some(node) => self.agents.insert(key.clone(), node.to_owned()),
            None => self.agents.remove(key),
        };
        let nodes = Some(self.agents.values().cloned().collect());
        let changed = self.objects.agents != nodes;
        self.objects.agents = nodes;
        changed
    }

    fn observe(&self, collection: Collection, key: &Key, object: &DynamicObject, listed: bool) {
        match listed {
            true => self.observed.see_listed(collection, key, live(object)),
            false => self.observed.see(collection, key, live(object)),
        }
    }
}

/// A policy or breaker that was read, or what is wrong with it.
fn take<T: PartialEq>(
    good: &mut Shared<Key, Sourced<Arc<T>>>,
    bad: &mut Shared<ObjectId, Refused>,
    id: ObjectId,
    key: Key,
    read: Result<Sourced<Arc<T>>, String>,
    written: DynamicObject,
) -> bool {
    match (read, good.contains_key(&key)) {
        (Ok(read), _) => {
            let was_bad = remove(bad, &id);
            put(good, key, read) || was_bad
        }
        // The last good version stays in force.
        (Err(problem), true) => {
            let problem = Some(Arc::from(problem));
            let good = good.get_mut(&key).filter(|good| good.problem != problem);
            good.map(|good| good.problem = problem).is_some()
        }
        (Err(problem), false) => {
            let refused = refused(written, &problem);
            let before = bad.insert(id, refused);
            before.is_none_or(|before| *before.problem != *problem)
        }
    }
}

/// Whether it was there. A map in which nothing changes is not copied.
fn remove<K: Ord + Clone, V: Clone>(map: &mut Shared<K, V>, key: &K) -> bool {
    map.contains_key(key) && map.remove(key).is_some()
}

/// Whether anything but a resource version changed.
fn put<T: PartialEq>(
    map: &mut Shared<Key, Sourced<Arc<T>>>,
    key: Key,
    new: Sourced<Arc<T>>,
) -> bool {
    let same = map.get(&key).is_some_and(|old| {
        old.object == new.object
            && old.generation == new.generation
            && old.written == new.written
            && old.problem == new.problem
    });
    // The model knows what it has seen by where it is.
    if !same {
        map.insert(key, new);
    }
    !same
}

fn id(kind: OwnKind, key: &Key) -> ObjectId {
    ObjectId {
        kind,
        namespace: key.0.clone(),
        name: key.1.clone(),
    }
}

fn policy(object: &DynamicObject) -> Result<ResiliencePolicy, String> {
    let spec: ResiliencePolicySpec = spec(object, weir_crds::Kind::ResiliencePolicy)?;
    if let Some(problem) = refusals(&spec).into_iter().next() {
        return Err(format!(
            "spec.{}: {}",
            problem.path.trim_start_matches("spec."),
            problem.message
        ));
    }
    let mut policy = ResiliencePolicy::new("", spec);
    policy.metadata = kept(&object.metadata);
    Ok(policy)
}

fn breaker(object: &DynamicObject) -> Result<CircuitBreakerObject, String> {
    let spec: CircuitBreakerSpec = match object.data.get("spec") {
        None | Some(Value::Null) => CircuitBreakerSpec::default(),
        Some(_) => spec(object, weir_crds::Kind::CircuitBreaker)?,
    };
    let mut breaker = CircuitBreakerObject::new("", spec);
    breaker.metadata = kept(&object.metadata);
    Ok(breaker)
}

/// The object was taken by some version of the schema, so that this is rare;
/// what is wrong is then told in the words of this one.
fn spec<T: DeserializeOwned>(object: &DynamicObject, kind: weir_crds::Kind) -> Result<T, String> {
    let spec = object.data.get("spec").cloned().unwrap_or(Value::Null);
    serde_json::from_value(spec).map_err(|error| {
        let whole = serde_json::to_value(object).unwrap_or_default();
        let problems = weir_crds::validate::validate(kind, &whole).err();
        match problems.as_deref().and_then(<[_]>::first) {
            Some(problem) => format!("{}: {}", problem.path, problem.message),
            None => format!("spec: {error}"),
        }
    })
}

fn refused(object: DynamicObject, problem: &str) -> Refused {
    let first_seen = about(&object.metadata).first_seen;
    let written = DynamicObject {
        metadata: kept(&object.metadata),
        ..object
    };
    Refused {
        written: serde_json::to_value(&written).unwrap_or_default(),
        first_seen,
        problem: problem.into(),
    }
}

/// The metadata without what is nobody's business here.
fn kept(metadata: &ObjectMeta) -> ObjectMeta {
    ObjectMeta {
        managed_fields: None,
        resource_version: None,
        owner_references: None,
        ..metadata.clone()
    }
}

/// What Weir itself writes comes back, and changes nothing for the model.
fn strip(metadata: &mut ObjectMeta) {
    metadata.managed_fields = None;
    metadata.resource_version = None;
    if let Some(annotations) = &mut metadata.annotations {
        annotations.retain(|name, _| name.starts_with(OUR_ANNOTATIONS) || name == TOPOLOGY);
    }
}

/// What its metadata says of an object.
fn about(metadata: &ObjectMeta) -> Sourced<()> {
    let created = metadata.creation_timestamp.as_ref();
    let created = created.map_or(Timestamp::UNIX_EPOCH, |time| moment(&time.0));
    Sourced {
        object: (),
        generation: metadata.generation.unwrap_or(1),
        origin: "API server".into(),
        first_seen: created,
        written: created,
        problem: None,
    }
}

/// When `spec` was written last: the server notes it for each writer, and keeps
/// the time of one that wrote nothing new. All replicas so tell the same time,
/// whenever they began to watch.
fn spec_written(metadata: &ObjectMeta) -> Option<Timestamp> {
    let writers = metadata.managed_fields.iter().flatten();
    let of_spec = writers.filter(|writer| {
        let fields = writer.fields_v1.as_ref();
        writer.subresource.is_none()
            && fields.is_some_and(|fields| fields.0.get("f:spec").is_some())
    });
    of_spec
        .filter_map(|writer| Some(moment(&writer.time.as_ref()?.0)))
        .max()
}

/// Times of the API server have whole seconds.
fn moment(at: &k8s_openapi::jiff::Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(Timestamp::UNIX_EPOCH)
}

#[cfg(test)]
#[path = "index_tests.rs"]
mod tests;
