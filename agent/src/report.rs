//! What breakers do, told to the control plane: state changes at once, figures
//! once a second and only when they changed.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use dashmap::DashMap;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use weir_proto::v1alpha1 as proto;
use weir_proto::v1alpha1::reporting_client::ReportingClient;
use weir_resilience::breaker;
use weir_resilience::config::ServiceId;

use crate::clock::Clock;
use crate::control::{ControlPlane, is_elsewhere};
use crate::discovery::{ended, is_refusal, reconnect_wait, root_cause, turn_wait};
use crate::snapshot::NamedBreaker;
use crate::worker::Shared;

/// How often breakers are looked at for state changes.
const LOOK: Duration = Duration::from_millis(50);
/// How often figures are told: every so many looks.
const FIGURES: u32 = 20;
/// Transitions kept while the control plane is away; the oldest go first.
const MAX_KEPT: usize = 4096;

/// A breaker's name.
pub(crate) type BreakerName = (ServiceId, Arc<str>);

/// Transitions since the agent started, by breaker and the state that was
/// entered, for `/metrics`.
#[derive(Default)]
pub(crate) struct Transitions(DashMap<BreakerName, [u64; 5]>);

impl Transitions {
    pub(crate) fn of(&self, name: &BreakerName) -> [u64; 5] {
        self.0.get(name).map(|counts| *counts).unwrap_or_default()
    }
}

/// Watches the breakers and reports for ever.
pub(crate) struct Reporter {
    pub(crate) clock: Clock,
    pub(crate) node: String,
    pub(crate) shared: Arc<Shared>,
    pub(crate) transitions: Arc<Transitions>,
    /// What capture does not do, where there is one.
    pub(crate) coverage: Option<watch::Receiver<proto::Coverage>>,
}

/// What is not told yet.
#[derive(Default)]
struct Untold {
    transitions: Vec<proto::BreakerTransition>,
    /// Sent on this stream and not yet taken in, by the request's sequence.
    unanswered: VecDeque<(u64, Vec<proto::BreakerTransition>)>,
    known: BTreeMap<BreakerName, proto::BreakerReport>,
    coverage: Option<proto::Coverage>,
}

impl Untold {
    fn bound(&mut self) {
        let excess = self.transitions.len().saturating_sub(MAX_KEPT);
        self.transitions.drain(..excess);
    }

    /// Tells everything anew.
    fn forget(&mut self) {
        self.known.clear();
        self.coverage = None;
    }

    /// A request is on its way.
    fn sent(&mut self, sequence: u64, transitions: Vec<proto::BreakerTransition>) {
        if !transitions.is_empty() {
            self.unanswered.push_back((sequence, transitions));
        }
        let kept = |all: &VecDeque<(u64, Vec<_>)>| all.iter().map(|(_, t)| t.len()).sum::<usize>();
        while kept(&self.unanswered) > MAX_KEPT {
            self.unanswered.pop_front();
        }
    }

    /// All requests up to `sequence` are taken in.
    fn answered(&mut self, sequence: u64) {
        while self.unanswered.front().is_some_and(|(s, _)| *s <= sequence) {
            self.unanswered.pop_front();
        }
    }

    /// The stream ended. What is told twice is better than what is never told.
    fn lost(&mut self) {
        let mut all: Vec<_> = self.unanswered.drain(..).flat_map(|(_, t)| t).collect();
        all.append(&mut self.transitions);
        self.transitions = all;
        self.bound();
    }
}

/// The next message of a stream, once there is a stream.
async fn next<T>(stream: &mut Option<tonic::Streaming<T>>) -> Result<Option<T>, tonic::Status> {
    match stream {
        Some(stream) => stream.message().await,
        None => std::future::pending().await,
    }
}

