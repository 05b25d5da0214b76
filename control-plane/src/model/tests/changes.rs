//! What is computed for what changed is what a computation from nothing gives,
//! over random sequences of changes.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use fastrand::Rng;
use jiff::SignedDuration;
use serde_json::Value;
use tokio::time::Instant;
use weir_proto::v1alpha1 as proto;

use super::super::Compiler;
use super::{compile, encode, encoded, from_text, now, renew};
use crate::capture::Covers;
use crate::ledger::{Ledger, Presence};
use crate::push::{Catalog, Holding, ResourceId, Taken};
use crate::sources::{Key, Objects};
use crate::status::{Look, Memory, Versions, View};

const NAMESPACES: [&str; 3] = ["a", "b", "weir-system"];
const NAMES: [&str; 3] = ["x", "y", "z"];

fn one_of<'v>(rng: &mut Rng, values: &[&'v str]) -> &'v str {
    values[rng.usize(..values.len())]
}

/// Changes one thing.
fn change(rng: &mut Rng, objects: &mut Objects) {
    let namespace = one_of(rng, &NAMESPACES);
    let name = one_of(rng, &NAMES);
    let key: Key = (namespace.to_owned(), name.to_owned());
    let text = match rng.u8(..14) {
        0 => return drop(objects.services.remove(&key)),
        1 => return drop(objects.slices.remove(&key)),
        2 => return drop(objects.policies.remove(&key)),
        3 => return drop(objects.refused.pop_first()),
        4 => return drop(objects.breakers.remove(&key)),
        5 => return drop(objects.namespaces.remove(namespace)),
        6 => service(rng, &key),
        7 | 8 => slice(rng, &key),
        9..=11 => policy(rng, &key),
        12 => breaker(rng, &key),
        _ => format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {namespace}, labels: {{weir.dev/mesh-policy: {}}}}}\n",
            one_of(rng, &["enabled", "disabled"])
        ),
    };
    let read = from_text(Path::new("changes.yaml"), &text, now());
    objects.services.extend(read.services);
    objects.slices.extend(read.slices);
    objects.policies.extend(read.policies);
    objects.breakers.extend(read.breakers);
    objects.namespaces.extend(read.namespaces);
    // A consumer has no say in some sections: such a policy is refused.
    objects.refused.extend(read.refused);
}

fn service(rng: &mut Rng, (namespace, name): &Key) -> String {
    let listen = match rng.u8(..3) {
        0 => format!(
            "annotations: {{weir.dev/listen.http: 127.0.0.1:{}}}, ",
            8080 + rng.u16(..3)
        ),
        1 => "labels: {weir.dev/mesh-policy: disabled}, ".to_owned(),
        _ => String::new(),
    };
    let second = one_of(
        rng,
        &["", ", {name: grpc, port: 90}", ", {name: tcp-db, port: 91}"],
    );
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{{listen}name: {name}, namespace: {namespace}}}\n\
         spec: {{ports: [{{name: http, port: 80}}{second}]}}\n"
    )
}

fn slice(rng: &mut Rng, (namespace, name): &Key) -> String {
    let of = one_of(rng, &NAMES);
    let ready = rng.bool();
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
         metadata: {{name: {name}, namespace: {namespace}, labels: {{kubernetes.io/service-name: {of}}}}}\n\
         ports: [{{name: http, port: 8080}}]\nendpoints: [{{addresses: [10.0.0.{}], conditions: {{ready: {ready}}}}}]\n",
        rng.u8(1..4)
    )
}

fn policy(rng: &mut Rng, (namespace, name): &Key) -> String {
    let service = one_of(rng, &NAMES);
    let port = one_of(rng, &["", ", sectionName: http", ", sectionName: grpc"]);
    let (target, strategy) = match rng.u8(..5) {
        0 => (
            format!("kind: Namespace, name: {namespace}"),
            one_of(rng, &["Defaults", "Overrides"]),
        ),
        1 if namespace == "weir-system" => (
            "kind: Mesh".to_owned(),
            one_of(rng, &["Defaults", "Overrides"]),
        ),
        2 => (
            format!(
                "kind: Service, name: {service}, namespace: {}",
                one_of(rng, &NAMESPACES)
            ),
            "Defaults",
        ),
        _ => (format!("kind: Service, name: {service}{port}"), "Defaults"),
    };
    let sections = one_of(
        rng,
        &[
            "timeouts: {}",
            "circuitBreaker: {}",
            "retries: {}\n  circuitBreaker: {}",
            "bulkheads: [{name: all, maxConcurrent: 3}]",
        ],
    );
    let routes = match target.contains("Service") && rng.bool() {
        true => {
            "routes: [{name: slow, matches: [{path: {type: PathPrefix, value: /slow}}], circuitBreaker: {}}]"
        }
        false => "mode: Shadow",
    };
    let word = one_of(rng, &["", "Keep", "Reset", "reset"]);
    format!(
        "apiVersion: weir.dev/v1alpha1\nkind: ResiliencePolicy\n\
         metadata: {{name: {name}, namespace: {namespace}, annotations: {{weir.dev/existing-connections: \"{word}\"}}}}\n\
         spec:\n  targetRefs: [{{{target}}}]\n  strategy: {strategy}\n  {sections}\n  {routes}\n"
    )
}

