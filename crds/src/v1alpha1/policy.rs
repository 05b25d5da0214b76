use kube::CustomResource;
use kube::core::Rule;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ResiliencePolicyStatus, Route, Section, Sections, TargetRef};

/// What Weir does for the calls to a destination. A section that is absent
/// changes nothing; within a section every field has a safe default, so that
/// retries: {} is a good policy.
///
/// Sections are merged one by one: the consumer's policy wins over that of a
/// Service's port, then of the Service, of the Namespace and of the Mesh. Where two
/// policies of the same rank hold the same section, the older one wins, then the
/// name; status says which.
#[derive(
    Clone, Debug, Default, PartialEq, Eq, CustomResource, Serialize, Deserialize, JsonSchema,
)]
#[allow(
    clippy::duplicated_attributes,
    reason = "each printer column has its own priority"
)]
#[kube(
    group = "weir.dev",
    version = "v1alpha1",
    kind = "ResiliencePolicy",
    plural = "resiliencepolicies",
    shortname = "rp",
    category = "weir",
    namespaced,
    status = "ResiliencePolicyStatus",
    derive = "PartialEq",
    doc = "ResiliencePolicy says what Weir does for the calls to a Service, a host outside the cluster, or every Service of a namespace or mesh.",
    printcolumn(
        name = "Targets",
        type_ = "string",
        json_path = ".status.summary.targets"
    ),
    printcolumn(name = "Mode", type_ = "string", json_path = ".spec.mode"),
    printcolumn(
        name = "Programmed",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Programmed")].status"#
    ),
    printcolumn(
        name = "Agents",
        type_ = "string",
        json_path = ".status.summary.agents"
    ),
    printcolumn(name = "Open", type_ = "integer", json_path = ".status.breakers.open"),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        priority = 1,
        json_path = r#".status.conditions[?(@.type=="Programmed")].reason"#
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        priority = 1,
        json_path = r#".status.conditions[?(@.type=="Programmed")].message"#
    )
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    Rule::new("self.targetRefs.all(a, self.targetRefs.exists_one(b, b == a))")
        .message("each target once: remove the one that is there twice")
        .field_path(".targetRefs"),
    Rule::new("self.strategy == 'Defaults' || self.targetRefs.all(t, t.kind in ['Namespace', 'Mesh'])")
        .message("strategy Overrides is for policies whose targets are all of kind Namespace or Mesh: leave strategy out, or give it a policy of its own")
        .field_path(".strategy"),
    Rule::new("!has(self.routes) || size(self.routes) == 0 || self.targetRefs.all(t, t.kind in ['Service', 'Host'])")
        .message("routes are of one Service or Host: remove routes, or target the Service itself")
        .field_path(".routes"),
    Rule::new("self.targetRefs.all(t, t.kind != 'Host' && !has(t.__namespace__)) || (!has(self.loadShedding) && !has(self.rateLimit) && !has(self.idempotency))")
        .message("loadShedding, rateLimit and idempotency act at the destination, and are its owner's: for a Host or another namespace's Service leave them out; a Service of the policy's own namespace is written without namespace")
        .field_path(".targetRefs"),
    Rule::new("self.targetRefs.all(t, t.kind != 'Host' && !has(t.__namespace__)) || !has(self.bulkheads) || self.bulkheads.all(b, b.at == 'Caller')")
        .message("for a Host or another namespace's Service a bulkhead can only be at the caller: write at: Caller; a Service of the policy's own namespace is written without namespace")
        .field_path(".bulkheads"),
    Rule::new("self.targetRefs.all(t, t.kind != 'Host' && !has(t.__namespace__)) || !has(self.routes) || self.routes.all(r, !has(r.rateLimit) && !has(r.idempotency) && (!has(r.bulkheads) || r.bulkheads.all(b, b.at == 'Caller')))")
        .message("for a Host or another namespace's Service routes can only hold sections that act at the caller: leave out rateLimit and idempotency, and write at: Caller in bulkheads")
        .field_path(".routes"),
    Rule::new("!has(self.disabled) || !((has(self.timeouts) && 'timeouts' in self.disabled) || (has(self.deadline) && 'deadline' in self.disabled) || (has(self.retries) && 'retries' in self.disabled) || (has(self.hedging) && 'hedging' in self.disabled) || (has(self.circuitBreaker) && 'circuitBreaker' in self.disabled) || (has(self.outlierDetection) && 'outlierDetection' in self.disabled) || (has(self.loadBalancing) && 'loadBalancing' in self.disabled) || (has(self.connections) && 'connections' in self.disabled) || (has(self.loadShedding) && 'loadShedding' in self.disabled) || (has(self.bulkheads) && 'bulkheads' in self.disabled) || (has(self.rateLimit) && 'rateLimit' in self.disabled) || (has(self.idempotency) && 'idempotency' in self.disabled) || (has(self.fallback) && 'fallback' in self.disabled) || (has(self.faults) && 'faults' in self.disabled))")
        .message("a section is either given or disabled: remove it from one of the two")
        .field_path(".disabled"),
]))]
pub struct ResiliencePolicySpec {
    /// What the policy is about. 1 to 16.
    #[schemars(length(min = 1, max = 16), extend("x-kubernetes-list-type" = "atomic"))]
    pub target_refs: Vec<TargetRef>,
    /// Defaults: what is nearer to a destination wins over a policy for a Namespace
    /// or the Mesh. Overrides: this policy wins over everything below it, also over
    /// a consumer's policy and over routes, and the Mesh's over a Namespace's; only
    /// for targets of kind Namespace and Mesh.
    #[serde(default)]
    pub strategy: Strategy,
    /// Enforce: sections act. Shadow: they only decide and count (metric
    /// weir_shadow_decisions_total); the states of breakers move and are shown,
    /// marked, and no request is changed or delayed.
    #[serde(default)]
    pub mode: Mode,
    /// Sections that are in mode Shadow though the policy is not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 14), extend("x-kubernetes-list-type" = "set"))]
    pub shadow: Vec<Section>,
    /// Sections that the target would inherit from a policy for its Namespace or the
    /// Mesh, and shall not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 14), extend("x-kubernetes-list-type" = "set"))]
    pub disabled: Vec<Section>,
    /// Parts of the target's requests with sections of their own. The first in the
    /// list that matches a request counts. Up to 16; only with targets of kind
    /// Service and Host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub routes: Vec<Route>,
    /// What is done.
    #[serde(flatten)]
    pub sections: Sections,
}

/// Which policy wins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs, reason = "told once, at the field")]
pub enum Strategy {
    #[default]
    Defaults,
    Overrides,
}

/// Whether sections act.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs, reason = "told once, at the field")]
pub enum Mode {
    #[default]
    Enforce,
    Shadow,
}
