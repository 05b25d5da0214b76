use kube::core::Rule;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Duration;
use super::duration::within;
use super::text::{DnsLabel, HeaderName, LevelName, NamespacedName};

/// A pod is not given more than it can do, and what is refused is refused early
/// and cheaply. Acts at the destination's node, for each pod; not in routes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [
    Rule::new("has(self.concurrency) || has(self.cpu) || has(self.pressure)")
        .message("nothing says when a pod is overloaded: give concurrency, cpu or pressure; for a limit that finds itself, write concurrency: {adaptive: {}}"),
    Rule::new("has(self.concurrency) || !has(self.queue)")
        .message("a queue is in front of a limit: give concurrency too, such as concurrency: {adaptive: {}}")
        .field_path(".queue"),
    Rule::new("has(self.concurrency) || !has(self.fairness)")
        .message("fairness shares out a limit: give concurrency too, such as concurrency: {adaptive: {}}")
        .field_path(".fairness"),
]))]
pub struct LoadShedding {
    /// Limits the requests that are in a pod at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<Concurrency>,
    /// Refuses requests while the pod's CPU is nearly used up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<CpuShedding>,
    /// Refuses requests while the pod's tasks have to wait for CPU or memory
    /// (the kernel's pressure stall information).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pressure: Option<PressureShedding>,
    /// Requests above the limit may wait a little.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue: Option<SheddingQueue>,
    /// Less important requests are refused first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<Priority>,
    /// While there is not enough for all callers of one level of priority, it is
    /// shared so that nobody gets more before everybody has got as much
    /// (max-min): one flood does not starve the rest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fairness: Option<Fairness>,
}

/// How many requests are in a pod at once: a number, or one that finds itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [
    Rule::new("has(self.max) != has(self.adaptive)")
        .message("give either max (a fixed limit) or adaptive (a limit that finds itself, write adaptive: {}; its upper end is adaptive.max)"),
]))]
pub struct Concurrency {
    /// A fixed limit. 1 to 100000.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub max: Option<u32>,
    /// A limit that finds itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adaptive: Option<AdaptiveConcurrency>,
}

/// A limit that finds itself. It starts at max.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [
    Rule::new("self.min <= self.max")
        .message("min must not be above max (1000 unless given): lower min or raise max")
        .field_path(".min"),
]))]
pub struct AdaptiveConcurrency {
    /// Deadline: shrinks when the time in the pod exceeds what the caller has
    /// left, grows while at least half of it is used, and is never lowered only
    /// to measure. Gradient, Vegas: follow the growth of latency. AIMD: grows by
    /// one, shrinks by a share on failure.
    pub algorithm: ConcurrencyAlgorithm,
    /// Never lower. 1 to 100000.
    #[schemars(range(min = 1, max = 100_000))]
    pub min: u32,
    /// Never higher. 1 to 100000.
    #[schemars(range(min = 1, max = 100_000))]
    pub max: u32,
}

impl Default for AdaptiveConcurrency {
    fn default() -> AdaptiveConcurrency {
        AdaptiveConcurrency {
            algorithm: ConcurrencyAlgorithm::Deadline,
            min: 1,
            max: 1000,
        }
    }
}

/// How an adaptive limit moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs, reason = "told once, at the field")]
pub enum ConcurrencyAlgorithm {
    Deadline,
    Gradient,
    Vegas,
    #[serde(rename = "AIMD")]
    Aimd,
}

/// Refusal by use of CPU: the share refused grows evenly from none at
/// thresholdPercent to maxDropPercent at 100 %.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct CpuShedding {
    /// Pod: the pod's use of its own CPU limit; of the node's where it has none.
    /// Node: the node's use.
    pub source: CpuSource,
    /// Use from which on requests are refused. Percent, 1 to 99.
    #[schemars(range(min = 1, max = 99))]
    pub threshold_percent: u32,
    /// The largest share of requests that is refused. Percent, 1 to 100.
    #[schemars(range(min = 1, max = 100))]
    pub max_drop_percent: u32,
}

impl Default for CpuShedding {
    fn default() -> CpuShedding {
        CpuShedding {
            source: CpuSource::Pod,
            threshold_percent: 80,
            max_drop_percent: 90,
        }
    }
}

/// Whose use of CPU counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs, reason = "told once, at the field")]
pub enum CpuSource {
    Pod,
    Node,
}

/// Refusal by pressure: the share refused grows evenly from none at somePercent
/// to 90 % where some task waits all the time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PressureShedding {
    /// Share of time in which some task of the pod waits for CPU or memory, from
    /// which on requests are refused. Percent, 1 to 100.
    #[schemars(range(min = 1, max = 100))]
    pub some_percent: u32,
}

/// Where requests above the limit wait: in order, or newest first while a queue
/// stands; those that have expired are dropped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct SheddingQueue {
    /// Requests that wait at once. 1 to 100000; absent: as many as the limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub max_depth: Option<u32>,
    /// The longest wait. 1ms to 1m.
    #[schemars(extend("x-kubernetes-validations" = within("1ms", "1m")))]
    pub max_wait: Duration,
}

impl Default for SheddingQueue {
    fn default() -> SheddingQueue {
        SheddingQueue {
            max_depth: None,
            max_wait: Duration::millis(50),
        }
    }
}

/// Which requests are refused first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [
    Rule::new("self.default in self.levels")
        .message("default must be one of levels (Critical, High, Normal, Sheddable unless given)")
        .field_path(".default"),
]))]
pub struct Priority {
    /// Header that names a request's level.
    #[schemars(with = "HeaderName")]
    pub header: String,
    /// Levels, the most important first. 1 to 8.
    #[schemars(with = "Vec<LevelName>", length(min = 1, max = 8), extend("x-kubernetes-list-type" = "set"))]
    pub levels: Vec<String>,
    /// The level of requests that name none, and the highest that callers get who
    /// are not trusted.
    #[schemars(with = "LevelName")]
    pub default: String,
    /// Which callers are believed about their level. Without Kubernetes callers
    /// have no identity, and all are.
    pub trust: Trust,
}

impl Default for Priority {
    fn default() -> Priority {
        Priority {
            header: "x-request-priority".to_owned(),
            levels: ["Critical", "High", "Normal", "Sheddable"]
                .map(str::to_owned)
                .to_vec(),
            default: "Normal".to_owned(),
            trust: Trust::default(),
        }
    }
}

/// Which callers are believed: those that are in either list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Trust {
    /// Namespaces of callers. Up to 32; absent: the Service's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Vec<DnsLabel>>", length(max = 32), extend("x-kubernetes-list-type" = "set"))]
    pub namespaces: Option<Vec<String>>,
    /// ServiceAccounts of callers, each as namespace/name. Up to 32.
    #[schemars(with = "Vec<NamespacedName>", length(max = 32), extend("x-kubernetes-list-type" = "set"))]
    pub service_accounts: Vec<String>,
}

/// Between whom a limit is shared.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [
    Rule::new("(self.by == 'Header') == has(self.header)")
        .message("by: Header and header need each other: give both, or neither")
        .field_path(".header"),
]))]
pub struct Fairness {
    /// Caller: between the workloads that call. Header: between the values of a
    /// header.
    pub by: FairnessKey,
    /// For by: Header.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<HeaderName>")]
    pub header: Option<String>,
}

/// What tells callers apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs, reason = "told once, at the field")]
pub enum FairnessKey {
    #[default]
    Caller,
    Header,
}
