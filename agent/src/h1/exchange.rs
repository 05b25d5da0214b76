//! One request over HTTP/1: tries, bytes in both directions, and every way in
//! which it can end.

use std::future::{Future, poll_fn};
use std::task::{Context, Poll};
use std::time::Duration;

use weir_resilience::Time;
use weir_resilience::retry::Sent;

use super::body::Framing;
use super::head::{self, RequestMeta, ResponseMeta};
use super::link::{Came, Link, Upstream};
use super::upload::Upload;
use crate::answer::Answer;
use crate::connection::Caller;
use crate::dial::{Exit, dial};
use crate::pipeline::{End, Exchange, Limit, ResponseFacts, TryFailure, Verdict};
use crate::replay::Reservation;
use crate::timer::Timer;
use crate::wait::{Interrupt, poll_limits};

/// How a request ended, for its connection.
pub(super) enum Outcome {
    /// The response is out, whole.
    Done { keep_alive: bool },
    /// The response is out, but the caller is still sending.
    Linger,
    /// Weir answers.
    Answer { answer: Answer, body_left: bool },
    /// Nothing more can be said.
    Close,
    /// The caller must be able to tell that something is missing.
    Reset,
}

/// What came of one try.
enum Step {
    Again,
    End(Outcome),
}

/// Carries a request out. Cancel safe in that dropping it closes the upstream
/// connection and gives every permit back.
pub(super) async fn run(
    caller: &mut Caller,
    timer: &mut Timer,
    exchange: &mut Exchange,
    meta: &RequestMeta,
    head: &[u8],
    out: &mut Vec<u8>,
) -> Outcome {
    let mut upload = Upload {
        framing: meta.body,
        valid: 0,
        kept: Vec::new(),
        memory: Reservation::new(&caller.worker.replay),
        keep_limit: exchange.replay_limit(),
        lost: false,
    };
    if upload.advance(&caller.buffer).is_err() {
        return answer(
            Answer::BadRequest {
                reason: "the body's framing is malformed",
            },
            true,
        );
    }
    let mut run = Run {
        caller,
        timer,
        exchange,
        meta,
        head,
        upload,
        replay: Vec::new(),
        out,
    };
    if let Err(end) = run.wait_for_place().await {
        return end;
    }
    loop {
        match run.one_try().await {
            Step::Again => {}
            Step::End(outcome) => return outcome,
        }
    }
}

fn answer(answer: Answer, body_left: bool) -> Outcome {
    Outcome::Answer { answer, body_left }
}

pub(super) struct Run<'a> {
    pub(super) caller: &'a mut Caller,
    pub(super) timer: &'a mut Timer,
    pub(super) exchange: &'a mut Exchange,
    pub(super) meta: &'a RequestMeta,
    pub(super) head: &'a [u8],
    pub(super) upload: Upload,
    /// The body so far, sent anew by this try; empty in the first.
    pub(super) replay: Vec<u8>,
    pub(super) out: &'a mut Vec<u8>,
}

