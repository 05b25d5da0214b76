use kube::core::Rule;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::duration::{off_or_within, within};
use super::text::Path;
use super::{Duration, GrpcCode, StatusCodes};

/// A destination that fails is left alone for a while. The breaker is Closed
/// while all is well, Open while every request is refused at once, and HalfOpen
/// while a few requests try whether the destination is well again. Given in a
/// route, it is that route's own breaker. For single endpoints there is
/// outlierDetection. Acts at the caller's node; each breaker is shown as a
/// CircuitBreaker object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [
    Rule::new("self.failurePercent > 0 || has(self.consecutiveFailures) || has(self.slowRequests)")
        .message("nothing can open this circuit breaker: give failurePercent above 0, consecutiveFailures or slowRequests"),
    Rule::new("self.window.type != 'Count' || self.minimumRequests <= self.window.requests")
        .message("a window that counts requests never holds minimumRequests (20 unless given): raise window.requests or lower minimumRequests")
        .field_path(".minimumRequests"),
]))]
pub struct CircuitBreaker {
    /// What the shares are taken over.
    pub window: Window,
    /// Requests that the window must hold before a share is judged. 1 to 100000.
    #[schemars(range(min = 1, max = 100_000))]
    pub minimum_requests: u32,
    /// Opens when this share of the window's requests failed. Percent, 1 to 100;
    /// 0 for not judged.
    #[schemars(range(max = 100))]
    pub failure_percent: u32,
    /// Opens after so many failures in a row, however few requests the window
    /// holds. 1 to 1000; absent for not judged.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub consecutive_failures: Option<u32>,
    /// Opens when too many requests are slow; absent for not judged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slow_requests: Option<SlowRequests>,
    /// What counts as a failure. What Weir refuses itself, and what a caller
    /// cancels, is neither failure nor success.
    pub failure_on: FailureOn,
    /// How long it stays open.
    pub open: OpenTime,
    /// How it comes back.
    pub half_open: HalfOpen,
    /// Whether nodes share what they see.
    pub sharing: Sharing,
}

impl Default for CircuitBreaker {
    fn default() -> CircuitBreaker {
        CircuitBreaker {
            window: Window::default(),
            minimum_requests: 20,
            failure_percent: 50,
            consecutive_failures: None,
            slow_requests: None,
            failure_on: FailureOn::default(),
            open: OpenTime::default(),
            half_open: HalfOpen::default(),
            sharing: Sharing::default(),
        }
    }
}

/// What shares are taken over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Window {
    /// Rolling: the last duration, at every moment. Fixed: one interval of
    /// duration after the other, counting anew in each. Count: the last requests
    /// (shared between the agent's threads, and so a little slower).
    pub r#type: WindowType,
    /// For Rolling and Fixed. 1s to 10m.
    #[schemars(extend("x-kubernetes-validations" = within("1s", "10m")))]
    pub duration: Duration,
    /// For Count. 10 to 10000.
    #[schemars(range(min = 10, max = 10_000))]
    pub requests: u32,
}

impl Default for Window {
    fn default() -> Window {
        Window {
            r#type: WindowType::Rolling,
            duration: Duration::secs(10),
            requests: 100,
        }
    }
}

/// The kind of a [`Window`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs, reason = "told once, at the field")]
pub enum WindowType {
    Rolling,
    Fixed,
    Count,
}

/// When requests are slow, and how many of them are too many.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SlowRequests {
    /// A request that takes longer is slow. 1ms to 1h.
    #[schemars(extend("x-kubernetes-validations" = within("1ms", "1h")))]
    pub threshold: Duration,
    /// Opens when this share of the window's requests was slow. Percent, 1 to
    /// 100.
    #[serde(default = "SlowRequests::default_percent")]
    #[schemars(range(min = 1, max = 100))]
    pub percent: u32,
}

impl SlowRequests {
    fn default_percent() -> u32 {
        50
    }
}

