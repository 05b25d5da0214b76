//! One try, and whether there is another.

use std::ops::Range;
use std::time::Duration;

use weir_resilience::config::Mode;
use weir_resilience::retry::{self, Sent, Stop};
use weir_resilience::{Time, breaker};

use super::Exchange;
use super::places::Seat;
use crate::metrics::Counter;

/// One try on its way.
pub(super) struct Try {
    pub(super) endpoint: usize,
    /// Drawn for it.
    pub(super) random: u64,
    pub(super) permit: Option<breaker::Permit>,
    pub(super) started: Time,
    /// How long it took to answer, once the answer is a stream.
    pub(super) took: Option<Duration>,
    pub(super) deadline: Option<Time>,
    pub(super) partition: Option<Seat>,
    pub(super) limit: Option<Seat>,
}

/// Endpoints that were tried, as far as there is room: 10 extra tries are the
/// most that a policy can ask for.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tried {
    pub(super) endpoints: [u16; 16],
    pub(super) count: usize,
}

impl Tried {
    pub(super) fn insert(&mut self, endpoint: usize) {
        if let (Some(place), Ok(endpoint)) =
            (self.endpoints.get_mut(self.count), u16::try_from(endpoint))
        {
            *place = endpoint;
            self.count += 1;
        }
    }

    pub(super) fn as_slice(&self) -> &[u16] {
        &self.endpoints[..self.count]
    }

    /// Those in this range, counted from its start.
    pub(super) fn within(&self, range: &Range<usize>) -> Tried {
        let mut within = Tried::default();
        for endpoint in self.as_slice().iter().map(|e| usize::from(*e)) {
            if range.contains(&endpoint) {
                within.insert(endpoint - range.start);
            }
        }
        within
    }

    pub(super) fn contains(&self, endpoint: usize) -> bool {
        self.as_slice()
            .iter()
            .any(|tried| usize::from(*tried) == endpoint)
    }
}

impl Exchange {
    /// Bytes of request body worth keeping for another try.
    pub(crate) fn replay_limit(&self) -> usize {
        match &self.rules().retries {
            Some((retries, _)) if retries.attempts > 0 && retries.mode == Mode::Enforce => {
                retries.max_buffered_body
            }
            _ => 0,
        }
    }

    /// Whether an answer may still lead to another try, so that it is worth
    /// waiting for the status in its trailers.
    pub(crate) fn may_retry_answer(&self, body_kept: bool) -> bool {
        let policy = self.rules().retries.as_ref().map(|(policy, _)| policy);
        policy
            .is_some_and(|policy| policy.mode == Mode::Enforce && self.tries.made < policy.attempts)
            && body_kept
            && (self.idempotent || !self.facts.grpc)
    }

    /// A pooled connection turned out to be closed before anything was
    /// answered: the same try goes on over another connection. It is neither
    /// a failure nor a retry.
    pub(crate) fn may_reconnect(&self, body_kept: bool) -> bool {
        body_kept && self.method.is_idempotent()
    }

    pub(super) fn decide(
        &mut self,
        failure: retry::Failure,
        sent: Sent,
        hints: &retry::Hints,
        body_kept: bool,
        now: Time,
        random: u64,
    ) -> Option<Duration> {
        let snapshot = self.snapshot.clone();
        let rules = snapshot.at_caller(self.place).of(self.route);
        let (policy, budget) = rules.retries.as_ref()?;
        let request = retry::Request {
            method: self.method.as_str(),
            grpc: self.facts.grpc,
            idempotent: self.idempotent,
            body_replayable: body_kept,
        };
        let breaker = rules
            .breaker
            .as_ref()
            .filter(|(b, _)| b.mode == Mode::Enforce);
        let open = breaker.is_some_and(|(_, machine)| {
            matches!(
                machine.state(now),
                breaker::State::Open | breaker::State::ForcedOpen
            )
        });
        let left = self.deadline.map(|at| at.since(now));
        let withdraw = || budget.try_withdraw(self.shard, now);
        let decision = retry::decide(
            policy,
            &request,
            failure,
            sent,
            hints,
            &self.tries,
            left,
            open,
            withdraw,
            random,
        );
        let shadow = policy.mode == Mode::Shadow;
        match decision {
            retry::Decision::Retry { .. } if shadow => {
                self.count(Counter::ShadowRetries);
                None
            }
            retry::Decision::Retry { after } => {
                self.tries.made += 1;
                self.tries.last_wait = after;
                self.count(Counter::Retries);
                Some(after)
            }
            retry::Decision::Stop(stop) => {
                let counter = match stop {
                    Stop::NotListed => None,
                    Stop::NoTriesLeft => Some(Counter::StopTries),
                    Stop::UnsafeMethod => Some(Counter::StopMethod),
                    Stop::BodyTooLarge => Some(Counter::StopBody),
                    Stop::DeadlineTooNear => Some(Counter::StopDeadline),
                    Stop::Pushback => Some(Counter::StopPushback),
                    Stop::BreakerOpen => Some(Counter::StopBreaker),
                    Stop::BudgetExhausted => Some(Counter::StopBudget),
                };
                if let Some(counter) = counter.filter(|_| !shadow) {
                    self.count(counter);
                }
                None
            }
        }
    }

    /// Gives back what the current try holds.
    pub(super) fn leave_try(&mut self, now: Time) {
        // Dropped with it: its places at the destination, or its wait for one.
        self.waiting = None;
        let Some(mut current) = self.current.take() else {
            return;
        };
        if let Some(endpoint) = self.port().endpoints.get(current.endpoint) {
            endpoint.load.end();
        }
        if let (Some(permit), Some((_, machine))) = (current.permit.take(), &self.rules().breaker) {
            machine.release(permit, now);
        }
    }
}
