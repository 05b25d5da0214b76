//! The way of a request through Weir, whole and in order.
//!
//! ```text
//! admit      route → deadline → bulkhead (caller)
//! next_try   ┌ breaker → endpoint → bulkhead (destination) → load → concurrency
//! (driver)   │ pool → upstream
//! on_head    │ classify → record → retry?  ── Retry(after) ──▶ next_try
//! on_failure └                             ── Forward / Answer
//! on_end     record → everything given back
//! ```
//!
//! [`Exchange`] is a synchronous state machine without I/O: `h1`, `h2` and `tcp`
//! drive it and own the sockets; for `tcp` a connection is one request. It holds every permit of the request and gives back
//! what is left when it is dropped, which is also how a caller that leaves is
//! taken care of: neither success nor failure.

use std::net::SocketAddr;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use weir_resilience::config::{self, Mode, RequestView};
use weir_resilience::retry::{self, Sent};
use weir_resilience::{Time, balance, breaker};

use crate::answer::Answer;
use crate::metrics::{Counter, PortMetrics};
use crate::snapshot::{Port, Rules, Service, Snapshot};

mod connections;
mod deadlines;
mod facts;
mod places;
mod records;
mod tries;

pub(crate) use connections::NoHead;
use deadlines::enforced;
pub(crate) use facts::{
    End, Limit, Place, RequestFacts, ResponseFacts, Side, To, TryFailure, Verdict,
};
use places::{Seat, Waiting};
use tries::{Tried, Try};

/// A snapshot as a worker holds it: copies cost no atomic.
pub(crate) type Held = Rc<Arc<Snapshot>>;

/// One request, from its head to the end of its answer.
pub(crate) struct Exchange {
    snapshot: Held,
    place: Place,
    /// At the caller's side.
    route: Option<usize>,
    /// At the destination, where its owner's routes count, whoever calls.
    destination_route: Option<usize>,
    shard: usize,
    facts: RequestFacts,
    method: http::Method,
    idempotent: bool,
    started: Time,
    deadline: Option<Time>,
    stream_deadline: Option<Time>,
    caller: Option<Seat>,
    destination: Option<usize>,
    waiting: Option<Waiting>,
    current: Option<Try>,
    tries: retry::Tries,
    tried: Tried,
    finished: bool,
    /// The last moment that a step told: for giving back when dropped.
    seen: Time,
}

impl Exchange {
    /// Takes a request in: route, deadline, the caller's bulkhead. Afterwards
    /// [`Exchange::poll_place`] must be ready before anything else.
    pub(crate) fn admit(
        snapshot: &Held,
        place: Place,
        shard: usize,
        method: http::Method,
        request: &impl RequestView,
        facts: RequestFacts,
        now: Time,
    ) -> Result<Exchange, Answer> {
        let (at_caller, at_destination) =
            (snapshot.at_caller(place), snapshot.at_destination(place));
        let (route, destination_route) = match (place.consumer, place.side) {
            _ if facts.tcp => (None, None),
            (None, Side::Both) => {
                let route = at_caller.route(request);
                (route, route)
            }
            _ => (at_caller.route(request), at_destination.route(request)),
        };
        let mut exchange = Exchange {
            snapshot: snapshot.clone(),
            place,
            route,
            destination_route,
            shard,
            facts,
            method,
            idempotent: at_caller.is_idempotent(route),
            started: now,
            deadline: None,
            stream_deadline: None,
            caller: None,
            destination: None,
            waiting: None,
            current: None,
            tries: retry::Tries::default(),
            tried: Tried::default(),
            seen: now,
            finished: false,
        };
        let rules = at_caller.of(route);
        if let Some((_, budget)) = &rules.retries {
            budget.request(shard, now);
        }
        exchange.deadline = enforced(rules).and_then(|t| t.request).map(|t| now + t);
        let caller = exchange.facts.caller.take();
        let in_partition = |of: &config::Bulkhead| {
            of.headers.iter().all(|h| h.matches(request)) && of.from.include(caller.as_deref())
        };
        exchange.destination = at_destination
            .of(destination_route)
            .destination_bulkheads
            .iter()
            .position(|b| in_partition(&b.config));
        if let Some(partition) = rules
            .caller_bulkheads
            .iter()
            .find(|b| in_partition(&b.config))
        {
            match exchange.enter(&partition.machine, &partition.name, &partition.config, now) {
                Ok(seat) => exchange.caller = seat,
                Err(answer) => {
                    exchange.on_answer(&answer, now);
                    return Err(answer);
                }
            }
        }
        Ok(exchange)
    }

