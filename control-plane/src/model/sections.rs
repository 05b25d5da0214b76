//! Sections as people write them → sections as agents enforce them.
//!
//! Only what agents can do is written here; what is left is named by
//! [`super::unsupported`].

use weir_crds::v1alpha1 as api;
use weir_proto::v1alpha1 as proto;

/// Microseconds; 0 = off.
fn micros(duration: api::Duration) -> u64 {
    u64::try_from(duration.get().as_micros()).unwrap_or(u64::MAX)
}

fn optional(duration: Option<api::Duration>) -> u64 {
    duration.map_or(0, micros)
}

fn ranges(codes: &[api::StatusCodes]) -> Vec<proto::StatusRange> {
    codes
        .iter()
        .map(|codes| proto::StatusRange {
            first: codes.first().into(),
            last: codes.last().into(),
        })
        .collect()
}

fn grpc(codes: &[api::GrpcCode]) -> Vec<u32> {
    codes.iter().map(|code| code.number()).collect()
}

pub(super) fn timeouts(given: &api::Timeouts, shadow: bool) -> proto::Timeouts {
    proto::Timeouts {
        request_us: micros(given.request),
        per_try_us: optional(given.per_try),
        connect_us: micros(given.connect),
        idle_us: micros(given.idle),
        max_stream_us: optional(given.max_stream),
        tcp_idle_us: micros(given.tcp_idle),
        shadow,
    }
}

pub(super) fn retries(given: &api::Retries, key: String, shadow: bool) -> proto::Retries {
    let jitter = match given.backoff.jitter {
        api::Jitter::Full => proto::Jitter::Full,
        api::Jitter::Equal => proto::Jitter::Equal,
        api::Jitter::Decorrelated => proto::Jitter::Decorrelated,
        api::Jitter::None => proto::Jitter::None,
    };
    proto::Retries {
        key,
        attempts: given.attempts,
        status_codes: ranges(&given.retry_on.status_codes),
        grpc_codes: grpc(&given.retry_on.grpc_codes),
        connection_failure: given.retry_on.connection_failure,
        reset: given.retry_on.reset,
        per_try_timeout: given.retry_on.per_try_timeout,
        methods: given.methods.clone(),
        backoff_base_us: micros(given.backoff.base),
        backoff_max_us: micros(given.backoff.max),
        jitter: jitter.into(),
        budget: Some(proto::RetryBudget {
            percent: given.budget.percent,
            interval_us: micros(given.budget.interval),
            min_retry_count: given.budget.min_retry_rate.count,
            min_retry_interval_us: micros(given.budget.min_retry_rate.interval),
        }),
        honor_retry_after: given.honor_retry_after,
        max_buffered_body: given.max_buffered_body.get() as u64,
        shadow,
    }
}

/// Without a person's word: see [`super::breakers`].
pub(super) fn breaker(
    given: &api::CircuitBreaker,
    key: String,
    shadow: bool,
) -> proto::CircuitBreaker {
    let window = match given.window.r#type {
        api::WindowType::Rolling => proto::WindowType::Rolling,
        api::WindowType::Fixed => proto::WindowType::Fixed,
        api::WindowType::Count => proto::WindowType::Count,
    };
    proto::CircuitBreaker {
        key,
        window: Some(proto::Window {
            r#type: window.into(),
            duration_us: micros(given.window.duration),
            requests: given.window.requests,
        }),
        minimum_requests: given.minimum_requests,
        failure_percent: given.failure_percent,
        consecutive_failures: given.consecutive_failures.unwrap_or(0),
        slow_requests: given
            .slow_requests
            .as_ref()
            .map(|slow| proto::SlowRequests {
                threshold_us: micros(slow.threshold),
                percent: slow.percent,
            }),
        failure_status_codes: ranges(&given.failure_on.status_codes),
        failure_grpc_codes: grpc(&given.failure_on.grpc_codes),
        failure_timeouts: given.failure_on.timeouts,
        failure_connection: given.failure_on.connection_failure,
        open_us: micros(given.open.duration),
        open_max_us: micros(given.open.max_duration),
        open_jitter_percent: given.open.jitter_percent,
        open_honor_retry_after: given.open.honor_retry_after,
        probes: given.half_open.probes,
        half_open_timeout_us: micros(given.half_open.timeout),
        ramp_up_us: micros(given.half_open.ramp_up),
        r#override: None,
        reset: String::new(),
        shadow,
    }
}

