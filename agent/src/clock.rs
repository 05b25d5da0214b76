//! The agent's clocks: one monotonic, which the machines of
//! `weir-resilience` count in, and the wall clock, for what people read.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;
use weir_resilience::Time;

use crate::registry::Moment;

/// Tells both times. Copies agree with each other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    origin: Instant,
}

impl Clock {
    /// A clock that begins one hour ago, so that "an hour before now" can be
    /// told.
    pub(crate) fn start() -> Clock {
        let now = Instant::now();
        Clock {
            origin: now.checked_sub(Duration::from_secs(3600)).unwrap_or(now),
        }
    }

    /// Monotonic time. 40 ns: read it once per poll and pass it on.
    pub(crate) fn now(&self) -> Time {
        Time::ZERO + self.origin.elapsed()
    }

    /// The same moment for tokio's timers.
    pub(crate) fn instant(&self, at: Time) -> Instant {
        self.origin + at.since(Time::ZERO)
    }

    /// Milliseconds since the Unix epoch, now.
    #[allow(clippy::disallowed_methods)] // the one place that reads the wall clock
    pub(crate) fn unix_ms(&self) -> i64 {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
    }

    /// Both times of this moment.
    pub(crate) fn moment(&self) -> Moment {
        Moment {
            now: self.now(),
            unix_ms: self.unix_ms(),
        }
    }

    /// Milliseconds since the Unix epoch at `at`, by today's wall clock.
    pub(crate) fn unix_ms_at(&self, at: Time) -> i64 {
        let ago = i64::try_from(self.now().since(at).as_millis()).unwrap_or(i64::MAX);
        self.unix_ms().saturating_sub(ago)
    }
}
