//! A breaker's reasons in words.

use std::fmt::Write;

use super::Cause;
use super::window::Sum;
use crate::config::{SlowRequests, Window};

/// Kinds of failure that are named.
const NAMED: usize = 3;

/// "61% of 240 requests failed in 10s: 503 ×146"
pub(super) fn failure_rate(sum: &Sum, window: Window, causes: &[(Cause, u64)]) -> String {
    let percent = percent(sum.failed, sum.requests);
    let mut text = match window {
        Window::Rolling(time) | Window::Fixed(time) => {
            format!("{percent}% of {} requests failed in {time:?}", sum.requests)
        }
        Window::Count(_) => format!("{percent}% of the last {} requests failed", sum.requests),
    };
    for (n, (cause, count)) in causes.iter().take(NAMED).enumerate() {
        let separator = if n == 0 { ": " } else { ", " };
        // Writing to a string cannot fail.
        let _ = write!(text, "{separator}{cause} ×{count}");
    }
    if causes.len() > NAMED {
        text.push_str(", …");
    }
    text
}

/// "80% of 240 requests took longer than 500ms in 10s"
pub(super) fn slow_requests(sum: &Sum, window: Window, slow: SlowRequests) -> String {
    let (percent, threshold) = (percent(sum.slow, sum.requests), slow.threshold);
    match window {
        Window::Rolling(time) | Window::Fixed(time) => {
            format!(
                "{percent}% of {} requests took longer than {threshold:?} in {time:?}",
                sum.requests
            )
        }
        Window::Count(_) => format!(
            "{percent}% of the last {} requests took longer than {threshold:?}",
            sum.requests
        ),
    }
}

/// `part` of `whole` in hundredths, to the nearest.
pub(super) fn percent(part: u64, whole: u64) -> u32 {
    match whole {
        0 => 0,
        whole => ((u128::from(part) * 100 + u128::from(whole) / 2) / u128::from(whole)) as u32,
    }
}
