//! Keeps the pods captured as they should be, whatever becomes of capture.

use std::collections::{BTreeMap, HashMap};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::{mpsc, watch};
use weir_proto::v1alpha1 as proto;

use super::link::{Answered, Link};
use super::plan::{Plan, Plans};
use super::pod::{Pod, Want, Wants};
use super::{Capturing, Pods, Wanted};
use crate::beat::Beats;
use crate::capture::wire::{self, Given, ask};
use crate::cgroup::{Sampler, Watch};
use crate::worker::{Command, Commands, Entrance, Shared};

/// How often the workers' beat is told to capture. After three without one it
/// takes the rules away.
const BEAT: Duration = Duration::from_millis(500);
/// How long to wait before capture is looked for again.
const AGAIN: Duration = Duration::from_millis(200);
/// How often what failed is tried again, and open connections are counted anew.
const LOOK: Duration = Duration::from_secs(1);
/// Sockets that are waited for, over all pods.
const WANTS: usize = 1024;
/// Pods that are asked for at the same time.
const AT_ONCE: usize = 32;
/// Where connections that were open before shall be ended, this many of a pod's
/// in one look: those that come back are not all at once.
const RESETS: u32 = 8;
/// What a report names.
const MAX_REPORTED_PODS: usize = 200;
const MAX_REPORTED_SERVICES: usize = 1000;
/// Listeners of pods count from here, so that they never meet the agent's own.
const FIRST_LISTENER: u64 = 1 << 48;

/// How far what is wanted is in place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settled {
    pub(super) number: u64,
    /// There is no capture to do anything.
    pub(super) away: bool,
}

/// What keeps the pods.
pub(crate) struct Keeper {
    capturing: Capturing,
    beats: Beats,
    wanted: watch::Receiver<Wanted>,
    settled: watch::Sender<Settled>,
    coverage: watch::Sender<proto::Coverage>,
    wants: mpsc::Receiver<Want>,
    state: State,
}

/// What is in place.
struct State {
    shared: Arc<Shared>,
    workers: Commands,
    wants: Wants,
    sampler: Arc<Sampler>,
    next_pod: u64,
    next_listener: u64,
    held: BTreeMap<String, Held>,
    failed: BTreeMap<String, (Plan, String)>,
}

/// A pod that is captured.
struct Held {
    plan: Plan,
    pod: Arc<Pod>,
    /// How busy it is, for those who ask.
    _watch: Watch,
    listeners: Vec<u64>,
    /// Connections that go past Weir, by the place in the plan: outbound, then
    /// inbound. Empty: not known.
    existing: Vec<u32>,
    /// Why they could not be counted the last time.
    uncounted: Option<String>,
}

impl Keeper {
    pub(crate) fn new(
        capturing: Capturing,
        workers: Commands,
        beats: Beats,
        sampler: Arc<Sampler>,
    ) -> (Keeper, Pods) {
        let (wanted_tx, wanted) = watch::channel(Wanted::default());
        // Nobody is there yet.
        let (settled, settled_rx) = watch::channel(Settled {
            number: 0,
            away: true,
        });
        let (coverage, coverage_rx) = watch::channel(proto::Coverage::default());
        let (wants_tx, wants) = Wants::new(WANTS);
        let pods = Pods {
            existing: capturing.existing,
            wanted: Arc::new(wanted_tx),
            settled: settled_rx,
            coverage: coverage_rx,
        };
        let state = State {
            shared: beats.shared.clone(),
            workers,
            wants: wants_tx,
            sampler,
            next_pod: 1,
            next_listener: FIRST_LISTENER,
            held: BTreeMap::new(),
            failed: BTreeMap::new(),
        };
        let keeper = Keeper {
            capturing,
            beats,
            wanted,
            settled,
            coverage,
            wants,
            state,
        };
        (keeper, pods)
    }

