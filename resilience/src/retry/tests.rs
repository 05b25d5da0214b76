use std::cell::Cell;

use proptest::prelude::*;

use super::*;
use crate::config::{Backoff, Budget, GrpcCodes, Jitter, Mode, Percent, StatusRanges};

const MS: Duration = Duration::from_millis(1);

/// The defaults of a policy, without jitter.
fn policy() -> Retries {
    let codes = [(429, 429), (500, 500), (502, 504)];
    let status_codes = codes
        .iter()
        .fold(StatusRanges::EMPTY, |set, (first, last)| {
            set.with(*first, *last).unwrap()
        });
    Retries {
        key: "payments".to_owned(),
        attempts: 2,
        status_codes,
        grpc_codes: GrpcCodes::EMPTY
            .with(14)
            .and_then(|set| set.with(8))
            .unwrap(),
        connection_failure: true,
        reset: true,
        per_try_timeout: true,
        methods: ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"]
            .map(String::from)
            .to_vec(),
        backoff: Backoff {
            base: 25 * MS,
            max: 1000 * MS,
            jitter: Jitter::None,
        },
        budget: Budget {
            percent: Percent::new(20).unwrap(),
            interval: 10_000 * MS,
            min_count: 10,
            min_interval: 1000 * MS,
        },
        honor_retry_after: true,
        max_buffered_body: 65_536,
        mode: Mode::Enforce,
    }
}

/// A failed try and all that bears on the next; a GET that failed with 503
/// unless said otherwise.
#[derive(Clone, Copy)]
struct Case<'a> {
    request: Request<'a>,
    failure: Failure,
    sent: Sent,
    hints: Hints,
    tries: Tries,
    left: Option<Duration>,
    breaker_open: bool,
    budget: bool,
}

fn case() -> Case<'static> {
    Case {
        request: Request {
            method: "GET",
            grpc: false,
            idempotent: false,
            body_replayable: true,
        },
        failure: Failure::Status(503),
        sent: Sent::Answered,
        hints: Hints::default(),
        tries: Tries::default(),
        left: Some(1000 * MS),
        breaker_open: false,
        budget: true,
    }
}

fn post() -> Case<'static> {
    let case = case();
    Case {
        request: Request {
            method: "POST",
            ..case.request
        },
        ..case
    }
}

fn grpc(code: u8) -> Case<'static> {
    let case = post();
    let request = Request {
        grpc: true,
        ..case.request
    };
    Case {
        request,
        failure: Failure::Grpc(code),
        ..case
    }
}

impl Case<'_> {
    fn decide_with(&self, policy: &Retries) -> Decision {
        decide(
            policy,
            &self.request,
            self.failure,
            self.sent,
            &self.hints,
            &self.tries,
            self.left,
            self.breaker_open,
            || self.budget,
            0,
        )
    }

    fn decide(&self) -> Decision {
        self.decide_with(&policy())
    }

    fn idempotent(self) -> Self {
        Case {
            request: Request {
                idempotent: true,
                ..self.request
            },
            ..self
        }
    }
}

const FIRST: Decision = Decision::Retry {
    after: Duration::from_millis(25),
};

fn stop(stop: Stop) -> Decision {
    Decision::Stop(stop)
}

#[test]
fn a_safe_request_is_tried_again_after_the_backoff_until_no_tries_are_left() {
    let tries = |made, last| Case {
        tries: Tries {
            made,
            last_wait: last * MS,
        },
        ..case()
    };
    assert_eq!(tries(0, 0).decide(), FIRST);
    assert_eq!(tries(1, 25).decide(), Decision::Retry { after: 50 * MS });
    assert_eq!(tries(2, 50).decide(), stop(Stop::NoTriesLeft));
}

#[test]
fn only_what_the_policy_lists_is_tried_again() {
    for failure in [
        Failure::Status(429),
        Failure::Status(502),
        Failure::Reset,
        Failure::PerTryTimeout,
    ] {
        assert_eq!(Case { failure, ..case() }.decide(), FIRST, "{failure:?}");
    }
    for status in [404, 501, 505] {
        let failure = Failure::Status(status);
        assert_eq!(Case { failure, ..case() }.decide(), stop(Stop::NotListed));
    }
    let nothing = Retries {
        status_codes: StatusRanges::EMPTY,
        grpc_codes: GrpcCodes::EMPTY,
        connection_failure: false,
        reset: false,
        per_try_timeout: false,
        ..policy()
    };
    for failure in [
        Failure::Status(503),
        Failure::Connect,
        Failure::Reset,
        Failure::PerTryTimeout,
        Failure::Refused,
    ] {
        let case = Case { failure, ..case() };
        assert_eq!(
            case.decide_with(&nothing),
            stop(Stop::NotListed),
            "{failure:?}"
        );
    }
}

#[test]
fn a_post_is_never_tried_again_by_default_once_something_was_sent() {
    for (failure, sent) in [
        (Failure::Status(503), Sent::Answered),
        (Failure::Reset, Sent::Maybe),
        (Failure::PerTryTimeout, Sent::Maybe),
    ] {
        let case = Case {
            failure,
            sent,
            ..post()
        };
        assert_eq!(case.decide(), stop(Stop::UnsafeMethod), "{failure:?}");
        assert_eq!(case.idempotent().decide(), FIRST, "{failure:?}");
    }
}

