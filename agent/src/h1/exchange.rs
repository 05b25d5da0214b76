//! One request over HTTP/1: tries, bytes in both directions, and every way in
//! which it can end.

use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::net::TcpStream;
use weir_resilience::Time;
use weir_resilience::retry::Sent;

use super::body::{BadBody, Framing};
use super::head::{self, MAX_HEAD, RequestMeta, ResponseMeta};
use super::poll_write_two;
use crate::answer::Answer;
use crate::buffer::Buffer;
use crate::connection::Caller;
use crate::pipeline::{End, Exchange, Limit, ResponseFacts, TryFailure, Verdict};
use crate::replay::Reservation;
use crate::timer::Timer;
use crate::worker::KEEP_ALIVE;

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

/// The request's body on its way.
struct Upload {
    framing: Framing,
    /// Bytes at the front of the caller's buffer that belong to the body and
    /// are not written yet.
    valid: usize,
    /// All of the body so far, for another try.
    kept: Vec<u8>,
    /// The memory for it, out of the worker's share.
    memory: Reservation,
    keep_limit: usize,
    /// The body was too large to keep, or may not be sent again.
    lost: bool,
}

/// What ended a wait.
enum Interrupt {
    Gone,
    Expired(Limit),
    /// The deadline that was given with the wait.
    Passed,
}

/// What came of one try.
enum Step {
    Again,
    End(Outcome),
}

/// An upstream connection in use.
struct Upstream {
    io: TcpStream,
    endpoint: SocketAddr,
    reused: bool,
    buffer: Buffer,
    /// Bytes of the head and of the body that is sent anew that are written.
    prefix_at: usize,
    /// Writing failed; the endpoint may still have answered.
    broken: bool,
}

impl Upstream {
    fn new(io: TcpStream, endpoint: SocketAddr, reused: bool, buffer: Buffer) -> Upstream {
        Upstream {
            io,
            endpoint,
            reused,
            buffer,
            prefix_at: 0,
            broken: false,
        }
    }

