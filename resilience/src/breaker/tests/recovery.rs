//! HalfOpen and after: how a breaker comes back, and how it does not.

use super::*;

#[test]
fn of_many_callers_at_once_exactly_as_many_as_there_are_probes_pass() {
    let mut bench = Bench::new(&config());
    bench.half_open();
    let admitted: Vec<_> = (0..100).filter_map(|_| bench.acquire().ok()).collect();
    assert_eq!(admitted.len(), 2);
    assert!(bench.refusal().retry_after.is_some());
    admitted
        .into_iter()
        .for_each(|permit| bench.breaker.release(permit, bench.now));
}

#[test]
fn a_dropped_probe_gives_its_slot_back_and_says_nothing() {
    let mut bench = Bench::new(&config());
    bench.half_open();
    for _ in 0..10 {
        let permits = [(); 2].map(|()| bench.acquire().unwrap());
        bench.refusal();
        for permit in permits {
            bench.breaker.release(permit, bench.now);
        }
    }
    assert_eq!(bench.state(), State::HalfOpen);
    bench.requests(&[ok(), ok()]);
    assert_eq!(bench.state(), State::Closed);
}

#[test]
fn a_hung_probe_ends_the_recovery_and_the_next_time_is_longer() {
    let mut bench = Bench::new(&config());
    bench.half_open();
    let hung = bench.acquire().unwrap();
    bench.pass(10 * SECOND + Duration::from_millis(1));
    let status = bench.breaker.status(bench.now);
    assert_eq!(
        (status.state, status.reason),
        (State::Open, Some(Reason::ProbeTimeout))
    );
    assert_eq!(status.message, "recovery took longer than 10s");
    bench.record(hung, &ok());
    assert_eq!(bench.state(), State::Open, "its result comes too late");
    bench.pass(9 * SECOND);
    assert_eq!(
        bench.state(),
        State::Open,
        "5s the first time, 10s the second"
    );
    bench.pass(SECOND);
    assert_eq!(bench.state(), State::HalfOpen);
    let admitted: Vec<_> = (0..100).filter_map(|_| bench.acquire().ok()).collect();
    assert_eq!(admitted.len(), 2, "the slot of the hung probe is back");
}

#[test]
fn probes_whose_callers_leave_do_not_keep_a_recovery_going_for_ever() {
    let mut bench = Bench::new(&config());
    bench.half_open();
    for _ in 0..10 {
        let permit = bench.acquire().unwrap();
        bench.pass(SECOND);
        bench.breaker.release(permit, bench.now);
    }
    bench.pass(Duration::from_millis(1));
    assert_eq!(bench.refusal().state, State::Open);
}

#[test]
fn a_recovery_waits_for_requests_but_not_for_answers() {
    let mut bench = Bench::new(&config());
    bench.half_open();
    bench.request(&ok());
    bench.pass(3600 * SECOND);
    assert_eq!(bench.state(), State::HalfOpen, "thin traffic is no failure");
    let _hung = bench.acquire().unwrap();
    bench.pass(11 * SECOND);
    assert_eq!(bench.state(), State::Open);
}

#[test]
fn one_failed_probe_opens_it_again_even_a_soft_one() {
    for cause in [
        Cause::Status(503),
        Cause::Status(429),
        Cause::Grpc(8),
        Cause::Reset,
    ] {
        let mut bench = Bench::new(&config());
        bench.half_open();
        bench.request(&ok());
        bench.request(&failed(cause));
        let status = bench.breaker.status(bench.now);
        assert_eq!(
            (status.state, status.reason),
            (State::Open, Some(Reason::ProbeFailed))
        );
        assert_eq!(status.message, format!("a probe failed with {cause}"));
    }
}

#[test]
fn the_open_time_doubles_with_each_failed_recovery_up_to_the_maximum() {
    let mut bench = Bench::new(&config());
    bench.trip();
    for seconds in [5, 10, 20, 40, 60, 60] {
        bench.pass(SECOND * seconds - Duration::from_millis(1));
        assert_eq!(bench.refusal().state, State::Open, "{seconds}s");
        bench.pass(Duration::from_millis(2));
        bench.request(&bad());
    }
}

