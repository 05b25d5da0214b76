//! What happened so far: the outage as announced, what breakers did, and what
//! became of edits.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde_json::Value;
use weir_control_plane::events::Event;
use weir_control_plane::store::Changed;

use super::script::Mood;
use super::shop::{NAMES, PAYMENTS};

/// Entries that are kept.
const KEPT: usize = 200;

/// What kind of thing happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tone {
    /// The script's.
    Announced,
    /// A breaker opened, an edit is wrong.
    Bad,
    /// A breaker tries.
    Hopeful,
    /// A breaker closed, an edit is enforced.
    Good,
}

/// One thing that happened.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// Since the beginning.
    pub(super) at: Duration,
    pub(super) tone: Tone,
    pub(super) text: String,
}

/// A breaker as the timeline shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Closed,
    Open,
    HalfOpen,
}

impl State {
    fn named(name: &str) -> Option<State> {
        match name {
            "Closed" | "ForcedClosed" => Some(State::Closed),
            "Open" | "ForcedOpen" => Some(State::Open),
            "HalfOpen" => Some(State::HalfOpen),
            _ => None,
        }
    }
}

/// One service's breaker.
#[derive(Clone, Debug)]
struct Breaker {
    now: &'static str,
    since: Duration,
    /// Its transitions, oldest first: the second, and the state from then on.
    changes: VecDeque<(usize, State)>,
}

/// Everything that happened.
pub(super) struct Story {
    /// The wall clock at the beginning, in milliseconds since the Unix epoch.
    began_unix_ms: i64,
    entries: VecDeque<Entry>,
    /// Entries ever made.
    made: usize,
    breakers: [Breaker; NAMES.len()],
    /// How far payments' breaker has come on its way Open, HalfOpen, Closed.
    progress: usize,
    /// Generations of policies that are enforced: as many as the manifests hold.
    enforced: BTreeMap<String, i64>,
}

/// The way that payments' breaker is to be seen on.
const WAY: [(&str, &str); 3] = [
    ("Closed", "Open"),
    ("Open", "HalfOpen"),
    ("HalfOpen", "Closed"),
];

impl Story {
    /// Begins now.
    pub(super) fn begin(began_unix_ms: i64) -> Story {
        let breaker = || Breaker {
            now: "Closed",
            since: Duration::ZERO,
            changes: VecDeque::new(),
        };
        Story {
            began_unix_ms,
            entries: VecDeque::new(),
            made: 0,
            breakers: std::array::from_fn(|_| breaker()),
            progress: 0,
            enforced: BTreeMap::new(),
        }
    }

    fn tell(&mut self, at: Duration, tone: Tone, text: String) {
        if self.entries.len() == KEPT {
            self.entries.pop_front();
        }
        self.entries.push_back(Entry { at, tone, text });
        self.made += 1;
    }

    /// The script says what comes.
    pub(super) fn announce(&mut self, at: Duration, mood: Mood) {
        let text = match mood {
            // Where it begins there is nothing to tell.
            Mood::Well if at == Duration::ZERO => return,
            Mood::Well => "payments is well again",
            mood => mood.told(),
        };
        self.tell(at, Tone::Announced, text.to_owned());
    }

    /// The control plane says what happened.
    pub(super) fn hear(&mut self, event: &Event) {
        let since_begin = u64::try_from(event.at_unix_ms - self.began_unix_ms).unwrap_or(0);
        let at = Duration::from_millis(since_begin);
        let (Some(from), Some(to)) = (event.from, event.to) else {
            return self.tell(at, Tone::Bad, event.message.clone());
        };
        let tone = match State::named(to) {
            Some(State::Closed) => Tone::Good,
            Some(State::HalfOpen) => Tone::Hopeful,
            Some(State::Open) | None => Tone::Bad,
        };
        self.tell(
            at,
            tone,
            format!("{} {from} → {to}: {}", event.name, event.message),
        );
        let service = NAMES.iter().position(|name| *name == event.name);
        let Some((service, state)) = service.zip(State::named(to)) else {
            return;
        };
        let breaker = &mut self.breakers[service];
        (breaker.now, breaker.since) = (to, at);
        if breaker.changes.len() == KEPT {
            breaker.changes.pop_front();
        }
        breaker
            .changes
            .push_back((usize::try_from(at.as_secs()).unwrap_or(usize::MAX), state));
        if service == PAYMENTS && WAY.get(self.progress) == Some(&(from, to)) {
            self.progress += 1;
        }
    }

