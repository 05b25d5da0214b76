use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Duration;
use super::duration::off_or_within;

/// A further try is started when the first is slower than usual; the first
/// answer wins and the others are cancelled. As safe as retries, and drawn from
/// the same budget. Acts at the caller's node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Hedging {
    /// A try is slow when it takes longer than this percentile of measured
    /// latency. 50 to 99.
    #[schemars(range(min = 50, max = 99))]
    pub delay_percentile: u32,
    /// The shortest wait before a further try, whatever was measured. 1ms to 1m,
    /// 0s for none.
    #[schemars(extend("x-kubernetes-validations" = off_or_within("1ms", "1m")))]
    pub min_delay: Duration,
    /// Further tries at most. 1 to 3.
    #[schemars(range(min = 1, max = 3))]
    pub max_hedges: u32,
}

impl Default for Hedging {
    fn default() -> Hedging {
        Hedging {
            delay_percentile: 95,
            min_delay: Duration::millis(5),
            max_hedges: 1,
        }
    }
}
