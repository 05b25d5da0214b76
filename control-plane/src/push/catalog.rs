//! The resources as they are now, encoded once for everybody.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use weir_proto::v1alpha1 as proto;
use weir_proto::v1alpha1::ResourceKind;

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

/// A resource as it goes over the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Encoded {
    /// Hash of the body, 16 hexadecimal digits.
    pub(crate) version: Arc<str>,
    /// Features that an agent needs to enforce it.
    pub(crate) requires: Vec<String>,
    body: Bytes,
}

impl Encoded {
    /// Encodes `body`; equal bodies get equal versions.
    pub(crate) fn new(body: &impl Message, requires: Vec<String>) -> Encoded {
        let body = Bytes::from(body.encode_to_vec());
        Encoded {
            version: format!("{:016x}", xxhash_rust::xxh3::xxh3_64(&body)).into(),
            requires,
            body,
        }
    }

    /// The message for it; shares the body.
    pub(super) fn to_wire(&self, id: &ResourceId) -> proto::Resource {
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
    /// By id.
    pub(crate) resources: BTreeMap<ResourceId, Arc<Encoded>>,
    /// Some manifest cannot be read, and nobody knows what it asks for: what an
    /// agent holds from before this control plane started is left to it.
    pub(crate) partial: bool,
    /// While it is partial, what was there and is gone: that is known.
    pub(crate) removed: BTreeSet<ResourceId>,
}

impl Catalog {
    /// Whether an agent that holds the resource must drop it.
    pub(super) fn is_gone(&self, id: &ResourceId) -> bool {
        !self.resources.contains_key(id) && (!self.partial || self.removed.contains(id))
    }
}
