//! What a breaker counts: requests, failures and slow ones of its window.
//!
//! Windows of time are counted by each worker for itself, in buckets that know
//! their tick, and added up when a request failed. A window of requests is one
//! sequence for all workers, behind a mutex.

use std::time::Duration;

use super::Cause;
use super::count::Count;
use crate::Time;
use crate::config;
use crate::sync::{AtomicU64, Mutex, Ordering, lock};
use crate::ticks::{Tally, Tick, Ticks, add};

/// Parts of a rolling window: its edge moves in steps of a sixteenth. The
/// window is never longer than it should be, and by at most this shorter.
const BUCKETS: usize = if cfg!(loom) { 1 } else { 16 };
/// Kinds of failure that one bucket tells apart; others count without name.
const CAUSES: usize = 4;
/// From so many requests on, the window is added up at most once a millisecond.
const LARGE: u64 = 1_000;

const REQUESTS: usize = 0;
const FAILED: usize = 1;
const SLOW: usize = 2;
const FIRST_CAUSE: usize = 3;

/// With its tag, 64 bytes: one line of the cache.
type Bucket = Tally<{ FIRST_CAUSE + CAUSES }>;

#[derive(Debug)]
#[repr(align(128))]
struct Shard([Bucket; BUCKETS]);

/// One request that ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    pub(super) failure: Option<Cause>,
    pub(super) slow: bool,
}

/// The requests of a window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sum {
    pub(super) requests: u64,
    pub(super) failed: u64,
    pub(super) slow: u64,
    /// In which they ended.
    pub(super) over: Duration,
}

impl Sum {
    /// Requests per second, in thousandths. Less than a second counts as one:
    /// the first request of a window is no flood.
    pub(super) fn rate_milli(&self) -> u64 {
        let millis = self.over.as_millis().max(1_000);
        u64::try_from(u128::from(self.requests) * 1_000_000 / millis).unwrap_or(u64::MAX)
    }
}

#[derive(Debug)]
pub(super) struct Window {
    ticks: Ticks,
    /// Ticks in the window; 0 for one of requests.
    length: AtomicU64,
    shards: Box<[Shard]>,
    count: Mutex<Count>,
    /// The millisecond after the one in which a large window was last added
    /// up; 0 when it was small.
    added_up: AtomicU64,
}

impl Window {
    pub(super) fn new(config: config::Window, shards: usize, now: Time) -> Window {
        let (length, tick) = shape(config);
        let ticks = Ticks::new(tick, now);
        let shard = |_| Shard(std::array::from_fn(|_| Bucket::default()));
        Window {
            length: AtomicU64::new(length),
            shards: (0..shards.max(1)).map(shard).collect(),
            count: Mutex::new(Count::new(config, ticks.at(now))),
            added_up: AtomicU64::new(0),
            ticks,
        }
    }

    /// Empties the window. Only one caller at a time.
    pub(super) fn restart(&self, config: config::Window, now: Time) {
        let (length, tick) = shape(config);
        self.length.store(length, Ordering::Relaxed);
        self.ticks.restart(tick, now);
        self.added_up.store(0, Ordering::Relaxed);
        *lock(&self.count) = Count::new(config, self.ticks.at(now));
    }

    /// The tick of `now`. Taken before a permit is checked, so that the sample
    /// of a permit that is good cannot go into a window begun after the check.
    pub(super) fn tick(&self, now: Time) -> Tick {
        self.ticks.at(now)
    }

    /// Counts a request that ended in `tick`.
    pub(super) fn record(&self, shard: usize, tick: Tick, now: Time, sample: Sample) {
        if self.length.load(Ordering::Relaxed) == 0 {
            return lock(&self.count).record(tick, now, sample);
        }
        let shard = &self.shards[shard % self.shards.len()];
        let words = shard.0[tick.slot(BUCKETS)].of(tick);
        add(&words[REQUESTS], 1);
        if sample.slow {
            add(&words[SLOW], 1);
        }
        if let Some(cause) = sample.failure {
            add(&words[FAILED], 1);
            name(&words[FIRST_CAUSE..], cause);
        }
    }

