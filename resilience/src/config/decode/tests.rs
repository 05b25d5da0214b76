use proptest::prelude::*;

use super::*;
use crate::config::{HeaderRule, Jitter, Mode, PathMatch, Window};

mod full;
mod places;
mod strategies;

use full::full;

fn problems(message: &proto::ServiceConfig) -> Vec<String> {
    match service(message) {
        Ok(_) => Vec::new(),
        Err(problems) => problems.iter().map(Problem::to_string).collect(),
    }
}

/// What is wrong with the policy of the port after `change`, without the path
/// to it.
fn problems_after(change: impl FnOnce(&mut proto::Policy)) -> Vec<String> {
    let mut message = full();
    message.ports[0].routes.clear();
    change(message.ports[0].policy.as_mut().unwrap());
    let problems = problems(&message);
    let strip = |problem: &String| problem.strip_prefix("ports[0].policy.").map(str::to_owned);
    problems
        .iter()
        .map(|problem| strip(problem).unwrap_or_else(|| problem.clone()))
        .collect()
}

#[test]
fn a_full_message_is_decoded_into_what_it_says() {
    let service = service(&full()).unwrap();
    assert_eq!(service.id.to_string(), "shop/payments");
    let addresses = service.cluster_addresses.iter().map(ToString::to_string);
    assert_eq!(addresses.collect::<Vec<_>>(), ["10.96.0.7", "fd00:96::7"]);
    assert_eq!(
        service.existing_connections,
        Some(ExistingConnections::Reset)
    );
    let port = &service.ports[0];
    assert_eq!(
        (port.number.get(), port.name.as_deref()),
        (80, Some("http"))
    );
    assert_eq!(port.listen.unwrap().to_string(), "127.0.0.1:8081");
    assert!(port.local_only);
    assert_eq!(port.affinity, Some(Duration::from_secs(10_800)));
    let policy = &port.policy;
    let timeouts = policy.timeouts.unwrap();
    assert_eq!(
        (timeouts.per_try, timeouts.max_stream),
        (Some(Duration::from_secs(2)), None)
    );
    assert_eq!(timeouts.mode, Mode::Shadow);
    let retries = policy.retries.as_ref().unwrap();
    assert_eq!(
        (retries.backoff.jitter, retries.max_buffered_body),
        (Jitter::Full, 65_536)
    );
    assert_eq!(retries.status_codes.to_string(), "[500-504]");
    let breaker = policy.breaker.as_ref().unwrap();
    assert_eq!(breaker.window, Window::Rolling(Duration::from_secs(10)));
    assert_eq!(
        (breaker.consecutive_failures, breaker.half_open.probes.get()),
        (None, 2)
    );
    assert!(breaker.forced.as_ref().is_some_and(|forced| forced.open));
    assert_eq!(policy.caller_bulkheads[0].name, "batch");
    assert!(matches!(
        policy.caller_bulkheads[0].headers[0].rule,
        HeaderRule::Regex(_)
    ));
    assert_eq!(policy.destination_bulkheads[0].max_wait, None);
    let route = &port.routes[0];
    assert_eq!(&route.policy, policy);
    assert_eq!(
        route.matches[0].path,
        Some(PathMatch::Prefix("/refunds".to_owned()))
    );
    assert_eq!(route.matches[0].grpc.as_ref().unwrap().method, None);
}

#[test]
fn sections_that_are_absent_stay_absent() {
    let mut message = full();
    message.ports[0].policy = None;
    message.ports[0].routes.clear();
    assert_eq!(
        service(&message).unwrap().ports[0].policy,
        Policy::default()
    );
}

#[test]
fn every_problem_is_named_with_its_place() {
    let mut message = full();
    message.namespace = "Shop".to_owned();
    message.ports[0].number = 70_000;
    message.ports[0].protocol = 99;
    message.ports[0].listen = "localhost".to_owned();
    let route = &mut message.ports[0].routes[0];
    route.matches[0].methods.push("post".to_owned());
    route
        .policy
        .as_mut()
        .unwrap()
        .retries
        .as_mut()
        .unwrap()
        .attempts = 11;
    assert_eq!(
        problems(&message),
        [
            "namespace: \"Shop\" is not a DNS label; write 1 to 63 of a-z, 0-9 and -, not - first or last",
            "ports[0].number: 70000 is not a port; write 1 to 65535",
            "ports[0].protocol: 99 is not a value that this version knows",
            "ports[0].listen: \"localhost\" is not an IP address and port; write \"10.0.0.1:8080\" or \"[fd00::1]:8080\"",
            "ports[0].routes[0].matches[0].methods[1]: \"post\" is not a method; write it in upper case, \"GET\"",
            "ports[0].routes[0].policy.retries.attempts: 11 is out of range; write 0 to 10",
        ]
    );
}