    /// For ever.
    pub(crate) async fn run(mut self) {
        let mut said = None;
        loop {
            let ended = match Link::connect(&self.capturing.socket) {
                Ok((link, carry)) => {
                    tracing::info!("connected to capture");
                    said = None;
                    let ended = tokio::select! {
                        ended = carry => ended,
                        () = self.serve(&link) => return,
                    };
                    Some(ended)
                }
                Err(error) => {
                    // Said once, not five times a second.
                    if said.as_ref() != Some(&error.to_string()) {
                        said = Some(error.to_string());
                        tracing::error!(socket = %self.capturing.socket.display(), %error, "capture is not there; pods' connections go the plain way");
                    }
                    None
                }
            };
            if let Some(error) = ended {
                tracing::error!(pods = self.state.held.len(), %error, "capture is gone; new connections go the plain way");
            }
            self.state.lose_all();
            self.state.tell(&self.coverage, Some("capture is away"));
            self.settled.send_modify(|settled| settled.away = true);
            // Who waits for a socket need not wait for the next capture.
            while self.wants.try_recv().is_ok() {}
            self.state.wants.answered();
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// As long as capture is there.
    async fn serve(&mut self, link: &Link) {
        let mut beat = tokio::time::interval(BEAT);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // What came while nobody was there to serve it.
        self.wanted.mark_changed();
        let wanted = self.wanted.clone();
        let beats = &mut self.beats;
        let beating = async {
            loop {
                beat.tick().await;
                if beats.all_moved() {
                    link.beat();
                }
            }
        };
        let wants = &mut self.wants;
        let answered = self.state.wants.clone();
        let making = async {
            let mut asked = FuturesUnordered::new();
            loop {
                tokio::select! {
                    want = wants.recv() => match want {
                        Some(want) => asked.push(make(link.clone(), want)),
                        None => return,
                    },
                    Some(()) = asked.next() => answered.answered(),
                }
            }
        };
        let (settled, coverage) = (self.settled.clone(), self.coverage.clone());
        let state = &mut self.state;
        let mut wanted = wanted;
        let keeping = async {
            loop {
                tokio::select! {
                    changed = wanted.changed() => {
                        if changed.is_err() {
                            return;
                        }
                        let now = wanted.borrow_and_update().clone();
                        if now.retreat {
                            // Where it fails capture is gone, and the rules with it.
                            let _ = link.ask(ask::Kind::Retreat(wire::Retreat {})).await;
                            state.leave_all();
                        } else {
                            state.keep(link, &now.plans).await;
                            state.count_existing(link, true).await;
                        }
                        state.tell(&coverage, None);
                        settled.send_replace(Settled { number: now.number, away: false });
                    }
                    _ = look.tick() => {
                        let now = wanted.borrow().clone();
                        if !now.retreat {
                            if !state.failed.is_empty() {
                                state.keep(link, &now.plans).await;
                            }
                            state.count_existing(link, false).await;
                            state.tell(&coverage, None);
                        }
                    }
                }
            }
        };
        tokio::select! {
            () = beating => {}
            () = making => {}
            () = keeping => {}
            () = link.ended() => {
                // The other half of the connection says why.
                std::future::pending().await
            }
        }
    }
}

/// Has a pod captured. What is asked for may take several messages: a policy for
/// the whole mesh captures every Service.
async fn capture(link: Link, plan: Plan) -> (Plan, Result<Answered, String>) {
    let mut parts = plan.outbound.chunks(wire::MAX_ADDRESSES).peekable();
    loop {
        let part = parts.next().unwrap_or_default();
        let more = parts.peek().is_some();
        let kind = ask::Kind::Capture(wire::Capture {
            pod: plan.pod.uid.clone(),
            addresses: plan.pod.addresses.iter().map(ToString::to_string).collect(),
            outbound: part.iter().map(|c| c.address.to_string()).collect(),
            inbound: plan.inbound.iter().map(|port| (*port).into()).collect(),
            more,
        });
        let answered = link.ask(kind).await;
        if !more || answered.is_err() {
            drop(parts);
            return (plan, answered);
        }
    }
}

/// Has sockets made for somebody who waits.
async fn make(link: Link, want: Want) {
    let kind = ask::Kind::Sockets(wire::Sockets {
        pod: want.pod,
        ipv6: want.kind.ipv6,
        transparent: want.kind.transparent,
        count: want.count,
    });
    let made = link.ask(kind).await;
    let made = made.map(|answered| answered.fds.into_iter().map(|(_, fd)| fd).collect());
    // Who waited may have gone; the sockets close themselves.
    let _ = want.made.send(made);
}

impl State {
    /// Brings what is in place to what is planned.
    async fn keep(&mut self, link: &Link, plans: &Plans) {
        let gone: Vec<String> = self
            .held
            .keys()
            .filter(|uid| !plans.contains_key(*uid))
            .cloned()
            .collect();
        for uid in gone {
            if let Some(held) = self.held.remove(&uid) {
                self.drop_pod(&held);
                let kind = ask::Kind::Release(wire::Release { pod: uid });
                // Where it fails capture is gone, and all it held with it.
                let _ = link.ask(kind).await;
            }
        }
        self.failed.retain(|uid, _| plans.contains_key(uid));
        let differs = |(uid, plan): &(&String, &Plan)| match self.held.get(*uid) {
            Some(held) => held.plan != **plan,
            None => !plan.outbound.is_empty() || !plan.inbound.is_empty(),
        };
        let changed = plans.iter().filter(differs);
        let changed: Vec<Plan> = changed.map(|(_, plan)| plan.clone()).collect();
        let mut changed = changed.into_iter();
        let mut asked: FuturesUnordered<_> = changed
            .by_ref()
            .take(AT_ONCE)
            .map(|plan| capture(link.clone(), plan))
            .collect();
        while let Some((plan, answered)) = asked.next().await {
            match answered {
                Ok(answered) => self.captured(&plan, answered),
                Err(reason) => self.refused(&plan, reason),
            }
            let next = changed.next();
            asked.extend(next.map(|plan| capture(link.clone(), plan)));
        }
    }

    fn captured(&mut self, plan: &Plan, answered: Answered) {
        let uid = &plan.pod.uid;
        if self.failed.remove(uid).is_some() {
            tracing::info!(pod = %name(plan), "captured");
        }
        // All listeners again: its network namespace is another, and with the old
        // one went everything in it.
        let anew = |(given, _): &(Given, _)| matches!(given, Given::Outbound4 | Given::Outbound6);
        if answered.fds.iter().any(anew)
            && let Some(old) = self.held.remove(uid)
        {
            self.drop_pod(&old);
        }
        match self.held.get_mut(uid) {
            Some(held) => {
                held.plan = plan.clone();
                held.existing.clear();
                let pod = held.pod.clone();
                let listeners = self.listen(&pod, answered);
                if let Some(held) = self.held.get_mut(uid) {
                    held.listeners.extend(listeners);
                }
            }
            None => {
                let pod = Pod::new(self.next_pod, plan.pod.clone(), self.wants.clone());
                self.next_pod += 1;
                let pod = Arc::new(pod);
                let listeners = self.listen(&pod, answered);
                let held = Held {
                    plan: plan.clone(),
                    _watch: self.sampler.watch(uid, &plan.pod.addresses),
                    pod,
                    listeners,
                    existing: Vec::new(),
                    uncounted: None,
                };
                self.held.insert(uid.clone(), held);
            }
        }
    }

    /// Has a worker accept on what came.
    fn listen(&mut self, pod: &Arc<Pod>, answered: Answered) -> Vec<u64> {
        let mut listeners = Vec::new();
        for (given, fd) in answered.fds {
            let entrance = match given {
                Given::Outbound4 | Given::Outbound6 => Entrance::Outbound(pod.clone()),
                Given::Inbound4 | Given::Inbound6 => Entrance::Inbound(pod.clone()),
                Given::Lasting => {
                    pod.hold(fd);
                    continue;
                }
                Given::Socket => continue,
            };
            let id = self.next_listener;
            self.next_listener += 1;
            let command = Command::Listen(id, TcpListener::from(fd), entrance);
            // A worker that has ended is the end of the agent.
            let _ = self.workers[self.home(pod)].send(command);
            listeners.push(id);
        }
        listeners
    }

    /// The worker that accepts for a pod.
    fn home(&self, pod: &Pod) -> usize {
        usize::try_from(pod.id).unwrap_or(0) % self.workers.len()
    }

    fn refused(&mut self, plan: &Plan, reason: String) {
        let known = self.failed.get(&plan.pod.uid);
        if known.is_none_or(|(_, known)| *known != reason) {
            tracing::warn!(pod = %name(plan), reason, "a pod is not captured; its connections go the plain way");
        }
        self.failed
            .insert(plan.pod.uid.clone(), (plan.clone(), reason));
    }

    /// A pod is gone: nothing of it may be left, or its network namespace would
    /// live on.
    fn drop_pod(&mut self, held: &Held) {
        held.pod.forget();
        let home = self.home(&held.pod);
        for listener in &held.listeners {
            let _ = self.workers[home].send(Command::Close(*listener));
        }
        for worker in &self.workers {
            let _ = worker.send(Command::Forget(held.pod.id));
        }
    }

    /// The rules are gone, the pods are not: what is there ends in good order.
    fn leave_all(&mut self) {
        for held in self.held.values() {
            held.pod.leave();
        }
        for worker in &self.workers {
            let _ = worker.send(Command::Wake);
        }
    }

    /// Capture is gone. Nobody comes any more; who is there ends in good order.
    fn lose_all(&mut self) {
        self.leave_all();
        for held in std::mem::take(&mut self.held).into_values() {
            let home = self.home(&held.pod);
            for listener in &held.listeners {
                let _ = self.workers[home].send(Command::Retire(*listener));
            }
        }
        self.failed.clear();
    }

    /// Counts, and where asked ends, connections that were open before they
    /// could be captured: of pods that are new or changed, and of those that had
    /// some.
    async fn count_existing(&mut self, link: &Link, fresh: bool) {
        let due: Vec<String> = self
            .held
            .iter()
            .filter(|(_, held)| {
                held.existing.is_empty() || !fresh && held.existing.iter().any(|n| *n > 0)
            })
            .map(|(uid, _)| uid.clone())
            .collect();
        for uid in due {
            let Some(held) = self.held.get(&uid) else {
                continue;
            };
            let mut existing = vec![0; held.plan.outbound.len() + held.plan.inbound.len()];
            let (reset, keep): (Vec<usize>, Vec<usize>) =
                (0..held.plan.outbound.len()).partition(|i| held.plan.outbound[*i].reset);
            let inbound: Vec<usize> = (held.plan.outbound.len()..existing.len()).collect();
            let mut failure = None;
            let reset = reset.chunks(wire::MAX_ADDRESSES);
            let keep = keep.chunks(wire::MAX_ADDRESSES);
            let inbound = (!inbound.is_empty()).then_some((&[][..], &inbound[..], 0));
            let questions = reset
                .map(|places| (places, &[][..], RESETS))
                .chain(keep.map(|places| (places, &[][..], 0)))
                .chain(inbound);
            for (places, inbound, reset) in questions {
                let kind = ask::Kind::Existing(wire::Existing {
                    pod: uid.clone(),
                    destinations: places
                        .iter()
                        .map(|i| held.plan.outbound[*i].address.to_string())
                        .collect(),
                    ports: inbound
                        .iter()
                        .map(|i| held.plan.inbound[*i - held.plan.outbound.len()].into())
                        .collect(),
                    reset,
                });
                match link.ask(kind).await {
                    Ok(answered) => {
                        let places = places.iter().chain(inbound);
                        for (place, count) in places.zip(answered.existing) {
                            existing[*place] = count;
                        }
                    }
                    Err(reason) => failure = Some(reason),
                }
            }
            let Some(held) = self.held.get_mut(&uid) else {
                continue;
            };
            match failure {
                None => held.existing = existing,
                // Not known, which is not none: it is asked again.
                Some(reason) => {
                    held.existing.clear();
                    if held.uncounted.replace(reason.clone()).as_ref() != Some(&reason) {
                        tracing::warn!(pod = %name(&held.plan), reason, "connections that were open before are not counted");
                    }
                }
            }
        }
    }

    /// Says what is not captured, where that has changed.
    fn tell(&self, coverage: &watch::Sender<proto::Coverage>, failure: Option<&str>) {
        let counts = self.held.values().flat_map(|held| &held.existing);
        let bypassing: u32 = counts.sum();
        let figures = &self.shared;
        figures.captured_pods.store(self.held.len(), Relaxed);
        figures.uncaptured_pods.store(self.failed.len(), Relaxed);
        figures.bypassing.store(bypassing as usize, Relaxed);
        let now = self.coverage(failure);
        coverage.send_if_modified(|told| {
            let changed = *told != now;
            *told = now;
            changed
        });
    }

    fn coverage(&self, failure: Option<&str>) -> proto::Coverage {
        let pod = |(plan, reason): &(Plan, String)| proto::UncapturedPod {
            namespace: plan.pod.namespace.clone(),
            name: plan.pod.name.clone(),
            reason: reason.clone(),
        };
        let mut by_service = HashMap::new();
        for held in self.held.values() {
            for (captured, count) in held.plan.outbound.iter().zip(&held.existing) {
                if *count > 0 {
                    *by_service.entry(&captured.service).or_insert(0) += *count;
                }
            }
        }
        let mut connections: Vec<_> = by_service
            .into_iter()
            .map(|(service, connections)| proto::OpenConnections {
                namespace: service.namespace.clone(),
                service: service.name.clone(),
                connections,
            })
            .collect();
        connections.sort_by(|a, b| (&a.namespace, &a.service).cmp(&(&b.namespace, &b.service)));
        connections.truncate(MAX_REPORTED_SERVICES);
        proto::Coverage {
            pods: self
                .failed
                .values()
                .take(MAX_REPORTED_PODS)
                .map(pod)
                .collect(),
            connections,
            failure: failure.unwrap_or_default().to_owned(),
        }
    }
}

fn name(plan: &Plan) -> String {
    format!("{}/{}", plan.pod.namespace, plan.pod.name)
}
