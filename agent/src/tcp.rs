//! Connections that are passed through as bytes, driven by the pipeline: one
//! connection is one request.
//!
//! An endpoint is found and connected to as for HTTP, with another one after a
//! failure; then bytes go both ways, and the end of what one side says goes
//! to the other. What Weir refuses, and what is cut, is reset: an end in good
//! order could be taken for the whole of what was sent.
//!
//! A connection of which nobody knows what it speaks comes here when its caller
//! has been silent for a moment. It is connected, and whoever speaks first
//! says what it is: an endpoint that does has a protocol of its own, and a caller
//! that turns out to speak HTTP is given back to be served as such.

mod flow;
mod relay;

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;
use weir_resilience::Time;
use weir_resilience::retry::Sent;

use self::flow::Flow;
use crate::answer::Answer;
use crate::connection::{Caller, Destination};
use crate::detect::{Spoken, spoken};
use crate::dial::dial;
use crate::pipeline::{End, Exchange, Limit, NoHead, RequestFacts, TryFailure};
use crate::timer::Timer;
use crate::wait::{Interrupt, poll_limits};
use crate::worker::Worker;

/// How long a caller may leave it open what it speaks: with the beginning of a
/// line that could be HTTP, and where no endpoint can be had. Then it is
/// taken for something else, whose endpoint would speak first.
const DOUBT: Duration = Duration::from_secs(1);

/// A breaker's probe has succeeded once its endpoint has said something, or has
/// kept the connection for this long: there are protocols in which nobody
/// speaks unless there is work.
const STOOD: Duration = Duration::from_secs(1);

/// How a connection ended.
enum Outcome {
    /// Both sides were done.
    Well,
    /// It is to be reset.
    Abrupt,
    /// The caller speaks HTTP after all.
    Http(Spoken),
}

/// What ends the way to an endpoint.
enum Stop {
    Http(Spoken),
    /// The caller reset it.
    Gone,
    Refused(Answer),
}

/// Listens to a caller until it is known what it speaks.
struct Ear<'a> {
    io: &'a TcpStream,
    /// What the caller says, on its way to the endpoint.
    up: Flow,
    /// It is known that it is not HTTP.
    decided: bool,
    /// When something came that leaves it open.
    unclear_since: Option<Time>,
}

/// One connection on its way.
struct Run<'a> {
    worker: Rc<Worker>,
    destination: &'a Destination,
    ear: Ear<'a>,
    timer: Timer,
    exchange: Exchange,
}

/// Serves one connection until it ends. Where it was not `decided` that it is
/// to be passed through, the caller may come back with the version of HTTP that
/// it speaks.
pub(crate) async fn serve(caller: Caller, timer: Timer, decided: bool) -> Option<(Caller, Spoken)> {
    let Caller {
        worker,
        id,
        io,
        buffer,
        destination,
    } = caller;
    let mut closing = Closing::of(&io);
    let ear = Ear {
        io: &io,
        up: Flow {
            buffer,
            ..Flow::default()
        },
        decided,
        unclear_since: None,
    };
    let (outcome, buffer) = carry_out(&worker, &destination, ear, timer).await;
    if !matches!(outcome, Outcome::Abrupt) {
        closing.well();
    }
    drop(closing);
    match outcome {
        Outcome::Http(spoken) => {
            let caller = Caller {
                worker,
                id,
                io,
                buffer,
                destination,
            };
            Some((caller, spoken))
        }
        Outcome::Well | Outcome::Abrupt => {
            worker.spare.borrow_mut().give(buffer);
            None
        }
    }
}

