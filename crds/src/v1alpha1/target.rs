use kube::core::Rule;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::text::{DnsLabel, DnsName};

/// What a policy is about (GEP-713).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    Rule::new("self.group == '' || self.kind in ['Host', 'Mesh']")
        .message("Service and Namespace are kinds of the core group: leave group out")
        .field_path(".group"),
    Rule::new("(self.kind == 'Mesh') != has(self.name)")
        .message("kinds Service, Host and Namespace need name; kind Mesh has none")
        .field_path(".name"),
    Rule::new("self.kind == 'Host' || !has(self.name) || (size(self.name) <= 63 && !self.name.contains('.'))")
        .message("name of a Service or Namespace has up to 63 characters and no dot; for a host outside the cluster write kind: Host, for a Service of another namespace write its namespace apart")
        .field_path(".name"),
    Rule::new("!has(self.__namespace__) || self.kind == 'Service'")
        .message("only kind Service takes a namespace: leave it out")
        .field_path(".namespace"),
    Rule::new("!has(self.sectionName) || self.kind in ['Service', 'Host']")
        .message("only kinds Service (name of a port) and Host (number of a port) take a sectionName: leave it out")
        .field_path(".sectionName"),
    Rule::new("!has(self.sectionName) || self.kind != 'Host' || self.sectionName.matches('^([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])$')")
        .message("sectionName of a Host is the number of a port from 1 to 65535, as text: '443'")
        .field_path(".sectionName"),
    Rule::new("!has(self.sectionName) || self.kind != 'Service' || self.sectionName.matches('[a-z]')")
        .message("sectionName of a Service is the name of a port, such as http, not its number")
        .field_path(".sectionName"),
]))]
pub struct TargetRef {
    /// API group of kind: empty for Service and Namespace, empty or weir.dev for
    /// Host and Mesh.
    #[serde(default)]
    pub group: TargetGroup,
    /// Service: a Service. Host: a destination outside the cluster. Namespace: the
    /// default for every Service of the policy's own namespace. Mesh: the default
    /// for all namespaces labelled weir.dev/mesh-policy: enabled; only in Weir's
    /// own namespace. It is never for kube-system, Weir's own namespace or the
    /// Service default/kubernetes, nor for a Service that has
    /// weir.dev/mesh-policy: disabled as its label or annotation: write that at
    /// the Services of webhooks.
    pub kind: TargetKind,
    /// Name of the Service or Namespace, or of the host, such as api.example.com.
    /// Not with Mesh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<DnsName>")]
    pub name: Option<String>,
    /// Namespace of the Service, if it is not the policy's own. The policy is then
    /// a consumer's: it is about calls from the policy's own namespace only, may
    /// hold only sections that act at the caller's node, and for these calls wins
    /// over the policy of the Service's owner, also over its routes. What it leaves
    /// out is the owner's. Its breakers are in the policy's namespace, under
    /// calls.to.NAMESPACE.SERVICE.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<DnsLabel>")]
    pub namespace: Option<String>,
    /// Name of a port of the Service, or number of a port of the host, as text.
    /// Absent: all ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<DnsLabel>")]
    pub section_name: Option<String>,
}

/// API group of a target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum TargetGroup {
    /// Kubernetes' own kinds, and the short form for Weir's.
    #[default]
    #[serde(rename = "")]
    Core,
    /// Weir's.
    #[serde(rename = "weir.dev")]
    Weir,
}

/// Kind of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs, reason = "told once, at the field")]
pub enum TargetKind {
    Service,
    Host,
    Namespace,
    Mesh,
}
