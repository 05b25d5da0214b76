//! What Weir's tests across crates share: a whole Weir in a temporary
//! directory ([`House`]), destinations that do what a test tells them
//! ([`Backend`]), callers ([`call`]), a machine as busy as a test says
//! ([`Machine`]), the programs of others ([`programs`]), a real Kubernetes API
//! server with or without nodes ([`kubernetes`]) and images for it ([`image`]), a
//! network of a test's own ([`netns`]), nodes with pods out of network namespaces
//! ([`pods`]), load from their callers ([`load`]), and the wire by hand ([`wire`]).
//!
//! A test writes manifests as a person would and looks at what callers get and
//! at what the control plane shows. It waits for conditions, each with a bound,
//! and never for a time.

#![allow(clippy::print_stdout)] // tests print what they measured

pub mod agents;
pub mod backend;
pub mod call;
mod house;
pub mod image;
pub mod kubernetes;
pub mod load;
mod machine;
pub mod netns;
pub mod pods;
pub mod programs;
mod wait;
pub mod wire;

pub use backend::{Backend, Reply};
pub use house::{House, Manifests, policy};
pub use machine::Machine;
pub use wait::{eventually, eventually_within};
