//! What callers got, counted.

use std::collections::VecDeque;
use std::time::Duration;

use super::shop::NAMES;
use super::traffic::{End, News, Side, Stream};

/// Seconds that are kept one by one.
const SECONDS: usize = 120;
/// Seconds that "now" is, for waits.
const RECENT: usize = 5;

/// All streams' figures.
#[derive(Default)]
pub(super) struct Tally {
    with: [Figures; NAMES.len()],
    without: [Figures; NAMES.len()],
}

impl Tally {
    /// Counts what happened in this second of the demo.
    pub(super) fn count(&mut self, second: usize, stream: Stream, news: News) {
        let figures = match stream.side {
            Side::With => self.with.get_mut(stream.service),
            Side::Without => self.without.get_mut(stream.service),
        };
        if let Some(figures) = figures {
            figures.count(second, news);
        }
    }

    /// Makes `second` the present one, also where nothing happened.
    pub(super) fn reach(&mut self, second: usize) {
        self.with
            .iter_mut()
            .chain(&mut self.without)
            .for_each(|figures| figures.reach(second));
    }

    /// The figures of one stream.
    pub(super) fn of(&self, side: Side, service: usize) -> &Figures {
        match side {
            Side::With => &self.with[service],
            Side::Without => &self.without[service],
        }
    }

    /// The sum over all services.
    pub(super) fn total(&self, side: Side) -> Totals {
        (0..NAMES.len()).fold(Totals::default(), |sum, service| {
            sum.plus(&self.of(side, service).totals)
        })
    }
}

/// Counts since the beginning.
#[derive(Clone, Default)]
pub(super) struct Totals {
    /// Requests with a good answer, those after a retry included.
    pub(super) answered: u64,
    /// Requests with a good answer after a retry.
    pub(super) retried: u64,
    /// Requests that Weir refused.
    pub(super) refused: u64,
    /// Requests that failed.
    pub(super) failed: u64,
    /// Time that callers waited for requests without a good answer.
    pub(super) in_vain: Duration,
    /// How long each request took.
    pub(super) waits: Waits,
}

impl Totals {
    /// Requests that ended.
    pub(super) fn requests(&self) -> u64 {
        self.answered + self.refused + self.failed
    }

    fn plus(mut self, other: &Totals) -> Totals {
        self.answered += other.answered;
        self.retried += other.retried;
        self.refused += other.refused;
        self.failed += other.failed;
        self.in_vain += other.in_vain;
        self.waits.add(&other.waits);
        self
    }
}

/// The figures of one stream.
#[derive(Default)]
pub(super) struct Figures {
    /// Since the beginning.
    pub(super) totals: Totals,
    /// Requests under way.
    pub(super) under_way: u64,
    /// The last seconds, the present one last.
    seconds: VecDeque<Second>,
    /// The number of the present second.
    present: usize,
}

/// One second.
#[derive(Clone, Default)]
pub(super) struct Second {
    /// Requests with a good answer.
    pub(super) answered: u64,
    /// All that ended.
    pub(super) ended: u64,
    waits: Waits,
}

impl Figures {
    fn count(&mut self, second: usize, news: News) {
        let News::Ended(end, took) = news else {
            self.under_way += 1;
            return;
        };
        self.under_way = self.under_way.saturating_sub(1);
        match end {
            End::Answered => self.totals.answered += 1,
            End::Retried => {
                self.totals.answered += 1;
                self.totals.retried += 1;
            }
            End::Refused => self.totals.refused += 1,
            End::Failed => self.totals.failed += 1,
        }
        let good = matches!(end, End::Answered | End::Retried);
        if !good {
            self.totals.in_vain += took;
        }
        self.totals.waits.count(took);
        self.reach(second);
        if let Some(second) = self.seconds.back_mut() {
            second.answered += u64::from(good);
            second.ended += 1;
            second.waits.count(took);
        }
    }

    fn reach(&mut self, second: usize) {
        while self.seconds.is_empty() || self.present < second {
            if !self.seconds.is_empty() {
                self.present += 1;
            }
            if self.seconds.len() == SECONDS {
                self.seconds.pop_front();
            }
            self.seconds.push_back(Second::default());
        }
    }

