//! The state of a breaker in one word.

use super::State;
use crate::Time;

const EPOCH_BITS: u32 = 22;
const DEADLINE_BITS: u32 = 39;
const EPOCH_MASK: u64 = (1 << EPOCH_BITS) - 1;
const DEADLINE_MASK: u64 = (1 << DEADLINE_BITS) - 1;
const NANOS_PER_MILLI: u64 = 1_000_000;

/// State (3 bits), epoch (22) and deadline (39).
///
/// The epoch counts transitions; a permit carries the one in which it was
/// given. It wraps after four million, which no request outlives. The deadline
/// is in milliseconds since the clock's origin, enough for 17 years; zero
/// stands for none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Word(u64);

impl Word {
    pub(super) const START: Word = Word::pack(State::Closed, 0, 0);

    const fn pack(state: State, epoch: u64, deadline: u64) -> Word {
        let state = match state {
            State::Closed => 0,
            State::Open => 1,
            State::HalfOpen => 2,
            State::ForcedOpen => 3,
            State::ForcedClosed => 4,
        };
        Word(state << (EPOCH_BITS + DEADLINE_BITS) | epoch << DEADLINE_BITS | deadline)
    }

    pub(super) const fn from_bits(bits: u64) -> Word {
        Word(bits)
    }

    pub(super) const fn bits(self) -> u64 {
        self.0
    }

    pub(super) const fn state(self) -> State {
        match self.0 >> (EPOCH_BITS + DEADLINE_BITS) {
            0 => State::Closed,
            1 => State::Open,
            2 => State::HalfOpen,
            3 => State::ForcedOpen,
            _ => State::ForcedClosed,
        }
    }

    pub(super) const fn epoch(self) -> u32 {
        (self.0 >> DEADLINE_BITS & EPOCH_MASK) as u32
    }

    /// When time alone ends the state.
    pub(super) const fn deadline(self) -> Option<Time> {
        match self.0 & DEADLINE_MASK {
            0 => None,
            millis => Some(Time::from_millis(millis)),
        }
    }

    pub(super) fn is_over(self, now: Time) -> bool {
        self.deadline().is_some_and(|deadline| deadline <= now)
    }

    /// The same state and epoch with another deadline. Rounded up to a
    /// millisecond: a breaker is never open for too short a time.
    pub(super) fn with_deadline(self, deadline: Option<Time>) -> Word {
        let millis = deadline.map_or(0, |deadline| {
            deadline
                .as_nanos()
                .div_ceil(NANOS_PER_MILLI)
                .clamp(1, DEADLINE_MASK)
        });
        Word(self.0 & !DEADLINE_MASK | millis)
    }

    /// The next epoch.
    pub(super) fn next(self, state: State, deadline: Option<Time>) -> Word {
        let epoch = (u64::from(self.epoch()) + 1) & EPOCH_MASK;
        Word::pack(state, epoch, 0).with_deadline(deadline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_gives_back_what_was_put_in() {
        let mut word = Word::START;
        let states = [
            State::Open,
            State::HalfOpen,
            State::ForcedOpen,
            State::ForcedClosed,
            State::Closed,
        ];
        for (n, state) in states.into_iter().enumerate() {
            let deadline = (n % 2 == 0).then(|| Time::from_millis(1 + n as u64 * 1_000_000));
            word = word.next(state, deadline);
            assert_eq!(word.state(), state);
            assert_eq!(word.epoch(), n as u32 + 1);
            assert_eq!(word.deadline(), deadline);
            assert_eq!(Word::from_bits(word.bits()), word);
        }
    }

    #[test]
    fn the_epoch_wraps_without_touching_the_rest() {
        let last = Word::pack(State::Open, EPOCH_MASK, 7);
        let next = last.next(State::HalfOpen, None);
        assert_eq!(
            (next.state(), next.epoch(), next.deadline()),
            (State::HalfOpen, 0, None)
        );
    }

    #[test]
    fn a_deadline_is_never_early() {
        let word = Word::START.with_deadline(Some(Time::from_nanos(1_000_001)));
        assert!(!word.is_over(Time::from_nanos(1_999_999)));
        assert!(word.is_over(Time::from_millis(2)));
        assert!(
            Word::START
                .with_deadline(Some(Time::MAX))
                .deadline()
                .is_some()
        );
    }
}
