//! Objects from an API server: watches feed an index, and the index gives
//! everything that it holds whenever that changed.
//!
//! [`watches`] keeps one watch for each kind alive through everything that a
//! server may do: restarts, expired versions, refusals, silence. [`index`] is
//! synchronous and knows no server. [`crds`] waits for Weir's own kinds.
//! [`pods`] says what is kept of Pods and Nodes. [`observed`] keeps what the server holds of what Weir writes.

mod crds;
mod index;
mod observed;
mod pods;
mod watches;

pub(crate) use observed::{Live, MANAGER, Observed, Place, live};
pub(crate) use watches::run;