#[test]
fn fields_that_contradict_each_other_are_refused() {
    let problems = problems_after(|policy| {
        policy.timeouts.as_mut().unwrap().per_try_us = 16_000_000;
        policy.retries.as_mut().unwrap().backoff_base_us = 2_000_000;
        let breaker = policy.circuit_breaker.as_mut().unwrap();
        breaker.open_us = 61_000_000;
        let window = proto::Window {
            r#type: proto::WindowType::Count.into(),
            duration_us: 0,
            requests: 10,
        };
        breaker.window = Some(window);
        policy.bulkheads[0].max_wait_us = 0;
    });
    assert_eq!(
        problems,
        [
            "timeouts.per_try_us: must not be longer than request_us",
            "retries.backoff_base_us: must not be longer than backoff_max_us",
            "circuit_breaker.minimum_requests: 20 is more than the window's 10 requests; no rate would ever be judged",
            "circuit_breaker.open_us: must not be longer than open_max_us",
            "bulkheads[0].max_wait_us: must be longer than zero where max_queue is",
        ]
    );
}

#[test]
fn durations_that_cannot_be_zero_or_are_absurd_are_refused() {
    let problems = problems_after(|policy| {
        policy.timeouts.as_mut().unwrap().idle_us = u64::MAX;
        policy
            .circuit_breaker
            .as_mut()
            .unwrap()
            .half_open_timeout_us = 0;
        policy
            .retries
            .as_mut()
            .unwrap()
            .budget
            .as_mut()
            .unwrap()
            .interval_us = 0;
    });
    assert_eq!(
        problems,
        [
            "timeouts.idle_us: 18446744073709551615 µs is longer than a year",
            "retries.budget.interval_us: must be longer than zero",
            "circuit_breaker.half_open_timeout_us: must be longer than zero",
        ]
    );
}

#[test]
fn an_override_needs_a_state_a_reason_and_an_end() {
    for (state, reason, expires_at_unix_ms, problem) in [
        (
            proto::BreakerState::HalfOpen,
            "x",
            1,
            "state: must be OPEN or CLOSED",
        ),
        (
            proto::BreakerState::Open,
            "",
            1,
            "reason: missing; say why, for those who find the breaker like this",
        ),
        (
            proto::BreakerState::Closed,
            "x",
            0,
            "expires_at_unix_ms: missing; an override must end",
        ),
    ] {
        let message = proto::BreakerOverride {
            state: state.into(),
            reason: reason.to_owned(),
            expires_at_unix_ms,
        };
        let problems = problems_after(|policy| {
            policy.circuit_breaker.as_mut().unwrap().r#override = Some(message);
        });
        assert_eq!(problems, [format!("circuit_breaker.override.{problem}")]);
    }
}

#[test]
fn codes_and_patterns_that_are_none_are_refused_by_position() {
    let problems = problems_after(|policy| {
        let breaker = policy.circuit_breaker.as_mut().unwrap();
        breaker.failure_status_codes.push(proto::StatusRange {
            first: 503,
            last: 500,
        });
        breaker.failure_grpc_codes.push(17);
        policy.bulkheads[0].headers[0].r#match =
            Some(proto::header_match::Match::Regex("(".to_owned()));
        policy.bulkheads[0].headers[0].name = "X-Tier".to_owned();
    });
    assert_eq!(
        problems,
        [
            "circuit_breaker.failure_status_codes[1]: 503 to 500 is no range within 100 to 599",
            "circuit_breaker.failure_grpc_codes[2]: 17 is no gRPC status; write 0 to 16",
            "bulkheads[0].headers[0].name: \"X-Tier\" is not a header name in lower case",
            "bulkheads[0].headers[0].regex: not a regular expression in RE2 syntax: unclosed group",
        ]
    );
}

