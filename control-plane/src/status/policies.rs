//! The status of policies.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use weir_crds::v1alpha1::{
    AgentCounts, BreakerCounts, Condition, ConditionStatus, ConditionType, PolicySummary, Reason,
    Rejection, ResiliencePolicy, ResiliencePolicyStatus, TargetKind, TargetRef, TargetStatus,
};

use super::breakers::Counts;
use super::{Conditions, Look, Memory, Transitions, View, cut, metadata, whole};
use crate::ledger::Verdict as Enforced;
use crate::model::{PolicyOutcome, TargetOutcome, Verdict};
use crate::sources::Key;
use crate::sources::manifest::{Kind, ObjectId};

/// Rejections that a status names.
const MAX_REJECTIONS: usize = 10;

/// How far the agents are with a policy.
struct Rollout {
    agents: AgentCounts,
    rejections: Vec<Rejection>,
    /// First node that is away.
    away: Option<String>,
    /// Features that every agent in scope lacks.
    lacking: Vec<String>,
    /// Whether agents are told of every service that it takes part in.
    pushed: bool,
}

impl Memory {
    /// The policies in `look` with their status. `states` counts the breakers of
    /// each policy.
    pub(super) fn look_at_policies(
        &mut self,
        view: &View<'_>,
        look: &Look,
        states: &Counts,
    ) -> BTreeMap<Key, Option<Value>> {
        let keys: BTreeSet<Key> = if look.all_policies {
            let refused = view.objects.refused.keys();
            let refused = refused.filter(|id| id.kind == Kind::ResiliencePolicy);
            let refused = refused.map(|id| (id.namespace.clone(), id.name.clone()));
            let there = view.objects.policies.keys().chain(self.policies.keys());
            there.cloned().chain(refused).collect()
        } else {
            let is_concerned = |outcome: &PolicyOutcome| {
                let versions = outcome
                    .services
                    .iter()
                    .filter_map(|key| view.versions.get(key));
                !look.services.is_empty()
                    && versions
                        .into_iter()
                        .any(|(id, _)| look.services.contains(id))
            };
            let concerned = view.compiled.policies.iter();
            let concerned = concerned.filter(|(_, outcome)| is_concerned(outcome));
            let concerned = concerned.map(|(key, _)| key);
            concerned.chain(&look.policies).cloned().collect()
        };
        let mut objects = BTreeMap::new();
        for key in keys {
            let last = self.policies.remove(&key);
            let was_there = last.is_some();
            let last = last.unwrap_or_default();
            let object = refused(view, &key, last.clone())
                .or_else(|| policy(view, &key, last, states.get(&key)));
            match object {
                Some((object, transitions)) => {
                    self.policies.insert(key.clone(), transitions);
                    objects.insert(key, Some(object));
                }
                None if was_there => {
                    objects.insert(key, None);
                }
                None => {}
            }
        }
        objects
    }
}

fn policy(
    view: &View<'_>,
    key: &Key,
    last: Transitions,
    states: Option<&BreakerCounts>,
) -> Option<(Value, Transitions)> {
    let source = view.objects.policies.get(key)?;
    let outcome = view.compiled.policies.get(key)?;
    let rollout = rollout(view, outcome);
    let mut say = Conditions::new(last, source.generation, view.now);
    let mut conditions = vec![
        say.verdict(None, ConditionType::Accepted, &outcome.accepted),
        say.verdict(None, ConditionType::ResolvedRefs, &outcome.resolved),
    ];
    let (status, reason, message) = programmed(outcome, &rollout, view.objects.agents.is_some());
    conditions.push(say.condition(None, ConditionType::Programmed, status, (reason, &message)));
    if let Some(covered) = view.covers.get(key) {
        let why = (covered.reason, &*covered.message);
        conditions.push(say.condition(None, ConditionType::Covered, covered.status, why));
    }
    if let Some(verdict) = &outcome.ineffective {
        conditions.push(say.verdict(None, ConditionType::Effective, verdict));
    }
    let target = |(index, target): (usize, &TargetOutcome)| TargetStatus {
        target_ref: target.reference.clone(),
        conditions: vec![
            say.verdict(Some(index), ConditionType::Accepted, &target.accepted),
            say.verdict(Some(index), ConditionType::ResolvedRefs, &target.resolved),
        ],
        sections: target.sections.clone(),
        adaptive_timeout: None,
    };
    let targets = outcome.targets.iter().enumerate().map(target).collect();
    let mut object = ResiliencePolicy::clone(&source.object);
    object.metadata = metadata(&object.metadata, source);
    object.status = Some(ResiliencePolicyStatus {
        conditions,
        summary: Some(PolicySummary {
            targets: summary(&object.spec.target_refs),
            agents: format!("{}/{}", rollout.agents.programmed, rollout.agents.expected),
        }),
        agents: Some(rollout.agents),
        rejections: rollout.rejections,
        targets,
        breakers: Some(states.cloned().unwrap_or_default()),
    });
    Some((whole(&object), say.next))
}

