//! Load shedding by what is measured of an endpoint: its use of CPU, and the
//! pressure that it is under.
//!
//! Whoever samples an endpoint writes [`Figures`]; every request reads them. A
//! [`Shed`] refuses a share of the requests that rises evenly from none at a
//! threshold to its maximum at 100 % (a linear ramp, as random early detection
//! does it for queues: Floyd and Jacobson, 1993).
//!
//! The ramp has no hysteresis and needs none: refusing a request lowers what is
//! measured, so the share settles where load and refusals balance, and what is
//! refused never enters the figure. A switch with two states would swing between
//! them. Only the [`Transition`]s that people are told of have a hysteresis.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::Time;
use crate::config::{CpuShedding, LoadShedding, Percent};
use crate::random::{below_or_at, mix};
use crate::sync::{AtomicU64, Ordering};

#[cfg(test)]
#[cfg(not(loom))]
mod tests;

/// A figure follows its samples with this time constant: of a step, it has
/// covered 63 % after it and 95 % after three. Shorter, and the share of
/// refusals swings by itself from twice the load that a pod can carry; longer,
/// and a pod has seconds of work before it is relieved.
pub const FOLLOWS: Duration = Duration::from_secs(1);
/// A figure whose last sample is older says nothing.
const STALE: Duration = Duration::from_secs(2);
/// A load that stays below its thresholds for so long is told as having ended.
const QUIET: Duration = Duration::from_secs(5);
/// The largest share that pressure refuses: some requests always pass, or a
/// figure that nothing brings down would close a pod for good.
const MAX_PRESSURE_DROP: Percent = Percent::literal(90);
/// Parts of a [`Share`].
const ALL: u32 = 1_000_000;
/// Bits of a figure's word that hold its share.
const SHARE_BITS: u32 = 20;

/// A part of a whole, from nothing to all, in millionths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Share(u32);

impl Share {
    /// How much `part` is of `whole`; all where it is more, as a short burst of
    /// CPU may be. `None` where there is no whole.
    pub fn of(part: Duration, whole: Duration) -> Option<Share> {
        let millionths = (part.as_nanos() * u128::from(ALL)).checked_div(whole.as_nanos())?;
        Some(Share(
            u32::try_from(millionths).map_or(ALL, |share| share.min(ALL)),
        ))
    }

    const fn from_percent(percent: Percent) -> Share {
        Share(percent.get() * (ALL / 100))
    }

    /// In hundredths, rounded down.
    pub const fn percent(self) -> u32 {
        self.0 / (ALL / 100)
    }

    /// From 0 to 1.
    pub fn ratio(self) -> f64 {
        f64::from(self.0) / f64::from(ALL)
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.percent())
    }
}

/// One measured share, smoothed. Written by one thread, read by any.
///
/// It is an exponentially weighted average of the samples with a time constant
/// of 1 s, whatever the samples' distance; it begins at nothing, so that a load
/// must last to count.
#[derive(Debug, Default)]
pub struct Figure {
    /// When it was sampled, in milliseconds and one more (44 bits, 0 = never),
    /// and the share (20 bits).
    word: AtomicU64,
}

impl Figure {
    /// Takes in that it was `share` over the time `over` that ends `now`.
    pub fn sample(&self, share: Share, over: Duration, now: Time) {
        let before = self.read(now).unwrap_or_default();
        let weight = 1.0 - (-over.as_secs_f64() / FOLLOWS.as_secs_f64()).exp();
        let step = (f64::from(share.0) - f64::from(before.0)) * weight;
        let after = (f64::from(before.0) + step)
            .round()
            .clamp(0.0, f64::from(ALL));
        let at = now.as_millis() + 1;
        self.word
            .store(at << SHARE_BITS | after as u64, Ordering::Relaxed);
    }

    /// The figure; `None` where it was not sampled for 2 s.
    pub fn read(&self, now: Time) -> Option<Share> {
        let word = self.word.load(Ordering::Relaxed);
        let at = (word >> SHARE_BITS).checked_sub(1)?;
        let fresh = now.since(Time::from_millis(at)) <= STALE;
        fresh.then_some(Share((word & ((1 << SHARE_BITS) - 1)) as u32))
    }
}

/// What is measured of one pod, or of a node.
#[derive(Debug, Default)]
pub struct Figures {
    /// CPU used, of what may be used.
    pub cpu: Figure,
    /// Time in which some task waited for CPU.
    pub cpu_pressure: Figure,
    /// Time in which some task waited for memory.
    pub memory_pressure: Figure,
}

/// What a refusal is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// `loadShedding.cpu`.
    Cpu,
    /// `loadShedding.pressure`, while tasks wait for CPU.
    CpuPressure,
    /// `loadShedding.pressure`, while tasks wait for memory.
    MemoryPressure,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Cause::Cpu => "use of CPU",
            Cause::CpuPressure => "time waiting for CPU",
            Cause::MemoryPressure => "time waiting for memory",
        })
    }
}

/// Why a request is refused: "use of CPU is 93%, the limit 80%".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[error("{cause} is {figure}, the limit {limit}")]
pub struct Refused {
    /// What is above its limit.
    pub cause: Cause,
    /// How high it is.
    pub figure: Share,
    /// From where on requests are refused.
    pub limit: Share,
}

/// A change that people are told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transition {
    /// A figure is above its limit.
    Started(Refused),
    /// None has been for 5 s, or nothing is measured any more.
    Stopped {
        /// From the start to the last moment above a limit.
        lasted: Duration,
    },
}

/// From where on a share of requests is refused, and how large it grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ramp {
    from: Share,
    most: Share,
}

