//! One service's configuration.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use weir_crds::v1alpha1::{ResiliencePolicySpec, Route, Section, Sections};
use weir_proto::v1alpha1 as proto;
use weir_resilience::config::Problem;

use super::attachments::{Attachments, Place};
use super::breakers::{BreakerPlan, word};
use super::merge::{Layer, Merged, Policy, Rank, Winner, merge};
use super::mesh::covers;
use super::service::{PortPlan, ServicePlan, Slices, Spoken, endpoints};
use super::{ServiceOutcome, consumer_key, existing, sections};
use crate::ledger::BreakerId;
use crate::sources::{Key, Objects};

/// What came of one Service.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Made {
    /// For all callers, and beside it for those of single namespaces.
    pub(super) services: BTreeMap<Key, ServiceOutcome>,
    /// The breakers in them.
    pub(super) breakers: BTreeMap<BreakerId, BreakerPlan>,
    /// When it changes by itself.
    pub(super) until: Option<Timestamp>,
}

/// Compiles `service`: to nothing, unless a policy is about it or it asks for a
/// listener, which must not close because a policy is removed. What holds
/// for the callers of one namespace alone is a resource of its own, so that
/// only those get it who need it, and nobody's policy can spoil another's.
pub(super) fn service(
    key: &Key,
    plan: &ServicePlan,
    slices: &Slices,
    attachments: &Attachments<'_>,
    objects: &Objects,
    now: Timestamp,
) -> Made {
    let mut made = Made::default();
    let in_mesh = covers(objects, key);
    let place = |port: &'_ PortPlan, consumer| {
        attachments.layers(Place {
            namespace: Some(&key.0),
            service: Some(key),
            port: Some(&port.name),
            consumer,
            in_mesh,
        })
    };
    let said = |layers: &[(Rank, Option<&Layer<'_>>)]| {
        layers
            .iter()
            .any(|(_, layer)| layer.is_some_and(|layer| !layer.is_empty()))
    };
    let consumers: Vec<&str> = attachments
        .consumers(key)
        .filter(|consumer| {
            plan.ports
                .iter()
                .any(|port| said(&place(port, Some(consumer))))
        })
        .collect();
    let needed = !consumers.is_empty()
        || plan
            .ports
            .iter()
            .any(|port| port.listen.is_some() || said(&place(port, None)));
    if !needed {
        return made;
    }
    for consumer in std::iter::once(None).chain(consumers.into_iter().map(Some)) {
        let mut work = Work {
            key,
            consumer,
            objects,
            now,
            requires: BTreeSet::new(),
            made: &mut made,
        };
        let layers: Vec<_> = (plan.ports.iter())
            .map(|port| place(port, consumer))
            .collect();
        let ports = std::iter::zip(&plan.ports, &layers)
            .map(|(port, layers)| proto::Port {
                local_only: plan.local_only,
                affinity_us: plan.affinity_us,
                ..work.port(port, &merge(layers))
            })
            .collect();
        let requires = work
            .requires
            .iter()
            .map(|feature| (*feature).to_owned())
            .collect();
        let config = proto::ServiceConfig {
            namespace: key.0.clone(),
            name: key.1.clone(),
            ports,
            consumer: consumer.unwrap_or_default().to_owned(),
            cluster_addresses: plan.cluster_addresses.clone(),
            existing_connections: existing::said(&layers).into(),
        };
        let endpoints = consumer.is_none().then(|| endpoints(key, plan, slices));
        let refused = refusal(&config, endpoints.as_ref());
        let outcome = ServiceOutcome {
            config,
            endpoints,
            requires,
            refused,
        };
        let key = match consumer {
            None => key.clone(),
            Some(consumer) => consumer_key(key, consumer),
        };
        made.services.insert(key, outcome);
    }
    made
}

/// What the agents' decoder says against it.
fn refusal(config: &proto::ServiceConfig, endpoints: Option<&proto::Endpoints>) -> Option<String> {
    let config = weir_resilience::config::service(config)
        .err()
        .unwrap_or_default();
    let endpoints = endpoints
        .and_then(|endpoints| weir_resilience::config::endpoints(endpoints).err())
        .unwrap_or_default();
    let problems: Vec<String> = config
        .iter()
        .chain(&endpoints)
        .map(ToString::to_string)
        .collect();
    (!problems.is_empty()).then(|| problems.join("; "))
}

