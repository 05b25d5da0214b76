//! The condition `Covered`: which of the pods and connections that a policy is
//! about are captured, and why others are not.
//!
//! Who might call a service cannot be known, so of callers that is told which
//! agents say: the pods that they should capture and cannot, and connections that
//! go past them. The pods behind a service are known, and counted one by one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use weir_crds::v1alpha1::{BulkheadSide, ConditionStatus, Reason, ResiliencePolicySpec, Sections};

use super::callers::Holder;
use super::{Callers, namespace_of, why_not};
use crate::ledger::{NodeView, Told};
use crate::model::{Compiled, PolicyOutcome};
use crate::sources::{Key, Objects};

/// What is said of one policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Covered {
    pub(crate) status: ConditionStatus,
    pub(crate) reason: Reason,
    pub(crate) message: String,
}

/// By policy; none where there is nothing to say.
pub(crate) type Covers = BTreeMap<Key, Covered>;

/// What it is told from.
pub(crate) struct Scene<'a> {
    objects: &'a Objects,
    compiled: &'a Compiled,
    callers: &'a Callers,
    told: &'a Told,
    /// Nodes whose agent is here, and captures.
    capturing: BTreeSet<&'a str>,
    /// How many agents are here, and do not.
    others: usize,
}

/// Counts, by what is counted.
type Counts = BTreeMap<String, u32>;

impl<'a> Scene<'a> {
    pub(crate) fn new(
        objects: &'a Objects,
        compiled: &'a Compiled,
        callers: &'a Callers,
        told: &'a Told,
        nodes: &'a [NodeView],
    ) -> Scene<'a> {
        let here = || nodes.iter().filter(|node| node.connected);
        let capturing = here().filter(|node| node.captures);
        Scene {
            objects,
            compiled,
            callers,
            told,
            capturing: capturing.map(|node| &*node.name).collect(),
            others: here().filter(|node| !node.captures).count(),
        }
    }

    /// What is to be said of the policy `key`, if anything: without a cluster
    /// nobody captures, and without a Service there is nothing to capture for.
    pub(crate) fn covered(&self, key: &Key) -> Option<Covered> {
        self.objects.agents.as_ref()?;
        let spec = &self.objects.policies.get(key)?.object.spec;
        let outcome = self.compiled.policies.get(key)?;
        if outcome.services.is_empty() {
            return None;
        }
        if self.capturing.is_empty() {
            return Some(Covered {
                status: ConditionStatus::Unknown,
                reason: Reason::NoCapture,
                message: "no agent captures connections: those alone are protected that callers make through an agent".to_owned(),
            });
        }
        let mut gaps = self.of_nodes();
        let mut behind = 0;
        if acts_at_destination(spec) {
            let (pods, missing) = self.behind(outcome);
            behind = pods;
            let missed: u32 = missing.values().sum();
            if missed > 0 {
                gaps.push(format!(
                    "{missed} of {pods} pods behind it are not captured: {}",
                    list(&missing)
                ));
            }
        }
        if acts_at_caller(spec) {
            gaps.extend(self.of_callers(key, spec));
        }
        gaps.extend(self.past(outcome));
        if !gaps.is_empty() {
            return Some(Covered {
                status: ConditionStatus::False,
                reason: Reason::PartiallyCovered,
                message: gaps.join("; "),
            });
        }
        let waiting = self.capturing.iter();
        let waiting = waiting
            .filter(|node| self.told.failure(node).is_none())
            .count();
        if waiting > 0 {
            return Some(Covered {
                status: ConditionStatus::Unknown,
                reason: Reason::Pending,
                message: format!(
                    "{waiting} of {} agents have not told yet what they capture",
                    self.capturing.len()
                ),
            });
        }
        let mut message = format!("captured on {}", count(self.capturing.len(), "node"));
        if behind > 0 {
            let _ = write!(message, ", and {behind} of {behind} pods behind it are");
        }
        Some(Covered {
            status: ConditionStatus::True,
            reason: Reason::Covered,
            message,
        })
    }

    /// Nodes on which nothing is captured.
    fn of_nodes(&self) -> Vec<String> {
        let mut gaps = Vec::new();
        let failing: Vec<(&str, &str)> = (self.capturing.iter())
            .filter_map(|node| Some((*node, self.told.failure(node)?)))
            .filter(|(_, failure)| !failure.is_empty())
            .collect();
        if let Some((node, failure)) = failing.first() {
            gaps.push(format!(
                "nothing is captured on {}, {node} for one: {failure}",
                count(failing.len(), "node")
            ));
        }
        if self.others > 0 {
            gaps.push(format!(
                "{} of {} agents do not capture",
                self.others,
                self.others + self.capturing.len()
            ));
        }
        gaps
    }

    /// How many pods are behind the policy's services, and which are not captured.
    fn behind(&self, outcome: &PolicyOutcome) -> (u32, Counts) {
        let services = outcome.services.iter();
        let endpoints =
            services.filter_map(|key| self.compiled.services.get(key)?.endpoints.as_ref());
        let addresses: BTreeSet<_> = endpoints
            .flat_map(|of| &of.ports)
            .flat_map(|port| &port.endpoints)
            .filter_map(|endpoint| endpoint.address.parse::<std::net::SocketAddr>().ok())
            .map(|address| address.ip())
            .collect();
        let mut missing = Counts::new();
        for address in &addresses {
            let why = match self.callers.holder(*address) {
                None => Some("no pods of this cluster".to_owned()),
                Some(Holder::Node(_)) => Some("hostNetwork".to_owned()),
                Some(Holder::Pod { name, node, pod }) => {
                    let why = why_not(self.objects, &name, &pod).map(|why| why.to_string());
                    let away = !self.capturing.contains(&*node);
                    let away = away.then(|| "on nodes without capture".to_owned());
                    let told = self.told.names(&name);
                    let told = told.then(|| "by word of their agents".to_owned());
                    why.or(away).or(told)
                }
            };
            if let Some(why) = why {
                *missing.entry(why).or_default() += 1;
            }
        }
        (u32::try_from(addresses.len()).unwrap_or(u32::MAX), missing)
    }

    /// Pods that should be captured and are not, whoever they call.
    fn of_callers(&self, key: &Key, spec: &ResiliencePolicySpec) -> Option<String> {
        // A consumer's policy is about the calls of its own namespace.
        let is_foreign =
            |namespace: &Option<String>| namespace.as_ref().is_some_and(|of| *of != key.0);
        let consumers = (spec.target_refs.iter()).all(|target| is_foreign(&target.namespace));
        let mut pods = self.told.pods().filter(|(name, node, _)| {
            self.capturing.contains(node) && (!consumers || namespace_of(name) == key.0)
        });
        let (name, _, reason) = pods.next()?;
        let all = 1 + pods.count();
        Some(format!(
            "{} may call and cannot be captured, {name} for one: {reason}",
            count(all, "pod")
        ))
    }

    /// Connections that were open before they could be captured.
    fn past(&self, outcome: &PolicyOutcome) -> Option<String> {
        let configs = outcome.services.iter();
        let configs = configs.filter_map(|key| Some(&self.compiled.services.get(key)?.config));
        let services: BTreeSet<Key> = configs
            .map(|config| (config.namespace.clone(), config.name.clone()))
            .collect();
        let (mut connections, mut nodes) = (0_usize, BTreeSet::new());
        for (node, open) in services.iter().flat_map(|key| self.told.connections(key)) {
            if self.capturing.contains(node) {
                connections += open as usize;
                nodes.insert(node);
            }
        }
        (connections > 0).then(|| {
            format!(
                "{} on {} {} open before",
                count(connections, "connection"),
                count(nodes.len(), "node"),
                if connections == 1 { "was" } else { "were" }
            )
        })
    }
}

