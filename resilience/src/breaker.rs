//! The circuit breaker: it leaves a failing destination alone for a while.
//!
//! ```text
//!            too many failed or slow                  time is over
//!   Closed ───────────────────────────▶ Open ───────────────────────▶ HalfOpen
//!     ▲                                   ▲  a probe failed, or none      │
//!     │                                   └──  succeeded in time  ────────┤
//!     └──────────────── as many probes in a row succeeded ────────────────┘
//! ```
//!
//! A request takes a [`Permit`] and gives it back with its [`Outcome`]. While
//! the breaker is closed, that reads two words that all workers share and
//! writes only to counters of the worker's own; nothing is allocated or
//! locked. A transition is made under a mutex, by whoever sees that it is due;
//! there is exactly one for each epoch.

use std::time::Duration;

use crate::Time;
use crate::config;
use crate::random::below_or_at;
use crate::sync::{AtomicU64, Mutex, Ordering, Padded, lock};

mod count;
mod log;
#[cfg(test)]
#[cfg(loom)]
mod loom_tests;
mod memory;
mod message;
mod outcome;
mod probes;
mod run;
mod settings;
#[cfg(test)]
#[cfg(not(loom))]
mod tests;
mod transitions;
mod window;
mod word;

use log::Log;
pub use memory::{Memory, Phase};
pub use outcome::{Cause, Outcome, Reason, Refused, State, Status, Transition};
use probes::{NoProbe, Probes};
use run::Run;
use settings::{Judged, Settings};
use window::{Sample, Window};
use word::Word;

/// What a refusal suggests where the time until the next permit is not known.
const SOON: Duration = Duration::from_secs(1);
/// After a recovery the admitted share begins at one in so many.
const FIRST_SHARE: u64 = 10;

/// The right to send one request. It goes back by [`Breaker::record`] or
/// [`Breaker::release`]; a probe whose permit is lost holds its slot until the
/// recovery times out.
#[must_use = "give it back by `record` or `release`"]
#[derive(Debug)]
pub struct Permit {
    epoch: u32,
    probe: bool,
}

impl Permit {
    /// Whether the request is one of the few that a half-open breaker lets
    /// through.
    pub const fn is_probe(&self) -> bool {
        self.probe
    }
}

/// The breaker of one destination, for all workers of an agent.
#[derive(Debug)]
pub struct Breaker {
    /// A [`Word`].
    word: AtomicU64,
    /// When the admitted share began to grow, in nanoseconds, and when it is
    /// whole; both zero when it never shrank.
    ramp_from: AtomicU64,
    ramp_until: AtomicU64,
    settings: Settings,
    window: Window,
    log: Mutex<Log>,
    probes: Padded<Probes>,
    run: Padded<Run>,
    rejected: Padded<AtomicU64>,
}

impl Breaker {
    /// A closed breaker for `shards` workers, unless a person forces it open.
    /// `unix_ms` is the wall clock at `now`, in milliseconds since 1970.
    pub fn new(config: &config::Breaker, shards: usize, now: Time, unix_ms: i64) -> Breaker {
        let breaker = Breaker {
            word: AtomicU64::new(Word::START.bits()),
            ramp_from: AtomicU64::new(0),
            ramp_until: AtomicU64::new(0),
            settings: Settings::new(config),
            window: Window::new(config.window, shards, now),
            log: Mutex::new(Log::new(config, now)),
            probes: Padded(Probes::new()),
            run: Padded(Run::new()),
            rejected: Padded(AtomicU64::new(0)),
        };
        breaker.force(&mut lock(&breaker.log), now, unix_ms);
        breaker
    }

    /// The policy changed and the key did not: thresholds are replaced and the
    /// state is kept, except for what a person asks for in `forced` and
    /// `reset`. Another window begins empty. What is running (an open time, a
    /// recovery, a ramp) runs on as it began.
    pub fn reconfigure(&self, config: &config::Breaker, now: Time, unix_ms: i64) {
        let mut log = self.advance(now);
        let window_is_other = log.config.window != config.window;
        log.config = config.clone();
        self.settings.replace(config);
        if window_is_other {
            self.window.restart(config.window, now);
        }
        if config.consecutive_failures.is_none() {
            // Nobody ends a run while it is not judged.
            self.run.clear();
        }
        if !config.reset.is_empty() && config.reset != log.observed_reset {
            log.observed_reset.clone_from(&config.reset);
            self.reset(&mut log, now);
        }
        self.force(&mut log, now, unix_ms);
    }