    /// A second by its number, while it is kept.
    pub(super) fn second(&self, number: usize) -> Option<&Second> {
        let back = self.present.checked_sub(number)?;
        self.seconds.get(self.seconds.len().checked_sub(back + 1)?)
    }

    /// How long requests took that ended lately.
    pub(super) fn recent_waits(&self) -> Waits {
        let mut waits = Waits::default();
        self.seconds
            .iter()
            .rev()
            .take(RECENT)
            .for_each(|second| waits.add(&second.waits));
        waits
    }
}

/// How long requests took, to within 3 %.
#[derive(Clone)]
pub(super) struct Waits([u32; BUCKETS]);

const BUCKETS: usize = 192;
/// Everything below is in the first bucket.
const SHORTEST: Duration = Duration::from_micros(100);
/// Each bucket ends at so many times the end of the one before.
const GROWTH: f64 = 1.06;

impl Default for Waits {
    fn default() -> Waits {
        Waits([0; BUCKETS])
    }
}

impl Waits {
    fn count(&mut self, took: Duration) {
        let times = took.as_secs_f64() / SHORTEST.as_secs_f64();
        // Below 1 the logarithm is negative, and `as` makes it 0.
        let bucket = (times.ln() / GROWTH.ln()).ceil() as usize;
        self.0[bucket.min(BUCKETS - 1)] += 1;
    }

    fn add(&mut self, other: &Waits) {
        self.0
            .iter_mut()
            .zip(&other.0)
            .for_each(|(sum, count)| *sum += count);
    }

    /// The time within which so many percent ended; `None` where nothing did.
    pub(super) fn percentile(&self, percent: u64) -> Option<Duration> {
        let all: u64 = self.0.iter().map(|count| u64::from(*count)).sum();
        let wanted = (all * percent).div_ceil(100);
        let mut so_far = 0;
        let bucket = self.0.iter().position(|count| {
            so_far += u64::from(*count);
            all > 0 && so_far >= wanted
        })?;
        // The middle of the bucket.
        Some(SHORTEST.mul_f64(GROWTH.powf(bucket as f64 - 0.5)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAYMENTS: Stream = Stream {
        service: 1,
        side: Side::With,
    };

    #[test]
    fn a_request_is_counted_by_how_it_ended_for_its_caller() {
        let mut tally = Tally::default();
        for (end, millis) in [
            (End::Answered, 20),
            (End::Retried, 300),
            (End::Refused, 1),
            (End::Failed, 2_000),
        ] {
            tally.count(0, PAYMENTS, News::Sent);
            tally.count(0, PAYMENTS, News::Ended(end, Duration::from_millis(millis)));
        }
        tally.count(0, PAYMENTS, News::Sent);
        let totals = tally.total(Side::With);
        assert_eq!(
            (totals.requests(), totals.answered, totals.retried),
            (4, 2, 1)
        );
        assert_eq!((totals.refused, totals.failed), (1, 1));
        assert_eq!(totals.in_vain, Duration::from_millis(2_001));
        assert_eq!(tally.of(Side::With, 1).under_way, 1);
        assert_eq!(tally.total(Side::Without).requests(), 0);
    }

    #[test]
    fn seconds_are_kept_by_number_and_old_ones_are_forgotten() {
        let mut figures = Figures::default();
        for second in [0, 0, 3, 200] {
            figures.count(second, News::Ended(End::Answered, Duration::from_millis(1)));
        }
        figures.reach(201);
        let answered = |number| figures.second(number).map(|second| second.answered);
        assert_eq!(
            (answered(200), answered(201), answered(150)),
            (Some(1), Some(0), Some(0))
        );
        assert_eq!((answered(3), answered(202)), (None, None));
        assert!(figures.seconds.len() <= SECONDS);
    }

    #[test]
    fn percentiles_are_near_the_truth() {
        let mut waits = Waits::default();
        assert_eq!(waits.percentile(50), None);
        (1..=1_000).for_each(|millis| waits.count(Duration::from_millis(millis)));
        for (percent, millis) in [(50, 500.0), (99, 990.0)] {
            let measured = waits.percentile(percent).unwrap().as_secs_f64() * 1_000.0;
            assert!(
                (measured / millis - 1.0).abs() < 0.04,
                "{percent}: {measured}"
            );
        }
    }
}
