//! The retry budget: extra tries are a bounded share of the requests.
//!
//! Source: GEP-3388. A request that fails everywhere is then tried 1.2 times
//! on average and not three times, which is what a destination needs that is
//! overloaded already. An extra try counts from the moment at which it is
//! decided on, also while it waits.

use crate::Time;
use crate::config;
use crate::sync::{AtomicU32, Mutex, Ordering, Padded, lock};
use crate::ticks::{Shared, Tally, Tick, Ticks, add};

/// Parts of the interval: it is never longer than it should be, and by at most
/// one part shorter.
const PARTS: usize = 32;
/// Parts of the floor's interval.
const FLOOR_PARTS: usize = 8;

/// The budget of one key, for all workers of an agent.
#[derive(Debug)]
pub struct Budget {
    percent: AtomicU32,
    min_count: AtomicU32,
    ticks: Ticks,
    floor_ticks: Ticks,
    /// Requests, each worker for itself.
    requests: Box<[Padded<[Tally<1>; PARTS]>]>,
    /// Extra tries of the interval.
    extra: Padded<Shared<PARTS>>,
    /// Extra tries of the floor's interval.
    floor: Padded<Shared<FLOOR_PARTS>>,
    config: Mutex<config::Budget>,
}

impl Budget {
    /// An unused budget for `shards` workers.
    pub fn new(config: &config::Budget, shards: usize, now: Time) -> Budget {
        let shard = |_| Padded(std::array::from_fn(|_| Tally::default()));
        Budget {
            percent: AtomicU32::new(config.percent.get()),
            min_count: AtomicU32::new(config.min_count),
            ticks: Ticks::new(config.interval / PARTS as u32, now),
            floor_ticks: Ticks::new(config.min_interval / FLOOR_PARTS as u32, now),
            requests: (0..shards.max(1)).map(shard).collect(),
            extra: Padded::default(),
            floor: Padded::default(),
            config: Mutex::new(*config),
        }
    }

    /// The policy changed and the key did not. What was counted is kept, unless
    /// its interval is another one now.
    pub fn reconfigure(&self, config: &config::Budget, now: Time) {
        let mut current = lock(&self.config);
        self.percent.store(config.percent.get(), Ordering::Relaxed);
        self.min_count.store(config.min_count, Ordering::Relaxed);
        if config.interval != current.interval {
            self.ticks.restart(config.interval / PARTS as u32, now);
        }
        if config.min_interval != current.min_interval {
            self.floor_ticks
                .restart(config.min_interval / FLOOR_PARTS as u32, now);
        }
        *current = *config;
    }

    /// A request begins. `shard` is the worker: no two threads may use the same
    /// one at a time, or counts are lost.
    pub fn request(&self, shard: usize, now: Time) {
        let tick = self.ticks.at(now);
        let shard = &self.requests[shard % self.requests.len()];
        let [count] = shard[tick.slot(PARTS)].of(tick);
        add(count, 1);
    }

    /// Asks for an extra try. If it may be made, it counts from now on.
    ///
    /// Threads that ask at once do not exceed the share; each of them may
    /// exceed the floor by one.
    pub fn try_withdraw(&self, _shard: usize, now: Time) -> bool {
        let tick = self.ticks.at(now);
        let floor_tick = self.floor_ticks.at(now);
        let percent = u64::from(self.percent.load(Ordering::Relaxed));
        let min_count = u64::from(self.min_count.load(Ordering::Relaxed));
        let granted = self.extra.add_if(tick, || {
            let extra = self.extra.sum(tick) + 1;
            extra * 100 <= self.requests_until(tick) * percent
                || self.floor.sum(floor_tick) < min_count
        });
        granted && {
            self.floor.add_if(floor_tick, || true);
            true
        }
    }

    /// Requests and extra tries of the interval.
    pub fn status(&self, now: Time) -> (u64, u64) {
        let tick = self.ticks.at(now);
        (self.requests_until(tick), self.extra.sum(tick))
    }

