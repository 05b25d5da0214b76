//! The sections of a policy.

use std::num::{NonZeroU16, NonZeroU32};
use std::time::Duration;

use weir_proto::v1alpha1 as proto;

use super::{At, MAX_BULKHEADS, all, matches, unknown};
use crate::config::{
    Backoff, Breaker, Budget, Bulkhead, FailureOn, Forced, GrpcCodes, HalfOpen, Jitter,
    LoadShedding, Mode, OpenTime, Percent, Policy, Retries, SlowRequests, StatusRanges, Timeouts,
    Window,
};

/// Extra tries.
const MAX_ATTEMPTS: u32 = 10;
/// Bytes of a body kept for another try.
const MAX_BUFFERED_BODY: u64 = 16 << 20;
/// Requests of a `Count` window.
const MAX_WINDOW_REQUESTS: u32 = 10_000;
/// Requests let through at once when a breaker comes back.
const MAX_PROBES: u32 = 1_000;
/// Requests at once, and requests waiting, anywhere.
const MAX_CONCURRENT: u32 = 1_000_000;

pub(super) fn policy(at: &mut At<'_>, message: &proto::Policy) -> Option<Policy> {
    let timeouts = section(at, "timeouts", message.timeouts.as_ref(), timeouts);
    let retries = section(at, "retries", message.retries.as_ref(), retries);
    let breaker = section(
        at,
        "circuit_breaker",
        message.circuit_breaker.as_ref(),
        breaker,
    );
    let shedding = section(
        at,
        "load_shedding",
        message.load_shedding.as_ref(),
        shedding,
    );
    at.at_most("bulkheads", message.bulkheads.len(), MAX_BULKHEADS);
    let bulkheads: Vec<_> = (message.bulkheads.iter().enumerate())
        .map(|(n, message)| bulkhead(&mut at.item("bulkheads", n), message))
        .collect();
    let mut policy = Policy {
        timeouts: timeouts?,
        retries: retries?,
        breaker: breaker?,
        shedding: shedding?,
        ..Policy::default()
    };
    for (side, bulkhead) in all(bulkheads)? {
        match side {
            Side::Caller => policy.caller_bulkheads.push(bulkhead),
            Side::Destination => policy.destination_bulkheads.push(bulkhead),
        }
    }
    Some(policy)
}

