//! Whether a failed try is made again.

use std::time::Duration;

use crate::backoff;
use crate::config::Retries;

#[cfg(test)]
#[cfg(not(loom))]
mod tests;

/// How a try failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// With an HTTP status.
    Status(u16),
    /// With a gRPC status.
    Grpc(u8),
    /// No connection could be made, so nothing was sent.
    Connect,
    /// The connection or stream ended before the response did.
    Reset,
    /// It was cut by the per-try timeout.
    PerTryTimeout,
    /// Weir refused it on the destination's side, so nothing reached the
    /// application. Listed where 503, for gRPC `UNAVAILABLE`, is.
    Refused,
}

/// What the destination may have seen of a try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// Nothing that it could act on.
    Nothing,
    /// Some or all of it, and no answer came back.
    Maybe,
    /// All that it needed to answer.
    Answered,
}

/// What counts of a request when it may be repeated.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Its method, upper case.
    pub method: &'a str,
    /// Whether it is a gRPC call: these are all POST, so their method says
    /// nothing about them.
    pub grpc: bool,
    /// The owner's word that repeating it is harmless.
    pub idempotent: bool,
    /// Whether every byte of the body that was read so far is still at hand.
    pub body_replayable: bool,
}

/// What was done so far for a request.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tries {
    /// Extra tries, beyond the first.
    pub made: u32,
    /// The wait before the last of them.
    pub last_wait: Duration,
}

/// What the destination asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hints {
    /// `Retry-After` (RFC 9110, 10.2.3).
    pub retry_after: Option<Duration>,
    /// `grpc-retry-pushback-ms` (gRFC A6).
    pub pushback: Option<Pushback>,
}

/// A gRPC server's word on the next try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushback {
    /// After exactly this.
    After(Duration),
    /// Not at all: a negative or malformed number.
    Stop,
}

/// What becomes of a failed try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It is made again after a wait. The budget has been charged.
    Retry {
        /// The wait.
        after: Duration,
    },
    /// The failure is the answer.
    Stop(Stop),
}

/// Why a failed try is not made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stop {
    /// The policy does not list this failure.
    NotListed,
    /// All extra tries were made.
    NoTriesLeft,
    /// Repeating could do harm.
    UnsafeMethod,
    /// The body was not kept.
    BodyTooLarge,
    /// The next try could not begin before the request's deadline.
    DeadlineTooNear,
    /// The destination asked for no more.
    Pushback,
    /// The breaker is open.
    BreakerOpen,
    /// Too many of the tries are extra ones already.
    BudgetExhausted,
}

impl Stop {
    /// As a metric's label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Stop::NotListed => "not_listed",
            Stop::NoTriesLeft => "no_tries_left",
            Stop::UnsafeMethod => "unsafe_method",
            Stop::BodyTooLarge => "body_too_large",
            Stop::DeadlineTooNear => "deadline_too_near",
            Stop::Pushback => "pushback",
            Stop::BreakerOpen => "breaker_open",
            Stop::BudgetExhausted => "budget_exhausted",
        }
    }
}

/// Decides about a failed try.
///
/// `left` is the time until the request's deadline, `None` where it has none.
/// `withdraw` asks the budget for an extra try, and is called last, so that
/// nothing is withdrawn for a try that is not made.
#[allow(clippy::too_many_arguments)]
pub fn decide(
    policy: &Retries,
    request: &Request<'_>,
    failure: Failure,
    sent: Sent,
    hints: &Hints,
    tries: &Tries,
    left: Option<Duration>,
    breaker_open: bool,
    withdraw: impl FnOnce() -> bool,
    random: u64,
) -> Decision {
    if !is_listed(policy, request, failure) {
        return Decision::Stop(Stop::NotListed);
    }
    if tries.made >= policy.attempts {
        return Decision::Stop(Stop::NoTriesLeft);
    }
    if !is_safe(policy, request, failure, sent) {
        return Decision::Stop(Stop::UnsafeMethod);
    }
    if !request.body_replayable {
        return Decision::Stop(Stop::BodyTooLarge);
    }
    if breaker_open {
        return Decision::Stop(Stop::BreakerOpen);
    }
    let backoff = backoff::wait(&policy.backoff, tries.made + 1, tries.last_wait, random);
    let after = match (hints.pushback, hints.retry_after) {
        (Some(Pushback::Stop), _) => return Decision::Stop(Stop::Pushback),
        (Some(Pushback::After(pushback)), _) => pushback,
        (None, Some(retry_after)) if policy.honor_retry_after => retry_after.max(backoff),
        (None, _) => backoff,
    };
    if left.is_some_and(|left| after >= left) {
        return Decision::Stop(Stop::DeadlineTooNear);
    }
    if !withdraw() {
        return Decision::Stop(Stop::BudgetExhausted);
    }
    Decision::Retry { after }
}

fn is_listed(policy: &Retries, request: &Request<'_>, failure: Failure) -> bool {
    const SERVICE_UNAVAILABLE: u16 = 503;
    const UNAVAILABLE: u8 = 14;
    match failure {
        Failure::Status(status) => policy.status_codes.contains(status),
        Failure::Grpc(code) => policy.grpc_codes.contains(code),
        Failure::Connect => policy.connection_failure,
        Failure::Reset => policy.reset,
        Failure::PerTryTimeout => policy.per_try_timeout,
        Failure::Refused if request.grpc => policy.grpc_codes.contains(UNAVAILABLE),
        Failure::Refused => policy.status_codes.contains(SERVICE_UNAVAILABLE),
    }
}

fn is_safe(policy: &Retries, request: &Request<'_>, failure: Failure, sent: Sent) -> bool {
    let unseen = sent == Sent::Nothing || matches!(failure, Failure::Connect | Failure::Refused);
    let harmless = !request.grpc && policy.methods.iter().any(|method| method == request.method);
    unseen || request.idempotent || harmless
}