    fn sent(&self) -> Sent {
        if self.prefix_at == 0 {
            Sent::Nothing
        } else {
            Sent::Maybe
        }
    }
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

struct Run<'a> {
    caller: &'a mut Caller,
    timer: &'a mut Timer,
    exchange: &'a mut Exchange,
    meta: &'a RequestMeta,
    head: &'a [u8],
    upload: Upload,
    /// The body so far, sent anew by this try; empty in the first.
    replay: Vec<u8>,
    out: &'a mut Vec<u8>,
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
        let Some(endpoint) = self.exchange.endpoint().map(|e| e.address) else {
            // `next_try` has chosen one.
            return Err(Step::End(Outcome::Close));
        };
        let now = self.now();
        let worker = self.caller.worker.clone();
        if !fresh_only && let Some(io) = worker.pool.borrow_mut().take(endpoint, now) {
            self.exchange.on_connection(true);
            let buffer = worker.spare.borrow_mut().take();
            return Ok(Upstream::new(io, endpoint, true, buffer));
        }
        let timeout = self.exchange.connect_timeout();
        let connected = self
            .guarded(TcpStream::connect(endpoint), timeout.map(|t| now + t))
            .await;
        let failure = match connected {
            Ok(Ok(io)) => {
                // Without it small requests would wait for acknowledgements.
                let _ = io.set_nodelay(true);
                let _ = socket2::SockRef::from(&io).set_tcp_keepalive(&KEEP_ALIVE);
                self.exchange.on_connection(false);
                let buffer = worker.spare.borrow_mut().take();
                return Ok(Upstream::new(io, endpoint, false, buffer));
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
            || self.caller.worker.draining();
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
            io,
            endpoint,
            buffer,
            ..
        } = upstream;
        let worker = &self.caller.worker;
        let through =
            body.is_done() && buffer.is_empty() && response.keep_alive && response.status != 101;
        worker.spare.borrow_mut().give(buffer);
        if through && whole && !worker.draining() {
            worker
                .pool
                .borrow_mut()
                .give(endpoint, io, worker.clock.now());
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

fn poll_limits(
    timer: &mut Timer,
    exchange: &Exchange,
    until: Option<Time>,
    now: Time,
    cx: &mut Context<'_>,
) -> Poll<Interrupt> {
    let next = [exchange.deadline(), until].into_iter().flatten().min();
    if timer.poll(next, now, cx).is_pending() {
        return Poll::Pending;
    }
    let reached = next.unwrap_or(now).max(now);
    Poll::Ready(
        exchange
            .expired(reached)
            .map_or(Interrupt::Passed, Interrupt::Expired),
    )
}

impl Upload {
    /// Takes what has been read of the body into account.
    fn advance(&mut self, buffer: &Buffer) -> Result<(), BadBody> {
        let fresh = &buffer.bytes()[self.valid..];
        let n = self.framing.scan(fresh)?;
        if n == 0 {
            return Ok(());
        }
        self.valid += n;
        if self.lost {
            return Ok(());
        }
        if self.kept.len() + n > self.keep_limit || !self.memory.grow(n) {
            self.lost = true;
            self.kept = Vec::new();
            self.memory.release();
        } else {
            self.kept.extend_from_slice(&fresh[..n]);
        }
        Ok(())
    }

    /// Whether the caller still has to send some of the body, or some of it
    /// has not gone on.
    fn unfinished(&self) -> bool {
        !self.framing.is_done() || self.valid > 0
    }

    /// Whether the next step is the caller's: all that it sent has gone on.
    fn waits_for_caller(&self) -> bool {
        !self.framing.is_done() && self.valid == 0
    }
}

/// What the wait for a response's head brought.
enum Came {
    Head(ResponseMeta),
    Failed(Answer),
    Interrupt(Interrupt),
    BadRequest(BadBody),
}

/// Why the upload stopped.
enum UploadEnd {
    Gone,
    Bad(BadBody),
}

/// Caller and upstream joined: bytes in both directions.
struct Link<'r, 'a> {
    run: &'r mut Run<'a>,
    upstream: Upstream,
    /// Bytes of `run.out` that are written.
    out_at: usize,
    /// Bytes at the front of the upstream's buffer that belong to the
    /// response's body and are not written yet.
    valid: usize,
    last_byte: Time,
}

impl<'r, 'a> Link<'r, 'a> {
    fn new(run: &'r mut Run<'a>, upstream: Upstream) -> Link<'r, 'a> {
        let last_byte = run.caller.worker.clock.now();
        Link {
            run,
            upstream,
            out_at: 0,
            valid: 0,
            last_byte,
        }
    }

    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Came> {
        let now = self.run.caller.worker.clock.now();
        if let Err(end) = self.poll_upload(now, cx) {
            return Poll::Ready(match end {
                UploadEnd::Gone => Came::Interrupt(Interrupt::Gone),
                UploadEnd::Bad(bad) => Came::BadRequest(bad),
            });
        }
        loop {
            if !self.upstream.buffer.has_room() && !self.upstream.buffer.grow(MAX_HEAD) {
                return Poll::Ready(Came::Failed(Answer::BadResponse {
                    reason: "its header section is too large",
                }));
            }
            let read = self
                .upstream
                .buffer
                .poll_read(Pin::new(&mut self.upstream.io), cx);
            match read {
                Poll::Ready(Ok(n)) if n > 0 => {
                    self.last_byte = now;
                    match self.read_head() {
                        Ok(Some(response)) => return Poll::Ready(Came::Head(response)),
                        Ok(None) => {}
                        Err(reason) => {
                            return Poll::Ready(Came::Failed(Answer::BadResponse { reason }));
                        }
                    }
                }
                Poll::Ready(_) => return Poll::Ready(Came::Failed(Answer::Terminated)),
                Poll::Pending => break,
            }
        }
        if self.poll_out(0, cx).is_err() {
            return Poll::Ready(Came::Interrupt(Interrupt::Gone));
        }
        self.poll_time(now, cx).map(Came::Interrupt)
    }

    /// A final response's head, if it is whole. Interim ones go to the caller.
    fn read_head(&mut self) -> Result<Option<ResponseMeta>, &'static str> {
        loop {
            let data = self.upstream.buffer.bytes();
            let Some(response) = head::read_response(data, self.run.meta.head_method, None)? else {
                return Ok(None);
            };
            let interim = response.status < 200 && response.status != 101;
            if response.status == 101 && !self.run.meta.upgrade {
                return Err("it switches protocols without being asked");
            }
            if !interim {
                return Ok(Some(response));
            }
            if response.status == 100 {
                // The caller sends its body on this word: there is no second time.
                self.run.upload.lost = true;
            }
            if !self.run.meta.http10 && self.run.out.len() < MAX_HEAD {
                head::read_response(data, false, Some(self.run.out))?;
                self.run.out.extend_from_slice(b"\r\n");
            }
            self.upstream.buffer.consume(response.length);
        }
    }

    /// Ready with how the response ended and where its body stands.
    fn poll_forward(&mut self, body: &mut Framing, cx: &mut Context<'_>) -> Poll<(End, Framing)> {
        let now = self.run.caller.worker.clock.now();
        let mut closed = false;
        loop {
            let fresh = &self.upstream.buffer.bytes()[self.valid..];
            match body.scan(fresh) {
                Ok(n) => self.valid += n,
                Err(_) => return Poll::Ready((End::Broken, *body)),
            }
            match self.poll_out(self.valid, cx) {
                Ok(true) => self.last_byte = now,
                Ok(false) => {}
                Err(_) => return Poll::Ready((End::CallerGone, *body)),
            }
            let flushed = self.out_at == self.run.out.len() && self.valid == 0;
            if flushed && (body.is_done() || closed && *body == Framing::UntilClose) {
                return Poll::Ready((End::Complete { grpc_status: None }, *body));
            }
            if body.is_done() || closed || !self.upstream.buffer.has_room() {
                break;
            }
            match self
                .upstream
                .buffer
                .poll_read(Pin::new(&mut self.upstream.io), cx)
            {
                Poll::Ready(Ok(n)) if n > 0 => self.last_byte = now,
                Poll::Ready(Ok(_)) if *body == Framing::UntilClose => closed = true,
                Poll::Ready(_) => return Poll::Ready((End::Broken, *body)),
                Poll::Pending => break,
            }
        }
        // Once the endpoint has closed there is only the rest to be flushed.
        if !closed && self.poll_upload(now, cx).is_err() {
            // The caller has all of the request's answer that it can get.
            return Poll::Ready((End::CallerGone, *body));
        }
        self.poll_time(now, cx).map(|_| (End::TimedOut, *body))
    }

    /// Writes to the caller what is ready for it; whether anything moved.
    fn poll_out(&mut self, valid: usize, cx: &mut Context<'_>) -> Result<bool, std::io::Error> {
        let mut moved = false;
        self.valid = valid;
        while self.out_at < self.run.out.len() || self.valid > 0 {
            let (head, body) = (
                &self.run.out[self.out_at..],
                &self.upstream.buffer.bytes()[..self.valid],
            );
            match poll_write_two(&mut self.run.caller.io, head, body, cx) {
                Poll::Ready(Ok(n)) => {
                    let of_head = n.min(head.len());
                    self.out_at += of_head;
                    self.upstream.buffer.consume(n - of_head);
                    self.valid -= n - of_head;
                    moved = true;
                }
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => break,
            }
        }
        Ok(moved)
    }

    /// Moves the request towards the endpoint and watches the caller.
    fn poll_upload(&mut self, now: Time, cx: &mut Context<'_>) -> Result<(), UploadEnd> {
        let Run {
            caller,
            upload,
            head,
            replay,
            ..
        } = &mut *self.run;
        let upstream = &mut self.upstream;
        loop {
            // What came while the request waited was read, not looked at.
            upload.advance(&caller.buffer).map_err(UploadEnd::Bad)?;
            while !upstream.broken {
                let head_left = head.get(upstream.prefix_at..).unwrap_or_default();
                let replay_left = replay
                    .get(upstream.prefix_at.saturating_sub(head.len())..)
                    .unwrap_or_default();
                let body = &caller.buffer.bytes()[..upload.valid];
                let (first, second) = match (head_left.is_empty(), replay_left.is_empty()) {
                    (false, false) => (head_left, replay_left),
                    (false, true) => (head_left, body),
                    (true, false) => (replay_left, body),
                    (true, true) => (&[][..], body),
                };
                if first.is_empty() && second.is_empty() {
                    break;
                }
                match poll_write_two(&mut upstream.io, first, second, cx) {
                    Poll::Ready(Ok(n)) => {
                        let prefix_left = head_left.len() + replay_left.len();
                        let of_prefix = n.min(prefix_left);
                        upstream.prefix_at += of_prefix;
                        caller.buffer.consume(n - of_prefix);
                        upload.valid -= n - of_prefix;
                        self.last_byte = now;
                    }
                    Poll::Ready(Err(_)) => upstream.broken = true,
                    Poll::Pending => break,
                }
            }
            if upstream.broken && upstream.prefix_at > 0 {
                // Nobody takes it; make room to see the caller leave.
                caller.buffer.consume(upload.valid);
                upload.valid = 0;
            }
            if !caller.can_fill() {
                return Ok(());
            }
            match caller.poll_fill(cx) {
                Poll::Ready(Ok(n)) if n > 0 => {}
                Poll::Ready(_) => return Err(UploadEnd::Gone),
                Poll::Pending => return Ok(()),
            }
        }
    }

    fn poll_time(&mut self, now: Time, cx: &mut Context<'_>) -> Poll<Interrupt> {
        let idle = self.run.exchange.idle_timeout().map(|t| self.last_byte + t);
        poll_limits(self.run.timer, self.run.exchange, idle, now, cx)
    }
}