    /// Asks to send one request. Allocates nothing.
    ///
    /// `random` decides who is admitted while the share grows after a
    /// recovery.
    pub fn acquire(&self, now: Time, random: u64) -> Result<Permit, Refused> {
        loop {
            let word = self.word(Ordering::Acquire);
            if word.is_over(now) {
                drop(self.advance(now));
                continue;
            }
            let epoch = word.epoch();
            let state = word.state();
            let refused = match state {
                State::Closed => match self.ramp(now, random) {
                    None => {
                        return Ok(Permit {
                            epoch,
                            probe: false,
                        });
                    }
                    refused => refused,
                },
                State::ForcedClosed => {
                    return Ok(Permit {
                        epoch,
                        probe: false,
                    });
                }
                State::Open | State::ForcedOpen => {
                    word.deadline().map(|deadline| deadline.since(now))
                }
                State::HalfOpen => match self.probes.take(epoch, self.settings.probes()) {
                    Ok(()) => {
                        self.arm(epoch, now);
                        return Ok(Permit { epoch, probe: true });
                    }
                    Err(NoProbe::Full) => Some(SOON),
                    Err(NoProbe::Stale) => continue,
                },
            };
            self.rejected.fetch_add(1, Ordering::Relaxed);
            return Err(Refused {
                state,
                retry_after: refused,
            });
        }
    }

    /// The request of `permit` ended. `shard` is the worker that records: no
    /// two threads may use the same one at a time, or counts are lost.
    ///
    /// A permit of an earlier epoch changes nothing. `random` spreads the time
    /// that the breaker stays open, should it open now.
    #[allow(clippy::needless_pass_by_value)] // It is used up.
    pub fn record(&self, shard: usize, permit: Permit, now: Time, random: u64, outcome: &Outcome) {
        let epoch = permit.epoch;
        let tick = self.window.tick(now);
        let mut word = self.word(Ordering::Acquire);
        if epoch == word.epoch() && word.is_over(now) {
            drop(self.advance(now));
            word = self.word(Ordering::Acquire);
        }
        if epoch != word.epoch() {
            return;
        }
        let Some(judged) = self.settings.judge(outcome) else {
            return self.release(permit, now);
        };
        let sample = Sample {
            failure: judged.failure,
            slow: judged.slow,
        };
        match word.state() {
            State::Closed => {
                self.window.record(shard, tick, now, sample);
                self.judge(word, now, random, judged);
            }
            State::ForcedClosed => self.window.record(shard, tick, now, sample),
            State::HalfOpen => self.record_probe(word, now, random, judged),
            State::Open | State::ForcedOpen => {}
        }
    }

    /// The request of `permit` ended without a word about the destination: the
    /// caller left, or Weir refused it. A probe's slot comes back.
    #[allow(clippy::needless_pass_by_value)] // It is used up.
    pub fn release(&self, permit: Permit, _now: Time) {
        if permit.probe {
            self.probes.release(permit.epoch);
        }
    }

    /// Its state, after what time alone has brought about. Unlike
    /// [`Breaker::status`] it allocates nothing, and takes the mutex only when
    /// a step is due.
    pub fn state(&self, now: Time) -> State {
        let word = self.word(Ordering::Acquire);
        if !word.is_over(now) {
            return word.state();
        }
        drop(self.advance(now));
        self.word(Ordering::Acquire).state()
    }

