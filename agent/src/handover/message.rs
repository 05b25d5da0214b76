//! What breakers know, for other versions of the agent: a message a breaker, each
//! after its length. A reader ignores the fields that it does not know, and the
//! breakers whose state or reason it does not; fields are only ever added.

use prost::Message as _;
use weir_proto::v1alpha1 as proto;
use weir_resilience::breaker::{Memory, Phase};
use weir_resilience::config::ServiceId;

use crate::registry::{MAX_REMEMBERED, Remembered};
use crate::report::{reason_of, wire_reason};

/// All breakers together.
pub(super) const MAX_BYTES: usize = 1024 * 1024;
/// Of a name, a key, a message: more than any that an agent makes.
const MAX_TEXT: usize = 4096;

#[derive(Clone, PartialEq, prost::Message)]
struct Breaker {
    #[prost(string, tag = "1")]
    namespace: String,
    #[prost(string, tag = "2")]
    service: String,
    #[prost(string, tag = "3")]
    key: String,
    /// Closed: the admitted share grows.
    #[prost(enumeration = "proto::BreakerState", tag = "4")]
    state: i32,
    #[prost(int64, tag = "5")]
    since_unix_ms: i64,
    /// Closed: since when the share grows.
    #[prost(int64, tag = "6")]
    from_unix_ms: i64,
    /// Open: when it lets probes through. Half-open: when it was told of. Closed:
    /// when the share is whole.
    #[prost(int64, tag = "7")]
    until_unix_ms: i64,
    #[prost(uint32, tag = "8")]
    failed_recoveries: u32,
    #[prost(enumeration = "proto::BreakerReason", tag = "9")]
    reason: i32,
    #[prost(string, tag = "10")]
    message: String,
    #[prost(string, tag = "11")]
    observed_reset: String,
}

/// As many as there is room for.
pub(super) fn encode(remembered: &[Remembered]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for one in remembered.iter().take(MAX_REMEMBERED) {
        let one = to_wire(one).encode_length_delimited_to_vec();
        if bytes.len() + one.len() > MAX_BYTES {
            break;
        }
        bytes.extend(one);
    }
    bytes
}

/// What can be read, up to the first that is broken.
pub(super) fn decode(mut bytes: &[u8]) -> Vec<Remembered> {
    let mut all = Vec::new();
    for _ in 0..MAX_REMEMBERED {
        if bytes.is_empty() {
            break;
        }
        match Breaker::decode_length_delimited(&mut bytes) {
            Ok(one) => all.extend(from_wire(one)),
            Err(error) => {
                tracing::warn!(%error, "what another agent knows cannot be read to its end");
                break;
            }
        }
    }
    all
}

fn to_wire(remembered: &Remembered) -> Breaker {
    let Remembered {
        service,
        key,
        memory,
    } = remembered;
    let (state, from_unix_ms, until_unix_ms) = match memory.phase {
        Phase::Open { until_unix_ms } => (proto::BreakerState::Open, 0, until_unix_ms),
        Phase::HalfOpen { at_unix_ms } => (proto::BreakerState::HalfOpen, 0, at_unix_ms),
        Phase::Growing {
            from_unix_ms,
            until_unix_ms,
        } => (proto::BreakerState::Closed, from_unix_ms, until_unix_ms),
    };
    Breaker {
        namespace: service.namespace.clone(),
        service: service.name.clone(),
        key: key.clone(),
        state: state.into(),
        since_unix_ms: memory.since_unix_ms,
        from_unix_ms,
        until_unix_ms,
        failed_recoveries: memory.failed_recoveries,
        reason: wire_reason(memory.reason).into(),
        message: memory.message.clone(),
        observed_reset: memory.observed_reset.clone(),
    }
}

/// `None` for what an agent of this version does not know or never says.
fn from_wire(breaker: Breaker) -> Option<Remembered> {
    let texts = [
        &breaker.namespace,
        &breaker.service,
        &breaker.key,
        &breaker.message,
        &breaker.observed_reset,
    ];
    if texts.iter().any(|text| text.len() > MAX_TEXT) {
        return None;
    }
    let phase = match proto::BreakerState::try_from(breaker.state).ok()? {
        proto::BreakerState::Open => Phase::Open {
            until_unix_ms: breaker.until_unix_ms,
        },
        proto::BreakerState::HalfOpen => Phase::HalfOpen {
            at_unix_ms: breaker.until_unix_ms,
        },
        proto::BreakerState::Closed => Phase::Growing {
            from_unix_ms: breaker.from_unix_ms,
            until_unix_ms: breaker.until_unix_ms,
        },
        _ => return None,
    };
    let reason = proto::BreakerReason::try_from(breaker.reason).ok()?;
    Some(Remembered {
        service: ServiceId {
            namespace: breaker.namespace,
            name: breaker.service,
        },
        key: breaker.key,
        memory: Memory {
            phase,
            since_unix_ms: breaker.since_unix_ms,
            failed_recoveries: breaker.failed_recoveries,
            reason: reason_of(reason)?,
            message: breaker.message,
            observed_reset: breaker.observed_reset,
        },
    })
}
