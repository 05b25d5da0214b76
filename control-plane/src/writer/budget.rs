//! How many writes the API server is asked for.

use std::time::Duration;

use tokio::time::Instant;

/// A token bucket: `rate` a second, and `burst` at once.
#[derive(Clone, Debug)]
pub(super) struct Bucket {
    every: Duration,
    burst: Duration,
    /// When the bucket would be full.
    full: Instant,
}

impl Bucket {
    pub(super) fn new(rate: u32, burst: u32, now: Instant) -> Bucket {
        let every = Duration::from_secs(1) / rate;
        Bucket {
            every,
            burst: every * burst,
            full: now,
        }
    }

    /// When the next token is there.
    pub(super) fn next(&self) -> Instant {
        (self.full + self.every)
            .checked_sub(self.burst)
            .unwrap_or(self.full)
    }

    pub(super) fn take(&mut self, now: Instant) -> bool {
        if self.next() > now {
            return false;
        }
        self.full = self.full.max(now) + self.every;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_the_rate_holds() {
        let begin = Instant::now();
        let mut bucket = Bucket::new(5, 3, begin);
        let burst = (0..10).filter(|_| bucket.take(begin)).count();
        assert_eq!(burst, 3);
        let second = (1..=1_000)
            .filter(|ms| bucket.take(begin + Duration::from_millis(*ms)))
            .count();
        assert_eq!(second, 5);
        assert!(bucket.next() > begin + Duration::from_secs(1));
    }
}
