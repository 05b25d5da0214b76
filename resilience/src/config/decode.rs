//! From the wire to the domain types, and the only way there.
//!
//! Everything is checked and every problem is collected, so that a person
//! mends a configuration once and not field by field. Nothing is clamped or
//! guessed.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::num::{NonZeroU16, NonZeroU32};
use std::time::Duration;

use weir_proto::v1alpha1 as proto;

use super::{Endpoint, Endpoints, Policy, Port, Protocol, Route, Service, ServiceId};

mod breaker;
mod matches;
mod sections;
mod shared;
#[cfg(test)]
mod tests;

/// Ports of one service.
const MAX_PORTS: usize = 256;
/// Routes of one port.
const MAX_ROUTES: usize = 16;
/// Alternatives of one route.
const MAX_MATCHES: usize = 8;
/// Bulkheads of one policy.
const MAX_BULKHEADS: usize = 16;
/// Endpoints of one port.
const MAX_ENDPOINTS: usize = u16::MAX as usize;
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
        .filter(|_| consumer_is_good)
        .map(|(ports, id)| Service {
            id,
            consumer,
            ports,
        });
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

/// Decodes where a service's requests go, or says all that is wrong.
pub fn endpoints(message: &proto::Endpoints) -> Result<Endpoints, Vec<Problem>> {
    let mut problems = Vec::new();
    let mut at = At::root(&mut problems);
    let id = service_id(&mut at, &message.namespace, &message.name);
    at.at_most("ports", message.ports.len(), MAX_PORTS);
    let mut numbers = HashSet::new();
    let ports: Vec<_> = (message.ports.iter().enumerate())
        .map(|(n, message)| {
            let mut at = at.item("ports", n);
            if !numbers.insert(message.port) {
                at.refuse(
                    "port",
                    format!("{} is used by an earlier entry", message.port),
                )
            }
            let number = port_number(&mut at, "port", message.port);
            at.at_most("endpoints", message.endpoints.len(), MAX_ENDPOINTS);
            let endpoints: Vec<_> = (message.endpoints.iter().enumerate())
                .map(|(n, message)| endpoint(&mut at.item("endpoints", n), message))
                .collect();
            number.zip(all(endpoints))
        })
        .collect();
    let endpoints = all(ports)
        .zip(id)
        .map(|(ports, id)| Endpoints { id, ports });
    finish(endpoints, problems)
}

fn finish<T>(decoded: Option<T>, problems: Vec<Problem>) -> Result<T, Vec<Problem>> {
    match decoded {
        Some(decoded) if problems.is_empty() => Ok(decoded),
        _ => Err(problems),
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
        proto::Protocol::Detect => Some(Protocol::Detect),
        proto::Protocol::Http1 => Some(Protocol::Http1),
        proto::Protocol::Http2 => Some(Protocol::Http2),
        proto::Protocol::Unspecified => {
            at.refuse("protocol", unknown(message.protocol));
            None
        }
    };
    let listen = match message.listen.as_str() {
        "" => Some(None),
        listen => at.listener(listen).map(Some),
    };
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

fn endpoint(at: &mut At<'_>, message: &proto::Endpoint) -> Option<Endpoint> {
    let address = at.address("address", &message.address)?;
    Some(Endpoint {
        address,
        zone: message.zone.clone(),
        node: message.node.clone(),
    })
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

/// A place in the message, and where its problems go.
struct At<'a> {
    path: String,
    problems: &'a mut Vec<Problem>,
}

impl At<'_> {
    fn root(problems: &mut Vec<Problem>) -> At<'_> {
        At {
            path: String::new(),
            problems,
        }
    }

    fn path_of(&self, field: &str) -> String {
        if self.path.is_empty() {
            field.to_owned()
        } else {
            format!("{}.{field}", self.path)
        }
    }

    fn field(&mut self, field: &str) -> At<'_> {
        At {
            path: self.path_of(field),
            problems: self.problems,
        }
    }

    fn item(&mut self, field: &str, n: usize) -> At<'_> {
        At {
            path: format!("{}[{n}]", self.path_of(field)),
            problems: self.problems,
        }
    }

    fn refuse(&mut self, field: &str, message: impl Into<String>) {
        let path = self.path_of(field);
        self.problems.push(Problem {
            path,
            message: message.into(),
        });
    }

    fn at_most(&mut self, field: &str, length: usize, max: usize) {
        if length > max {
            self.refuse(
                field,
                format!("{length} entries; at most {max} are allowed"),
            );
        }
    }

    /// A DNS label (RFC 1123).
    fn label(&mut self, field: &str, value: &str) -> bool {
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let good = (1..=63).contains(&value.len())
            && value.bytes().all(inner)
            && !value.starts_with('-')
            && !value.ends_with('-');
        if !good {
            self.refuse(
                field,
                format!("{value:?} is not a DNS label; write 1 to 63 of a-z, 0-9 and -, not - first or last"),
            );
        }
        good
    }

    /// The name of shared state.
    fn key(&mut self, key: &str) -> Option<String> {
        if key.is_empty() || key.len() > MAX_KEY {
            self.refuse("key", format!("must have 1 to {MAX_KEY} characters"));
            return None;
        }
        Some(key.to_owned())
    }

    /// Port 0 stands for any free port, which the agent picks.
    fn listener(&mut self, text: &str) -> Option<SocketAddr> {
        match text.parse::<SocketAddr>() {
            Ok(address) if address.port() == 0 => Some(address),
            _ => self.address("listen", text),
        }
    }

    fn address(&mut self, field: &str, text: &str) -> Option<SocketAddr> {
        match text.parse::<SocketAddr>() {
            Ok(address) if address.port() != 0 => Some(address),
            Ok(_) => {
                self.refuse(
                    field,
                    format!("{text:?} has port 0; write a port from 1 to 65535"),
                );
                None
            }
            Err(_) => {
                self.refuse(
                    field,
                    format!("{text:?} is not an IP address and port; write \"10.0.0.1:8080\" or \"[fd00::1]:8080\""),
                );
                None
            }
        }
    }

    fn between(&mut self, field: &str, value: u32, min: u32, max: u32) -> Option<u32> {
        if (min..=max).contains(&value) {
            return Some(value);
        }
        self.refuse(
            field,
            format!("{value} is out of range; write {min} to {max}"),
        );
        None
    }

    fn non_zero(&mut self, field: &str, value: u32) -> Option<NonZeroU32> {
        let good = NonZeroU32::new(value);
        if good.is_none() {
            self.refuse(field, "must be at least 1");
        }
        good
    }

    /// Zero is "off".
    fn optional_duration(&mut self, field: &str, micros: u64) -> Option<Option<Duration>> {
        let duration = Duration::from_micros(micros);
        if duration > MAX_DURATION {
            self.refuse(field, format!("{micros} µs is longer than a year"));
            return None;
        }
        Some((micros > 0).then_some(duration))
    }

    fn duration(&mut self, field: &str, micros: u64) -> Option<Duration> {
        let duration = self.optional_duration(field, micros)?;
        if duration.is_none() {
            self.refuse(field, "must be longer than zero");
        }
        duration
    }
}
