//! Pushes what was compiled to the agents, each the difference to what it
//! already enforces.
//!
//! [`Catalog`] is the present whole: every resource encoded once, shared by all
//! streams. [`session`] decides for one agent what goes next, without I/O or a
//! clock. [`stream`] carries it over gRPC, one task for each agent, so that a
//! slow one holds up nobody else. [`resolve`] answers agents that ask who has
//! an address.

mod catalog;
mod resolve;
mod session;
mod stream;

pub(crate) use catalog::{Catalog, Encoded, OfNodes, ResourceId};
pub(crate) use session::{Holding, Taken};
pub(crate) use stream::Pusher;
pub use stream::Timing;
