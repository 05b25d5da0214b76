use kube::core::Rule;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Duration;
use super::duration::{off_or_within, within};

/// No request hangs, and abandoned work is cancelled: when a timeout passes,
/// the upstream stream is reset (HTTP/2) or its connection closed (HTTP/1.1)
/// at once. Acts at the caller's node.
///
/// Once a response has become a stream (101 Switching Protocols,
/// text/event-stream, the first message of a streaming gRPC answer), request
/// and perTry have done their work: only idle and maxStream hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [
    Rule::new("!has(self.perTry) || duration(self.request) == duration('0s') || duration(self.perTry) <= duration(self.request)")
        .message("perTry must not be longer than request (15s unless given): shorten perTry or lengthen request")
        .field_path(".perTry"),
    Rule::new("!has(self.adaptive) || has(self.adaptive.max) || (has(self.perTry) && duration(self.perTry) > duration('0s')) || duration(self.request) > duration('0s')")
        .message("adaptive needs an upper limit: give adaptive.max, perTry or request")
        .field_path(".adaptive"),
    Rule::new("!has(self.adaptive) || has(self.adaptive.max) || (has(self.perTry) && duration(self.perTry) > duration('0s') ? duration(self.adaptive.min) <= duration(self.perTry) : duration(self.request) == duration('0s') || duration(self.adaptive.min) <= duration(self.request))")
        .message("adaptive.min must not be longer than what limits it from above (perTry, else request): shorten adaptive.min")
        .field_path(".adaptive.min"),
    Rule::new("!has(self.adaptive) || !has(self.adaptive.max) || duration(self.request) == duration('0s') || duration(self.adaptive.max) <= duration(self.request)")
        .message("adaptive.max must not be longer than request (15s unless given): shorten adaptive.max or lengthen request")
        .field_path(".adaptive.max"),
]))]
pub struct Timeouts {
    /// Limit over all tries of a request, from its head to the end of its
    /// response; then the caller gets 504 or DEADLINE_EXCEEDED. 1ms to 24h,
    /// 0s for off.
    #[schemars(extend("x-kubernetes-validations" = off_or_within("1ms", "24h")))]
    pub request: Duration,
    /// Limit for each try, from choosing an endpoint to the end of its
    /// response; then it may be retried. 1ms to 24h and not longer than request;
    /// absent or 0s for off.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-validations" = off_or_within("1ms", "24h")))]
    pub per_try: Option<Duration>,
    /// Limit for establishing a connection, TLS apart. 1ms to 2m, 0s for the
    /// operating system's own limit.
    #[schemars(extend("x-kubernetes-validations" = off_or_within("1ms", "2m")))]
    pub connect: Duration,
    /// Limit without a byte in either direction of a request or stream. 1s to
    /// 24h, 0s for off.
    #[schemars(extend("x-kubernetes-validations" = off_or_within("1s", "24h")))]
    pub idle: Duration,
    /// Limit for a whole stream, from its head to its end. 1s to 720h; absent
    /// or 0s for off.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-validations" = off_or_within("1s", "720h")))]
    pub max_stream: Option<Duration>,
    /// Limit without a byte in either direction of a connection that is passed
    /// through as TCP or TLS. 1s to 720h, 0s for off.
    #[schemars(extend("x-kubernetes-validations" = off_or_within("1s", "720h")))]
    pub tcp_idle: Duration,
    /// Given, the limit for each try is learnt from measured latency instead of
    /// being perTry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adaptive: Option<AdaptiveTimeout>,
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts {
            request: Duration::secs(15),
            per_try: None,
            connect: Duration::secs(1),
            idle: Duration::secs(300),
            max_stream: None,
            tcp_idle: Duration::secs(3600),
            adaptive: None,
        }
    }
}

/// A limit for each try that follows measured latency.
///
/// Tries that the limit cut short enter the estimate as having taken at least
/// that long; otherwise the limit could only shrink. With n samples the quantile
/// used is at most 1 - 10/n and the rest is padding; status shows which quantile
/// is in force. Before there are samples the limit is max.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [
    Rule::new("!has(self.max) || duration(self.min) <= duration(self.max)")
        .message("min must not be longer than max: shorten min or lengthen max")
        .field_path(".min"),
]))]
pub struct AdaptiveTimeout {
    /// Tries per million that may be cut short although they would have
    /// succeeded. 1 to 100000; 100 is 0.01 %.
    #[schemars(range(min = 1, max = 100_000))]
    pub false_timeouts_per_million: u32,
    /// When latencies lie close together, the limit is lengthened by this share
    /// of itself, so that a small shift does not become a mass of timeouts.
    /// Percent, 0 to 1000.
    #[schemars(range(max = 1000))]
    pub padding_percent: u32,
    /// Latencies lie close together when the 99.9th percentile is at most this
    /// much above the median. Percent, 0 to 1000.
    #[schemars(range(max = 1000))]
    pub closeness_percent: u32,
    /// Never shorter. 1ms to 1h.
    #[schemars(extend("x-kubernetes-validations" = within("1ms", "1h")))]
    pub min: Duration,
    /// Never longer, and the limit until enough was measured. 1ms to 24h and
    /// not longer than request; absent: perTry, else request.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-validations" = within("1ms", "24h")))]
    pub max: Option<Duration>,
    /// How long a measurement counts. 10s to 1h.
    #[schemars(extend("x-kubernetes-validations" = within("10s", "1h")))]
    pub window: Duration,
}

impl Default for AdaptiveTimeout {
    fn default() -> AdaptiveTimeout {
        AdaptiveTimeout {
            false_timeouts_per_million: 100,
            padding_percent: 100,
            closeness_percent: 50,
            min: Duration::millis(10),
            max: None,
            window: Duration::secs(300),
        }
    }
}
