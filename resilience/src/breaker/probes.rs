//! The probes of a half-open breaker in one word.

use crate::sync::{AtomicU64, Ordering};

const COUNT_BITS: u32 = 14;
const COUNT_MASK: u64 = (1 << COUNT_BITS) - 1;

/// How the probes of one epoch stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) in_flight: u32,
    /// In a row: a failure ends the epoch.
    pub(super) successes: u32,
    /// Successes that were slow.
    pub(super) slow: u32,
}

/// Why no probe was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoProbe {
    /// All slots are taken.
    Full,
    /// The breaker has moved on to another epoch.
    Stale,
}

/// Epoch (22 bits), probes in flight (14), successes (14), slow successes
/// (14). Every change names its epoch, and does nothing in another one.
#[derive(Debug)]
pub(super) struct Probes(AtomicU64);

impl Probes {
    pub(super) fn new() -> Probes {
        Probes(AtomicU64::new(pack(
            0,
            Tally {
                in_flight: 0,
                successes: 0,
                slow: 0,
            },
        )))
    }

    /// Begins an epoch, before the state that goes with it is published.
    pub(super) fn begin(&self, epoch: u32) {
        let none = Tally {
            in_flight: 0,
            successes: 0,
            slow: 0,
        };
        self.0.store(pack(epoch, none), Ordering::SeqCst);
    }

    /// Takes one of `slots`.
    pub(super) fn take(&self, epoch: u32, slots: u32) -> Result<(), NoProbe> {
        let mut full = false;
        let taken = self.change(epoch, |tally| {
            full = tally.in_flight >= slots;
            (!full).then(|| Tally {
                in_flight: tally.in_flight + 1,
                ..tally
            })
        });
        match taken {
            Some(_) => Ok(()),
            None if full => Err(NoProbe::Full),
            None => Err(NoProbe::Stale),
        }
    }

    /// A probe succeeded. `None` in another epoch.
    pub(super) fn succeed(&self, epoch: u32, slow: bool) -> Option<Tally> {
        self.change(epoch, |tally| {
            Some(Tally {
                in_flight: tally.in_flight.checked_sub(1)?,
                successes: (tally.successes + 1).min(COUNT_MASK as u32),
                slow: (tally.slow + u32::from(slow)).min(COUNT_MASK as u32),
            })
        })
    }

    /// A probe ended without a result: its slot comes back.
    pub(super) fn release(&self, epoch: u32) {
        self.change(epoch, |tally| {
            Some(Tally {
                in_flight: tally.in_flight.checked_sub(1)?,
                ..tally
            })
        });
    }

    /// Probes in flight in `epoch`; none in another one.
    pub(super) fn in_flight(&self, epoch: u32) -> u32 {
        let (current, tally) = unpack(self.0.load(Ordering::SeqCst));
        if current == epoch { tally.in_flight } else { 0 }
    }

    fn change(&self, epoch: u32, mut with: impl FnMut(Tally) -> Option<Tally>) -> Option<Tally> {
        let mut bits = self.0.load(Ordering::SeqCst);
        loop {
            let (current, tally) = unpack(bits);
            if current != epoch {
                return None;
            }
            let next = with(tally)?;
            let new = pack(epoch, next);
            match self
                .0
                .compare_exchange_weak(bits, new, Ordering::SeqCst, Ordering::SeqCst)
            {
                Ok(_) => return Some(next),
                Err(other) => bits = other,
            }
        }
    }
}

fn pack(epoch: u32, tally: Tally) -> u64 {
    u64::from(epoch) << (3 * COUNT_BITS)
        | u64::from(tally.in_flight) << (2 * COUNT_BITS)
        | u64::from(tally.successes) << COUNT_BITS
        | u64::from(tally.slow)
}

fn unpack(bits: u64) -> (u32, Tally) {
    let count = |shift: u32| (bits >> shift & COUNT_MASK) as u32;
    let tally = Tally {
        in_flight: count(2 * COUNT_BITS),
        successes: count(COUNT_BITS),
        slow: count(0),
    };
    ((bits >> (3 * COUNT_BITS)) as u32, tally)
}
