//! What is different for a connection that is passed through as bytes: it is one
//! request whose answer is all that the endpoint says.

use std::time::Duration;

use weir_resilience::config::RequestView;
use weir_resilience::{Time, breaker};

use super::{End, Exchange};
use crate::metrics::Counter;

/// A connection as routes and partitions see it: it has nothing that they
/// could ask for.
pub(crate) struct NoHead;

impl RequestView for NoHead {
    fn method(&self) -> &str {
        ""
    }

    fn path(&self) -> &str {
        ""
    }

    fn header(&self, _: &str) -> Option<&[u8]> {
        None
    }
}

impl Exchange {
    /// `timeouts.tcpIdle`, where it is in force.
    pub(crate) fn tcp_idle_timeout(&self) -> Option<Duration> {
        self.timeouts().and_then(|t| t.tcp_idle)
    }

    /// The connection stands: what limits a request and a try has done its
    /// work. How long it lasts says nothing about how slow the destination is.
    pub(crate) fn on_established(&mut self, now: Time) {
        self.deadline = None;
        if let Some(current) = &mut self.current {
            current.deadline = None;
            current.took.get_or_insert(now.since(current.started));
        }
    }

    /// The connection has ended.
    pub(crate) fn on_closed(&mut self, end: End, now: Time, random: u64) {
        match end {
            End::Complete { .. } => {
                self.record_success(now, random);
                self.count(Counter::TcpComplete);
            }
            End::Broken => {
                self.count(Counter::FailedReset);
                self.record_failure(breaker::Cause::Reset, None, now, random);
                self.count(Counter::TcpReset);
            }
            // Neither side said anything: that is nobody's failure.
            End::TimedOut => self.count(Counter::TcpIdle),
            End::CallerGone => self.count(Counter::CallerGone),
        }
        self.finish(now);
    }
}
