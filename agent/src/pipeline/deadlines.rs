//! The limits of time of a request, and of the try that is under way.

use std::time::Duration;

use weir_resilience::config::{Mode, Timeouts};
use weir_resilience::{Time, breaker};

use super::{Exchange, Limit};
use crate::answer::Answer;
use crate::metrics::Counter;
use crate::snapshot::Rules;

impl Exchange {
    /// `timeouts.connect`, where it is in force.
    pub(crate) fn connect_timeout(&self) -> Option<Duration> {
        self.timeouts().and_then(|t| t.connect)
    }

    /// `timeouts.idle`, where it is in force.
    pub(crate) fn idle_timeout(&self) -> Option<Duration> {
        self.timeouts().and_then(|t| t.idle)
    }

    /// The current try's deadline; time in Weir's own queue is not the try's.
    fn try_deadline(&self) -> Option<Time> {
        self.current
            .as_ref()
            .filter(|_| self.waiting.is_none())
            .and_then(|t| t.deadline)
    }

    /// The next moment at which [`Exchange::expired`] has something to say.
    pub(crate) fn deadline(&self) -> Option<Time> {
        let of_try = self.try_deadline();
        [self.deadline, of_try, self.stream_deadline]
            .into_iter()
            .flatten()
            .min()
    }

    /// The limit that has passed, if one has.
    pub(crate) fn expired(&self, now: Time) -> Option<Limit> {
        let passed = |at: Option<Time>| at.is_some_and(|at| at <= now);
        if passed(self.deadline) {
            Some(Limit::Request)
        } else if passed(self.try_deadline()) {
            Some(Limit::Try)
        } else if passed(self.stream_deadline) {
            Some(Limit::Stream)
        } else {
            None
        }
    }

    /// The answer for `timeouts.request`. A try that is with the destination
    /// counts as timed out; time in Weir's own queues is nobody's failure.
    pub(crate) fn on_request_timeout(&mut self, now: Time, random: u64) -> Answer {
        if self.waiting.is_none() && self.current.is_some() {
            self.count(Counter::FailedTimeout);
            self.record_failure(breaker::Cause::Timeout, None, now, random);
        }
        let after = self
            .rules()
            .timeouts
            .and_then(|t| t.request)
            .unwrap_or_default();
        Answer::RequestTimeout { after }
    }

    pub(super) fn timeouts(&self) -> Option<&Timeouts> {
        enforced(self.rules())
    }
}

/// The timeouts that act.
pub(super) fn enforced(rules: &Rules) -> Option<&Timeouts> {
    rules.timeouts.as_ref().filter(|t| t.mode == Mode::Enforce)
}
