//! HTTP/2 connections to endpoints, of one worker: one per endpoint, shared by
//! its streams; another only once that one is closing.

use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use tokio::sync::Notify;
use weir_resilience::Time;

use crate::dial::Exit;

/// How long a connection without streams is kept.
const IDLE: Duration = Duration::from_secs(30);

/// The connections of one worker.
#[derive(Default)]
pub(crate) struct Pool {
    endpoints: HashMap<Exit, Entry>,
    /// Number of the next connection.
    next: u64,
}

struct Entry {
    live: Option<(SendRequest<Bytes>, u64)>,
    /// Told when the connection that is being made is there or has failed.
    connecting: Option<Rc<Notify>>,
    used: Time,
}

/// What the pool has for an endpoint.
pub(crate) enum Found {
    /// A connection and its number; it may still turn out to be closed.
    Live(SendRequest<Bytes>, u64),
    /// Somebody is making one: wait, then look again.
    Soon(Rc<Notify>),
    /// Nothing: make one, and tell with [`Pool::connected`] or
    /// [`Pool::failed`].
    Make,
}

impl Pool {
    pub(crate) fn find(&mut self, exit: Exit, now: Time) -> Found {
        let entry = self.endpoints.entry(exit).or_insert(Entry {
            live: None,
            connecting: None,
            used: now,
        });
        entry.used = now;
        if let Some((live, number)) = &entry.live {
            return Found::Live(live.clone(), *number);
        }
        match &entry.connecting {
            Some(notify) => Found::Soon(notify.clone()),
            None => {
                entry.connecting = Some(Rc::new(Notify::new()));
                Found::Make
            }
        }
    }

    /// Returns the connection's number, for [`Pool::closing`].
    pub(crate) fn connected(&mut self, exit: Exit, live: SendRequest<Bytes>) -> u64 {
        let number = self.next;
        self.next += 1;
        self.settle(exit, Some((live, number)));
        number
    }

    pub(crate) fn failed(&mut self, exit: Exit) {
        self.settle(exit, None);
    }

    fn settle(&mut self, exit: Exit, live: Option<(SendRequest<Bytes>, u64)>) {
        if let Some(entry) = self.endpoints.get_mut(&exit) {
            entry.live = live;
            if let Some(notify) = entry.connecting.take() {
                notify.notify_waiters();
            }
        }
    }

    /// The connection is closing: the next request makes another. One that has
    /// taken its place already stays.
    pub(crate) fn closing(&mut self, exit: Exit, number: u64) {
        if let Some(entry) = self.endpoints.get_mut(&exit)
            && entry.live.as_ref().is_some_and(|(_, n)| *n == number)
        {
            entry.live = None;
        }
    }

    /// Lets go of what is in a pod's network namespace. The drivers end once
    /// nobody holds a connection.
    pub(crate) fn forget(&mut self, pod: u64) {
        self.endpoints
            .retain(|exit, entry| exit.pod != pod || entry.connecting.is_some());
        for (exit, entry) in &mut self.endpoints {
            if exit.pod == pod {
                entry.live = None;
            }
        }
    }

    /// Lets go of what has not been used for a while.
    pub(crate) fn sweep(&mut self, now: Time) {
        self.endpoints
            .retain(|_, entry| entry.connecting.is_some() || now.since(entry.used) < IDLE);
    }
}
