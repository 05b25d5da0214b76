//! What goes to one agent next: the rules of the `Discovery` service for one
//! stream, as a state machine without I/O.
//!
//! At most one response is unanswered; what changes meanwhile is merged by
//! comparing the catalog with what the agent holds when its answer is there.
//! A resource whose needs the agent's hello does not cover is sent all the
//! same: only the agent can say what it enforces, and its refusal by name is
//! then the one source of the policy's status.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use tokio::time::Instant;
use weir_proto::v1alpha1 as proto;
use weir_proto::v1alpha1::ResourceKind;

use super::catalog::{Catalog, ResourceId, Share};

/// Bytes that a response may have, unless one resource alone is larger.
pub(super) const MAX_RESPONSE_BYTES: usize = 32 * 1024;
/// Resources that an agent may say it holds; more than any catalog has.
pub(super) const MAX_HELD: usize = 100_000;
/// Characters of an agent's rejection that are kept.
const MAX_MESSAGE: usize = 1024;
/// Missing features that are kept with it.
const MAX_MISSING: usize = 32;

/// A version that an agent refused, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) version: Arc<str>,
    pub(crate) message: String,
    pub(crate) missing_features: Vec<String>,
}

/// What an agent enforces and refuses.
#[derive(Clone, Debug, Default)]
pub(crate) struct Holding {
    /// Versions that it enforces.
    pub(crate) enforced: HashMap<ResourceId, Arc<str>>,
    /// Versions that it refused; kept until the resource changes.
    pub(crate) refused: HashMap<ResourceId, Refusal>,
}

/// What an answer did.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The nonce is not the one that waits; nothing changed.
    Stale,
    /// Taken in.
    Taken(Taken),
}

/// What changed with an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Taken {
    /// The first synchronisation is complete with it.
    pub(crate) synced: bool,
    /// Now enforced.
    pub(crate) enforced: Vec<(ResourceId, Arc<str>)>,
    /// Refused; the last good version of each stays in force.
    pub(crate) refused: Vec<(ResourceId, Refusal)>,
    /// No longer held.
    pub(crate) removed: Vec<ResourceId>,
}

impl Holding {
    /// Brings what an answer changed into the whole.
    pub(crate) fn apply(&mut self, taken: &Taken) {
        for id in &taken.removed {
            self.enforced.remove(id);
            self.refused.remove(id);
        }
        for (id, version) in &taken.enforced {
            self.refused.remove(id);
            self.enforced.insert(id.clone(), Arc::clone(version));
        }
        for (id, refusal) in &taken.refused {
            self.refused.insert(id.clone(), refusal.clone());
        }
    }
}

#[derive(Debug)]
struct Unanswered {
    nonce: u64,
    sent: BTreeMap<ResourceId, Arc<str>>,
    removed: BTreeSet<ResourceId>,
    synced: bool,
}

/// One stream's state.
#[derive(Debug)]
pub(super) struct Session {
    holding: Holding,
    unanswered: Option<Unanswered>,
    last_nonce: u64,
    synced: bool,
    share: Share,
    /// The catalog that `pending` was taken from.
    seen: Arc<Catalog>,
    /// All that the agent may lack, or hold too much: what is not in here it
    /// holds as the catalog has it, or refused. So a change costs what it
    /// changes, however large the catalog is.
    pending: BTreeSet<ResourceId>,
    /// When endpoints may be sent again; `None`: at once.
    endpoints_after: Option<Instant>,
    endpoints_interval: Duration,
}

impl Session {
    /// A stream of the agent that says `hello`. What it holds from before counts
    /// as enforced: an agent names nothing else.
    pub(super) fn new(hello: &proto::Hello, endpoints_interval: Duration) -> Session {
        let held = &hello.held;
        let enforced: HashMap<ResourceId, Arc<str>> = held
            .iter()
            .filter_map(|held| {
                Some((
                    ResourceId::from_wire(held.kind, &held.name)?,
                    Arc::from(held.version.as_str()),
                ))
            })
            .collect();
        Session {
            seen: Arc::default(),
            pending: enforced.keys().cloned().collect(),
            holding: Holding {
                enforced,
                refused: HashMap::new(),
            },
            unanswered: None,
            last_nonce: 0,
            synced: false,
            share: Share::of(hello),
            endpoints_after: None,
            endpoints_interval,
        }
    }

    /// Whether the agent captures.
    pub(super) fn captures(&self) -> bool {
        self.share.captures()
    }

    pub(super) fn holding(&self) -> &Holding {
        &self.holding
    }

    /// Whether the agent owes an answer.
    pub(super) fn is_waiting(&self) -> bool {
        self.unanswered.is_some()
    }

    /// Whether the first synchronisation is behind it.
    pub(super) fn is_synced(&self) -> bool {
        self.synced
    }

