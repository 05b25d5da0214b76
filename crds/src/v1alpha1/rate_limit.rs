use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Duration;
use super::duration::within;
use super::text::HeaderName;

/// So many requests in such a time, as a token bucket; further ones get 429 with
/// Retry-After, or RESOURCE_EXHAUSTED. Acts at the destination's node, for each
/// pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RateLimit {
    /// How many. 1 to 1000000.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub requests: u32,
    /// In which time. 1s to 24h.
    #[serde(default = "RateLimit::default_per")]
    #[schemars(extend("x-kubernetes-validations" = within("1s", "24h")))]
    pub per: Duration,
    /// How many may come at once after a pause. 1 to 1000000; absent: as many as
    /// requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub burst: Option<u32>,
    /// Given, each key has a bucket of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<RateLimitKey>,
}

impl RateLimit {
    fn default_per() -> Duration {
        Duration::secs(1)
    }
}

/// What has a bucket of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RateLimitKey {
    /// Each value of this header; requests without it share one bucket. The
    /// number of buckets is bounded, the least used go first.
    #[schemars(with = "HeaderName")]
    pub header: String,
}
