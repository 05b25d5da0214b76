//! Closed and Open: what opens a breaker, what does not, and how it refuses.

use super::*;

#[test]
fn the_breaker_of_the_article_goes_through_its_states_in_order() {
    let mut bench = Bench::new(&config());
    bench.requests(&[ok(), bad()]);
    assert_eq!(bench.state(), State::Closed);
    bench.request(&bad());
    assert_eq!(bench.state(), State::Open);

    bench.pass(5 * SECOND - Duration::from_millis(1));
    assert_eq!(bench.refusal().state, State::Open);
    bench.pass(Duration::from_millis(2));
    let first = bench.acquire().unwrap();
    let second = bench.acquire().unwrap();
    assert!(first.is_probe() && second.is_probe());
    assert_eq!(bench.refusal().state, State::HalfOpen);

    bench.record(first, &ok());
    assert_eq!(bench.state(), State::HalfOpen);
    bench.record(second, &ok());
    assert_eq!(bench.state(), State::Closed);
    bench.requests(&[ok(), ok(), bad()]);
    assert_eq!(bench.state(), State::Closed);

    assert_eq!(
        bench.steps(),
        [
            (State::Closed, State::Open, Reason::FailureRate),
            (State::Open, State::HalfOpen, Reason::OpenElapsed),
            (State::HalfOpen, State::Closed, Reason::Recovered),
        ]
    );
    assert_eq!(bench.breaker.status(bench.now).rejected_total, 2);
}

#[test]
fn with_fewer_requests_than_the_minimum_no_share_of_failures_opens_it() {
    let bench = Bench::new(&config());
    bench.requests(&[bad(), bad()]);
    assert_eq!(bench.state(), State::Closed);
}

#[test]
fn failures_in_a_row_open_it_whatever_the_minimum_is() {
    let bench = Bench::new(&config::Breaker {
        minimum_requests: NonZeroU32::new(1000).unwrap(),
        consecutive_failures: NonZeroU32::new(2),
        ..config()
    });
    bench.requests(&[bad(), ok(), bad()]);
    assert_eq!(bench.state(), State::Closed);
    bench.request(&failed(Cause::Timeout));
    let status = bench.breaker.status(bench.now);
    assert_eq!(status.state, State::Open);
    assert_eq!(status.reason, Some(Reason::ConsecutiveFailures));
    assert_eq!(
        status.message,
        "2 requests in a row failed, the last with timeout"
    );
}

#[test]
fn a_429_counts_in_the_rate_and_not_in_a_row() {
    for soft in [Cause::Status(429), Cause::Grpc(8)] {
        let bench = Bench::new(&consecutive(2));
        bench.requests(&[
            failed(soft),
            failed(soft),
            failed(soft),
            bad(),
            failed(soft),
        ]);
        assert_eq!(bench.state(), State::Closed, "{soft}");
        bench.request(&bad());
        assert_eq!(
            bench.state(),
            State::Open,
            "it does not end the run of {soft} either"
        );

        let bench = Bench::new(&config());
        bench.requests(&[failed(soft), failed(soft), failed(soft)]);
        assert_eq!(bench.state(), State::Open, "{soft}");
    }
}

/// Neither timeouts nor connection failures are listed.
fn only_answers(config: config::Breaker) -> config::Breaker {
    let failure_on = FailureOn {
        timeouts: false,
        connection_failure: false,
        ..config.failure_on
    };
    config::Breaker {
        failure_on,
        ..config
    }
}

#[test]
fn an_answer_that_the_policy_does_not_list_is_a_success() {
    let bench = Bench::new(&only_answers(consecutive(1)));
    bench.requests(&[failed(Cause::Status(404)), failed(Cause::Grpc(5))]);
    let status = bench.breaker.status(bench.now);
    assert_eq!((status.state, status.window_requests), (State::Closed, 2));
    bench.request(&failed(Cause::Grpc(14)));
    assert_eq!(bench.state(), State::Open);
}

#[test]
fn an_answer_that_never_came_is_no_success_even_where_it_is_no_failure() {
    let mut bench = Bench::new(&only_answers(config()));
    let none = [Cause::Timeout, Cause::Connect, Cause::Reset].map(failed);
    bench.requests(&none);
    assert_eq!(bench.breaker.status(bench.now).window_requests, 0);
    bench.half_open();
    bench.requests(&none);
    assert_eq!(bench.state(), State::HalfOpen);
    bench.requests(&[ok(), ok()]);
    assert_eq!(bench.state(), State::Closed, "the slots came back");
}

#[test]
fn slow_requests_open_it_though_they_succeed() {
    let bench = Bench::new(&config::Breaker {
        slow: Some(SlowRequests {
            threshold: SECOND,
            percent: Percent::new(50).unwrap(),
        }),
        ..config()
    });
    bench.requests(&[ok(), ok(), slow()]);
    assert_eq!(bench.state(), State::Closed);
    bench.request(&slow());
    let status = bench.breaker.status(bench.now);
    assert_eq!(
        (status.state, status.reason),
        (State::Open, Some(Reason::SlowRequests))
    );
    assert_eq!(
        status.message,
        "50% of 4 requests took longer than 1s in 10s"
    );
    assert_eq!(status.failure_percent, 0);
}

