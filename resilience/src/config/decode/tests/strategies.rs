//! Messages of any content: good values, bad ones and absurd ones. Boxed, as
//! the trees of values would not fit a test's stack.

use proptest::option::of;
use proptest::prelude::*;
use weir_proto::v1alpha1 as proto;

fn text() -> BoxedStrategy<String> {
    prop_oneof![
        Just(String::new()),
        Just("payments".to_owned()),
        Just("/a".to_owned()),
        Just("GET".to_owned()),
        Just("127.0.0.1:80".to_owned()),
        Just("a{1000}{1000}".to_owned()),
        ".{0,20}",
        "[(\\[|*+?a-z]{0,8}",
    ]
    .boxed()
}

fn number() -> BoxedStrategy<u32> {
    prop_oneof![0u32..20, 0u32..700, any::<u32>()].boxed()
}

fn micros() -> BoxedStrategy<u64> {
    prop_oneof![Just(0u64), 1u64..100_000_000, any::<u64>()].boxed()
}

fn variant() -> BoxedStrategy<i32> {
    prop_oneof![0i32..6, any::<i32>()].boxed()
}

fn ranges() -> BoxedStrategy<Vec<proto::StatusRange>> {
    let range = (number(), number()).prop_map(|(first, last)| proto::StatusRange { first, last });
    prop::collection::vec(range, 0..3).boxed()
}

