//! What a breaker leaves to the one that takes its place in another process:
//! its state and how often its recovery failed. What it counted is not handed
//! over. A closed breaker judges again after a few requests, and counts of
//! another process, which may go on counting, would be judged twice.
//!
//! Two processes share no monotonic clock, so moments are those of the wall
//! clock. It may have been set in between: nothing here keeps a breaker open
//! for longer than its policy could.

use std::time::Duration;

use super::{Breaker, Reason, State};
use crate::Time;
use crate::sync::Ordering;

/// What is worth knowing of a breaker that is not simply closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Whom it lets through.
    pub phase: Phase,
    /// When it came into its state, in milliseconds since 1970.
    pub since_unix_ms: i64,
    /// Recoveries that failed since the last that held: the open time grows
    /// with them.
    pub failed_recoveries: u32,
    /// Why it is in its state.
    pub reason: Reason,
    /// The reason with its figures, for people.
    pub message: String,
    /// The last `reset` that was carried out.
    pub observed_reset: String,
}

/// Whom a breaker lets through. All moments are in milliseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nobody, until then.
    Open {
        /// When it lets probes through.
        until_unix_ms: i64,
    },
    /// Probes. How those fared that were under way is not known.
    HalfOpen {
        /// When that was so.
        at_unix_ms: i64,
    },
    /// It is closed, and the admitted share still grows.
    Growing {
        /// When it began to.
        from_unix_ms: i64,
        /// When it is whole.
        until_unix_ms: i64,
    },
}

/// Both clocks at one moment.
#[derive(Clone, Copy)]
struct Clocks {
    now: Time,
    unix_ms: i64,
}

impl Clocks {
    /// Rounded up: a breaker is never open for too short a time.
    fn unix_ms(self, at: Time) -> i64 {
        let millis = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
        if at > self.now {
            let ahead = at.since(self.now) + Duration::from_nanos(999_999);
            self.unix_ms.saturating_add(millis(ahead))
        } else {
            self.unix_ms.saturating_sub(millis(self.now.since(at)))
        }
    }

    /// As far as the monotonic clock reaches back.
    fn time(self, unix_ms: i64) -> Time {
        let apart = Duration::from_millis(unix_ms.abs_diff(self.unix_ms));
        if unix_ms > self.unix_ms {
            self.now + apart
        } else {
            let apart = u64::try_from(apart.as_nanos()).unwrap_or(u64::MAX);
            Time::from_nanos(self.now.as_nanos().saturating_sub(apart))
        }
    }
}

impl Breaker {
    /// What its successor should know; `None` where it is closed and admits
    /// all, or where a person decides. `unix_ms` is the wall clock at `now`.
    pub fn memory(&self, now: Time, unix_ms: i64) -> Option<Memory> {
        let clocks = Clocks { now, unix_ms };
        let ramp_until = Time::from_nanos(self.ramp_until.load(Ordering::Relaxed));
        if self.word(Ordering::Acquire).state() == State::Closed && ramp_until <= now {
            return None;
        }
        let log = self.advance(now);
        let word = self.word(Ordering::Acquire);
        let phase = match word.state() {
            State::Open => Phase::Open {
                until_unix_ms: clocks.unix_ms(word.deadline().unwrap_or(now)),
            },
            State::HalfOpen => Phase::HalfOpen {
                at_unix_ms: unix_ms,
            },
            // The ramp is set under the mutex.
            State::Closed => {
                let from = Time::from_nanos(self.ramp_from.load(Ordering::Relaxed));
                let until = Time::from_nanos(self.ramp_until.load(Ordering::Relaxed));
                if until <= now {
                    return None;
                }
                Phase::Growing {
                    from_unix_ms: clocks.unix_ms(from),
                    until_unix_ms: clocks.unix_ms(until),
                }
            }
            State::ForcedOpen | State::ForcedClosed => return None,
        };
        Some(Memory {
            phase,
            since_unix_ms: clocks.unix_ms(log.since),
            failed_recoveries: log.failed_recoveries,
            reason: log.reason?,
            message: log.message.clone(),
            observed_reset: log.observed_reset.clone(),
        })
    }

    /// Goes on where another breaker of the same policy was. Returns whether it
    /// does. It does not
    ///
    /// - once it has made a step of its own, or a person has it forced;
    /// - when the other had not carried out the same `reset`;
    /// - when the other's time was over longer than `maxDuration` ago: whatever
    ///   was known then, every breaker would have tried again since.
    ///
    /// That is a step, but no transition to report: nothing opened now.
    pub fn remember(&self, memory: &Memory, now: Time, unix_ms: i64) -> bool {
        let clocks = Clocks { now, unix_ms };
        let mut log = self.advance(now);
        let word = self.word(Ordering::Acquire);
        if log.epoch != 0
            || word.state() != State::Closed
            || log.observed_reset != memory.observed_reset
        {
            return false;
        }
        let max = log.config.open.max;
        let next = match memory.phase {
            Phase::Open { until_unix_ms } => {
                let until = clocks.time(until_unix_ms);
                if until + max < now {
                    return false;
                }
                word.next(State::Open, Some(until.min(now + max)))
            }
            Phase::HalfOpen { at_unix_ms } => {
                if clocks.time(at_unix_ms) + max < now {
                    return false;
                }
                let next = word.next(State::HalfOpen, None);
                self.probes.begin(next.epoch());
                next
            }
            Phase::Growing {
                from_unix_ms,
                until_unix_ms,
            } => {
                let Some(ramp_up) = log.config.half_open.ramp_up else {
                    return false;
                };
                let from = clocks.time(from_unix_ms).min(now);
                let until = clocks.time(until_unix_ms).min(now + ramp_up);
                if until <= now {
                    return false;
                }
                self.ramp_from.store(from.as_nanos(), Ordering::Relaxed);
                self.ramp_until.store(until.as_nanos(), Ordering::Relaxed);
                word.next(State::Closed, None)
            }
        };
        self.word.store(next.bits(), Ordering::SeqCst);
        log.recall(memory, clocks.time(memory.since_unix_ms).min(now));
        true
    }

    /// Changes with each step. Cheap: it takes no lock.
    pub fn step_count(&self) -> u32 {
        self.word(Ordering::Acquire).epoch()
    }
}
