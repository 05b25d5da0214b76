use kube::core::Rule;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::duration::within;
use super::text::DnsLabel;
use super::{Callers, Duration, GrpcCode, Timestamp};

/// Chaos on purpose, at the place of the upstream, so that timeouts, retries and
/// breakers meet it as if it were real. The first fault in the list that a try
/// meets is the one that acts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    Rule::new("has(self.delay) || has(self.abort) || self.closeConnection")
        .message("this fault does nothing: give delay, abort or closeConnection: true"),
    Rule::new("!has(self.abort) || !self.closeConnection")
        .message("a try is either answered or cut off: give abort or closeConnection, not both")
        .field_path(".closeConnection"),
]))]
pub struct Fault {
    /// Unique in the list; a DNS label of up to 63 characters.
    #[schemars(with = "DnsLabel")]
    pub name: String,
    /// Share of the tries that meet it. Percent, 1 to 100.
    #[schemars(range(min = 1, max = 100))]
    pub percent: u32,
    /// Waits before the try goes on. 1ms to 5m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-validations" = within("1ms", "5m")))]
    pub delay: Option<Duration>,
    /// Answers in place of the destination.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub abort: Option<Abort>,
    /// Cuts the try off, as if the destination had closed its connection.
    #[serde(default)]
    pub close_connection: bool,
    /// Whose requests meet it; absent: all callers'.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Callers>,
    /// The end: past it the fault does nothing, and the policy's status says so.
    /// As in 2026-05-01T12:00:00Z.
    pub until: Timestamp,
}

/// An answer in place of the destination's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [
    Rule::new("has(self.status) != has(self.grpcCode)")
        .message("give either status (HTTP) or grpcCode (gRPC)"),
]))]
pub struct Abort {
    /// HTTP status code. 200 to 599.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 200, max = 599))]
    pub status: Option<u32>,
    /// gRPC status.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grpc_code: Option<GrpcCode>,
}
