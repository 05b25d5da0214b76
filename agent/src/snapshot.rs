//! The configuration in force: services with their policies, endpoints and
//! machines, immutable once published. Workers read it through one `ArcSwap`;
//! a request keeps the one that it began with.

mod endpoints;

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use weir_resilience::balance::Load;
use weir_resilience::breaker::Breaker;
use weir_resilience::budget::Budget;
use weir_resilience::bulkhead::Bulkhead;
use weir_resilience::config;
use weir_resilience::config::{RequestView, ServiceId};
use weir_resilience::shed::Shed;

use crate::metrics::PortMetrics;
use crate::pipeline::{Place, Side, To};
use crate::registry::{Moment, Registry};

/// Everything that is enforced at one moment.
#[derive(Default)]
pub(crate) struct Snapshot {
    /// Ordered by identity.
    pub(crate) services: Vec<Arc<Service>>,
    /// For each service the namespaces whose calls have rules of their own,
    /// ordered by name.
    consumers: Vec<Vec<Arc<Consumer>>>,
    by_id: HashMap<ServiceId, usize>,
    /// What captured callers use: a Service's own addresses, and the endpoints of
    /// a headless one.
    by_address: HashMap<SocketAddr, Named>,
    /// Endpoints on this node of ports that have rules for the destination's
    /// side.
    served: HashMap<SocketAddr, Named>,
    /// Where no policy asks for anything.
    nothing: RuleSet,
    /// Names that have exactly one service; `None` where several share it.
    by_name: HashMap<String, Option<usize>>,
}

/// What an address stands for: a port of a service, and where it is the
/// endpoint's own, which.
#[derive(Clone, Copy, Debug)]
struct Named {
    service: usize,
    port: usize,
    endpoint: Option<usize>,
}

/// Where this agent is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Here {
    pub(crate) node: String,
    pub(crate) zone: String,
}

/// One service.
pub(crate) struct Service {
    pub(crate) id: ServiceId,
    pub(crate) label: Arc<str>,
    /// Its own addresses; none for a headless one.
    pub(crate) addresses: Vec<IpAddr>,
    /// What its policies say of connections that were open before.
    pub(crate) existing: Option<config::ExistingConnections>,
    pub(crate) ports: Vec<Port>,
    /// Every breaker of its policies, each key once.
    pub(crate) breakers: Vec<NamedBreaker>,
}

/// What stands at the callers' side in place of a service's own rules, for the
/// calls from one namespace.
pub(crate) struct Consumer {
    /// The service.
    id: ServiceId,
    /// The callers' namespace.
    namespace: String,
    /// By the service's port number.
    ports: Vec<(u16, RuleSet)>,
    /// The breakers that it does not share with the service itself.
    breakers: Vec<NamedBreaker>,
}

/// A breaker and what reports say about it.
#[derive(Clone)]
pub(crate) struct NamedBreaker {
    pub(crate) key: Arc<str>,
    pub(crate) shadow: bool,
    pub(crate) machine: Arc<Breaker>,
}

/// One port of a service, ready for requests.
pub(crate) struct Port {
    pub(crate) number: u16,
    pub(crate) protocol: config::Protocol,
    pub(crate) listen: Option<SocketAddr>,
    pub(crate) rules: RuleSet,
    /// Those that callers here may use come first, and of these those of IPv4.
    pub(crate) endpoints: Vec<Endpoint>,
    /// How many of them callers here may use.
    pub(crate) usable: usize,
    /// How many of these are of IPv4.
    pub(crate) usable_v4: usize,
    /// How long a caller keeps its endpoint.
    pub(crate) affinity: Option<Duration>,
    pub(crate) metrics: Arc<PortMetrics>,
    /// Where it has rules for the destination's side.
    pub(crate) destination_metrics: Option<Arc<PortMetrics>>,
}

