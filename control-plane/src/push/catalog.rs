//! The resources as they are now, encoded once for everybody.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use weir_proto::v1alpha1 as proto;
use weir_proto::v1alpha1::ResourceKind;

use crate::sources::Shared;
use crate::sources::shared::differences;

/// Names one resource. Sorted by name first, so that a service and its
/// endpoints travel together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ResourceId {
    /// "namespace/service".
    pub(crate) name: Arc<str>,
    /// What its body is.
    pub(crate) kind: ResourceKind,
}

impl ResourceId {
    /// The service's own resource.
    pub(crate) fn service(namespace: &str, name: &str) -> ResourceId {
        ResourceId {
            name: format!("{namespace}/{name}").into(),
            kind: ResourceKind::Service,
        }
    }

    /// The resource of the service's endpoints.
    pub(crate) fn endpoints(namespace: &str, name: &str) -> ResourceId {
        ResourceId {
            name: format!("{namespace}/{name}").into(),
            kind: ResourceKind::Endpoints,
        }
    }

    /// `None` for a kind that this program does not know.
    pub(super) fn from_wire(kind: i32, name: &str) -> Option<ResourceId> {
        match ResourceKind::try_from(kind) {
            Ok(ResourceKind::Unspecified) | Err(_) => None,
            Ok(kind) => Some(ResourceId {
                name: name.into(),
                kind,
            }),
        }
    }
}

/// The feature of agents that know unready and terminating endpoints.
pub(super) const ENDPOINT_CONDITIONS: &str = "endpointConditions";
/// The feature of agents that capture.
pub(super) const CAPTURE: &str = "capture";

/// The resources of single nodes: Pods, and the node itself.
pub(crate) type OfNodes = Shared<Arc<str>, Shared<ResourceId, Arc<Encoded>>>;

/// A resource as it goes over the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Encoded {
    /// Hash of the body, 16 hexadecimal digits.
    pub(crate) version: Arc<str>,
    /// Features that an agent needs to enforce it.
    pub(crate) requires: Vec<String>,
    body: Bytes,
    /// What agents without the feature [`ENDPOINT_CONDITIONS`] get in its place.
    plain: Option<Arc<Encoded>>,
}

impl Encoded {
    /// Encodes `body`; equal bodies get equal versions.
    pub(crate) fn new(body: &impl Message, requires: Vec<String>) -> Encoded {
        let body = Bytes::from(body.encode_to_vec());
        Encoded {
            version: format!("{:016x}", xxhash_rust::xxh3::xxh3_64(&body)).into(),
            requires,
            body,
            plain: None,
        }
    }

    /// The endpoints of a service. An agent that does not know what an endpoint is
    /// good for gets those alone that are good for everybody, as ever.
    pub(crate) fn endpoints(body: &proto::Endpoints) -> Encoded {
        let is_plain = |endpoint: &proto::Endpoint| !endpoint.unready && !endpoint.terminating;
        let of_ports = || body.ports.iter().flat_map(|port| &port.endpoints);
        let mut encoded = Encoded::new(body, Vec::new());
        if !of_ports().all(is_plain) {
            let mut plain = body.clone();
            for port in &mut plain.ports {
                port.endpoints.retain(is_plain);
            }
            encoded.plain = Some(Arc::new(Encoded::new(&plain, Vec::new())));
        }
        encoded
    }

    /// The message for it; shares the body.
    pub(crate) fn to_wire(&self, id: &ResourceId) -> proto::Resource {
        proto::Resource {
            kind: id.kind.into(),
            name: id.name.to_string(),
            version: self.version.to_string(),
            requires: self.requires.clone(),
            body: self.body.clone(),
        }
    }
}

/// All resources that agents should hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Catalog {
    /// Those of everybody, by id.
    pub(crate) resources: BTreeMap<ResourceId, Arc<Encoded>>,
    /// And those of single nodes besides.
    pub(crate) nodes: OfNodes,
    /// Some manifest cannot be read, and nobody knows what it asks for: what an
    /// agent holds from before this control plane started is left to it.
    pub(crate) partial: bool,
    /// While it is partial, what was there and is gone: that is known.
    pub(crate) removed: BTreeSet<ResourceId>,
}

/// What of the catalog one agent is to hold, by its hello.
#[derive(Clone, Debug, Default)]
pub(super) struct Share {
    /// The node whose own resources it gets; none where it does not capture.
    node: Option<Arc<str>>,
    /// Whether it knows what an endpoint is good for.
    conditions: bool,
}

impl Share {
    pub(super) fn of(hello: &proto::Hello) -> Share {
        let has = |feature| hello.features.iter().any(|word| word == feature);
        Share {
            node: has(CAPTURE).then(|| hello.node.as_str().into()),
            conditions: has(ENDPOINT_CONDITIONS),
        }
    }

    /// Whether the agent captures.
    pub(super) fn captures(&self) -> bool {
        self.node.is_some()
    }

    /// The resource, as the agent is to hold it.
    pub(super) fn get<'c>(&self, catalog: &'c Catalog, id: &ResourceId) -> Option<&'c Encoded> {
        let resource = match id.kind {
            ResourceKind::Pod | ResourceKind::Node => self.own(catalog)?.get(id)?,
            _ => catalog.resources.get(id)?,
        };
        match &resource.plain {
            Some(plain) if !self.conditions => Some(plain),
            _ => Some(resource),
        }
    }

    /// Whether an agent that holds the resource must drop it.
    pub(super) fn is_gone(&self, catalog: &Catalog, id: &ResourceId) -> bool {
        let is_known = !catalog.partial || catalog.removed.contains(id);
        self.get(catalog, id).is_none() && is_known
    }

    /// In what the two differ, as far as the agent is concerned.
    pub(super) fn differences(&self, before: &Catalog, now: &Catalog) -> Vec<ResourceId> {
        let shared = differences(&before.resources, &now.resources, Arc::ptr_eq);
        let mut different: Vec<_> = shared.into_iter().map(|(id, _, _)| id.clone()).collect();
        let none = Shared::default();
        let own = |of| self.own(of).unwrap_or(&none);
        let own = own(before).differences(own(now), Arc::ptr_eq);
        different.extend(own.into_iter().map(|(id, _, _)| id.clone()));
        different
    }

    fn own<'c>(&self, catalog: &'c Catalog) -> Option<&'c Shared<ResourceId, Arc<Encoded>>> {
        catalog.nodes.get(self.node.as_ref()?)
    }
}