/// What the agents' decoder says against a policy alone, as paths in the
/// policy. The schema leaves little to it (how deep a regular expression may
/// be nested), but what it refuses must not reach a service's configuration,
/// where other policies would suffer with it.
pub(crate) fn refusals(spec: &ResiliencePolicySpec) -> Vec<Problem> {
    let key: Key = ("check".to_owned(), "check".to_owned());
    let policy = Policy {
        key: &key,
        spec,
        created: None,
        annotations: None,
    };
    let mut layer = Layer::default();
    layer.add(policy);
    let merged = merge(&[(Rank::Service, Some(&layer))]);
    let port = PortPlan {
        number: 80,
        name: String::new(),
        spoken: Spoken::Detect,
        listen: None,
    };
    let mut work = Work {
        key: &key,
        consumer: None,
        objects: &Objects::default(),
        now: Timestamp::UNIX_EPOCH,
        requires: BTreeSet::new(),
        made: &mut Made::default(),
    };
    let ports = vec![work.port(&port, &merged)];
    let config = proto::ServiceConfig {
        namespace: key.0.clone(),
        name: key.1.clone(),
        ports,
        ..proto::ServiceConfig::default()
    };
    let problems = weir_resilience::config::service(&config)
        .err()
        .unwrap_or_default();
    problems
        .into_iter()
        .map(|problem| Problem {
            path: path_in_spec(&problem.path),
            message: problem.message,
        })
        .collect()
}

/// `ports[0].routes[1].policy.circuit_breaker` → `spec.routes[1].circuitBreaker`.
fn path_in_spec(path: &str) -> String {
    let mut spec = "spec".to_owned();
    for step in path
        .split('.')
        .filter(|step| *step != "ports[0]" && *step != "policy")
    {
        spec.push('.');
        let mut words = step.split('_');
        spec.push_str(words.next().unwrap_or_default());
        for word in words {
            let (first, rest) = word.split_at(word.chars().next().map_or(0, char::len_utf8));
            spec.push_str(&first.to_uppercase());
            spec.push_str(rest);
        }
    }
    spec
}

struct Work<'a> {
    key: &'a Key,
    /// The callers' namespace, where this is for them alone: only what acts at
    /// the caller's side is written then.
    consumer: Option<&'a str>,
    objects: &'a Objects,
    now: Timestamp,
    requires: BTreeSet<&'static str>,
    made: &'a mut Made,
}

/// Where a section comes from, and what its state is named by.
struct Origin<'a> {
    policy: Policy<'a>,
    sections: &'a Sections,
    scope: Scope<'a>,
    /// It comes from a policy of the callers' namespace.
    consumers: bool,
}

#[derive(Clone, Copy)]
enum Scope<'a> {
    Service,
    Port(&'a PortPlan),
    Route(&'a PortPlan, &'a str),
}

