//! The bulkhead: a bounded number of requests at once.

use std::task::{Context, Poll};
use std::time::Duration;

use crate::Time;

/// Bounds the requests at once.
#[derive(Debug)]
pub struct Bulkhead {}

/// How a request came to a bulkhead.
#[must_use]
#[derive(Debug)]
pub enum Entry {
    /// It has a place; [`Bulkhead::leave`] gives it back.
    Granted,
    /// It waits.
    Queued(Ticket),
    /// There is no place, and none to wait.
    Full,
}

/// A place in the queue.
#[must_use]
#[derive(Debug)]
pub struct Ticket {}

/// No place came free in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitedTooLong;

impl Bulkhead {
    /// For `max` requests at once, and `queue` that wait for at most `wait`.
    pub fn new(_max: u32, _queue: u32, _wait: Option<Duration>) -> Bulkhead {
        Bulkhead {}
    }
    /// Replaces the limits.
    pub fn reconfigure(&self, _max: u32, _queue: u32, _wait: Option<Duration>) {}
    /// Asks for a place.
    pub fn enter(&self, _now: Time) -> Entry {
        Entry::Granted
    }
    /// Gives a place back.
    pub fn leave(&self) {}
    /// Waits for a place.
    pub fn poll_wait(
        &self,
        _ticket: &mut Ticket,
        _now: Time,
        _cx: &mut Context<'_>,
    ) -> Poll<Result<(), WaitedTooLong>> {
        Poll::Ready(Ok(()))
    }
    /// The caller left the queue.
    pub fn cancel(&self, ticket: Ticket) {
        let _ = ticket;
    }
    /// Requests that have a place.
    pub fn in_use(&self) -> u32 {
        0
    }
    /// Requests that wait.
    pub fn waiting(&self) -> u32 {
        0
    }
    /// Requests that were refused or waited too long.
    pub fn refused_total(&self) -> u64 {
        0
    }
}
