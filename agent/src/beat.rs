//! Whether the workers move.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use crate::worker::Shared;

/// Compares the workers' counters with those of the last look.
pub(crate) struct Beats {
    pub(crate) shared: Arc<Shared>,
    last: Vec<usize>,
}

impl Beats {
    pub(crate) fn new(shared: Arc<Shared>) -> Beats {
        let last = vec![usize::MAX; shared.beats.len()];
        Beats { shared, last }
    }

    /// Whether every worker has moved since the last call.
    pub(crate) fn all_moved(&mut self) -> bool {
        let mut moved = true;
        for (last, now) in self.last.iter_mut().zip(&self.shared.beats) {
            let now = now.0.load(Relaxed);
            moved &= *last != now;
            *last = now;
        }
        moved
    }
}
