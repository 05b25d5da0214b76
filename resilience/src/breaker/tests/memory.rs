//! A breaker goes on where another was, in a process with other clocks.

use proptest::prelude::*;

use super::*;
use crate::config::Forced;

fn ramping() -> config::Breaker {
    let mut config = config();
    config.half_open.ramp_up = Some(10 * SECOND);
    config
}

fn memory(bench: &Bench) -> Option<Memory> {
    bench.breaker.memory(bench.now, bench.unix_ms)
}

/// A breaker of this policy in a process that began at another time.
fn elsewhere(config: &config::Breaker, old: &Bench) -> Bench {
    let now = Time::from_nanos(3_600_000_456_789);
    Bench {
        breaker: Breaker::new(config, 1, now, old.unix_ms),
        now,
        unix_ms: old.unix_ms,
    }
}

/// The same at once, with what `old` leaves.
fn successor(config: &config::Breaker, old: &Bench) -> Bench {
    let new = elsewhere(config, old);
    let memory = memory(old).expect("there is something to remember");
    assert!(new.breaker.remember(&memory, new.now, new.unix_ms));
    new
}

#[test]
fn a_breaker_that_never_opened_leaves_nothing() {
    let bench = Bench::new(&config());
    bench.requests(&[bad(), bad(), ok()]);
    assert_eq!(memory(&bench), None);
}

#[test]
fn the_successor_of_an_open_breaker_refuses_for_the_rest_of_its_time() {
    let mut old = Bench::new(&config());
    old.trip();
    old.pass(2 * SECOND);
    let mut new = successor(&config(), &old);
    let refused = new.refusal();
    assert_eq!(refused.state, State::Open);
    assert_eq!(refused.retry_after.unwrap().as_secs(), 3);
    let (was, is) = (old.breaker.status(old.now), new.breaker.status(new.now));
    assert_eq!((is.state, is.reason), (was.state, was.reason));
    assert_eq!(is.message, was.message);
    assert_eq!(new.now.since(is.since).as_secs(), 2);
    new.pass(3 * SECOND + Duration::from_millis(2));
    assert_eq!(new.state(), State::HalfOpen);
}

#[test]
fn what_is_remembered_is_a_step_but_no_transition_of_the_successors_own() {
    let old = Bench::new(&config());
    old.trip();
    let new = elsewhere(&config(), &old);
    let before = new.breaker.step_count();
    let permit = new.acquire().unwrap();
    let memory = memory(&old).unwrap();
    assert!(new.breaker.remember(&memory, new.now, new.unix_ms));
    assert_ne!(new.breaker.step_count(), before);
    assert_eq!(new.steps(), []);
    // Of an older epoch.
    new.record(permit, &ok());
    assert_eq!(new.state(), State::Open);
}

#[test]
fn the_open_time_goes_on_growing() {
    let mut old = Bench::new(&config());
    old.half_open();
    old.request(&bad());
    assert_eq!(old.refusal().retry_after.unwrap().as_secs(), 10);
    let mut new = successor(&config(), &old);
    new.pass(11 * SECOND);
    new.request(&bad());
    assert_eq!(new.refusal().retry_after.unwrap().as_secs(), 20);
}

#[test]
fn the_successor_of_a_half_open_breaker_lets_all_its_probes_through() {
    let mut old = Bench::new(&config());
    old.half_open();
    let _lost = old.acquire().unwrap();
    old.pass(SECOND);
    let new = successor(&config(), &old);
    assert_eq!(new.state(), State::HalfOpen);
    let status = new.breaker.status(new.now);
    assert_eq!(status.reason, Some(Reason::OpenElapsed));
    assert_eq!(new.now.since(status.since).as_secs(), 1);
    let probes = [new.acquire().unwrap(), new.acquire().unwrap()];
    assert_eq!(new.refusal().state, State::HalfOpen);
    for probe in probes {
        assert!(probe.is_probe());
        new.record(probe, &ok());
    }
    assert_eq!(
        new.steps(),
        [(State::HalfOpen, State::Closed, Reason::Recovered)]
    );
}

#[test]
fn an_open_time_that_has_passed_on_the_way_lets_probes_through() {
    let old = Bench::new(&config());
    old.trip();
    let memory = memory(&old).unwrap();
    let mut new = elsewhere(&config(), &old);
    new.pass(30 * SECOND);
    assert!(new.breaker.remember(&memory, new.now, new.unix_ms));
    assert_eq!(new.state(), State::HalfOpen);
    let message = new.breaker.status(new.now).message;
    assert!(message.starts_with("open for 5"), "{message}");
}

#[test]
fn a_share_that_grows_goes_on_growing() {
    let mut old = Bench::new(&ramping());
    old.half_open();
    old.requests(&[ok(), ok()]);
    old.pass(4 * SECOND);
    let mut new = successor(&ramping(), &old);
    let admits = |bench: &Bench, share: f64| {
        let random = (u64::MAX as f64 * share) as u64;
        bench.breaker.acquire(bench.now, random).is_ok()
    };
    assert!(admits(&new, 0.35) && !admits(&new, 0.45));
    // A trip now would be a failed recovery.
    new.requests(&[bad(), bad(), bad()]);
    assert_eq!(new.refusal().retry_after.unwrap().as_secs(), 10);

    old.pass(7 * SECOND);
    new.pass(7 * SECOND);
    assert_eq!(memory(&old), None, "the share is whole");
}

