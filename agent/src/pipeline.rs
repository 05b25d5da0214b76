//! The way of a request through Weir, whole and in order.
//!
//! ```text
//! admit      route → deadline → bulkhead (caller)
//! next_try   ┌ breaker → endpoint → bulkhead (destination) → concurrency
//! (driver)   │ pool → upstream
//! on_head    │ classify → record → retry?  ── Retry(after) ──▶ next_try
//! on_failure └                             ── Forward / Answer
//! on_end     record → everything given back
//! ```
//!
//! [`Exchange`] is a synchronous state machine without I/O: `h1` and `h2` drive
//! it and own the sockets. It holds every permit of the request and gives back
//! what is left when it is dropped, which is also how a caller that leaves is
//! taken care of: neither success nor failure.

use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use weir_resilience::bulkhead::{Bulkhead, Entry, Ticket};
use weir_resilience::config::{self, HeaderMatch, Mode, RequestView, Timeouts};
use weir_resilience::retry::{self, Pushback, Sent, Stop};
use weir_resilience::{Time, balance, breaker};

use crate::answer::{self, Answer};
use crate::metrics::Counter;
use crate::snapshot::{Endpoint, Port, Rules, Service, Snapshot};

/// A snapshot as a worker holds it: copies cost no atomic.
pub(crate) type Held = Rc<Arc<Snapshot>>;

/// A place in a snapshot: service and port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) service: usize,
    pub(crate) port: usize,
    /// Where the caller's namespace has rules of its own: which of the service's
    /// consumers, and the port there.
    pub(crate) consumer: Option<(usize, usize)>,
}

/// What the pipeline needs to know of a request besides its head.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RequestFacts {
    pub(crate) grpc: bool,
}

/// What the pipeline needs to know of a response, from its head, or for gRPC
/// from its trailers where no message came before them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ResponseFacts {
    pub(crate) status: u16,
    /// `grpc-status`, where it is known.
    pub(crate) grpc_status: Option<u8>,
    pub(crate) retry_after: Option<Duration>,
    pub(crate) pushback: Option<Pushback>,
    /// The response is a stream: from here only idle and `maxStream` hold.
    pub(crate) stream: bool,
}

/// How a try failed without a response.
#[derive(Clone, Debug)]
pub(crate) enum TryFailure {
    /// No connection.
    Connect(Answer),
    /// No connection, for want of something of the agent's own: nobody's
    /// failure but Weir's.
    Own(Answer),
    /// The connection ended, or what came is no response.
    Reset(Answer),
    /// `perTry` passed.
    Timeout,
}

impl TryFailure {
    /// A connection that could not be made.
    pub(crate) fn of_connect(error: &std::io::Error) -> TryFailure {
        let reason = answer::connect_reason(error);
        let answer = Answer::ConnectFailed { reason };
        if answer::is_own_failure(error) {
            TryFailure::Own(answer)
        } else {
            TryFailure::Connect(answer)
        }
    }
}

/// What to do with a response's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It goes to the caller.
    Forward,
    /// Another try after this wait; the response is thrown away.
    Retry(Duration),
}

/// How a response's way to the caller ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Complete; `grpc-status` where trailers carried one.
    Complete { grpc_status: Option<u8> },
    /// The destination broke it off.
    Broken,
    /// A timeout cut it.
    TimedOut,
    /// The caller left.
    CallerGone,
}

/// Which limit of time ends the waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limit {
    /// `timeouts.request`.
    Request,
    /// `timeouts.perTry`.
    Try,
    /// `timeouts.maxStream`.
    Stream,
}

/// A place that a request waits for in a bulkhead's queue.
struct Waiting {
    machine: Arc<Bulkhead>,
    name: Arc<str>,
    ticket: Option<Ticket>,
    since: Time,
    until: Time,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            self.machine.cancel(ticket);
        }
    }
}

/// A place that a request has; given back on drop.
struct Seat(Arc<Bulkhead>);

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.leave();
    }
}

/// One try on its way.
struct Try {
    endpoint: usize,
    permit: Option<breaker::Permit>,
    started: Time,
    /// How long it took to answer, once the answer is a stream.
    took: Option<Duration>,
    deadline: Option<Time>,
    partition: Option<Seat>,
    limit: Option<Seat>,
}

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

/// Endpoints that were tried, as far as there is room: 10 extra tries are the
/// most that a policy can ask for.
#[derive(Clone, Copy, Debug, Default)]
struct Tried {
    endpoints: [u16; 16],
    count: usize,
}