fn headers() -> BoxedStrategy<Vec<proto::HeaderMatch>> {
    use proto::header_match::Match;
    let rule = prop_oneof![
        text().prop_map(Match::Exact),
        text().prop_map(Match::Regex),
        any::<bool>().prop_map(Match::Present),
    ];
    let header =
        (text(), of(rule)).prop_map(|(name, r#match)| proto::HeaderMatch { name, r#match });
    prop::collection::vec(header, 0..3).boxed()
}

fn condition() -> BoxedStrategy<proto::Match> {
    use proto::path_match::Match;
    let rule = prop_oneof![
        text().prop_map(Match::Exact),
        text().prop_map(Match::Prefix),
        text().prop_map(Match::Regex),
    ];
    let path = of(rule).prop_map(|r#match| proto::PathMatch { r#match });
    let grpc = (text(), text()).prop_map(|(service, method)| proto::GrpcMatch { service, method });
    (
        prop::collection::vec(text(), 0..3),
        of(path),
        headers(),
        of(grpc),
    )
        .prop_map(|(methods, path, headers, grpc)| proto::Match {
            methods,
            path,
            headers,
            grpc,
        })
        .boxed()
}

fn timeouts() -> BoxedStrategy<proto::Timeouts> {
    prop::array::uniform6(micros())
        .prop_map(|micros| proto::Timeouts {
            request_us: micros[0],
            per_try_us: micros[1],
            connect_us: micros[2],
            idle_us: micros[3],
            max_stream_us: micros[4],
            tcp_idle_us: micros[5],
            shadow: micros[0] % 2 == 0,
        })
        .boxed()
}

fn retries() -> BoxedStrategy<proto::Retries> {
    let budget = prop::array::uniform4(micros()).prop_map(|n| proto::RetryBudget {
        percent: n[0] as u32,
        interval_us: n[1],
        min_retry_count: n[2] as u32,
        min_retry_interval_us: n[3],
    });
    let names = (text(), prop::collection::vec(text(), 0..3));
    let codes = (ranges(), prop::collection::vec(number(), 0..3));
    (
        names,
        codes,
        number(),
        prop::array::uniform3(micros()),
        variant(),
        of(budget),
    )
        .prop_map(
            |((key, methods), (status_codes, grpc_codes), attempts, micros, jitter, budget)| {
                proto::Retries {
                    key,
                    attempts,
                    status_codes,
                    grpc_codes,
                    methods,
                    backoff_base_us: micros[0],
                    backoff_max_us: micros[1],
                    jitter,
                    budget,
                    max_buffered_body: micros[2],
                    ..Default::default()
                }
            },
        )
        .boxed()
}

fn breaker() -> BoxedStrategy<proto::CircuitBreaker> {
    let window =
        (variant(), micros(), number()).prop_map(|(r#type, duration_us, requests)| proto::Window {
            r#type,
            duration_us,
            requests,
        });
    let slow = (micros(), number()).prop_map(|(threshold_us, percent)| proto::SlowRequests {
        threshold_us,
        percent,
    });
    let forced =
        (variant(), text(), any::<i64>()).prop_map(|(state, reason, expires_at_unix_ms)| {
            proto::BreakerOverride {
                state,
                reason,
                expires_at_unix_ms,
            }
        });
    let codes = (ranges(), prop::collection::vec(number(), 0..3));
    let names = (text(), text());
    let numbers = prop::array::uniform5(number());
    let times = prop::array::uniform4(micros());
    (
        names,
        of(window),
        of(slow),
        of(forced),
        codes,
        numbers,
        times,
    )
        .prop_map(
            |((key, reset), window, slow_requests, r#override, codes, numbers, times)| {
                proto::CircuitBreaker {
                    key,
                    reset,
                    window,
                    slow_requests,
                    r#override,
                    failure_status_codes: codes.0,
                    failure_grpc_codes: codes.1,
                    minimum_requests: numbers[0],
                    failure_percent: numbers[1],
                    consecutive_failures: numbers[2],
                    open_jitter_percent: numbers[3],
                    probes: numbers[4],
                    open_us: times[0],
                    open_max_us: times[1],
                    half_open_timeout_us: times[2],
                    ramp_up_us: times[3],
                    ..Default::default()
                }
            },
        )
        .boxed()
}

fn bulkhead() -> BoxedStrategy<proto::Bulkhead> {
    let names = || prop::collection::vec(text(), 0..3);
    (
        (text(), text()),
        variant(),
        headers(),
        number(),
        number(),
        micros(),
        (names(), names(), names()),
    )
        .prop_map(
            |((key, name), at, headers, max_concurrent, max_queue, max_wait_us, from)| {
                proto::Bulkhead {
                    key,
                    name,
                    at,
                    headers,
                    max_concurrent,
                    max_queue,
                    max_wait_us,
                    shadow: false,
                    from_namespaces: from.0,
                    from_service_accounts: from.1,
                    from_workloads: from.2,
                }
            },
        )
        .boxed()
}

pub(super) fn policy() -> BoxedStrategy<proto::Policy> {
    let cpu = (variant(), number(), number()).prop_map(
        |(source, threshold_percent, max_drop_percent)| proto::CpuShedding {
            source,
            threshold_percent,
            max_drop_percent,
        },
    );
    let pressure = number().prop_map(|some_percent| proto::PressureShedding { some_percent });
    let shedding = (text(), number(), of(cpu), of(pressure)).prop_map(
        |(key, max_concurrency, cpu, pressure)| proto::LoadShedding {
            key,
            max_concurrency,
            shadow: false,
            cpu,
            pressure,
        },
    );
    let bulkheads = prop::collection::vec(bulkhead(), 0..3);
    (
        of(timeouts()),
        of(retries()),
        of(breaker()),
        bulkheads,
        of(shedding),
    )
        .prop_map(
            |(timeouts, retries, circuit_breaker, bulkheads, load_shedding)| proto::Policy {
                timeouts,
                retries,
                circuit_breaker,
                bulkheads,
                load_shedding,
            },
        )
        .boxed()
}

fn route() -> BoxedStrategy<proto::Route> {
    (
        text(),
        prop::collection::vec(condition(), 0..3),
        of(policy()),
        any::<bool>(),
    )
        .prop_map(|(name, matches, policy, idempotent)| proto::Route {
            name,
            matches,
            policy,
            idempotent,
        })
        .boxed()
}

pub(super) fn service() -> BoxedStrategy<proto::ServiceConfig> {
    let routes = prop::collection::vec(route(), 0..3);
    let kept = (any::<bool>(), micros());
    let port = (
        (number(), text(), variant(), text()),
        of(policy()),
        routes,
        kept,
    )
        .prop_map(
            |((number, name, protocol, listen), policy, routes, (local_only, affinity_us))| {
                proto::Port {
                    number,
                    name,
                    protocol,
                    listen,
                    policy,
                    routes,
                    local_only,
                    affinity_us,
                    http: number.is_multiple_of(2),
                }
            },
        );
    let addresses = prop::collection::vec(text(), 0..3);
    (
        text(),
        text(),
        text(),
        prop::collection::vec(port, 0..3),
        addresses,
        variant(),
    )
        .prop_map(
            |(namespace, name, consumer, ports, cluster_addresses, existing_connections)| {
                proto::ServiceConfig {
                    namespace,
                    name,
                    ports,
                    consumer,
                    cluster_addresses,
                    existing_connections,
                }
            },
        )
        .boxed()
}
