use kube::core::Rule;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Duration;
use super::duration::within;
use super::text::{DnsLabel, HeaderName, HeaderValue};

/// When the destination cannot answer (its breaker is open, a timeout passed, a
/// 5xx after the last try), something better than nothing: first a stale copy,
/// then another Service, then a fixed answer, as far as they are given. Acts at
/// the caller's node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [
    Rule::new("has(self.staleIfError) || has(self.service) || has(self.response)")
        .message("nothing to fall back on: give staleIfError, service or response, such as staleIfError: {}"),
]))]
pub struct Fallback {
    /// The last good response to the same GET, as a shared cache may keep it (RFC
    /// 9111, RFC 5861): never one to a request with Authorization or Cookie, or
    /// with Set-Cookie, unless it says public or s-maxage. Marked by Age and
    /// Cache-Status.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stale_if_error: Option<StaleIfError>,
    /// Another Service of the policy's namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<FallbackService>,
    /// A fixed answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response: Option<StaticResponse>,
}

/// How a stale copy is used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct StaleIfError {
    /// The oldest copy that is used. 1s to 24h.
    #[schemars(extend("x-kubernetes-validations" = within("1s", "24h")))]
    pub max_stale: Duration,
    /// Whether workloads share copies. If false, each gets only what it was
    /// itself answered.
    pub shared: bool,
}

impl Default for StaleIfError {
    fn default() -> StaleIfError {
        StaleIfError {
            max_stale: Duration::secs(300),
            shared: false,
        }
    }
}

/// A Service to ask instead.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FallbackService {
    /// Its name, in the policy's namespace.
    #[schemars(with = "DnsLabel")]
    pub name: String,
    /// Number of its port. 1 to 65535.
    #[schemars(range(min = 1, max = 65_535))]
    pub port: u32,
}

/// A fixed answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct StaticResponse {
    /// HTTP status code. 200 to 599.
    #[schemars(range(min = 200, max = 599))]
    pub status: u32,
    /// Headers of the answer. Up to 16.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub headers: Vec<ResponseHeader>,
    /// Body of the answer, up to 4096 characters.
    #[schemars(length(max = 4096))]
    pub body: String,
}

impl Default for StaticResponse {
    fn default() -> StaticResponse {
        StaticResponse {
            status: 503,
            headers: Vec::new(),
            body: String::new(),
        }
    }
}

/// A header of a fixed answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    Rule::new("!(self.name.lowerAscii() in ['authorization', 'proxy-authorization', 'cookie', 'set-cookie'])")
        .message("credentials do not belong in a policy, which many may read: leave this header out")
        .field_path(".name"),
    Rule::new("!(self.name.lowerAscii() in ['connection', 'content-length', 'keep-alive', 'te', 'trailer', 'transfer-encoding', 'upgrade'])")
        .message("this header belongs to the connection and is written by Weir: leave it out")
        .field_path(".name"),
]))]
pub struct ResponseHeader {
    /// Its name, in any case. Not set-cookie, cookie, authorization or
    /// proxy-authorization: credentials do not belong in a policy.
    #[schemars(with = "HeaderName")]
    pub name: String,
    /// Its value.
    #[schemars(with = "HeaderValue")]
    pub value: String,
}
