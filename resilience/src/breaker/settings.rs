//! The thresholds that requests are judged by, readable without a lock.

use std::time::Duration;

use super::{Cause, Outcome};
use crate::config::{self, GrpcCodes, StatusRanges};
use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// Each threshold in an atomic of its own: while a policy is replaced, a
/// request may see some of the old and some of the new, each valid by itself.
/// All are read much and written hardly ever, so their lines stay shared.
#[derive(Debug)]
pub(super) struct Settings {
    minimum_requests: AtomicU32,
    /// 0 = not judged.
    failure_percent: AtomicU32,
    /// 0 = not judged.
    consecutive_failures: AtomicU32,
    /// `u64::MAX` = not judged.
    slow_nanos: AtomicU64,
    /// 0 = not judged.
    slow_percent: AtomicU32,
    status_codes: [AtomicU64; StatusRanges::WORDS],
    grpc_codes: AtomicU32,
    timeouts: AtomicU32,
    connection_failure: AtomicU32,
    probes: AtomicU32,
    half_open_nanos: AtomicU64,
}

/// What an outcome means to a breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Judged {
    pub(super) failure: Option<Cause>,
    pub(super) slow: bool,
    pub(super) retry_after: Option<Duration>,
}

impl Settings {
    pub(super) fn new(config: &config::Breaker) -> Settings {
        let settings = Settings {
            minimum_requests: AtomicU32::new(1),
            failure_percent: AtomicU32::new(0),
            consecutive_failures: AtomicU32::new(0),
            slow_nanos: AtomicU64::new(u64::MAX),
            slow_percent: AtomicU32::new(0),
            status_codes: std::array::from_fn(|_| AtomicU64::new(0)),
            grpc_codes: AtomicU32::new(0),
            timeouts: AtomicU32::new(0),
            connection_failure: AtomicU32::new(0),
            probes: AtomicU32::new(1),
            half_open_nanos: AtomicU64::new(0),
        };
        settings.replace(config);
        settings
    }

    pub(super) fn replace(&self, config: &config::Breaker) {
        let set = |to: &AtomicU32, value: u32| to.store(value, Ordering::Relaxed);
        let set_long = |to: &AtomicU64, value: u64| to.store(value, Ordering::Relaxed);
        set(&self.minimum_requests, config.minimum_requests.get());
        set(
            &self.failure_percent,
            config.failure_percent.map_or(0, |percent| percent.get()),
        );
        set(
            &self.consecutive_failures,
            config.consecutive_failures.map_or(0, |limit| limit.get()),
        );
        set_long(
            &self.slow_nanos,
            config.slow.map_or(u64::MAX, |slow| nanos(slow.threshold)),
        );
        set(
            &self.slow_percent,
            config.slow.map_or(0, |slow| slow.percent.get()),
        );
        for (to, word) in self
            .status_codes
            .iter()
            .zip(config.failure_on.status_codes.words())
        {
            set_long(to, word);
        }
        set(&self.grpc_codes, config.failure_on.grpc_codes.bits());
        set(&self.timeouts, config.failure_on.timeouts.into());
        set(
            &self.connection_failure,
            config.failure_on.connection_failure.into(),
        );
        set(&self.probes, config.half_open.probes.get().into());
        set_long(&self.half_open_nanos, nanos(config.half_open.timeout));
    }

    /// `None` when the outcome says nothing of the destination.
    pub(super) fn judge(&self, outcome: &Outcome) -> Option<Judged> {
        let (took, cause, retry_after) = match *outcome {
            Outcome::Success { took } => (took, None, None),
            Outcome::Failure {
                cause,
                took,
                retry_after,
            } => (took, Some(cause), retry_after),
        };
        let slow = nanos(took) > self.slow_nanos.load(Ordering::Relaxed);
        let failure = cause.filter(|cause| self.is_failure(*cause));
        let answered = cause.is_none_or(Cause::is_answer);
        (failure.is_some() || answered || slow).then_some(Judged {
            failure,
            slow,
            retry_after,
        })
    }

    fn is_failure(&self, cause: Cause) -> bool {
        match cause {
            Cause::Status(status) => StatusRanges::bit(status).is_some_and(|(word, mask)| {
                self.status_codes[word].load(Ordering::Relaxed) & mask != 0
            }),
            Cause::Grpc(code) => {
                GrpcCodes::from_bits(self.grpc_codes.load(Ordering::Relaxed)).contains(code)
            }
            Cause::Timeout => self.timeouts.load(Ordering::Relaxed) != 0,
            Cause::Connect | Cause::Reset => self.connection_failure.load(Ordering::Relaxed) != 0,
        }
    }

    pub(super) fn consecutive_failures(&self) -> Option<u32> {
        match self.consecutive_failures.load(Ordering::Relaxed) {
            0 => None,
            limit => Some(limit),
        }
    }

    /// Whether `failed` of `total` is too many.
    pub(super) fn too_many_failed(&self, failed: u64, total: u64) -> bool {
        self.enough(total) && reaches(failed, total, self.failure_percent.load(Ordering::Relaxed))
    }

    /// Whether `slow` of `total` is too many.
    pub(super) fn too_many_slow(&self, slow: u64, total: u64) -> bool {
        self.enough(total) && self.too_many_slow_probes(slow, total)
    }

    /// The same for probes, of which there are few.
    pub(super) fn too_many_slow_probes(&self, slow: u64, total: u64) -> bool {
        reaches(slow, total, self.slow_percent.load(Ordering::Relaxed))
    }

    fn enough(&self, total: u64) -> bool {
        total >= u64::from(self.minimum_requests.load(Ordering::Relaxed))
    }

    pub(super) fn probes(&self) -> u32 {
        self.probes.load(Ordering::Relaxed)
    }

    pub(super) fn half_open_timeout(&self) -> Duration {
        Duration::from_nanos(self.half_open_nanos.load(Ordering::Relaxed))
    }
}

fn reaches(part: u64, total: u64, percent: u32) -> bool {
    percent > 0 && u128::from(part) * 100 >= u128::from(total) * u128::from(percent)
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
