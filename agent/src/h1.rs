//! HTTP/1.1 between a caller and an endpoint, driven by the pipeline.
//!
//! One task serves one caller's connection. A request without a body in
//! flight costs two reads and two writes: the caller's head, the same head
//! onwards, the response, and the response back. While the endpoint works, the
//! caller is watched through its own read side, so a caller that leaves is
//! noticed at once and the upstream connection closed.

mod body;
mod exchange;
mod head;
mod link;
pub(crate) mod pool;
mod upload;

use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::future::LocalBoxFuture;
use http::Method;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use weir_resilience::Time;
use weir_resilience::config::{Protocol, RequestView};

use self::exchange::Outcome;
use self::head::{MAX_HEAD, RequestMeta};
use crate::answer::Answer;
use crate::callers::Found;
use crate::connection::{Caller, HEAD_TIMEOUT, KEEP_ALIVE};
use crate::metrics::Counter;
use crate::pipeline::{Exchange, RequestFacts};
use crate::timer::Timer;

/// What an early answer still reads of a body nobody wants, so that the answer
/// is not lost to a reset: bytes and time.
const LINGER_BYTES: usize = 256 * 1024;
const LINGER: Duration = Duration::from_secs(1);
/// While draining, how long a caller that asks for nothing keeps its connection.
/// Closed at once, the end and its next request could pass each other, and it would not
/// know whether that was heard. One that asks is told with the answer.
const LAST_REQUEST: Duration = Duration::from_secs(1);

/// Why a request is not begun.
enum Stop {
    Refused(Refused),
    /// First, whoever has this address must be known.
    Ask(IpAddr),
}

/// A request that was taken in.
struct Begun {
    exchange: Exchange,
    meta: RequestMeta,
    /// The head as it goes to the endpoint.
    head: Vec<u8>,
}

/// What a connection keeps from one request to the next.
struct Session {
    caller: Caller,
    timer: Timer,
    /// When the head that is being read began.
    head_since: Option<Time>,
    /// Since when it idles while it should end.
    leaving_since: Option<Time>,
    /// While somebody is asked who calls.
    asking: Option<LocalBoxFuture<'static, Found>>,
    /// The connection ends with a reset.
    reset: bool,
    /// Memory for the heads.
    forward: Vec<u8>,
    answer: Vec<u8>,
}

/// Serves one connection until it ends.
pub(crate) async fn serve(caller: Caller) {
    let timer = Timer::new(caller.worker.clock);
    let mut session = Session {
        caller,
        timer,
        head_since: None,
        leaving_since: None,
        asking: None,
        reset: false,
        forward: Vec::new(),
        answer: Vec::new(),
    };
    while session.serve_one().await {}
    let Caller {
        worker, io, buffer, ..
    } = &mut session.caller;
    if session.reset {
        // Closing then resets, where it would end in good order.
        let _ = socket2::SockRef::from(&*io).set_linger(Some(Duration::ZERO));
    } else {
        // It may have been reset at the other end.
        let _ = io.shutdown().await;
    }
    worker.spare.borrow_mut().give(std::mem::take(buffer));
}

impl Session {
    /// One request; whether the connection can take another.
    async fn serve_one(&mut self) -> bool {
        self.answer.clear();
        let begun = match poll_fn(|cx| self.poll_begin(cx)).await {
            Some(Ok(begun)) => begun,
            Some(Err(refused)) => return self.refuse(refused).await,
            None => return false,
        };
        let Begun {
            mut exchange,
            meta,
            head,
        } = begun;
        let outcome = exchange::run(
            &mut self.caller,
            &mut self.timer,
            &mut exchange,
            &meta,
            &head,
            &mut self.answer,
        )
        .await;
        self.forward = head;
        match outcome {
            Outcome::Done { keep_alive } => keep_alive,
            Outcome::Linger => {
                self.linger().await;
                false
            }
            Outcome::Answer { answer, body_left } => {
                exchange.on_answer(&answer, self.caller.worker.clock.now());
                drop(exchange);
                self.refuse(Refused {
                    answer,
                    body: !meta.head_method,
                    close: body_left || !meta.keep_alive,
                })
                .await
            }
            Outcome::Close => false,
            Outcome::Reset => {
                self.reset = true;
                false
            }
        }
    }