fn breaker(rng: &mut Rng, (namespace, name): &Key) -> String {
    let ends = now() + SignedDuration::from_mins(rng.i64(0..3_000));
    let name = format!("{name}{}", one_of(rng, &["", ".http", ".http.slow"]));
    format!(
        "apiVersion: weir.dev/v1alpha1\nkind: CircuitBreaker\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec: {{override: {{state: Open, reason: try, expiresAt: \"{ends:.0}\"}}}}\n"
    )
}

/// What an agent may say next: a report of some breakers, and an answer about
/// some services.
fn agent_says(
    rng: &mut Rng,
    ledger: &Ledger,
    agent: &Presence,
    compiler: &Compiler,
    versions: &Versions,
) {
    let states = [
        proto::BreakerState::Closed,
        proto::BreakerState::Open,
        proto::BreakerState::HalfOpen,
    ];
    let mut report = proto::ReportRequest::default();
    for id in compiler.compiled().breakers.keys() {
        if rng.u8(..4) > 0 {
            continue;
        }
        report.breakers.push(proto::BreakerReport {
            id: Some(proto::BreakerId {
                namespace: id.namespace.clone(),
                service: String::new(),
                key: id.key.clone(),
            }),
            state: states[rng.usize(..3)].into(),
            failure_percent: rng.u32(..100),
            ..Default::default()
        });
    }
    ledger.hear(agent.node(), &report);
    let said = versions.values().filter(|_| rng.u8(..3) == 0);
    let enforced: Vec<(ResourceId, Arc<str>)> = said.cloned().collect();
    agent.answered(&Taken {
        enforced,
        ..Taken::default()
    });
}

fn shown(all: &mut BTreeMap<Key, Value>, new: BTreeMap<Key, Option<Value>>) {
    for (key, object) in new {
        match object {
            Some(object) => all.insert(key, object),
            None => all.remove(&key),
        };
    }
}

/// A sequence of changes; everything is compared after each.
fn sequence(seed: u64) {
    let mut rng = Rng::with_seed(seed);
    let mut objects = Objects::default();
    let mut at = now();
    let mut instant = Instant::now();
    let mut compiler = Compiler::default();
    let (mut catalog, mut versions) = (Catalog::default(), Versions::new());
    let ledger = Arc::new(Ledger::default());
    let mut agents: HashMap<&str, Presence> = HashMap::new();
    let (mut careful, mut lazy) = (Memory::default(), Memory::default());
    let (mut careful_shows, mut lazy_shows) = (
        <[BTreeMap<Key, Value>; 2]>::default(),
        <[BTreeMap<Key, Value>; 2]>::default(),
    );
    for step in 0..60 {
        for _ in 0..rng.u8(1..4) {
            change(&mut rng, &mut objects);
        }
        at += SignedDuration::from_mins(rng.i64(0..200));
        let before = compiler.compiled().clone();
        let changed = compiler.update(&Arc::new(objects.clone()), at);
        let compiled = compiler.compiled();
        assert_eq!(*compiled, compile(&objects, at), "seed {seed}, step {step}");
        catalog = encode(compiled, &changed.services, &catalog, false);
        assert_eq!(catalog, encoded(compiled), "seed {seed}, step {step}");
        let renewed = renew(&mut versions, compiled, &changed.services, &catalog);
        let orphans = |key: &Key| before.orphans.get(key) != compiled.orphans.get(key);
        for key in before
            .orphans
            .keys()
            .chain(compiled.orphans.keys())
            .filter(|key| orphans(key))
        {
            assert!(
                changed.breakers.contains(key),
                "seed {seed}, step {step}: {key:?}"
            );
        }
        let mut look = Look {
            policies: changed.policies,
            breakers: changed.breakers,
            services: renewed
                .iter()
                .map(|key| ResourceId::service(&key.0, &key.1))
                .collect(),
            ..Look::default()
        };
        let name = one_of(&mut rng, &["node-a", "node-b"]);
        match rng.u8(..10) {
            0 => drop(agents.remove(name)),
            _ => {
                let agent = agents.entry(name).or_insert_with(|| {
                    ledger.report_begins(name);
                    ledger.connect(name, &Holding::default(), false).unwrap()
                });
                agent_says(&mut rng, &ledger, agent, &compiler, &versions);
            }
        }
        instant += std::time::Duration::from_secs(rng.u64(..8));
        let news = ledger.news();
        look.all_policies |= news.answers.nodes;
        look.services.extend(news.answers.services);
        let ids = news.breakers.ids.into_iter();
        look.breakers.extend(ids.map(|id| (id.namespace, id.key)));
        let everything = Look {
            all_policies: true,
            all_breakers: true,
            ..Look::default()
        };
        let nodes = ledger.nodes();
        let view = View {
            objects: &objects,
            compiled: compiler.compiled(),
            versions: &versions,
            ledger: &ledger,
            nodes: &nodes,
            covers: &Covers::default(),
            now: at,
            instant,
        };
        for (memory, look, shows) in [
            (&mut careful, everything, &mut careful_shows),
            (&mut lazy, look, &mut lazy_shows),
        ] {
            let new = memory.statuses(&view, look);
            shown(&mut shows[0], new.policies);
            shown(&mut shows[1], new.breakers);
        }
        assert_eq!(careful_shows, lazy_shows, "seed {seed}, step {step}");
        ledger.step();
    }
}

#[test]
fn what_is_computed_for_a_change_is_what_a_computation_from_nothing_gives() {
    for seed in 0..15 {
        sequence(seed);
    }
}
