//! Capture: a process of its own that redirects pods' connections.

#[allow(dead_code)]
pub(crate) mod wire;
