//! Which replica agents speak with: the one that writes.
//!
//! What agents enforce and how their breakers stand must come together in one
//! place, or no replica could tell the whole. So all agents go to the holder of
//! the Lease, and the others send them on; they hold the same configuration and
//! can take over at once. Where nobody can tell who holds it, as while the API
//! server is away, every replica answers, and nobody is sent anywhere.

use tokio::sync::watch;
use tokio::time::Instant;
use tonic::Status;

use crate::identity::{Gate, Peer};

/// Tells an agent to connect anew; any value will do.
const ELSEWHERE: &str = weir_proto::ELSEWHERE;

/// What this replica is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// It holds the Lease, and may write until then.
    Leads(Instant),
    /// Another one does.
    Follows,
    /// Nobody can tell, or there is only this one.
    Unknown,
}

/// The role as it is now.
#[derive(Clone, Debug)]
pub(crate) struct Leadership(watch::Receiver<Role>);

impl Leadership {
    pub(crate) fn new(role: watch::Receiver<Role>) -> Leadership {
        Leadership(role)
    }

    pub(crate) fn role(&self) -> Role {
        *self.0.borrow()
    }

    /// Until when this replica may write; `None`: not now.
    pub(crate) fn tenure(&self) -> Option<Instant> {
        match self.role() {
            Role::Leads(until) => Some(until),
            Role::Follows | Role::Unknown => None,
        }
    }

    /// Returns when the role changed; never, where it cannot.
    pub(crate) async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending().await
        }
    }

    /// Lets a stream in.
    ///
    /// # Errors
    /// Where another replica answers agents.
    fn admit(&self) -> Result<(), Status> {
        match self.role() {
            Role::Follows => Err(elsewhere()),
            Role::Leads(_) | Role::Unknown => Ok(()),
        }
    }

    /// Returns once another replica answers agents, with what a stream ends in.
    pub(crate) async fn lost(&self) -> Status {
        let mut role = self.0.clone();
        let lost = role.wait_for(|role| *role == Role::Follows).await.is_ok();
        if lost {
            elsewhere()
        } else {
            std::future::pending().await
        }
    }
}

/// Whom streams are opened to.
#[derive(Clone)]
pub(crate) struct Access {
    /// Those that prove who they are.
    pub(crate) gate: Gate,
    /// And only at the replica that answers.
    pub(crate) leadership: Leadership,
}

impl Access {
    /// Lets the one in who opens a stream with `request`.
    ///
    /// # Errors
    /// What the stream is refused with.
    pub(crate) async fn admit<T>(&self, request: &tonic::Request<T>) -> Result<Peer, Status> {
        // Before the API server is asked about a token.
        self.leadership.admit()?;
        self.gate
            .admit(request.metadata(), request.extensions())
            .await
    }
}

fn elsewhere() -> Status {
    let mut status = Status::unavailable("another replica answers agents: connect again");
    let value = tonic::metadata::MetadataValue::from_static("1");
    status.metadata_mut().insert(ELSEWHERE, value);
    status
}