/// The one named `default` is the last, for it takes what belongs to no other.
pub(super) fn bulkheads(
    given: &[api::Bulkhead],
    scope: &str,
    shadow: bool,
) -> Vec<proto::Bulkhead> {
    let mut bulkheads: Vec<_> = given
        .iter()
        .map(|bulkhead| bulkhead_of(bulkhead, scope, shadow))
        .collect();
    bulkheads.sort_by_key(|bulkhead| bulkhead.name == "default");
    bulkheads
}

fn bulkhead_of(bulkhead: &api::Bulkhead, scope: &str, shadow: bool) -> proto::Bulkhead {
    let from = bulkhead.from.clone().unwrap_or_default();
    proto::Bulkhead {
        key: format!("{scope}.{}", bulkhead.name),
        name: bulkhead.name.clone(),
        at: match bulkhead.at {
            api::BulkheadSide::Caller => proto::BulkheadSide::Caller,
            api::BulkheadSide::Destination => proto::BulkheadSide::Destination,
        }
        .into(),
        headers: headers(&from.headers),
        max_concurrent: bulkhead.max_concurrent,
        max_queue: bulkhead.max_queue,
        max_wait_us: micros(bulkhead.max_wait),
        shadow,
        from_namespaces: from.namespaces,
        from_service_accounts: from.service_accounts,
        from_workloads: from.workloads,
    }
}

/// Whether it is for callers by their identity.
pub(super) fn asks_who_calls(bulkhead: &proto::Bulkhead) -> bool {
    !(bulkhead.from_namespaces.is_empty()
        && bulkhead.from_service_accounts.is_empty()
        && bulkhead.from_workloads.is_empty())
}

/// `None` where it holds nothing that agents can do.
pub(super) fn load_shedding(
    given: &api::LoadShedding,
    key: String,
    shadow: bool,
) -> Option<proto::LoadShedding> {
    let max_concurrency = given.concurrency.as_ref().and_then(|limit| limit.max);
    let cpu = given.cpu.as_ref().map(|cpu| proto::CpuShedding {
        source: match cpu.source {
            api::CpuSource::Pod => proto::CpuSource::Pod,
            api::CpuSource::Node => proto::CpuSource::Node,
        }
        .into(),
        threshold_percent: cpu.threshold_percent,
        max_drop_percent: cpu.max_drop_percent,
    });
    let pressure = given
        .pressure
        .as_ref()
        .map(|pressure| proto::PressureShedding {
            some_percent: pressure.some_percent,
        });
    let any = max_concurrency.is_some() || cpu.is_some() || pressure.is_some();
    any.then(|| proto::LoadShedding {
        key,
        max_concurrency: max_concurrency.unwrap_or(0),
        shadow,
        cpu,
        pressure,
    })
}

fn headers(given: &[api::HeaderMatch]) -> Vec<proto::HeaderMatch> {
    use proto::header_match::Match;
    given
        .iter()
        .map(|header| {
            let value = header.value.clone().unwrap_or_default();
            let rule = match header.r#type {
                api::HeaderMatchType::Exact => Match::Exact(value),
                api::HeaderMatchType::RegularExpression => Match::Regex(value),
                api::HeaderMatchType::Present => Match::Present(true),
            };
            proto::HeaderMatch {
                name: header.name.to_ascii_lowercase(),
                r#match: Some(rule),
            }
        })
        .collect()
}

pub(super) fn matches(given: &[api::RouteMatch]) -> Vec<proto::Match> {
    use proto::path_match::Match;
    given
        .iter()
        .map(|given| proto::Match {
            methods: given.methods.clone(),
            path: given.path.as_ref().map(|path| proto::PathMatch {
                r#match: Some(match path.r#type {
                    api::PathMatchType::Exact => Match::Exact(path.value.clone()),
                    api::PathMatchType::PathPrefix => Match::Prefix(path.value.clone()),
                    api::PathMatchType::RegularExpression => Match::Regex(path.value.clone()),
                }),
            }),
            headers: headers(&given.headers),
            grpc: given.grpc.as_ref().map(|grpc| proto::GrpcMatch {
                service: grpc.service.clone().unwrap_or_default(),
                method: grpc.method.clone().unwrap_or_default(),
            }),
        })
        .collect()
}
