//! Connections of pods, in clusters made of network namespaces.
//!
//! [`plain`] is how they are without Weir: what it must leave as it was.
//! [`captured`] is how they are with it, [`failing`] when it fails.

mod captured;
mod failing;
mod plain;
mod shop;
