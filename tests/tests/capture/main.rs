//! Connections of pods, in clusters made of network namespaces.
//!
//! [`plain`] is how they are without Weir: what it must leave as it was.
//! [`captured`] is how they are with it, [`failing`] when it fails,
//! [`stale`] when what it knows is old, [`upgrade`] when it is replaced,
//! [`handover`] with a breaker open. [`churn`] is when pods come
//! and go, [`hostile`] when one means harm.

#![allow(clippy::print_stdout)] // tests print what they measured

mod captured;
mod churn;
mod failing;
mod handover;
mod hostile;
mod plain;
mod shop;
mod stale;
mod upgrade;
