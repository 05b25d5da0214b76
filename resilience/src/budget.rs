//! The retry budget.

use crate::Time;
use crate::config;

/// Bounds the share of extra tries.
#[derive(Debug)]
pub struct Budget {}

impl Budget {
    /// A budget for `shards` workers.
    pub fn new(_config: &config::Budget, _shards: usize, _now: Time) -> Budget {
        Budget {}
    }

    /// The policy changed and the key did not.
    pub fn reconfigure(&self, _config: &config::Budget, _now: Time) {}

    /// A request begins.
    pub fn request(&self, _shard: usize, _now: Time) {}

    /// Asks for an extra try, which counts from now on.
    pub fn try_withdraw(&self, _shard: usize, _now: Time) -> bool {
        true
    }

    /// Requests and extra tries of the interval.
    pub fn status(&self, _now: Time) -> (u64, u64) {
        (0, 0)
    }
}
