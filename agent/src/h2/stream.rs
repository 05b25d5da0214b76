//! One request over HTTP/2: tries, frames in both directions, and every way in
//! which it can end.

use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use weir_resilience::Time;
use weir_resilience::config::Protocol;
use weir_resilience::retry::Sent;

use super::Driver;
use super::body::{Download, Gone, Upload};
use super::headers::{
    View, grpc_status, is_grpc, is_refusal, pushback, retry_after, strip_hop_by_hop,
};
use super::pool::Found;
use crate::answer::Answer;
use crate::connection::Destination;
use crate::dial::{Exit, dial};
use crate::metrics::Counter;
use crate::pipeline::{End, Exchange, Limit, RequestFacts, ResponseFacts, TryFailure, Verdict};
use crate::pods::Origin;
use crate::replay::Reservation;
use crate::timer::Timer;
use crate::wait::{Interrupt, poll_limits};
use crate::worker::Worker;

/// How long an endpoint may leave what it was sent unacknowledged.
const GONE: Duration = Duration::from_secs(20);

/// How long a gRPC answer's head is held for the trailers that may follow at
/// once, where their status could still mean another try.
const HOLD: Duration = Duration::from_millis(10);

/// What came of one try.
enum Step {
    Again,
    /// Weir answers.
    Answer(Answer),
    /// The request is over.
    End,
}

/// A try on its way.
struct Link {
    response: ResponseFuture,
    /// The request's body.
    body: SendStream<Bytes>,
    last_byte: Time,
    head: Option<Head>,
}

/// What the wait for a response brought instead of one.
enum Came {
    Failed(h2::Error),
    Interrupt(Interrupt),
}

/// A response whose first part is there.
struct Head {
    parts: http::response::Parts,
    body: RecvStream,
    /// When it came.
    since: Time,
    /// Read to see whether a gRPC status comes first.
    first: Option<Bytes>,
    trailers: Option<HeaderMap>,
    ended: bool,
}

/// Serves one stream.
pub(super) async fn serve(
    worker: Rc<Worker>,
    destination: Rc<Destination>,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) {
    let (parts, body) = request.into_parts();
    let grpc = is_grpc(&parts.headers);
    let mut exchange = match admit(&worker, &destination, &parts, grpc).await {
        Ok(exchange) => exchange,
        Err(answer) => {
            refuse(&mut respond, &answer, grpc, &parts.method);
            return;
        }
    };
    let keep_limit = exchange.replay_limit();
    let upload = Upload::new(body, keep_limit, Reservation::new(&worker.replay));
    let clock = worker.clock;
    let timer = Timer::new(clock);
    let mut run = Run {
        worker,
        destination: &destination,
        timer,
        exchange: &mut exchange,
        parts: &parts,
        grpc,
        upload,
        respond: &mut respond,
    };
    let answer = run.carry_out().await;
    if let Some(answer) = answer {
        exchange.on_answer(&answer, clock.now());
        refuse(&mut respond, &answer, grpc, &parts.method);
    }
}

async fn admit(
    worker: &Rc<Worker>,
    destination: &Destination,
    parts: &http::request::Parts,
    grpc: bool,
) -> Result<Exchange, Answer> {
    if parts.method == http::Method::CONNECT {
        return Err(Answer::NotImplemented {
            reason: "CONNECT is not supported; send the request itself",
        });
    }
    let host = || {
        parts
            .headers
            .get(http::header::HOST)
            .and_then(|h| h.to_str().ok())
    };
    let authority = parts
        .uri
        .authority()
        .map(http::uri::Authority::as_str)
        .or_else(host);
    let (snapshot, place) = match destination.probed(worker, &View(parts)) {
        Some(bare) => bare,
        None => destination
            .resolve(worker, authority)
            .inspect_err(|_| worker.shared.unrouted())?,
    };
    let port = &snapshot.services[place.service].ports[place.port];
    if port.protocol == Protocol::Http1 {
        port.metrics
            .count(worker.index, Counter::AnswerProtocolMismatch);
        return Err(Answer::ProtocolMismatch {
            spoken: "HTTP/2",
            expected: "HTTP/1.1",
        });
    }
    let caller = destination.caller(worker, &snapshot, place).await;
    let facts = RequestFacts {
        grpc,
        tcp: false,
        caller,
    };
    let now = worker.clock.now();
    Exchange::admit(
        &snapshot,
        place,
        worker.index,
        parts.method.clone(),
        &View(parts),
        facts,
        now,
    )
}

