//! How a person or a supervisor ends a command.

use std::future::poll_fn;
use std::task::Poll;

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Signals that ask a command to end.
pub(crate) struct Signals(Vec<Signal>);

impl Signals {
    /// SIGINT (Ctrl-C) and SIGTERM: from now on neither ends the process by
    /// itself.
    pub(crate) fn catch() -> anyhow::Result<Signals> {
        Signals::of(&[SignalKind::interrupt(), SignalKind::terminate()])
    }

    /// SIGHUP as well, for what ends with its terminal.
    pub(crate) fn catch_with_hangup() -> anyhow::Result<Signals> {
        Signals::of(&[
            SignalKind::interrupt(),
            SignalKind::terminate(),
            SignalKind::hangup(),
        ])
    }

    fn of(kinds: &[SignalKind]) -> anyhow::Result<Signals> {
        let signals = kinds
            .iter()
            .map(|kind| signal(*kind))
            .collect::<std::io::Result<_>>();
        Ok(Signals(signals.context("cannot catch signals")?))
    }

    /// Waits for the next of any. Nothing is lost when this is cancelled.
    pub(crate) async fn next(&mut self) {
        poll_fn(|context| {
            let came = self
                .0
                .iter_mut()
                .any(|signal| signal.poll_recv(context).is_ready());
            if came { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}