#[test]
fn limits_of_load_that_make_no_sense_are_refused() {
    let problems = problems_after(|policy| {
        policy.load_shedding = Some(proto::LoadShedding {
            key: "payments".to_owned(),
            cpu: Some(proto::CpuShedding {
                source: 0,
                threshold_percent: 100,
                max_drop_percent: 0,
            }),
            pressure: Some(proto::PressureShedding { some_percent: 101 }),
            ..Default::default()
        });
    });
    assert_eq!(
        problems,
        [
            "load_shedding.cpu.source: missing",
            "load_shedding.cpu.threshold_percent: 100 is out of range; write 1 to 99",
            "load_shedding.cpu.max_drop_percent: 0 is out of range; write 1 to 100",
            "load_shedding.pressure.some_percent: 101 is out of range; write 1 to 100",
        ]
    );
}

#[test]
fn callers_that_cannot_be_are_refused() {
    let problems = problems_after(|policy| {
        policy.bulkheads[0].from_namespaces = vec!["shop".to_owned()];
        policy.bulkheads[1].from_namespaces = vec!["shop".to_owned(), "Shop".to_owned()];
        policy.bulkheads[1].from_service_accounts = vec!["buyer".to_owned()];
        policy.bulkheads[1].from_workloads = vec!["shop/".to_owned(); 17];
        policy.bulkheads[1].from_workloads[1..].fill("shop/a".to_owned());
    });
    assert_eq!(
        problems,
        [
            "bulkheads[0].at: at the caller there is only one caller: leave out from_…, or write DESTINATION",
            "bulkheads[1].from_namespaces[1]: \"Shop\" is not a DNS label; write 1 to 63 of a-z, 0-9 and -, not - first or last",
            "bulkheads[1].from_service_accounts[0]: \"buyer\" has no slash; write namespace/name",
            "bulkheads[1].from_workloads: 17 entries; at most 16 are allowed",
            "bulkheads[1].from_workloads[0]: \"\" is no DNS name; write 1 to 253 of a-z, 0-9, - and ., each part with a-z or 0-9 first and last",
        ]
    );
}

#[test]
fn a_caller_is_known_whole_or_not_at_all() {
    let known = proto::Caller {
        known: true,
        namespace: "shop".to_owned(),
        service_account: "buyer".to_owned(),
        workload: "Deployment/checkout".to_owned(),
        pod: "checkout-1".to_owned(),
    };
    let checkout = caller(&known).unwrap().unwrap();
    assert_eq!(
        (
            checkout.namespace.as_str(),
            checkout.service_account.as_str()
        ),
        ("shop", "buyer")
    );
    assert_eq!(checkout.workload.as_deref(), Some("checkout"));
    let alone = proto::Caller {
        workload: String::new(),
        ..known.clone()
    };
    assert_eq!(caller(&alone).unwrap().unwrap().workload, None);
    assert_eq!(caller(&proto::Caller::default()), Ok(None));
    let wrong = proto::Caller {
        namespace: "Shop".to_owned(),
        workload: "checkout".to_owned(),
        ..known
    };
    let problems = caller(&wrong).unwrap_err();
    let fields: Vec<_> = problems.iter().map(|p| p.path.as_str()).collect();
    assert_eq!(fields, ["namespace", "workload"]);
}

#[test]
fn a_key_stands_for_one_state_and_one_set_of_limits() {
    let mut message = full();
    let policy = message.ports[0].routes[0].policy.as_mut().unwrap();
    policy.circuit_breaker.as_mut().unwrap().minimum_requests = 5;
    policy
        .retries
        .as_mut()
        .unwrap()
        .budget
        .as_mut()
        .unwrap()
        .percent = 5;
    policy.bulkheads[0].max_concurrent = 5;
    policy.load_shedding.as_mut().unwrap().max_concurrency = 5;
    let sections = ["circuit_breaker", "retries", "bulkheads", "load_shedding"];
    let keys = ["payments", "payments", "a", "payments"];
    let expected: Vec<_> = std::iter::zip(sections, keys)
        .map(|(section, key)| {
            format!("ports[0].routes[0].policy.{section}: key {key:?} is also used with other limits; give each its own key")
        })
        .collect();
    assert_eq!(problems(&message), expected);
}

