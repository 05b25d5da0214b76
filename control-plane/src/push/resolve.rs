//! Answers agents that ask who has an address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tonic::Status;
use weir_proto::v1alpha1 as proto;

use crate::capture::Callers;

/// Addresses in one question.
const MAX_ADDRESSES: usize = 64;
/// Questions of one node a second; as many may come at once. Agents keep the
/// answers.
const PER_SECOND: u32 = 50;
/// Nodes that asked within the last second; as many as may be known.
const MAX_ASKING: usize = 10_000;

const BETWEEN: Duration = Duration::from_nanos(1_000_000_000 / PER_SECOND as u64);
const AHEAD: Duration = Duration::from_secs(1);

/// How often each node has asked.
#[derive(Debug, Default)]
pub(super) struct Asked {
    /// When the next question of each would be due at an even pace.
    due: Mutex<HashMap<String, Instant>>,
}

impl Asked {
    /// Whether `node` may ask now.
    pub(super) fn admit(&self, node: &str, now: Instant) -> Result<(), Status> {
        let mut asked = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        if asked.len() >= MAX_ASKING {
            asked.retain(|_, due| *due > now);
        }
        let due = asked.get(node).copied().unwrap_or(now).max(now);
        let is_new = !asked.contains_key(node);
        if due + BETWEEN > now + AHEAD || (is_new && asked.len() >= MAX_ASKING) {
            return Err(Status::resource_exhausted(format!(
                "a node may ask {PER_SECOND} times a second: keep the answers, and ask for up to {MAX_ADDRESSES} addresses at once"
            )));
        }
        asked.insert(node.to_owned(), due + BETWEEN);
        Ok(())
    }
}

/// Who has each address.
pub(super) fn resolve(
    callers: &Callers,
    request: &proto::ResolveRequest,
) -> Result<proto::ResolveResponse, Status> {
    let addresses = &request.addresses;
    if addresses.len() > MAX_ADDRESSES {
        return Err(Status::invalid_argument(format!(
            "{} addresses; ask for up to {MAX_ADDRESSES} at once",
            addresses.len()
        )));
    }
    let caller = |address: &String| {
        let address: IpAddr = address.parse().map_err(|_| {
            Status::invalid_argument(format!(
                "{:?} is not an IP address",
                address.chars().take(64).collect::<String>()
            ))
        })?;
        Ok(callers.caller(address))
    };
    let callers = addresses
        .iter()
        .map(caller)
        .collect::<Result<_, Status>>()?;
    Ok(proto::ResolveResponse { callers })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_may_ask_fifty_times_at_once_and_then_fifty_times_a_second() {
        let asked = Asked::default();
        let now = Instant::now();
        for n in 0..PER_SECOND {
            assert!(asked.admit("one", now).is_ok(), "{n}");
        }
        let refused = asked.admit("one", now).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
        assert!(asked.admit("two", now).is_ok(), "another has its own share");
        assert!(asked.admit("one", now + BETWEEN).is_ok());
        assert!(asked.admit("one", now + BETWEEN).is_err());
    }

    #[test]
    fn nodes_that_asked_are_forgotten_and_never_too_many() {
        let asked = Asked::default();
        let now = Instant::now();
        for n in 0..MAX_ASKING {
            assert!(asked.admit(&n.to_string(), now).is_ok());
        }
        assert!(asked.admit("one more", now).is_err());
        assert!(asked.admit("one more", now + AHEAD).is_ok());
        assert_eq!(asked.due.lock().unwrap().len(), 1);
    }

    #[test]
    fn a_question_that_is_none_is_refused() {
        let ask = |addresses: Vec<String>| {
            resolve(&Callers::default(), &proto::ResolveRequest { addresses })
        };
        let many = ask(vec!["10.0.0.1".to_owned(); 65]).unwrap_err();
        assert_eq!(many.code(), tonic::Code::InvalidArgument);
        let wrong = ask(vec!["checkout".to_owned()]).unwrap_err();
        assert!(wrong.message().contains("checkout"), "{wrong}");
        let unknown = ask(vec!["10.0.0.1".to_owned(), "::1".to_owned()]).unwrap();
        assert_eq!(unknown.callers, vec![proto::Caller::default(); 2]);
    }
}
