//! Which Services the policies for the whole mesh are about.
//!
//! Such a policy is written by those who run the cluster, for Services that
//! they may not know. So a namespace has to ask for it by its label, and what a
//! cluster cannot do without is left alone even then: DNS and everything else in
//! `kube-system`, the API server's own Service, and Weir itself. Which Services
//! webhooks are behind stands in objects that Weir may not read; their owners
//! keep them out by the same word, at the Service.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Service;

use crate::sources::{Key, Objects};

/// Label of a namespace, `enabled` or not; label or annotation of a Service,
/// where `disabled` keeps it out.
pub(super) const MESH_POLICY: &str = "weir.dev/mesh-policy";

/// Where the cluster's own Services are.
const SYSTEM: &str = "kube-system";

/// Whether policies for the whole mesh are a default in `namespace`.
pub(super) fn covers_namespace(objects: &Objects, namespace: &str) -> bool {
    namespace != SYSTEM
        && namespace != objects.own_namespace
        && objects
            .namespaces
            .get(namespace)
            .and_then(|labels| labels.get(MESH_POLICY))
            .is_some_and(|word| word == "enabled")
}

/// Whether they are for the Service `key`.
pub(super) fn covers(objects: &Objects, key: &Key) -> bool {
    let api_server = key.0 == "default" && key.1 == "kubernetes";
    !api_server
        && covers_namespace(objects, &key.0)
        && objects
            .services
            .get(key)
            .is_none_or(|service| !is_kept_out(&service.object))
}

/// Charts often let people set only one of the two.
fn is_kept_out(service: &Service) -> bool {
    let says_so = |words: Option<&BTreeMap<String, String>>| {
        words
            .and_then(|words| words.get(MESH_POLICY))
            .is_some_and(|word| word == "disabled")
    };
    says_so(service.metadata.labels.as_ref()) || says_so(service.metadata.annotations.as_ref())
}
