//! Which endpoint a try goes to.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::random::{below_or_at, mix};

/// What one endpoint is busy with, as this agent sees it.
#[derive(Debug, Default)]
pub struct Load {
    /// Tries that were given to it and have not ended.
    pub in_flight: AtomicU32,
}

impl Load {
    /// A try begins.
    pub fn begin(&self) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    /// A try that [began](Load::begin) has ended.
    pub fn end(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    /// Tries that have not ended.
    pub fn get(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }
}

/// Chooses one of the endpoints 0 to `n` - 1 for a try; `None` when `n` is 0.
///
/// Two are drawn and the one with fewer tries in flight wins (Mitzenmacher,
/// "The Power of Two Choices", 1996); of equals, the first drawn. An endpoint
/// in `tried` is taken only when no other is left.
pub fn pick(n: usize, load: impl Fn(usize) -> u32, tried: &[u16], random: u64) -> Option<usize> {
    let was_tried = |index: usize| tried.iter().any(|tried| usize::from(*tried) == index);
    let fresh = match tried {
        [] => n,
        _ => (0..n).filter(|index| !was_tried(*index)).count(),
    };
    // The index of the nth candidate: skips tried ones unless all were tried.
    let candidate = |nth: usize| {
        if fresh == n || fresh == 0 {
            return Some(nth);
        }
        (0..n).filter(|index| !was_tried(*index)).nth(nth)
    };
    let candidates = if fresh == 0 { n } else { fresh };
    if candidates < 2 {
        return if candidates == 0 { None } else { candidate(0) };
    }
    let first = below_or_at(candidates as u64 - 1, random) as usize;
    let other = below_or_at(candidates as u64 - 2, mix(random)) as usize;
    // Drawn from the rest, so that the two always differ.
    let second = if other >= first { other + 1 } else { other };
    let (first, second) = candidate(first).zip(candidate(second))?;
    Some(if load(second) < load(first) {
        second
    } else {
        first
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn of_two_the_one_with_fewer_in_flight_is_chosen() {
        for random in [0, 1, u64::MAX / 2, u64::MAX] {
            assert_eq!(pick(2, |index| [3, 2][index], &[], random), Some(1));
        }
    }

    #[test]
    fn an_endpoint_is_not_tried_twice_while_another_is_left() {
        for random in (0..100).map(mix) {
            assert_eq!(pick(3, |_| 0, &[0, 2], random), Some(1));
            assert_eq!(pick(2, |index| [0, 99][index], &[0], random), Some(1));
        }
    }

    #[test]
    fn when_all_were_tried_any_is_chosen() {
        let seen: std::collections::BTreeSet<_> = (0..100)
            .filter_map(|n| pick(3, |_| 0, &[0, 1, 2], mix(n)))
            .collect();
        assert_eq!(seen.len(), 3);
        assert_eq!(pick(1, |_| 0, &[0], 5), Some(0));
        assert_eq!(pick(0, |_| 0, &[], 5), None);
    }

    #[test]
    fn equal_loads_are_spread_evenly() {
        let mut counts = [0u32; 5];
        for n in 0..50_000 {
            counts[pick(5, |_| 1, &[], mix(n)).unwrap()] += 1;
        }
        assert!(
            counts.iter().all(|count| (9_500..10_500).contains(count)),
            "{counts:?}"
        );
    }

    proptest! {
        #[test]
        fn the_choice_exists_and_is_fresh_where_that_is_possible(
            n in 1usize..20,
            loads in prop::collection::vec(0u32..5, 20),
            tried in prop::collection::vec(0u16..25, 0..8),
            random: u64,
        ) {
            let chosen = pick(n, |index| loads[index], &tried, random).unwrap();
            prop_assert!(chosen < n);
            let was_tried = |index: usize| tried.contains(&(index as u16));
            prop_assert!(!was_tried(chosen) || (0..n).all(was_tried));
        }
    }
}
