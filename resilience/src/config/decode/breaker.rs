//! The section of the circuit breaker.

use std::num::{NonZeroU16, NonZeroU32};

use weir_proto::v1alpha1 as proto;

use super::sections::{grpc_codes, mode, percent, section, status_codes};
use super::{At, unknown};
use crate::config::{
    Breaker, FailureOn, Forced, HalfOpen, OpenTime, Percent, SlowRequests, Window,
};

/// Requests of a `Count` window.
const MAX_WINDOW_REQUESTS: u32 = 10_000;
/// Requests let through at once when a breaker comes back.
const MAX_PROBES: u32 = 1_000;

pub(super) fn breaker(at: &mut At<'_>, message: &proto::CircuitBreaker) -> Option<Breaker> {
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

/// Zero is "not judged".
fn optional_percent(at: &mut At<'_>, field: &str, value: u32) -> Option<Option<Percent>> {
    percent(at, field, value).map(|percent| (value > 0).then_some(percent))
}