    /// A policy changed: an edit that is enforced is worth telling.
    pub(super) fn policy(&mut self, at: Duration, changed: &Changed) {
        let object = &*changed.object;
        let number = |pointer: &str| object.pointer(pointer).and_then(Value::as_i64).unwrap_or(0);
        let name = object
            .pointer("/metadata/name")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let conditions = object
            .pointer("/status/conditions")
            .and_then(Value::as_array);
        let is_programmed = conditions.into_iter().flatten().any(|condition| {
            condition["type"] == "Programmed"
                && condition["status"] == "True"
                && condition["observedGeneration"] == number("/metadata/generation")
        });
        if !is_programmed {
            return;
        }
        let generation = number("/metadata/generation");
        let last = self.enforced.insert(name.to_owned(), generation);
        if last.is_some_and(|last| last < generation) {
            self.tell(
                at,
                Tone::Good,
                format!("your edit of policy {name} is enforced"),
            );
        }
    }

    /// The latest entries, oldest first.
    pub(super) fn latest(&self, count: usize) -> impl Iterator<Item = &Entry> {
        self.entries
            .iter()
            .skip(self.entries.len().saturating_sub(count))
    }

    /// The entries made since there were `seen`.
    pub(super) fn since(&self, seen: usize) -> impl Iterator<Item = &Entry> {
        self.latest(self.made.saturating_sub(seen))
    }

    /// How many entries there have been.
    pub(super) fn made(&self) -> usize {
        self.made
    }

    /// A breaker's state, and since when.
    pub(super) fn breaker(&self, service: usize) -> (&'static str, Duration) {
        (self.breakers[service].now, self.breakers[service].since)
    }

    /// What the timeline shows for a second: a try at recovery, however short, or
    /// else the state at its end.
    pub(super) fn state_in(&self, service: usize, second: usize) -> State {
        let changes = &self.breakers[service].changes;
        let tried = changes
            .iter()
            .any(|change| *change == (second, State::HalfOpen));
        let last = changes.iter().rev().find(|(from, _)| *from <= second);
        if tried {
            State::HalfOpen
        } else {
            last.map_or(State::Closed, |(_, state)| *state)
        }
    }

    /// Whether payments' breaker went Closed, Open, HalfOpen, Closed.
    pub(super) fn is_complete(&self) -> bool {
        self.progress == WAY.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weir_control_plane::events::Severity;

    fn transition(at: i64, from: &'static str, to: &'static str) -> Event {
        Event {
            at_unix_ms: 1_000_000 + at,
            severity: Severity::Normal,
            reason: "CircuitOpened",
            kind: "CircuitBreaker",
            namespace: "shop".to_owned(),
            name: "payments".to_owned(),
            node: None,
            from: Some(from),
            to: Some(to),
            shadow: false,
            message: "because".to_owned(),
        }
    }

    #[test]
    fn the_way_of_a_breaker_is_complete_once_it_has_closed_again() {
        let mut story = Story::begin(1_000_000);
        let way = [
            (1_500, "Closed", "Open"),
            (4_500, "Open", "HalfOpen"),
            (4_700, "HalfOpen", "Open"),
            (8_700, "Open", "HalfOpen"),
        ];
        for (at, from, to) in way {
            story.hear(&transition(at, from, to));
            assert!(!story.is_complete());
        }
        story.hear(&transition(9_100, "HalfOpen", "Closed"));
        assert!(story.is_complete());
        assert_eq!(
            story.breaker(PAYMENTS),
            ("Closed", Duration::from_millis(9_100))
        );
        let states: Vec<State> = [0, 1, 2, 4, 5, 8, 9]
            .map(|second| story.state_in(PAYMENTS, second))
            .to_vec();
        use State::{Closed, HalfOpen, Open};
        assert_eq!(
            states,
            [Closed, Open, Open, HalfOpen, Open, HalfOpen, Closed]
        );
        assert_eq!(
            story
                .since(4)
                .map(|entry| entry.text.as_str())
                .collect::<Vec<_>>(),
            ["payments HalfOpen → Closed: because"]
        );
    }
}