/// Returns what was read of the caller and not passed on, too.
async fn carry_out<'a>(
    worker: &Rc<Worker>,
    destination: &'a Destination,
    mut ear: Ear<'a>,
    mut timer: Timer,
) -> (Outcome, crate::buffer::Buffer) {
    let stop = match admit(worker, destination).await {
        Ok(exchange) => {
            let mut run = Run {
                worker: worker.clone(),
                destination,
                ear,
                timer,
                exchange,
            };
            let outcome = match run.establish().await {
                Ok(upstream) => Ok(relay::relay(&mut run, upstream).await),
                Err(stop) => Err(stop),
            };
            match &outcome {
                Err(Stop::Refused(answer)) => {
                    run.exchange.on_answer(answer, run.worker.clock.now())
                }
                Err(Stop::Gone) => run.exchange.on_closed(End::CallerGone, run.now(), 0),
                Err(Stop::Http(_)) | Ok(_) => {}
            }
            (ear, timer) = (run.ear, run.timer);
            match outcome {
                Ok(outcome) => return (outcome, ear.up.buffer),
                Err(stop) => stop,
            }
        }
        Err(refused) => Stop::Refused(refused),
    };
    let outcome = match stop {
        Stop::Http(spoken) => Outcome::Http(spoken),
        Stop::Gone => Outcome::Abrupt,
        // A caller that speaks HTTP is told why in HTTP.
        Stop::Refused(_) => match ear.last_chance(worker, &mut timer).await {
            Some(spoken) => Outcome::Http(spoken),
            None => Outcome::Abrupt,
        },
    };
    (outcome, ear.up.buffer)
}

async fn admit(worker: &Rc<Worker>, destination: &Destination) -> Result<Exchange, Answer> {
    let (snapshot, place) = destination
        .resolve(worker, None)
        .inspect_err(|_| worker.shared.unrouted())?;
    let caller = destination.caller(worker, &snapshot, place).await;
    let facts = RequestFacts {
        grpc: false,
        tcp: true,
        caller,
    };
    // None that a policy could list: what was sent is never sent again.
    let method = http::Method::CONNECT;
    let now = worker.clock.now();
    Exchange::admit(&snapshot, place, worker.index, method, &NoHead, facts, now)
}

impl Ear<'_> {
    /// Ready when the caller speaks HTTP or has gone. Decides by the way
    /// that it does not.
    fn poll_heard(&mut self, worker: &Worker, now: Time, cx: &mut Context<'_>) -> Poll<Stop> {
        while !self.decided {
            match spoken(self.up.buffer.bytes()) {
                Some(Spoken::Other) => self.decided = true,
                Some(http) => return Poll::Ready(Stop::Http(http)),
                None if self.up.ended || !self.up.has_room() => self.decided = true,
                None => {
                    if !self.up.buffer.is_empty() {
                        self.unclear_since.get_or_insert(now);
                    }
                    match self.up.poll_read(self.io, &worker.spare, cx) {
                        Poll::Ready(Ok(_)) => {}
                        Poll::Ready(Err(_)) => return Poll::Ready(Stop::Gone),
                        Poll::Pending => break,
                    }
                }
            }
        }
        Poll::Pending
    }

    /// Waits for a caller that was refused to say that it speaks HTTP.
    async fn last_chance(&mut self, worker: &Worker, timer: &mut Timer) -> Option<Spoken> {
        let until = worker.clock.now() + DOUBT;
        poll_fn(|cx| {
            let now = worker.clock.now();
            match self.poll_heard(worker, now, cx) {
                Poll::Ready(Stop::Http(spoken)) => return Poll::Ready(Some(spoken)),
                Poll::Ready(_) => return Poll::Ready(None),
                Poll::Pending if self.decided => return Poll::Ready(None),
                Poll::Pending => {}
            }
            timer.poll(Some(until), now, cx).map(|()| None)
        })
        .await
    }
}

