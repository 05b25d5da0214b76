//! The pods of this node: which of their connections come to Weir, and the
//! sockets in their network namespaces.
//!
//! ```text
//! configuration ─ plans ─▶ keeper ── Capture, Release ──▶ capture (a process of its own)
//!                            │    ◀── listeners ─────────     │ rules in the pod
//!                            ▼                                ▼
//!                          workers ◀── connections ── listeners in the pod
//!                            └─────── Sockets ──▶ capture: to connect with
//! ```
//!
//! The proxy reads what callers send and has no capability; capture has them and
//! reads nothing. When either dies, connections go the plain way: capture takes
//! the rules away when the proxy ends or its beat stops, and the kernel does when
//! capture ends. What was captured before then is told to end in good order.

mod keeper;
mod link;
mod plan;
mod pod;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;
use weir_proto::v1alpha1 as proto;
use weir_resilience::config::ExistingConnections;

pub(crate) use self::keeper::{Keeper, Settled};
pub(crate) use self::plan::{Plans, plans};
pub(crate) use self::pod::{Kind, NoSocket, Pod};
use crate::worker::Target;

/// How pods' connections are captured.
#[derive(Clone, Debug)]
pub struct Capturing {
    /// Where capture listens.
    pub socket: PathBuf,
    /// What becomes of connections that were open before, unless a policy says
    /// otherwise.
    pub existing: ExistingConnections,
}

/// What the configuration's side knows of the pods' side.
#[derive(Clone)]
pub(crate) struct Pods {
    pub(crate) existing: ExistingConnections,
    wanted: Arc<watch::Sender<Wanted>>,
    settled: watch::Receiver<Settled>,
    coverage: watch::Receiver<proto::Coverage>,
}

/// What shall be captured. The number counts up with each change.
#[derive(Clone, Default)]
pub(crate) struct Wanted {
    number: u64,
    plans: Arc<Plans>,
    retreat: bool,
}

impl Pods {
    /// Has these pods captured so, and no others.
    pub(crate) fn want(&self, plans: Plans) {
        self.wanted.send_if_modified(|wanted| {
            if *wanted.plans == plans {
                return false;
            }
            wanted.number += 1;
            wanted.plans = Arc::new(plans);
            true
        });
    }

    /// Returns once the last change is in place as far as it can be: what fails
    /// is told by [`Pods::coverage`]. Where capture is away there is nothing to
    /// wait for.
    pub(crate) async fn settled(&self) {
        let number = self.wanted.borrow().number;
        let mut settled = self.settled.clone();
        // The sender lives as long as the agent does.
        let _ = settled
            .wait_for(|settled| settled.away || settled.number >= number)
            .await;
    }

    /// Whether what is wanted now is in place.
    pub(crate) fn are_settled(&self) -> bool {
        let settled = *self.settled.borrow();
        !settled.away && settled.number >= self.wanted.borrow().number
    }

    /// Has every redirection taken away: new connections go the plain way, and
    /// those that came in time can still be served.
    pub(crate) async fn retreat(&self) {
        self.wanted.send_modify(|wanted| {
            wanted.number += 1;
            wanted.retreat = true;
        });
        self.settled().await;
    }

    /// What is not captured, and why.
    pub(crate) fn coverage(&self) -> watch::Receiver<proto::Coverage> {
        self.coverage.clone()
    }
}

/// How a caller's connection came to Weir, and so how those to endpoints go out.
#[derive(Clone, Debug)]
pub(crate) enum Origin {
    /// By a listener of the agent's own, for what it is for.
    Agent(Target),
    /// A pod called `original`.
    Outbound { pod: Arc<Pod>, original: SocketAddr },
    /// `caller` called a pod, at `original`.
    Inbound {
        pod: Arc<Pod>,
        original: SocketAddr,
        caller: SocketAddr,
    },
}

impl Origin {
    /// The pod in whose network namespace the connection is.
    pub(crate) fn pod(&self) -> Option<&Arc<Pod>> {
        match self {
            Origin::Agent(_) => None,
            Origin::Outbound { pod, .. } | Origin::Inbound { pod, .. } => Some(pod),
        }
    }
}
