use kube::core::Rule;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::duration::within;
use super::text::Method;
use super::{ByteSize, Duration, GrpcCode, StatusCodes};

/// A failed try is made again where that is safe and can help. Acts at the
/// caller's node.
///
/// Methods that are not in methods are tried again only when nothing was sent,
/// or when the route is idempotent, or when idempotency allows it; gRPC calls
/// only when nothing was sent or the route is idempotent. No try is made that
/// cannot end before the deadline, none while the circuit breaker is open, and
/// never two at the same endpoint while another is usable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Retries {
    /// Tries after the first. 0 to 10; 0 for none.
    #[schemars(range(max = 10))]
    pub attempts: u32,
    /// What counts as a failed try.
    pub retry_on: RetryOn,
    /// Methods that may be repeated without further word, in upper case. Up to
    /// 16.
    #[schemars(with = "Vec<Method>", length(max = 16), extend("x-kubernetes-list-type" = "set"))]
    pub methods: Vec<String>,
    /// The wait between tries.
    pub backoff: Backoff,
    /// What share of the requests may be repeated (GEP-3388). Tries that wait in
    /// backoff, and hedges, count.
    pub budget: RetryBudget,
    /// Whether Retry-After and grpc-retry-pushback-ms set the wait. One beyond
    /// the deadline fails the request at once, a negative pushback ends retrying.
    pub honor_retry_after: bool,
    /// Bytes of a request's body that are kept for another try. A larger body
    /// streams through, is not tried again, and is counted. Up to 16Mi.
    pub max_buffered_body: ByteSize,
    /// Suppress: an answer that has already failed after the retries of a service
    /// behind this one is not tried again, so that retries do not multiply from
    /// hop to hop. Allow: it is.
    pub across_hops: AcrossHops,
}

impl Default for Retries {
    fn default() -> Retries {
        Retries {
            attempts: 2,
            retry_on: RetryOn::default(),
            methods: ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"]
                .map(str::to_owned)
                .to_vec(),
            backoff: Backoff::default(),
            budget: RetryBudget::default(),
            honor_retry_after: true,
            max_buffered_body: ByteSize::DEFAULT,
            across_hops: AcrossHops::Suppress,
        }
    }
}

/// What counts as a failed try.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RetryOn {
    /// HTTP status codes, 100 to 599, and ranges of them: [429, 500-599]. Up to
    /// 16.
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "atomic"))]
    pub status_codes: Vec<StatusCodes>,
    /// gRPC statuses. They count, also in trailers, until a message has reached
    /// the caller.
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "set"))]
    pub grpc_codes: Vec<GrpcCode>,
    /// A connection that cannot be established.
    pub connection_failure: bool,
    /// A connection or stream that ends before the response has begun.
    pub reset: bool,
    /// A try that timeouts.perTry cut short.
    pub per_try_timeout: bool,
}

impl Default for RetryOn {
    fn default() -> RetryOn {
        RetryOn {
            status_codes: StatusCodes::retriable(),
            grpc_codes: vec![GrpcCode::Unavailable, GrpcCode::ResourceExhausted],
            connection_failure: true,
            reset: true,
            per_try_timeout: true,
        }
    }
}

/// The wait between tries: base before the first further try, doubled for each
/// one after it, never longer than max, and spread by jitter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [
    Rule::new("duration(self.base) <= duration(self.max)")
        .message("base must not be longer than max (1s unless given): shorten base or lengthen max")
        .field_path(".base"),
]))]
pub struct Backoff {
    /// The wait before the first further try. 1ms to 1m.
    #[schemars(extend("x-kubernetes-validations" = within("1ms", "1m")))]
    pub base: Duration,
    /// The longest wait. 1ms to 5m.
    #[schemars(extend("x-kubernetes-validations" = within("1ms", "5m")))]
    pub max: Duration,
    /// Full: anything from nothing to the whole wait. Equal: half of the wait and
    /// anything up to the other half. Decorrelated: between base and three times
    /// the wait before. None: the wait itself.
    pub jitter: Jitter,
}

impl Default for Backoff {
    fn default() -> Backoff {
        Backoff {
            base: Duration::millis(25),
            max: Duration::secs(1),
            jitter: Jitter::Full,
        }
    }
}

/// How a wait is spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs, reason = "told once, at the field")]
pub enum Jitter {
    Full,
    Equal,
    Decorrelated,
    None,
}

/// What share of the requests may be repeated (GEP-3388).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RetryBudget {
    /// Further tries within interval are at most this share of the requests in
    /// it. Percent, 0 to 100.
    #[schemars(range(max = 100))]
    pub percent: u32,
    /// How long a request counts. 1s to 10m.
    #[schemars(extend("x-kubernetes-validations" = within("1s", "10m")))]
    pub interval: Duration,
    /// Further tries that are always allowed, whatever the share: for the
    /// destination as a whole, divided between the nodes that send to it.
    pub min_retry_rate: RetryRate,
}

impl Default for RetryBudget {
    fn default() -> RetryBudget {
        RetryBudget {
            percent: 20,
            interval: Duration::secs(10),
            min_retry_rate: RetryRate::default(),
        }
    }
}

/// So many tries in such a time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RetryRate {
    /// How many. 0 to 100000.
    #[schemars(range(max = 100_000))]
    pub count: u32,
    /// In which time. 1s to 10m.
    #[schemars(extend("x-kubernetes-validations" = within("1s", "10m")))]
    pub interval: Duration,
}

impl Default for RetryRate {
    fn default() -> RetryRate {
        RetryRate {
            count: 10,
            interval: Duration::secs(1),
        }
    }
}

/// Whether a failure is tried again at more than one hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs, reason = "told once, at the field")]
pub enum AcrossHops {
    Suppress,
    Allow,
}
