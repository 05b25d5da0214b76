//! What the agents say: which versions each enforces or refuses, and how its
//! breakers stand, and what it captures.
//!
//! Streams write here, each for its own node; the status of every object is
//! computed from it. Locks are held for a few lines and never across an await.

use std::collections::{BTreeSet, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dashmap::DashMap;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tonic::Status;
use weir_proto::v1alpha1::ResourceKind;

use crate::push::{Holding, ResourceId, Taken};

mod breakers;
mod coverage;
mod report;

/// Why a stream ends when another one speaks for its node.
pub(crate) fn contested(node: &str) -> String {
    format!(
        "a newer stream speaks for node {node}; if another agent has that name, give each its own with --node"
    )
}

#[cfg(test)]
pub(crate) use breakers::Word;
pub(crate) use breakers::{Aggregate, BreakerId, News as BreakerNews};
pub(crate) use coverage::{Coverage, Told};
pub(crate) use report::Reporter;

use breakers::Breakers;

/// Nodes that may be known at once.
const MAX_NODES: usize = 10_000;
/// An agent away for longer is no longer expected (files source: nothing else
/// says which nodes there are).
const FORGET_AFTER: Duration = Duration::from_secs(300);

/// What one agent does with one version of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Enforced,
    Refused {
        message: String,
        missing_features: Vec<String>,
    },
    Pending,
}

/// How one node stands.
struct Node {
    /// Counts the streams that spoke for it; the highest is the one that counts.
    stream: u64,
    connected: bool,
    /// Whether it captures.
    captures: bool,
    /// When it was last known to be there.
    seen: Instant,
    /// Services only: endpoints have no part in any status.
    holding: Holding,
    /// Set to the stream's number when a newer one comes.
    newest: watch::Sender<u64>,
}

/// What was said since the last look.
#[derive(Debug, Default)]
pub(crate) struct News {
    pub(crate) breakers: BreakerNews,
    pub(crate) answers: Answers,
    /// Of what agents capture.
    pub(crate) coverage: bool,
}

/// What agents said of services.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    /// Services that some agent enforces, refuses or dropped.
    pub(crate) services: HashSet<ResourceId>,
    /// Agents came or went: that is news for everything.
    pub(crate) nodes: bool,
}

/// See the module.
pub(crate) struct Ledger {
    nodes: DashMap<Arc<str>, Arc<Mutex<Node>>>,
    breakers: Breakers,
    coverage: Coverage,
    /// Since the last look; holds no more than agents were sent.
    answers: Mutex<Answers>,
    streams: AtomicU64,
    changed: Notify,
}

impl Default for Ledger {
    fn default() -> Ledger {
        Ledger {
            nodes: DashMap::new(),
            breakers: Breakers::default(),
            coverage: Coverage::default(),
            answers: Mutex::default(),
            streams: AtomicU64::new(0),
            changed: Notify::new(),
        }
    }
}

/// One stream's right to speak for its node; ends with it.
pub(crate) struct Presence {
    ledger: Arc<Ledger>,
    name: Arc<str>,
    node: Arc<Mutex<Node>>,
    stream: u64,
    newest: watch::Receiver<u64>,
}

/// One node, for a status.
pub(crate) struct NodeView {
    pub(crate) name: Arc<str>,
    pub(crate) connected: bool,
    /// Whether its agent captures.
    pub(crate) captures: bool,
    /// `None` where it never connected.
    node: Option<Arc<Mutex<Node>>>,
}

impl Ledger {
    /// A stream says that it speaks for `name`, enforces `holding`, and `captures`;
    /// an older stream for the same node is superseded.
    ///
    /// # Errors
    /// Where the name cannot be a node's, or there are too many nodes.
    pub(crate) fn connect(
        self: &Arc<Self>,
        name: &str,
        holding: &Holding,
        captures: bool,
    ) -> Result<Presence, Status> {
        if name.is_empty() || name.len() > 253 {
            return Err(Status::invalid_argument(
                "a node's name has 1 to 253 characters",
            ));
        }
        let name: Arc<str> = name.into();
        if self.nodes.len() >= MAX_NODES && !self.nodes.contains_key(&name) {
            return Err(Status::resource_exhausted(format!(
                "{MAX_NODES} nodes are connected already"
            )));
        }
        let stream = self.next_stream();
        // The entry is held until the state is set, or `forget` could drop the
        // node in between.
        let entry = self.nodes.entry(Arc::clone(&name)).or_insert_with(|| {
            Arc::new(Mutex::new(Node {
                stream: 0,
                connected: false,
                captures,
                seen: Instant::now(),
                holding: Holding::default(),
                newest: watch::Sender::new(0),
            }))
        });
        let node = Arc::clone(entry.value());
        let newest = {
            let mut state = lock(&node);
            state.stream = stream;
            state.connected = true;
            state.captures = captures;
            state.seen = Instant::now();
            state.holding = services_of(holding);
            state.newest.send_replace(stream);
            state.newest.subscribe()
        };
        drop(entry);
        self.nodes_changed();
        Ok(Presence {
            ledger: Arc::clone(self),
            name,
            node,
            stream,
            newest,
        })
    }

    fn nodes_changed(&self) {
        lock(&self.answers).nodes = true;
        self.changed.notify_one();
    }

    /// What is new since the last call.
    pub(crate) fn news(&self) -> News {
        News {
            breakers: self.breakers.news(),
            coverage: self.coverage.news(),
            answers: std::mem::take(&mut *lock(&self.answers)),
        }
    }