/// What counts as a failure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct FailureOn {
    /// HTTP status codes, 100 to 599, and ranges of them: [429, 500-599]. Up to
    /// 16.
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "atomic"))]
    pub status_codes: Vec<StatusCodes>,
    /// gRPC statuses.
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "set"))]
    pub grpc_codes: Vec<GrpcCode>,
    /// Tries that a timeout cut short.
    pub timeouts: bool,
    /// Connections that cannot be established, or that end before the response
    /// has.
    pub connection_failure: bool,
}

impl Default for FailureOn {
    fn default() -> FailureOn {
        FailureOn {
            status_codes: StatusCodes::trouble(),
            grpc_codes: vec![
                GrpcCode::Unavailable,
                GrpcCode::DeadlineExceeded,
                GrpcCode::Internal,
                GrpcCode::Unknown,
                GrpcCode::DataLoss,
                GrpcCode::ResourceExhausted,
            ],
            timeouts: true,
            connection_failure: true,
        }
    }
}

/// How long a breaker stays open: duration, doubled after each recovery that
/// failed, never longer than maxDuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [
    Rule::new("duration(self.duration) <= duration(self.maxDuration)")
        .message("duration must not be longer than maxDuration (1m unless given): shorten duration or lengthen maxDuration")
        .field_path(".duration"),
]))]
pub struct OpenTime {
    /// The first time. 100ms to 1h.
    #[schemars(extend("x-kubernetes-validations" = within("100ms", "1h")))]
    pub duration: Duration,
    /// The longest time. 100ms to 24h.
    #[schemars(extend("x-kubernetes-validations" = within("100ms", "24h")))]
    pub max_duration: Duration,
    /// Shortened or lengthened at random by up to this share, so that nodes do
    /// not come back together. Percent, 0 to 100.
    #[schemars(range(max = 100))]
    pub jitter_percent: u32,
    /// Whether it stays open at least as long as the Retry-After of the failure
    /// that opened it asks, up to maxDuration.
    pub honor_retry_after: bool,
}

impl Default for OpenTime {
    fn default() -> OpenTime {
        OpenTime {
            duration: Duration::secs(5),
            max_duration: Duration::secs(60),
            jitter_percent: 20,
            honor_retry_after: true,
        }
    }
}

/// How a breaker comes back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct HalfOpen {
    /// Requests that are let through at once, and successes in a row that close
    /// the breaker; one failure opens it again. 1 to 100.
    #[schemars(range(min = 1, max = 100))]
    pub probes: u32,
    /// A recovery that takes longer has failed. 100ms to 10m.
    #[schemars(extend("x-kubernetes-validations" = within("100ms", "10m")))]
    pub timeout: Duration,
    /// After closing, the share of requests let through grows to all in this
    /// time. 100ms to 10m, 0s for all at once.
    #[schemars(extend("x-kubernetes-validations" = off_or_within("100ms", "10m")))]
    pub ramp_up: Duration,
    /// Given, recovery is tried with requests of Weir's own before any user's
    /// request is risked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probe: Option<Probe>,
}

impl Default for HalfOpen {
    fn default() -> HalfOpen {
        HalfOpen {
            probes: 2,
            timeout: Duration::secs(10),
            ramp_up: Duration::secs(10),
            probe: None,
        }
    }
}

/// A request of Weir's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Probe {
    /// What is asked for with GET, such as /healthz. A 2xx or 3xx answer is a
    /// success.
    #[schemars(with = "Path")]
    pub path: String,
}

/// Whether nodes share what they see.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Sharing {
    /// Node: each node judges for itself. Mesh: the control plane adds up what all
    /// nodes count, so that thin traffic over many nodes can also open the
    /// breaker, and gives out the probes of halfOpen for all nodes together.
    /// Without the control plane Mesh is as Node.
    pub scope: SharingScope,
    /// For Mesh: opens everywhere when this share of the nodes that send requests
    /// have opened, and at least 2. Percent, 1 to 100.
    #[schemars(range(min = 1, max = 100))]
    pub quorum_percent: u32,
}

impl Default for Sharing {
    fn default() -> Sharing {
        Sharing {
            scope: SharingScope::Node,
            quorum_percent: 50,
        }
    }
}

/// Who judges together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs, reason = "told once, at the field")]
pub enum SharingScope {
    Node,
    Mesh,
}
