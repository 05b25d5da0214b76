//! The machines that keep state, by name. A policy that changes finds its
//! machine again as long as the key is the same; machines that no policy asks
//! for any more are swept away.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, Hash, RandomState};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dashmap::{DashMap, Entry};
use weir_resilience::Time;
use weir_resilience::balance::Load;
use weir_resilience::breaker::{Breaker, Memory};
use weir_resilience::budget::Budget;
use weir_resilience::bulkhead::Bulkhead;
use weir_resilience::config;
use weir_resilience::config::ServiceId;
use weir_resilience::shed::Shed;

use crate::cgroup::Sampler;
use crate::metrics::PortMetrics;

/// Both clocks at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    pub(crate) now: Time,
    pub(crate) unix_ms: i64,
}

/// What is known of one breaker elsewhere, or was known before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Remembered {
    pub(crate) service: ServiceId,
    pub(crate) key: String,
    pub(crate) memory: Memory,
}

/// Memories that are kept, told and read.
pub(crate) const MAX_REMEMBERED: usize = 4096;
/// How long a memory waits for its breaker.
const WAITING: Duration = Duration::from_secs(600);

/// Memories of breakers that are not made yet.
type Waiting = HashMap<(ServiceId, String), (Memory, Time)>;

/// A port of a service, and whether what is counted is the destination's side.
pub(crate) type PortName = (ServiceId, u16, bool);

/// Every machine of this agent. Bounded by the configuration: one per key and,
/// where it says so, endpoint.
pub(crate) struct Registry {
    shards: usize,
    breakers: DashMap<(ServiceId, String), Arc<Breaker>>,
    /// Never locked while a guard of `breakers` is waited for.
    waiting: Mutex<Waiting>,
    hasher: RandomState,
    budgets: DashMap<(ServiceId, String), Arc<Budget>>,
    bulkheads: DashMap<(ServiceId, String, Option<SocketAddr>), Arc<Bulkhead>>,
    loads: DashMap<(ServiceId, SocketAddr), Arc<Load>>,
    sheds: DashMap<(ServiceId, String, SocketAddr), Arc<Shed>>,
    sampler: Arc<Sampler>,
    metrics: DashMap<PortName, Arc<PortMetrics>>,
}

impl Registry {
    /// `shards` is the number of workers; `sampler` measures endpoints.
    pub(crate) fn new(shards: usize, sampler: Arc<Sampler>) -> Registry {
        Registry {
            shards,
            breakers: DashMap::new(),
            waiting: Mutex::default(),
            hasher: RandomState::new(),
            budgets: DashMap::new(),
            bulkheads: DashMap::new(),
            loads: DashMap::new(),
            sheds: DashMap::new(),
            sampler,
            metrics: DashMap::new(),
        }
    }