#[test]
fn numbers_and_names_that_must_differ_do() {
    let mut message = full();
    let route = message.ports[0].routes[0].clone();
    message.ports[0].routes.push(route);
    message.ports.push(message.ports[0].clone());
    message.ports[1].routes.clear();
    assert_eq!(
        problems(&message),
        [
            "ports[0].routes[1].name: \"refunds\" is used by an earlier route",
            "ports[1].number: 80 is used by an earlier port",
        ]
    );
}

#[test]
fn lists_are_bounded() {
    let mut message = full();
    let port = &mut message.ports[0];
    let route = port.routes[0].clone();
    port.routes = (0..17)
        .map(|n| proto::Route {
            name: format!("r{n}"),
            ..route.clone()
        })
        .collect();
    assert_eq!(
        problems(&message),
        ["ports[0].routes: 17 entries; at most 16 are allowed"]
    );
}

proptest! {
    #[test]
    fn any_message_is_decoded_or_refused_with_reasons(message in strategies::service()) {
        match service(&message) {
            Ok(service) => prop_assert_eq!(service.ports.len(), message.ports.len()),
            Err(problems) => {
                prop_assert!(!problems.is_empty());
                for problem in problems {
                    prop_assert!(!problem.path.is_empty() && !problem.message.is_empty());
                }
            }
        }
    }

    #[test]
    fn problems_in_two_places_are_both_found(policies in prop::array::uniform2(strategies::policy())) {
        let alone = |policy: &proto::Policy| {
            let mut message = full();
            message.ports[0].routes.clear();
            message.ports[0].policy = Some(policy.clone());
            problems(&message).len()
        };
        let mut message = full();
        message.ports[0].routes.clear();
        message.ports.push(proto::Port { number: 81, ..message.ports[0].clone() });
        for (port, policy) in message.ports.iter_mut().zip(&policies) {
            port.policy = Some(policy.clone());
        }
        // Keys that clash are looked for only when all else is right.
        let expected = alone(&policies[0]) + alone(&policies[1]);
        prop_assert!(problems(&message).len() == expected || expected == 0);
    }

    #[test]
    fn a_good_message_with_one_bad_number_has_one_problem(
        (field, value) in (0usize..6, 101u32..).prop_filter("in range", |(field, value)| *field > 0 || *value > 101),
    ) {
        let found = problems_after(|policy| {
            let breaker = policy.circuit_breaker.as_mut().unwrap();
            match field {
                0 => breaker.failure_percent = value,
                1 => breaker.open_jitter_percent = value,
                2 => breaker.slow_requests.as_mut().unwrap().percent = value,
                3 => policy.retries.as_mut().unwrap().attempts = value,
                4 => policy.retries.as_mut().unwrap().budget.as_mut().unwrap().percent = value,
                _ => breaker.failure_grpc_codes = vec![value],
            }
        });
        prop_assert_eq!(found.len(), 1);
        prop_assert!(found[0].contains(&value.to_string()));
    }
}

#[test]
fn a_consumer_has_no_say_at_the_destination_and_no_listener() {
    let mut message = full();
    message.consumer = "web".to_owned();
    let refused = problems(&message);
    let [listen, policy] = refused.as_slice() else {
        panic!("{refused:?}");
    };
    assert!(listen.starts_with("ports[0].listen: only for all callers"));
    assert!(policy.starts_with("ports[0].policy: what acts at the destination"));

    let port = &mut message.ports[0];
    port.listen.clear();
    let of_route = port.routes.iter_mut().map(|route| &mut route.policy);
    for policy in std::iter::once(&mut port.policy).chain(of_route).flatten() {
        policy.load_shedding = None;
        let at_caller = i32::from(proto::BulkheadSide::Caller);
        policy.bulkheads.retain(|bulkhead| bulkhead.at == at_caller);
    }
    let decoded = service(&message).unwrap();
    assert_eq!(decoded.consumer.as_deref(), Some("web"));

    message.consumer = "Web".to_owned();
    assert!(problems(&message)[0].starts_with("consumer: \"Web\" is not a DNS label"));
}
