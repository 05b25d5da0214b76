//! How agents know that they speak with the control plane, and how the control
//! plane knows which agent it speaks with.
//!
//! ```text
//! keeper ── roots in Secret weir-ca ──▶ certificate ──▶ door: TLS, limits ──▶ streams
//!    └───── bundle in ConfigMap weir-ca ──▶ agents                 gate ──────────┘
//!                                                     token ──▶ TokenReview ──▶ node
//! ```
//! - [`rotation`] decides when a root is changed for another, [`keeper`] does it
//!   and renews this replica's [`certificate`], which lives in memory alone.
//! - [`door`] accepts connections within limits, with TLS or without.
//! - [`gate`] decides on each stream: the API server reviews its [`token`], which
//!   names the one node that the stream may speak for. What it refuses is
//!   counted and said once ([`refusals`]).
//!
//! With manifests in files there is no API server to ask: the gate is open, and
//! the address must be one that others do not reach.

use std::sync::Arc;

use tokio::sync::watch;

mod certificate;
mod door;
mod gate;
mod keeper;
mod refusals;
mod root;
mod rotation;
mod secret;
#[cfg(test)]
mod tests;
mod token;

pub(crate) use certificate::Served;
pub(crate) use door::{Door, Tls};
pub(crate) use gate::{Gate, Peer, Reviewer};
pub(crate) use keeper::Keeper;
pub(crate) use refusals::{Reason, Refusals};
pub use rotation::Lifetimes;

/// How a control plane in a cluster proves itself and knows its agents.
#[derive(Clone)]
pub(crate) struct Config {
    /// Reads and writes Secret and ConfigMap `weir-ca`, and creates TokenReviews.
    pub(crate) client: kube::Client,
    /// Weir's own namespace.
    pub(crate) namespace: String,
    /// Name of the agents' ServiceAccount in it.
    pub(crate) agent_service_account: String,
    /// Names by which agents reach the control plane.
    pub(crate) names: Vec<String>,
    /// How long everything lives.
    pub(crate) lifetimes: Lifetimes,
}

/// The names of the Service `weir-control-plane` in `namespace`, and
/// `localhost` for an agent beside it.
pub(crate) fn service_names(namespace: &str) -> Vec<String> {
    let name = "weir-control-plane";
    vec![
        name.to_owned(),
        format!("{name}.{namespace}"),
        format!("{name}.{namespace}.svc"),
        format!("{name}.{namespace}.svc.cluster.local"),
        "localhost".to_owned(),
    ]
}

/// The parts, ready to run.
pub(crate) struct Identity {
    /// To be run until the end.
    pub(crate) keeper: Keeper,
    /// For the door; it opens once there is a certificate.
    pub(crate) tls: Tls,
    /// For the streams.
    pub(crate) gate: Gate,
    /// There is a certificate once it holds something.
    pub(crate) certificate: watch::Receiver<Option<Served>>,
}

impl Identity {
    /// Puts the parts together; nothing is asked of the API server yet.
    ///
    /// # Errors
    /// Where the TLS library refuses its own defaults, which is a bug.
    pub(crate) fn new(config: Config, refusals: &Arc<Refusals>) -> Result<Identity, rustls::Error> {
        let account = format!(
            "system:serviceaccount:{}:{}",
            config.namespace, config.agent_service_account
        );
        let (served, certificate) = watch::channel(None);
        let reviewer = Reviewer::new(
            config.client.clone(),
            account,
            config.lifetimes.stream,
            Arc::clone(refusals),
        );
        Ok(Identity {
            tls: Tls::new(certificate.clone(), config.lifetimes.stream / 2)?,
            certificate,
            gate: Gate::Tokens(Arc::new(reviewer)),
            keeper: Keeper::new(config, served),
        })
    }
}