fn count(number: usize, what: &str) -> String {
    let s = if number == 1 { "" } else { "s" };
    format!("{number} {what}{s}")
}

/// "2 hostNetwork, 1 other mesh (istio)".
fn list(counts: &Counts) -> String {
    let entries = counts
        .iter()
        .map(|(what, number)| format!("{number} {what}"));
    entries.collect::<Vec<_>>().join(", ")
}

fn all_sections(spec: &ResiliencePolicySpec) -> impl Iterator<Item = &Sections> {
    let routes = spec.routes.iter().map(|route| &route.sections);
    std::iter::once(&spec.sections).chain(routes)
}

fn bulkheads(sections: &Sections, side: BulkheadSide) -> bool {
    let bulkheads = sections.bulkheads.iter().flatten();
    bulkheads.into_iter().any(|bulkhead| bulkhead.at == side)
}

fn acts_at_destination(spec: &ResiliencePolicySpec) -> bool {
    all_sections(spec).any(|sections| {
        sections.load_shedding.is_some() || bulkheads(sections, BulkheadSide::Destination)
    })
}

fn acts_at_caller(spec: &ResiliencePolicySpec) -> bool {
    all_sections(spec).any(|sections| {
        sections.timeouts.is_some()
            || sections.retries.is_some()
            || sections.circuit_breaker.is_some()
            || bulkheads(sections, BulkheadSide::Caller)
    })
}

#[cfg(test)]
mod tests;