impl Reporter {
    pub(crate) async fn run(self, control_plane: ControlPlane) {
        let mut untold = Untold::default();
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut attempt = 0;
        let mut turns = 0;
        let mut said = false;
        loop {
            let mut heard_from = false;
            let (requests, outgoing) = mpsc::channel(4);
            let way = control_plane.way();
            let mut client = ReportingClient::new(way.channel());
            let opening = async {
                let request = control_plane.request(ReceiverStream::new(outgoing)).await?;
                client.report(request).await
            };
            // The server answers the opening only once it has read something.
            untold.forget();
            let first = self.collect(&mut untold, true, true);
            untold.sent(1, first.transitions.clone());
            // There is room: the channel is new.
            let _ = requests.send(first).await;
            let mut opening = std::pin::pin!(opening);
            let mut responses: Option<tonic::Streaming<proto::ReportResponse>> = None;
            let mut ticks = 0u32;
            let mut sequence = 1;
            let end = loop {
                tokio::select! {
                    opened = &mut opening, if responses.is_none() => match opened {
                        Ok(stream) => {
                            responses = Some(stream.into_inner());
                        }
                        Err(status) => break status,
                    },
                    heard = next(&mut responses) => match heard {
                        Ok(Some(response)) => {
                            heard_from = true;
                            untold.answered(response.sequence);
                        }
                        Ok(None) => break ended(),
                        Err(status) => break status,
                    },
                    _ = look.tick() => {
                        ticks += 1;
                        let mut next = self.collect(&mut untold, ticks.is_multiple_of(FIGURES), false);
                        if next.breakers.is_empty()
                            && next.transitions.is_empty()
                            && next.removed.is_empty()
                            && next.coverage.is_none()
                        {
                            continue;
                        }
                        sequence += 1;
                        next.sequence = sequence;
                        let transitions = next.transitions.clone();
                        if let Err(unsent) = requests.try_send(next) {
                            // Too slow or gone: keep what must not be lost, tell the rest anew.
                            sequence -= 1;
                            let mut back = unsent.into_inner();
                            back.transitions.append(&mut untold.transitions);
                            untold.transitions = back.transitions;
                            untold.bound();
                            untold.forget();
                        } else {
                            untold.sent(sequence, transitions);
                        }
                    }
                }
            };
            untold.lost();
            if is_elsewhere(&end) {
                control_plane.turn(&way);
                self.wait(&mut untold, &mut look, turn_wait(turns)).await;
                turns += 1;
                continue;
            }
            turns = 0;
            // Against another agent of the same name waits grow, or the two
            // would push each other out without end.
            if heard_from && end.code() != tonic::Code::Aborted {
                attempt = 0;
                said = false;
            }
            let renewed = heard_from && end.code() == tonic::Code::Ok;
            // Said once per outage; nobody else would say that reports are
            // refused, but that the agent is refused is said where it connects.
            if !said && !renewed && !is_refusal(&end) {
                said = true;
                tracing::warn!(
                    reason = root_cause(&end),
                    "breakers cannot be reported; transitions are kept"
                );
            }
            self.wait(&mut untold, &mut look, reconnect_wait(attempt))
                .await;
            attempt += 1;
        }
    }

    /// Goes on watching while the control plane is away.
    async fn wait(&self, untold: &mut Untold, look: &mut tokio::time::Interval, wait: Duration) {
        let until = tokio::time::Instant::now() + wait;
        while tokio::time::Instant::now() < until {
            look.tick().await;
            let back = self.collect(untold, false, false);
            untold.transitions = back.transitions;
            untold.bound();
        }
    }

    /// What there is to tell now. `figures`: also where only figures changed.
    fn collect(&self, untold: &mut Untold, figures: bool, complete: bool) -> proto::ReportRequest {
        let now = self.clock.now();
        let snapshot = self.shared.snapshot.load_full();
        let mut transitions = std::mem::take(&mut untold.transitions);
        let mut breakers = Vec::new();
        let mut seen: HashMap<BreakerName, ()> = HashMap::new();
        let mut fresh = Vec::new();
        for (service, named) in snapshot.breakers() {
            let name = (service.clone(), named.key.clone());
            fresh.clear();
            named.machine.poll(now, &mut fresh);
            for transition in &fresh {
                self.note(&name, named, transition);
                transitions.push(self.transition(&name, named.shadow, transition));
            }
            let known = untold.known.get(&name);
            if !fresh.is_empty() || figures || known.is_none() {
                let report = self.report(&name, named);
                if known != Some(&report) {
                    untold.known.insert(name.clone(), report.clone());
                    breakers.push(report);
                }
            }
            seen.insert(name, ());
        }
        let coverage = self.coverage.as_ref().map(|c| c.borrow().clone());
        let coverage = coverage.filter(|now| untold.coverage.as_ref() != Some(now));
        if coverage.is_some() {
            untold.coverage.clone_from(&coverage);
        }
        let mut removed = Vec::new();
        untold.known.retain(|name, _| {
            let stays = seen.contains_key(name);
            if !stays {
                removed.push(id_of(name));
                self.transitions.0.remove(name);
            }
            stays
        });
        proto::ReportRequest {
            node: self.node.clone(),
            sequence: 1,
            breakers,
            transitions,
            removed,
            complete,
            coverage,
        }
    }

    /// Logs and counts one transition, once.
    fn note(&self, name: &BreakerName, named: &NamedBreaker, transition: &breaker::Transition) {
        if let Some(count) = self
            .transitions
            .0
            .entry(name.clone())
            .or_default()
            .get_mut(state_index(transition.to))
        {
            *count += 1;
        }
        tracing::info!(
            service = %name.0,
            breaker = %name.1,
            from = ?transition.from,
            to = ?transition.to,
            reason = ?transition.reason,
            shadow = named.shadow,
            "circuit breaker: {}",
            transition.message
        );
    }

    fn transition(
        &self,
        name: &BreakerName,
        shadow: bool,
        of: &breaker::Transition,
    ) -> proto::BreakerTransition {
        proto::BreakerTransition {
            id: Some(id_of(name)),
            from: wire_state(of.from).into(),
            to: wire_state(of.to).into(),
            reason: wire_reason(of.reason).into(),
            message: of.message.clone(),
            at_unix_ms: self.clock.unix_ms_at(of.at),
            epoch: of.epoch,
            shadow,
        }
    }

