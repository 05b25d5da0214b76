//! Failures in a row, over all workers.

use crate::sync::{AtomicU64, Ordering};

/// Epoch (32 bits) and length (32). Written by failures, and by the first
/// success after one: while all is well, workers only read it.
#[derive(Debug)]
pub(super) struct Run(AtomicU64);

impl Run {
    pub(super) fn new() -> Run {
        Run(AtomicU64::new(0))
    }

    /// Whatever there was is over.
    pub(super) fn clear(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// One more; returns how many there are.
    pub(super) fn failed(&self, epoch: u32) -> u32 {
        let mut bits = self.0.load(Ordering::Relaxed);
        loop {
            let length = length_in(bits, epoch).saturating_add(1);
            let new = u64::from(epoch) << 32 | u64::from(length);
            match self
                .0
                .compare_exchange_weak(bits, new, Ordering::Relaxed, Ordering::Relaxed)
            {
                Ok(_) => return length,
                Err(other) => bits = other,
            }
        }
    }

    /// The run is over.
    pub(super) fn succeeded(&self, epoch: u32) {
        let bits = self.0.load(Ordering::Relaxed);
        if length_in(bits, epoch) > 0 {
            let none = u64::from(epoch) << 32;
            // Lost to a failure at the same moment, it came before that one.
            let _ = self
                .0
                .compare_exchange(bits, none, Ordering::Relaxed, Ordering::Relaxed);
        }
    }
}

fn length_in(bits: u64, epoch: u32) -> u32 {
    if bits >> 32 == u64::from(epoch) {
        bits as u32
    } else {
        0
    }
}