/// The rules of a port's requests, by route.
#[derive(Default)]
pub(crate) struct RuleSet {
    /// For requests that no route matches.
    rest: Rules,
    routes: Vec<Route>,
    asks_who_calls: bool,
}

/// A route with its rules.
struct Route {
    matches: Vec<config::Match>,
    idempotent: bool,
    rules: Rules,
}

/// A policy and the machines that carry it out. Machines outlive the snapshot:
/// the same key finds the same machine.
#[derive(Default)]
pub(crate) struct Rules {
    pub(crate) timeouts: Option<config::Timeouts>,
    pub(crate) retries: Option<(config::Retries, Arc<Budget>)>,
    pub(crate) breaker: Option<(BreakerRules, Arc<Breaker>)>,
    pub(crate) caller_bulkheads: Vec<Partition>,
    pub(crate) destination_bulkheads: Vec<PartitionPerEndpoint>,
    pub(crate) shedding: Option<Shedding>,
}

/// What a request needs of a breaker's configuration.
pub(crate) struct BreakerRules {
    pub(crate) key: Arc<str>,
    pub(crate) failure_on: config::FailureOn,
    pub(crate) mode: config::Mode,
}

/// One partition of callers, caller's side.
pub(crate) struct Partition {
    pub(crate) name: Arc<str>,
    pub(crate) config: config::Bulkhead,
    pub(crate) machine: Arc<Bulkhead>,
}

/// One partition of callers, with a machine for each endpoint.
pub(crate) struct PartitionPerEndpoint {
    pub(crate) name: Arc<str>,
    pub(crate) config: config::Bulkhead,
    /// In the order of [`Port::endpoints`].
    pub(crate) machines: Vec<Arc<Bulkhead>>,
}

/// What keeps endpoints from being given more than they can do. Both lists are in
/// the order of [`Port::endpoints`].
pub(crate) struct Shedding {
    pub(crate) mode: config::Mode,
    /// The most requests at one endpoint.
    pub(crate) limit: Option<(u32, Vec<Arc<Bulkhead>>)>,
    /// By what is measured of it.
    pub(crate) sheds: Option<Vec<Arc<Shed>>>,
}

/// What sheds load for one endpoint.
pub(crate) struct Shedder<'s> {
    pub(crate) service: &'s Arc<str>,
    pub(crate) endpoint: SocketAddr,
    pub(crate) shadow: bool,
    pub(crate) shed: &'s Arc<Shed>,
}

/// One place where requests go.
pub(crate) struct Endpoint {
    pub(crate) address: SocketAddr,
    pub(crate) load: Arc<Load>,
}

impl Snapshot {
    /// Both must be ordered: services by identity, consumers by their namespace
    /// within a service's. One whose service is not there waits for it.
    ///
    /// `local` are the addresses of this node's pods.
    pub(crate) fn new(
        services: Vec<Arc<Service>>,
        consumers: Vec<Arc<Consumer>>,
        local: &HashSet<IpAddr>,
    ) -> Snapshot {
        let (by_address, served) = addresses(&services, local);
        let mut by_id = HashMap::with_capacity(services.len());
        let mut by_name = HashMap::new();
        for (index, service) in services.iter().enumerate() {
            by_id.insert(service.id.clone(), index);
            by_name
                .entry(service.id.name.clone())
                .and_modify(|found| *found = None)
                .or_insert(Some(index));
            for suffix in ["", ".svc", ".svc.cluster.local"] {
                by_name.insert(
                    format!("{}.{}{suffix}", service.id.name, service.id.namespace),
                    Some(index),
                );
            }
        }
        let mut of_service = vec![Vec::new(); services.len()];
        for consumer in consumers {
            if let Some(index) = by_id.get(&consumer.id) {
                of_service[*index].push(consumer);
            }
        }
        for consumers in &mut of_service {
            consumers.sort_by(|a, b| a.namespace.cmp(&b.namespace));
        }
        Snapshot {
            services,
            consumers: of_service,
            by_id,
            by_name,
            by_address,
            served,
            nothing: RuleSet::default(),
        }
    }

