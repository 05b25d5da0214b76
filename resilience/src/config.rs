//! What an agent enforces for one service, valid by construction.
//!
//! The control plane compiles policies into `weir-proto` messages; [`service`],
//! [`endpoints`], [`pod`] and [`node`] are the only way from there to these
//! types, on both ends of the wire. A `Duration` here is never zero: "off" is `None`.

use std::net::{IpAddr, SocketAddr};
use std::num::{NonZeroU16, NonZeroU32};
use std::time::Duration;

mod callers;
#[cfg(not(loom))]
mod decode;
mod matching;
mod places;
mod status;

pub use callers::{Caller, Callers, Name};
#[cfg(not(loom))]
pub use decode::{Problem, caller, endpoints, node, pod, service};
pub use matching::{
    GrpcMatch, HeaderMatch, HeaderRule, Match, PathMatch, Pattern, PatternError, RequestView,
};
pub use places::{Endpoint, Endpoints, Node, Pod, Probe};
pub use status::{GrpcCodes, StatusRanges, grpc_name};

/// Whether a section acts, or only decides and counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// The section acts.
    #[default]
    Enforce,
    /// The section decides, counts and moves its states; no request is
    /// changed or delayed by it.
    Shadow,
}

/// A whole number of hundredths, 0 to 100.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Percent(u8);

impl Percent {
    /// `None` above 100.
    pub const fn new(value: u32) -> Option<Percent> {
        if value <= 100 {
            Some(Percent(value as u8))
        } else {
            None
        }
    }

    /// One that stands in the code.
    pub(crate) const fn literal(value: u8) -> Percent {
        assert!(value <= 100);
        Percent(value)
    }

    /// The number, 0 to 100.
    pub const fn get(self) -> u32 {
        self.0 as u32
    }
}

/// Namespace and name of a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceId {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl std::fmt::Display for ServiceId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Everything that is enforced for one service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Which service.
    pub id: ServiceId,
    /// The namespace whose calls alone this is for: only what acts at these
    /// callers' side is in it. `None`: for all callers.
    pub consumer: Option<String>,
    /// The Service's own addresses, by which captured callers name it. None for
    /// a headless Service, whose callers name endpoints.
    pub cluster_addresses: Vec<IpAddr>,
    /// What becomes of connections that were open before they could be
    /// captured. `None`: as the agent was started to do.
    pub existing_connections: Option<ExistingConnections>,
    /// Its ports, each number once.
    pub ports: Vec<Port>,
}

/// What becomes of connections that were open before they could be captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ExistingConnections {
    /// They live on as they were, past Weir.
    Keep,
    /// They are ended, a few at a time, and come back captured.
    Reset,
}

/// One port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// The number that callers use.
    pub number: NonZeroU16,
    /// Its name in the Service, where it has one.
    pub name: Option<String>,
    /// What is spoken on it.
    pub protocol: Protocol,
    /// Where the agent listens for this port's callers, if anywhere.
    pub listen: Option<SocketAddr>,
    /// Only endpoints on the caller's own node are used, and none where there is
    /// none (`internalTrafficPolicy: Local`).
    pub local_only: bool,
    /// A caller's address keeps its endpoint for so long after it was used last
    /// (`sessionAffinity: ClientIP`).
    pub affinity: Option<Duration>,
    /// For requests that no route matches.
    pub policy: Policy,
    /// The first that matches wins.
    pub routes: Vec<Route>,
}

/// The application protocol of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// Nobody has said it; the first bytes tell. What is not HTTP is passed on
    /// as it is.
    Detect,
    /// HTTP/1.1 or HTTP/2 with prior knowledge, told apart by the first bytes.
    Http,
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 with prior knowledge (gRPC is this).
    Http2,
    /// Bytes, passed on as they are.
    Tcp,
}

/// A part of a service's requests with sections of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Unique within the port.
    pub name: String,
    /// Any of these; none matches every request.
    pub matches: Vec<Match>,
    /// Complete: the port's sections are already filled in.
    pub policy: Policy,
    /// The owner's word that repeating a request is harmless.
    pub idempotent: bool,
}