    /// The next response, if there is anything to say and nothing unanswered.
    pub(super) fn next(
        &mut self,
        catalog: &Arc<Catalog>,
        now: Instant,
    ) -> Option<proto::DiscoverResponse> {
        if self.is_waiting() {
            return None;
        }
        self.look(catalog);
        let endpoints_due = self.endpoints_after.is_none_or(|after| now >= after);
        let mut response = proto::DiscoverResponse::default();
        let mut sent = BTreeMap::new();
        let mut removed = BTreeSet::new();
        let mut bytes = 0;
        let mut complete = true;

        let gone = self.pending.iter();
        for id in gone.filter(|id| self.share.get(catalog, id).is_none()) {
            let message = proto::Removed {
                kind: id.kind.into(),
                name: id.name.to_string(),
            };
            bytes += message.encoded_len() + 4;
            if bytes > MAX_RESPONSE_BYTES && !removed.is_empty() {
                complete = false;
                break;
            }
            response.removed.push(message);
            removed.insert(id.clone());
        }
        let there = self.pending.iter();
        let there = there.filter_map(|id| Some((id, self.share.get(catalog, id)?)));
        for (id, resource) in there {
            if !complete {
                break;
            }
            // Where an agent knows none at all, requests would fail meanwhile.
            let may_wait =
                id.kind == ResourceKind::Endpoints && self.holding.enforced.contains_key(id);
            if may_wait && !endpoints_due {
                continue;
            }
            let message = resource.to_wire(id);
            bytes += message.encoded_len() + 6;
            if bytes > MAX_RESPONSE_BYTES && !(sent.is_empty() && removed.is_empty()) {
                complete = false;
                break;
            }
            response.resources.push(message);
            sent.insert(id.clone(), Arc::clone(&resource.version));
        }

        let synced = !self.synced && complete;
        if sent.is_empty() && removed.is_empty() && !synced {
            return None;
        }
        if complete && sent.keys().any(|id| id.kind == ResourceKind::Endpoints) {
            self.endpoints_after = Some(now + self.endpoints_interval);
        }
        self.last_nonce += 1;
        response.nonce = self.last_nonce;
        response.synced = synced;
        self.unanswered = Some(Unanswered {
            nonce: self.last_nonce,
            sent,
            removed,
            synced,
        });
        Some(response)
    }

    /// When endpoints that changed may go out; `None` while none wait.
    pub(super) fn due(&mut self, catalog: &Arc<Catalog>) -> Option<Instant> {
        let after = self.endpoints_after.filter(|_| !self.is_waiting())?;
        self.look(catalog);
        let waits = |id: &ResourceId| {
            id.kind == ResourceKind::Endpoints && self.share.get(catalog, id).is_some()
        };
        self.pending.iter().any(waits).then_some(after)
    }

    /// Adds to what is pending all in which `catalog` differs from the one seen
    /// before, and takes out what the agent holds by now.
    fn look(&mut self, catalog: &Arc<Catalog>) {
        let before = std::mem::replace(&mut self.seen, Arc::clone(catalog));
        if !Arc::ptr_eq(&before, catalog) {
            self.pending
                .extend(self.share.differences(&before, catalog));
            if before.partial != catalog.partial || before.removed != catalog.removed {
                self.pending.extend(self.gone(catalog));
            }
        }
        let mut pending = std::mem::take(&mut self.pending);
        pending.retain(|id| match self.share.get(catalog, id) {
            Some(resource) => self.lacks(id, &resource.version),
            None => self.holds(id) && self.share.is_gone(catalog, id),
        });
        self.pending = pending;
    }

    /// Takes in the agent's answer.
    pub(super) fn answer(&mut self, ack: &proto::Ack) -> Answer {
        let Some(unanswered) = self
            .unanswered
            .take_if(|unanswered| unanswered.nonce == ack.nonce)
        else {
            return Answer::Stale;
        };
        let mut sent = unanswered.sent;
        let mut refused = Vec::new();
        for rejection in &ack.rejections {
            let Some(id) = ResourceId::from_wire(rejection.kind, &rejection.name) else {
                continue;
            };
            let Some(version) = sent.remove(&id) else {
                continue;
            };
            let message = rejection.message.chars().take(MAX_MESSAGE).collect();
            let missing_features = rejection
                .missing_features
                .iter()
                .take(MAX_MISSING)
                .cloned()
                .collect();
            refused.push((
                id,
                Refusal {
                    version,
                    message,
                    missing_features,
                },
            ));
        }
        let removed = unanswered.removed.into_iter().collect();
        let taken = Taken {
            synced: unanswered.synced,
            enforced: sent.into_iter().collect(),
            refused,
            removed,
        };
        self.holding.apply(&taken);
        self.synced |= taken.synced;
        Answer::Taken(taken)
    }

    fn lacks(&self, id: &ResourceId, version: &Arc<str>) -> bool {
        self.holding.enforced.get(id) != Some(version)
            && self
                .holding
                .refused
                .get(id)
                .is_none_or(|refusal| refusal.version != *version)
    }

    fn holds(&self, id: &ResourceId) -> bool {
        self.holding.enforced.contains_key(id) || self.holding.refused.contains_key(id)
    }

    fn gone(&self, catalog: &Catalog) -> BTreeSet<ResourceId> {
        let known = self
            .holding
            .enforced
            .keys()
            .chain(self.holding.refused.keys());
        known
            .filter(|id| self.share.is_gone(catalog, id))
            .cloned()
            .collect()
    }
}

#[cfg(test)]
mod tests;
