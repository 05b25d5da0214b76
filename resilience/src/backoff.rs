//! The wait before an extra try.

use std::time::Duration;

use crate::config::{Backoff, Jitter};
use crate::random::between;

/// How long to wait before extra try number `extra_try`, counted from 1.
///
/// `last` is the wait before the extra try before it (zero if there was
/// none); only [`Jitter::Decorrelated`] looks at it. The spreads are those of
/// Marc Brooker, "Exponential Backoff And Jitter" (2015).
pub fn wait(config: &Backoff, extra_try: u32, last: Duration, random: u64) -> Duration {
    let doublings = extra_try.saturating_sub(1).min(31);
    let full = config.base.saturating_mul(1 << doublings).min(config.max);
    match config.jitter {
        Jitter::None => full,
        Jitter::Full => between(Duration::ZERO, full, random),
        Jitter::Equal => between(full / 2, full, random),
        Jitter::Decorrelated => {
            let widest = last.max(config.base).saturating_mul(3);
            between(config.base, widest.min(config.max), random)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn config(jitter: Jitter) -> Backoff {
        Backoff {
            base: 25 * MS,
            max: 1000 * MS,
            jitter,
        }
    }

    #[test]
    fn without_jitter_the_wait_doubles_up_to_the_maximum() {
        let waits: Vec<_> = (1..=8)
            .map(|n| wait(&config(Jitter::None), n, Duration::ZERO, 7))
            .collect();
        assert_eq!(
            waits,
            [25, 50, 100, 200, 400, 800, 1000, 1000].map(|n| n * MS)
        );
    }

    #[test]
    fn full_jitter_takes_anything_from_nothing_to_the_whole_wait() {
        let at = |random| wait(&config(Jitter::Full), 3, Duration::ZERO, random);
        assert_eq!(at(0), Duration::ZERO);
        assert_eq!(at(u64::MAX / 2 + 1).as_millis(), 50);
        assert_eq!(at(u64::MAX), 100 * MS);
    }

    #[test]
    fn equal_jitter_keeps_at_least_half_of_the_wait() {
        let at = |random| wait(&config(Jitter::Equal), 3, Duration::ZERO, random);
        assert_eq!((at(0), at(u64::MAX)), (50 * MS, 100 * MS));
    }

    #[test]
    fn decorrelated_jitter_grows_from_the_last_wait() {
        let at = |last, random| wait(&config(Jitter::Decorrelated), 9, last * MS, random);
        assert_eq!((at(0, 0), at(0, u64::MAX)), (25 * MS, 75 * MS));
        assert_eq!(at(200, u64::MAX), 600 * MS);
        assert_eq!(at(900, u64::MAX), 1000 * MS);
    }

    proptest! {
        #[test]
        fn no_wait_is_longer_than_the_maximum(
            base in 1u64..10_000_000,
            more in 0u64..10_000_000,
            jitter in prop::sample::select(vec![
                Jitter::Full, Jitter::Equal, Jitter::Decorrelated, Jitter::None,
            ]),
            extra_try: u32,
            last: u64,
            random: u64,
        ) {
            let base = Duration::from_micros(base);
            let max = base + Duration::from_micros(more);
            let config = Backoff { base, max, jitter };
            prop_assert!(wait(&config, extra_try, Duration::from_nanos(last), random) <= max);
        }
    }
}
