//! How busy the pods of this node are, as the kernel counts it: what load
//! shedding goes by.
//!
//! A pod's control group is read every 200 ms, while a section needs it, and
//! only where its pod is on this node: [`Sampler::watch`] says which those are,
//! and by which addresses. An endpoint on a loopback address is a process of this
//! machine and has no pod: the machine stands in for it. Of all other endpoints
//! nothing is known, and nothing is shed for them here.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use weir_resilience::Time;
use weir_resilience::shed::{Figures, Share};

use source::{Missing, Reading, Source};

mod parse;
mod places;
mod source;
#[cfg(test)]
mod tests;

/// How often figures are sampled.
pub(crate) const EVERY: Duration = Duration::from_millis(200);
/// A pod whose control group is not there is looked for again after this.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// Where the kernel tells what it counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// Where control groups are mounted.
    pub cgroup: PathBuf,
    /// Where processes are.
    pub proc: PathBuf,
}

impl Default for Kernel {
    /// `/sys/fs/cgroup` and `/proc`.
    fn default() -> Kernel {
        Kernel {
            cgroup: "/sys/fs/cgroup".into(),
            proc: "/proc".into(),
        }
    }
}

/// What is measured for one address.
#[derive(Clone, Debug, Default)]
pub(crate) struct Measured {
    /// Of its pod.
    pub(crate) pod: Arc<Figures>,
    /// Of the node that it is on.
    pub(crate) node: Arc<Figures>,
}

/// Samples the pods of this node.
pub(crate) struct Sampler {
    kernel: Kernel,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// For whom figures are asked for: one per endpoint's address that sheds.
    wanted: HashMap<IpAddr, Wanted>,
    /// By UID.
    pods: HashMap<String, Subject>,
    /// Watches begun so far.
    watches: u64,
    machine: Subject,
    /// Reasons that were logged.
    told: HashSet<Missing>,
    /// What files are read into.
    buffer: Vec<u8>,
}

/// Figures that somebody holds, or held.
#[derive(Default)]
struct Wanted {
    pod: Weak<Figures>,
    node: Weak<Figures>,
}

impl Wanted {
    fn record(&self, of_pod: Option<Sample>, of_node: Option<Sample>) {
        for (sample, figures) in [(of_pod, &self.pod), (of_node, &self.node)] {
            if let (Some(sample), Some(figures)) = (sample, figures.upgrade()) {
                sample.record(&figures);
            }
        }
    }
}

/// The figures, which are made where nobody holds them.
fn hold(figures: &mut Weak<Figures>) -> Arc<Figures> {
    figures.upgrade().unwrap_or_else(|| {
        let made = Arc::default();
        *figures = Arc::downgrade(&made);
        made
    })
}

/// What is sampled.
#[derive(Default)]
struct Subject {
    /// Of its watch.
    number: u64,
    addresses: Vec<IpAddr>,
    source: Option<Source>,
    last: Option<(Time, Reading)>,
    /// Not before then is it looked for.
    look_at: Time,
}

/// A pod is known as long as this lives.
#[must_use = "the pod is forgotten when this is dropped"]
pub(crate) struct Watch {
    sampler: Arc<Sampler>,
    uid: String,
    number: u64,
}

impl Drop for Watch {
    fn drop(&mut self) {
        let pods = &mut self.sampler.lock().pods;
        // Another may have begun before this one ended.
        if (pods.get(&self.uid)).is_some_and(|pod| pod.number == self.number) {
            pods.remove(&self.uid);
        }
    }
}

impl Sampler {
    pub(crate) fn new(kernel: Kernel) -> Sampler {
        Sampler {
            kernel,
            inner: Mutex::default(),
        }
    }

    /// From now on the pod `uid` is on this node and has these addresses.
    pub(crate) fn watch(self: &Arc<Sampler>, uid: &str, addresses: &[IpAddr]) -> Watch {
        let mut inner = self.lock();
        inner.watches += 1;
        let number = inner.watches;
        let subject = Subject {
            number,
            addresses: addresses.to_vec(),
            ..Subject::default()
        };
        inner.pods.insert(uid.to_owned(), subject);
        Watch {
            sampler: self.clone(),
            uid: uid.to_owned(),
            number,
        }
    }

    /// What is measured for whoever has this address, now or later. It is sampled
    /// for as long as somebody holds it.
    pub(crate) fn measured(&self, address: IpAddr) -> Measured {
        let mut inner = self.lock();
        let wanted = inner.wanted.entry(address).or_default();
        Measured {
            pod: hold(&mut wanted.pod),
            node: hold(&mut wanted.node),
        }
    }

