use kube::core::Rule;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::duration::off_or_within;
use super::text::DnsLabel;
use super::{Callers, Duration};

/// A partition: so many requests at once and no more, so that one caller cannot
/// take all of a destination, or one slow destination all of a caller. The first
/// bulkhead in the list that a request belongs to is the one that counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    Rule::new("(self.maxQueue > 0) == (duration(self.maxWait) > duration('0s'))")
        .message("maxQueue and maxWait need each other: give both above 0, or neither")
        .field_path(".maxWait"),
    Rule::new("self.at == 'Destination' || !has(self.from) || (!has(self.from.namespaces) && !has(self.from.serviceAccounts) && !has(self.from.workloads))")
        .message("at the caller there is only one caller: leave out from.namespaces, from.serviceAccounts and from.workloads, or write at: Destination")
        .field_path(".from"),
    Rule::new("self.name != 'default' || !has(self.from)")
        .message("the bulkhead named default is for callers that match no other: leave out from, or choose another name")
        .field_path(".from"),
]))]
pub struct Bulkhead {
    /// Unique in the list; a DNS label of up to 63 characters. The one named
    /// default takes the requests that belong to no other.
    #[schemars(with = "DnsLabel")]
    pub name: String,
    /// Destination: counts the requests in one destination pod. Caller: counts the
    /// requests that one caller's pod has under way.
    #[serde(default)]
    pub at: BulkheadSide,
    /// Which requests belong to it; absent: all. At the caller only headers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Callers>,
    /// Requests at once. 1 to 100000.
    #[schemars(range(min = 1, max = 100_000))]
    pub max_concurrent: u32,
    /// Requests that may wait for a place; further ones are refused. 0 to 100000.
    #[serde(default)]
    #[schemars(range(max = 100_000))]
    pub max_queue: u32,
    /// How long they may wait. 1ms to 1m; 0s for not at all.
    #[serde(default)]
    #[schemars(extend("x-kubernetes-validations" = off_or_within("1ms", "1m")))]
    pub max_wait: Duration,
}

/// Where requests are counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs, reason = "told once, at the field")]
pub enum BulkheadSide {
    #[default]
    Destination,
    Caller,
}
