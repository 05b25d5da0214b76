//! The processes of a measurement that are our own, each run as a child: the relay that all is compared to, the
//! backend behind the proxies, the load in front of them, and the small start helper that pins a process to its core.
//!
//! ```text
//! load (CPU 1) ─▶ proxy (CPU 0) ─▶ backend (CPU 1)
//! ```
//!
//! Load and backend are hand-written loops on epoll, one read and one write per request, so that both together use less
//! CPU than the proxy between them, and the proxy is what saturates its core.

pub(crate) mod backend;
mod connection;
mod epoll;
pub(crate) mod load;
pub(crate) mod pin;
pub(crate) mod relay;

use std::{
    io::{self, Write as _},
    net::SocketAddr,
};

/// Tells the parent, on standard output, where this part listens.
fn announce(address: SocketAddr) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{address}")?;
    out.flush()
}
