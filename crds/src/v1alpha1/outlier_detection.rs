use kube::core::Rule;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Duration;
use super::duration::within;

/// An endpoint that fails leaves the rotation for a while, and comes back by way
/// of probes instead of with its full share at once. With two or more endpoints
/// one may always be ejected, but never all: above maxEjectedPercent all are used
/// again. Acts at the caller's node; not in routes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [
    Rule::new("self.consecutiveFailures > 0 || self.failurePercent > 0 || has(self.latencyFactor)")
        .message("nothing can eject an endpoint: give consecutiveFailures or failurePercent above 0, or latencyFactor"),
    Rule::new("duration(self.baseEjection) <= duration(self.maxEjection)")
        .message("baseEjection must not be longer than maxEjection (5m unless given): shorten baseEjection or lengthen maxEjection")
        .field_path(".baseEjection"),
]))]
pub struct OutlierDetection {
    /// Ejected after so many failures in a row. 1 to 1000; 0 for not judged.
    #[schemars(range(max = 1000))]
    pub consecutive_failures: u32,
    /// Ejected when this share of an endpoint's requests within interval failed.
    /// Percent, 1 to 100; 0 for not judged.
    #[schemars(range(max = 100))]
    pub failure_percent: u32,
    /// Requests to an endpoint within interval before its share is judged. 1 to
    /// 100000.
    #[schemars(range(min = 1, max = 100_000))]
    pub minimum_requests: u32,
    /// Ejected when an endpoint takes this many times as long as the median of
    /// the others. 2 to 100; absent for not judged.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 2, max = 100))]
    pub latency_factor: Option<u32>,
    /// How often endpoints are judged. 100ms to 5m.
    #[schemars(extend("x-kubernetes-validations" = within("100ms", "5m")))]
    pub interval: Duration,
    /// How long an endpoint is out the first time; longer each time it fails
    /// again soon. 1s to 1h.
    #[schemars(extend("x-kubernetes-validations" = within("1s", "1h")))]
    pub base_ejection: Duration,
    /// The longest time out. 1s to 24h.
    #[schemars(extend("x-kubernetes-validations" = within("1s", "24h")))]
    pub max_ejection: Duration,
    /// The largest share of the endpoints that may be out. Percent, 1 to 99.
    #[schemars(range(min = 1, max = 99))]
    pub max_ejected_percent: u32,
}

impl Default for OutlierDetection {
    fn default() -> OutlierDetection {
        OutlierDetection {
            consecutive_failures: 5,
            failure_percent: 85,
            minimum_requests: 50,
            latency_factor: None,
            interval: Duration::secs(1),
            base_ejection: Duration::secs(10),
            max_ejection: Duration::secs(300),
            max_ejected_percent: 50,
        }
    }
}