    /// Begins a try: the breaker's permit, an endpoint, a place at it.
    /// Afterwards [`Exchange::poll_place`] must be ready before it is sent.
    pub(crate) fn next_try(&mut self, now: Time, random: u64) -> Result<(), Answer> {
        self.seen = now;
        let snapshot = self.snapshot.clone();
        let (service, port) = self.place_in(&snapshot);
        let permit = self.pass_breaker(now, random)?;
        let per_try = self.timeouts().and_then(|t| t.per_try);
        // A permit in `current` is given back whatever happens next.
        self.current = Some(Try {
            endpoint: usize::MAX,
            random,
            permit,
            started: now,
            took: None,
            deadline: per_try.map(|t| now + t),
            partition: None,
            limit: None,
        });
        if let To::Service(_) = self.place.to {
            self.count(Counter::Tries);
            return Ok(());
        }
        let mut full = Tried::default();
        let mut refusal = Answer::NoEndpoints {
            service: service.label.clone(),
        };
        while let Some(endpoint) = self.choose(port, random) {
            if full.contains(endpoint) || full.count == full.endpoints.len() {
                break;
            }
            self.tried.insert(endpoint);
            match self.take_endpoint(endpoint, now) {
                Ok(()) => {
                    self.count(Counter::Tries);
                    return Ok(());
                }
                // Nothing has been sent: another endpoint may have room.
                Err(answer) => {
                    full.insert(endpoint);
                    refusal = answer;
                }
            }
        }
        self.leave_try(now);
        Err(refusal)
    }

    /// The endpoint of the next try, as far as those that were tried tell.
    fn choose(&self, port: &Port, random: u64) -> Option<usize> {
        match self.place.to {
            To::Endpoint(endpoint) => Some(endpoint),
            To::Rather(endpoint) if !self.tried.contains(endpoint) => Some(endpoint),
            To::Rather(endpoint) => {
                let ipv6 = port.endpoints[endpoint].address.is_ipv6();
                self.pick(port, port.usable_of(ipv6), random)
            }
            To::Family { ipv6 } => self.pick(port, port.usable_of(ipv6), random),
            To::Any | To::Service(_) => self.pick(port, 0..port.usable, random),
        }
    }

    /// One of these, rather one that was not tried.
    fn pick(&self, port: &Port, among: Range<usize>, random: u64) -> Option<usize> {
        let load = |i: usize| port.endpoints[among.start + i].load.get();
        let tried = self.tried.within(&among);
        let picked = balance::pick(among.len(), load, tried.as_slice(), random);
        picked.map(|i| among.start + i)
    }

    /// Whether a caller's next request goes where this one went.
    pub(crate) fn keeps_endpoint(&self) -> bool {
        let chosen = matches!(self.place.to, To::Family { .. } | To::Rather(_));
        chosen && self.port().affinity.is_some()
    }

