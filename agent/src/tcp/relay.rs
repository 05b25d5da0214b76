//! Caller and endpoint joined: bytes in both directions until both are done.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::{Context, Poll};

use tokio::io::Interest;
use tokio::net::TcpStream;
use weir_resilience::Time;

use super::flow::{Broken, Flow};
use super::{Closing, DOUBT, Outcome, Run, STOOD, Stop};
use crate::pipeline::End;

/// What both directions have come to.
struct Relay<'r, 'a> {
    run: &'r mut Run<'a>,
    upstream: &'r TcpStream,
    down: Flow,
    established: Time,
    last_byte: Time,
    /// The endpoint had said all it had to say, and takes nothing any more.
    deaf: bool,
}

/// Passes on what both say.
pub(super) async fn relay(run: &mut Run<'_>, upstream: TcpStream) -> Outcome {
    let now = run.now();
    let (caller, spare) = (run.ear.io, run.worker.clone());
    let mut closing = Closing::of(&upstream);
    let mut relay = Relay {
        run,
        upstream: &upstream,
        down: Flow::default(),
        established: now,
        last_byte: now,
        deaf: false,
    };
    let over = {
        // A reset is noticed also while nothing is read because the other side
        // is slow.
        let mut caller_failed = pin!(caller.ready(Interest::ERROR));
        let mut upstream_failed = pin!(upstream.ready(Interest::ERROR));
        poll_fn(|cx| {
            let over = relay.poll(cx);
            if over.is_ready() {
                return over;
            }
            if caller_failed.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ok(End::CallerGone));
            }
            if !relay.deaf && upstream_failed.as_mut().poll(cx).is_ready() {
                return relay.on_endpoint_failed(cx);
            }
            Poll::Pending
        })
        .await
    };
    let Relay { run, down, .. } = relay;
    spare.spare.borrow_mut().give(down.buffer);
    match over {
        Ok(end) => {
            let (now, random) = (run.now(), run.worker.random());
            run.exchange.on_closed(end, now, random);
            match end {
                End::Complete { .. } => {
                    closing.well();
                    Outcome::Well
                }
                End::Broken | End::TimedOut | End::CallerGone => Outcome::Abrupt,
            }
        }
        Err(Stop::Http(spoken)) => {
            // It was used for nothing.
            closing.well();
            Outcome::Http(spoken)
        }
        Err(Stop::Gone | Stop::Refused(_)) => Outcome::Abrupt,
    }
}

impl Relay<'_, '_> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<End, Stop>> {
        let now = self.run.now();
        loop {
            if !self.run.ear.decided {
                if let Poll::Ready(stop) = self.run.ear.poll_heard(&self.run.worker, now, cx) {
                    return Poll::Ready(Err(stop));
                }
                // The endpoint speaks first, or has ended.
                self.run.ear.decided |= self.upstream.poll_read_ready(cx).is_ready();
            }
            if self.run.ear.decided
                && let Some(end) = self.poll_bytes(now, cx)
            {
                return Poll::Ready(Ok(end));
            }
            if self.down.begun {
                let random = self.run.worker.random();
                self.run.exchange.on_probe_success(now, random);
            }
            match self.poll_time(now, cx) {
                Poll::Ready(Some(end)) => return Poll::Ready(Ok(end)),
                Poll::Ready(None) => {}
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Moves bytes; how it ended, if it did.
    fn poll_bytes(&mut self, now: Time, cx: &mut Context<'_>) -> Option<End> {
        let (caller, spare) = (self.run.ear.io, &self.run.worker.spare);
        // First what the endpoint says, so that its last words are heard.
        match self.down.poll_move(self.upstream, caller, spare, cx) {
            Ok(true) => self.last_byte = now,
            Ok(false) => {}
            Err(Broken::Receiver) => return Some(End::CallerGone),
            Err(Broken::Sender) => return Some(End::Broken),
        }
        if !self.deaf {
            let up = &mut self.run.ear.up;
            match up.poll_move(caller, self.upstream, spare, cx) {
                Ok(true) => self.last_byte = now,
                Ok(false) => {}
                Err(Broken::Sender) => return Some(End::CallerGone),
                Err(Broken::Receiver) if self.down.ended => self.deaf = true,
                Err(Broken::Receiver) => return Some(End::Broken),
            }
        }
        let done = self.down.shut && (self.run.ear.up.shut || self.deaf);
        done.then_some(End::Complete { grpc_status: None })
    }

    /// An endpoint that has said all it had to say and closed may well reset
    /// what comes after: its words are still passed on.
    fn on_endpoint_failed(&mut self, cx: &mut Context<'_>) -> Poll<Result<End, Stop>> {
        if !self.down.ended {
            return Poll::Ready(Ok(End::Broken));
        }
        self.deaf = true;
        self.poll(cx)
    }

    /// What a moment that has passed means; `None`: look again.
    fn poll_time(&mut self, now: Time, cx: &mut Context<'_>) -> Poll<Option<End>> {
        let run = &mut *self.run;
        let idle = run.exchange.tcp_idle_timeout().map(|t| self.last_byte + t);
        let stood = run.exchange.is_probe().then(|| self.established + STOOD);
        let doubt = run.ear.unclear_since.filter(|_| !run.ear.decided);
        let doubt = doubt.map(|since| since + DOUBT);
        let next = [idle, stood, doubt].into_iter().flatten().min();
        if run.timer.poll(next, now, cx).is_pending() {
            return Poll::Pending;
        }
        let now = next.unwrap_or(now).max(now);
        if idle.is_some_and(|at| at <= now) {
            return Poll::Ready(Some(End::TimedOut));
        }
        if stood.is_some_and(|at| at <= now) {
            let random = run.worker.random();
            run.exchange.on_probe_success(now, random);
        }
        run.ear.decided |= doubt.is_some_and(|at| at <= now);
        Poll::Ready(None)
    }
}