impl Run<'_> {
    fn now(&self) -> Time {
        self.caller.worker.clock.now()
    }

    fn random(&self) -> u64 {
        self.caller.worker.random()
    }

    async fn one_try(&mut self) -> Step {
        let now = self.now();
        if let Err(refused) = self.exchange.next_try(now, self.random()) {
            return Step::End(answer(refused, self.upload.unfinished()));
        }
        if let Err(end) = self.wait_for_place().await {
            return Step::End(end);
        }
        let mut fresh_only = false;
        loop {
            let upstream = match self.connect(fresh_only).await {
                Ok(upstream) => upstream,
                Err(step) => return step,
            };
            let mut link = Link::new(self, upstream);
            let came = poll_fn(|cx| link.poll_head(cx)).await;
            let Link {
                upstream, out_at, ..
            } = link;
            // An interim response that is half written is finished before
            // anything else is said.
            self.out.drain(..out_at);
            match came {
                Came::Head(response) => return self.on_head(response, upstream).await,
                Came::Failed(_)
                    if upstream.reused && !fresh_only && self.may_reconnect(upstream.prefix_at) =>
                {
                    // The endpoint had closed a connection that idled. Where
                    // nothing was sent, everything is still at hand.
                    if upstream.prefix_at > 0 {
                        self.rewind();
                    }
                    fresh_only = true;
                }
                Came::Failed(failure) => {
                    let sent = upstream.sent();
                    drop(upstream);
                    return self.failed(TryFailure::Reset(failure), sent).await;
                }
                Came::Interrupt(interrupt) => {
                    let sent = upstream.sent();
                    if self.is_out(&upstream) && self.upload.waits_for_caller() {
                        self.exchange.excuse(self.now());
                    }
                    // Closing is what tells the endpoint that nobody waits any more.
                    drop(upstream);
                    return self.interrupted(interrupt, sent).await;
                }
                Came::BadRequest(bad) => {
                    drop(upstream);
                    return Step::End(answer(Answer::BadRequest { reason: bad.0 }, true));
                }
            }
        }
    }

    /// Whether the head, and what is sent anew of the body, is written.
    fn is_out(&self, upstream: &Upstream) -> bool {
        upstream.prefix_at == self.head.len() + self.replay.len()
    }

    fn may_reconnect(&self, prefix_at: usize) -> bool {
        prefix_at == 0 || self.exchange.may_reconnect(!self.upload.lost)
    }

    /// An idle connection, or a new one.
    async fn connect(&mut self, fresh_only: bool) -> Result<Upstream, Step> {
        let Some(endpoint) = self.exchange.address() else {
            // `next_try` has chosen one.
            return Err(Step::End(Outcome::Close));
        };
        let now = self.now();
        let worker = self.caller.worker.clone();
        let destination = &self.caller.destination;
        destination.chosen(&worker, self.exchange, endpoint);
        let origin = destination.origin.clone();
        let exit = Exit::new(&origin, endpoint);
        if !fresh_only && let Some(io) = worker.pool.borrow_mut().take(exit, now) {
            self.exchange.on_connection(true);
            let buffer = worker.spare.borrow_mut().take();
            return Ok(Upstream::new(io, exit, true, buffer));
        }
        let timeout = self.exchange.connect_timeout();
        let connected = self
            .guarded(dial(&worker, &origin, endpoint), timeout.map(|t| now + t))
            .await;
        let failure = match connected {
            Ok(Ok(io)) => {
                self.exchange.on_connection(false);
                let buffer = worker.spare.borrow_mut().take();
                return Ok(Upstream::new(io, exit, false, buffer));
            }
            Ok(Err(error)) => TryFailure::of_connect(&error),
            Err(Interrupt::Passed) => TryFailure::Connect(Answer::ConnectTimeout {
                after: timeout.unwrap_or_default(),
            }),
            Err(interrupt) => return Err(self.interrupted(interrupt, Sent::Nothing).await),
        };
        Err(self.failed(failure, Sent::Nothing).await)
    }

    async fn on_head(&mut self, response: ResponseMeta, mut upstream: Upstream) -> Step {
        let now = self.now();
        let facts = ResponseFacts {
            status: response.status,
            retry_after: response.retry_after,
            refused: response.refused,
            stream: response.stream,
            ..ResponseFacts::default()
        };
        match self
            .exchange
            .on_head(&facts, !self.upload.lost, now, self.random())
        {
            Verdict::Retry(after) => {
                upstream.buffer.consume(response.length);
                let mut body = response.body;
                if let Ok(n) = body.scan(upstream.buffer.bytes()) {
                    upstream.buffer.consume(n);
                    self.put_back(upstream, &response, body);
                }
                self.wait(after).await
            }
            Verdict::Forward => Step::End(self.forward(response, upstream).await),
        }
    }

    /// The response goes to the caller, while the rest of the request still
    /// goes to the endpoint.
    async fn forward(&mut self, response: ResponseMeta, upstream: Upstream) -> Outcome {
        let tunnel = response.status == 101 && self.meta.upgrade;
        let close = !self.meta.keep_alive
            || response.body == Framing::UntilClose
            || tunnel
            // It may never end its body, and then has to go.
            || self.upload.unfinished()
            || self.caller.leaving();
        let written = head::read_response(
            upstream.buffer.bytes(),
            self.meta.head_method,
            Some(self.out),
        );
        debug_assert!(matches!(written, Ok(Some(_))), "the head was read before");
        if close && !tunnel {
            self.out.extend_from_slice(b"connection: close\r\n");
        } else if self.meta.http10 {
            self.out.extend_from_slice(b"connection: keep-alive\r\n");
        }
        self.out.extend_from_slice(b"\r\n");
        let mut body = response.body;
        if tunnel {
            body = Framing::UntilClose;
            self.upload.framing = Framing::UntilClose;
            self.upload.lost = true;
            // What the caller sent right behind its request is for the tunnel.
            let _ = self.upload.advance(&self.caller.buffer);
        }
        let mut link = Link::new(self, upstream);
        link.upstream.buffer.consume(response.length);
        let (end, body) = poll_fn(|cx| link.poll_forward(&mut body, cx)).await;
        let upstream = link.upstream;
        let now = self.now();
        if end == End::TimedOut && self.is_out(&upstream) && self.upload.waits_for_caller() {
            self.exchange.excuse(now);
        }
        self.exchange
            .on_end(response.status, end, now, self.random());
        match end {
            End::Complete { .. } => {
                self.put_back(upstream, &response, body);
                if self.upload.unfinished() && !tunnel {
                    return Outcome::Linger;
                }
                Outcome::Done { keep_alive: !close }
            }
            // A body that ends with its connection would look whole.
            End::Broken | End::TimedOut if response.body == Framing::UntilClose => Outcome::Reset,
            End::CallerGone | End::Broken | End::TimedOut => Outcome::Close,
        }
    }

    /// Keeps the connection where both sides are through with it: a request
    /// that was answered before all of it was written would go on in the next.
    fn put_back(&mut self, upstream: Upstream, response: &ResponseMeta, body: Framing) {
        let whole = self.is_out(&upstream) && !upstream.broken && !self.upload.unfinished();
        let Upstream {
            io, exit, buffer, ..
        } = upstream;
        let worker = &self.caller.worker;
        let through =
            body.is_done() && buffer.is_empty() && response.keep_alive && response.status != 101;
        worker.spare.borrow_mut().give(buffer);
        if through && whole && !self.caller.leaving() {
            worker.pool.borrow_mut().give(exit, io, worker.clock.now());
        }
    }

    async fn failed(&mut self, failure: TryFailure, sent: Sent) -> Step {
        let now = self.now();
        let random = self.random();
        match self
            .exchange
            .on_failure(failure, sent, !self.upload.lost, now, random)
        {
            Ok(after) => self.wait(after).await,
            Err(last) => Step::End(answer(last, self.upload.unfinished())),
        }
    }

    async fn interrupted(&mut self, interrupt: Interrupt, sent: Sent) -> Step {
        let now = self.now();
        match interrupt {
            Interrupt::Gone => {
                self.exchange.on_end(0, End::CallerGone, now, 0);
                Step::End(Outcome::Close)
            }
            Interrupt::Expired(Limit::Request) => {
                let random = self.random();
                let late = self.exchange.on_request_timeout(now, random);
                Step::End(answer(late, self.upload.unfinished()))
            }
            Interrupt::Expired(Limit::Try | Limit::Stream) => {
                Box::pin(self.failed(TryFailure::Timeout, sent)).await
            }
            Interrupt::Passed => {
                let after = self.exchange.idle_timeout().unwrap_or_default();
                Box::pin(self.failed(TryFailure::Reset(Answer::IdleTimeout { after }), sent)).await
            }
        }
    }

    /// The wait before another try.
    async fn wait(&mut self, after: Duration) -> Step {
        self.rewind();
        if after.is_zero() {
            return Step::Again;
        }
        let until = self.now() + after;
        match self
            .guarded(std::future::pending::<()>(), Some(until))
            .await
        {
            Err(Interrupt::Passed) | Ok(()) => Step::Again,
            Err(interrupt) => self.interrupted(interrupt, Sent::Nothing).await,
        }
    }

    /// Before another try: all that was read of the body is sent anew.
    fn rewind(&mut self) {
        self.caller.buffer.consume(self.upload.valid);
        self.upload.valid = 0;
        self.replay.clone_from(&self.upload.kept);
    }

    /// Waits for a bulkhead's place. The error is the request's end.
    async fn wait_for_place(&mut self) -> Result<(), Outcome> {
        let placed = poll_fn(|cx| {
            let now = self.caller.worker.clock.now();
            if let Poll::Ready(placed) = self.exchange.poll_place(now, cx) {
                return Poll::Ready(Ok(placed));
            }
            match poll_interrupt(
                self.caller,
                self.timer,
                self.exchange,
                self.exchange.place_deadline(),
                now,
                cx,
            ) {
                // The queue itself says that the wait is over.
                Poll::Ready(Interrupt::Passed) => match self.exchange.poll_place(now, cx) {
                    Poll::Ready(placed) => Poll::Ready(Ok(placed)),
                    Poll::Pending => Poll::Pending,
                },
                Poll::Ready(interrupt) => Poll::Ready(Err(interrupt)),
                Poll::Pending => Poll::Pending,
            }
        })
        .await;
        match placed {
            Ok(Ok(())) => Ok(()),
            Ok(Err(refused)) => Err(answer(refused, self.upload.unfinished())),
            Err(interrupt) => match self.interrupted(interrupt, Sent::Nothing).await {
                Step::End(outcome) => Err(outcome),
                Step::Again => Ok(()),
            },
        }
    }

    /// Runs `work` while the caller is there and no limit has passed.
    async fn guarded<F: Future>(
        &mut self,
        work: F,
        until: Option<Time>,
    ) -> Result<F::Output, Interrupt> {
        let mut work = std::pin::pin!(work);
        poll_fn(|cx| {
            if let Poll::Ready(done) = work.as_mut().poll(cx) {
                return Poll::Ready(Ok(done));
            }
            let now = self.caller.worker.clock.now();
            poll_interrupt(self.caller, self.timer, self.exchange, until, now, cx).map(Err)
        })
        .await
    }
}

/// Ready when the caller left, a limit passed, or `until` did.
fn poll_interrupt(
    caller: &mut Caller,
    timer: &mut Timer,
    exchange: &Exchange,
    until: Option<Time>,
    now: Time,
    cx: &mut Context<'_>,
) -> Poll<Interrupt> {
    // What the caller sends meanwhile stays in its buffer; once that is full
    // there is nothing to see but also nothing to lose.
    while caller.can_fill() {
        match caller.poll_fill(cx) {
            Poll::Ready(Ok(n)) if n > 0 => {}
            Poll::Ready(_) => return Poll::Ready(Interrupt::Gone),
            Poll::Pending => break,
        }
    }
    poll_limits(timer, exchange, until, now, cx)
}