    /// Where the current try goes.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        let current = self.current.as_ref()?;
        match self.place.to {
            To::Service(address) => Some(address),
            _ => Some(self.port().endpoints.get(current.endpoint)?.address),
        }
    }

    /// Whether it is a gRPC call, whose caller may wait for an answer while its
    /// stream is open.
    pub(crate) fn is_grpc(&self) -> bool {
        self.facts.grpc
    }

    /// A response's head has come: classify, record, decide.
    pub(crate) fn on_head(
        &mut self,
        facts: &ResponseFacts,
        body_kept: bool,
        now: Time,
        random: u64,
    ) -> Verdict {
        let failure = match facts.grpc_status {
            Some(code) if self.facts.grpc => (code != 0).then_some(retry::Failure::Grpc(code)),
            _ => Some(retry::Failure::Status(facts.status)),
        };
        if facts.refused {
            // The destination has not seen it.
            self.excuse(now);
        } else if let Some(cause) = self.failure_cause(facts.status, facts.grpc_status) {
            self.count(Counter::FailedStatus);
            self.record_failure(cause, facts.retry_after, now, random);
        }
        if let Some(failure) = failure {
            let hints = retry::Hints {
                retry_after: facts.retry_after,
                pushback: facts.pushback,
            };
            if let Some(after) =
                self.decide(failure, Sent::Answered, &hints, body_kept, now, random)
            {
                self.leave_try(now);
                return Verdict::Retry(after);
            }
        }
        if facts.stream {
            self.on_stream(now, random);
        }
        Verdict::Forward
    }

    /// The response turned out to be a stream: it has answered in time, and
    /// from here only idle and `maxStream` hold.
    pub(crate) fn on_stream(&mut self, now: Time, random: u64) {
        self.deadline = None;
        self.stream_deadline = self
            .timeouts()
            .and_then(|t| t.max_stream)
            .map(|t| self.started + t);
        let Some(current) = &mut self.current else {
            return;
        };
        current.deadline = None;
        // How long a stream lasts says nothing about how slow it is.
        current.took.get_or_insert(now.since(current.started));
        self.on_probe_success(now, random);
    }

    /// A try failed without a response. The error is what the caller gets.
    pub(crate) fn on_failure(
        &mut self,
        failure: TryFailure,
        sent: Sent,
        body_kept: bool,
        now: Time,
        random: u64,
    ) -> Result<Duration, Answer> {
        use breaker::Cause;
        let (counter, cause, kind) = match failure {
            TryFailure::Connect(_) => (
                Counter::FailedConnect,
                Some(Cause::Connect),
                retry::Failure::Connect,
            ),
            TryFailure::Own(_) => (Counter::FailedOwn, None, retry::Failure::Connect),
            TryFailure::Reset(_) => (
                Counter::FailedReset,
                Some(Cause::Reset),
                retry::Failure::Reset,
            ),
            TryFailure::Timeout => (
                Counter::FailedTimeout,
                Some(Cause::Timeout),
                retry::Failure::PerTryTimeout,
            ),
        };
        self.count(counter);
        if let Some(cause) = cause {
            self.record_failure(cause, None, now, random);
        }
        match self.decide(kind, sent, &retry::Hints::default(), body_kept, now, random) {
            Some(after) => {
                self.leave_try(now);
                Ok(after)
            }
            None => Err(match failure {
                TryFailure::Connect(answer)
                | TryFailure::Own(answer)
                | TryFailure::Reset(answer) => answer,
                TryFailure::Timeout => Answer::TryTimeout {
                    after: self
                        .rules()
                        .timeouts
                        .and_then(|t| t.per_try)
                        .unwrap_or_default(),
                },
            }),
        }
    }

    /// The answer's way to the caller has ended, with this status where a
    /// response of the destination was forwarded.
    pub(crate) fn on_end(&mut self, status: u16, end: End, now: Time, random: u64) {
        match end {
            End::Complete { grpc_status } => {
                match self
                    .failure_cause(status, grpc_status)
                    .filter(|_| grpc_status.is_some())
                {
                    Some(cause) => self.record_failure(cause, None, now, random),
                    None => self.record_success(now, random),
                }
                self.count(Counter::of_status(status));
            }
            End::Broken => {
                self.count(Counter::FailedReset);
                self.record_failure(breaker::Cause::Reset, None, now, random);
                self.count(Counter::of_status(status));
            }
            End::TimedOut => {
                self.count(Counter::FailedTimeout);
                self.record_failure(breaker::Cause::Timeout, None, now, random);
                self.count(Counter::of_status(status));
            }
            End::CallerGone => self.count(Counter::CallerGone),
        }
        self.finish(now);
    }

    /// The agent answers itself.
    pub(crate) fn on_answer(&mut self, answer: &Answer, now: Time) {
        if let Some(counter) = Counter::of_answer(answer.label()) {
            self.count(counter);
        }
        self.finish(now);
    }

    fn finish(&mut self, now: Time) {
        if self.finished {
            return;
        }
        self.finished = true;
        self.leave_try(now);
        if self.facts.tcp {
            // How long a connection lasts is no latency.
            return;
        }
        let took = now.since(self.started);
        self.metrics().observe(self.shard, took);
        if let Some(timeouts) = self.rules().timeouts
            && timeouts.mode == Mode::Shadow
            && timeouts.request.is_some_and(|t| took > t)
        {
            self.count(Counter::ShadowTimeouts);
        }
    }

    fn pass_breaker(&self, now: Time, random: u64) -> Result<Option<breaker::Permit>, Answer> {
        let Some((rules, machine)) = &self.rules().breaker else {
            return Ok(None);
        };
        match machine.acquire(now, random) {
            Ok(permit) => Ok(Some(permit)),
            Err(_) if rules.mode == Mode::Shadow => {
                self.count(Counter::ShadowBreaker);
                Ok(None)
            }
            Err(refused) => Err(Answer::BreakerOpen {
                breaker: rules.key.clone(),
                retry_after: refused.retry_after,
                forced: refused.state == breaker::State::ForcedOpen,
            }),
        }
    }

    fn count(&self, counter: Counter) {
        self.metrics().count(self.shard, counter);
    }

    fn metrics(&self) -> &PortMetrics {
        let port = self.port();
        match (self.place.side, &port.destination_metrics) {
            (Side::Destination, Some(metrics)) => metrics,
            _ => &port.metrics,
        }
    }

    /// Counts an upstream connection, new or used again.
    pub(crate) fn on_connection(&self, reused: bool) {
        self.count(if reused {
            Counter::ConnectionsReused
        } else {
            Counter::Connections
        });
    }

    /// Service and port, borrowed from a snapshot that the caller holds.
    fn place_in<'s>(&self, snapshot: &'s Held) -> (&'s Service, &'s Port) {
        let service = &snapshot.services[self.place.service];
        (service, &service.ports[self.place.port])
    }

    fn port(&self) -> &Port {
        self.place_in(&self.snapshot).1
    }

    fn rules(&self) -> &Rules {
        self.snapshot.at_caller(self.place).of(self.route)
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if !self.finished {
            // The caller left, or a task panicked.
            self.finished = true;
            self.leave_try(self.seen);
        }
    }
}