    /// Samples every [`EVERY`] and lets `after` look at what came of it. Does not
    /// return.
    pub(crate) async fn run(&self, now: impl Fn() -> Time, after: impl Fn(Time)) {
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.sample(&now);
            after(now());
        }
    }

    /// One sample of all that is asked for.
    fn sample(&self, now: &impl Fn() -> Time) {
        let inner = &mut *self.lock();
        inner
            .wanted
            .retain(|_, wanted| wanted.pod.strong_count() > 0 || wanted.node.strong_count() > 0);
        if inner.wanted.is_empty() {
            return;
        }
        let Inner {
            wanted,
            pods,
            machine,
            told,
            buffer,
            ..
        } = inner;
        // The machine is read first: what the pods without a limit may use is
        // counted there.
        let open = |buffer: &mut _| Source::of_machine(&self.kernel, buffer);
        let of_machine = machine.sample(open, now, None, told, buffer);
        let cpus = machine.last.and_then(|(_, reading)| reading.millicpus);
        for (address, wanted) in wanted.iter() {
            if address.is_loopback() {
                wanted.record(of_machine, of_machine);
            }
        }
        for (uid, pod) in pods {
            let addresses = pod.addresses.iter();
            let asked_for: Vec<&Wanted> = addresses.filter_map(|of| wanted.get(of)).collect();
            if asked_for.is_empty() {
                // Files are not kept open for nobody.
                (pod.source, pod.last) = (None, None);
                continue;
            }
            let open = |buffer: &mut _| Source::of_pod(&self.kernel, uid, buffer);
            let of_pod = pod.sample(open, now, cpus, told, buffer);
            for wanted in asked_for {
                wanted.record(of_pod, of_machine);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What was measured between two readings.
#[derive(Clone, Copy, Debug)]
struct Sample {
    at: Time,
    over: Duration,
    cpu: Option<Share>,
    cpu_pressure: Option<Share>,
    memory_pressure: Option<Share>,
}

impl Sample {
    /// Between two readings; `cpus` counts where a reading knows no limit.
    fn between(
        (before, first): (Time, Reading),
        (at, second): (Time, Reading),
        cpus: Option<u64>,
    ) -> Sample {
        let over = at.since(before);
        // A counter that went back belongs to something else now.
        let grown = |of: fn(&Reading) -> Option<Duration>| {
            of(&second).and_then(|to| to.checked_sub(of(&first)?))
        };
        let part = |of, whole| grown(of).and_then(|part| Share::of(part, whole));
        let millicpus = second.millicpus.or(cpus);
        let available = millicpus.map(|millis| {
            let nanos = over.as_nanos() * u128::from(millis) / 1000;
            Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
        });
        Sample {
            at,
            over,
            cpu: available.and_then(|whole| part(|reading| reading.used, whole)),
            cpu_pressure: part(|reading| reading.waited_for_cpu, over),
            memory_pressure: part(|reading| reading.waited_for_memory, over),
        }
    }

    fn record(&self, figures: &Figures) {
        for (share, figure) in [
            (self.cpu, &figures.cpu),
            (self.cpu_pressure, &figures.cpu_pressure),
            (self.memory_pressure, &figures.memory_pressure),
        ] {
            if let Some(share) = share {
                figure.sample(share, self.over, self.at);
            }
        }
    }
}

impl Subject {
    /// Reads it; `None` for the first time, and where there is nothing to read.
    fn sample(
        &mut self,
        open: impl FnOnce(&mut Vec<u8>) -> Result<(Source, Vec<Missing>), Missing>,
        now: &impl Fn() -> Time,
        cpus: Option<u64>,
        told: &mut HashSet<Missing>,
        buffer: &mut Vec<u8>,
    ) -> Option<Sample> {
        if self.source.is_none() {
            let at = now();
            if at < self.look_at {
                return None;
            }
            self.look_at = at + LOOK_AGAIN;
            match open(buffer) {
                Ok((source, missing)) => {
                    missing.into_iter().for_each(|missing| tell(missing, told));
                    self.source = Some(source);
                }
                Err(missing) => {
                    tell(missing, told);
                    return None;
                }
            }
        }
        let reading = self.source.as_ref()?.read(buffer);
        let at = now();
        let Some(reading) = reading else {
            // Its control group is gone; a pod that is still there has another.
            (self.source, self.last) = (None, None);
            return None;
        };
        let before = self.last.replace((at, reading))?;
        Some(Sample::between(before, (at, reading), cpus))
    }
}

/// Each reason is logged once.
fn tell(missing: Missing, told: &mut HashSet<Missing>) {
    if told.insert(missing) {
        tracing::warn!(
            reason = missing.to_string(),
            "load shedding cannot see everything"
        );
    }
}
