//! HTTP/2 connections to endpoints, of one worker: one per endpoint, shared by
//! its streams; another only once that one is closing.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use tokio::sync::Notify;
use weir_resilience::Time;

/// How long a connection without streams is kept.
const IDLE: Duration = Duration::from_secs(30);

/// The connections of one worker.
#[derive(Default)]
pub(crate) struct Pool {
    endpoints: HashMap<SocketAddr, Entry>,
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
    pub(crate) fn find(&mut self, endpoint: SocketAddr, now: Time) -> Found {
        let entry = self.endpoints.entry(endpoint).or_insert(Entry {
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
    pub(crate) fn connected(&mut self, endpoint: SocketAddr, live: SendRequest<Bytes>) -> u64 {
        let number = self.next;
        self.next += 1;
        self.settle(endpoint, Some((live, number)));
        number
    }

    pub(crate) fn failed(&mut self, endpoint: SocketAddr) {
        self.settle(endpoint, None);
    }

    fn settle(&mut self, endpoint: SocketAddr, live: Option<(SendRequest<Bytes>, u64)>) {
        if let Some(entry) = self.endpoints.get_mut(&endpoint) {
            entry.live = live;
            if let Some(notify) = entry.connecting.take() {
                notify.notify_waiters();
            }
        }
    }

    /// The connection is closing: the next request makes another. One that has
    /// taken its place already stays.
    pub(crate) fn closing(&mut self, endpoint: SocketAddr, number: u64) {
        if let Some(entry) = self.endpoints.get_mut(&endpoint)
            && entry.live.as_ref().is_some_and(|(_, n)| *n == number)
        {
            entry.live = None;
        }
    }

    /// Lets go of what has not been used for a while.
    pub(crate) fn sweep(&mut self, now: Time) {
        self.endpoints
            .retain(|_, entry| entry.connecting.is_some() || now.since(entry.used) < IDLE);
    }
}
