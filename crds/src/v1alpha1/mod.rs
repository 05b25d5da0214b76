//! Version `v1alpha1` of Weir's kinds, one file a concept.
//!
//! The doc comments of fields become the descriptions of the schema, which are
//! the reference manual (`kubectl explain`). Rules that join several fields are
//! CEL rules at the type, and each says what to write instead.

mod breaker_object;
mod bulkheads;
mod byte_size;
mod callers;
mod circuit_breaker;
mod condition;
mod connections;
mod deadline;
mod duration;
mod fallback;
mod faults;
mod grpc_code;
mod headers;
mod hedging;
mod idempotency;
mod load_balancing;
mod load_shedding;
mod outlier_detection;
mod policy;
mod policy_status;
mod rate_limit;
mod retries;
mod route;
mod sections;
mod status_code;
mod target;
mod text;
mod timeouts;
mod timestamp;

pub use breaker_object::{
    BreakerReason, BreakerState, BreakerSummary, CircuitBreakerObject, CircuitBreakerSpec,
    CircuitBreakerStatus, NodeCounts, OpenNode, Override, OverrideState,
};
pub use bulkheads::{Bulkhead, BulkheadSide};
pub use byte_size::{ByteSize, InvalidByteSize};
pub use callers::Callers;
pub use circuit_breaker::{
    CircuitBreaker, FailureOn, HalfOpen, OpenTime, Probe, Sharing, SharingScope, SlowRequests,
    Window, WindowType,
};
pub use condition::{Condition, ConditionStatus, ConditionType, Reason};
pub use connections::{Connections, HalfClose};
pub use deadline::Deadline;
pub use duration::{Duration, InvalidDuration};
pub use fallback::{Fallback, FallbackService, ResponseHeader, StaleIfError, StaticResponse};
pub use faults::{Abort, Fault};
pub use grpc_code::GrpcCode;
pub use headers::{HeaderMatch, HeaderMatchType};
pub use hedging::Hedging;
pub use idempotency::{HonoredBy, Idempotency};
pub use load_balancing::{BalancingPolicy, ConsistentHash, LoadBalancing};
pub use load_shedding::{
    AdaptiveConcurrency, Concurrency, ConcurrencyAlgorithm, CpuShedding, CpuSource, Fairness,
    FairnessKey, LoadShedding, PressureShedding, Priority, SheddingQueue, Trust,
};
pub use outlier_detection::OutlierDetection;
pub use policy::{Mode, ResiliencePolicy, ResiliencePolicySpec, Strategy};
pub use policy_status::{
    AdaptiveTimeoutStatus, AgentCounts, BreakerCounts, EffectiveSection, PolicySummary, Rejection,
    ResiliencePolicyStatus, TargetStatus,
};
pub use rate_limit::{RateLimit, RateLimitKey};
pub use retries::{AcrossHops, Backoff, Jitter, Retries, RetryBudget, RetryOn, RetryRate};
pub use route::{GrpcMatch, PathMatch, PathMatchType, Route, RouteMatch};
pub use sections::{Section, Sections};
pub use status_code::{InvalidStatusCodes, StatusCodes};
pub use target::{TargetGroup, TargetKind, TargetRef};
pub(crate) use text::explain_pattern;
pub use timeouts::{AdaptiveTimeout, Timeouts};
pub use timestamp::Timestamp;
