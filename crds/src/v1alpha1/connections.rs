use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Duration;
use super::duration::{off_or_within, within};

/// Limits of the connections towards the destination, for each caller's node.
/// What is absent has no limit but the agent's own. Acts at the caller's node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Connections {
    /// Connections at once. 1 to 100000.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub max: Option<u32>,
    /// Requests that may wait for a connection or a stream; further ones are
    /// refused. 0 to 100000.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 100_000))]
    pub max_pending: Option<u32>,
    /// A connection that is older takes no further request, so that new endpoints
    /// get their share. 1s to 720h; absent or 0s for off.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-validations" = off_or_within("1s", "720h")))]
    pub max_age: Option<Duration>,
    /// Streams at once on an HTTP/2 connection. 1 to 10000; the destination's own
    /// limit also holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000))]
    pub max_streams: Option<u32>,
    /// A connection without a byte for this long is asked whether it still lives
    /// (TCP keepalive, HTTP/2 PING). 1s to 24h.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-validations" = within("1s", "24h")))]
    pub keepalive: Option<Duration>,
    /// Close: a caller that shuts its sending side while it waits counts as gone,
    /// and its request is cancelled. Allow: it may still receive.
    pub half_close: HalfClose,
}

/// What a caller that shuts its sending side means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs, reason = "told once, at the field")]
pub enum HalfClose {
    #[default]
    Close,
    Allow,
}