    /// Waits for a whole head and takes the request in. `None`: the caller is
    /// done.
    fn poll_begin(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Begun, Refused>>> {
        let mut now = None;
        loop {
            if let Some(asking) = &mut self.asking {
                let found = ready!(asking.as_mut().poll(cx));
                self.caller.destination.keep_caller(found);
                (self.asking, now) = (None, None);
            }
            if !self.caller.buffer.is_empty() {
                match self.begin(*now.get_or_insert_with(|| self.caller.worker.clock.now())) {
                    Ok(Some(begun)) => return Poll::Ready(Some(Ok(begun))),
                    Err(refused) => return Poll::Ready(Some(Err(refused))),
                    Ok(None) if self.asking.is_some() => continue,
                    Ok(None) => {
                        if !self.caller.buffer.has_room() && !self.caller.buffer.grow(MAX_HEAD) {
                            self.caller.worker.shared.malformed();
                            let answer = Answer::HeadTooLarge;
                            return Poll::Ready(Some(Err(Refused {
                                answer,
                                body: true,
                                close: true,
                            })));
                        }
                    }
                }
            } else {
                self.caller.rest();
            }
            match self.caller.poll_fill(cx) {
                Poll::Ready(Ok(n)) if n > 0 => {}
                Poll::Ready(_) => return Poll::Ready(None),
                Poll::Pending => {
                    let idle = self.caller.buffer.is_empty();
                    let now = *now.get_or_insert_with(|| self.caller.worker.clock.now());
                    return self.poll_patience(idle, now, cx);
                }
            }
        }
    }

    /// Ends a connection that takes too long for its next request.
    fn poll_patience(
        &mut self,
        idle: bool,
        now: Time,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Begun, Refused>>> {
        let until = if idle {
            self.head_since = None;
            if self.caller.leaving() {
                *self.leaving_since.get_or_insert(now) + LAST_REQUEST
            } else {
                now + KEEP_ALIVE
            }
        } else {
            *self.head_since.get_or_insert(now) + HEAD_TIMEOUT
        };
        match self.timer.poll(Some(until), now, cx) {
            Poll::Ready(()) => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    }

    /// Reads the head in the buffer and admits the request; `None` while it
    /// is not whole, or while somebody is asked who calls.
    fn begin(&mut self, now: Time) -> Result<Option<Begun>, Refused> {
        let Caller {
            worker,
            buffer,
            destination,
            ..
        } = &mut self.caller;
        let mut forward = std::mem::take(&mut self.forward);
        forward.clear();
        let mut length = 0;
        let read = head::with_request(buffer.bytes(), |head, meta| {
            length = meta.length;
            let refuse = |answer| {
                Stop::Refused(Refused {
                    answer,
                    body: !meta.head_method,
                    close: !(meta.keep_alive && meta.body.is_done()),
                })
            };
            let (snapshot, place) = match destination.probed(worker, head) {
                Some(bare) => bare,
                None => destination
                    .resolve(worker, head.authority())
                    .inspect_err(|_| worker.shared.unrouted())
                    .map_err(refuse)?,
            };
            let port = &snapshot.services[place.service].ports[place.port];
            if port.protocol == Protocol::Http2 {
                port.metrics
                    .count(worker.index, Counter::AnswerProtocolMismatch);
                let answer = Answer::ProtocolMismatch {
                    spoken: "HTTP/1.1",
                    expected: "HTTP/2",
                };
                return Err(refuse(answer));
            }
            let grpc = head
                .header("content-type")
                .is_some_and(|t| t.starts_with(b"application/grpc"));
            let caller = destination
                .known_caller(&snapshot, place, now)
                .map_err(Stop::Ask)?;
            let facts = RequestFacts {
                grpc,
                tcp: false,
                caller,
            };
            let method: Method = head.method.clone();
            let exchange =
                Exchange::admit(&snapshot, place, worker.index, method, head, facts, now)
                    .map_err(refuse)?;
            head.write(&meta, &mut forward);
            Ok((exchange, meta))
        });
        match read {
            Ok(None) => {
                self.forward = forward;
                Ok(None)
            }
            Ok(Some(Ok((exchange, meta)))) => {
                buffer.consume(meta.length);
                self.head_since = None;
                Ok(Some(Begun {
                    exchange,
                    meta,
                    head: forward,
                }))
            }
            Ok(Some(Err(Stop::Ask(address)))) => {
                self.forward = forward;
                let callers = worker.shared.callers.clone();
                self.asking = Some(Box::pin(async move { callers.find(address).await }));
                Ok(None)
            }
            Ok(Some(Err(Stop::Refused(refused)))) => {
                self.forward = forward;
                // A refused request without a body is used up; what follows is the next.
                if !refused.close {
                    buffer.consume(length);
                }
                self.head_since = None;
                Err(refused)
            }
            Err(answer) => {
                worker.shared.malformed();
                Err(Refused {
                    answer,
                    body: true,
                    close: true,
                })
            }
        }
    }

    /// Answers in the destination's place.
    async fn refuse(&mut self, refused: Refused) -> bool {
        let close = refused.close || self.caller.leaving();
        // Behind what is left of an interim response.
        refused
            .answer
            .write_h1(&mut self.answer, close, refused.body);
        // A caller that does not read has until the next one would be closed too.
        let sending = self.caller.io.write_all(&self.answer);
        let sent = tokio::time::timeout(HEAD_TIMEOUT, sending).await;
        let sent = sent.unwrap_or_else(|late| Err(late.into()));
        if sent.is_ok() && close {
            self.linger().await;
        }
        sent.is_ok() && !close
    }

    /// Closes the sending side and reads on for a moment: closing with unread
    /// bytes would reset the connection and could take the answer with it.
    async fn linger(&mut self) {
        if self.caller.io.shutdown().await.is_err() {
            return;
        }
        let mut left = LINGER_BYTES;
        let mut scratch = [0; 4096];
        let io = &mut self.caller.io;
        let drain = poll_fn(|cx| {
            loop {
                let mut into = ReadBuf::new(&mut scratch);
                match Pin::new(&mut *io).poll_read(cx, &mut into) {
                    Poll::Ready(Ok(())) if !into.filled().is_empty() && left > 0 => {
                        left = left.saturating_sub(into.filled().len());
                    }
                    Poll::Ready(_) => return Poll::Ready(()),
                    Poll::Pending => return Poll::Pending,
                }
            }
        });
        let _ = tokio::time::timeout(LINGER, drain).await;
    }
}

/// An answer of Weir's own, and what it means for the connection.
struct Refused {
    answer: Answer,
    /// Whether the answer may have a body.
    body: bool,
    close: bool,
}

/// Up to this many bytes are copied together: cheaper than a vectored write.
const TOGETHER: usize = 2048;

/// Writes what is left of `head`, then `body`, in one call.
fn poll_write_two(
    io: &mut tokio::net::TcpStream,
    head: &[u8],
    body: &[u8],
    cx: &mut Context<'_>,
) -> Poll<std::io::Result<usize>> {
    let io = Pin::new(io);
    let length = head.len() + body.len();
    let written = if body.is_empty() {
        io.poll_write(cx, head)
    } else if head.is_empty() {
        io.poll_write(cx, body)
    } else if length <= TOGETHER {
        let mut both = [0; TOGETHER];
        both[..head.len()].copy_from_slice(head);
        both[head.len()..length].copy_from_slice(body);
        io.poll_write(cx, &both[..length])
    } else {
        let slices = [std::io::IoSlice::new(head), std::io::IoSlice::new(body)];
        io.poll_write_vectored(cx, &slices)
    };
    match written {
        Poll::Ready(Ok(0)) => Poll::Ready(Err(std::io::ErrorKind::WriteZero.into())),
        other => other,
    }
}
