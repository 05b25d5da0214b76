//! What is written next: a pure machine. Desired statuses and what the server
//! holds come in, writes go out, the most urgent first and within the budget.
//!
//! A status that only differs in figures is written at most every 5 s for one
//! object and 5 a second over all; a new state or condition goes ahead of
//! them, 50 a second. States that follow each other quickly are written one by
//! one, so that a watcher sees each; after a failure only the last counts.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;
use tokio::time::Instant;

use super::budget::Bucket;
use crate::sources::kubernetes::{Live, Place};
use crate::store::Collection;

/// States of one object that wait to be written; of more the oldest go.
const MAX_STEPS: usize = 8;
/// Between two writes of one object's figures.
const FIGURES_EVERY: Duration = Duration::from_secs(5);
/// Waits after failed writes of one object: the first, and the longest.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// How soon a write must be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Urgency {
    /// A breaker's state.
    State,
    /// A condition; an object that is not there yet, or is there no more.
    Condition,
    /// Figures and texts.
    Figures,
}

const URGENCIES: [Urgency; 3] = [Urgency::State, Urgency::Condition, Urgency::Figures];

/// One write.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Action {
    /// The object is not there: make it, then write its status.
    Create(Value),
    /// Write its status.
    Status(Value),
    /// Nobody asks for it any more: remove it, if it is still just this.
    Remove { uid: String, version: u64 },
}

/// What an object should be.
#[derive(Clone, Debug)]
struct Desired {
    status: Arc<Value>,
    /// Nobody asks for it: it goes, unless an override holds.
    unwanted: bool,
}

#[derive(Debug, Default)]
struct Entry {
    /// The last is what the object should be; those before it come first.
    steps: VecDeque<Desired>,
    /// Gone from the model altogether.
    gone: bool,
    queued: Option<Urgency>,
    flying: bool,
    /// The status that was written last, and the version that it became: where
    /// the server keeps something else, writing it again would not help.
    landed: Option<(Value, u64)>,
    /// When an override ends that keeps it from going.
    comes_back: Option<Timestamp>,
    figures_after: Option<Instant>,
    retry_after: Option<Instant>,
    failures: u32,
}

/// See the module. Holds an entry for each object that should be there, and
/// for each that should not and still is.
pub(super) struct Queue {
    entries: HashMap<Place, Entry>,
    ready: [VecDeque<Place>; 3],
    later: BinaryHeap<Reverse<(Instant, Place)>>,
    changes: Bucket,
    figures: Bucket,
}

/// A write to be made now, and what was there before.
pub(super) struct Write {
    pub(super) place: Place,
    pub(super) action: Action,
    pub(super) urgency: Urgency,
    pub(super) before: Value,
}

impl Queue {
    pub(super) fn new(now: Instant) -> Queue {
        Queue {
            entries: HashMap::new(),
            ready: Default::default(),
            later: BinaryHeap::new(),
            changes: Bucket::new(50, 100, now),
            figures: Bucket::new(5, 20, now),
        }
    }

    /// The object should be so. `object` is whole, with its status.
    pub(super) fn desire(&mut self, place: &Place, object: &Value, live: Option<&Live>) {
        let desired = Desired {
            status: Arc::new(object.get("status").cloned().unwrap_or(Value::Null)),
            unwanted: is_unwanted(object),
        };
        let entry = self.entries.entry(place.clone()).or_default();
        entry.gone = false;
        // Only another state is a step of its own.
        let replaces = entry
            .steps
            .back()
            .is_some_and(|last| state(&last.status) == state(&desired.status));
        if replaces {
            entry.steps.pop_back();
        }
        entry.steps.push_back(desired);
        if entry.steps.len() > MAX_STEPS {
            entry.steps.pop_front();
        }
        self.look(place, live);
    }

    /// The model no longer has the object.
    pub(super) fn drop_desire(&mut self, place: &Place, live: Option<&Live>) {
        let entry = self.entries.entry(place.clone()).or_default();
        entry.gone = true;
        entry.steps.clear();
        self.look(place, live);
    }

