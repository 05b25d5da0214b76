//! Which replica writes: the holder of a Lease. Others stay warm.
//!
//! The rules are those of client-go's leader election: a candidate believes a
//! holder for as long as the Lease goes on changing *by its own clock*, so that
//! clocks need not agree; a holder stops writing before the first moment at
//! which another could begin. Every write of the Lease names the version that
//! it read: of two candidates one wins.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use crate::kubernetes::say;
use crate::leadership::Role;

/// Name of the Lease, in Weir's own namespace.
const NAME: &str = "weir-control-plane";
/// A Lease that did not change for so long has no holder.
const DURATION: Duration = Duration::from_secs(5);
/// The holder stops writing when it could not renew for so long.
const STOP_AFTER: Duration = Duration::from_millis(3_500);
/// How often the holder renews.
const RENEW: Duration = Duration::from_secs(1);
/// How often a candidate looks, with jitter.
const LOOK: Duration = Duration::from_secs(1);
/// A request that takes longer has failed.
const PATIENCE: Duration = Duration::from_millis(1_500);

/// What a candidate does about the Lease it read.
#[derive(Debug, PartialEq, Eq)]
enum Move {
    /// There is none, as without the chart: make it.
    Create,
    /// It is ours, or nobody's: write it.
    Take,
    /// Somebody else's, who renewed it not long ago.
    Leave,
}

/// What a candidate knows.
#[derive(Debug)]
struct Candidate {
    name: String,
    /// The last version that was seen, and when it was new.
    seen: Option<(String, Instant)>,
}

impl Candidate {
    fn judge(&mut self, lease: Option<&Lease>, now: Instant) -> Move {
        let Some(lease) = lease else {
            return Move::Create;
        };
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        let since = match &self.seen {
            Some((seen, since)) if *seen == version => *since,
            _ => now,
        };
        self.seen = Some((version, since));
        let holder = holder(lease);
        if holder.is_empty() || holder == self.name || now >= since + DURATION {
            Move::Take
        } else {
            Move::Leave
        }
    }

