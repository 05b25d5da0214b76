//! What the pipeline is told, and what it says.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use weir_resilience::config::Caller;
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
    pub(crate) side: Side,
    pub(crate) to: To,
}

impl Place {
    /// Of a snapshot with one service and one port.
    pub(crate) fn only() -> Place {
        Place {
            service: 0,
            port: 0,
            consumer: None,
            side: Side::Both,
            to: To::Any,
        }
    }
}

/// Which part of a policy this agent has to do for a request. Captured requests
/// meet an agent on either side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// What acts where the caller is.
    Caller,
    /// What acts where the destination is.
    Destination,
    /// The agent is alone: all of it.
    Both,
}

/// Where a request's tries go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum To {
    /// To the endpoint that is chosen.
    Any,
    /// To one that is chosen among those of a family: who calls by IPv6 is
    /// answered by IPv6.
    Family { ipv6: bool },
    /// To this endpoint of the port alone, which the caller has chosen.
    Endpoint(usize),
    /// First to this endpoint, as the caller's last time, then to others of its
    /// family.
    Rather(usize),
    /// To the address that the caller used: what this agent knows of endpoints
    /// may be stale, and the node knows better.
    Service(SocketAddr),
}

/// What the pipeline needs to know of a request besides its head.
#[derive(Clone, Debug)]
pub(crate) struct RequestFacts {
    pub(crate) grpc: bool,
    /// A connection that is passed through as bytes. It has no head, so no
    /// route is for it.
    pub(crate) tcp: bool,
    /// Who calls, where a section needs it and somebody knows.
    pub(crate) caller: Option<Arc<Caller>>,
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
    /// Another agent of Weir refused the request, at the destination's side.
    pub(crate) refused: bool,
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