#[test]
fn a_post_is_tried_again_when_nothing_reached_the_application() {
    for (failure, sent) in [
        (Failure::Connect, Sent::Nothing),
        (Failure::Reset, Sent::Nothing),
        (Failure::Refused, Sent::Answered),
    ] {
        assert_eq!(
            Case {
                failure,
                sent,
                ..post()
            }
            .decide(),
            FIRST,
            "{failure:?}"
        );
    }
}

#[test]
fn a_grpc_call_is_tried_again_only_on_an_idempotent_route_or_when_nothing_was_sent() {
    assert_eq!(grpc(14).decide(), stop(Stop::UnsafeMethod));
    assert_eq!(grpc(14).idempotent().decide(), FIRST);
    assert_eq!(grpc(5).idempotent().decide(), stop(Stop::NotListed));
    assert_eq!(
        Case {
            sent: Sent::Nothing,
            ..grpc(14)
        }
        .decide(),
        FIRST
    );
    let refused = Case {
        failure: Failure::Refused,
        ..grpc(14)
    };
    assert_eq!(refused.decide(), FIRST);
    // Were POST listed, it would still not speak for gRPC methods.
    let all = Retries {
        methods: vec!["POST".to_owned()],
        ..policy()
    };
    assert_eq!(grpc(14).decide_with(&all), stop(Stop::UnsafeMethod));
    assert_eq!(post().decide_with(&all), FIRST);
}

#[test]
fn a_body_that_was_not_kept_is_not_sent_again() {
    let request = Request {
        method: "PUT",
        body_replayable: false,
        ..case().request
    };
    assert_eq!(
        Case { request, ..case() }.decide(),
        stop(Stop::BodyTooLarge)
    );
}

#[test]
fn an_open_breaker_stops_retrying() {
    assert_eq!(
        Case {
            breaker_open: true,
            ..case()
        }
        .decide(),
        stop(Stop::BreakerOpen)
    );
}

#[test]
fn retry_after_sets_the_wait_if_it_fits_the_deadline_and_fails_now_if_not() {
    let asks = |millis| Case {
        hints: Hints {
            retry_after: Some(millis * MS),
            pushback: None,
        },
        ..case()
    };
    assert_eq!(asks(999).decide(), Decision::Retry { after: 999 * MS });
    assert_eq!(asks(1000).decide(), stop(Stop::DeadlineTooNear));
    assert_eq!(asks(1).decide(), FIRST, "it never shortens the backoff");
    let unbounded = Case {
        left: None,
        ..asks(60_000)
    };
    assert_eq!(unbounded.decide(), Decision::Retry { after: 60_000 * MS });
    let deaf = Retries {
        honor_retry_after: false,
        ..policy()
    };
    assert_eq!(asks(1000).decide_with(&deaf), FIRST);
}

#[test]
fn a_grpc_server_pushes_the_next_try_back_or_stops_it() {
    let pushes = |pushback| Case {
        hints: Hints {
            retry_after: Some(500 * MS),
            pushback: Some(pushback),
        },
        ..grpc(14).idempotent()
    };
    assert_eq!(pushes(Pushback::Stop).decide(), stop(Stop::Pushback));
    let after = Decision::Retry { after: 3 * MS };
    assert_eq!(pushes(Pushback::After(3 * MS)).decide(), after);
    assert_eq!(
        pushes(Pushback::After(2000 * MS)).decide(),
        stop(Stop::DeadlineTooNear)
    );
}

#[test]
fn no_try_is_made_that_could_not_begin_before_the_deadline() {
    assert_eq!(
        Case {
            left: Some(26 * MS),
            ..case()
        }
        .decide(),
        FIRST
    );
    assert_eq!(
        Case {
            left: Some(25 * MS),
            ..case()
        }
        .decide(),
        stop(Stop::DeadlineTooNear)
    );
    assert_eq!(
        Case {
            left: Some(Duration::ZERO),
            ..case()
        }
        .decide(),
        stop(Stop::DeadlineTooNear)
    );
}

#[test]
fn an_exhausted_budget_stops_retrying() {
    assert_eq!(
        Case {
            budget: false,
            ..case()
        }
        .decide(),
        stop(Stop::BudgetExhausted)
    );
}

proptest! {
    #[test]
    fn the_budget_is_charged_for_a_try_that_is_made_and_for_no_other(
        made in 0u32..4,
        left in prop::option::of(0u32..100),
        method in prop::sample::select(vec!["GET", "POST"]),
        status in 499u16..506,
        body_replayable: bool,
        idempotent: bool,
        breaker_open: bool,
        in_budget: bool,
        random: u64,
    ) {
        let asked = Cell::new(0);
        let decision = decide(
            &policy(),
            &Request { method, grpc: false, idempotent, body_replayable },
            Failure::Status(status),
            Sent::Answered,
            &Hints::default(),
            &Tries { made, last_wait: Duration::ZERO },
            left.map(|left| left * MS),
            breaker_open,
            || {
                asked.set(asked.get() + 1);
                in_budget
            },
            random,
        );
        let charged = asked.get() == 1 && in_budget;
        prop_assert!(asked.get() <= 1);
        prop_assert_eq!(matches!(decision, Decision::Retry { .. }), charged);
        prop_assert_eq!(decision == stop(Stop::BudgetExhausted), asked.get() == 1 && !in_budget);
    }
}
