//! The command as people run it.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "what goes wrong in a test's own helpers fails the test"
)]

mod arguments;
mod capture;
mod check;
mod doctor;
mod get;
mod run;
mod support;