    fn next_stream(&self) -> u64 {
        self.streams.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Waits until something changed since the last call returned.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Every node that is expected, by name.
    pub(crate) fn nodes(&self) -> Vec<NodeView> {
        let mut nodes: Vec<_> = self
            .nodes
            .iter()
            .map(|entry| (Arc::clone(entry.key()), Arc::clone(entry.value())))
            .map(|(name, node)| {
                let (connected, captures) = {
                    let node = lock(&node);
                    (node.connected, node.captures)
                };
                NodeView {
                    name,
                    connected,
                    captures,
                    node: Some(node),
                }
            })
            .collect();
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        nodes
    }

    /// The nodes that a status counts, by name. `agents`: those that have an
    /// agent, where somebody knows; one of them that is not connected is away,
    /// and one that is away and none of them is gone.
    pub(crate) fn expected(&self, agents: Option<&BTreeSet<String>>) -> Vec<NodeView> {
        let mut nodes = self.nodes();
        let Some(agents) = agents else { return nodes };
        nodes.retain(|node| node.connected || agents.contains(&*node.name));
        let known: BTreeSet<Arc<str>> = nodes.iter().map(|node| Arc::clone(&node.name)).collect();
        let absent = agents.iter().filter(|name| !known.contains(name.as_str()));
        nodes.extend(absent.map(|name| NodeView {
            name: name.as_str().into(),
            connected: false,
            captures: false,
            node: None,
        }));
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        nodes
    }

    /// Whether each of `nodes` is here and has told how its breakers stand.
    pub(crate) fn is_complete(&self, nodes: &[NodeView]) -> bool {
        let here = |node: &NodeView| node.connected && self.breakers.has_told(&node.name);
        nodes.iter().all(here)
    }

    /// Breakers that passed through several states since they were shown move
    /// on by one.
    pub(crate) fn step(&self) {
        if self.breakers.step() {
            self.changed.notify_one();
        }
    }

    /// Agents connected now.
    pub(crate) fn connected(&self) -> usize {
        self.nodes
            .iter()
            .filter(|entry| lock(entry.value()).connected)
            .count()
    }

    /// Forgets nodes that are away for too long, and reports that are too old;
    /// gives back when to come again.
    pub(crate) fn forget(&self, now: Instant) -> Option<Instant> {
        let mut next: Option<Instant> = None;
        let before = self.nodes.len();
        self.nodes.retain(|_, node| {
            let node = lock(node);
            let until = node.seen + FORGET_AFTER;
            let keep = node.connected || now < until;
            if keep && !node.connected {
                next = Some(next.map_or(until, |next| next.min(until)));
            }
            keep
        });
        let (dropped, stale) = self.breakers.forget(now);
        if self.nodes.len() != before {
            self.coverage.retain(|node| self.nodes.contains_key(node));
            self.nodes_changed();
        } else if dropped {
            self.changed.notify_one();
        }
        next.into_iter().chain(stale).min()
    }

    /// What agents tell of capture.
    pub(crate) fn coverage(&self) -> &Coverage {
        &self.coverage
    }

    /// All that agents say about the breaker `id`.
    pub(crate) fn breaker(&self, id: &BreakerId) -> Option<Aggregate> {
        self.breakers.aggregate(id)
    }
}

impl NodeView {
    /// What the node does with `version` of each of `services`, the worst first.
    pub(crate) fn verdict(&self, services: &[(ResourceId, Arc<str>)]) -> Verdict {
        let Some(node) = &self.node else {
            return Verdict::Pending;
        };
        let node = lock(node);
        let mut verdict = Verdict::Enforced;
        for (id, version) in services {
            if node.holding.enforced.get(id) == Some(version) {
                continue;
            }
            match node.holding.refused.get(id) {
                Some(refusal) if refusal.version == *version => {
                    return Verdict::Refused {
                        message: refusal.message.clone(),
                        missing_features: refusal.missing_features.clone(),
                    };
                }
                _ => verdict = Verdict::Pending,
            }
        }
        verdict
    }
}

impl Presence {
    pub(crate) fn node(&self) -> &str {
        &self.name
    }

    /// Waits until a newer stream speaks for the node.
    pub(crate) async fn superseded(&self) {
        let mut newest = self.newest.clone();
        if newest
            .wait_for(|newest| *newest > self.stream)
            .await
            .is_err()
        {
            std::future::pending().await
        }
    }

    /// Takes in what an answer changed.
    pub(crate) fn answered(&self, taken: &Taken) {
        let mut node = lock(&self.node);
        if node.stream != self.stream {
            return;
        }
        let service = |id: &ResourceId| id.kind == ResourceKind::Service;
        node.holding.apply(&Taken {
            synced: taken.synced,
            enforced: taken
                .enforced
                .iter()
                .filter(|(id, _)| service(id))
                .cloned()
                .collect(),
            refused: taken
                .refused
                .iter()
                .filter(|(id, _)| service(id))
                .cloned()
                .collect(),
            removed: taken
                .removed
                .iter()
                .filter(|id| service(id))
                .cloned()
                .collect(),
        });
        drop(node);
        let enforced = taken.enforced.iter().map(|(id, _)| id);
        let refused = taken.refused.iter().map(|(id, _)| id);
        let told = enforced.chain(refused).chain(&taken.removed);
        let told = told.filter(|id| service(id)).cloned();
        lock(&self.ledger.answers).services.extend(told);
        self.ledger.changed.notify_one();
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        let mut node = lock(&self.node);
        if node.stream == self.stream {
            node.connected = false;
            node.seen = Instant::now();
            drop(node);
            self.ledger.nodes_changed();
        }
    }
}

fn services_of(holding: &Holding) -> Holding {
    let mut services = holding.clone();
    services
        .enforced
        .retain(|id, _| id.kind == ResourceKind::Service);
    services
        .refused
        .retain(|id, _| id.kind == ResourceKind::Service);
    services
}

/// A panic in one stream leaves the state as it was: no line between lock and
/// unlock leaves it half changed.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
