//! What a try says about its destination, told to the breaker.

use std::time::Duration;

use weir_resilience::{Time, breaker};

use super::Exchange;

impl Exchange {
    /// What ends the try now is not the destination's doing (the caller stopped
    /// sending, another agent refused): it says nothing about the destination.
    pub(crate) fn excuse(&mut self, now: Time) {
        if let Some((permit, _)) = self.take_permit(now)
            && let Some((_, machine)) = &self.rules().breaker
        {
            machine.release(permit, now);
        }
    }

    /// Whether the current try is a breaker's probe that has not been judged.
    pub(crate) fn is_probe(&self) -> bool {
        let permit = self.current.as_ref().and_then(|t| t.permit.as_ref());
        permit.is_some_and(breaker::Permit::is_probe)
    }

    /// A probe has seen what it was sent for; its place is for the next one.
    pub(crate) fn on_probe_success(&mut self, now: Time, random: u64) {
        if self.is_probe() {
            self.record_success(now, random);
        }
    }

    /// What the breaker calls a failure.
    pub(super) fn failure_cause(
        &self,
        status: u16,
        grpc_status: Option<u8>,
    ) -> Option<breaker::Cause> {
        let on = self
            .rules()
            .breaker
            .as_ref()
            .map(|(rules, _)| &rules.failure_on)?;
        match grpc_status {
            Some(code) if self.facts.grpc => on
                .grpc_codes
                .contains(code)
                .then_some(breaker::Cause::Grpc(code)),
            _ => on
                .status_codes
                .contains(status)
                .then_some(breaker::Cause::Status(status)),
        }
    }

    /// Takes the current try's permit, with how long the try has taken.
    fn take_permit(&mut self, now: Time) -> Option<(breaker::Permit, Duration)> {
        self.seen = now;
        let current = self.current.as_mut()?;
        let took = current.took.unwrap_or_else(|| now.since(current.started));
        current.permit.take().map(|permit| (permit, took))
    }

    pub(super) fn record_success(&mut self, now: Time, random: u64) {
        if let Some((permit, took)) = self.take_permit(now)
            && let Some((_, machine)) = &self.rules().breaker
        {
            machine.record(
                self.shard,
                permit,
                now,
                random,
                &breaker::Outcome::Success { took },
            );
        }
    }

    pub(super) fn record_failure(
        &mut self,
        cause: breaker::Cause,
        retry_after: Option<Duration>,
        now: Time,
        random: u64,
    ) {
        let Some((permit, took)) = self.take_permit(now) else {
            return;
        };
        if let Some((_, machine)) = &self.rules().breaker {
            // The machine itself leaves out what its policy does not count.
            let outcome = breaker::Outcome::Failure {
                cause,
                took,
                retry_after,
            };
            machine.record(self.shard, permit, now, random, &outcome);
        }
    }
}
