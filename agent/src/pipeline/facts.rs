//! What the pipeline is told, and what it says.

use std::time::Duration;

use weir_resilience::retry::Pushback;

use crate::answer::{self, Answer};

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
