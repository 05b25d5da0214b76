//! The sections of a policy.

use std::num::NonZeroU32;
use std::time::Duration;

use weir_proto::v1alpha1 as proto;

use super::{At, MAX_BULKHEADS, all, breaker, callers, matches, unknown};
use crate::config::{
    Backoff, Budget, Bulkhead, CpuShedding, CpuSource, GrpcCodes, Jitter, LoadShedding, Mode,
    Percent, Policy, Retries, StatusRanges, Timeouts,
};

/// Extra tries.
const MAX_ATTEMPTS: u32 = 10;
/// Bytes of a body kept for another try.
const MAX_BUFFERED_BODY: u64 = 16 << 20;
/// Requests at once, and requests waiting, anywhere.
const MAX_CONCURRENT: u32 = 1_000_000;

pub(super) fn policy(at: &mut At<'_>, message: &proto::Policy) -> Option<Policy> {
    let timeouts = section(at, "timeouts", message.timeouts.as_ref(), timeouts);
    let retries = section(at, "retries", message.retries.as_ref(), retries);
    let circuit_breaker = section(
        at,
        "circuit_breaker",
        message.circuit_breaker.as_ref(),
        breaker::breaker,
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
        breaker: circuit_breaker?,
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

pub(super) fn section<M, T>(
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

pub(super) fn mode(shadow: bool) -> Mode {
    if shadow { Mode::Shadow } else { Mode::Enforce }
}

fn timeouts(at: &mut At<'_>, message: &proto::Timeouts) -> Option<Timeouts> {
    let request = at.optional_duration("request_us", message.request_us);
    let per_try = at.optional_duration("per_try_us", message.per_try_us);
    let connect = at.optional_duration("connect_us", message.connect_us);
    let idle = at.optional_duration("idle_us", message.idle_us);
    let max_stream = at.optional_duration("max_stream_us", message.max_stream_us);
    let tcp_idle = at.optional_duration("tcp_idle_us", message.tcp_idle_us);
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
        tcp_idle: tcp_idle?,
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
    let from = callers::from(at, message);
    if let (Some(Side::Caller), Some(from)) = (&side, &from)
        && !from.is_everybody()
    {
        at.refuse(
            "at",
            "at the caller there is only one caller: leave out from_…, or write DESTINATION",
        );
    }
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
        from: from?,
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
    let cpu = section(at, "cpu", message.cpu.as_ref(), cpu_shedding);
    let pressure = section(at, "pressure", message.pressure.as_ref(), |at, message| {
        at.between("some_percent", message.some_percent, 1, 100)
            .and_then(Percent::new)
    });
    Some(LoadShedding {
        key: key?,
        max_concurrency: NonZeroU32::new(max_concurrency?),
        cpu: cpu?,
        pressure: pressure?,
        mode: mode(message.shadow),
    })
}

fn cpu_shedding(at: &mut At<'_>, message: &proto::CpuShedding) -> Option<CpuShedding> {
    let source = match message.source() {
        proto::CpuSource::Pod => Some(CpuSource::Pod),
        proto::CpuSource::Node => Some(CpuSource::Node),
        proto::CpuSource::Unspecified => {
            at.refuse("source", unknown(message.source));
            None
        }
    };
    let threshold = at.between("threshold_percent", message.threshold_percent, 1, 99);
    let max_drop = at.between("max_drop_percent", message.max_drop_percent, 1, 100);
    Some(CpuShedding {
        source: source?,
        threshold: threshold.and_then(Percent::new)?,
        max_drop: max_drop.and_then(Percent::new)?,
    })
}

pub(super) fn percent(at: &mut At<'_>, field: &str, value: u32) -> Option<Percent> {
    at.between(field, value, 0, 100).and_then(Percent::new)
}

pub(super) fn status_codes(
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

pub(super) fn grpc_codes(at: &mut At<'_>, field: &str, codes: &[u32]) -> Option<GrpcCodes> {
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
