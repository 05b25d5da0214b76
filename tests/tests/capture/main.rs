//! Connections of pods, in clusters made of network namespaces.
//!
//! [`plain`] is how they are without Weir: what it must leave as it was.
//! [`captured`] is how they are with it.

mod captured;
mod plain;
mod shop;