struct Run<'a> {
    worker: Rc<Worker>,
    destination: &'a Destination,
    timer: Timer,
    exchange: &'a mut Exchange,
    parts: &'a http::request::Parts,
    grpc: bool,
    upload: Upload,
    respond: &'a mut SendResponse<Bytes>,
}

impl Run<'_> {
    async fn carry_out(&mut self) -> Option<Answer> {
        let mut step = self.wait_for_place().await.err();
        loop {
            match step.take() {
                None | Some(Step::Again) => {}
                Some(Step::Answer(answer)) => return Some(answer),
                Some(Step::End) => return None,
            }
            step = Some(self.one_try().await);
        }
    }

    fn now(&self) -> Time {
        self.worker.clock.now()
    }

    async fn one_try(&mut self) -> Step {
        let now = self.now();
        if let Err(refused) = self.exchange.next_try(now, self.worker.random()) {
            return Step::Answer(refused);
        }
        if let Err(end) = self.wait_for_place().await {
            return end;
        }
        let mut send = match self.connect().await {
            Ok(send) => send,
            Err(step) => return step,
        };
        let bodyless = self.upload.is_finished();
        let (response, body) = match send.send_request(self.outgoing(), bodyless) {
            Ok(sent) => sent,
            Err(error) => return self.failed(reset_failure(&error), Sent::Nothing).await,
        };
        self.upload.begin(bodyless);
        let mut link = Link {
            response,
            body,
            last_byte: self.now(),
            head: None,
        };
        match poll_fn(|cx| self.poll_head(&mut link, cx)).await {
            Ok(head) => self.on_head(head, link).await,
            Err(Came::Interrupt(interrupt)) => {
                // Beyond the endpoint's limit of streams it has not left yet.
                let mut unwatched = Context::from_waker(std::task::Waker::noop());
                let sent = if send.poll_ready(&mut unwatched).is_pending() {
                    Sent::Nothing
                } else {
                    Sent::Maybe
                };
                if !self.exchange.is_grpc() && self.upload.waits_for_caller() {
                    self.exchange.excuse(self.now());
                }
                // Dropping both halves resets the stream.
                drop(link);
                self.interrupted(interrupt, sent).await
            }
            Err(Came::Failed(error)) => {
                drop(link);
                let sent = if was_not_processed(&error) {
                    Sent::Nothing
                } else {
                    Sent::Maybe
                };
                self.failed(reset_failure(&error), sent).await
            }
        }
    }

    /// The head as it goes to the endpoint.
    fn outgoing(&self) -> Request<()> {
        let mut request = Request::new(());
        request.method_mut().clone_from(&self.parts.method);
        *request.version_mut() = http::Version::HTTP_2;
        let authority = self.parts.uri.authority().cloned().or_else(|| {
            let host = self.parts.headers.get(http::header::HOST)?;
            http::uri::Authority::try_from(host.as_bytes()).ok()
        });
        let mut uri = http::uri::Parts::default();
        uri.scheme = Some(http::uri::Scheme::HTTP);
        uri.authority = authority.or_else(|| {
            let address = self.exchange.address()?;
            http::uri::Authority::try_from(address.to_string()).ok()
        });
        uri.path_and_query = self.parts.uri.path_and_query().cloned();
        if let Ok(uri) = http::Uri::from_parts(uri) {
            *request.uri_mut() = uri;
        }
        request.headers_mut().clone_from(&self.parts.headers);
        strip_hop_by_hop(request.headers_mut());
        // `:authority` says it; another word could be believed instead.
        request.headers_mut().remove(http::header::HOST);
        request
    }

    /// A connection with room for a stream.
    async fn connect(&mut self) -> Result<SendRequest<Bytes>, Step> {
        let Some(endpoint) = self.exchange.address() else {
            return Err(Step::End);
        };
        let worker = self.worker.clone();
        let destination = self.destination;
        destination.chosen(&worker, self.exchange, endpoint);
        let exit = Exit::new(&destination.origin, endpoint);
        let timeout = self.exchange.connect_timeout();
        let until = timeout.map(|t| self.now() + t);
        loop {
            let now = self.now();
            let found = self.worker.h2_pool.borrow_mut().find(exit, now);
            match found {
                Found::Live(send, number) => {
                    // Ready or closed; a stream beyond the endpoint's limit
                    // waits once it is made.
                    match self.guarded(send.ready(), until).await {
                        Ok(Ok(send)) => {
                            self.exchange.on_connection(true);
                            return Ok(send);
                        }
                        Ok(Err(_)) => self.worker.h2_pool.borrow_mut().closing(exit, number),
                        Err(interrupt) => return Err(self.no_connection(interrupt, timeout).await),
                    }
                }
                Found::Soon(notify) => {
                    let notified = notify.notified();
                    if let Err(interrupt) = self.guarded(notified, until).await {
                        return Err(self.no_connection(interrupt, timeout).await);
                    }
                }
                Found::Make => {
                    // Whoever waits for it is told whatever happens here.
                    let telling = Telling {
                        worker: self.worker.clone(),
                        exit,
                        done: false,
                    };
                    let made = self
                        .guarded(make(&worker, &destination.origin, endpoint), until)
                        .await;
                    match made {
                        Ok(Ok((send, driver))) => {
                            telling.connected(send, driver);
                            self.exchange.on_connection(false);
                        }
                        Ok(Err(failure)) => {
                            drop(telling);
                            return Err(self.failed(failure, Sent::Nothing).await);
                        }
                        Err(interrupt) => {
                            drop(telling);
                            return Err(self.no_connection(interrupt, timeout).await);
                        }
                    }
                }
            }
        }
    }

    async fn no_connection(&mut self, interrupt: Interrupt, timeout: Option<Duration>) -> Step {
        match interrupt {
            Interrupt::Passed => {
                let failure = Answer::ConnectTimeout {
                    after: timeout.unwrap_or_default(),
                };
                self.failed(TryFailure::Connect(failure), Sent::Nothing)
                    .await
            }
            interrupt => self.interrupted(interrupt, Sent::Nothing).await,
        }
    }

    async fn on_head(&mut self, head: Head, link: Link) -> Step {
        let now = self.now();
        let grpc_status = grpc_status(&head.parts.headers)
            .or_else(|| head.trailers.as_ref().and_then(grpc_status));
        let headers = head.trailers.as_ref().unwrap_or(&head.parts.headers);
        let event_stream = head.parts.headers.get(http::header::CONTENT_TYPE);
        let facts = ResponseFacts {
            status: head.parts.status.as_u16(),
            grpc_status,
            retry_after: retry_after(&head.parts.headers),
            pushback: pushback(headers).or_else(|| pushback(&head.parts.headers)),
            refused: is_refusal(&head.parts.headers),
            stream: head.first.is_some()
                || event_stream.is_some_and(|t| t.as_bytes().starts_with(b"text/event-stream")),
        };
        match self
            .exchange
            .on_head(&facts, !self.upload.lost, now, self.worker.random())
        {
            Verdict::Retry(after) => {
                drop((head, link));
                self.wait(after).await
            }
            Verdict::Forward => {
                self.forward(head, link).await;
                Step::End
            }
        }
    }

    /// The response goes to the caller, while the rest of the request still
    /// goes to the endpoint.
    async fn forward(&mut self, head: Head, mut link: Link) {
        let status = head.parts.status.as_u16();
        let mut response = Response::new(());
        *response.status_mut() = head.parts.status;
        *response.headers_mut() = head.parts.headers;
        strip_hop_by_hop(response.headers_mut());
        let whole = head.ended && head.first.is_none() && head.trailers.is_none();
        let head_status = grpc_status(response.headers());
        let end = match self.respond.send_response(response, whole) {
            Err(_) => End::CallerGone,
            Ok(_) if whole => End::Complete {
                grpc_status: head_status,
            },
            Ok(to_caller) => {
                let mut download = Download {
                    from: head.body,
                    to: to_caller,
                    pending: head.first,
                    trailers: head.trailers,
                    ended: head.ended,
                    moved: false,
                };
                let end = poll_fn(|cx| self.poll_forward(&mut download, &mut link, cx)).await;
                match end {
                    End::Broken => download.to.send_reset(Reason::INTERNAL_ERROR),
                    End::TimedOut => download.to.send_reset(Reason::CANCEL),
                    End::Complete { .. } | End::CallerGone => {}
                }
                end
            }
        };
        let now = self.now();
        self.exchange.on_end(status, end, now, self.worker.random());
    }

    async fn failed(&mut self, failure: TryFailure, sent: Sent) -> Step {
        let now = self.now();
        let random = self.worker.random();
        match self
            .exchange
            .on_failure(failure, sent, !self.upload.lost, now, random)
        {
            Ok(after) => self.wait(after).await,
            Err(last) => Step::Answer(last),
        }
    }

    async fn interrupted(&mut self, interrupt: Interrupt, sent: Sent) -> Step {
        let now = self.now();
        match interrupt {
            Interrupt::Gone => {
                self.exchange.on_end(0, End::CallerGone, now, 0);
                Step::End
            }
            Interrupt::Expired(Limit::Request) => {
                let random = self.worker.random();
                Step::Answer(self.exchange.on_request_timeout(now, random))
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
        self.upload.rewind();
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

    /// Waits for a bulkhead's place. The error is the request's end.
    async fn wait_for_place(&mut self) -> Result<(), Step> {
        let placed = poll_fn(|cx| {
            let now = self.worker.clock.now();
            if let Poll::Ready(placed) = self.exchange.poll_place(now, cx) {
                return Poll::Ready(Ok(placed));
            }
            match self.poll_interrupt(self.exchange.place_deadline(), now, cx) {
                Poll::Ready(Interrupt::Passed) => self.exchange.poll_place(now, cx).map(Ok),
                other => other.map(Err),
            }
        })
        .await;
        match placed {
            Ok(Ok(())) => Ok(()),
            Ok(Err(refused)) => Err(Step::Answer(refused)),
            Err(interrupt) => Err(self.interrupted(interrupt, Sent::Nothing).await),
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
            let now = self.worker.clock.now();
            self.poll_interrupt(until, now, cx).map(Err)
        })
        .await
    }

    /// Ready when the caller left, a limit passed, or `until` did.
    fn poll_interrupt(
        &mut self,
        until: Option<Time>,
        now: Time,
        cx: &mut Context<'_>,
    ) -> Poll<Interrupt> {
        if self.respond.poll_reset(cx).is_ready() {
            return Poll::Ready(Interrupt::Gone);
        }
        poll_limits(&mut self.timer, self.exchange, until, now, cx)
    }

    /// Ready with a response's head. For gRPC it waits for the first message
    /// or the trailers, because a status in them may still mean another try.
    fn poll_head(&mut self, link: &mut Link, cx: &mut Context<'_>) -> Poll<Result<Head, Came>> {
        let now = self.worker.clock.now();
        match self.upload.poll(&mut link.body, cx) {
            Ok(true) => link.last_byte = now,
            Ok(false) => {}
            Err(Gone) => return Poll::Ready(Err(Came::Interrupt(Interrupt::Gone))),
        }
        if link.head.is_none() {
            match std::pin::Pin::new(&mut link.response).poll(cx) {
                Poll::Ready(Ok(response)) => {
                    link.last_byte = now;
                    let (parts, body) = response.into_parts();
                    let ended = body.is_end_stream();
                    link.head = Some(Head {
                        parts,
                        body,
                        since: now,
                        first: None,
                        trailers: None,
                        ended,
                    });
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Came::Failed(error))),
                Poll::Pending => {}
            }
        }
        if let Some(head) = &mut link.head {
            let open = is_grpc(&head.parts.headers)
                && grpc_status(&head.parts.headers).is_none()
                && !head.ended
                && self.exchange.may_retry_answer(!self.upload.lost);
            let decided = if open {
                head.poll_first(cx)
            } else {
                Poll::Ready(Ok(()))
            };
            match decided {
                Poll::Ready(Ok(())) => {
                    return match link.head.take() {
                        Some(head) => Poll::Ready(Ok(head)),
                        None => Poll::Pending,
                    };
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Came::Failed(error))),
                Poll::Pending => {}
            }
        }
        let idle = self.exchange.idle_timeout().map(|t| link.last_byte + t);
        // A caller may wait for the head before it says more.
        let held = link.head.as_ref().map(|head| head.since + HOLD);
        let until = [idle, held].into_iter().flatten().min();
        let interrupt = std::task::ready!(self.poll_interrupt(until, now, cx));
        Poll::Ready(match (interrupt, link.head.take()) {
            (Interrupt::Passed, Some(head)) if until == held => Ok(head),
            (interrupt, _) => Err(Came::Interrupt(interrupt)),
        })
    }

    fn poll_forward(
        &mut self,
        download: &mut Download,
        link: &mut Link,
        cx: &mut Context<'_>,
    ) -> Poll<End> {
        let now = self.worker.clock.now();
        if let Poll::Ready(end) = download.poll(cx) {
            return Poll::Ready(end);
        }
        match self.upload.poll(&mut link.body, cx) {
            Ok(true) => link.last_byte = now,
            Ok(false) => {}
            Err(Gone) => return Poll::Ready(End::CallerGone),
        }
        if std::mem::take(&mut download.moved) {
            link.last_byte = now;
            if self.grpc {
                // A message has reached the caller: the answer came in time.
                self.exchange.on_stream(now, self.worker.random());
            }
        }
        if download.to.poll_reset(cx).is_ready() {
            return Poll::Ready(End::CallerGone);
        }
        let idle = self.exchange.idle_timeout().map(|t| link.last_byte + t);
        poll_limits(&mut self.timer, self.exchange, idle, now, cx).map(|_| End::TimedOut)
    }
}

