//! From objects to what agents enforce: a pure function, without I/O or a
//! clock. It is computed for what changed ([`Compiler`]).
//!
//! It finds each policy's targets ([`targets`], [`mesh`]), files policies
//! by them ([`attachments`]), merges these per port and section ([`merge`]), writes each service's configuration
//! ([`compile`](mod@compile), [`sections`], [`service`]), reads it back with
//! the agents' own decoder, and says of every policy and breaker what became
//! of it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use weir_crds::v1alpha1::{EffectiveSection, Reason, TargetRef};
use weir_proto::v1alpha1 as proto;

use crate::ledger::BreakerId;
use crate::sources::{Key, Objects};

mod attachments;
mod breakers;
mod compile;
mod compiler;
mod existing;
mod merge;
mod mesh;
mod outcome;
mod sections;
mod service;
mod targets;
mod unsupported;

pub(crate) use breakers::BreakerPlan;
pub(crate) use compile::refusals;
pub(crate) use compiler::{Changed, Compiler};

use attachments::Attachments;
use merge::Policy;
pub(crate) use service::{LISTEN, listen_address};

/// What holds of something, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Whether it is as it should be.
    pub(crate) good: bool,
    /// Why, in one word.
    pub(crate) reason: Reason,
    /// For people: what is the matter, and what to do.
    pub(crate) message: String,
}

impl Verdict {
    fn new(reason: Reason, message: impl Into<String>) -> Verdict {
        Verdict {
            good: false,
            reason,
            message: message.into(),
        }
    }

    fn good(reason: Reason, message: impl Into<String>) -> Verdict {
        Verdict {
            good: true,
            reason,
            message: message.into(),
        }
    }
}

/// What became of a policy at one target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TargetOutcome {
    /// As it is in the policy.
    pub(crate) reference: TargetRef,
    /// Whether the policy is in force there.
    pub(crate) accepted: Verdict,
    /// Whether the target exists.
    pub(crate) resolved: Verdict,
    /// Sections in force there, whichever policy they came from.
    pub(crate) sections: Vec<EffectiveSection>,
}

/// What became of a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PolicyOutcome {
    /// Whether it is in force anywhere.
    pub(crate) accepted: Verdict,
    /// Whether all that it refers to exists.
    pub(crate) resolved: Verdict,
    /// Why some of it can never act, if so.
    pub(crate) ineffective: Option<Verdict>,
    /// Each of its targets, in order.
    pub(crate) targets: Vec<TargetOutcome>,
    /// What of it agents cannot enforce yet.
    pub(crate) unsupported: Vec<String>,
    /// Those of [`Compiled::services`] that it takes part in.
    pub(crate) services: Vec<Key>,
}

/// What agents get for one service, or for one namespace's calls to it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ServiceOutcome {
    /// What is enforced.
    pub(crate) config: proto::ServiceConfig,
    /// Where its requests go; `None` where the service's own resource says it.
    pub(crate) endpoints: Option<proto::Endpoints>,
    /// What an agent must be able to do.
    pub(crate) requires: Vec<String>,
    /// What the decoder of the agents says against it; it is not sent then.
    pub(crate) refused: Option<String>,
}

/// Everything that follows from the objects.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Compiled {
    /// Services that agents must know. What holds for the calls of one namespace
    /// alone stands beside it, under the name `service@namespace`.
    pub(crate) services: BTreeMap<Key, ServiceOutcome>,
    /// Every policy that can be read.
    pub(crate) policies: BTreeMap<Key, PolicyOutcome>,
    /// Every breaker that a policy asks for.
    pub(crate) breakers: BTreeMap<BreakerId, BreakerPlan>,
    /// CircuitBreakers that no policy asks for.
    pub(crate) orphans: BTreeMap<Key, Verdict>,
    /// What is wrong with services, for people.
    pub(crate) problems: Vec<String>,
    /// When something changes by itself: an override ends.
    pub(crate) until: Option<Timestamp>,
}

/// Compiles `objects` as they are at `now`, from nothing.
#[cfg(test)]
pub(crate) fn compile(objects: &Objects, now: Timestamp) -> Compiled {
    let mut compiler = Compiler::default();
    compiler.update(&std::sync::Arc::new(objects.clone()), now);
    compiler.compiled().clone()
}

fn policy<'a>(objects: &'a Objects, key: &Key) -> Option<Policy<'a>> {
    let (key, policy) = objects.policies.get_key_value(key)?;
    Some(Policy {
        key,
        spec: &policy.object.spec,
        created: policy.object.metadata.creation_timestamp.as_ref(),
        annotations: policy.object.metadata.annotations.as_ref(),
    })
}

fn attach(objects: &Objects) -> Attachments<'_> {
    let mut attachments = Attachments::default();
    for policy in objects
        .policies
        .keys()
        .filter_map(|key| policy(objects, key))
    {
        for reference in &policy.spec.target_refs {
            if let Ok(target) = targets::serve(policy, reference, objects) {
                attachments.attach(target, policy);
            }
        }
    }
    attachments
}

/// Names what holds for the calls from `consumer` to `service`. A Service's name
/// holds no `@`.
fn consumer_key(service: &Key, consumer: &str) -> Key {
    (service.0.clone(), format!("{}@{consumer}", service.1))
}

#[cfg(test)]
mod tests;
