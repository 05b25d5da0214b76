//! What people make a breaker do.

use super::*;

fn forced(bench: &Bench, open: bool, millis: i64) -> config::Breaker {
    let expires_at_unix_ms = bench.unix_ms + millis;
    let reason = "maintenance".to_owned();
    config::Breaker {
        forced: Some(Forced {
            open,
            reason,
            expires_at_unix_ms,
        }),
        ..config()
    }
}

#[test]
fn forced_open_refuses_all_until_it_expires() {
    let mut bench = Bench::new(&config());
    bench.reconfigure(&forced(&bench, true, 60_000));
    bench.pass(59 * SECOND);
    let refused = bench.refusal();
    assert_eq!(refused.state, State::ForcedOpen);
    assert_eq!(refused.retry_after.unwrap().as_secs(), 1);
    assert_eq!(bench.breaker.status(bench.now).message, "maintenance");
    bench.pass(2 * SECOND);
    bench.request(&ok());
    assert_eq!(
        bench.steps(),
        [
            (State::Closed, State::ForcedOpen, Reason::Override),
            (State::ForcedOpen, State::Closed, Reason::OverrideEnded),
        ]
    );
}

#[test]
fn forced_closed_admits_all_and_goes_on_counting() {
    let mut bench = Bench::new(&config());
    bench.trip();
    bench.reconfigure(&forced(&bench, false, 60_000));
    bench.requests(&vec![bad(); 100]);
    let status = bench.breaker.status(bench.now);
    assert_eq!(
        (status.state, status.failure_percent),
        (State::ForcedClosed, 100)
    );
    bench.pass(61 * SECOND);
    assert_eq!(bench.state(), State::Closed);
    bench.trip();
}

#[test]
fn taking_an_override_back_ends_it_at_once() {
    let bench = Bench::new(&config());
    bench.reconfigure(&forced(&bench, true, 60_000));
    bench.reconfigure(&config());
    let status = bench.breaker.status(bench.now);
    assert_eq!(
        (status.state, status.reason),
        (State::Closed, Some(Reason::OverrideEnded))
    );
}

#[test]
fn an_override_that_is_applied_again_is_no_transition_but_its_end_moves() {
    let mut bench = Bench::new(&config());
    bench.reconfigure(&forced(&bench, true, 10_000));
    bench.pass(9 * SECOND);
    bench.reconfigure(&forced(&bench, true, 10_000));
    bench.pass(9 * SECOND);
    assert_eq!(bench.state(), State::ForcedOpen);
    assert_eq!(bench.steps().len(), 1);
    bench.reconfigure(&forced(&bench, false, 10_000));
    assert_eq!(bench.state(), State::ForcedClosed);
}

#[test]
fn an_expired_override_does_nothing() {
    let bench = Bench::new(&config());
    bench.reconfigure(&forced(&bench, true, 0));
    assert_eq!(bench.state(), State::Closed);
    assert_eq!(bench.steps(), []);
}

#[test]
fn a_new_breaker_obeys_an_override_and_has_nothing_to_reset() {
    let probe = Bench::new(&config());
    let config = config::Breaker {
        reset: "a".to_owned(),
        ..forced(&probe, true, 1_000)
    };
    let bench = Bench::new(&config);
    let status = bench.breaker.status(bench.now);
    assert_eq!(
        (status.state, status.observed_reset.as_str()),
        (State::ForcedOpen, "a")
    );
    assert_eq!(bench.steps().len(), 1);
}

#[test]
fn after_forced_open_the_share_grows_as_after_a_recovery() {
    let mut bench = Bench::new(&config());
    let mut config = forced(&bench, true, 1_000);
    config.half_open.ramp_up = Some(10 * SECOND);
    bench.reconfigure(&config);
    bench.pass(2 * SECOND);
    let refused = bench.breaker.acquire(bench.now, u64::MAX).unwrap_err();
    assert_eq!(refused.state, State::Closed);
}

#[test]
fn a_new_reset_closes_it_once_and_forgets_failed_recoveries() {
    let mut bench = Bench::new(&config());
    bench.half_open();
    bench.request(&bad());
    let reset = config::Breaker {
        reset: "1".to_owned(),
        ..config()
    };
    bench.reconfigure(&reset);
    let status = bench.breaker.status(bench.now);
    assert_eq!(
        (status.state, status.reason),
        (State::Closed, Some(Reason::Reset))
    );
    assert_eq!(status.observed_reset, "1");
    bench.trip();
    assert_eq!(bench.refusal().retry_after.unwrap().as_secs(), 5);
    bench.reconfigure(&reset);
    assert_eq!(bench.state(), State::Open, "the same value resets nothing");
    bench.reconfigure(&config());
    assert_eq!(bench.state(), State::Open, "nor does none");
}

#[test]
fn a_reset_of_a_closed_breaker_empties_its_window_without_an_event() {
    let bench = Bench::new(&config());
    let late = bench.acquire().unwrap();
    bench.requests(&[bad(), bad()]);
    bench.reconfigure(&config::Breaker {
        reset: "1".to_owned(),
        ..config()
    });
    bench.record(late, &bad());
    assert_eq!(bench.breaker.status(bench.now).window_requests, 0);
    assert_eq!(bench.steps(), []);
}

#[test]
fn transitions_that_nobody_comes_for_are_bounded_and_counted() {
    let mut bench = Bench::new(&config());
    for n in 0..100 {
        let reset = config::Breaker {
            reset: n.to_string(),
            ..config()
        };
        bench.trip();
        bench.reconfigure(&reset);
        bench.pass(SECOND);
    }
    let steps = bench.transitions();
    assert_eq!((steps.len(), bench.breaker.lost_transitions()), (64, 136));
    assert_eq!(steps.last().unwrap().epoch, 200);
    assert!(steps.is_sorted_by_key(|step| step.epoch));
}
