//! Bodies over HTTP/2, one direction each: never more in hand than the other
//! side has room for.

use std::collections::VecDeque;
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::{RecvStream, SendStream};
use http::HeaderMap;

use super::headers::grpc_status;
use crate::pipeline::End;
use crate::replay::Reservation;

/// The caller reset its stream, or its connection ended.
pub(super) struct Gone;

/// The request's body on its way to the endpoint.
pub(super) struct Upload {
    from: RecvStream,
    /// To be sent by this try, oldest first.
    pending: VecDeque<Bytes>,
    /// All of the body so far, for another try.
    kept: Vec<Bytes>,
    kept_bytes: usize,
    /// The memory for it, out of the worker's share.
    memory: Reservation,
    keep_limit: usize,
    /// The body was too large to keep.
    pub(super) lost: bool,
    trailers: Option<HeaderMap>,
    /// The caller has sent everything.
    received: bool,
    /// This try has sent everything.
    sent: bool,
    /// The endpoint takes no more of it; it may still answer.
    broken: bool,
}

impl Upload {
    pub(super) fn new(from: RecvStream, keep_limit: usize, memory: Reservation) -> Upload {
        let received = from.is_end_stream();
        Upload {
            from,
            pending: VecDeque::new(),
            kept: Vec::new(),
            kept_bytes: 0,
            memory,
            keep_limit,
            lost: false,
            trailers: None,
            received,
            sent: false,
            broken: false,
        }
    }

    /// Whether the head alone is the whole request.
    pub(super) fn is_finished(&self) -> bool {
        self.received && self.pending.is_empty() && self.trailers.is_none()
    }

    /// A try begins; `sent` when its head was all.
    pub(super) fn begin(&mut self, sent: bool) {
        self.sent = sent;
        self.broken = false;
    }

    /// Whether the next step is the caller's: all that it sent has gone on.
    pub(super) fn waits_for_caller(&self) -> bool {
        !self.received && self.pending.is_empty() && !self.broken
    }

    /// Before another try: all of the body so far is sent anew.
    pub(super) fn rewind(&mut self) {
        self.pending = self.kept.iter().cloned().collect();
    }

    /// Moves what can move; whether anything did.
    pub(super) fn poll(
        &mut self,
        to: &mut SendStream<Bytes>,
        cx: &mut Context<'_>,
    ) -> Result<bool, Gone> {
        let mut moved = false;
        while !self.sent && !self.broken {
            if let Some(chunk) = self.pending.front_mut() {
                to.reserve_capacity(chunk.len());
                let room = match to.capacity() {
                    0 => match to.poll_capacity(cx) {
                        Poll::Ready(Some(Ok(room))) => room,
                        Poll::Ready(_) => {
                            self.broken = true;
                            break;
                        }
                        Poll::Pending => return Ok(moved),
                    },
                    room => room,
                };
                let piece = chunk.split_to(room.min(chunk.len()));
                if chunk.is_empty() {
                    self.pending.pop_front();
                }
                let size = piece.len();
                self.broken = to.send_data(piece, false).is_err();
                // Only now may the caller send as much again. A piece that is
                // sent anew was given back before; the window bounds the sum.
                let _ = self.from.flow_control().release_capacity(size);
                moved = true;
                continue;
            }
            if self.received {
                let sent = match self.trailers.clone() {
                    Some(trailers) => to.send_trailers(trailers),
                    None => to.send_data(Bytes::new(), true),
                };
                self.broken = sent.is_err();
                self.sent = true;
                return Ok(true);
            }
            if !self.poll_receive(cx)? {
                return Ok(moved);
            }
            moved = true;
        }
        Ok(moved)
    }

    /// Takes the next part of the body from the caller; false: not there yet.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Result<bool, Gone> {
        match self.from.poll_data(cx) {
            Poll::Ready(Some(Ok(chunk))) => {
                if !chunk.is_empty() {
                    self.keep(&chunk);
                    self.pending.push_back(chunk);
                }
                return Ok(true);
            }
            Poll::Ready(Some(Err(_))) => return Err(Gone),
            Poll::Pending => return Ok(false),
            Poll::Ready(None) => {}
        }
        match self.from.poll_trailers(cx) {
            Poll::Ready(Ok(trailers)) => {
                self.trailers = trailers;
                self.received = true;
                Ok(true)
            }
            Poll::Ready(Err(_)) => Err(Gone),
            Poll::Pending => Ok(false),
        }
    }

    fn keep(&mut self, chunk: &Bytes) {
        if self.lost {
            return;
        }
        self.kept_bytes += chunk.len();
        if self.kept_bytes > self.keep_limit || !self.memory.grow(chunk.len()) {
            self.lost = true;
            self.kept = Vec::new();
            self.memory.release();
        } else {
            self.kept.push(chunk.clone());
        }
    }
}

/// The response's body on its way to the caller.
pub(super) struct Download {
    pub(super) from: RecvStream,
    pub(super) to: SendStream<Bytes>,
    pub(super) pending: Option<Bytes>,
    pub(super) trailers: Option<HeaderMap>,
    /// The endpoint has sent everything.
    pub(super) ended: bool,
    /// Set when anything moved.
    pub(super) moved: bool,
}

impl Download {
    /// Ready with the end of the response.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        loop {
            if let Some(mut chunk) = self.pending.take() {
                self.to.reserve_capacity(chunk.len());
                let room = match self.to.capacity() {
                    0 => match self.to.poll_capacity(cx) {
                        Poll::Ready(Some(Ok(room))) => room,
                        Poll::Ready(_) => return Poll::Ready(End::CallerGone),
                        Poll::Pending => {
                            self.pending = Some(chunk);
                            return Poll::Pending;
                        }
                    },
                    room => room,
                };
                let piece = chunk.split_to(room.min(chunk.len()));
                let size = piece.len();
                if !chunk.is_empty() {
                    self.pending = Some(chunk);
                }
                if self.to.send_data(piece, false).is_err() {
                    return Poll::Ready(End::CallerGone);
                }
                let _ = self.from.flow_control().release_capacity(size);
                self.moved = true;
                continue;
            }
            if self.ended {
                let status = self.trailers.as_ref().and_then(grpc_status);
                let sent = match self.trailers.take() {
                    Some(trailers) => self.to.send_trailers(trailers),
                    None => self.to.send_data(Bytes::new(), true),
                };
                let end = if sent.is_ok() {
                    End::Complete {
                        grpc_status: status,
                    }
                } else {
                    End::CallerGone
                };
                return Poll::Ready(end);
            }
            match self.from.poll_data(cx) {
                Poll::Ready(Some(Ok(chunk))) => {
                    if !chunk.is_empty() {
                        self.pending = Some(chunk);
                    }
                    continue;
                }
                Poll::Ready(Some(Err(_))) => return Poll::Ready(End::Broken),
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => {}
            }
            match self.from.poll_trailers(cx) {
                Poll::Ready(Ok(trailers)) => {
                    self.trailers = trailers;
                    self.ended = true;
                }
                Poll::Ready(Err(_)) => return Poll::Ready(End::Broken),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}
