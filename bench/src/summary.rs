//! From the rounds' figures to one line per proxy: medians over the rounds, and ratios to the relay of the same round.

use serde::{Deserialize, Serialize};

use crate::parts::load::LoadResult;

/// What one proxy did in one round.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Round {
    /// Closed loop: every connection asks again as soon as it has its answer.
    pub(crate) full: LoadResult,
    /// Open loop at the fixed rate.
    pub(crate) half: LoadResult,
}

/// A median over the rounds, and the least and the greatest of them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// `None` if there are no values.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (&min, &max) = (values.first()?, values.last()?);
        let (below, above) = (values[(values.len() - 1) / 2], values[values.len() / 2]);
        Some(Self {
            median: f64::midpoint(below, above),
            min,
            max,
        })
    }
}

/// A figure and its ratio to the relay's. The ratio is taken within each round, so that what slows a whole round
/// down falls out of it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Compared {
    pub(crate) value: Spread,
    pub(crate) to_relay: Spread,
}

impl Compared {
    /// `None` if any round lacks the figure.
    fn of(
        rounds: &[Round],
        relay: &[Round],
        figure: impl Fn(&Round) -> Option<f64>,
    ) -> Option<Self> {
        let values: Vec<f64> = rounds.iter().map(&figure).collect::<Option<_>>()?;
        let base: Vec<f64> = relay.iter().map(&figure).collect::<Option<_>>()?;
        let ratios = values.iter().zip(&base).map(|(value, base)| value / base);
        Some(Self {
            to_relay: Spread::of(ratios)?,
            value: Spread::of(values)?,
        })
    }
}

/// One proxy's line.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) version: Option<String>,
    /// Microseconds of CPU, user and system, per request at full load.
    pub(crate) cpu_us: Compared,
    /// Part of that in user space, 0 to 1.
    pub(crate) user_share: Spread,
    /// Requests per second at full load.
    pub(crate) throughput: Compared,
    /// Part of the window at full load in which the proxy ran or stood ready to, 0 to 1. Near 1 the proxy is what limits
    /// the throughput; the rest is time in which it waited for load or backend.
    pub(crate) busy: Spread,
    /// The greatest part of any window in which the proxy stood ready and another process had its core, 0 to 1.
    pub(crate) kept_waiting: f64,
    /// Bytes resident under load.
    pub(crate) memory: Compared,
    /// Microseconds from the moment due to the end of the answer, at the fixed rate.
    pub(crate) p50_us: Option<Compared>,
    pub(crate) p99_us: Option<Compared>,
    pub(crate) p999_us: Option<Compared>,
    /// Whether in every round at least 99 % of the requests due were answered in the window. If not, the latencies only
    /// say how long the window was.
    pub(crate) carried: bool,
    pub(crate) rounds: Vec<Round>,
}

impl Line {
    /// Sums up `rounds` beside the relay's. `None` if there are no rounds.
    pub(crate) fn of(
        name: &str,
        version: Option<&str>,
        rounds: &[Round],
        relay: &[Round],
    ) -> Option<Self> {
        let us = |ns: Option<u64>| ns.map(|ns| ns as f64 / 1e3);
        let compared = |figure: &dyn Fn(&Round) -> Option<f64>| Compared::of(rounds, relay, figure);
        Some(Self {
            name: name.to_owned(),
            version: version.map(str::to_owned),
            cpu_us: compared(&|r| Some(r.full.cpu.run_ns as f64 / 1e3 / r.full.served as f64))?,
            user_share: Spread::of(rounds.iter().map(|r| r.full.cpu.user_share))?,
            throughput: compared(&|r| Some(r.full.served as f64 / r.full.seconds))?,
            busy: Spread::of(rounds.iter().map(|r| busy(&r.full)))?,
            kept_waiting: rounds
                .iter()
                .flat_map(|r| [&r.full, &r.half])
                .map(|load| load.cpu.wait_ns as f64 / 1e9 / load.seconds)
                .fold(0.0, f64::max),
            memory: compared(&|r| Some(r.full.resident_bytes.max(r.half.resident_bytes) as f64))?,
            p50_us: compared(&|r| us(r.half.p50_ns)),
            p99_us: compared(&|r| us(r.half.p99_ns)),
            p999_us: compared(&|r| us(r.half.p999_ns)),
            carried: rounds.iter().all(|r| r.half.carried()),
            rounds: rounds.to_vec(),
        })
    }
}

