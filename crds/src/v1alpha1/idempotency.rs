use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::duration::within;
use super::text::HeaderName;
use super::{ByteSize, Duration};

/// The same caller's request with the same key is done once, as far as one
/// destination pod can promise. Tries and duplicates with one key go to the same
/// endpoint: while the first is under way they wait for its response, later they
/// get the stored one (with Idempotency-Replayed: true). The same key with another
/// payload gets 422. If the pod has gone, the outcome is unknown, and the answer
/// is 409 instead of a guess. Acts at the destination's node, for each pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Idempotency {
    /// Header that holds the key.
    #[schemars(with = "HeaderName")]
    pub header: String,
    /// Weir: as told above. Destination: the application does it itself; Weir
    /// stores nothing, and may retry requests that have a key, anywhere.
    pub honored_by: HonoredBy,
    /// Whether the key of a message delivered by HTTP (CloudEvents) is its
    /// ce-source and ce-id: a duplicate message gets the first answer.
    pub cloud_events: bool,
    /// How long a response is kept. 1s to 24h.
    #[schemars(extend("x-kubernetes-validations" = within("1s", "24h")))]
    pub ttl: Duration,
    /// Responses kept for each pod; the oldest go first. 1 to 1000000.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_entries: u32,
    /// Bytes of a response's body that are kept; a duplicate of a request with a
    /// larger response gets 409. Up to 16Mi.
    pub max_stored_body: ByteSize,
}

impl Default for Idempotency {
    fn default() -> Idempotency {
        Idempotency {
            header: "Idempotency-Key".to_owned(),
            honored_by: HonoredBy::Weir,
            cloud_events: false,
            ttl: Duration::secs(600),
            max_entries: 10_000,
            max_stored_body: ByteSize::DEFAULT,
        }
    }
}

/// Who does a request only once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs, reason = "told once, at the field")]
pub enum HonoredBy {
    Weir,
    Destination,
}