impl Ramp {
    /// The share of requests to refuse.
    fn refuses(self, figure: Share) -> Share {
        match (figure.0.checked_sub(self.from.0), ALL - self.from.0) {
            (None, _) => Share(0),
            (Some(_), 0) => self.most,
            (Some(above), room) => {
                let part = u64::from(self.most.0) * u64::from(above) / u64::from(room);
                // Not more than `most`, as `above` is at most `room`.
                Share(part as u32)
            }
        }
    }
}

/// What a policy asks of one endpoint.
#[derive(Clone, Debug)]
struct Rule {
    ramp: Ramp,
    /// Whose figures count.
    of: Arc<Figures>,
}

/// Refuses requests to one endpoint by its load.
#[derive(Debug)]
pub struct Shed {
    cpu: Option<Rule>,
    pressure: Option<Rule>,
    /// While it is told as shedding: since when, and when a figure was last above
    /// its limit. In milliseconds and one more; 0 = it is not.
    since: AtomicU64,
    above: AtomicU64,
}

impl Shed {
    /// What `config` asks for; `None` where that is nothing. `cpu` are the figures
    /// of [`CpuShedding::source`], `pressure` those of the pod.
    pub fn new(config: &LoadShedding, cpu: &Arc<Figures>, pressure: &Arc<Figures>) -> Option<Shed> {
        let of_cpu = |config: &CpuShedding| Rule {
            ramp: Ramp {
                from: Share::from_percent(config.threshold),
                most: Share::from_percent(config.max_drop),
            },
            of: cpu.clone(),
        };
        let shed = Shed {
            cpu: config.cpu.as_ref().map(of_cpu),
            pressure: config.pressure.map(|some| Rule {
                ramp: Ramp {
                    from: Share::from_percent(some),
                    most: Share::from_percent(MAX_PRESSURE_DROP),
                },
                of: pressure.clone(),
            }),
            since: AtomicU64::new(0),
            above: AtomicU64::new(0),
        };
        (shed.cpu.is_some() || shed.pressure.is_some()).then_some(shed)
    }

    /// Goes on from where `before` was, which had other limits: what it told has
    /// been told.
    #[must_use]
    pub fn continuing(self, before: &Shed) -> Shed {
        let take = |of: &AtomicU64| AtomicU64::new(of.load(Ordering::Relaxed));
        Shed {
            since: take(&before.since),
            above: take(&before.above),
            ..self
        }
    }

    /// Whether both judge the same figures by the same limits.
    pub fn judges_like(&self, other: &Shed) -> bool {
        let equal = |a: &Option<Rule>, b: &Option<Rule>| match (a, b) {
            (Some(a), Some(b)) => a.ramp == b.ramp && Arc::ptr_eq(&a.of, &b.of),
            (a, b) => a.is_none() && b.is_none(),
        };
        equal(&self.cpu, &other.cpu) && equal(&self.pressure, &other.pressure)
    }

    /// Lets a request through, or refuses it. One that draws the same `random` at
    /// several endpoints is refused by all of them only as often as by the one
    /// that refuses least.
    ///
    /// # Errors
    /// The request is one of the share that is refused now.
    pub fn admit(&self, now: Time, random: u64) -> Result<(), Refused> {
        match self.worst(now) {
            Some((refuses, refused))
                if below_or_at(u64::from(ALL) - 1, mix(random)) < u64::from(refuses.0) =>
            {
                Err(refused)
            }
            _ => Ok(()),
        }
    }

    /// The share of requests that is refused now.
    pub fn refuses(&self, now: Time) -> Share {
        self.worst(now).map_or(Share(0), |(refuses, _)| refuses)
    }

    /// Says whether shedding has started or ended. To be called about as often as
    /// figures are sampled, by one thread.
    pub fn observe(&self, now: Time) -> Option<Transition> {
        let worst = self.worst(now).filter(|(refuses, _)| refuses.0 > 0);
        let at = now.as_millis() + 1;
        let since = self.since.load(Ordering::Relaxed);
        match worst {
            Some((_, refused)) => {
                self.above.store(at, Ordering::Relaxed);
                (since == 0).then(|| {
                    self.since.store(at, Ordering::Relaxed);
                    Transition::Started(refused)
                })
            }
            None => {
                let above = self.above.load(Ordering::Relaxed);
                let quiet = Duration::from_millis(at.saturating_sub(above)) >= QUIET;
                (since != 0 && quiet).then(|| {
                    self.since.store(0, Ordering::Relaxed);
                    Transition::Stopped {
                        lasted: Duration::from_millis(above.saturating_sub(since)),
                    }
                })
            }
        }
    }

    /// The figures that it goes by, those that are known.
    pub fn figures(&self, now: Time) -> impl Iterator<Item = (Cause, Share)> {
        let judged = self.judged(now).into_iter().flatten();
        judged.map(|(_, judged)| (judged.cause, judged.figure))
    }

    /// The judgement that refuses the largest share, with that share.
    fn worst(&self, now: Time) -> Option<(Share, Refused)> {
        let judged = self.judged(now).into_iter().flatten();
        judged.max_by_key(|(refuses, _)| *refuses)
    }

    fn judged(&self, now: Time) -> [Option<(Share, Refused)>; 3] {
        let judge = |rule: &Option<Rule>, cause, of: fn(&Figures) -> &Figure| {
            let rule = rule.as_ref()?;
            let figure = of(&rule.of).read(now)?;
            let refused = Refused {
                cause,
                figure,
                limit: rule.ramp.from,
            };
            Some((rule.ramp.refuses(figure), refused))
        };
        let pressure = &self.pressure;
        [
            judge(&self.cpu, Cause::Cpu, |of| &of.cpu),
            judge(pressure, Cause::CpuPressure, |of| &of.cpu_pressure),
            judge(pressure, Cause::MemoryPressure, |of| &of.memory_pressure),
        ]
    }
}