    /// The sum, unless the window is large and was added up in this
    /// millisecond.
    pub(super) fn sum_if_due(&self, now: Time) -> Option<Sum> {
        let this_milli = now.as_millis().saturating_add(1);
        let last = self.added_up.load(Ordering::Relaxed);
        if last == this_milli {
            return None;
        }
        let sum = self.sum(now);
        let mark = if sum.requests >= LARGE { this_milli } else { 0 };
        if mark != last {
            self.added_up.store(mark, Ordering::Relaxed);
        }
        Some(sum)
    }

    pub(super) fn sum(&self, now: Time) -> Sum {
        let length = self.length.load(Ordering::Relaxed);
        if length == 0 {
            return lock(&self.count).sum(now);
        }
        let mut sum = Sum {
            over: self.ticks.covered(now, length),
            ..Sum::default()
        };
        self.each(now, length, |words| {
            sum.requests += words[REQUESTS];
            // Read after the requests, it may be ahead of them.
            sum.failed += words[FAILED].min(words[REQUESTS]);
            sum.slow += words[SLOW].min(words[REQUESTS]);
        });
        sum
    }

    /// The kinds of failure and their numbers, most frequent first.
    pub(super) fn causes(&self, now: Time) -> Vec<(Cause, u64)> {
        let length = self.length.load(Ordering::Relaxed);
        let mut causes = Vec::new();
        if length == 0 {
            lock(&self.count)
                .failures()
                .for_each(|cause| tally(&mut causes, cause, 1));
        }
        self.each(now, length, |words| {
            for word in words[FIRST_CAUSE..].iter().filter(|word| **word != 0) {
                let (cause, count) = unpack(*word);
                tally(&mut causes, cause, count);
            }
        });
        causes.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        causes
    }

    fn each(&self, now: Time, length: u64, mut of: impl FnMut([u64; FIRST_CAUSE + CAUSES])) {
        let tick = self.ticks.at(now);
        for shard in &self.shards {
            for tick in tick.last(length) {
                if let Some(words) = shard.0[tick.slot(BUCKETS)].read(tick) {
                    of(words);
                }
            }
        }
    }
}

fn shape(config: config::Window) -> (u64, Duration) {
    match config {
        config::Window::Rolling(window) => (BUCKETS as u64, window / BUCKETS as u32),
        config::Window::Fixed(window) => (1, window),
        // Its ticks only tell one life from the next.
        config::Window::Count(_) => (0, Duration::MAX),
    }
}

fn tally(causes: &mut Vec<(Cause, u64)>, cause: Cause, count: u64) {
    match causes.iter_mut().find(|(seen, _)| *seen == cause) {
        Some((_, sum)) => *sum += count,
        None => causes.push((cause, count)),
    }
}

/// Counts a cause in the word that has it, or in the first free one.
fn name(words: &[AtomicU64], cause: Cause) {
    let code = code(cause);
    for word in words {
        let bits = word.load(Ordering::Relaxed);
        if bits == 0 || bits >> COUNT_BITS == code {
            word.store((code << COUNT_BITS | bits) + 1, Ordering::Relaxed);
            return;
        }
    }
}

const COUNT_BITS: u32 = 48;
const GRPC: u64 = 1_000;
const TIMEOUT: u64 = 2_000;
const CONNECT: u64 = 2_001;
const RESET: u64 = 2_002;

/// Never zero: only listed statuses are counted, and these begin at 100.
fn code(cause: Cause) -> u64 {
    match cause {
        Cause::Status(status) => status.into(),
        Cause::Grpc(code) => GRPC + u64::from(code),
        Cause::Timeout => TIMEOUT,
        Cause::Connect => CONNECT,
        Cause::Reset => RESET,
    }
}

