//! What a breaker remembers of its transitions, behind a mutex that no request
//! takes unless it makes one.

use std::collections::VecDeque;

use super::window::Sum;
use super::{Memory, Reason, State, Transition};
use crate::Time;
use crate::config;

/// Transitions kept for [`poll`](super::Breaker::poll): at one poll a second,
/// more than any breaker makes.
const KEPT: usize = 64;

#[derive(Debug)]
pub(super) struct Log {
    pub(super) config: config::Breaker,
    /// Counts transitions; the low bits are the state word's epoch.
    pub(super) epoch: u64,
    pub(super) reason: Option<Reason>,
    pub(super) message: String,
    pub(super) since: Time,
    /// The window when it last opened.
    pub(super) opened: Sum,
    /// Recoveries that failed since the last that held.
    pub(super) failed_recoveries: u32,
    /// The last random number that came by, for what time alone brings about.
    pub(super) random: u64,
    pub(super) observed_reset: String,
    /// Not yet polled, oldest first.
    transitions: VecDeque<Transition>,
    /// Transitions that were pushed out before they were polled.
    pub(super) dropped: u64,
}

impl Log {
    pub(super) fn new(config: &config::Breaker, now: Time) -> Log {
        Log {
            config: config.clone(),
            epoch: 0,
            reason: None,
            message: String::new(),
            since: now,
            opened: Sum::default(),
            failed_recoveries: 0,
            random: now.as_nanos(),
            // There is nothing to reset in a new breaker.
            observed_reset: config.reset.clone(),
            transitions: VecDeque::new(),
            dropped: 0,
        }
    }

    pub(super) fn push(
        &mut self,
        from: State,
        to: State,
        reason: Reason,
        message: String,
        at: Time,
    ) {
        self.epoch += 1;
        self.reason = Some(reason);
        self.message.clone_from(&message);
        if from == to {
            return;
        }
        self.since = at;
        if self.transitions.len() == KEPT {
            self.transitions.pop_front();
            self.dropped += 1;
        }
        self.transitions.push_back(Transition {
            from,
            to,
            reason,
            message,
            at,
            epoch: self.epoch,
        });
    }

    /// Goes on as another did, which has told of its transitions itself.
    pub(super) fn recall(&mut self, memory: &Memory, since: Time) {
        self.epoch += 1;
        self.reason = Some(memory.reason);
        self.message.clone_from(&memory.message);
        self.since = since;
        self.failed_recoveries = memory.failed_recoveries;
    }

    pub(super) fn drain(&mut self, out: &mut Vec<Transition>) {
        out.extend(self.transitions.drain(..));
    }
}
