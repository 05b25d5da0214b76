//! What goes into a breaker and what comes out of it.

use std::fmt;
use std::time::Duration;

use crate::Time;
use crate::config::grpc_name;

/// Whether a breaker lets requests through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Requests pass and are judged.
    Closed,
    /// Requests are refused until its time is over.
    Open,
    /// A few requests pass, to see whether the destination is back.
    HalfOpen,
    /// A person keeps it open.
    ForcedOpen,
    /// A person keeps it closed.
    ForcedClosed,
}

/// How an admitted request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The destination answered well.
    Success {
        /// From admission to the end of the response.
        took: Duration,
    },
    /// It did not. Where the breaker's `failureOn` does not list the cause, an
    /// answer counts as a success, and one that never came counts not at all,
    /// unless it was slow.
    Failure {
        /// How it failed.
        cause: Cause,
        /// From admission to the failure.
        took: Duration,
        /// `Retry-After`, where the answer had one.
        retry_after: Option<Duration>,
    },
}

/// How a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// With an HTTP status.
    Status(u16),
    /// With a gRPC status.
    Grpc(u8),
    /// It took too long.
    Timeout,
    /// No connection could be made.
    Connect,
    /// The connection or stream ended before the response did.
    Reset,
}

impl Cause {
    /// Whether the destination is up and asks for less: it then counts in the
    /// rate and fails a probe, but is no failure in a row.
    pub const fn is_soft(self) -> bool {
        const TOO_MANY_REQUESTS: u16 = 429;
        const RESOURCE_EXHAUSTED: u8 = 8;
        matches!(
            self,
            Cause::Status(TOO_MANY_REQUESTS) | Cause::Grpc(RESOURCE_EXHAUSTED)
        )
    }
}

impl Cause {
    /// Whether the destination answered at all.
    pub(super) fn is_answer(self) -> bool {
        match self {
            Cause::Status(_) | Cause::Grpc(_) => true,
            Cause::Timeout | Cause::Connect | Cause::Reset => false,
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cause::Status(status) => write!(f, "{status}"),
            Cause::Grpc(code) => match grpc_name(*code) {
                Some(name) => f.write_str(name),
                None => write!(f, "gRPC status {code}"),
            },
            Cause::Timeout => f.write_str("timeout"),
            Cause::Connect => f.write_str("connection failure"),
            Cause::Reset => f.write_str("reset"),
        }
    }
}

/// Why a breaker is in its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Too large a share of requests failed.
    FailureRate,
    /// Too large a share of requests was slow.
    SlowRequests,
    /// Too many requests failed in a row.
    ConsecutiveFailures,
    /// A probe failed.
    ProbeFailed,
    /// The probes did not end in time.
    ProbeTimeout,
    /// It was open for its time.
    OpenElapsed,
    /// The probes succeeded.
    Recovered,
    /// A person said so.
    Override,
    /// A person's word ended.
    OverrideEnded,
    /// A person reset it.
    Reset,
}

/// A request that a breaker did not let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The state that refused it: `Closed` while the admitted share still
    /// grows after a recovery.
    pub state: State,
    /// When trying again may help, where that is known.
    pub retry_after: Option<Duration>,
}

/// What is known of a breaker at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Its state.
    pub state: State,
    /// Why; `None` before its first transition.
    pub reason: Option<Reason>,
    /// The reason with its figures, for people.
    pub message: String,
    /// When it came into this state.
    pub since: Time,
    /// Counts its transitions.
    pub epoch: u64,
    /// Requests in the window.
    pub window_requests: u64,
    /// Share of them that failed, 0 to 100; unless `Closed`, the share that
    /// there was when it opened.
    pub failure_percent: u32,
    /// Requests per second over the window, in thousandths.
    pub request_rate_milli: u64,
    /// Requests that it refused since it was made.
    pub rejected_total: u64,
    /// The last `reset` that was carried out.
    pub observed_reset: String,
}

/// A breaker's step from one state to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transition {
    /// The state that it left.
    pub from: State,
    /// The state that it came into.
    pub to: State,
    /// Why.
    pub reason: Reason,
    /// The reason with its figures, for people.
    pub message: String,
    /// When.
    pub at: Time,
    /// The epoch that it began.
    pub epoch: u64,
}
