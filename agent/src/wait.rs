//! What can end a wait while a request is on its way.

use std::task::{Context, Poll};

use weir_resilience::Time;

use crate::pipeline::{Exchange, Limit};
use crate::timer::Timer;

/// What ended a wait.
pub(crate) enum Interrupt {
    /// The caller left.
    Gone,
    /// A limit of the policy passed.
    Expired(Limit),
    /// The deadline that was given with the wait.
    Passed,
}

/// Ready when a limit of the exchange has passed, or `until` has.
pub(crate) fn poll_limits(
    timer: &mut Timer,
    exchange: &Exchange,
    until: Option<Time>,
    now: Time,
    cx: &mut Context<'_>,
) -> Poll<Interrupt> {
    let next = [exchange.deadline(), until].into_iter().flatten().min();
    if timer.poll(next, now, cx).is_pending() {
        return Poll::Pending;
    }
    let reached = next.unwrap_or(now).max(now);
    let expired = exchange.expired(reached);
    Poll::Ready(expired.map_or(Interrupt::Passed, Interrupt::Expired))
}