/// The sections in force; an absent one changes nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// No request hangs.
    pub timeouts: Option<Timeouts>,
    /// Failed tries are made again where that is safe.
    pub retries: Option<Retries>,
    /// A failing destination is left alone for a while.
    pub breaker: Option<Breaker>,
    /// Partitions of callers, caller's side; the first that matches counts.
    pub caller_bulkheads: Vec<Bulkhead>,
    /// Partitions of callers, at each endpoint; the first that matches counts.
    pub destination_bulkheads: Vec<Bulkhead>,
    /// An endpoint is not given more than it can do.
    pub shedding: Option<LoadShedding>,
}

/// Limits of time; each is off when `None`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Timeouts {
    /// Over all tries, from the request's head to the end of its response.
    pub request: Option<Duration>,
    /// For one try, from choosing an endpoint to the end of its response.
    pub per_try: Option<Duration>,
    /// To establish a connection.
    pub connect: Option<Duration>,
    /// Without a byte in either direction.
    pub idle: Option<Duration>,
    /// From a stream's head to its end.
    pub max_stream: Option<Duration>,
    /// Without a byte in either direction of a connection that is passed
    /// through as bytes.
    pub tcp_idle: Option<Duration>,
    /// Whether they act.
    pub mode: Mode,
}

/// When a failed try is made again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retries {
    /// Names the budget: equal keys share one.
    pub key: String,
    /// Extra tries, 0 to 10.
    pub attempts: u32,
    /// HTTP statuses that are tried again.
    pub status_codes: StatusRanges,
    /// gRPC statuses that are tried again.
    pub grpc_codes: GrpcCodes,
    /// Whether a connection that cannot be made is tried again.
    pub connection_failure: bool,
    /// Whether a connection that ends before the response is tried again.
    pub reset: bool,
    /// Whether a try cut by `per_try` is tried again.
    pub per_try_timeout: bool,
    /// Methods that may be repeated without further word, upper case.
    pub methods: Vec<String>,
    /// The wait between tries.
    pub backoff: Backoff,
    /// The share of tries that may be extra ones.
    pub budget: Budget,
    /// Whether `Retry-After` sets the wait.
    pub honor_retry_after: bool,
    /// Bytes of request body kept for another try; a larger body is not tried
    /// again.
    pub max_buffered_body: usize,
    /// Whether they act.
    pub mode: Mode,
}

/// How the wait between tries is spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Jitter {
    /// Anything from nothing to the whole wait.
    Full,
    /// Half of the wait, and anything up to the other half.
    Equal,
    /// Between `base` and three times the last wait.
    Decorrelated,
    /// The wait itself.
    None,
}

/// The wait before extra try n: `base` · 2ⁿ⁻¹, at most `max`, spread by
/// `jitter`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Backoff {
    /// Before the first extra try.
    pub base: Duration,
    /// Never longer, and not below `base`.
    pub max: Duration,
    /// How it is spread.
    pub jitter: Jitter,
}

/// GEP-3388: extra tries within `interval` are at most `percent` of the
/// requests in it, and never fewer than `min_count` per `min_interval`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Budget {
    /// Share of extra tries.
    pub percent: Percent,
    /// Over which it is measured.
    pub interval: Duration,
    /// The floor: this many…
    pub min_count: u32,
    /// …in this time.
    pub min_interval: Duration,
}

/// When a destination counts as failing, and how it is tried again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Breaker {
    /// Name of the breaker: equal keys within a service share its state.
    pub key: String,
    /// What the rates are taken over.
    pub window: Window,
    /// Requests that it must hold before a rate is judged.
    pub minimum_requests: NonZeroU32,
    /// Share of failures that opens it.
    pub failure_percent: Option<Percent>,
    /// Failures in a row that open it.
    pub consecutive_failures: Option<NonZeroU32>,
    /// Slow requests that open it.
    pub slow: Option<SlowRequests>,
    /// What counts as a failure.
    pub failure_on: FailureOn,
    /// How long it stays open.
    pub open: OpenTime,
    /// How it comes back.
    pub half_open: HalfOpen,
    /// A person's word.
    pub forced: Option<Forced>,
    /// A new value resets it once; empty = none.
    pub reset: String,
    /// Whether it acts.
    pub mode: Mode,
}

