//! Latencies in nanoseconds, kept as counts in buckets whose width grows with the value: a bounded amount of memory
//! however long the run, and every quantile within 1.6 % of the true one.

/// Buckets per doubling; the relative error is at most one in so many.
const STEPS: u64 = 64;
const STEPS_LOG2: u32 = STEPS.trailing_zeros();
/// Values from 2^37 ns (137 s) on share the last bucket: longer than any run's drain.
const DOUBLINGS: u32 = 37;
const BUCKETS: usize = ((DOUBLINGS - STEPS_LOG2 + 1) as u64 * STEPS) as usize;

/// Counts of latencies.
#[derive(Debug)]
pub(crate) struct Histogram {
    counts: Vec<u64>,
    total: u64,
}

impl Histogram {
    pub(crate) fn new() -> Self {
        Self {
            counts: vec![0; BUCKETS],
            total: 0,
        }
    }

    /// Counts one latency in nanoseconds.
    pub(crate) fn record(&mut self, ns: u64) {
        self.counts[bucket(ns)] += 1;
        self.total += 1;
    }

    /// The latency that a share `q` (0 to 1) of the samples does not exceed, or `None` when the samples cannot carry it:
    /// fewer than ten lie beyond.
    pub(crate) fn quantile(&self, q: f64) -> Option<u64> {
        if (self.total as f64) * (1.0 - q) < 10.0 {
            return None;
        }
        let rank = ((self.total as f64) * q).ceil().max(1.0) as u64;
        let mut seen = 0;
        self.counts.iter().enumerate().find_map(|(index, count)| {
            seen += count;
            (seen >= rank).then(|| upper_edge(index))
        })
    }
}

/// Below 2 × `STEPS` a bucket is one nanosecond wide; from there on each doubling has `STEPS` buckets.
fn bucket(ns: u64) -> usize {
    let shift = (u64::BITS - ns.leading_zeros()).saturating_sub(STEPS_LOG2 + 1);
    let index = u64::from(shift) * STEPS + (ns >> shift);
    (index as usize).min(BUCKETS - 1)
}

/// The largest value that falls into a bucket.
fn upper_edge(index: usize) -> u64 {
    let index = index as u64;
    let shift = (index / STEPS).saturating_sub(1);
    let step = index - shift * STEPS;
    ((step + 1) << shift) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_lies_in_its_bucket_within_one_part_in_64() {
        for doubling in 0..DOUBLINGS {
            for offset in [0, 1, 7, 1_000, 123_456] {
                let value = (1u64 << doubling) + offset;
                let edge = upper_edge(bucket(value));
                assert!(edge >= value, "{value} → {edge}");
                assert!(edge - value <= value / STEPS, "{value} → {edge}");
            }
        }
    }

    #[test]
    fn buckets_follow_each_other_without_gap() {
        for index in 0..BUCKETS - 1 {
            assert_eq!(bucket(upper_edge(index)), index);
            assert_eq!(bucket(upper_edge(index) + 1), index + 1);
        }
    }

    #[test]
    fn values_beyond_the_last_bucket_are_counted_in_it() {
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_of_a_ramp_are_its_values() {
        let mut histogram = Histogram::new();
        (1..=100_000).for_each(|v| histogram.record(v));
        for (q, exact) in [(0.5, 50_000.0), (0.99, 99_000.0), (0.999, 99_900.0)] {
            let got = histogram.quantile(q).unwrap() as f64;
            assert!(
                (got / exact - 1.0).abs() <= 1.0 / STEPS as f64,
                "{q}: {got}"
            );
        }
    }

    #[test]
    fn a_quantile_with_fewer_than_ten_samples_beyond_it_is_not_claimed() {
        let mut histogram = Histogram::new();
        (0..9_000).for_each(|v| histogram.record(v));
        assert!(histogram.quantile(0.999).is_none());
        assert!(histogram.quantile(0.99).is_some());
        assert!(Histogram::new().quantile(0.5).is_none());
    }
}