    fn requests_until(&self, tick: Tick) -> u64 {
        let shards = self.requests.iter();
        shards
            .flat_map(|shard| {
                let ticks = tick.last(PARTS as u64);
                ticks.filter_map(|tick| shard[tick.slot(PARTS)].read(tick))
            })
            .map(|[count]| count)
            .sum()
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::config::Percent;

    fn config(percent: u32, min_count: u32) -> config::Budget {
        config::Budget {
            percent: Percent::new(percent).unwrap(),
            interval: Duration::from_secs(10),
            min_count,
            min_interval: Duration::from_secs(1),
        }
    }

    fn at(millis: u64) -> Time {
        Time::from_millis(millis)
    }

    fn granted(budget: &Budget, asked: usize, millis: u64) -> usize {
        (0..asked)
            .filter(|n| budget.try_withdraw(n % 2, at(millis)))
            .count()
    }

    #[test]
    fn twenty_percent_is_twenty_percent() {
        let budget = Budget::new(&config(20, 0), 2, at(0));
        for n in 0..1000 {
            budget.request(n % 2, at(n as u64 * 9));
        }
        assert_eq!(granted(&budget, 1000, 9_000), 200);
        assert_eq!(budget.status(at(9_000)), (1000, 200));
    }

    #[test]
    fn the_floor_is_given_in_each_of_its_intervals_without_any_requests() {
        let budget = Budget::new(&config(20, 10), 2, at(0));
        for second in 0..20 {
            assert_eq!(granted(&budget, 100, second * 1000), 10, "second {second}");
        }
    }

    #[test]
    fn the_floor_does_not_add_to_the_share() {
        let budget = Budget::new(&config(20, 10), 1, at(0));
        for _ in 0..1000 {
            budget.request(0, at(0));
        }
        assert_eq!(granted(&budget, 1000, 0), 200);
    }

    #[test]
    fn what_is_older_than_the_interval_counts_no_more() {
        let budget = Budget::new(&config(20, 0), 1, at(0));
        for _ in 0..100 {
            budget.request(0, at(0));
        }
        assert_eq!(granted(&budget, 15, 1), 15);
        assert_eq!(granted(&budget, 15, 9_999), 5);
        assert_eq!(granted(&budget, 15, 10_000), 0);
        assert_eq!(budget.status(at(10_001)), (0, 5));
    }

    #[test]
    fn an_extra_try_counts_from_the_decision_on_not_from_its_start() {
        let budget = Budget::new(&config(20, 0), 1, at(0));
        for _ in 0..5 {
            budget.request(0, at(0));
        }
        assert!(budget.try_withdraw(0, at(0)), "this one now waits");
        assert!(!budget.try_withdraw(0, at(0)));
    }

    #[test]
    fn nothing_allowed_is_nothing_granted() {
        let budget = Budget::new(&config(0, 0), 1, at(0));
        budget.request(0, at(0));
        assert!(!budget.try_withdraw(0, at(0)));
    }

    #[test]
    fn a_changed_policy_keeps_what_was_counted_unless_the_interval_changed() {
        let budget = Budget::new(&config(20, 0), 1, at(0));
        for _ in 0..100 {
            budget.request(0, at(0));
        }
        assert_eq!(granted(&budget, 100, 0), 20);
        budget.reconfigure(&config(50, 0), at(0));
        assert_eq!(granted(&budget, 100, 0), 30);
        let shorter = config::Budget {
            interval: Duration::from_secs(5),
            ..config(50, 0)
        };
        budget.reconfigure(&shorter, at(0));
        assert_eq!(budget.status(at(0)), (0, 0));
    }

    #[test]
    fn threads_that_ask_at_once_do_not_exceed_the_share() {
        let budget = Budget::new(&config(20, 0), 4, at(0));
        for n in 0..4_000 {
            budget.request(n, at(0));
        }
        let granted: usize = std::thread::scope(|scope| {
            let ask = || (0..1000).filter(|_| budget.try_withdraw(0, at(1))).count();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .sum()
        });
        assert_eq!(granted, 800);
    }

    proptest! {
        #[test]
        fn extra_tries_are_never_more_than_the_share_or_the_floor(
            percent in 0u32..=100,
            min_count in 0u32..5,
            steps in prop::collection::vec((0u64..400, prop::bool::ANY), 1..300),
        ) {
            let budget = Budget::new(&config(percent, min_count), 2, at(0));
            let (mut now, mut granted) = (0, Vec::new());
            for (n, (pass, request)) in steps.into_iter().enumerate() {
                now += pass;
                if request {
                    budget.request(n, at(now));
                    continue;
                }
                let (requests, before) = budget.status(at(now));
                let in_share = (before + 1) * 100 <= requests * u64::from(percent);
                // By at most one part, an eighth of a second, the floor's
                // second is shorter than it should be.
                let since = |millis: u64| granted.iter().filter(|at| *at + millis > now).count();
                let in_floor = since(1000) < min_count as usize;
                let above_floor = since(875) >= min_count as usize;
                let given = budget.try_withdraw(n, at(now));
                prop_assert!(given || !in_share && !in_floor);
                prop_assert!(!given || in_share || !above_floor);
                if given {
                    granted.push(now);
                }
            }
        }
    }
}