    /// The Lease as this replica writes it.
    fn write(&self, read: Option<&Lease>, holds: bool) -> Lease {
        let now = MicroTime(k8s_openapi::jiff::Timestamp::now());
        let before = read
            .and_then(|lease| lease.spec.clone())
            .unwrap_or_default();
        let stays = before.holder_identity.as_deref() == Some(self.name.as_str());
        let transitions = before.lease_transitions.unwrap_or(0);
        let mut metadata = read.map(|lease| lease.metadata.clone()).unwrap_or_default();
        metadata.managed_fields = None;
        if read.is_none() {
            metadata = ObjectMeta {
                name: Some(NAME.to_owned()),
                ..ObjectMeta::default()
            };
        }
        let acquired = before.acquire_time.filter(|_| stays);
        let spec = LeaseSpec {
            holder_identity: Some(if holds {
                self.name.clone()
            } else {
                String::new()
            }),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            acquire_time: acquired.or_else(|| Some(now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(if stays { transitions } else { transitions + 1 }),
            ..LeaseSpec::default()
        };
        Lease {
            metadata,
            spec: Some(spec),
        }
    }
}

fn holder(lease: &Lease) -> &str {
    let spec = lease.spec.as_ref();
    spec.and_then(|spec| spec.holder_identity.as_deref())
        .unwrap_or_default()
}

/// Tries to hold the Lease as `name` until `stop` is true, and then gives it
/// back. Says in `roles` what this replica is.
pub(crate) async fn run(
    client: Client,
    namespace: String,
    name: String,
    roles: watch::Sender<Role>,
    mut stop: watch::Receiver<bool>,
) {
    let api: Api<Lease> = Api::namespaced(client, &namespace);
    let mut candidate = Candidate { name, seen: None };
    let mut failing = false;
    // When the Lease was read last.
    let mut read = Instant::now();
    loop {
        // A tenure counts from before the request: the server may have written
        // it at once.
        let asked = Instant::now();
        let tried = timeout(PATIENCE, attempt(&api, &mut candidate)).await;
        let before = *roles.borrow();
        let role = match tried {
            Ok(Ok(holds)) => {
                failing = false;
                read = asked;
                if holds {
                    Role::Leads(asked + STOP_AFTER)
                } else {
                    Role::Follows
                }
            }
            other => {
                let why = match other {
                    Ok(Err(error)) => say(&error),
                    _ => format!("no answer within {PATIENCE:?}"),
                };
                if !failing {
                    failing = true;
                    tracing::warn!(why, "the Lease cannot be read or written");
                }
                match before {
                    // What was held is held until it runs out.
                    Role::Leads(until) if until > Instant::now() => before,
                    Role::Follows if read.elapsed() < DURATION => before,
                    _ => Role::Unknown,
                }
            }
        };
        roles.send_replace(role);
        match (before, role) {
            (Role::Leads(_), Role::Leads(_)) => {}
            (_, Role::Leads(_)) => {
                tracing::info!(holder = candidate.name, "this replica writes status")
            }
            (Role::Leads(_), _) => {
                tracing::info!(was = candidate.name, "this replica no longer writes status")
            }
            _ => {}
        }
        let wait = match role {
            Role::Leads(_) if !failing => RENEW,
            _ => LOOK.mul_f64(0.5 + 0.5 * fastrand::f64()),
        };
        // A tenure that is not renewed ends by itself.
        let ends = match role {
            Role::Leads(until) => until,
            _ => asked + DURATION,
        };
        tokio::select! {
            () = crate::stop::stopped(&mut stop) => break,
            () = sleep(wait) => {}
            () = tokio::time::sleep_until(ends) => {}
        }
    }
    if matches!(roles.send_replace(Role::Unknown), Role::Leads(_)) {
        give_back(&api, &candidate).await;
    }
}

/// Whether the Lease is held now. A write that meets another one is judged
/// once more: it may have been about a label.
async fn attempt(api: &Api<Lease>, candidate: &mut Candidate) -> Result<bool, kube::Error> {
    Ok(match try_once(api, candidate).await? {
        Some(holds) => holds,
        None => try_once(api, candidate).await?.unwrap_or(false),
    })
}

/// `None`: somebody else was faster.
async fn try_once(
    api: &Api<Lease>,
    candidate: &mut Candidate,
) -> Result<Option<bool>, kube::Error> {
    let read = api.get_opt(NAME).await?;
    let written = match candidate.judge(read.as_ref(), Instant::now()) {
        Move::Leave => return Ok(Some(false)),
        Move::Create => {
            let lease = candidate.write(None, true);
            api.create(&PostParams::default(), &lease).await
        }
        Move::Take => {
            let lease = candidate.write(read.as_ref(), true);
            api.replace(NAME, &PostParams::default(), &lease).await
        }
    };
    match written {
        Ok(_) => Ok(Some(true)),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(None),
        Err(error) => Err(error),
    }
}

/// So that another replica need not wait.
async fn give_back(api: &Api<Lease>, candidate: &Candidate) {
    let given = timeout(PATIENCE, async {
        let Some(read) = api.get_opt(NAME).await? else {
            return Ok(());
        };
        if holder(&read) == candidate.name {
            let lease = candidate.write(Some(&read), false);
            api.replace(NAME, &PostParams::default(), &lease).await?;
        }
        Ok::<_, kube::Error>(())
    });
    if let Ok(Err(error)) = given.await {
        tracing::debug!(%error, "the Lease runs out by itself");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(holder: &str, version: &str) -> Lease {
        let spec = LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            ..LeaseSpec::default()
        };
        let metadata = ObjectMeta {
            resource_version: Some(version.to_owned()),
            ..ObjectMeta::default()
        };
        Lease {
            metadata,
            spec: Some(spec),
        }
    }

    fn candidate(name: &str) -> Candidate {
        Candidate {
            name: name.to_owned(),
            seen: None,
        }
    }

    #[test]
    fn a_lease_of_another_is_left_until_it_stops_changing() {
        let mut a = candidate("a");
        let begin = Instant::now();
        assert_eq!(a.judge(None, begin), Move::Create);
        assert_eq!(a.judge(Some(&lease("b", "1")), begin), Move::Leave);
        let later = begin + DURATION - Duration::from_millis(1);
        assert_eq!(a.judge(Some(&lease("b", "2")), later), Move::Leave);
        assert_eq!(
            a.judge(Some(&lease("b", "2")), begin + DURATION),
            Move::Leave
        );
        assert_eq!(
            a.judge(Some(&lease("b", "2")), later + DURATION),
            Move::Take
        );
    }

    #[test]
    fn ones_own_lease_and_one_given_back_are_taken_at_once() {
        let mut a = candidate("a");
        let now = Instant::now();
        assert_eq!(a.judge(Some(&lease("a", "1")), now), Move::Take);
        assert_eq!(a.judge(Some(&lease("", "2")), now), Move::Take);
    }

    #[test]
    fn a_holder_stops_before_another_can_begin() {
        // The other may have seen the last renewal as late as it was answered.
        assert!(STOP_AFTER + PATIENCE <= DURATION);
    }

    #[test]
    fn each_change_of_hands_is_counted_once() {
        let a = candidate("a");
        let first = a.write(Some(&lease("b", "1")), true).spec.unwrap();
        assert_eq!(first.lease_transitions, Some(1));
        let renewed = Lease {
            metadata: ObjectMeta::default(),
            spec: Some(first.clone()),
        };
        let again = a.write(Some(&renewed), true).spec.unwrap();
        assert_eq!(
            (again.lease_transitions, again.acquire_time),
            (Some(1), first.acquire_time)
        );
    }
}
