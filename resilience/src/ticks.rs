//! Time cut into numbered parts, and counters that know their part.
//!
//! A counter is never cleared. It carries the number of the part that it
//! counts for; whoever finds another number there knows that the count is
//! over. So no sample is lost between two workers of which one clears while
//! the other counts, and a machine that starts anew does so in one store.

use std::time::Duration;

use crate::Time;
use crate::sync::{AtomicU64, Ordering, fence};

/// One part of time, within one life of a machine's counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tick {
    life: u64,
    number: u64,
}

impl Tick {
    /// Never zero, as lives begin at 1. Numbers wrap after 2^40 parts: 544
    /// years of 16 ms.
    pub(crate) const fn tag(self) -> u64 {
        self.life << 40 | (self.number & ((1 << 40) - 1))
    }

    /// The same in 44 bits, for counters that share a word with it.
    const fn short_tag(self) -> u64 {
        (self.life & 0xfff) << 32 | (self.number & 0xffff_ffff)
    }

    /// Where its counter stands among `slots`.
    pub(crate) const fn slot(self, slots: usize) -> usize {
        (self.number % slots as u64) as usize
    }

    /// This tick and those before it in the same life, at most `count`, newest
    /// first.
    pub(crate) fn last(self, count: u64) -> impl Iterator<Item = Tick> {
        let oldest = (self.number + 1).saturating_sub(count);
        (oldest..=self.number)
            .rev()
            .map(move |number| Tick { number, ..self })
    }
}

/// Says which tick a moment is in.
#[derive(Debug)]
pub(crate) struct Ticks {
    origin: AtomicU64,
    nanos: AtomicU64,
    life: AtomicU64,
}

impl Ticks {
    pub(crate) fn new(length: Duration, now: Time) -> Ticks {
        Ticks {
            origin: AtomicU64::new(now.as_nanos()),
            nanos: AtomicU64::new(nanos(length)),
            life: AtomicU64::new(1),
        }
    }

    pub(crate) fn at(&self, now: Time) -> Tick {
        // Before the others: a new life may see an older origin never.
        let life = self.life.load(Ordering::Acquire);
        let elapsed = now
            .as_nanos()
            .saturating_sub(self.origin.load(Ordering::Relaxed));
        Tick {
            life,
            number: elapsed / self.nanos.load(Ordering::Relaxed),
        }
    }

    /// How long the last `count` ticks have taken so far.
    pub(crate) fn covered(&self, now: Time, count: u64) -> Duration {
        let nanos = self.nanos.load(Ordering::Relaxed);
        let elapsed = now
            .as_nanos()
            .saturating_sub(self.origin.load(Ordering::Relaxed));
        let current = elapsed % nanos;
        Duration::from_nanos(elapsed.min(nanos.saturating_mul(count - 1).saturating_add(current)))
    }

    /// All counters count for nothing from now on. Only one caller at a time.
    pub(crate) fn restart(&self, length: Duration, now: Time) {
        self.origin.store(now.as_nanos(), Ordering::Relaxed);
        self.nanos.store(nanos(length), Ordering::Relaxed);
        self.life.fetch_add(1, Ordering::Release);
    }
}

fn nanos(length: Duration) -> u64 {
    u64::try_from(length.as_nanos()).unwrap_or(u64::MAX).max(1)
}

/// Counts of one tick. One thread writes, any thread reads.
#[derive(Debug)]
pub(crate) struct Tally<const WORDS: usize> {
    tag: AtomicU64,
    words: [AtomicU64; WORDS],
}

impl<const WORDS: usize> Default for Tally<WORDS> {
    fn default() -> Self {
        Tally {
            tag: AtomicU64::new(0),
            words: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }
}

impl<const WORDS: usize> Tally<WORDS> {
    /// The words, at zero if they counted for another tick until now. Only for
    /// the writing thread.
    pub(crate) fn of(&self, tick: Tick) -> &[AtomicU64; WORDS] {
        if self.tag.load(Ordering::Relaxed) != tick.tag() {
            self.tag.store(0, Ordering::Relaxed);
            fence(Ordering::Release);
            for word in &self.words {
                word.store(0, Ordering::Relaxed);
            }
            self.tag.store(tick.tag(), Ordering::Release);
        }
        &self.words
    }

    /// The words, if they count for `tick`.
    pub(crate) fn read(&self, tick: Tick) -> Option<[u64; WORDS]> {
        if self.tag.load(Ordering::Acquire) != tick.tag() {
            return None;
        }
        let words = std::array::from_fn(|n| self.words[n].load(Ordering::Relaxed));
        fence(Ordering::Acquire);
        (self.tag.load(Ordering::Relaxed) == tick.tag()).then_some(words)
    }
}

/// Adds to a word that only this thread writes: no locked instruction.
pub(crate) fn add(word: &AtomicU64, count: u64) {
    word.store(word.load(Ordering::Relaxed) + count, Ordering::Relaxed);
}

const COUNT_BITS: u32 = 20;
const COUNT_MASK: u64 = (1 << COUNT_BITS) - 1;

/// Counts of the last `SLOTS` ticks that many threads write: tag and count in
/// one word each, at most a million a tick.
#[derive(Debug)]
pub(crate) struct Shared<const SLOTS: usize>([AtomicU64; SLOTS]);

impl<const SLOTS: usize> Default for Shared<SLOTS> {
    fn default() -> Self {
        Shared(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl<const SLOTS: usize> Shared<SLOTS> {
    /// The sum of `tick` and those before it.
    pub(crate) fn sum(&self, tick: Tick) -> u64 {
        let count = |tick: Tick| count_of(tick, self.0[tick.slot(SLOTS)].load(Ordering::Acquire));
        tick.last(SLOTS as u64).map(count).sum()
    }

    /// Counts one more in `tick`, if `allowed` when no other thread has counted
    /// one there meanwhile.
    pub(crate) fn add_if(&self, tick: Tick, mut allowed: impl FnMut() -> bool) -> bool {
        let slot = &self.0[tick.slot(SLOTS)];
        loop {
            let bits = slot.load(Ordering::Acquire);
            let count = count_of(tick, bits);
            if count == COUNT_MASK || !allowed() {
                return false;
            }
            let new = tick.short_tag() << COUNT_BITS | (count + 1);
            if slot
                .compare_exchange(bits, new, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
            {
                return true;
            }
        }
    }
}

fn count_of(tick: Tick, bits: u64) -> u64 {
    if bits >> COUNT_BITS == tick.short_tag() {
        bits & COUNT_MASK
    } else {
        0
    }
}
