use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Timestamp;
use super::condition::Condition;

/// What people want of a breaker. Weir never writes it.
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
    kind = "CircuitBreaker",
    root = "CircuitBreakerObject",
    plural = "circuitbreakers",
    shortname = "cb",
    category = "weir",
    namespaced,
    status = "CircuitBreakerStatus",
    derive = "PartialEq",
    doc = "CircuitBreaker shows one circuit breaker that a ResiliencePolicy asks for, and lets people override it. Weir makes and removes these objects.",
    printcolumn(name = "Service", type_ = "string", json_path = ".status.service"),
    printcolumn(name = "State", type_ = "string", json_path = ".status.state"),
    printcolumn(name = "Nodes", type_ = "string", json_path = ".status.summary.nodes"),
    printcolumn(
        name = "Failed",
        type_ = "string",
        json_path = ".status.summary.failed"
    ),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.reason"),
    printcolumn(name = "Since", type_ = "date", json_path = ".status.since"),
    printcolumn(
        name = "Rate",
        type_ = "string",
        priority = 1,
        json_path = ".status.requestRate"
    ),
    printcolumn(
        name = "Rejected",
        type_ = "integer",
        priority = 1,
        json_path = ".status.rejectedTotal"
    ),
    printcolumn(
        name = "Shadow",
        type_ = "boolean",
        priority = 1,
        json_path = ".status.shadow"
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        priority = 1,
        json_path = ".status.message"
    )
)]
#[serde(rename_all = "camelCase", default)]
pub struct CircuitBreakerSpec {
    /// Holds the breaker open or closed for a while, whatever is measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub r#override: Option<Override>,
    /// A token of your choice, such as a date: a new value resets the breaker to
    /// Closed with an empty window, once. Up to 64 characters.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub reset: Option<String>,
}

/// A person's word over a breaker's own judgement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Override {
    /// Open: every request is refused. Closed: none is.
    pub state: OverrideState,
    /// Why, for those who meet it: at least 1, up to 256 characters.
    #[schemars(length(min = 1, max = 256))]
    pub reason: String,
    /// The end, at most 24 hours ahead, as in 2026-05-01T12:00:00Z. Beyond that, or
    /// past it, the override does nothing, and condition OverrideAccepted says so.
    pub expires_at: Timestamp,
}

/// The state that a breaker is held in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs, reason = "told once, at the field")]
pub enum OverrideState {
    Open,
    Closed,
}

/// The state of a breaker. Written by Weir.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct CircuitBreakerStatus {
    /// Accepted: a policy asks for this breaker. OverrideAccepted: the override is
    /// in force.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The Service, its port and the route, as far as the breaker is about them:
    /// payments:http/refunds.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 400))]
    pub service: Option<String>,
    /// The worst state of all nodes. Closed: requests pass. Open: they are refused.
    /// HalfOpen: a few try whether the destination is well again. ForcedOpen,
    /// ForcedClosed: an override holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<BreakerState>,
    /// Why it is in that state.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<ReasonText>")]
    pub reason: Option<String>,
    /// The same for people, with figures: 61% of 240 requests failed in 10s: 503
    /// ×146.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub message: Option<String>,
    /// Since when it has been in that state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// Numbers of nodes that send requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nodes: Option<NodeCounts>,
    /// Nodes on which it is not Closed, the worst first. Up to 20.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["node"]))]
    pub open_nodes: Vec<OpenNode>,
    /// Share of failures in the current windows of all nodes. Percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 100))]
    pub failure_percent: Option<u32>,
    /// Requests over all nodes: 12.4/s.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 24))]
    pub request_rate: Option<String>,
    /// Requests refused since the agents started.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub rejected_total: Option<i64>,
    /// Whether it only decides and counts (mode Shadow).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shadow: Option<bool>,
    /// The last value of spec.reset that was carried out.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub observed_reset: Option<String>,
    /// Texts for kubectl get.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub summary: Option<BreakerSummary>,
}

/// The state of a breaker, over all nodes or on one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs, reason = "told once, at the field")]
pub enum BreakerState {
    Closed,
    Open,
    HalfOpen,
    ForcedOpen,
    ForcedClosed,
}

impl BreakerState {
    /// As people read it.
    pub const fn as_str(self) -> &'static str {
        match self {
            BreakerState::Closed => "Closed",
            BreakerState::Open => "Open",
            BreakerState::HalfOpen => "HalfOpen",
            BreakerState::ForcedOpen => "ForcedOpen",
            BreakerState::ForcedClosed => "ForcedClosed",
        }
    }
}

/// Numbers of nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeCounts {
    /// All that send requests.
    pub total: u32,
    /// Those on which it is Open.
    pub open: u32,
    /// Those on which it is HalfOpen.
    pub half_open: u32,
}

/// A node on which a breaker is not Closed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OpenNode {
    /// Its name.
    #[schemars(length(max = 253))]
    pub node: String,
    /// The state there.
    pub state: BreakerState,
    /// Why.
    #[schemars(with = "ReasonText")]
    pub reason: String,
    /// Since when.
    pub since: Timestamp,
    /// Share of failures in the current window there. Percent.
    #[schemars(range(max = 100))]
    pub failure_percent: u32,
}

/// Texts for kubectl get: a column shows one value, and cannot put two together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct BreakerSummary {
    /// Nodes on which it is not Closed, of all that send requests: 9/12.
    #[schemars(length(max = 32))]
    pub nodes: String,
    /// failurePercent with its sign: 61%.
    #[schemars(length(max = 8))]
    pub failed: String,
}

/// One word, open to reasons that are yet to come: a newer control plane must be
/// able to write to an older schema.
struct ReasonText;

impl JsonSchema for ReasonText {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ReasonText".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "maxLength": 64 })
    }
}

/// Why a breaker is in its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BreakerReason {
    /// Too large a share of the requests failed.
    FailureRate,
    /// Too large a share of the requests was slow.
    SlowRequests,
    /// Too many failures in a row.
    ConsecutiveFailures,
    /// Enough other nodes have opened (sharing: Mesh).
    Quorum,
    /// A probe failed.
    ProbeFailed,
    /// Recovery took too long.
    ProbeTimeout,
    /// The time for staying open has passed.
    OpenElapsed,
    /// The probes succeeded.
    Recovered,
    /// A person's word.
    Override,
    /// A person's word has ended.
    OverrideEnded,
    /// A person reset it.
    Reset,
}

impl BreakerReason {
    /// As people read it.
    pub const fn as_str(self) -> &'static str {
        match self {
            BreakerReason::FailureRate => "FailureRate",
            BreakerReason::SlowRequests => "SlowRequests",
            BreakerReason::ConsecutiveFailures => "ConsecutiveFailures",
            BreakerReason::Quorum => "Quorum",
            BreakerReason::ProbeFailed => "ProbeFailed",
            BreakerReason::ProbeTimeout => "ProbeTimeout",
            BreakerReason::OpenElapsed => "OpenElapsed",
            BreakerReason::Recovered => "Recovered",
            BreakerReason::Override => "Override",
            BreakerReason::OverrideEnded => "OverrideEnded",
            BreakerReason::Reset => "Reset",
        }
    }
}
