//! From the wire to the domain types, and the only way there.
//!
//! Everything is checked and every problem is collected, so that a person
//! mends a configuration once and not field by field. Nothing is clamped or
//! guessed.

use std::collections::HashSet;
use std::num::NonZeroU16;
use std::time::Duration;

use weir_proto::v1alpha1 as proto;

use super::{ExistingConnections, Policy, Port, Protocol, Route, Service, ServiceId};

mod at;
mod breaker;
mod callers;
mod matches;
mod places;
mod sections;
mod shared;
#[cfg(test)]
mod tests;

use at::At;
pub use callers::caller;
pub use places::{endpoints, node, pod};

/// Ports of one service.
const MAX_PORTS: usize = 256;
/// Routes of one port.
const MAX_ROUTES: usize = 16;
/// Alternatives of one route.
const MAX_MATCHES: usize = 8;
/// Bulkheads of one policy.
const MAX_BULKHEADS: usize = 16;
/// Addresses of one Service: one of each family.
const MAX_CLUSTER_ADDRESSES: usize = 2;
/// Characters of a key: four names of 63 characters, one of 15, and what stands
/// between them.
const MAX_KEY: usize = 512;
/// No duration is longer: a year.
const MAX_DURATION: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// One thing that is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {message}")]
pub struct Problem {
    /// The field, `ports[0].policy.retries.attempts`.
    pub path: String,
    /// What is wrong with it and what would be right.
    pub message: String,
}

/// Decodes what is enforced for one service, or says all that is wrong.
pub fn service(message: &proto::ServiceConfig) -> Result<Service, Vec<Problem>> {
    let mut problems = Vec::new();
    let mut at = At::root(&mut problems);
    let id = service_id(&mut at, &message.namespace, &message.name);
    let consumer = (!message.consumer.is_empty()).then(|| message.consumer.clone());
    let consumer_is_good = consumer
        .as_ref()
        .is_none_or(|consumer| at.label("consumer", consumer));
    let cluster_addresses = at.ips(
        "cluster_addresses",
        &message.cluster_addresses,
        MAX_CLUSTER_ADDRESSES,
    );
    let existing_connections = existing_connections(&mut at, message);
    at.at_most("ports", message.ports.len(), MAX_PORTS);
    let mut numbers = HashSet::new();
    let ports: Vec<Option<Port>> = (message.ports.iter().enumerate())
        .map(|(n, message)| {
            let mut at = at.item("ports", n);
            if !numbers.insert(message.number) {
                at.refuse(
                    "number",
                    format!("{} is used by an earlier port", message.number),
                )
            }
            port(&mut at, message)
        })
        .collect();
    let service = all(ports)
        .zip(id)
        .zip(cluster_addresses.zip(existing_connections))
        .filter(|_| consumer_is_good)
        .map(
            |((ports, id), (cluster_addresses, existing_connections))| Service {
                id,
                consumer,
                cluster_addresses,
                existing_connections,
                ports,
            },
        );
    if let Some(service) = &service {
        shared::check(&mut at, service);
        if service.consumer.is_some() {
            callers_side_alone(&mut at, service);
        }
    }
    finish(service, problems)
}

/// Refuses what a consumer has no say in.
fn callers_side_alone(at: &mut At<'_>, service: &Service) {
    for (n, port) in service.ports.iter().enumerate() {
        let mut at = at.item("ports", n);
        if port.listen.is_some() {
            at.refuse("listen", "only for all callers: leave it out, or consumer");
        }
        let routes = port.routes.iter().map(|route| &route.policy);
        let of_destination =
            |policy: &Policy| policy.shedding.is_some() || !policy.destination_bulkheads.is_empty();
        if std::iter::once(&port.policy)
            .chain(routes)
            .any(of_destination)
        {
            at.refuse(
                "policy",
                "what acts at the destination is for all callers: leave out load_shedding and bulkheads at the destination, or consumer",
            );
        }
    }
}

fn finish<T>(decoded: Option<T>, problems: Vec<Problem>) -> Result<T, Vec<Problem>> {
    match decoded {
        Some(decoded) if problems.is_empty() => Ok(decoded),
        _ => Err(problems),
    }
}