    /// One service without a policy and with one endpoint: how a connection that
    /// came to Weir for nothing goes on to where it was going.
    pub(crate) fn bare(address: SocketAddr) -> Snapshot {
        let id = ServiceId {
            namespace: String::new(),
            name: address.to_string(),
        };
        let endpoint = Endpoint {
            address,
            load: Arc::default(),
        };
        let port = Port {
            number: address.port(),
            protocol: config::Protocol::Tcp,
            listen: None,
            rules: RuleSet::default(),
            endpoints: vec![endpoint],
            usable: 1,
            usable_v4: usize::from(address.is_ipv4()),
            affinity: None,
            metrics: Arc::new(PortMetrics::new(0)),
            destination_metrics: None,
        };
        let service = Service {
            label: address.to_string().into(),
            id,
            addresses: Vec::new(),
            existing: None,
            ports: vec![port],
            breakers: Vec::new(),
        };
        Snapshot::new(vec![Arc::new(service)], Vec::new(), &HashSet::new())
    }

    /// The place that a captured caller from `namespace` means by `address`.
    pub(crate) fn called(&self, address: SocketAddr, namespace: &str) -> Option<Place> {
        let named = self.by_address.get(&address)?;
        let mut place = self.place(named.service, named.port, Some(namespace));
        place.side = Side::Caller;
        if let Some(endpoint) = named.endpoint {
            place.to = To::Endpoint(endpoint);
        }
        Some(place)
    }

    /// The place that a pod of this node serves at `address`.
    pub(crate) fn serving(&self, address: SocketAddr) -> Option<Place> {
        let named = self.served.get(&address)?;
        Some(Place {
            service: named.service,
            port: named.port,
            consumer: None,
            side: Side::Destination,
            to: To::Endpoint(named.endpoint?),
        })
    }

    /// Endpoints on this node that have something to be done for them.
    pub(crate) fn served(&self) -> impl Iterator<Item = SocketAddr> {
        self.served.keys().copied()
    }

    /// The place of a port, as callers from `namespace` find it; `None`: from
    /// nobody knows where, and then what the service's owner says counts.
    pub(crate) fn place(&self, service: usize, port: usize, namespace: Option<&str>) -> Place {
        let consumer = namespace.and_then(|namespace| {
            let of_service = &self.consumers[service];
            let found = of_service.binary_search_by(|c| c.namespace.as_str().cmp(namespace));
            let consumer = found.ok()?;
            let number = self.services[service].ports[port].number;
            let ports = &of_service[consumer].ports;
            let port = ports.iter().position(|(of, _)| *of == number)?;
            Some((consumer, port))
        });
        Place {
            service,
            port,
            consumer,
            side: Side::Both,
            to: To::Any,
        }
    }

    /// What holds at the caller's side.
    pub(crate) fn at_caller(&self, place: Place) -> &RuleSet {
        match place.consumer {
            _ if place.side == Side::Destination => &self.nothing,
            Some((consumer, port)) => &self.consumers[place.service][consumer].ports[port].1,
            None => &self.services[place.service].ports[place.port].rules,
        }
    }

    /// What holds at the destination: its owner's word, whoever calls.
    pub(crate) fn at_destination(&self, place: Place) -> &RuleSet {
        match place.side {
            Side::Caller => &self.nothing,
            _ => &self.services[place.service].ports[place.port].rules,
        }
    }

    /// Every breaker, each once, with its service.
    pub(crate) fn breakers(&self) -> impl Iterator<Item = (&ServiceId, &NamedBreaker)> {
        self.services.iter().enumerate().flat_map(|(n, service)| {
            let consumers = self.consumers[n].iter().flat_map(|c| &c.breakers);
            let breakers = service.breakers.iter().chain(consumers);
            breakers.map(|breaker| (&service.id, breaker))
        })
    }

