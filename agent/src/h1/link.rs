//! A caller's connection joined with one to an endpoint: bytes in both
//! directions at once, for one try.

use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::net::TcpStream;
use weir_resilience::Time;
use weir_resilience::retry::Sent;

use super::body::{BadBody, Framing};
use super::exchange::Run;
use super::head::{self, MAX_HEAD, ResponseMeta};
use super::poll_write_two;
use crate::answer::Answer;
use crate::buffer::Buffer;
use crate::dial::Exit;
use crate::pipeline::End;
use crate::wait::{Interrupt, poll_limits};

/// An upstream connection in use.
pub(super) struct Upstream {
    pub(super) io: TcpStream,
    pub(super) exit: Exit,
    pub(super) reused: bool,
    pub(super) buffer: Buffer,
    /// Bytes of the head and of the body that is sent anew that are written.
    pub(super) prefix_at: usize,
    /// Writing failed; the endpoint may still have answered.
    pub(super) broken: bool,
}

impl Upstream {
    pub(super) fn new(io: TcpStream, exit: Exit, reused: bool, buffer: Buffer) -> Upstream {
        Upstream {
            io,
            exit,
            reused,
            buffer,
            prefix_at: 0,
            broken: false,
        }
    }

    pub(super) fn sent(&self) -> Sent {
        if self.prefix_at == 0 {
            Sent::Nothing
        } else {
            Sent::Maybe
        }
    }
}

/// What the wait for a response's head brought.
pub(super) enum Came {
    Head(ResponseMeta),
    Failed(Answer),
    Interrupt(Interrupt),
    BadRequest(BadBody),
}

/// Why the upload stopped.
pub(super) enum UploadEnd {
    Gone,
    Bad(BadBody),
}

/// Caller and upstream joined: bytes in both directions.
pub(super) struct Link<'r, 'a> {
    pub(super) run: &'r mut Run<'a>,
    pub(super) upstream: Upstream,
    /// Bytes of `run.out` that are written.
    pub(super) out_at: usize,
    /// Bytes at the front of the upstream's buffer that belong to the
    /// response's body and are not written yet.
    pub(super) valid: usize,
    pub(super) last_byte: Time,
}

impl<'r, 'a> Link<'r, 'a> {
    pub(super) fn new(run: &'r mut Run<'a>, upstream: Upstream) -> Link<'r, 'a> {
        let last_byte = run.caller.worker.clock.now();
        Link {
            run,
            upstream,
            out_at: 0,
            valid: 0,
            last_byte,
        }
    }

    pub(super) fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Came> {
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
    pub(super) fn poll_forward(
        &mut self,
        body: &mut Framing,
        cx: &mut Context<'_>,
    ) -> Poll<(End, Framing)> {
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