#[test]
fn the_open_time_is_spread_and_never_above_the_maximum() {
    let mut config = config();
    config.open.jitter = Percent::new(20).unwrap();
    config.open.max = 5500 * Duration::from_millis(1);
    let times: Vec<u128> = (0..200)
        .map(|n| {
            let bench = Bench::new(&config);
            for _ in 0..3 {
                let permit = bench.acquire().unwrap();
                bench
                    .breaker
                    .record(0, permit, bench.now, crate::random::mix(n), &bad());
            }
            bench.refusal().retry_after.unwrap().as_millis()
        })
        .collect();
    assert!(times.iter().all(|time| (4000..=5501).contains(time)));
    assert!(times.iter().any(|time| *time < 4300) && times.iter().any(|time| *time > 5200));
    let at_the_end = times.iter().filter(|time| **time >= 5490).count();
    assert!(
        at_the_end < 20,
        "not cut at the maximum: {at_the_end} of 200 there"
    );
}

#[test]
fn retry_after_is_a_lower_bound_for_the_open_time_up_to_the_maximum() {
    let asks = |seconds: u64| Outcome::Failure {
        cause: Cause::Status(503),
        took: SECOND,
        retry_after: Some(SECOND * seconds as u32),
    };
    for (asked, honoured, expected) in [
        (1, true, 5),
        (30, true, 30),
        (600, true, 60),
        (30, false, 5),
    ] {
        let mut config = config();
        config.open.honor_retry_after = honoured;
        let bench = Bench::new(&config);
        bench.requests(&[bad(), bad(), asks(asked)]);
        assert_eq!(bench.refusal().retry_after.unwrap().as_secs(), expected);
    }
}

#[test]
fn after_closing_the_window_is_empty() {
    let mut bench = Bench::new(&config());
    bench.half_open();
    assert_eq!(
        bench.breaker.status(bench.now).failure_percent,
        100,
        "as when it opened"
    );
    bench.requests(&[ok(), ok()]);
    let status = bench.breaker.status(bench.now);
    assert_eq!(
        (status.state, status.reason),
        (State::Closed, Some(Reason::Recovered))
    );
    assert_eq!(status.message, "2 probes in a row succeeded");
    assert_eq!((status.window_requests, status.failure_percent), (0, 0));
    bench.requests(&[bad(), bad()]);
    assert_eq!(bench.state(), State::Closed);
}

fn ramping() -> config::Breaker {
    let mut config = config();
    config.half_open.ramp_up = Some(10 * SECOND);
    config
}

/// How many of a thousand requests are admitted.
fn admitted(bench: &Bench) -> usize {
    (0..1000)
        .filter(
            |n| match bench.breaker.acquire(bench.now, crate::random::mix(*n)) {
                Ok(permit) => {
                    bench.breaker.release(permit, bench.now);
                    true
                }
                Err(refused) => {
                    assert_eq!(refused.state, State::Closed);
                    assert!(refused.retry_after.unwrap() <= SECOND);
                    false
                }
            },
        )
        .count()
}

#[test]
fn after_closing_the_admitted_share_grows_to_all() {
    let mut bench = Bench::new(&ramping());
    bench.half_open();
    bench.requests(&[ok(), ok()]);
    for (seconds, share) in [(0, 100), (1, 100), (2, 300), (3, 600), (3, 900)] {
        bench.pass(SECOND * seconds);
        let admitted = admitted(&bench);
        assert!(
            admitted.abs_diff(share) < 50,
            "{admitted} of 1000, not {share}"
        );
    }
    bench.pass(SECOND);
    assert_eq!(admitted(&bench), 1000);
}

#[test]
fn a_trip_while_the_share_still_grows_is_a_failed_recovery() {
    let mut bench = Bench::new(&ramping());
    bench.half_open();
    bench.requests(&[ok(), ok(), bad(), bad(), bad()]);
    assert_eq!(bench.refusal().retry_after.unwrap().as_secs(), 10);

    bench.pass(11 * SECOND);
    bench.requests(&[ok(), ok()]);
    bench.pass(11 * SECOND);
    bench.requests(&[bad(), bad(), bad()]);
    assert_eq!(
        bench.refusal().retry_after.unwrap().as_secs(),
        5,
        "the recovery had held"
    );
}

#[test]
fn slow_probes_open_it_again_where_slow_requests_would() {
    let config = config::Breaker {
        slow: Some(SlowRequests {
            threshold: SECOND,
            percent: Percent::new(60).unwrap(),
        }),
        ..config()
    };
    let mut bench = Bench::new(&config);
    bench.half_open();
    bench.requests(&[slow(), slow()]);
    let status = bench.breaker.status(bench.now);
    assert_eq!(
        (status.state, status.reason),
        (State::Open, Some(Reason::ProbeFailed))
    );
    assert_eq!(status.message, "2 of 2 probes were slow");
    let mut bench = Bench::new(&config);
    bench.half_open();
    bench.requests(&[slow(), ok()]);
    assert_eq!(bench.state(), State::Closed);
}