fn unpack(word: u64) -> (Cause, u64) {
    let count = word & ((1 << COUNT_BITS) - 1);
    let cause = match word >> COUNT_BITS {
        TIMEOUT => Cause::Timeout,
        CONNECT => Cause::Connect,
        RESET => Cause::Reset,
        code if code >= GRPC => Cause::Grpc((code - GRPC) as u8),
        code => Cause::Status(code as u16),
    };
    (cause, count)
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    const OK: Sample = Sample {
        failure: None,
        slow: false,
    };
    const BAD: Sample = Sample {
        failure: Some(Cause::Status(503)),
        slow: false,
    };

    fn at(millis: u64) -> Time {
        Time::from_millis(millis)
    }

    fn count(window: &Window, shard: usize, millis: u64, sample: Sample) {
        window.record(shard, window.tick(at(millis)), at(millis), sample);
    }

    fn figures(window: &Window, millis: u64) -> (u64, u64) {
        let sum = window.sum(at(millis));
        (sum.requests, sum.failed)
    }

    #[test]
    fn a_rolling_window_forgets_what_is_older_than_it() {
        let window = Window::new(
            config::Window::Rolling(Duration::from_millis(1600)),
            2,
            at(0),
        );
        count(&window, 0, 0, BAD);
        count(&window, 1, 850, OK);
        assert_eq!(figures(&window, 1599), (2, 1));
        assert_eq!(figures(&window, 1600), (1, 0));
        assert_eq!(figures(&window, 2400), (0, 0));
        count(&window, 0, 1_000_000, OK);
        assert_eq!(figures(&window, 1_000_000), (1, 0));
    }

    #[test]
    fn a_fixed_window_starts_again_with_each_interval() {
        let window = Window::new(config::Window::Fixed(Duration::from_millis(100)), 1, at(50));
        count(&window, 0, 149, BAD);
        assert_eq!(figures(&window, 149), (1, 1));
        assert_eq!(figures(&window, 150), (0, 0));
    }

    #[test]
    fn a_count_window_holds_the_last_requests_however_old() {
        let size = NonZeroU32::new(3).unwrap();
        let window = Window::new(config::Window::Count(size), 2, at(0));
        for (n, sample) in [BAD, OK, BAD, OK].into_iter().enumerate() {
            count(&window, n, n as u64 * 1_000_000, sample);
        }
        assert_eq!(figures(&window, 9_000_000), (3, 1));
        assert_eq!(window.causes(at(9_000_000)), [(Cause::Status(503), 1)]);
    }

    #[test]
    fn a_sample_of_the_window_before_a_restart_is_not_counted() {
        for config in [
            config::Window::Rolling(Duration::from_secs(10)),
            config::Window::Fixed(Duration::from_secs(10)),
            config::Window::Count(NonZeroU32::new(10).unwrap()),
        ] {
            let window = Window::new(config, 1, at(0));
            let old = window.tick(at(5));
            window.restart(config, at(5));
            window.record(0, old, at(5), BAD);
            assert_eq!(figures(&window, 5), (0, 0));
            count(&window, 0, 6, OK);
            assert_eq!(figures(&window, 6), (1, 0));
        }
    }

    #[test]
    fn failures_are_counted_by_kind_over_all_workers() {
        let window = Window::new(config::Window::Rolling(Duration::from_secs(10)), 2, at(0));
        let kinds = [
            Cause::Status(503),
            Cause::Grpc(14),
            Cause::Timeout,
            Cause::Connect,
            Cause::Reset,
        ];
        for (n, cause) in kinds.into_iter().enumerate() {
            for _ in 0..=n {
                count(
                    &window,
                    n % 2,
                    10,
                    Sample {
                        failure: Some(cause),
                        slow: false,
                    },
                );
            }
        }
        let causes = window.causes(at(10));
        let expected: Vec<_> = kinds
            .into_iter()
            .enumerate()
            .map(|(n, cause)| (cause, n as u64 + 1))
            .rev()
            .collect();
        assert_eq!(causes, expected);
    }

    #[test]
    fn a_large_window_is_added_up_once_a_millisecond_and_a_small_one_always() {
        let window = Window::new(config::Window::Rolling(Duration::from_secs(10)), 1, at(0));
        for _ in 0..LARGE - 1 {
            count(&window, 0, 1, OK);
            assert!(window.sum_if_due(at(1)).is_some());
        }
        count(&window, 0, 1, OK);
        assert!(window.sum_if_due(at(1)).is_some());
        assert!(window.sum_if_due(at(1)).is_none());
        assert!(window.sum_if_due(at(2)).is_some());
    }
}
