use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::text::HeaderName;

/// The caller's remaining time travels with its request: as grpc-timeout, and
/// for HTTP in a header. Each try is sent with what is left, and expired work is
/// refused before it starts (504 or DEADLINE_EXCEEDED). A deadline only ever
/// shortens timeouts.request; one that cannot be read is ignored and counted.
/// Acts at the caller's node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Deadline {
    /// Header that holds the milliseconds left, as a whole number.
    #[schemars(with = "HeaderName")]
    pub header: String,
    /// Whether tries are sent with what is left. If false, a deadline is heeded
    /// but not passed on.
    pub propagate: bool,
    /// Headers that link the request a pod receives with the calls it then makes,
    /// the first that both carry: the calls get no more time than the request
    /// has left, even if the application knows nothing of deadlines. Up to 4;
    /// an empty list for off.
    #[schemars(with = "Vec<HeaderName>", length(max = 4), extend("x-kubernetes-list-type" = "set"))]
    pub correlate: Vec<String>,
}

impl Default for Deadline {
    fn default() -> Deadline {
        Deadline {
            header: "x-request-timeout-ms".to_owned(),
            propagate: true,
            correlate: vec!["traceparent".to_owned(), "x-request-id".to_owned()],
        }
    }
}
