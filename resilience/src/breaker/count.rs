//! A window of the last so many requests.

use std::collections::VecDeque;
use std::time::Duration;

use super::Cause;
use super::window::{Sample, Sum};
use crate::Time;
use crate::config;
use crate::ticks::Tick;

/// Holds as many requests as the policy says; nothing for windows of time.
#[derive(Debug)]
pub(super) struct Count {
    life: Tick,
    size: usize,
    samples: VecDeque<(Time, Sample)>,
    failed: u64,
    slow: u64,
}

impl Count {
    pub(super) fn new(config: config::Window, life: Tick) -> Count {
        let size = match config {
            config::Window::Count(size) => size.get() as usize,
            config::Window::Rolling(_) | config::Window::Fixed(_) => 0,
        };
        Count {
            life,
            size,
            samples: VecDeque::with_capacity(size),
            failed: 0,
            slow: 0,
        }
    }

    pub(super) fn record(&mut self, life: Tick, now: Time, sample: Sample) {
        if life != self.life || self.size == 0 {
            return;
        }
        if self.samples.len() == self.size
            && let Some((_, oldest)) = self.samples.pop_front()
        {
            self.failed -= u64::from(oldest.failure.is_some());
            self.slow -= u64::from(oldest.slow);
        }
        self.failed += u64::from(sample.failure.is_some());
        self.slow += u64::from(sample.slow);
        self.samples.push_back((now, sample));
    }

    pub(super) fn sum(&self, now: Time) -> Sum {
        Sum {
            requests: self.samples.len() as u64,
            failed: self.failed,
            slow: self.slow,
            over: self
                .samples
                .front()
                .map_or(Duration::ZERO, |(oldest, _)| now.since(*oldest)),
        }
    }

    pub(super) fn failures(&self) -> impl Iterator<Item = Cause> {
        self.samples.iter().filter_map(|(_, sample)| sample.failure)
    }
}