/// What the rates of a breaker are taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Window {
    /// The last `Duration`, at every moment.
    Rolling(Duration),
    /// Intervals of `Duration`; counts start again with each.
    Fixed(Duration),
    /// The last so many requests. Shared between workers, hence slower.
    Count(NonZeroU32),
}

/// Requests that take longer than `threshold` are slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SlowRequests {
    /// From when on a request is slow.
    pub threshold: Duration,
    /// The share that opens the breaker.
    pub percent: Percent,
}

/// What a breaker counts as a failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailureOn {
    /// HTTP statuses.
    pub status_codes: StatusRanges,
    /// gRPC statuses.
    pub grpc_codes: GrpcCodes,
    /// Tries cut by a timeout.
    pub timeouts: bool,
    /// Connections that cannot be made or that end too soon.
    pub connection_failure: bool,
}

/// How long a breaker stays open: `duration` · 2ⁿ after n failed recoveries,
/// shortened or lengthened by up to `jitter`, at most `max`.
///
/// A recovery has failed when a probe failed, when it took too long, or when
/// the breaker opened again before its ramp was over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OpenTime {
    /// The first time.
    pub duration: Duration,
    /// Never longer.
    pub max: Duration,
    /// Spread, so that nodes do not return together.
    pub jitter: Percent,
    /// Whether `Retry-After` of a failure is a lower bound (up to `max`).
    pub honor_retry_after: bool,
}

/// How a breaker comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HalfOpen {
    /// Requests let through at once, and successes in a row that close it.
    pub probes: NonZeroU16,
    /// A recovery that takes longer has failed. The time runs from a probe on
    /// until a success leaves no probe under way: it is the destination that is
    /// timed, not how often somebody calls it.
    pub timeout: Duration,
    /// After closing, the admitted share grows to all in this time.
    pub ramp_up: Option<Duration>,
}

/// A person's word over a breaker's own judgement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forced {
    /// True: every request is refused. False: none is.
    pub open: bool,
    /// Why.
    pub reason: String,
    /// Milliseconds since the Unix epoch; past it, the breaker judges again.
    pub expires_at_unix_ms: i64,
}

/// One partition of callers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bulkhead {
    /// Equal keys share one partition.
    pub key: String,
    /// Its name in the policy.
    pub name: String,
    /// Requests that carry all of these are in it; none: every request.
    pub headers: Vec<HeaderMatch>,
    /// Those of these callers are in it.
    pub from: Callers,
    /// Requests at once.
    pub max_concurrent: NonZeroU32,
    /// Requests that may wait.
    pub max_queue: u32,
    /// How long they may wait; `None` with a queue is not possible.
    pub max_wait: Option<Duration>,
    /// Whether it acts.
    pub mode: Mode,
}

/// Limits per endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadShedding {
    /// Equal keys share the limits' state.
    pub key: String,
    /// Requests at one endpoint at once.
    pub max_concurrency: Option<NonZeroU32>,
    /// By use of CPU.
    pub cpu: Option<CpuShedding>,
    /// By pressure: the share of time, 1 to 100 %, in which some task of the pod
    /// waits for CPU or memory, from which on requests are refused.
    pub pressure: Option<Percent>,
    /// Whether it acts.
    pub mode: Mode,
}

/// Refusal by use of CPU: the share refused rises evenly from none at
/// `threshold` to `max_drop` at 100 %.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CpuShedding {
    /// Whose use counts.
    pub source: CpuSource,
    /// 1 to 99 %.
    pub threshold: Percent,
    /// 1 to 100 %.
    pub max_drop: Percent,
}

/// Whose use of CPU counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CpuSource {
    /// The pod's, of its own limit; where it has none, of the node's CPUs.
    Pod,
    /// The node's, by whomever.
    Node,
}
