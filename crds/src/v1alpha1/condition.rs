use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Timestamp;

/// One aspect of an object's state, as in metav1.Condition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// Which aspect.
    #[schemars(length(max = 64))]
    pub r#type: String,
    /// True, False or Unknown.
    pub status: ConditionStatus,
    /// The metadata.generation that this is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub observed_generation: Option<i64>,
    /// When status last changed.
    pub last_transition_time: Timestamp,
    /// Why, in one word.
    #[schemars(length(min = 1, max = 64))]
    pub reason: String,
    /// For people: what is the matter, and what to do.
    #[schemars(length(max = 1024))]
    pub message: String,
}

/// Whether a condition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs, reason = "they say it themselves")]
pub enum ConditionStatus {
    True,
    False,
    Unknown,
}

macro_rules! words {
    ($(#[doc = $doc:literal])* $name:ident { $($(#[doc = $variant_doc:literal])* $variant:ident,)* }) => {
        $(#[doc = $doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {
            $($(#[doc = $variant_doc])* $variant,)*
        }

        impl $name {
            /// As it is written in a condition.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $($name::$variant => stringify!($variant),)*
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

words! {
    /// The conditions that Weir writes.
    ConditionType {
        /// The policy, or the CircuitBreaker, is valid and in use.
        Accepted,
        /// What it refers to exists.
        ResolvedRefs,
        /// Every node in scope enforces this generation.
        Programmed,
        /// All pods and connections in scope are protected.
        Covered,
        /// Every section can act.
        Effective,
        /// The override of a CircuitBreaker is in force.
        OverrideAccepted,
    }
}

words! {
    /// The reasons that Weir's conditions give. No others are written.
    Reason {
        /// Accepted: True.
        Accepted,
        /// Accepted: the policy cannot be used as it is.
        Invalid,
        /// Accepted: other policies win all of its sections.
        Conflicted,
        /// Accepted, of a target: other policies win some of its sections.
        PartiallyConflicted,
        /// Accepted, of a target: a kind of target that is not served yet.
        UnsupportedTarget,
        /// Accepted, of a CircuitBreaker: no policy asks for it.
        NoSuchBreaker,
        /// ResolvedRefs: True.
        ResolvedRefs,
        /// ResolvedRefs: there is no such Service, namespace or port.
        TargetNotFound,
        /// ResolvedRefs: a port is not TCP, which alone is served.
        UnsupportedProtocol,
        /// ResolvedRefs: an address that the Service asks for cannot be listened on.
        InvalidListener,
        /// ResolvedRefs: a target that this policy may not have, such as Mesh
        /// outside Weir's own namespace.
        RefNotPermitted,
        /// Programmed: True.
        Programmed,
        /// Programmed: not all nodes have answered yet.
        Pending,
        /// Programmed: a node that should enforce it is away.
        Unreachable,
        /// Programmed: no node in scope has an agent.
        NoAgents,
        /// Programmed: an agent refused it.
        Rejected,
        /// Programmed: no agent in scope can enforce one of its sections yet.
        UnsupportedSection,
        /// Covered: True.
        Covered,
        /// Covered: some pods or connections are not protected.
        PartiallyCovered,
        /// Covered: no agent captures connections.
        NoCapture,
        /// Effective: True.
        Effective,
        /// Effective: the Service has no endpoint that is ready.
        NoReadyEndpoints,
        /// Effective: fewer requests than minimumRequests reach any node.
        TooFewRequests,
        /// Effective: outlier detection with one endpoint.
        SingleEndpoint,
        /// Effective: no agent at the destination's node.
        NoDestinationAgent,
        /// Effective: a fault is past its end.
        FaultExpired,
        /// OverrideAccepted: True.
        InForce,
        /// OverrideAccepted: its expiry has passed.
        Expired,
        /// OverrideAccepted: its expiry is more than 24 hours ahead.
        ExpiryTooFar,
    }
}