    /// Whether anything at the destination goes by who calls.
    pub(crate) fn asks_who_calls(&self, place: Place) -> bool {
        self.at_destination(place).asks_who_calls
    }

    /// Everything that sheds by measured load, with its service and endpoint. One
    /// that several ports or routes have is told several times.
    pub(crate) fn sheds(&self) -> Vec<Shedder<'_>> {
        let mut all = Vec::new();
        for service in &self.services {
            for port in &service.ports {
                for shedding in port.rules.all().filter_map(|rules| rules.shedding.as_ref()) {
                    let sheds = shedding.sheds.iter().flatten();
                    let each = port.endpoints.iter().zip(sheds);
                    all.extend(each.map(|(endpoint, shed)| Shedder {
                        service: &service.label,
                        endpoint: endpoint.address,
                        shadow: shedding.mode == config::Mode::Shadow,
                        shed,
                    }));
                }
            }
        }
        all
    }

    /// The place of a service, by its identity.
    pub(crate) fn find(&self, id: &ServiceId) -> Option<usize> {
        self.by_id.get(id).copied()
    }

    /// The place of the service that a caller means by `host`: `payments`
    /// where only one namespace has it, `payments.shop`,
    /// `payments.shop.svc`, `payments.shop.svc.cluster.local`. The error says
    /// what could be meant.
    pub(crate) fn resolve(&self, host: &str) -> Result<usize, String> {
        let lower = host.to_ascii_lowercase();
        match self.by_name.get(lower.trim_end_matches('.')) {
            Some(Some(index)) => Ok(*index),
            Some(None) => Err(format!(
                "several namespaces have one: write {host}.<namespace>"
            )),
            None => {
                let known: Vec<_> = self
                    .services
                    .iter()
                    .take(8)
                    .map(|s| format!("{}.{}", s.id.name, s.id.namespace))
                    .collect();
                let more = self.services.len().saturating_sub(known.len());
                Err(match (known.is_empty(), more) {
                    (true, _) => "this agent has no service yet".into(),
                    (_, 0) => format!("there are {}", known.join(", ")),
                    _ => format!("there are {} and {more} more", known.join(", ")),
                })
            }
        }
    }
}

impl Service {
    /// Puts a service together; machines come from the registry, which keeps
    /// their state from the snapshot before.
    pub(crate) fn build(
        config: &config::Service,
        endpoints: Option<&config::Endpoints>,
        here: &Here,
        registry: &Registry,
        moment: Moment,
    ) -> Service {
        let ports = config.ports.iter().map(|port| {
            let places: &[config::Endpoint] = endpoints
                .and_then(|e| e.ports.iter().find(|(number, _)| *number == port.number))
                .map_or(&[], |(_, places)| places);
            let (places, usable) = endpoints::order(places, port.local_only, here);
            let usable_v4 = places[..usable].partition_point(|e| e.address.is_ipv4());
            let rules = RuleSet::build(&config.id, port, &places, registry, moment);
            let number = port.number.get();
            let destination_metrics = rules
                .acts_at_destination()
                .then(|| registry.metrics(&config.id, number, true));
            Port {
                number,
                protocol: port.protocol,
                listen: port.listen,
                rules,
                usable,
                usable_v4,
                affinity: port.affinity,
                destination_metrics,
                endpoints: places
                    .iter()
                    .map(|e| Endpoint {
                        address: e.address,
                        load: registry.load(&config.id, e.address),
                    })
                    .collect(),
                metrics: registry.metrics(&config.id, number, false),
            }
        });
        let ports: Vec<Port> = ports.collect();
        let breakers = named_breakers(ports.iter().map(|port| &port.rules));
        Service {
            id: config.id.clone(),
            label: config.id.to_string().into(),
            addresses: config.cluster_addresses.clone(),
            existing: config.existing_connections,
            ports,
            breakers,
        }
    }

