//! What people write in a policy, told right or wrong by a real API server, and the same by `weir check` without one.
//!
//! - [`refused`]: every case of the table of rules, and every rule refused at least once;
//! - [`mutations`]: a thousand policies that somebody changed here and there, and breakers;
//! - [`people`]: what `kubectl apply`, `diff`, `edit` and `weir check` show;
//! - [`manual`]: what `kubectl explain` has to say about each field.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test may"
)]

mod generate;
mod manual;
mod mutations;
mod people;
mod refused;
mod server;
mod shrink;
#[path = "../../../crds/tests/support/mod.rs"]
mod support;
mod texts;
