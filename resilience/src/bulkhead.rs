//! The bulkhead: a bounded number of requests at once, and a bounded queue.
//!
//! While nobody waits, a place is taken and given back with one atomic
//! operation. The queue is behind a mutex; a place that comes free while
//! somebody waits is never free: it goes to the oldest waiter.

use std::collections::{BTreeMap, BTreeSet};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::Time;
use crate::sync::{AtomicU32, AtomicU64, Mutex, Ordering, Padded, lock};

#[cfg(test)]
#[cfg(loom)]
mod loom_tests;
#[cfg(test)]
#[cfg(not(loom))]
mod tests;

/// A bulkhead. Also serves as a limit without a queue.
#[derive(Debug)]
pub struct Bulkhead {
    /// A [`Word`].
    word: Padded<AtomicU64>,
    max: AtomicU32,
    max_waiting: AtomicU32,
    /// 0 = nobody waits.
    wait_nanos: AtomicU64,
    refused: AtomicU64,
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    next: u64,
    /// By age; as many as the word says. The waker is that of the last poll.
    waiting: BTreeMap<u64, Option<Waker>>,
    /// Those that have a place and do not know it yet.
    granted: BTreeSet<u64>,
}

/// Places in use (32 bits) and requests waiting (32). The latter changes only
/// under the queue's mutex; while it is not zero, so does the former.
#[derive(Clone, Copy, Debug)]
struct Word {
    in_use: u32,
    waiting: u32,
}

impl Word {
    const fn unpack(bits: u64) -> Word {
        Word {
            in_use: (bits >> 32) as u32,
            waiting: bits as u32,
        }
    }

    fn pack(self) -> u64 {
        u64::from(self.in_use) << 32 | u64::from(self.waiting)
    }
}

/// How a request came to a bulkhead.
#[must_use]
#[derive(Debug)]
pub enum Entry {
    /// It has a place; [`Bulkhead::leave`] gives it back.
    Granted,
    /// It waits; see [`Bulkhead::poll_wait`].
    Queued(Ticket),
    /// There is no place, and none to wait.
    Full,
}

/// A place in the queue. It ends with a result of [`Bulkhead::poll_wait`] or
/// with [`Bulkhead::cancel`]; one that is lost may take its place along.
#[must_use = "give it to `poll_wait` until that is ready, or to `cancel`"]
#[derive(Debug)]
pub struct Ticket {
    number: u64,
    deadline: Time,
}

impl Ticket {
    /// When the wait is over. The bulkhead has no clock: the caller polls then.
    pub const fn deadline(&self) -> Time {
        self.deadline
    }
}

/// No place came free in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no place in the bulkhead came free in time")]
pub struct WaitedTooLong;

impl Bulkhead {
    /// For `max` requests at once, and `queue` more that wait, each for at most
    /// `wait`; with `None` nobody waits.
    pub fn new(max: u32, queue: u32, wait: Option<Duration>) -> Bulkhead {
        Bulkhead {
            word: Padded(AtomicU64::new(0)),
            max: AtomicU32::new(max),
            max_waiting: AtomicU32::new(queue),
            wait_nanos: AtomicU64::new(nanos(wait)),
            refused: AtomicU64::new(0),
            queue: Mutex::new(Queue::default()),
        }
    }

