//! The words of a breaker under every interleaving of two or three threads.

use std::num::{NonZeroU16, NonZeroU32};
use std::time::Duration;

use loom::sync::Arc;
use loom::thread;

use super::*;
use crate::config::{FailureOn, GrpcCodes, HalfOpen, Mode, OpenTime, Percent, StatusRanges};

const SECOND: Duration = Duration::from_secs(1);
const LATER: Time = Time::from_millis(6_000);

/// Opens with the first failure, for 5s; recovers within 10s.
fn config(probes: u16) -> config::Breaker {
    config::Breaker {
        key: "payments".to_owned(),
        window: config::Window::Fixed(10 * SECOND),
        minimum_requests: NonZeroU32::MIN,
        failure_percent: None,
        consecutive_failures: NonZeroU32::new(1),
        slow: None,
        failure_on: FailureOn {
            status_codes: StatusRanges::EMPTY,
            grpc_codes: GrpcCodes::EMPTY,
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
            probes: NonZeroU16::new(probes).unwrap(),
            timeout: 10 * SECOND,
            ramp_up: None,
        },
        forced: None,
        reset: String::new(),
        mode: Mode::Enforce,
    }
}

const OK: Outcome = Outcome::Success { took: SECOND };
const BAD: Outcome = Outcome::Failure {
    cause: Cause::Timeout,
    took: SECOND,
    retry_after: None,
};

fn check(body: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(2);
    model.check(body);
}

fn open(probes: u16) -> Arc<Breaker> {
    let breaker = Breaker::new(&config(probes), 2, Time::ZERO, 0);
    let permit = breaker.acquire(Time::ZERO, 0).unwrap();
    breaker.record(0, permit, Time::ZERO, 0, &BAD);
    Arc::new(breaker)
}

fn steps(breaker: &Breaker, now: Time) -> Vec<State> {
    let mut out = Vec::new();
    breaker.poll(now, &mut out);
    out.into_iter().map(|step| step.to).collect()
}

#[test]
fn loom_two_failures_at_once_make_one_transition() {
    check(|| {
        let breaker = Arc::new(Breaker::new(&config(1), 2, Time::ZERO, 0));
        let permits = [(); 2].map(|()| breaker.acquire(Time::ZERO, 0).unwrap());
        let threads = permits.into_iter().enumerate().map(|(n, permit)| {
            let breaker = breaker.clone();
            thread::spawn(move || breaker.record(n, permit, Time::ZERO, 0, &BAD))
        });
        threads
            .collect::<Vec<_>>()
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
        assert_eq!(steps(&breaker, Time::ZERO), [State::Open]);
        assert_eq!(breaker.status(Time::ZERO).epoch, 1);
    });
}

#[test]
fn loom_of_two_callers_at_once_one_gets_the_probe() {
    check(|| {
        let breaker = open(1);
        let threads = [(); 2].map(|()| {
            let breaker = breaker.clone();
            thread::spawn(move || breaker.acquire(LATER, 0).ok())
        });
        let permits = threads.map(|thread| thread.join().unwrap());
        assert_eq!(permits.iter().flatten().count(), 1);
        assert_eq!(steps(&breaker, LATER), [State::Open, State::HalfOpen]);
        // The deadline is armed: the probe hangs, and the recovery ends.
        assert_eq!(steps(&breaker, LATER + 10 * SECOND), [State::Open]);
    });
}

#[test]
fn loom_a_probe_is_never_under_way_without_a_deadline() {
    check(|| {
        let breaker = open(2);
        let first = breaker.acquire(LATER, 0).unwrap();
        let thread = {
            let breaker = breaker.clone();
            thread::spawn(move || breaker.acquire(LATER, 0).unwrap())
        };
        breaker.record(0, first, LATER, 0, &OK);
        let _hung = thread.join().unwrap();
        assert_eq!(steps(&breaker, LATER), [State::Open, State::HalfOpen]);
        assert_eq!(steps(&breaker, LATER + 10 * SECOND), [State::Open]);
    });
}

#[test]
fn loom_probes_that_end_at_once_bring_one_verdict() {
    check(|| {
        let breaker = open(2);
        let permits = [(); 2].map(|()| breaker.acquire(LATER, 0).unwrap());
        let outcomes = [OK, BAD];
        let threads =
            permits
                .into_iter()
                .zip(outcomes)
                .enumerate()
                .map(|(n, (permit, outcome))| {
                    let breaker = breaker.clone();
                    thread::spawn(move || breaker.record(n, permit, LATER, 0, &outcome))
                });
        threads
            .collect::<Vec<_>>()
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
        assert_eq!(
            steps(&breaker, LATER),
            [State::Open, State::HalfOpen, State::Open]
        );

        let breaker = open(2);
        let permits = [(); 2].map(|()| breaker.acquire(LATER, 0).unwrap());
        let threads = permits.into_iter().enumerate().map(|(n, permit)| {
            let breaker = breaker.clone();
            thread::spawn(move || breaker.record(n, permit, LATER, 0, &OK))
        });
        threads
            .collect::<Vec<_>>()
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
        assert_eq!(
            steps(&breaker, LATER),
            [State::Open, State::HalfOpen, State::Closed]
        );
    });
}

#[test]
fn loom_a_slot_that_comes_back_can_be_taken_and_is_not_there_twice() {
    check(|| {
        let breaker = open(1);
        let first = breaker.acquire(LATER, 0).unwrap();
        let thread = {
            let breaker = breaker.clone();
            thread::spawn(move || breaker.acquire(LATER, 0).ok())
        };
        breaker.release(first, LATER);
        let second = thread.join().unwrap();
        let third = breaker.acquire(LATER, 0).ok();
        assert!(second.is_some() != third.is_some());
    });
}
