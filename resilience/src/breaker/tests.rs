use std::num::{NonZeroU16, NonZeroU32};
use std::time::Duration;

use super::*;
use crate::config::{
    FailureOn, Forced, GrpcCodes, HalfOpen, Mode, OpenTime, Percent, SlowRequests, StatusRanges,
    Window,
};

mod contract;
mod memory;
mod model;
mod people;
mod recovery;
mod threads;

const SECOND: Duration = Duration::from_secs(1);

/// minimumRequests 3, failurePercent 60, a fixed window of 10s, open for 5s,
/// 2 probes; no jitter, no ramp, so that each moment is known.
fn config() -> config::Breaker {
    config::Breaker {
        key: "payments".to_owned(),
        window: Window::Fixed(10 * SECOND),
        minimum_requests: NonZeroU32::new(3).unwrap(),
        failure_percent: Percent::new(60),
        consecutive_failures: None,
        slow: None,
        failure_on: FailureOn {
            status_codes: StatusRanges::EMPTY
                .with(429, 429)
                .and_then(|set| set.with(500, 599))
                .unwrap(),
            grpc_codes: GrpcCodes::EMPTY
                .with(8)
                .and_then(|set| set.with(14))
                .unwrap(),
            timeouts: true,
            connection_failure: true,
        },
        open: OpenTime {
            duration: 5 * SECOND,
            max: 60 * SECOND,
            jitter: Percent::new(0).unwrap(),
            honor_retry_after: true,
        },
        half_open: HalfOpen {
            probes: NonZeroU16::new(2).unwrap(),
            timeout: 10 * SECOND,
            ramp_up: None,
        },
        forced: None,
        reset: String::new(),
        mode: Mode::Enforce,
    }
}

fn consecutive(limit: u32) -> config::Breaker {
    config::Breaker {
        failure_percent: None,
        consecutive_failures: NonZeroU32::new(limit),
        ..config()
    }
}

fn ok() -> Outcome {
    Outcome::Success {
        took: Duration::from_millis(5),
    }
}

fn slow() -> Outcome {
    Outcome::Success { took: 2 * SECOND }
}

fn failed(cause: Cause) -> Outcome {
    Outcome::Failure {
        cause,
        took: Duration::from_millis(5),
        retry_after: None,
    }
}

fn bad() -> Outcome {
    failed(Cause::Status(503))
}

/// A breaker and the clock that it is shown.
struct Bench {
    breaker: Breaker,
    now: Time,
    unix_ms: i64,
}

impl Bench {
    fn new(config: &config::Breaker) -> Bench {
        // Not a whole millisecond, and not the clock's origin.
        let now = Time::from_nanos(123_456_789);
        let unix_ms = 1_700_000_000_000;
        Bench {
            breaker: Breaker::new(config, 2, now, unix_ms),
            now,
            unix_ms,
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
        self.unix_ms += time.as_millis() as i64;
    }

    fn reconfigure(&self, config: &config::Breaker) {
        self.breaker.reconfigure(config, self.now, self.unix_ms);
    }

    fn acquire(&self) -> Result<Permit, Refused> {
        self.breaker.acquire(self.now, 0)
    }

    fn record(&self, permit: Permit, outcome: &Outcome) {
        self.breaker.record(0, permit, self.now, 0, outcome);
    }

    /// One request, admitted and answered at once.
    fn request(&self, outcome: &Outcome) {
        let permit = self.acquire().expect("the request is admitted");
        self.record(permit, outcome);
    }

    fn requests(&self, outcomes: &[Outcome]) {
        outcomes.iter().for_each(|outcome| self.request(outcome));
    }

    fn refusal(&self) -> Refused {
        self.acquire().expect_err("the request is refused")
    }

    fn state(&self) -> State {
        self.breaker.state(self.now)
    }

    fn transitions(&self) -> Vec<Transition> {
        let mut out = Vec::new();
        self.breaker.poll(self.now, &mut out);
        out
    }

    fn steps(&self) -> Vec<(State, State, Reason)> {
        self.transitions()
            .into_iter()
            .map(|step| (step.from, step.to, step.reason))
            .collect()
    }

    /// Opens it.
    fn trip(&self) {
        self.requests(&[bad(), bad(), bad()]);
        assert_eq!(self.state(), State::Open);
    }

    /// Opens it and waits until it lets probes through.
    fn half_open(&mut self) {
        self.trip();
        // The deadline is rounded up to a millisecond.
        self.pass(5 * SECOND + Duration::from_millis(1));
        assert_eq!(self.state(), State::HalfOpen);
        self.transitions();
    }
}
