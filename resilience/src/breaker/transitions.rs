//! The steps from one state to another. All are made under the mutex of the
//! log, so each sees the state that it leaves.

use std::time::Duration;

use super::log::Log;
use super::settings::Judged;
use super::word::Word;
use super::{Breaker, Reason, State};
use crate::Time;
use crate::config::Forced;
use crate::random::{between, mix};
use crate::sync::{MutexGuard, Ordering, fence, lock};

impl Breaker {
    /// Makes the steps that time alone brings about, as of the moments at
    /// which they were due: when somebody looks makes no difference.
    pub(super) fn advance(&self, now: Time) -> MutexGuard<'_, Log> {
        let mut log = lock(&self.log);
        loop {
            let word = self.word(Ordering::Acquire);
            let Some(due) = word.deadline().filter(|deadline| *deadline <= now) else {
                return log;
            };
            match word.state() {
                // Without a deadline until a probe is under way: nobody has
                // failed where nobody tried.
                State::Open => {
                    let millis = due.since(log.since).as_millis() as u64;
                    let message = format!("open for {:?}", Duration::from_millis(millis));
                    let reason = Reason::OpenElapsed;
                    self.step(&mut log, word, State::HalfOpen, None, reason, message, due);
                }
                State::HalfOpen => {
                    let timeout = log.config.half_open.timeout;
                    let message = format!("recovery took longer than {timeout:?}");
                    self.reopen(&mut log, word, due, None, Reason::ProbeTimeout, message);
                }
                State::ForcedOpen | State::ForcedClosed => self.end_force(&mut log, word, due),
                State::Closed => return log,
            }
        }
    }

    /// Closed → Open, unless another thread was here before.
    pub(super) fn open(
        &self,
        epoch: u32,
        now: Time,
        random: u64,
        judged: Judged,
        reason: Reason,
        message: impl FnOnce(&Log) -> String,
    ) {
        let mut log = lock(&self.log);
        let word = self.word(Ordering::Acquire);
        if word.epoch() != epoch || word.state() != State::Closed {
            return;
        }
        // A recovery has held once all are admitted again.
        let recovering = now.as_nanos() < self.ramp_until.load(Ordering::Relaxed);
        log.failed_recoveries = if recovering {
            log.failed_recoveries.saturating_add(1)
        } else {
            0
        };
        log.opened = self.window.sum(now);
        log.random = mix(log.random ^ random);
        let message = message(&log);
        let deadline = now + open_time(&log, judged.retry_after);
        self.step(
            &mut log,
            word,
            State::Open,
            Some(deadline),
            reason,
            message,
            now,
        );
    }

    /// HalfOpen → Open after a probe, unless another thread was here before.
    pub(super) fn probe_failed(
        &self,
        epoch: u32,
        now: Time,
        random: u64,
        retry_after: Option<Duration>,
        message: String,
    ) {
        let mut log = lock(&self.log);
        log.random = mix(log.random ^ random);
        if let Some(word) = self.half_open(epoch) {
            self.reopen(
                &mut log,
                word,
                now,
                retry_after,
                Reason::ProbeFailed,
                message,
            );
        }
    }

    /// HalfOpen → Closed, unless another thread was here before.
    pub(super) fn recovered(&self, epoch: u32, now: Time, successes: u32) {
        let mut log = lock(&self.log);
        if let Some(word) = self.half_open(epoch) {
            let message = match successes {
                1 => "a probe succeeded".to_owned(),
                successes => format!("{successes} probes in a row succeeded"),
            };
            let ramp_up = log.config.half_open.ramp_up;
            self.close(&mut log, word, ramp_up, Reason::Recovered, message, now);
        }
    }

    /// A person's new `reset`: as if nothing had ever failed.
    pub(super) fn reset(&self, log: &mut Log, now: Time) {
        log.failed_recoveries = 0;
        let word = self.word(Ordering::Acquire);
        match word.state() {
            // What is forced stays so; it has no other state beneath it.
            State::ForcedOpen | State::ForcedClosed => {}
            State::Closed | State::Open | State::HalfOpen => {
                let message = format!("reset: {}", log.observed_reset);
                self.close(log, word, None, Reason::Reset, message, now);
            }
        }
    }

    /// Brings about what `forced` says, or ends what it said.
    pub(super) fn force(&self, log: &mut Log, now: Time, unix_ms: i64) {
        let word = self.word(Ordering::Acquire);
        let forced = log.config.forced.clone();
        let left = |forced: &Forced| {
            let millis = forced.expires_at_unix_ms.saturating_sub(unix_ms);
            u64::try_from(millis)
                .ok()
                .filter(|millis| *millis > 0)
                .map(Duration::from_millis)
        };
        let in_force = forced.and_then(|forced| left(&forced).map(|left| (forced, left)));
        let Some((forced, left)) = in_force else {
            if matches!(word.state(), State::ForcedOpen | State::ForcedClosed) {
                self.end_force(log, word, now);
            }
            return;
        };
        let state = if forced.open {
            State::ForcedOpen
        } else {
            State::ForcedClosed
        };
        let deadline = Some(now + left);
        if word.state() == state {
            log.message = forced.reason;
            self.word
                .store(word.with_deadline(deadline).bits(), Ordering::SeqCst);
            return;
        }
        log.failed_recoveries = 0;
        if matches!(word.state(), State::Closed | State::ForcedClosed) {
            log.opened = self.window.sum(now);
        }
        if !forced.open {
            self.window.restart(log.config.window, now);
        }
        self.step(
            log,
            word,
            state,
            deadline,
            Reason::Override,
            forced.reason,
            now,
        );
    }

    /// The breaker judges again. Nothing is known of a destination that was
    /// kept away from, so its requests come back as after a recovery.
    fn end_force(&self, log: &mut Log, word: Word, now: Time) {
        let was_open = word.state() == State::ForcedOpen;
        let ramp_up = log.config.half_open.ramp_up.filter(|_| was_open);
        let message = "the override ended".to_owned();
        self.close(log, word, ramp_up, Reason::OverrideEnded, message, now);
    }

    fn reopen(
        &self,
        log: &mut Log,
        word: Word,
        now: Time,
        retry_after: Option<Duration>,
        reason: Reason,
        message: String,
    ) {
        log.failed_recoveries = log.failed_recoveries.saturating_add(1);
        log.random = mix(log.random);
        let deadline = now + open_time(log, retry_after);
        self.step(log, word, State::Open, Some(deadline), reason, message, now);
    }

    fn close(
        &self,
        log: &mut Log,
        word: Word,
        ramp_up: Option<Duration>,
        reason: Reason,
        message: String,
        now: Time,
    ) {
        let until = ramp_up.map_or(0, |ramp_up| (now + ramp_up).as_nanos());
        self.ramp_from.store(now.as_nanos(), Ordering::Relaxed);
        self.ramp_until.store(until, Ordering::Relaxed);
        self.window.restart(log.config.window, now);
        self.step(log, word, State::Closed, None, reason, message, now);
    }

    #[allow(clippy::too_many_arguments)]
    fn step(
        &self,
        log: &mut Log,
        from: Word,
        to: State,
        deadline: Option<Time>,
        reason: Reason,
        message: String,
        now: Time,
    ) {
        let next = from.next(to, deadline);
        if to == State::HalfOpen {
            self.probes.begin(next.epoch());
        }
        // Publishes the window, the ramp and the probes of the new epoch. Only
        // `arm` and `disarm` write without the mutex; they compare first.
        self.word.store(next.bits(), Ordering::SeqCst);
        log.push(from.state(), to, reason, message, now);
    }

    fn half_open(&self, epoch: u32) -> Option<Word> {
        let word = self.word(Ordering::SeqCst);
        (word.epoch() == epoch && word.state() == State::HalfOpen).then_some(word)
    }

    /// A probe is under way: from the first one on, the recovery has a
    /// deadline.
    pub(super) fn arm(&self, epoch: u32, now: Time) {
        // The slot is taken before the deadline is looked at, and in `disarm`
        // the other way round: one of the two sees the other.
        fence(Ordering::SeqCst);
        let deadline = now + self.settings.half_open_timeout();
        while let Some(word) = self.half_open(epoch)
            && word.deadline().is_none()
            && !self.change_deadline(word, Some(deadline))
        {}
    }

    /// A probe succeeded and none is left under way: the recovery waits for
    /// requests, not for the destination.
    pub(super) fn disarm(&self, epoch: u32, now: Time) {
        while let Some(word) = self.half_open(epoch)
            && word.deadline().is_some()
            && !self.change_deadline(word, None)
        {}
        fence(Ordering::SeqCst);
        if self.probes.in_flight(epoch) > 0 {
            self.arm(epoch, now);
        }
    }

    fn change_deadline(&self, word: Word, deadline: Option<Time>) -> bool {
        let new = word.with_deadline(deadline).bits();
        self.word
            .compare_exchange(word.bits(), new, Ordering::SeqCst, Ordering::SeqCst)
            .is_ok()
    }
}

/// How long to stay open: doubled with each recovery that failed, spread, and
/// not shorter than the destination asked for.
fn open_time(log: &Log, retry_after: Option<Duration>) -> Duration {
    let open = log.config.open;
    let doublings = log.failed_recoveries.min(31);
    let time = open.duration.saturating_mul(1 << doublings).min(open.max);
    let jitter = time.mul_f64(f64::from(open.jitter.get()) / 100.0);
    // Spread below the maximum, not cut at it: nodes that have all reached it
    // would return together.
    let spread = between(time - jitter, (time + jitter).min(open.max), log.random);
    let asked = retry_after
        .filter(|_| open.honor_retry_after)
        .unwrap_or_default();
    spread.max(asked.min(open.max))
}