    /// Something about the object may have changed: queues it if there is
    /// something to write.
    pub(super) fn look(&mut self, place: &Place, live: Option<&Live>) {
        let Some(entry) = self.entries.get_mut(place) else {
            return;
        };
        let held = live.and_then(|live| live.held_until);
        let held = held.filter(|until| entry.is_unwanted() && *until > Timestamp::now());
        if let Some(until) = held.filter(|_| held != entry.comes_back) {
            let left = Duration::try_from(until.duration_since(Timestamp::now()));
            let at = Instant::now() + left.unwrap_or_default();
            self.later.push(Reverse((at, place.clone())));
        }
        entry.comes_back = held;
        match entry.next(place.0, live, Timestamp::now()) {
            Some((_, urgency)) if !entry.flying => {
                if entry.queued.is_none_or(|queued| urgency < queued) {
                    entry.queued = Some(urgency);
                    self.ready[urgency as usize].push_back(place.clone());
                }
            }
            Some(_) => {}
            None => {
                if entry.gone && live.is_none() && !entry.flying {
                    self.entries.remove(place);
                }
            }
        }
    }

    /// The next write that the budget allows.
    pub(super) fn pick(
        &mut self,
        now: Instant,
        live: impl Fn(&Place) -> Option<Live>,
    ) -> Option<Write> {
        while self.later.peek().is_some_and(|Reverse((at, _))| *at <= now) {
            if let Some(Reverse((_, place))) = self.later.pop() {
                let live = live(&place);
                self.look(&place, live.as_ref());
            }
        }
        for urgency in URGENCIES {
            while self.bucket(urgency).next() <= now {
                let Some(place) = self.ready[urgency as usize].pop_front() else {
                    break;
                };
                let live = live(&place);
                let Some(entry) = self.entries.get_mut(&place) else {
                    continue;
                };
                if entry.queued != Some(urgency) || entry.flying {
                    continue;
                }
                entry.queued = None;
                let next = entry.next(place.0, live.as_ref(), Timestamp::now());
                let Some((action, fresh)) = next else {
                    continue;
                };
                // It became less urgent while it waited: it has another budget now.
                if fresh > urgency {
                    entry.queued = Some(fresh);
                    self.ready[fresh as usize].push_back(place);
                    continue;
                }
                let figures = entry.figures_after.filter(|_| urgency == Urgency::Figures);
                if let Some(at) = figures.max(entry.retry_after).filter(|at| *at > now) {
                    self.later.push(Reverse((at, place)));
                    continue;
                }
                entry.flying = true;
                entry.figures_after = Some(now + FIGURES_EVERY);
                self.bucket(urgency).take(now);
                let before = live.map(|live| live.status).unwrap_or_default();
                return Some(Write {
                    place,
                    action,
                    urgency,
                    before,
                });
            }
        }
        None
    }

    /// When there may be something to pick, if nothing comes in before.
    pub(super) fn due(&self) -> Option<Instant> {
        let later = self.later.peek().map(|Reverse((at, _))| *at);
        let waiting = |urgency: Urgency| !self.ready[urgency as usize].is_empty();
        let changes =
            (waiting(Urgency::State) || waiting(Urgency::Condition)).then(|| self.changes.next());
        let figures = waiting(Urgency::Figures).then(|| self.figures.next());
        later.into_iter().chain(changes).chain(figures).min()
    }

    /// A write ended. `written`: the status that the server took.
    pub(super) fn done(
        &mut self,
        place: &Place,
        (well, written): (bool, Option<Value>),
        now: Instant,
        live: Option<&Live>,
    ) {
        let Some(entry) = self.entries.get_mut(place) else {
            return;
        };
        entry.flying = false;
        if well {
            entry.failures = 0;
            entry.retry_after = None;
            entry.landed = written.zip(live.map(|live| live.version));
        } else {
            entry.only_last();
            let wait = RETRY.0 * 2u32.saturating_pow(entry.failures.min(8));
            entry.failures += 1;
            entry.retry_after = Some(now + wait.min(RETRY.1));
        }
        self.look(place, live);
    }