    /// Replaces the limits. Places that are new go to those who wait; who has
    /// one or waits already keeps it.
    pub fn reconfigure(&self, max: u32, queue: u32, wait: Option<Duration>) {
        let mut wakers = Vec::new();
        let mut waiting = lock(&self.queue);
        self.max.store(max, Ordering::Relaxed);
        self.max_waiting.store(queue, Ordering::Relaxed);
        self.wait_nanos.store(nanos(wait), Ordering::Relaxed);
        while self.change(|word| {
            (word.waiting > 0 && word.in_use < max).then(|| Word {
                in_use: word.in_use + 1,
                waiting: word.waiting - 1,
            })
        }) {
            wakers.extend(waiting.grant());
        }
        drop(waiting);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Asks for a place.
    pub fn enter(&self, now: Time) -> Entry {
        if self.take() {
            return Entry::Granted;
        }
        let wait = self.wait_nanos.load(Ordering::Relaxed);
        let max_waiting = self.max_waiting.load(Ordering::Relaxed);
        if wait == 0 || self.waiting() >= max_waiting {
            return self.refuse();
        }
        let mut queue = lock(&self.queue);
        loop {
            // A place may have come free, or the queue have filled up.
            if self.take() {
                return Entry::Granted;
            }
            let max = self.max.load(Ordering::Relaxed);
            if self.waiting() >= max_waiting {
                return self.refuse();
            }
            let joined = self.change(|word| {
                (word.waiting > 0 || word.in_use >= max).then(|| Word {
                    waiting: word.waiting + 1,
                    ..word
                })
            });
            if joined {
                let number = queue.next;
                queue.next += 1;
                queue.waiting.insert(number, None);
                return Entry::Queued(Ticket {
                    number,
                    deadline: now + Duration::from_nanos(wait),
                });
            }
        }
    }

    /// Gives a place back. It goes to the oldest waiter, if there is one.
    pub fn leave(&self) {
        let free = |word: Word| {
            Some(Word {
                in_use: word.in_use.checked_sub(1)?,
                ..word
            })
        };
        if self.change(|word| if word.waiting == 0 { free(word) } else { None }) {
            return;
        }
        let mut queue = lock(&self.queue);
        // Places above a limit that was lowered are not handed on.
        let max = self.max.load(Ordering::Relaxed);
        let handed_on = self.change(|word| {
            (word.waiting > 0 && word.in_use <= max).then(|| Word {
                waiting: word.waiting - 1,
                ..word
            })
        });
        let waker = if handed_on {
            queue.grant()
        } else {
            self.change(free);
            None
        };
        drop(queue);
        waker.into_iter().for_each(Waker::wake);
    }

    /// Waits for a place. First come, first served. A place that was handed
    /// over before the deadline is good after it, too.
    ///
    /// Not to be called again with this ticket after it was ready.
    pub fn poll_wait(
        &self,
        ticket: &mut Ticket,
        now: Time,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), WaitedTooLong>> {
        let mut queue = lock(&self.queue);
        if queue.granted.remove(&ticket.number) {
            return Poll::Ready(Ok(()));
        }
        let Some(waker) = queue.waiting.get_mut(&ticket.number) else {
            return Poll::Ready(Err(WaitedTooLong));
        };
        if now < ticket.deadline {
            match waker {
                Some(waker) => waker.clone_from(cx.waker()),
                None => *waker = Some(cx.waker().clone()),
            }
            return Poll::Pending;
        }
        self.quit(&mut queue, ticket.number);
        self.refused.fetch_add(1, Ordering::Relaxed);
        Poll::Ready(Err(WaitedTooLong))
    }

    /// The caller left. If a place was handed to it meanwhile, that goes on to
    /// the next.
    #[allow(clippy::needless_pass_by_value)] // It is used up.
    pub fn cancel(&self, ticket: Ticket) {
        let mut queue = lock(&self.queue);
        if queue.granted.remove(&ticket.number) {
            drop(queue);
            self.leave();
        } else if queue.waiting.contains_key(&ticket.number) {
            self.quit(&mut queue, ticket.number);
        }
    }

    /// Places in use, those included that were handed over and not yet polled.
    pub fn in_use(&self) -> u32 {
        self.load().in_use
    }

    /// Requests that wait.
    pub fn waiting(&self) -> u32 {
        self.load().waiting
    }

    /// Requests that were refused or waited too long, since it was made.
    pub fn refused_total(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    fn load(&self) -> Word {
        Word::unpack(self.word.load(Ordering::Acquire))
    }

    /// Takes a free place, if nobody waits for one.
    fn take(&self) -> bool {
        let max = self.max.load(Ordering::Relaxed);
        self.change(|word| {
            (word.waiting == 0 && word.in_use < max).then(|| Word {
                in_use: word.in_use + 1,
                ..word
            })
        })
    }

    fn refuse(&self) -> Entry {
        self.refused.fetch_add(1, Ordering::Relaxed);
        Entry::Full
    }

    fn quit(&self, queue: &mut Queue, number: u64) {
        queue.waiting.remove(&number);
        self.change(|word| {
            Some(Word {
                waiting: word.waiting.checked_sub(1)?,
                ..word
            })
        });
    }

    /// Changes the word as `to` says; false when it says `None`.
    fn change(&self, to: impl Fn(Word) -> Option<Word>) -> bool {
        let mut bits = self.word.load(Ordering::Acquire);
        while let Some(new) = to(Word::unpack(bits)) {
            let new = new.pack();
            match self
                .word
                .compare_exchange_weak(bits, new, Ordering::AcqRel, Ordering::Acquire)
            {
                Ok(_) => return true,
                Err(other) => bits = other,
            }
        }
        false
    }
}

impl Queue {
    /// Hands a place to the oldest waiter.
    fn grant(&mut self) -> Option<Waker> {
        let (number, waker) = self.waiting.pop_first()?;
        self.granted.insert(number);
        waker
    }
}

fn nanos(wait: Option<Duration>) -> u64 {
    wait.map_or(0, |wait| u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX))
}