impl Work<'_> {
    fn port(&mut self, port: &PortPlan, merged: &Merged<'_>) -> proto::Port {
        if self.consumer.is_some() {
            self.requires.insert("consumerPolicies");
        }
        if port.spoken == Spoken::Tcp {
            self.requires.insert("tcp");
        }
        let routes = merged.routes.map_or_else(Vec::new, |winner| {
            winner
                .policy
                .spec
                .routes
                .iter()
                .map(|route| self.route(port, merged, winner, route))
                .collect()
        });
        proto::Port {
            number: port.number.into(),
            name: port.name.clone(),
            protocol: port.spoken.protocol().into(),
            http: port.spoken == Spoken::Http,
            listen: port
                .listen
                .filter(|_| self.consumer.is_none())
                .map(|address| address.to_string())
                .unwrap_or_default(),
            policy: Some(self.policy(|section| inherited(port, merged, section))),
            routes,
            ..proto::Port::default()
        }
    }

    fn route(
        &mut self,
        port: &PortPlan,
        merged: &Merged<'_>,
        owner: Winner<'_>,
        route: &Route,
    ) -> proto::Route {
        let origin = |section| {
            let settled = merged
                .winner(section)
                .is_some_and(|winner| winner.rank.is_before_routes(owner.rank));
            if route.sections.has(section) && !settled {
                return Some(Origin {
                    policy: owner.policy,
                    sections: &route.sections,
                    scope: Scope::Route(port, &route.name),
                    consumers: owner.rank.is_consumer(),
                });
            }
            inherited(port, merged, section)
        };
        proto::Route {
            name: route.name.clone(),
            matches: sections::matches(&route.matches),
            policy: Some(self.policy(origin)),
            idempotent: route.idempotent,
        }
    }

    fn policy<'a>(&mut self, origin: impl Fn(Section) -> Option<Origin<'a>>) -> proto::Policy {
        let mut policy = proto::Policy::default();
        if let Some(origin) = origin(Section::Timeouts) {
            let shadow = origin.policy.is_shadow(Section::Timeouts);
            policy.timeouts = origin
                .sections
                .timeouts
                .as_ref()
                .map(|given| sections::timeouts(given, shadow));
            self.requires.insert("timeouts");
        }
        if let Some(origin) = origin(Section::Retries) {
            let shadow = origin.policy.is_shadow(Section::Retries);
            let key = self.key_of(&origin);
            policy.retries = origin
                .sections
                .retries
                .as_ref()
                .map(|given| sections::retries(given, key, shadow));
            self.requires.insert("retries");
        }
        if let Some(origin) = origin(Section::CircuitBreaker) {
            policy.circuit_breaker = self.breaker(&origin);
            self.requires.insert("circuitBreaker");
        }
        if let Some(origin) = origin(Section::Bulkheads) {
            let shadow = origin.policy.is_shadow(Section::Bulkheads);
            let key = self.key_of(&origin);
            let given = origin.sections.bulkheads.as_deref().unwrap_or_default();
            policy.bulkheads = sections::bulkheads(given, &key, shadow);
            if self.consumer.is_some() {
                let at_caller = i32::from(proto::BulkheadSide::Caller);
                policy.bulkheads.retain(|bulkhead| bulkhead.at == at_caller);
            }
            if !policy.bulkheads.is_empty() {
                self.requires.insert("bulkheads");
            }
            if policy.bulkheads.iter().any(sections::asks_who_calls) {
                self.requires.insert("bulkheads.from");
            }
        }
        if self.consumer.is_none()
            && let Some(origin) = origin(Section::LoadShedding)
        {
            let shadow = origin.policy.is_shadow(Section::LoadShedding);
            let key = self.key_of(&origin);
            let given = origin.sections.load_shedding.as_ref();
            policy.load_shedding =
                given.and_then(|given| sections::load_shedding(given, key, shadow));
            if let Some(shedding) = &policy.load_shedding {
                let parts = [
                    (shedding.max_concurrency > 0, "loadShedding.concurrency.max"),
                    (shedding.cpu.is_some(), "loadShedding.cpu"),
                    (shedding.pressure.is_some(), "loadShedding.pressure"),
                ];
                let given = parts.iter().filter(|(given, _)| *given);
                self.requires.extend(given.map(|(_, feature)| *feature));
            }
        }
        policy
    }

    /// Also notes the breaker, for its CircuitBreaker object.
    fn breaker(&mut self, origin: &Origin<'_>) -> Option<proto::CircuitBreaker> {
        let shadow = origin.policy.is_shadow(Section::CircuitBreaker);
        let id = self.name(origin);
        let mut breaker = sections::breaker(
            origin.sections.circuit_breaker.as_ref()?,
            self.key_of(origin),
            shadow,
        );
        let word = word(self.objects, &id, self.now);
        breaker.r#override = word.forced;
        breaker.reset = word.reset;
        self.made.until = self.made.until.into_iter().chain(word.until).min();
        let service = match origin.consumers {
            false => self.key.1.clone(),
            true => format!("{}/{}", self.key.0, self.key.1),
        };
        let about = match origin.scope {
            Scope::Service => service,
            Scope::Port(port) => format!("{service}:{}", port.label()),
            Scope::Route(port, route) => format!("{service}:{}/{route}", port.label()),
        };
        let plan = BreakerPlan {
            policy: origin.policy.key.clone(),
            service: self.key.clone(),
            about,
            shadow,
            forced: word.verdict,
        };
        self.made.breakers.insert(id, plan);
        Some(breaker)
    }

    /// What the section's state is named by among all that agents keep for the
    /// service: see [`Work::name`].
    fn key_of(&self, origin: &Origin<'_>) -> String {
        let id = self.name(origin);
        match origin.consumers {
            false => id.key,
            true => format!("{}/{}", id.namespace, id.key),
        }
    }

    /// `payments`, `payments.http` or `payments.http.refunds` in the Service's
    /// namespace; a consumer's is in its own, as `calls.to.shop.payments.http`.
    /// None of the parts can hold a dot, and the first have up to three parts, the
    /// others four or more, so that none is mistaken for another.
    fn name(&self, origin: &Origin<'_>) -> BreakerId {
        let (namespace, service) = self.key;
        let (within, service) = match self.consumer.filter(|_| origin.consumers) {
            None => (namespace.as_str(), service.clone()),
            Some(consumer) => (consumer, format!("calls.to.{namespace}.{service}")),
        };
        let key = match origin.scope {
            Scope::Service => service,
            Scope::Port(port) => format!("{service}.{}", port.label()),
            Scope::Route(port, route) => format!("{service}.{}.{route}", port.label()),
        };
        BreakerId {
            namespace: within.to_owned(),
            key,
        }
    }
}

/// The section that a port's requests have without a route.
fn inherited<'a>(port: &'a PortPlan, merged: &Merged<'a>, section: Section) -> Option<Origin<'a>> {
    let winner = merged.given(section)?;
    let scope = match winner.rank {
        Rank::ConsumerPort | Rank::Port => Scope::Port(port),
        Rank::MeshOverrides
        | Rank::Overrides
        | Rank::Consumer
        | Rank::Service
        | Rank::Namespace
        | Rank::Mesh => Scope::Service,
    };
    Some(Origin {
        policy: winner.policy,
        sections: &winner.policy.spec.sections,
        scope,
        consumers: winner.rank.is_consumer(),
    })
}
