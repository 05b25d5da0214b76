//! Arithmetic on random numbers that the caller drew.

use std::time::Duration;

/// A duration from `low` to `high`, both included; `low` when they cross.
pub(crate) fn between(low: Duration, high: Duration, random: u64) -> Duration {
    let span = high.saturating_sub(low);
    let nanos = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
    low + Duration::from_nanos(below_or_at(nanos, random))
}

/// A number from 0 to `max`, both included.
pub(crate) fn below_or_at(max: u64, random: u64) -> u64 {
    // The upper half of the product: even to within one part in 2^64 / max.
    ((u128::from(random) * (u128::from(max) + 1)) >> 64) as u64
}

/// Another number from one that was drawn, so that one draw serves several
/// independent choices (the finalizer of SplitMix64).
pub(crate) fn mix(random: u64) -> u64 {
    let mut z = random.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