    pub(crate) fn port(&self, number: u16) -> Option<usize> {
        self.ports.iter().position(|p| p.number == number)
    }

    /// The addresses that callers use for one of its ports.
    pub(crate) fn names<'s>(&'s self, port: &'s Port) -> impl Iterator<Item = SocketAddr> + 's {
        let headless = self.addresses.is_empty();
        let own = self.addresses.iter();
        let own = own.map(|address| SocketAddr::new(*address, port.number));
        let endpoints = port.endpoints.iter().filter(move |_| headless);
        own.chain(endpoints.map(|endpoint| endpoint.address))
    }
}

impl Consumer {
    /// Puts together what `config` says for the calls from `namespace`. What it
    /// inherits from the service's owner has the owner's machines.
    pub(crate) fn build(
        config: &config::Service,
        namespace: &str,
        registry: &Registry,
        moment: Moment,
    ) -> Consumer {
        let rules = |port| RuleSet::build(&config.id, port, &[], registry, moment);
        let ports: Vec<_> = config
            .ports
            .iter()
            .map(|port| (port.number.get(), rules(port)))
            .collect();
        let mut breakers = named_breakers(ports.iter().map(|(_, rules)| rules));
        // The service reports those that it shares.
        breakers.retain(|breaker| breaker.key.contains('/'));
        Consumer {
            id: config.id.clone(),
            namespace: namespace.to_owned(),
            ports,
            breakers,
        }
    }
}

impl Port {
    /// The endpoints of a family that callers here may use.
    pub(crate) fn usable_of(&self, ipv6: bool) -> Range<usize> {
        if ipv6 {
            self.usable_v4..self.usable
        } else {
            0..self.usable_v4
        }
    }
}

impl RuleSet {
    fn build(
        id: &ServiceId,
        port: &config::Port,
        places: &[config::Endpoint],
        registry: &Registry,
        moment: Moment,
    ) -> RuleSet {
        let rules = |policy: &config::Policy| rules(id, policy, places, registry, moment);
        let route = |route: &config::Route| Route {
            matches: route.matches.clone(),
            idempotent: route.idempotent,
            rules: rules(&route.policy),
        };
        let policies = port.routes.iter().map(|route| &route.policy);
        let mut bulkheads = std::iter::once(&port.policy)
            .chain(policies)
            .flat_map(|policy| &policy.destination_bulkheads);
        RuleSet {
            rest: rules(&port.policy),
            routes: port.routes.iter().map(route).collect(),
            asks_who_calls: bulkheads.any(|bulkhead| !bulkhead.from.is_everybody()),
        }
    }

    /// The first route that matches `request`.
    pub(crate) fn route(&self, request: &impl RequestView) -> Option<usize> {
        let matches = |route: &Route| {
            route.matches.is_empty() || route.matches.iter().any(|m| m.matches(request))
        };
        self.routes.iter().position(matches)
    }

    /// The rules of a route, or of what no route matches.
    pub(crate) fn of(&self, route: Option<usize>) -> &Rules {
        route.map_or(&self.rest, |r| &self.routes[r].rules)
    }

    /// Whether there is anything to be done where the caller is.
    pub(crate) fn acts_at_caller(&self) -> bool {
        self.all().any(|rules| {
            rules.timeouts.is_some()
                || rules.retries.is_some()
                || rules.breaker.is_some()
                || !rules.caller_bulkheads.is_empty()
        })
    }

    /// Whether there is anything to be done where the destination is.
    pub(crate) fn acts_at_destination(&self) -> bool {
        self.all()
            .any(|rules| rules.shedding.is_some() || !rules.destination_bulkheads.is_empty())
    }

    fn all(&self) -> impl Iterator<Item = &Rules> {
        let routes = self.routes.iter().map(|route| &route.rules);
        std::iter::once(&self.rest).chain(routes)
    }

