//! Memory for bodies that are kept for another try: each worker has its share
//! of one budget, so that many large bodies cannot take a node down. A body
//! for which nothing is left streams through and is not tried again.

use std::cell::Cell;
use std::rc::Rc;

/// Bytes for all workers together.
pub(crate) const BUDGET: usize = 64 * 1024 * 1024;

/// What one worker has left.
#[derive(Debug)]
pub(crate) struct Share {
    left: Cell<usize>,
}

impl Share {
    /// The share of one of `workers`.
    pub(crate) fn of(workers: usize) -> Rc<Share> {
        Rc::new(Share {
            left: Cell::new(BUDGET / workers.max(1)),
        })
    }
}

/// What one request has taken of it; comes back on drop.
#[derive(Debug)]
pub(crate) struct Reservation {
    share: Rc<Share>,
    bytes: usize,
}

impl Reservation {
    pub(crate) fn new(share: &Rc<Share>) -> Reservation {
        Reservation {
            share: share.clone(),
            bytes: 0,
        }
    }

    /// Takes `more` bytes; false when there are not so many left.
    pub(crate) fn grow(&mut self, more: usize) -> bool {
        let left = self.share.left.get();
        if more > left {
            return false;
        }
        self.share.left.set(left - more);
        self.bytes += more;
        true
    }

    /// Gives all back.
    pub(crate) fn release(&mut self) {
        self.share.left.set(self.share.left.get() + self.bytes);
        self.bytes = 0;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_comes_back_however_the_request_ends() {
        let share = Share::of(BUDGET / 10);
        let mut one = Reservation::new(&share);
        let mut two = Reservation::new(&share);
        assert!(one.grow(6) && two.grow(4));
        assert!(!two.grow(1), "there is no more");
        drop(one);
        assert!(two.grow(6));
        two.release();
        assert!(two.grow(10));
    }
}