    pub(crate) fn breaker(
        &self,
        id: &ServiceId,
        config: &config::Breaker,
        moment: Moment,
    ) -> Arc<Breaker> {
        let Moment { now, unix_ms } = moment;
        let name = (id.clone(), config.key.clone());
        let make = || {
            let breaker = Breaker::new(config, self.shards, now, unix_ms);
            if let Some((memory, _)) = self.waiting().remove(&name) {
                breaker.remember(&memory, now, unix_ms);
            }
            Arc::new(breaker)
        };
        let breaker = get_or_insert(&self.breakers, name.clone(), make);
        breaker.reconfigure(config, now, unix_ms);
        breaker
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has breakers go on where others were: those that are there and have not
    /// made a step, and those that will be made within ten minutes.
    pub(crate) fn remember(&self, all: Vec<Remembered>, moment: Moment) {
        let Moment { now, unix_ms } = moment;
        for one in all {
            let name = (one.service, one.key);
            {
                let mut waiting = self.waiting();
                let is_older =
                    |(known, _): &(Memory, Time)| known.since_unix_ms < one.memory.since_unix_ms;
                let is_news = waiting
                    .get(&name)
                    .map_or(waiting.len() < MAX_REMEMBERED, is_older);
                if is_news {
                    waiting.insert(name.clone(), (one.memory, now));
                }
            }
            // Whoever makes the breaker meanwhile finds it; if it was made before, this
            // finds the breaker.
            let breaker = self.breakers.get(&name).map(|breaker| breaker.clone());
            if let Some(breaker) = breaker
                && let Some((memory, _)) = self.waiting().remove(&name)
            {
                breaker.remember(&memory, now, unix_ms);
            }
        }
    }

    /// What there is to remember of all breakers, and of those not made yet.
    pub(crate) fn memories(&self, moment: Moment) -> Vec<Remembered> {
        let Moment { now, unix_ms } = moment;
        let of = |(service, key): &(ServiceId, String), memory| Remembered {
            service: service.clone(),
            key: key.clone(),
            memory,
        };
        let own = self.breakers.iter().filter_map(|breaker| {
            let memory = breaker.value().memory(now, unix_ms)?;
            Some(of(breaker.key(), memory))
        });
        let mut all: Vec<_> = own.take(MAX_REMEMBERED).collect();
        let waiting = self.waiting();
        let waiting = waiting
            .iter()
            .map(|(name, (memory, _))| of(name, memory.clone()));
        all.extend(waiting.take(MAX_REMEMBERED - all.len()));
        all
    }

    /// A number that is another one after any breaker's step.
    pub(crate) fn steps(&self) -> u64 {
        let breakers = self.breakers.iter();
        let of_each = breakers.map(|b| self.hasher.hash_one((b.key(), b.value().step_count())));
        of_each.fold(0, u64::wrapping_add)
    }

    pub(crate) fn budget(
        &self,
        id: &ServiceId,
        key: &str,
        config: &config::Budget,
        moment: Moment,
    ) -> Arc<Budget> {
        let make = || Arc::new(Budget::new(config, self.shards, moment.now));
        let budget = get_or_insert(&self.budgets, (id.clone(), key.to_owned()), make);
        budget.reconfigure(config, moment.now);
        budget
    }

    pub(crate) fn bulkhead(
        &self,
        id: &ServiceId,
        key: &str,
        endpoint: Option<SocketAddr>,
        max: u32,
        queue: u32,
        wait: Option<Duration>,
    ) -> Arc<Bulkhead> {
        let make = || Arc::new(Bulkhead::new(max, queue, wait));
        let bulkhead = get_or_insert(
            &self.bulkheads,
            (id.clone(), key.to_owned(), endpoint),
            make,
        );
        bulkhead.reconfigure(max, queue, wait);
        bulkhead
    }

    pub(crate) fn load(&self, id: &ServiceId, endpoint: SocketAddr) -> Arc<Load> {
        get_or_insert(&self.loads, (id.clone(), endpoint), || {
            Arc::new(Load::default())
        })
    }

    /// `None` where the section does not go by what is measured.
    pub(crate) fn shed(
        &self,
        id: &ServiceId,
        config: &config::LoadShedding,
        endpoint: SocketAddr,
    ) -> Option<Arc<Shed>> {
        let measured = self.sampler.measured(endpoint.ip());
        let cpu = match config.cpu.map(|cpu| cpu.source) {
            Some(config::CpuSource::Node) => &measured.node,
            Some(config::CpuSource::Pod) | None => &measured.pod,
        };
        let new = Shed::new(config, cpu, &measured.pod)?;
        // No guard of the map leaves this function.
        let shed = match self.sheds.entry((id.clone(), config.key.clone(), endpoint)) {
            Entry::Occupied(mut known) => {
                if !known.get().judges_like(&new) {
                    let next = new.continuing(known.get());
                    known.insert(Arc::new(next));
                }
                known.get().clone()
            }
            Entry::Vacant(place) => place.insert(Arc::new(new)).clone(),
        };
        Some(shed)
    }

    /// What is counted of a port, at the destination's side or else.
    pub(crate) fn metrics(&self, id: &ServiceId, port: u16, destination: bool) -> Arc<PortMetrics> {
        get_or_insert(&self.metrics, (id.clone(), port, destination), || {
            Arc::new(PortMetrics::new(self.shards))
        })
    }

    /// Every bulkhead and limit in use, for figures.
    pub(crate) fn bulkheads(&self) -> Vec<(ServiceId, String, Option<SocketAddr>, Arc<Bulkhead>)> {
        let mut all: Vec<_> = self
            .bulkheads
            .iter()
            .map(|b| {
                (
                    b.key().0.clone(),
                    b.key().1.clone(),
                    b.key().2,
                    b.value().clone(),
                )
            })
            .collect();
        all.sort_by(|a, b| (&a.0, &a.1, a.2).cmp(&(&b.0, &b.1, b.2)));
        all
    }

    /// Every retry budget, for figures.
    pub(crate) fn budgets(&self) -> Vec<(ServiceId, String, Arc<Budget>)> {
        let mut all: Vec<_> = self
            .budgets
            .iter()
            .map(|b| (b.key().0.clone(), b.key().1.clone(), b.value().clone()))
            .collect();
        all.sort_by(|a, b| (&a.0, &a.1).cmp(&(&b.0, &b.1)));
        all
    }

    /// Every port's counters, ordered.
    pub(crate) fn ports(&self) -> Vec<(PortName, Arc<PortMetrics>)> {
        let mut all: Vec<_> = self
            .metrics
            .iter()
            .map(|m| (m.key().clone(), m.value().clone()))
            .collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }

    /// Forgets what nobody holds but this registry: call it after the old
    /// snapshot is gone. What a request in flight still holds stays until the
    /// next sweep.
    pub(crate) fn sweep(&self, now: Time) {
        self.waiting()
            .retain(|_, (_, since)| now.since(*since) < WAITING);
        self.breakers.retain(|_, b| Arc::strong_count(b) > 1);
        self.budgets.retain(|_, b| Arc::strong_count(b) > 1);
        self.bulkheads.retain(|_, b| Arc::strong_count(b) > 1);
        self.loads.retain(|_, l| Arc::strong_count(l) > 1);
        self.sheds.retain(|_, s| Arc::strong_count(s) > 1);
        self.metrics.retain(|_, m| Arc::strong_count(m) > 1);
    }
}

/// No guard of the map leaves this function.
fn get_or_insert<K: Eq + Hash, T>(
    map: &DashMap<K, Arc<T>>,
    key: K,
    make: impl FnOnce() -> Arc<T>,
) -> Arc<T> {
    map.entry(key).or_insert_with(make).value().clone()
}