    /// Whether repeating a request of this route is harmless.
    pub(crate) fn is_idempotent(&self, route: Option<usize>) -> bool {
        route.is_some_and(|r| self.routes[r].idempotent)
    }
}

/// What addresses stand for: those that callers use, and those that are served
/// here. Where services share one, the first has it.
fn addresses(
    services: &[Arc<Service>],
    local: &HashSet<IpAddr>,
) -> (HashMap<SocketAddr, Named>, HashMap<SocketAddr, Named>) {
    let mut by_address = HashMap::new();
    let mut served = HashMap::new();
    for (index, service) in services.iter().enumerate() {
        for (port_index, port) in service.ports.iter().enumerate() {
            let named = |endpoint| Named {
                service: index,
                port: port_index,
                endpoint,
            };
            for address in &service.addresses {
                let address = SocketAddr::new(*address, port.number);
                by_address.entry(address).or_insert(named(None));
            }
            let serves = port.rules.acts_at_destination();
            for (n, endpoint) in port.endpoints.iter().enumerate() {
                if service.addresses.is_empty() {
                    by_address.entry(endpoint.address).or_insert(named(Some(n)));
                }
                if serves && local.contains(&endpoint.address.ip()) {
                    served.entry(endpoint.address).or_insert(named(Some(n)));
                }
            }
        }
    }
    (by_address, served)
}

/// The breakers of `ports`, each key once.
fn named_breakers<'r>(ports: impl Iterator<Item = &'r RuleSet>) -> Vec<NamedBreaker> {
    let mut breakers: Vec<NamedBreaker> = Vec::new();
    let rules = ports.flat_map(RuleSet::all);
    for (of, machine) in rules.filter_map(|rules| rules.breaker.as_ref()) {
        if breakers.iter().all(|known| known.key != of.key) {
            let shadow = of.mode == config::Mode::Shadow;
            breakers.push(NamedBreaker {
                key: of.key.clone(),
                shadow,
                machine: machine.clone(),
            });
        }
    }
    breakers
}

fn rules(
    id: &ServiceId,
    policy: &config::Policy,
    places: &[config::Endpoint],
    registry: &Registry,
    moment: Moment,
) -> Rules {
    let per_endpoint = |key: &str, max: u32, queue: u32, wait| -> Vec<Arc<Bulkhead>> {
        places
            .iter()
            .map(|e| registry.bulkhead(id, key, Some(e.address), max, queue, wait))
            .collect()
    };
    Rules {
        timeouts: policy.timeouts,
        retries: policy
            .retries
            .as_ref()
            .map(|r| (r.clone(), registry.budget(id, &r.key, &r.budget, moment))),
        breaker: policy.breaker.as_ref().map(|b| {
            let rules = BreakerRules {
                key: b.key.as_str().into(),
                failure_on: b.failure_on.clone(),
                mode: b.mode,
            };
            (rules, registry.breaker(id, b, moment))
        }),
        caller_bulkheads: policy
            .caller_bulkheads
            .iter()
            .map(|b| Partition {
                name: b.name.as_str().into(),
                config: b.clone(),
                machine: registry.bulkhead(
                    id,
                    &b.key,
                    None,
                    b.max_concurrent.get(),
                    b.max_queue,
                    b.max_wait,
                ),
            })
            .collect(),
        destination_bulkheads: policy
            .destination_bulkheads
            .iter()
            .map(|b| PartitionPerEndpoint {
                name: b.name.as_str().into(),
                config: b.clone(),
                machines: per_endpoint(&b.key, b.max_concurrent.get(), b.max_queue, b.max_wait),
            })
            .collect(),
        shedding: policy.shedding.as_ref().map(|s| Shedding {
            mode: s.mode,
            limit: s.max_concurrency.map(|max| {
                let max = max.get();
                (max, per_endpoint(&s.key, max, 0, None))
            }),
            sheds: places
                .iter()
                .map(|e| registry.shed(id, s, e.address))
                .collect(),
        }),
    }
}
