//! What happened, newest last: breakers' transitions, policies refused, files
//! that cannot be read. Bounded; shown at `/events` and to subscribers.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use serde::Serialize;
use tokio::sync::broadcast;

/// Events that are kept, and that a subscriber may fall behind.
const KEPT: usize = 1_000;

/// Whether somebody should look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Severity {
    /// All is as it should be.
    Normal,
    /// Somebody should look.
    Warning,
}

/// One thing that happened to one object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// When, in milliseconds since the Unix epoch, by the clock of who saw it.
    pub at_unix_ms: i64,
    /// How urgent.
    pub severity: Severity,
    /// What, one word of a closed set: `CircuitOpened`, `CircuitHalfOpen`,
    /// `CircuitClosed`, `PolicyRejected`, `ManifestInvalid`.
    pub reason: &'static str,
    /// Kind of the object; `File` for a file that cannot be read.
    pub kind: &'static str,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The node that saw it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// State before a transition.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<&'static str>,
    /// State after a transition.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<&'static str>,
    /// The section only decides and counts.
    pub shadow: bool,
    /// For people.
    pub message: String,
}

/// The events kept, and those who listen.
pub struct Events {
    kept: Mutex<VecDeque<Event>>,
    listeners: broadcast::Sender<Event>,
}

impl Default for Events {
    fn default() -> Events {
        Events {
            kept: Mutex::default(),
            listeners: broadcast::Sender::new(KEPT),
        }
    }
}

impl Events {
    /// Keeps `event`, dropping the oldest where there are too many.
    pub fn push(&self, event: Event) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(event.clone());
        drop(kept);
        // An error only says that nobody listens.
        let _ = self.listeners.send(event);
    }

    /// Those kept, oldest first.
    pub fn kept(&self) -> Vec<Event> {
        self.kept
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .cloned()
            .collect()
    }

    /// Those to come. A listener that falls 1,000 behind misses the oldest.
    pub fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.listeners.subscribe()
    }
}