fn section<M, T>(
    at: &mut At<'_>,
    field: &str,
    message: Option<&M>,
    decode: fn(&mut At<'_>, &M) -> Option<T>,
) -> Option<Option<T>> {
    match message {
        None => Some(None),
        Some(message) => decode(&mut at.field(field), message).map(Some),
    }
}

fn mode(shadow: bool) -> Mode {
    if shadow { Mode::Shadow } else { Mode::Enforce }
}

fn timeouts(at: &mut At<'_>, message: &proto::Timeouts) -> Option<Timeouts> {
    let request = at.optional_duration("request_us", message.request_us);
    let per_try = at.optional_duration("per_try_us", message.per_try_us);
    let connect = at.optional_duration("connect_us", message.connect_us);
    let idle = at.optional_duration("idle_us", message.idle_us);
    let max_stream = at.optional_duration("max_stream_us", message.max_stream_us);
    if let (Some(Some(per_try)), Some(Some(request))) = (per_try, request)
        && per_try > request
    {
        at.refuse("per_try_us", "must not be longer than request_us");
        return None;
    }
    Some(Timeouts {
        request: request?,
        per_try: per_try?,
        connect: connect?,
        idle: idle?,
        max_stream: max_stream?,
        mode: mode(message.shadow),
    })
}

fn retries(at: &mut At<'_>, message: &proto::Retries) -> Option<Retries> {
    let key = at.key(&message.key);
    let attempts = at.between("attempts", message.attempts, 0, MAX_ATTEMPTS);
    let status_codes = status_codes(at, "status_codes", &message.status_codes);
    let grpc_codes = grpc_codes(at, "grpc_codes", &message.grpc_codes);
    let methods = matches::methods(at, "methods", &message.methods);
    let backoff = backoff(at, message);
    let budget = match &message.budget {
        Some(message) => budget(&mut at.field("budget"), message),
        None => {
            at.refuse("budget", "missing; extra tries are never unbounded");
            None
        }
    };
    if message.max_buffered_body > MAX_BUFFERED_BODY {
        at.refuse(
            "max_buffered_body",
            format!(
                "{} is out of range; write 0 to {MAX_BUFFERED_BODY}",
                message.max_buffered_body
            ),
        );
        return None;
    }
    Some(Retries {
        key: key?,
        attempts: attempts?,
        status_codes: status_codes?,
        grpc_codes: grpc_codes?,
        connection_failure: message.connection_failure,
        reset: message.reset,
        per_try_timeout: message.per_try_timeout,
        methods: methods?,
        backoff: backoff?,
        budget: budget?,
        honor_retry_after: message.honor_retry_after,
        max_buffered_body: message.max_buffered_body as usize,
        mode: mode(message.shadow),
    })
}

fn backoff(at: &mut At<'_>, message: &proto::Retries) -> Option<Backoff> {
    let base = at.duration("backoff_base_us", message.backoff_base_us);
    let max = at.duration("backoff_max_us", message.backoff_max_us);
    let jitter = match message.jitter() {
        proto::Jitter::Full => Some(Jitter::Full),
        proto::Jitter::Equal => Some(Jitter::Equal),
        proto::Jitter::Decorrelated => Some(Jitter::Decorrelated),
        proto::Jitter::None => Some(Jitter::None),
        proto::Jitter::Unspecified => {
            at.refuse("jitter", unknown(message.jitter));
            None
        }
    };
    let (base, max) = base.zip(max)?;
    if base > max {
        at.refuse("backoff_base_us", "must not be longer than backoff_max_us");
        return None;
    }
    Some(Backoff {
        base,
        max,
        jitter: jitter?,
    })
}

fn budget(at: &mut At<'_>, message: &proto::RetryBudget) -> Option<Budget> {
    let percent = percent(at, "percent", message.percent);
    let interval = at.duration("interval_us", message.interval_us);
    let min_interval = at.duration("min_retry_interval_us", message.min_retry_interval_us);
    Some(Budget {
        percent: percent?,
        interval: interval?,
        min_count: message.min_retry_count,
        min_interval: min_interval?,
    })
}

fn breaker(at: &mut At<'_>, message: &proto::CircuitBreaker) -> Option<Breaker> {
    let key = at.key(&message.key);
    let window = match &message.window {
        Some(message) => window(&mut at.field("window"), message),
        None => {
            at.refuse("window", "missing");
            None
        }
    };
    let minimum_requests = at.non_zero("minimum_requests", message.minimum_requests);
    if let (Some(Window::Count(requests)), Some(minimum)) = (window, minimum_requests)
        && minimum > requests
    {
        at.refuse(
            "minimum_requests",
            format!("{minimum} is more than the window's {requests} requests; no rate would ever be judged"),
        );
    }
    let failure_percent = optional_percent(at, "failure_percent", message.failure_percent);
    let slow = section(
        at,
        "slow_requests",
        message.slow_requests.as_ref(),
        slow_requests,
    );
    let status_codes = status_codes(at, "failure_status_codes", &message.failure_status_codes);
    let grpc_codes = grpc_codes(at, "failure_grpc_codes", &message.failure_grpc_codes);
    let open = open_time(at, message);
    let half_open = half_open(at, message);
    let forced = section(at, "override", message.r#override.as_ref(), forced);
    if message.reset.len() > 253 {
        at.refuse("reset", "must have at most 253 characters");
    }
    Some(Breaker {
        key: key?,
        window: window?,
        minimum_requests: minimum_requests?,
        failure_percent: failure_percent?,
        consecutive_failures: NonZeroU32::new(message.consecutive_failures),
        slow: slow?,
        failure_on: FailureOn {
            status_codes: status_codes?,
            grpc_codes: grpc_codes?,
            timeouts: message.failure_timeouts,
            connection_failure: message.failure_connection,
        },
        open: open?,
        half_open: half_open?,
        forced: forced?,
        reset: message.reset.clone(),
        mode: mode(message.shadow),
    })
}

fn window(at: &mut At<'_>, message: &proto::Window) -> Option<Window> {
    match message.r#type() {
        proto::WindowType::Rolling => at
            .duration("duration_us", message.duration_us)
            .map(Window::Rolling),
        proto::WindowType::Fixed => at
            .duration("duration_us", message.duration_us)
            .map(Window::Fixed),
        proto::WindowType::Count => {
            let requests = at.between("requests", message.requests, 1, MAX_WINDOW_REQUESTS)?;
            NonZeroU32::new(requests).map(Window::Count)
        }
        proto::WindowType::Unspecified => {
            at.refuse("type", unknown(message.r#type));
            None
        }
    }
}

fn slow_requests(at: &mut At<'_>, message: &proto::SlowRequests) -> Option<SlowRequests> {
    let threshold = at.duration("threshold_us", message.threshold_us);
    let percent = at
        .between("percent", message.percent, 1, 100)
        .and_then(Percent::new);
    Some(SlowRequests {
        threshold: threshold?,
        percent: percent?,
    })
}

fn open_time(at: &mut At<'_>, message: &proto::CircuitBreaker) -> Option<OpenTime> {
    let duration = at.duration("open_us", message.open_us);
    let max = at.duration("open_max_us", message.open_max_us);
    let jitter = percent(at, "open_jitter_percent", message.open_jitter_percent);
    let (duration, max) = duration.zip(max)?;
    if duration > max {
        at.refuse("open_us", "must not be longer than open_max_us");
        return None;
    }
    let honor_retry_after = message.open_honor_retry_after;
    Some(OpenTime {
        duration,
        max,
        jitter: jitter?,
        honor_retry_after,
    })
}

fn half_open(at: &mut At<'_>, message: &proto::CircuitBreaker) -> Option<HalfOpen> {
    let probes = at.between("probes", message.probes, 1, MAX_PROBES);
    let timeout = at.duration("half_open_timeout_us", message.half_open_timeout_us);
    let ramp_up = at.optional_duration("ramp_up_us", message.ramp_up_us);
    let probes = probes
        .and_then(|probes| u16::try_from(probes).ok())
        .and_then(NonZeroU16::new);
    Some(HalfOpen {
        probes: probes?,
        timeout: timeout?,
        ramp_up: ramp_up?,
    })
}

fn forced(at: &mut At<'_>, message: &proto::BreakerOverride) -> Option<Forced> {
    let open = match message.state() {
        proto::BreakerState::Open => true,
        proto::BreakerState::Closed => false,
        _ => {
            at.refuse("state", "must be OPEN or CLOSED");
            return None;
        }
    };
    if message.reason.is_empty() {
        at.refuse(
            "reason",
            "missing; say why, for those who find the breaker like this",
        );
        return None;
    }
    if message.expires_at_unix_ms <= 0 {
        at.refuse("expires_at_unix_ms", "missing; an override must end");
        return None;
    }
    let reason = message.reason.clone();
    Some(Forced {
        open,
        reason,
        expires_at_unix_ms: message.expires_at_unix_ms,
    })
}

enum Side {
    Caller,
    Destination,
}

fn bulkhead(at: &mut At<'_>, message: &proto::Bulkhead) -> Option<(Side, Bulkhead)> {
    let key = at.key(&message.key);
    let name_is_good = at.label("name", &message.name);
    let side = match message.at() {
        proto::BulkheadSide::Caller => Some(Side::Caller),
        proto::BulkheadSide::Destination => Some(Side::Destination),
        proto::BulkheadSide::Unspecified => {
            at.refuse("at", unknown(message.at));
            None
        }
    };
    let headers = matches::headers(at, &message.headers);
    let max_concurrent = at
        .between("max_concurrent", message.max_concurrent, 1, MAX_CONCURRENT)
        .and_then(NonZeroU32::new);
    let max_queue = at.between("max_queue", message.max_queue, 0, MAX_CONCURRENT);
    let max_wait: Option<Option<Duration>> =
        at.optional_duration("max_wait_us", message.max_wait_us);
    if max_wait == Some(None) && message.max_queue > 0 {
        at.refuse("max_wait_us", "must be longer than zero where max_queue is");
    }
    if !name_is_good {
        return None;
    }
    let bulkhead = Bulkhead {
        key: key?,
        name: message.name.clone(),
        headers: headers?,
        max_concurrent: max_concurrent?,
        max_queue: max_queue?,
        max_wait: max_wait?,
        mode: mode(message.shadow),
    };
    Some((side?, bulkhead))
}

fn shedding(at: &mut At<'_>, message: &proto::LoadShedding) -> Option<LoadShedding> {
    let key = at.key(&message.key);
    let max_concurrency = at.between(
        "max_concurrency",
        message.max_concurrency,
        0,
        MAX_CONCURRENT,
    );
    Some(LoadShedding {
        key: key?,
        max_concurrency: NonZeroU32::new(max_concurrency?),
        mode: mode(message.shadow),
    })
}

fn percent(at: &mut At<'_>, field: &str, value: u32) -> Option<Percent> {
    at.between(field, value, 0, 100).and_then(Percent::new)
}

/// Zero is "not judged".
fn optional_percent(at: &mut At<'_>, field: &str, value: u32) -> Option<Option<Percent>> {
    percent(at, field, value).map(|percent| (value > 0).then_some(percent))
}

fn status_codes(
    at: &mut At<'_>,
    field: &str,
    ranges: &[proto::StatusRange],
) -> Option<StatusRanges> {
    let mut good = Some(StatusRanges::EMPTY);
    for (n, proto::StatusRange { first, last }) in ranges.iter().enumerate() {
        let ends = u16::try_from(*first).ok().zip(u16::try_from(*last).ok());
        let with = |set: StatusRanges| ends.and_then(|(first, last)| set.with(first, last));
        if with(StatusRanges::EMPTY).is_none() {
            let message = format!("{first} to {last} is no range within 100 to 599");
            at.refuse(&format!("{field}[{n}]"), message);
        }
        good = good.and_then(with);
    }
    good
}

fn grpc_codes(at: &mut At<'_>, field: &str, codes: &[u32]) -> Option<GrpcCodes> {
    let mut good = Some(GrpcCodes::EMPTY);
    for (n, code) in codes.iter().enumerate() {
        let with = |set: GrpcCodes| u8::try_from(*code).ok().and_then(|code| set.with(code));
        if with(GrpcCodes::EMPTY).is_none() {
            at.refuse(
                &format!("{field}[{n}]"),
                format!("{code} is no gRPC status; write 0 to 16"),
            );
        }
        good = good.and_then(with);
    }
    good
}
