//! The circuit breaker: it refuses requests to a destination that fails.

use crate::Time;
use crate::config;

mod outcome;

pub use outcome::{Cause, Outcome, Reason, Refused, State, Status, Transition};

/// The right to send one request. Give it back by [`Breaker::record`] or
/// [`Breaker::release`].
#[must_use = "a permit that is not given back holds a probe's slot"]
#[derive(Debug)]
pub struct Permit {
    epoch: u32,
    probe: bool,
}

/// A circuit breaker.
#[derive(Debug)]
pub struct Breaker {
    observed_reset: String,
}

impl Breaker {
    /// A closed breaker for `shards` workers. `unix_ms` is the wall clock at
    /// `now`.
    pub fn new(config: &config::Breaker, _shards: usize, _now: Time, _unix_ms: i64) -> Breaker {
        Breaker {
            observed_reset: config.reset.clone(),
        }
    }

    /// The policy changed and the key did not: the state is kept.
    pub fn reconfigure(&self, _config: &config::Breaker, _now: Time, _unix_ms: i64) {}

    /// Asks to send one request.
    pub fn acquire(&self, _now: Time, _random: u64) -> Result<Permit, Refused> {
        Ok(Permit {
            epoch: 0,
            probe: false,
        })
    }

    /// The request ended.
    pub fn record(&self, _shard: usize, permit: Permit, _now: Time, _random: u64, _o: &Outcome) {
        let _ = (permit.epoch, permit.probe);
    }

    /// The request ended without saying anything of the destination.
    pub fn release(&self, permit: Permit, _now: Time) {
        let _ = permit;
    }

    /// Its state and figures.
    pub fn status(&self, now: Time) -> Status {
        Status {
            state: State::Closed,
            reason: None,
            message: String::new(),
            since: now,
            epoch: 0,
            window_requests: 0,
            failure_percent: 0,
            request_rate_milli: 0,
            rejected_total: 0,
            observed_reset: self.observed_reset.clone(),
        }
    }

    /// Transitions since the last call.
    pub fn poll(&self, _now: Time, _out: &mut Vec<Transition>) {}
}