#[test]
fn what_was_over_long_ago_is_forgotten() {
    let old = Bench::new(&config());
    old.trip();
    let open = memory(&old).unwrap();
    let half_open = Memory {
        phase: Phase::HalfOpen {
            at_unix_ms: old.unix_ms,
        },
        ..open.clone()
    };
    let growing = Memory {
        phase: Phase::Growing {
            from_unix_ms: old.unix_ms,
            until_unix_ms: old.unix_ms + 1,
        },
        ..open.clone()
    };
    for memory in [open, half_open, growing] {
        let mut new = elsewhere(&ramping(), &old);
        new.pass(66 * SECOND);
        assert!(!new.breaker.remember(&memory, new.now, new.unix_ms));
        assert_eq!(new.state(), State::Closed);
    }
}

#[test]
fn a_wall_clock_that_was_set_keeps_nothing_open_for_longer_than_the_policy_could() {
    let old = Bench::new(&config());
    old.trip();
    for unix_ms in [i64::MAX, old.unix_ms + 86_400_000] {
        let memory = Memory {
            phase: Phase::Open {
                until_unix_ms: unix_ms,
            },
            since_unix_ms: unix_ms,
            ..memory(&old).unwrap()
        };
        let new = elsewhere(&config(), &old);
        assert!(new.breaker.remember(&memory, new.now, new.unix_ms));
        let refused = new.refusal().retry_after.unwrap();
        assert!(refused <= 61 * SECOND, "{refused:?}");
    }
    let growing = Memory {
        phase: Phase::Growing {
            from_unix_ms: i64::MIN,
            until_unix_ms: i64::MAX,
        },
        ..memory(&old).unwrap()
    };
    let mut new = elsewhere(&ramping(), &old);
    assert!(new.breaker.remember(&growing, new.now, new.unix_ms));
    new.pass(11 * SECOND);
    assert!(new.breaker.acquire(new.now, u64::MAX).is_ok());
    let plain = elsewhere(&config(), &old);
    assert!(!plain.breaker.remember(&growing, plain.now, plain.unix_ms));
}

#[test]
fn a_breaker_that_has_decided_for_itself_remembers_nothing() {
    let old = Bench::new(&config());
    old.trip();
    let memory = memory(&old).unwrap();
    let mut new = elsewhere(&config(), &old);
    new.half_open();
    new.requests(&[ok(), ok()]);
    assert!(!new.breaker.remember(&memory, new.now, new.unix_ms));
    assert_eq!(new.state(), State::Closed);
    let twice = successor(&config(), &old);
    assert!(!twice.breaker.remember(&memory, twice.now, twice.unix_ms));
}

#[test]
fn what_a_person_forces_is_neither_handed_over_nor_overruled() {
    for open in [false, true] {
        let old = Bench::new(&config());
        old.trip();
        let memory = memory(&old).unwrap();
        let forced = config::Breaker {
            forced: Some(Forced {
                open,
                reason: "maintenance".to_owned(),
                expires_at_unix_ms: old.unix_ms + 60_000,
            }),
            ..config()
        };
        let new = elsewhere(&forced, &old);
        let state = new.state();
        assert!(!new.breaker.remember(&memory, new.now, new.unix_ms));
        assert_eq!(new.state(), state);
        assert_eq!(new.breaker.memory(new.now, new.unix_ms), None);
    }
}

#[test]
fn what_was_before_a_reset_is_forgotten() {
    let old = Bench::new(&config());
    old.trip();
    let reset = config::Breaker {
        reset: "2026-11-24".to_owned(),
        ..config()
    };
    let new = elsewhere(&reset, &old);
    let before = memory(&old).unwrap();
    assert!(!new.breaker.remember(&before, new.now, new.unix_ms));
    // What opened after the same reset is not.
    old.reconfigure(&reset);
    old.trip();
    let after = memory(&old).unwrap();
    assert!(new.breaker.remember(&after, new.now, new.unix_ms));
}

#[derive(Clone, Debug)]
enum Step {
    Request { random: u64, good: bool },
    Pass { quarters: u32 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (any::<u64>(), any::<bool>()).prop_map(|(random, good)| Step::Request { random, good }),
        1 => (1u32..30).prop_map(|quarters| Step::Pass { quarters }),
    ];
    prop::collection::vec(step, 0..60)
}

/// The answer: admitted or not, and by which state refused.
fn take(bench: &mut Bench, step: &Step, judged: bool) -> Option<Result<bool, State>> {
    match *step {
        Step::Pass { quarters } => {
            bench.pass(SECOND / 4 * quarters);
            None
        }
        Step::Request { random, good } => {
            let permit = match bench.breaker.acquire(bench.now, random) {
                Ok(permit) => permit,
                Err(refused) => return Some(Err(refused.state)),
            };
            let probe = permit.is_probe();
            if judged {
                bench.record(permit, &if good { ok() } else { bad() });
            } else {
                bench.breaker.release(permit, bench.now);
            }
            Some(Ok(probe))
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_successor_answers_as_the_breaker_itself_would(before in steps(), after in steps(), ramp in any::<bool>()) {
        let config = if ramp { ramping() } else { config() };
        let mut old = Bench::new(&config);
        for step in &before {
            take(&mut old, step, true);
        }
        let state = old.state();
        prop_assume!(memory(&old).is_some());
        let mut new = successor(&config, &old);
        prop_assert_eq!(new.state(), state);
        if state == State::HalfOpen {
            // How many probes have succeeded is not handed over.
            let fails = Step::Request { random: 0, good: false };
            prop_assert_eq!(take(&mut old, &fails, true), take(&mut new, &fails, true));
        }
        // Nor is what a closed breaker has counted.
        let judged = state != State::Closed;
        for step in &after {
            prop_assert_eq!(take(&mut old, step, judged), take(&mut new, step, judged), "{:?}", step);
            prop_assert_eq!(old.state(), new.state());
        }
    }
}
