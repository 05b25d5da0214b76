use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::condition::Condition;
use super::{Duration, Mode, Section, TargetRef};

/// What became of a policy. Written by Weir.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ResiliencePolicyStatus {
    /// Accepted: the policy is valid. ResolvedRefs: what it refers to exists.
    /// Programmed: every node in scope enforces this generation. Covered: all pods
    /// and connections in scope are protected. Effective: every section can act.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The nodes in scope.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agents: Option<AgentCounts>,
    /// Agents that refused the policy. Up to 10.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["node"]))]
    pub rejections: Vec<Rejection>,
    /// Each of spec.targetRefs, in that order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "atomic"))]
    pub targets: Vec<TargetStatus>,
    /// The circuit breakers that this policy asks for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub breakers: Option<BreakerCounts>,
    /// Texts for kubectl get.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub summary: Option<PolicySummary>,
}

/// Numbers of nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AgentCounts {
    /// Nodes in scope that have an agent.
    pub expected: u32,
    /// Of these, those that enforce this generation.
    pub programmed: u32,
    /// Of these, those that refused it.
    pub rejected: u32,
    /// Of these, those that are away.
    pub unreachable: u32,
}

/// An agent's refusal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Rejection {
    /// Name of its node.
    #[schemars(length(max = 253))]
    pub node: String,
    /// For people: what is the matter, and what to do.
    #[schemars(length(max = 1024))]
    pub message: String,
}

/// What became of a policy at one target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TargetStatus {
    /// The target, as in spec.
    #[schemars(transform = without_rules)]
    pub target_ref: TargetRef,
    /// Accepted (another policy may win sections here) and ResolvedRefs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The sections in force at the target, whichever policy they came from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 14), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["section"]))]
    pub sections: Vec<EffectiveSection>,
    /// The limit in force where timeouts.adaptive is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adaptive_timeout: Option<AdaptiveTimeoutStatus>,
}

/// A section in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EffectiveSection {
    /// Which.
    pub section: Section,
    /// The policy that it came from, as namespace/name.
    #[schemars(length(max = 317))]
    pub from: String,
    /// The mode that it came with.
    pub mode: Mode,
}

/// A learnt limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AdaptiveTimeoutStatus {
    /// The limit for each try.
    pub per_try: Duration,
    /// The quantile of latency that it stands for, such as 99.98%.
    #[schemars(length(max = 16))]
    pub quantile: String,
    /// Whether there were too few samples to measure that quantile, so that it
    /// was estimated.
    #[serde(default)]
    pub estimated: bool,
}

/// Numbers of circuit breakers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct BreakerCounts {
    /// Those that are Closed.
    pub closed: u32,
    /// Those that are Open.
    pub open: u32,
    /// Those that are HalfOpen.
    pub half_open: u32,
}

/// Texts for kubectl get: a column shows one value, and cannot put two together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicySummary {
    /// The first target, and how many more: Service/payments +2.
    #[schemars(length(max = 512))]
    pub targets: String,
    /// Agents that enforce this generation, of those expected: 11/12.
    #[schemars(length(max = 32))]
    pub agents: String,
}

/// Weir writes what people wrote: its own rules need not be checked again.
fn without_rules(schema: &mut schemars::Schema) {
    schema.remove("x-kubernetes-validations");
}