    /// Another replica wrote until now: what passed meanwhile is past.
    pub(super) fn begin(&mut self, live: impl Fn(&Place) -> Option<Live>) {
        for entry in self.entries.values_mut() {
            entry.only_last();
            entry.queued = None;
            entry.comes_back = None;
        }
        self.ready = Default::default();
        self.later.clear();
        let places: Vec<Place> = self.entries.keys().cloned().collect();
        for place in places {
            let live = live(&place);
            self.look(&place, live.as_ref());
        }
    }

    /// Those of `collection` that are not `shown` are no longer desired.
    pub(super) fn retain(
        &mut self,
        collection: Collection,
        shown: &HashSet<Place>,
        live: impl Fn(&Place) -> Option<Live>,
    ) {
        let known = self.entries.keys().filter(|place| place.0 == collection);
        let gone: Vec<Place> = known
            .filter(|place| !shown.contains(*place))
            .cloned()
            .collect();
        for place in gone {
            let live = live(&place);
            self.drop_desire(&place, live.as_ref());
        }
    }

    fn bucket(&mut self, urgency: Urgency) -> &mut Bucket {
        match urgency {
            Urgency::State | Urgency::Condition => &mut self.changes,
            Urgency::Figures => &mut self.figures,
        }
    }
}

impl Entry {
    /// Nobody asks for it.
    fn is_unwanted(&self) -> bool {
        self.steps.back().map_or(self.gone, |last| last.unwanted)
    }

    fn only_last(&mut self) {
        if let Some(last) = self.steps.pop_back() {
            self.steps.clear();
            self.steps.push_back(last);
        }
    }

    /// What is to be written, given what the server holds.
    fn next(
        &mut self,
        of: Collection,
        live: Option<&Live>,
        now: Timestamp,
    ) -> Option<(Action, Urgency)> {
        let breaker = of == Collection::CircuitBreakers;
        let unwanted = self.is_unwanted();
        let free = |live: &&Live| live.made && live.held_until.is_none_or(|until| until <= now);
        if let Some(live) = live.filter(|_| breaker && unwanted).filter(free) {
            let remove = Action::Remove {
                uid: live.uid.clone(),
                version: live.version,
            };
            return Some((remove, Urgency::Condition));
        }
        if self.gone {
            return None;
        }
        let Some(live) = live else {
            // A policy that is not there is people's to make.
            let last = self.steps.back().filter(|_| breaker && !unwanted)?;
            return Some((
                Action::Create(Value::clone(&last.status)),
                Urgency::Condition,
            ));
        };
        // A step is there for its state: once that is written, the next one is due.
        while self.steps.len() > 1
            && self
                .steps
                .front()
                .is_some_and(|step| state(&step.status) == state(&live.status))
        {
            self.steps.pop_front();
        }
        let status = adopted(&self.steps.front()?.status, &live.status);
        let is_landed =
            |(written, version): &(Value, u64)| *version == live.version && *written == status;
        if self.landed.as_ref().is_some_and(is_landed) {
            return None;
        }
        let urgency = urgency(&live.status, &status)?;
        Some((Action::Status(status), urgency))
    }
}

/// Whether the object's status says that nobody asks for it.
fn is_unwanted(object: &Value) -> bool {
    let conditions = object
        .pointer("/status/conditions")
        .and_then(Value::as_array);
    conditions
        .into_iter()
        .flatten()
        .any(|condition| condition["type"] == "Accepted" && condition["reason"] == "NoSuchBreaker")
}

fn state(status: &Value) -> Option<&Value> {
    status.get("state")
}