/// A policy of which no good version was ever seen, as it was written.
fn refused(view: &View<'_>, key: &Key, last: Transitions) -> Option<(Value, Transitions)> {
    let id = ObjectId {
        kind: Kind::ResiliencePolicy,
        namespace: key.0.clone(),
        name: key.1.clone(),
    };
    let refused = view.objects.refused.get(&id)?;
    let verdict = Verdict {
        good: false,
        reason: Reason::Invalid,
        message: refused.problem.to_string(),
    };
    let mut say = Conditions::new(last, 0, view.now);
    let conditions: Vec<Condition> = [ConditionType::Accepted, ConditionType::Programmed]
        .into_iter()
        .map(|r#type| say.verdict(None, r#type, &verdict))
        .collect();
    let mut object = refused.written.clone();
    object["metadata"]["creationTimestamp"] = json!(format!("{:.0}", refused.first_seen));
    object["status"] = json!({ "conditions": conditions });
    Some((object, say.next))
}

fn rollout(view: &View<'_>, outcome: &PolicyOutcome) -> Rollout {
    let services: Vec<_> = outcome
        .services
        .iter()
        .filter_map(|service| view.versions.get(service))
        .cloned()
        .collect();
    let mut rollout = Rollout {
        agents: AgentCounts::default(),
        rejections: Vec::new(),
        away: None,
        lacking: Vec::new(),
        pushed: !services.is_empty() && services.len() == outcome.services.len(),
    };
    for node in view.nodes {
        rollout.agents.expected += 1;
        if !node.connected {
            rollout.agents.unreachable += 1;
            rollout.away.get_or_insert_with(|| node.name.to_string());
            continue;
        }
        match node.verdict(&services) {
            Enforced::Enforced => rollout.agents.programmed += 1,
            Enforced::Pending => {}
            Enforced::Refused {
                message,
                missing_features,
            } => {
                let first = rollout.agents.rejected == 0;
                rollout.agents.rejected += 1;
                match first {
                    true => rollout.lacking = missing_features,
                    false => rollout
                        .lacking
                        .retain(|feature| missing_features.contains(feature)),
                }
                if rollout.rejections.len() < MAX_REJECTIONS {
                    rollout.rejections.push(Rejection {
                        node: node.name.to_string(),
                        message: cut(&message),
                    });
                }
            }
        }
    }
    rollout
}

/// Whether every node in scope enforces this generation. `cluster`: agents are
/// Pods.
fn programmed(
    outcome: &PolicyOutcome,
    rollout: &Rollout,
    cluster: bool,
) -> (ConditionStatus, Reason, String) {
    let Rollout {
        agents,
        rejections,
        away,
        lacking,
        pushed,
    } = rollout;
    let bad = |reason, message| (ConditionStatus::False, reason, message);
    // An invalid edit leaves the version before it in force, if there was one.
    let stays = outcome.accepted.reason == Reason::Invalid && *pushed;
    if !outcome.accepted.good && !stays {
        return bad(
            outcome.accepted.reason,
            "not accepted: see condition Accepted".to_owned(),
        );
    }
    if outcome.services.is_empty() {
        return bad(
            outcome.resolved.reason,
            "there is nothing to enforce it for: see condition ResolvedRefs".to_owned(),
        );
    }
    if agents.expected == 0 {
        let message = match cluster {
            true => "no node has an agent: see that the DaemonSet weir-agent has pods",
            false => "no agent has connected: start `weir agent`, or `weir run`, which has one",
        };
        return (
            ConditionStatus::Unknown,
            Reason::NoAgents,
            message.to_owned(),
        );
    }
    if agents.rejected == agents.expected && !lacking.is_empty() {
        return bad(
            Reason::UnsupportedSection,
            format!(
                "no agent can enforce {} yet: update the agents",
                lacking.join(", ")
            ),
        );
    }
    if let Some(rejection) = rejections.first() {
        let others = match agents.rejected {
            1 => String::new(),
            more => format!(" (and {} more)", more - 1),
        };
        return bad(
            Reason::Rejected,
            format!("node {}{others}: {}", rejection.node, rejection.message),
        );
    }
    if let Some(node) = away {
        let message = format!(
            "{} of {} agents are away, {node} for one: see that they run and reach the control plane",
            agents.unreachable, agents.expected
        );
        return bad(Reason::Unreachable, message);
    }
    if agents.programmed < agents.expected {
        return bad(
            Reason::Pending,
            format!(
                "{} of {} agents enforce it so far",
                agents.programmed, agents.expected
            ),
        );
    }
    if !outcome.unsupported.is_empty() {
        let message = format!(
            "not enforced yet: {}; everything else of the policy is",
            outcome.unsupported.join(", ")
        );
        return bad(Reason::UnsupportedSection, message);
    }
    let version = if stays {
        "the version before the last edit, which is refused (see condition Accepted), is "
    } else {
        ""
    };
    let message = format!(
        "{version}enforced by {} of {} agents",
        agents.programmed, agents.expected
    );
    (ConditionStatus::True, Reason::Programmed, message)
}

/// `Service/payments +2`.
fn summary(references: &[TargetRef]) -> String {
    let Some(first) = references.first() else {
        return String::new();
    };
    let kind = match first.kind {
        TargetKind::Service => "Service",
        TargetKind::Host => "Host",
        TargetKind::Namespace => "Namespace",
        TargetKind::Mesh => return "Mesh".to_owned(),
    };
    let mut text = format!("{kind}/{}", first.name.as_deref().unwrap_or_default());
    if let Some(port) = &first.section_name {
        text.push_str(&format!(":{port}"));
    }
    if references.len() > 1 {
        text.push_str(&format!(" +{}", references.len() - 1));
    }
    text
}