impl Head {
    /// Ready once the first message, the trailers or the end has come.
    fn poll_first(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        loop {
            match self.body.poll_data(cx) {
                Poll::Ready(Some(Ok(data))) if data.is_empty() => {}
                Poll::Ready(Some(Ok(data))) => {
                    self.first = Some(data);
                    return Poll::Ready(Ok(()));
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
                Poll::Ready(None) => break,
                Poll::Pending => return Poll::Pending,
            }
        }
        match self.body.poll_trailers(cx) {
            Poll::Ready(Ok(trailers)) => {
                self.trailers = trailers;
                self.ended = true;
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => Poll::Pending,
        }
    }
}

/// Tells those who wait for a connection that is being made, whatever
/// happens to the one who makes it.
struct Telling {
    worker: Rc<Worker>,
    exit: Exit,
    done: bool,
}

impl Telling {
    /// The driver runs until the connection ends.
    fn connected(mut self, send: SendRequest<Bytes>, driver: Driver) {
        self.done = true;
        let (worker, exit) = (self.worker.clone(), self.exit);
        let number = worker.h2_pool.borrow_mut().connected(exit, send);
        tokio::task::spawn_local(async move {
            if let Err(error) = driver.await {
                tracing::debug!(%error, endpoint = %exit.endpoint, "HTTP/2 connection to an endpoint ended");
            }
            worker.h2_pool.borrow_mut().closing(exit, number);
        });
    }
}

impl Drop for Telling {
    fn drop(&mut self) {
        if !self.done {
            self.worker.h2_pool.borrow_mut().failed(self.exit);
        }
    }
}

/// Makes a connection and its driver.
async fn make(
    worker: &Worker,
    origin: &Origin,
    endpoint: std::net::SocketAddr,
) -> Result<(SendRequest<Bytes>, Driver), TryFailure> {
    let io = dial(worker, origin, endpoint)
        .await
        .map_err(|error| TryFailure::of_connect(&error))?;
    // Data that nobody acknowledges means that the endpoint is gone; the kernel
    // alone would go on for a quarter of an hour, and every new stream with it.
    let _ = socket2::SockRef::from(&io).set_tcp_user_timeout(Some(GONE));
    super::connect(io).await.map_err(|_| {
        TryFailure::Connect(Answer::ConnectFailed {
            reason: "the endpoint does not speak HTTP/2",
        })
    })
}

fn refuse(respond: &mut SendResponse<Bytes>, answer: &Answer, grpc: bool, method: &http::Method) {
    let whole = grpc || method == http::Method::HEAD;
    let sent = respond.send_response(answer.h2_response(grpc), whole);
    if let (Ok(mut body), false) = (sent, whole) {
        // A line of text; the caller may have gone meanwhile.
        let _ = body.send_data(Bytes::from(format!("weir: {answer}\n")), true);
    }
}

/// Whether the endpoint says that it did nothing with the stream
/// (RFC 9113, section 8.7).
fn was_not_processed(error: &h2::Error) -> bool {
    error.reason() == Some(Reason::REFUSED_STREAM) || error.is_go_away() && error.is_remote()
}

fn reset_failure(error: &h2::Error) -> TryFailure {
    TryFailure::Reset(match error.reason() {
        Some(Reason::PROTOCOL_ERROR | Reason::FRAME_SIZE_ERROR | Reason::COMPRESSION_ERROR) => {
            Answer::BadResponse {
                reason: "an HTTP/2 protocol error",
            }
        }
        _ => Answer::Terminated,
    })
}
