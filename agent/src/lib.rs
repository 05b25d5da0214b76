//! Weir's data path: sockets in, decisions, sockets out.
//!
//! A caller's connection is accepted by a [`worker`](self) (a thread with a
//! runtime of its own), told apart by its first bytes, and served by `h1`, `h2`
//! or `tcp`. Each request goes through `pipeline`, a state machine without I/O
//! that holds every permit; the protocols own the sockets and do what it
//! decides. What is decided by comes from a `snapshot`, which the control
//! thread builds from the control plane's resources (`discovery`,
//! `configuration`) and publishes at once and whole. Breakers' states go back
//! through `report`.
//!
//! The agent knows nothing of Kubernetes.

mod admin;
mod answer;
mod app;
mod beat;
mod buffer;
mod callers;
pub mod capture;
mod cgroup;
mod clock;
mod configuration;
mod connection;
mod control;
mod detect;
mod dial;
mod discovery;
mod features;
mod h1;
mod h2;
mod handover;
mod listeners;
mod load;
mod metrics;
mod pipeline;
mod pods;
mod probes;
mod registry;
mod replay;
mod report;
mod snapshot;
mod store;
mod tcp;
mod timer;
mod wait;
mod worker;

pub use app::{Agent, Config, STALE_AFTER, StartError};
pub use cgroup::Kernel;
pub use configuration::Listening;
pub use control::{AddressError, ControlPlaneAddress};
pub use features::{CAPTURE, FEATURES};
pub use handover::prepare as prepare_handover;
pub use pods::Capturing;
pub use weir_resilience::config::ExistingConnections;