    fn report(&self, name: &BreakerName, named: &NamedBreaker) -> proto::BreakerReport {
        let status = named.machine.status(self.clock.now());
        proto::BreakerReport {
            id: Some(id_of(name)),
            state: wire_state(status.state).into(),
            reason: status.reason.map(wire_reason).unwrap_or_default().into(),
            message: status.message,
            since_unix_ms: self.clock.unix_ms_at(status.since),
            failure_percent: status.failure_percent,
            window_requests: status.window_requests,
            request_rate_milli: status.request_rate_milli,
            rejected_total: status.rejected_total,
            shadow: named.shadow,
            epoch: status.epoch,
            observed_reset: status.observed_reset,
        }
    }
}

/// The states in the order of [`Transitions`], as people read them.
pub(crate) const STATES: [(breaker::State, &str); 5] = [
    (breaker::State::Closed, "Closed"),
    (breaker::State::Open, "Open"),
    (breaker::State::HalfOpen, "HalfOpen"),
    (breaker::State::ForcedOpen, "ForcedOpen"),
    (breaker::State::ForcedClosed, "ForcedClosed"),
];

fn state_index(state: breaker::State) -> usize {
    STATES.iter().position(|(s, _)| *s == state).unwrap_or(0)
}

fn id_of((service, key): &BreakerName) -> proto::BreakerId {
    proto::BreakerId {
        namespace: service.namespace.clone(),
        service: service.name.clone(),
        key: key.to_string(),
    }
}

fn wire_state(state: breaker::State) -> proto::BreakerState {
    match state {
        breaker::State::Closed => proto::BreakerState::Closed,
        breaker::State::Open => proto::BreakerState::Open,
        breaker::State::HalfOpen => proto::BreakerState::HalfOpen,
        breaker::State::ForcedOpen => proto::BreakerState::ForcedOpen,
        breaker::State::ForcedClosed => proto::BreakerState::ForcedClosed,
    }
}

pub(crate) fn wire_reason(reason: breaker::Reason) -> proto::BreakerReason {
    match reason {
        breaker::Reason::FailureRate => proto::BreakerReason::FailureRate,
        breaker::Reason::SlowRequests => proto::BreakerReason::SlowRequests,
        breaker::Reason::ConsecutiveFailures => proto::BreakerReason::ConsecutiveFailures,
        breaker::Reason::ProbeFailed => proto::BreakerReason::ProbeFailed,
        breaker::Reason::ProbeTimeout => proto::BreakerReason::ProbeTimeout,
        breaker::Reason::OpenElapsed => proto::BreakerReason::OpenElapsed,
        breaker::Reason::Recovered => proto::BreakerReason::Recovered,
        breaker::Reason::Override => proto::BreakerReason::Override,
        breaker::Reason::OverrideEnded => proto::BreakerReason::OverrideEnded,
        breaker::Reason::Reset => proto::BreakerReason::Reset,
    }
}

/// [`wire_reason`] read back; `None` for one that is not known.
pub(crate) fn reason_of(reason: proto::BreakerReason) -> Option<breaker::Reason> {
    Some(match reason {
        proto::BreakerReason::Unspecified => return None,
        proto::BreakerReason::FailureRate => breaker::Reason::FailureRate,
        proto::BreakerReason::SlowRequests => breaker::Reason::SlowRequests,
        proto::BreakerReason::ConsecutiveFailures => breaker::Reason::ConsecutiveFailures,
        proto::BreakerReason::ProbeFailed => breaker::Reason::ProbeFailed,
        proto::BreakerReason::ProbeTimeout => breaker::Reason::ProbeTimeout,
        proto::BreakerReason::OpenElapsed => breaker::Reason::OpenElapsed,
        proto::BreakerReason::Recovered => breaker::Reason::Recovered,
        proto::BreakerReason::Override => breaker::Reason::Override,
        proto::BreakerReason::OverrideEnded => breaker::Reason::OverrideEnded,
        proto::BreakerReason::Reset => breaker::Reason::Reset,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(epoch: u64) -> proto::BreakerTransition {
        proto::BreakerTransition {
            epoch,
            ..Default::default()
        }
    }

    fn epochs(untold: &Untold) -> Vec<u64> {
        untold.transitions.iter().map(|t| t.epoch).collect()
    }

    #[test]
    fn what_a_lost_stream_had_not_taken_in_is_told_again_in_order() {
        let mut untold = Untold::default();
        untold.sent(1, vec![at(1)]);
        untold.sent(2, Vec::new());
        untold.sent(3, vec![at(2), at(3)]);
        untold.answered(2);
        untold.transitions.push(at(4));
        untold.lost();
        assert_eq!(epochs(&untold), [2, 3, 4]);
    }

    #[test]
    fn the_oldest_are_dropped_when_too_many_are_not_told() {
        let mut untold = Untold::default();
        for n in 0..2 * MAX_KEPT as u64 {
            untold.sent(n, vec![at(n)]);
        }
        untold.transitions.push(at(u64::MAX));
        untold.lost();
        assert_eq!(untold.transitions.len(), MAX_KEPT);
        assert_eq!(untold.transitions.last().map(|t| t.epoch), Some(u64::MAX));
    }
}