impl Run<'_> {
    fn now(&self) -> Time {
        self.worker.clock.now()
    }

    /// A connection to an endpoint.
    async fn establish(&mut self) -> Result<TcpStream, Stop> {
        self.wait_for_place().await?;
        let worker = self.worker.clone();
        loop {
            let started = self.now();
            self.exchange
                .next_try(started, worker.random())
                .map_err(Stop::Refused)?;
            self.wait_for_place().await?;
            let Some(endpoint) = self.exchange.address() else {
                // `next_try` has chosen one.
                return Err(Stop::Gone);
            };
            let timeout = self.exchange.connect_timeout();
            let until = timeout.map(|t| self.now() + t);
            let destination = self.destination;
            destination.chosen(&worker, &self.exchange, endpoint);
            let dialling = dial(&worker, &destination.origin, endpoint);
            let dialled = self.guarded(dialling, until).await?;
            let now = self.now();
            let failure = match dialled {
                Ok(Ok(io)) => {
                    self.exchange.on_connection(false);
                    self.exchange.on_established(now);
                    return Ok(io);
                }
                Ok(Err(error)) => TryFailure::of_connect(&error),
                Err(Interrupt::Passed) => TryFailure::Connect(Answer::ConnectTimeout {
                    after: timeout.unwrap_or_default(),
                }),
                Err(Interrupt::Expired(Limit::Try | Limit::Stream)) => TryFailure::Timeout,
                Err(interrupt) => return Err(self.interrupted(&interrupt)),
            };
            let again =
                self.exchange
                    .on_failure(failure, Sent::Nothing, true, now, worker.random());
            let after = again.map_err(Stop::Refused)?;
            let wait = self.guarded(std::future::pending::<()>(), Some(now + after));
            match wait.await? {
                Ok(()) | Err(Interrupt::Passed) => {}
                Err(interrupt) => return Err(self.interrupted(&interrupt)),
            }
        }
    }

    /// What a wait's end means that is not the try's.
    fn interrupted(&mut self, interrupt: &Interrupt) -> Stop {
        match interrupt {
            Interrupt::Gone => Stop::Gone,
            Interrupt::Expired(_) | Interrupt::Passed => {
                let (now, random) = (self.now(), self.worker.random());
                Stop::Refused(self.exchange.on_request_timeout(now, random))
            }
        }
    }

    /// Waits for a bulkhead's place.
    async fn wait_for_place(&mut self) -> Result<(), Stop> {
        let Run {
            worker,
            ear,
            timer,
            exchange,
            ..
        } = self;
        let mut failed = pin!(ear.io.ready(Interest::ERROR));
        let placed = poll_fn(|cx| {
            let now = worker.clock.now();
            if let Poll::Ready(placed) = exchange.poll_place(now, cx) {
                return Poll::Ready(Ok(Ok(placed)));
            }
            if failed.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(Stop::Gone));
            }
            if let Poll::Ready(stop) = ear.poll_heard(worker, now, cx) {
                return Poll::Ready(Err(stop));
            }
            match poll_limits(timer, exchange, exchange.place_deadline(), now, cx) {
                // The queue itself says that the wait is over.
                Poll::Ready(Interrupt::Passed) => exchange.poll_place(now, cx).map(|p| Ok(Ok(p))),
                interrupt => interrupt.map(|interrupt| Ok(Err(interrupt))),
            }
        });
        match placed.await? {
            Ok(placed) => placed.map_err(Stop::Refused),
            Err(interrupt) => Err(self.interrupted(&interrupt)),
        }
    }

    /// Runs `work` while the caller is there, does not turn out to speak HTTP,
    /// and no limit has passed.
    async fn guarded<F: Future>(
        &mut self,
        work: F,
        until: Option<Time>,
    ) -> Result<Result<F::Output, Interrupt>, Stop> {
        let Run {
            worker,
            ear,
            timer,
            exchange,
            ..
        } = self;
        let mut work = pin!(work);
        let mut failed = pin!(ear.io.ready(Interest::ERROR));
        poll_fn(|cx| {
            if let Poll::Ready(done) = work.as_mut().poll(cx) {
                return Poll::Ready(Ok(Ok(done)));
            }
            if failed.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(Stop::Gone));
            }
            let now = worker.clock.now();
            if let Poll::Ready(stop) = ear.poll_heard(worker, now, cx) {
                return Poll::Ready(Err(stop));
            }
            poll_limits(timer, exchange, until, now, cx).map(|interrupt| Ok(Err(interrupt)))
        })
        .await
    }
}

/// Closes a socket by a reset unless it came to a good end, also when its task
/// is dropped.
struct Closing<'a> {
    io: &'a TcpStream,
    well: bool,
}

impl Closing<'_> {
    fn of(io: &TcpStream) -> Closing<'_> {
        Closing { io, well: false }
    }

    fn well(&mut self) {
        self.well = true;
    }
}

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        if !self.well {
            let _ = SockRef::from(self.io).set_linger(Some(Duration::ZERO));
        }
    }
}