    /// Its state and figures, after what time alone has brought about.
    pub fn status(&self, now: Time) -> Status {
        let log = self.advance(now);
        let state = self.word(Ordering::Acquire).state();
        let sum = match state {
            State::Closed | State::ForcedClosed => self.window.sum(now),
            State::Open | State::HalfOpen | State::ForcedOpen => log.opened,
        };
        Status {
            state,
            reason: log.reason,
            message: log.message.clone(),
            since: log.since,
            epoch: log.epoch,
            window_requests: sum.requests,
            failure_percent: message::percent(sum.failed, sum.requests),
            request_rate_milli: sum.rate_milli(),
            rejected_total: self.rejected.load(Ordering::Relaxed),
            observed_reset: log.observed_reset.clone(),
        }
    }

    /// Appends the transitions since the last call to `out`, oldest first,
    /// after what time alone has brought about. To be called about once a
    /// second: of more than 64 in between the oldest are lost, and counted in
    /// [`Breaker::lost_transitions`].
    pub fn poll(&self, now: Time, out: &mut Vec<Transition>) {
        self.advance(now).drain(out);
    }

    /// Transitions that no [`Breaker::poll`] came for in time.
    pub fn lost_transitions(&self) -> u64 {
        lock(&self.log).dropped
    }

    fn word(&self, ordering: Ordering) -> Word {
        Word::from_bits(self.word.load(ordering))
    }

    /// `None` to admit; the wait to suggest otherwise.
    fn ramp(&self, now: Time, random: u64) -> Option<Duration> {
        let until = self.ramp_until.load(Ordering::Relaxed);
        let left = Time::from_nanos(until).since(now);
        if left.is_zero() {
            return None;
        }
        let from = self.ramp_from.load(Ordering::Relaxed);
        let whole = until.saturating_sub(from);
        let grown = now.as_nanos().saturating_sub(from).max(whole / FIRST_SHARE);
        (below_or_at(whole, random) > grown).then(|| left.min(SOON))
    }

    /// Judges a closed breaker after a request was counted. Only failures and
    /// slow requests can open it.
    fn judge(&self, word: Word, now: Time, random: u64, judged: Judged) {
        let epoch = word.epoch();
        let limit = self.settings.consecutive_failures();
        let run = match (judged.failure, limit) {
            (Some(cause), Some(_)) if !cause.is_soft() => self.run.failed(epoch),
            (None, Some(_)) => {
                self.run.succeeded(epoch);
                0
            }
            _ => 0,
        };
        if let (Some(cause), Some(limit)) = (judged.failure, limit)
            && run >= limit
        {
            self.open(
                epoch,
                now,
                random,
                judged,
                Reason::ConsecutiveFailures,
                |_| format!("{run} requests in a row failed, the last with {cause}"),
            );
            return;
        }
        if judged.failure.is_none() && !judged.slow {
            return;
        }
        let Some(sum) = self.window.sum_if_due(now) else {
            return;
        };
        if self.settings.too_many_failed(sum.failed, sum.requests) {
            self.open(epoch, now, random, judged, Reason::FailureRate, |log| {
                message::failure_rate(&sum, log.config.window, &self.window.causes(now))
            });
        } else if self.settings.too_many_slow(sum.slow, sum.requests) {
            self.open(epoch, now, random, judged, Reason::SlowRequests, |log| {
                let slow = log.config.slow;
                slow.map(|slow| message::slow_requests(&sum, log.config.window, slow))
                    .unwrap_or_default()
            });
        }
    }

    fn record_probe(&self, word: Word, now: Time, random: u64, judged: Judged) {
        let epoch = word.epoch();
        if let Some(cause) = judged.failure {
            let message = format!("a probe failed with {cause}");
            return self.probe_failed(epoch, now, random, judged.retry_after, message);
        }
        let Some(tally) = self.probes.succeed(epoch, judged.slow) else {
            return;
        };
        if tally.successes < self.settings.probes() {
            if tally.in_flight == 0 {
                self.disarm(epoch, now);
            }
        } else if self
            .settings
            .too_many_slow_probes(tally.slow.into(), tally.successes.into())
        {
            let message = format!("{} of {} probes were slow", tally.slow, tally.successes);
            self.probe_failed(epoch, now, random, None, message);
        } else {
            self.recovered(epoch, now, tally.successes);
        }
    }
}