#[test]
fn the_message_says_how_much_failed_of_what_and_how() {
    let bench = Bench::new(&config());
    bench.requests(&[ok(), failed(Cause::Timeout)]);
    // Recorded by another worker.
    let permits = [(); 2].map(|()| bench.acquire().unwrap());
    for permit in permits {
        bench.breaker.record(1, permit, bench.now, 0, &bad());
    }
    let step = &bench.transitions()[0];
    assert_eq!(
        step.message,
        "67% of 3 requests failed in 10s: timeout ×1, 503 ×1"
    );
    assert_eq!(
        (step.from, step.to, step.at),
        (State::Closed, State::Open, bench.now)
    );
    assert_eq!(step.epoch, 1);
}

#[test]
fn an_open_breaker_refuses_every_request_and_says_when_to_come_back() {
    let mut bench = Bench::new(&config());
    bench.trip();
    bench.pass(2 * SECOND);
    for _ in 0..100 {
        let refused = bench.refusal();
        assert_eq!(refused.state, State::Open);
        assert_eq!(refused.retry_after.unwrap().as_millis(), 3000);
    }
    assert_eq!(bench.breaker.status(bench.now).rejected_total, 100);
}

#[test]
fn without_traffic_an_open_breaker_becomes_ready_and_stays_so() {
    let mut bench = Bench::new(&config());
    bench.trip();
    bench.pass(SECOND * 3600);
    let status = bench.breaker.status(bench.now);
    assert_eq!(
        (status.state, status.reason),
        (State::HalfOpen, Some(Reason::OpenElapsed))
    );
    // As of the moment at which it was due, though nobody looked.
    assert_eq!((bench.now - status.since).as_secs(), 3594);
    bench.pass(SECOND * 3600);
    assert_eq!(
        bench.state(),
        State::HalfOpen,
        "nobody failed where nobody tried"
    );
    assert_eq!(bench.steps().len(), 2);
}

#[test]
fn a_late_result_of_before_the_trip_changes_nothing() {
    let mut bench = Bench::new(&config());
    let late = [(); 8].map(|()| bench.acquire().unwrap());
    bench.half_open();
    let mut late = late.into_iter();
    bench.record(late.next().unwrap(), &bad());
    bench.record(late.next().unwrap(), &ok());
    bench.record(late.next().unwrap(), &ok());
    assert_eq!(bench.state(), State::HalfOpen);
    bench.requests(&[ok(), ok()]);
    assert_eq!(bench.state(), State::Closed);
    late.for_each(|permit| bench.record(permit, &bad()));
    let status = bench.breaker.status(bench.now);
    assert_eq!((status.state, status.window_requests), (State::Closed, 0));
}

#[test]
fn after_an_idle_window_the_next_sample_counts_as_the_first() {
    for window in [Window::Fixed(10 * SECOND), Window::Rolling(10 * SECOND)] {
        let mut bench = Bench::new(&config::Breaker { window, ..config() });
        bench.requests(&[bad(), bad()]);
        bench.pass(10 * SECOND);
        assert_eq!(bench.breaker.status(bench.now).window_requests, 0);
        bench.requests(&[bad(), bad()]);
        assert_eq!(bench.state(), State::Closed, "{window:?}");
        bench.request(&bad());
        assert_eq!(bench.state(), State::Open, "{window:?}");
    }
}

#[test]
fn a_changed_policy_keeps_the_state_and_replaces_the_thresholds() {
    let mut bench = Bench::new(&config());
    bench.requests(&[ok(), bad()]);
    let kept = bench.acquire().unwrap();
    bench.reconfigure(&config::Breaker {
        failure_percent: Percent::new(100),
        ..config()
    });
    assert_eq!(bench.breaker.status(bench.now).window_requests, 2);
    bench.record(kept, &bad());
    assert_eq!(
        bench.state(),
        State::Closed,
        "two of three is below the new share"
    );
    bench.reconfigure(&config());
    bench.request(&bad());
    assert_eq!(bench.state(), State::Open);

    let mut longer = config();
    longer.open.duration = 50 * SECOND;
    bench.reconfigure(&longer);
    bench.pass(6 * SECOND);
    assert_eq!(
        bench.state(),
        State::HalfOpen,
        "it opened for the time that held then"
    );
    bench.request(&bad());
    bench.pass(59 * SECOND);
    assert_eq!(bench.state(), State::Open);
}

#[test]
fn another_window_begins_empty() {
    let bench = Bench::new(&config());
    bench.requests(&[bad(), bad()]);
    let count = Window::Count(NonZeroU32::new(3).unwrap());
    bench.reconfigure(&config::Breaker {
        window: count,
        ..config()
    });
    assert_eq!(bench.breaker.status(bench.now).window_requests, 0);
    bench.requests(&[ok(), ok(), bad(), ok(), bad()]);
    let status = bench.breaker.status(bench.now);
    assert_eq!((status.state, status.failure_percent), (State::Open, 67));
    assert_eq!(status.message, "67% of the last 3 requests failed: 503 ×2");
}

#[test]
fn the_figures_of_the_window_are_those_of_all_workers() {
    let mut bench = Bench::new(&config::Breaker {
        window: Window::Rolling(10 * SECOND),
        failure_percent: None,
        ..config()
    });
    for n in 0..40 {
        let permit = bench.acquire().unwrap();
        let outcome = if n % 4 == 0 { bad() } else { ok() };
        bench.breaker.record(n, permit, bench.now, 0, &outcome);
        bench.pass(SECOND / 10);
    }
    let status = bench.breaker.status(bench.now);
    assert_eq!((status.window_requests, status.failure_percent), (40, 25));
    assert_eq!(status.request_rate_milli, 10_000);
}
