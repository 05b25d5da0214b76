//! A request's body on its way: what has come, what has gone on, and what is
//! kept for another try.

use super::body::{BadBody, Framing};
use crate::buffer::Buffer;
use crate::replay::Reservation;

/// The request's body on its way.
pub(super) struct Upload {
    pub(super) framing: Framing,
    /// Bytes at the front of the caller's buffer that belong to the body and
    /// are not written yet.
    pub(super) valid: usize,
    /// All of the body so far, for another try.
    pub(super) kept: Vec<u8>,
    /// The memory for it, out of the worker's share.
    pub(super) memory: Reservation,
    pub(super) keep_limit: usize,
    /// The body was too large to keep, or may not be sent again.
    pub(super) lost: bool,
}

impl Upload {
    /// Takes what has been read of the body into account.
    pub(super) fn advance(&mut self, buffer: &Buffer) -> Result<(), BadBody> {
        let fresh = &buffer.bytes()[self.valid..];
        let n = self.framing.scan(fresh)?;
        if n == 0 {
            return Ok(());
        }
        self.valid += n;
        if self.lost {
            return Ok(());
        }
        if self.kept.len() + n > self.keep_limit || !self.memory.grow(n) {
            self.lost = true;
            self.kept = Vec::new();
            self.memory.release();
        } else {
            self.kept.extend_from_slice(&fresh[..n]);
        }
        Ok(())
    }

    /// Whether the caller still has to send some of the body, or some of it
    /// has not gone on.
    pub(super) fn unfinished(&self) -> bool {
        !self.framing.is_done() || self.valid > 0
    }

    /// Whether the next step is the caller's: all that it sent has gone on.
    pub(super) fn waits_for_caller(&self) -> bool {
        !self.framing.is_done() && self.valid == 0
    }
}