/// `desired` with the times of conditions that did not change: replicas saw
/// them at moments of their own, and the object's time stays what it was.
fn adopted(desired: &Value, live: &Value) -> Value {
    let mut adopted = desired.clone();
    conditions(&mut adopted, live);
    if let (Some(targets), Some(live)) = (
        adopted.get_mut("targets").and_then(Value::as_array_mut),
        live.get("targets").and_then(Value::as_array),
    ) {
        for (target, live) in targets.iter_mut().zip(live) {
            conditions(target, live);
        }
    }
    adopted
}

fn conditions(of: &mut Value, live: &Value) {
    let (Some(conditions), Some(live)) = (
        of.get_mut("conditions").and_then(Value::as_array_mut),
        live.get("conditions").and_then(Value::as_array),
    ) else {
        return;
    };
    for condition in conditions {
        let same = |other: &&Value| {
            other["type"] == condition["type"] && other["status"] == condition["status"]
        };
        if let Some(time) = live
            .iter()
            .find(same)
            .and_then(|same| same.get("lastTransitionTime"))
        {
            condition["lastTransitionTime"] = time.clone();
        }
    }
}

/// How urgent the difference is; `None`: there is none.
fn urgency(live: &Value, status: &Value) -> Option<Urgency> {
    if live == status {
        return None;
    }
    if state(live) != state(status) || live.get("observedReset") != status.get("observedReset") {
        return Some(Urgency::State);
    }
    let words = |status: &Value| -> Vec<[Value; 4]> {
        let conditions = status
            .get("conditions")
            .and_then(Value::as_array)
            .into_iter()
            .flatten();
        let word = |condition: &Value| {
            ["type", "status", "reason", "observedGeneration"].map(|field| condition[field].clone())
        };
        conditions.map(word).collect()
    };
    if words(live) == words(status) {
        Some(Urgency::Figures)
    } else {
        Some(Urgency::Condition)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn place(name: &str) -> Place {
        (Collection::CircuitBreakers, ("shop".into(), name.into()))
    }

    fn breaker(state: &str, percent: u32) -> Value {
        json!({"status": {"state": state, "failurePercent": percent,
            "conditions": [{"type": "Accepted", "status": "True", "reason": "Accepted", "lastTransitionTime": "now"}]}})
    }

    fn live(object: &Value) -> Live {
        Live {
            uid: "1".into(),
            version: 1,
            made: true,
            held_until: None,
            status: object["status"].clone(),
        }
    }

    /// A server of one object, which is written in no time.
    struct Rig {
        queue: Queue,
        live: Option<Live>,
        now: Instant,
    }

    impl Rig {
        fn new(live: Option<Live>) -> Rig {
            let now = Instant::now();
            Rig {
                queue: Queue::new(now),
                live,
                now,
            }
        }

        fn desire(&mut self, object: &Value) {
            self.queue
                .desire(&place("payments"), object, self.live.as_ref());
        }

        /// Makes every write that may be made now; what was written.
        fn write(&mut self) -> Vec<Action> {
            let mut made = Vec::new();
            while let Some(write) = self.queue.pick(self.now, |_| self.live.clone()) {
                match &write.action {
                    Action::Status(status) | Action::Create(status) => {
                        let mut new = self.live.clone().unwrap_or(live(&json!({})));
                        new.version += 1;
                        new.status = status.clone();
                        self.live = Some(new);
                    }
                    Action::Remove { .. } => self.live = None,
                }
                let written = match &write.action {
                    Action::Status(status) | Action::Create(status) => Some(status.clone()),
                    Action::Remove { .. } => None,
                };
                made.push(write.action);
                self.queue
                    .done(&write.place, (true, written), self.now, self.live.as_ref());
            }
            made
        }

        fn states(&mut self) -> Vec<String> {
            let states = self.write().into_iter().filter_map(|action| match action {
                Action::Status(status) => Some(status["state"].as_str()?.to_owned()),
                _ => None,
            });
            states.collect()
        }
    }

    #[test]
    fn states_that_follow_each_other_quickly_are_all_written_in_order() {
        let mut rig = Rig::new(Some(live(&breaker("Closed", 0))));
        for state in ["Open", "HalfOpen", "Closed"] {
            rig.desire(&breaker(state, 60));
        }
        assert_eq!(rig.states(), ["Open", "HalfOpen", "Closed"]);
        assert!(rig.write().is_empty(), "nothing is written twice");
    }

    #[test]
    fn figures_of_one_object_wait_five_seconds_and_a_new_state_does_not() {
        let mut rig = Rig::new(Some(live(&breaker("Closed", 0))));
        rig.desire(&breaker("Closed", 1));
        assert_eq!(rig.write().len(), 1);
        rig.desire(&breaker("Closed", 2));
        assert!(rig.write().is_empty());
        rig.desire(&breaker("Open", 61));
        assert_eq!(rig.states(), ["Open"]);
        rig.desire(&breaker("Open", 62));
        assert!(rig.write().is_empty());
        assert_eq!(rig.queue.due(), Some(rig.now + FIGURES_EVERY));
        rig.now += FIGURES_EVERY;
        assert_eq!(rig.write().len(), 1);
    }

    #[test]
    fn the_time_of_a_condition_that_did_not_change_is_no_difference() {
        let mut rig = Rig::new(Some(live(&breaker("Closed", 0))));
        let mut same = breaker("Closed", 0);
        same["status"]["conditions"][0]["lastTransitionTime"] = "later".into();
        rig.desire(&same);
        assert!(rig.write().is_empty());
    }

    #[test]
    fn what_is_not_there_is_made_and_what_nobody_asks_for_is_removed() {
        let mut rig = Rig::new(None);
        rig.desire(&breaker("Closed", 0));
        assert!(matches!(rig.write()[..], [Action::Create(_)]));
        rig.queue.drop_desire(&place("payments"), rig.live.as_ref());
        assert!(matches!(rig.write()[..], [Action::Remove { .. }]));
        assert!(rig.write().is_empty());
    }

    fn orphan() -> Value {
        json!({"status": {"conditions": [{"type": "Accepted", "status": "False", "reason": "NoSuchBreaker"}]}})
    }

    #[test]
    fn an_unwanted_breaker_is_kept_while_an_override_holds_and_one_of_a_person_for_ever() {
        let now = Timestamp::now();
        let later = now.saturating_add(jiff::SignedDuration::from_hours(1)).ok();
        let held = Live {
            held_until: later,
            ..live(&breaker("Closed", 0))
        };
        let mut rig = Rig::new(Some(held.clone()));
        rig.desire(&orphan());
        assert!(matches!(rig.write()[..], [Action::Status(_)]));
        assert!(
            rig.queue.due().is_some(),
            "it is looked at again when the override ends"
        );
        // Gone from the model altogether, it is kept all the same, also by another replica.
        let mut rig = Rig::new(Some(held));
        rig.queue.drop_desire(&place("payments"), rig.live.as_ref());
        assert!(rig.write().is_empty());
        rig.queue.begin(|_| rig.live.clone());
        assert!(
            rig.queue.due().is_some(),
            "it is looked at again when the override ends"
        );
        let past = Live {
            held_until: Some(Timestamp::UNIX_EPOCH),
            ..live(&breaker("Closed", 0))
        };
        let mut rig = Rig::new(Some(past));
        rig.desire(&orphan());
        assert!(matches!(rig.write()[..], [Action::Remove { .. }]));
        let of_a_person = Live {
            made: false,
            ..live(&breaker("Closed", 0))
        };
        let mut rig = Rig::new(Some(of_a_person));
        rig.desire(&orphan());
        assert!(matches!(rig.write()[..], [Action::Status(_)]));
    }

    #[test]
    fn what_the_server_keeps_otherwise_is_not_written_again_and_again() {
        let mut rig = Rig::new(Some(live(&breaker("Closed", 0))));
        rig.desire(&breaker("Open", 60));
        let write = rig.queue.pick(rig.now, |_| rig.live.clone()).unwrap();
        let Action::Status(status) = write.action else {
            panic!("not a status")
        };
        // Somebody else's condition stands beside ours, and stays.
        let mut kept = status.clone();
        let conditions = kept["conditions"].as_array_mut().unwrap();
        conditions.push(json!({"type": "Reviewed", "status": "True", "reason": "Audit"}));
        rig.live = Some(Live {
            version: 2,
            status: kept.clone(),
            ..live(&breaker("Closed", 0))
        });
        rig.queue.done(
            &write.place,
            (true, Some(status)),
            rig.now,
            rig.live.as_ref(),
        );
        assert!(rig.queue.pick(rig.now, |_| rig.live.clone()).is_none());
        // A new version is tried once.
        rig.live = Some(Live {
            version: 3,
            status: kept,
            ..live(&breaker("Closed", 0))
        });
        rig.queue.look(&place("payments"), rig.live.as_ref());
        assert!(rig.queue.pick(rig.now, |_| rig.live.clone()).is_some());
    }

    #[test]
    fn what_became_less_urgent_while_it_waited_has_the_budget_of_figures() {
        let now = Instant::now();
        let mut queue = Queue::new(now);
        let closed = live(&breaker("Closed", 0));
        for n in 0..400 {
            queue.desire(
                &place(&format!("b{n}")),
                &breaker("Open", 60),
                Some(&closed),
            );
        }
        // All have gone back before anything was written.
        let open = live(&breaker("Open", 1));
        let written = std::iter::from_fn(|| queue.pick(now, |_| Some(open.clone()))).count();
        assert_eq!(written, 20);
    }

    #[test]
    fn what_a_new_list_does_not_show_is_no_longer_desired_and_other_kinds_are_left_alone() {
        let mut rig = Rig::new(Some(live(&breaker("Closed", 0))));
        rig.desire(&breaker("Closed", 0));
        let none = HashSet::new();
        rig.queue
            .retain(Collection::ResiliencePolicies, &none, |_| rig.live.clone());
        assert!(rig.write().is_empty());
        rig.queue
            .retain(Collection::CircuitBreakers, &none, |_| rig.live.clone());
        assert!(matches!(rig.write()[..], [Action::Remove { .. }]));
    }

    #[test]
    fn after_a_failure_only_the_last_state_counts_and_is_tried_again_later() {
        let mut rig = Rig::new(Some(live(&breaker("Closed", 0))));
        for state in ["Open", "HalfOpen", "Open"] {
            rig.desire(&breaker(state, 60));
        }
        let write = rig.queue.pick(rig.now, |_| rig.live.clone()).unwrap();
        rig.queue
            .done(&write.place, (false, None), rig.now, rig.live.as_ref());
        assert!(rig.write().is_empty());
        assert_eq!(rig.queue.due(), Some(rig.now + RETRY.0));
        rig.now += RETRY.0;
        assert_eq!(rig.states(), ["Open"]);
    }

    #[test]
    fn states_go_ahead_of_figures_and_neither_exceeds_its_budget() {
        let now = Instant::now();
        let mut queue = Queue::new(now);
        let closed = live(&breaker("Closed", 0));
        for n in 0..400 {
            let place = place(&format!("b{n}"));
            let object = if n % 2 == 0 {
                breaker("Open", 60)
            } else {
                breaker("Closed", 3)
            };
            queue.desire(&place, &object, Some(&closed));
        }
        let written = |queue: &mut Queue, at| {
            let all = std::iter::from_fn(|| queue.pick(at, |_| Some(closed.clone())));
            all.map(|write| write.urgency).collect::<Vec<_>>()
        };
        let at_once = written(&mut queue, now);
        assert_eq!(at_once.len(), 120);
        assert!(
            at_once[..100]
                .iter()
                .all(|urgency| *urgency == Urgency::State)
        );
        let next = written(&mut queue, now + Duration::from_secs(1));
        let states = next
            .iter()
            .filter(|urgency| **urgency == Urgency::State)
            .count();
        assert_eq!((states, next.len() - states), (50, 5));
    }
}
