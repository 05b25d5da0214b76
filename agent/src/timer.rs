//! One timer per connection, set back only when it has to ring earlier.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::time::{Sleep, sleep_until};
use weir_resilience::Time;

use crate::clock::Clock;

/// A timer that is cheap to move: a later deadline costs nothing until the
/// earlier one rings.
pub(crate) struct Timer {
    clock: Clock,
    sleep: Option<Pin<Box<Sleep>>>,
    rings_at: Time,
}

impl Timer {
    pub(crate) fn new(clock: Clock) -> Timer {
        Timer {
            clock,
            sleep: None,
            rings_at: Time::MAX,
        }
    }

    /// Ready once `deadline` has passed; `None` never is.
    pub(crate) fn poll(
        &mut self,
        deadline: Option<Time>,
        now: Time,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        let Some(deadline) = deadline else {
            return Poll::Pending;
        };
        if deadline <= now {
            return Poll::Ready(());
        }
        loop {
            let sleep = match &mut self.sleep {
                Some(sleep) => {
                    if deadline < self.rings_at {
                        sleep.as_mut().reset(self.clock.instant(deadline));
                        self.rings_at = deadline;
                    }
                    sleep
                }
                None => {
                    self.rings_at = deadline;
                    self.sleep
                        .insert(Box::pin(sleep_until(self.clock.instant(deadline))))
                }
            };
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            // It rang for an earlier deadline: set it for this one.
            if self.clock.now() >= deadline {
                return Poll::Ready(());
            }
            self.rings_at = Time::MAX;
        }
    }
}
