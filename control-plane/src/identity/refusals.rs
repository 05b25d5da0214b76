//! What comes to the gRPC address and is not let in: each counted, and said
//! once for each address and reason, or a single agent without a token would
//! fill the log.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::metrics::Metrics;

/// The same refusal is said again after this.
const WINDOW: Duration = Duration::from_secs(600);
/// Addresses and reasons that are remembered; beyond, refusals are only counted.
const MAX_REMEMBERED: usize = 4_096;

/// Why something was not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Reason {
    TooManyConnections,
    Handshake,
    Silent,
    NoToken,
    MalformedToken,
    ExpiredToken,
    OtherAudience,
    UnknownToken,
    OtherAccount,
    NoNode,
    OtherNode,
    NotReviewed,
}

impl Reason {
    pub(crate) const ALL: [Reason; 12] = [
        Reason::TooManyConnections,
        Reason::Handshake,
        Reason::Silent,
        Reason::NoToken,
        Reason::MalformedToken,
        Reason::ExpiredToken,
        Reason::OtherAudience,
        Reason::UnknownToken,
        Reason::OtherAccount,
        Reason::NoNode,
        Reason::OtherNode,
        Reason::NotReviewed,
    ];

    /// As a metric's label.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Reason::TooManyConnections => "too_many_connections",
            Reason::Handshake => "handshake",
            Reason::Silent => "silent",
            Reason::NoToken => "no_token",
            Reason::MalformedToken => "malformed_token",
            Reason::ExpiredToken => "expired_token",
            Reason::OtherAudience => "other_audience",
            Reason::UnknownToken => "unknown_token",
            Reason::OtherAccount => "other_account",
            Reason::NoNode => "no_node",
            Reason::OtherNode => "other_node",
            Reason::NotReviewed => "not_reviewed",
        }
    }
}

/// Counts and says what is refused.
pub(crate) struct Refusals {
    metrics: Arc<Metrics>,
    said: Mutex<HashMap<(IpAddr, Reason), Instant>>,
}

impl Refusals {
    pub(crate) fn new(metrics: Arc<Metrics>) -> Refusals {
        Refusals {
            metrics,
            said: Mutex::default(),
        }
    }

    /// Something from `peer` is refused; `message` says why, and what to do.
    pub(crate) fn refuse(&self, peer: IpAddr, reason: Reason, message: &str) {
        self.metrics.refused(reason);
        if self.is_news(peer, reason, Instant::now()) {
            tracing::warn!(%peer, reason = reason.label(), "not let in: {message}");
        }
    }

    fn is_news(&self, peer: IpAddr, reason: Reason, now: Instant) -> bool {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = said.get_mut(&(peer, reason)) {
            let news = now.duration_since(*at) >= WINDOW;
            if news {
                *at = now;
            }
            return news;
        }
        if said.len() >= MAX_REMEMBERED {
            said.retain(|_, at| now.duration_since(*at) < WINDOW);
        }
        if said.len() >= MAX_REMEMBERED {
            return false;
        }
        said.insert((peer, reason), now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(n: u32) -> IpAddr {
        IpAddr::V4(n.into())
    }

    #[test]
    fn a_refusal_is_said_once_for_each_address_and_reason_until_the_window_is_over() {
        let refusals = Refusals::new(Arc::default());
        let now = Instant::now();
        assert!(refusals.is_news(peer(1), Reason::NoToken, now));
        assert!(!refusals.is_news(peer(1), Reason::NoToken, now));
        assert!(refusals.is_news(peer(1), Reason::OtherNode, now));
        assert!(refusals.is_news(peer(2), Reason::NoToken, now));
        assert!(refusals.is_news(peer(1), Reason::NoToken, now + WINDOW));
        assert!(!refusals.is_news(peer(1), Reason::NoToken, now + WINDOW));
    }

    #[test]
    fn what_is_remembered_is_bounded_and_begins_anew_after_the_window() {
        let refusals = Refusals::new(Arc::default());
        let now = Instant::now();
        for n in 0..2 * MAX_REMEMBERED as u32 {
            refusals.is_news(peer(n), Reason::Silent, now);
        }
        assert_eq!(refusals.said.lock().unwrap().len(), MAX_REMEMBERED);
        assert!(!refusals.is_news(peer(u32::MAX), Reason::Silent, now));
        assert!(refusals.is_news(peer(u32::MAX), Reason::Silent, now + WINDOW));
    }

    #[test]
    fn every_refusal_is_counted_by_its_reason() {
        let metrics = Arc::new(Metrics::default());
        let refusals = Refusals::new(Arc::clone(&metrics));
        for _ in 0..3 {
            refusals.refuse(peer(1), Reason::OtherNode, "");
        }
        let page = metrics.render(&crate::metrics::Gauges::default());
        for reason in Reason::ALL {
            let count = if reason == Reason::OtherNode { 3 } else { 0 };
            let line = format!(
                "weir_control_plane_refused_total{{reason=\"{}\"}} {count}\n",
                reason.label()
            );
            assert!(page.contains(&line), "{line} in {page}");
        }
    }
}
