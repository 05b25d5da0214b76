//! The wire between Weir's control plane and its agents, generated from
//! `proto/proto` by `cargo xtask generate`. Nothing else lives here.

#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::needless_pass_by_value
)]
mod generated {
    include!("gen/weir.v1alpha1.rs");
}

/// `weir.dev/v1alpha1`: the first version of the wire.
pub mod v1alpha1 {
    pub use super::generated::*;
}

/// Metadata of a status that ends a stream, or refuses it, because another
/// replica of the control plane answers agents: connect anew, without waiting
/// long.
pub const ELSEWHERE: &str = "weir-elsewhere";