fn busy(load: &LoadResult) -> f64 {
    (load.cpu.run_ns + load.cpu.wait_ns) as f64 / 1e9 / load.seconds
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::procfs::CpuUse;

    pub(crate) fn load(served: u64, run_ns: u64, p50_ns: Option<u64>) -> LoadResult {
        LoadResult {
            due: served,
            served,
            seconds: 2.0,
            cpu: CpuUse {
                run_ns,
                wait_ns: 0,
                user_share: 0.25,
            },
            resident_bytes: 4_000_000,
            p50_ns,
            p99_ns: p50_ns.map(|p50| p50 * 3),
            p999_ns: p50_ns.map(|p50| p50 * 9),
        }
    }

    pub(crate) fn round(served: u64, run_ns: u64, p50_ns: u64) -> Round {
        Round {
            full: load(served, run_ns, None),
            half: load(served / 2, run_ns / 2, Some(p50_ns)),
        }
    }

    #[test]
    fn the_median_of_an_odd_number_is_the_middle_one() {
        assert_eq!(
            Spread::of([3.0, 1.0, 2.0]),
            Some(Spread {
                median: 2.0,
                min: 1.0,
                max: 3.0
            })
        );
    }

    #[test]
    fn the_median_of_an_even_number_lies_between_the_middle_two() {
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 3.0]).unwrap().median, 2.5);
    }

    #[test]
    fn nothing_has_no_median() {
        assert_eq!(Spread::of([]), None);
    }

    #[test]
    fn ratios_are_taken_within_a_round() {
        // The second round is twice as slow for everybody: the ratio must not see it.
        let relay = [
            round(1_000, 1_000_000, 50_000),
            round(1_000, 2_000_000, 100_000),
        ];
        let proxy = [
            round(1_000, 1_500_000, 75_000),
            round(1_000, 3_000_000, 150_000),
        ];
        let line = Line::of("proxy", None, &proxy, &relay).unwrap();
        assert_eq!(
            line.cpu_us.to_relay,
            Spread {
                median: 1.5,
                min: 1.5,
                max: 1.5
            }
        );
        assert_eq!(
            line.p50_us.unwrap().to_relay,
            Spread {
                median: 1.5,
                min: 1.5,
                max: 1.5
            }
        );
        assert_eq!(
            line.cpu_us.value,
            Spread {
                median: 2.25,
                min: 1.5,
                max: 3.0
            }
        );
    }

    #[test]
    fn the_relay_is_one_to_itself() {
        let relay = [round(1_000, 1_000_000, 50)];
        let line = Line::of("relay", None, &relay, &relay).unwrap();
        assert_eq!(line.throughput.to_relay.median, 1.0);
        assert_eq!(line.throughput.value.median, 500.0);
        assert_eq!(line.busy.median, 0.0005);
    }

    #[test]
    fn a_quantile_missing_in_one_round_is_not_claimed() {
        let relay = [round(1_000, 1, 50), round(1_000, 1, 50)];
        let mut proxy = relay.clone();
        proxy[1].half.p999_ns = None;
        let line = Line::of("proxy", None, &proxy, &relay).unwrap();
        assert!(line.p99_us.is_some());
        assert!(line.p999_us.is_none());
    }

    #[test]
    fn one_round_behind_the_rate_is_enough_not_to_have_carried_it() {
        let relay = [round(1_000, 1, 50), round(1_000, 1, 50)];
        let mut proxy = relay.clone();
        proxy[1].half.due = 2 * proxy[1].half.served;
        assert!(!Line::of("proxy", None, &proxy, &relay).unwrap().carried);
    }
}
