use kube::core::Rule;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Duration;
use super::duration::off_or_within;
use super::text::HeaderName;

/// Which endpoint a try goes to. What is not set here stays with the Service's
/// own rules (trafficDistribution, internalTrafficPolicy, sessionAffinity,
/// terminating endpoints). Acts at the caller's node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [
    Rule::new("(has(self.policy) && self.policy == 'ConsistentHash') == has(self.consistentHash)")
        .message("policy ConsistentHash and consistentHash need each other: give both, or neither")
        .field_path(".consistentHash"),
]))]
pub struct LoadBalancing {
    /// LeastLatency: the faster of two endpoints drawn at random, by a moving
    /// average of latency that peaks count in at once. LeastRequests: the one of
    /// two with fewer requests in flight. RoundRobin: one after the other.
    /// ConsistentHash: the one that the value of a header belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<BalancingPolicy>,
    /// For ConsistentHash.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consistent_hash: Option<ConsistentHash>,
    /// The share of a new endpoint grows to its full share in this time. 1s to
    /// 1h; absent or 0s for off.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-validations" = off_or_within("1s", "1h")))]
    pub slow_start: Option<Duration>,
}

/// How an endpoint is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs, reason = "told once, at the field")]
pub enum BalancingPolicy {
    LeastLatency,
    LeastRequests,
    RoundRobin,
    ConsistentHash,
}

/// What is hashed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConsistentHash {
    /// Requests with the same value of this header go to the same endpoint while
    /// it is usable; those without it go anywhere.
    #[schemars(with = "HeaderName")]
    pub header: String,
}