fn existing_connections(
    at: &mut At<'_>,
    message: &proto::ServiceConfig,
) -> Option<Option<ExistingConnections>> {
    match proto::ExistingConnections::try_from(message.existing_connections) {
        Ok(proto::ExistingConnections::Unspecified) => Some(None),
        Ok(proto::ExistingConnections::Keep) => Some(Some(ExistingConnections::Keep)),
        Ok(proto::ExistingConnections::Reset) => Some(Some(ExistingConnections::Reset)),
        Err(_) => {
            at.refuse(
                "existing_connections",
                unknown(message.existing_connections),
            );
            None
        }
    }
}

fn service_id(at: &mut At<'_>, namespace: &str, name: &str) -> Option<ServiceId> {
    let namespace_is_good = at.label("namespace", namespace);
    let name_is_good = at.label("name", name);
    (namespace_is_good && name_is_good).then(|| ServiceId {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    })
}

fn port_number(at: &mut At<'_>, field: &str, number: u32) -> Option<NonZeroU16> {
    let good = u16::try_from(number).ok().and_then(NonZeroU16::new);
    if good.is_none() {
        at.refuse(field, format!("{number} is not a port; write 1 to 65535"));
    }
    good
}

fn port(at: &mut At<'_>, message: &proto::Port) -> Option<Port> {
    let number = port_number(at, "number", message.number);
    let name = (!message.name.is_empty()).then(|| message.name.clone());
    let name_is_good = name.as_ref().is_none_or(|name| at.label("name", name));
    let protocol = match message.protocol() {
        proto::Protocol::Detect if message.http => Some(Protocol::Http),
        proto::Protocol::Detect => Some(Protocol::Detect),
        proto::Protocol::Http1 => Some(Protocol::Http1),
        proto::Protocol::Http2 => Some(Protocol::Http2),
        proto::Protocol::Tcp => Some(Protocol::Tcp),
        proto::Protocol::Unspecified => {
            at.refuse("protocol", unknown(message.protocol));
            None
        }
    };
    let listen = match message.listen.as_str() {
        "" => Some(None),
        listen => at.listener(listen).map(Some),
    };
    let affinity = at.optional_duration("affinity_us", message.affinity_us);
    let policy = policy(at, message.policy.as_ref());
    at.at_most("routes", message.routes.len(), MAX_ROUTES);
    let mut names = HashSet::new();
    let routes: Vec<_> = (message.routes.iter().enumerate())
        .map(|(n, message)| {
            let mut at = at.item("routes", n);
            if !names.insert(&message.name) {
                at.refuse(
                    "name",
                    format!("{:?} is used by an earlier route", message.name),
                )
            }
            route(&mut at, message)
        })
        .collect();
    let routes = all(routes);
    if !name_is_good {
        return None;
    }
    Some(Port {
        number: number?,
        name,
        protocol: protocol?,
        listen: listen?,
        local_only: message.local_only,
        affinity: affinity?,
        policy: policy?,
        routes: routes?,
    })
}

fn route(at: &mut At<'_>, message: &proto::Route) -> Option<Route> {
    let name_is_good = at.label("name", &message.name);
    at.at_most("matches", message.matches.len(), MAX_MATCHES);
    let matches: Vec<_> = (message.matches.iter().enumerate())
        .map(|(n, message)| matches::request(&mut at.item("matches", n), message))
        .collect();
    let policy = policy(at, message.policy.as_ref());
    let (matches, policy) = all(matches).zip(policy)?;
    name_is_good.then(|| Route {
        name: message.name.clone(),
        matches,
        policy,
        idempotent: message.idempotent,
    })
}

fn policy(at: &mut At<'_>, message: Option<&proto::Policy>) -> Option<Policy> {
    match message {
        Some(message) => sections::policy(&mut at.field("policy"), message),
        None => Some(Policy::default()),
    }
}

/// All of them, or `None` when one is missing.
fn all<T>(items: Vec<Option<T>>) -> Option<Vec<T>> {
    items.into_iter().collect()
}

fn unknown(value: i32) -> String {
    match value {
        0 => "missing".to_owned(),
        value => format!("{value} is not a value that this version knows"),
    }
}