impl Tried {
    fn insert(&mut self, endpoint: usize) {
        if let (Some(place), Ok(endpoint)) =
            (self.endpoints.get_mut(self.count), u16::try_from(endpoint))
        {
            *place = endpoint;
            self.count += 1;
        }
    }

    fn as_slice(&self) -> &[u16] {
        &self.endpoints[..self.count]
    }

    fn contains(&self, endpoint: usize) -> bool {
        self.as_slice()
            .iter()
            .any(|tried| usize::from(*tried) == endpoint)
    }
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
        let route = at_caller.route(request);
        let destination_route = match place.consumer {
            None => route,
            Some(_) => at_destination.route(request),
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
        let in_partition = |headers: &[HeaderMatch]| headers.iter().all(|h| h.matches(request));
        exchange.destination = at_destination
            .of(destination_route)
            .destination_bulkheads
            .iter()
            .position(|b| in_partition(&b.config.headers));
        if let Some(partition) = rules
            .caller_bulkheads
            .iter()
            .find(|b| in_partition(&b.config.headers))
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

    /// Waits for the place in a bulkhead that the last step asked for. Ready
    /// at once where there is nothing to wait for.
    pub(crate) fn poll_place(
        &mut self,
        now: Time,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Answer>> {
        let Some(waiting) = &mut self.waiting else {
            return Poll::Ready(Ok(()));
        };
        let Some(ticket) = &mut waiting.ticket else {
            return Poll::Ready(Ok(()));
        };
        match waiting.machine.poll_wait(ticket, now, cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(())) => {
                waiting.ticket = None;
                let place = Seat(waiting.machine.clone());
                self.waiting = None;
                let per_try = self.timeouts().and_then(|t| t.per_try);
                match &mut self.current {
                    Some(current) => {
                        current.partition = Some(place);
                        // Time in Weir's own queue is not the destination's.
                        current.started = now;
                        current.deadline = per_try.map(|t| now + t);
                        Poll::Ready(self.enter_limit(now))
                    }
                    None => {
                        self.caller = Some(place);
                        Poll::Ready(Ok(()))
                    }
                }
            }
            Poll::Ready(Err(_)) => {
                waiting.ticket = None;
                let answer = Answer::BulkheadWait {
                    bulkhead: waiting.name.clone(),
                    waited: waiting.until.since(waiting.since),
                };
                self.waiting = None;
                Poll::Ready(Err(answer))
            }
        }
    }

    /// When the wait of [`Exchange::poll_place`] ends by itself.
    pub(crate) fn place_deadline(&self) -> Option<Time> {
        self.waiting.as_ref().map(|w| w.until)
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
            permit,
            started: now,
            took: None,
            deadline: per_try.map(|t| now + t),
            partition: None,
            limit: None,
        });
        let mut full = Tried::default();
        let mut refusal = Answer::NoEndpoints {
            service: service.label.clone(),
        };
        let load = |i: usize| port.endpoints[i].load.get();
        while let Some(endpoint) =
            balance::pick(port.endpoints.len(), load, self.tried.as_slice(), random)
        {
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

    /// Where the current try goes.
    pub(crate) fn endpoint(&self) -> Option<&Endpoint> {
        self.current
            .as_ref()
            .and_then(|t| self.port().endpoints.get(t.endpoint))
    }

    /// `timeouts.connect`, where it is in force.
    pub(crate) fn connect_timeout(&self) -> Option<Duration> {
        self.timeouts().and_then(|t| t.connect)
    }

    /// `timeouts.idle`, where it is in force.
    pub(crate) fn idle_timeout(&self) -> Option<Duration> {
        self.timeouts().and_then(|t| t.idle)
    }

    /// Bytes of request body worth keeping for another try.
    pub(crate) fn replay_limit(&self) -> usize {
        match &self.rules().retries {
            Some((retries, _)) if retries.attempts > 0 && retries.mode == Mode::Enforce => {
                retries.max_buffered_body
            }
            _ => 0,
        }
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

    /// Whether it is a gRPC call, whose caller may wait for an answer while its
    /// stream is open.
    pub(crate) fn is_grpc(&self) -> bool {
        self.facts.grpc
    }

    /// What ends the try now is the caller's doing, which stopped sending: it
    /// says nothing about the destination.
    pub(crate) fn excuse(&mut self, now: Time) {
        if let Some((permit, _)) = self.take_permit(now)
            && let Some((_, machine)) = &self.rules().breaker
        {
            machine.release(permit, now);
        }
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
        if let Some(cause) = self.failure_cause(facts.status, facts.grpc_status) {
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
        // A probe has seen what it was sent for; its place is for the next one.
        if current
            .permit
            .as_ref()
            .is_some_and(breaker::Permit::is_probe)
        {
            self.record_success(now, random);
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

    /// A pooled connection turned out to be closed before anything was
    /// answered: the same try goes on over another connection. It is neither
    /// a failure nor a retry.
    pub(crate) fn may_reconnect(&self, body_kept: bool) -> bool {
        body_kept && self.method.is_idempotent()
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
        let took = now.since(self.started);
        self.port().metrics.observe(self.shard, took);
        if let Some(timeouts) = self.rules().timeouts
            && timeouts.mode == Mode::Shadow
            && timeouts.request.is_some_and(|t| took > t)
        {
            self.count(Counter::ShadowTimeouts);
        }
    }

    // The steps' parts.

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

    fn take_endpoint(&mut self, endpoint: usize, now: Time) -> Result<(), Answer> {
        let snapshot = self.snapshot.clone();
        let (_, port) = self.place_in(&snapshot);
        let rules = snapshot.at_destination(self.place);
        let rules = rules.of(self.destination_route);
        let seat = match self.destination.map(|d| &rules.destination_bulkheads[d]) {
            None => None,
            Some(b) => self.enter(&b.machines[endpoint], &b.name, &b.config, now)?,
        };
        if let Some(current) = &mut self.current {
            current.partition = seat;
            current.endpoint = endpoint;
        }
        // Who waits for a place in the partition enters the limit after it.
        if self.waiting.is_none()
            && let Err(answer) = self.enter_limit(now)
        {
            if let Some(current) = &mut self.current {
                current.partition = None;
                current.endpoint = usize::MAX;
            }
            return Err(answer);
        }
        port.endpoints[endpoint].load.begin();
        Ok(())
    }

    fn enter_limit(&mut self, now: Time) -> Result<(), Answer> {
        let snapshot = self.snapshot.clone();
        let rules = snapshot.at_destination(self.place);
        let Some(shedding) = &rules.of(self.destination_route).shedding else {
            return Ok(());
        };
        let Some(current) = &mut self.current else {
            return Ok(());
        };
        let machine = &shedding.machines[current.endpoint];
        match machine.enter(now) {
            Entry::Granted => {
                current.limit = Some(Seat(machine.clone()));
                Ok(())
            }
            _ if shedding.mode == Mode::Shadow => {
                self.count(Counter::ShadowShedding);
                Ok(())
            }
            _ => Err(Answer::ConcurrencyLimit {
                limit: shedding.max,
            }),
        }
    }

    /// A place, `None` where the caller has to wait for it or where the
    /// bulkhead only watches.
    fn enter(
        &mut self,
        machine: &Arc<Bulkhead>,
        name: &Arc<str>,
        config: &config::Bulkhead,
        now: Time,
    ) -> Result<Option<Seat>, Answer> {
        let shadow = config.mode == Mode::Shadow;
        match machine.enter(now) {
            Entry::Granted => Ok(Some(Seat(machine.clone()))),
            Entry::Queued(ticket) => {
                // The machine may know a newer configuration than this request.
                let until = ticket.deadline();
                let (machine, name) = (machine.clone(), name.clone());
                let waiting = Waiting {
                    machine,
                    name,
                    ticket: Some(ticket),
                    since: now,
                    until,
                };
                if shadow {
                    // Its ticket goes back at once.
                    self.count(Counter::ShadowBulkhead);
                } else {
                    self.waiting = Some(waiting);
                }
                Ok(None)
            }
            Entry::Full if shadow => {
                self.count(Counter::ShadowBulkhead);
                Ok(None)
            }
            Entry::Full => Err(Answer::BulkheadFull {
                bulkhead: name.clone(),
            }),
        }
    }

    fn decide(
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

    /// What the breaker calls a failure.
    fn failure_cause(&self, status: u16, grpc_status: Option<u8>) -> Option<breaker::Cause> {
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

    fn record_success(&mut self, now: Time, random: u64) {
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

    fn record_failure(
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

    /// Gives back what the current try holds.
    fn leave_try(&mut self, now: Time) {
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

    fn timeouts(&self) -> Option<&Timeouts> {
        enforced(self.rules())
    }

    fn count(&self, counter: Counter) {
        self.port().metrics.count(self.shard, counter);
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

/// The timeouts that act.
fn enforced(rules: &Rules) -> Option<&Timeouts> {
    rules.timeouts.as_ref().filter(|t| t.mode == Mode::Enforce)
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
