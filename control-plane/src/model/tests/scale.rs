//! What a change costs in a large cluster: what it changes is computed, and
//! nothing else. In full, with times that mean something:
//! `WEIR_SCALE=full cargo test --release -p weir-control-plane --lib scale -- --nocapture`.

use std::path::Path;
use std::sync::Arc;

use tokio::time::Instant;

use super::super::Compiler;
use super::{encode, from_text, now, renew};
use crate::capture::Covers;
use crate::ledger::Ledger;
use crate::push::{Catalog, Holding, ResourceId};
use crate::sources::Objects;
use crate::status::{Look, Memory, Versions, View};

const NAMESPACES: usize = 50;
/// Services and, of these, those with a policy of their own.
const SHORT: (usize, usize) = (500, 100);
const FULL: (usize, usize) = (5_000, 1_000);
const NODES: usize = 100;

/// One in five Services has a policy of its own, one policy in ten is a
/// consumer's, and each Service has three endpoints.
fn large((services, policies): (usize, usize)) -> Objects {
    let mut objects = Objects::default();
    for n in 0..services {
        let namespace = format!("ns-{}", n % NAMESPACES);
        let mut text = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: svc-{n}, namespace: {namespace}}}\nspec: {{ports: [{{name: http, port: 80}}]}}\n---\n\
             apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: svc-{n}-1, namespace: {namespace}, labels: {{kubernetes.io/service-name: svc-{n}}}}}\n\
             addressType: IPv4\nports: [{{name: http, port: 8080}}]\nendpoints: [{{addresses: [10.0.0.1]}}, {{addresses: [10.0.0.2]}}, {{addresses: [10.0.0.3]}}]\n"
        );
        if n < policies {
            let own = match n % 10 {
                0 => format!("namespace: elsewhere-{n}"),
                _ => format!("namespace: {namespace}"),
            };
            text.push_str(&format!(
                "---\napiVersion: weir.dev/v1alpha1\nkind: ResiliencePolicy\nmetadata: {{name: svc-{n}, {own}}}\nspec:\n  \
                 targetRefs: [{{kind: Service, name: svc-{n}, namespace: {namespace}}}]\n  timeouts: {{}}\n  retries: {{}}\n  circuitBreaker: {{}}\n"
            ));
        }
        let one = from_text(Path::new("large.yaml"), &text, now());
        objects.services.extend(one.services);
        objects.slices.extend(one.slices);
        objects.policies.extend(one.policies);
    }
    objects
}

/// Changes one object, as a source does: everything else stays the very same.
fn change(objects: &mut Objects, text: &str) {
    let read = from_text(Path::new("large.yaml"), text, now());
    assert!(read.problems.is_empty(), "{:?}", read.problems);
    objects.services.extend(read.services);
    objects.slices.extend(read.slices);
    objects.policies.extend(read.policies);
}

/// A policy, a slice and a Service that differ from those that are there.
fn changes(round: usize) -> [(&'static str, String); 3] {
    let address = format!("10.1.0.{}", round + 1);
    [
        (
            "a policy",
            format!(
                "apiVersion: weir.dev/v1alpha1\nkind: ResiliencePolicy\nmetadata: {{name: svc-7, namespace: ns-7}}\nspec:\n  \
                 targetRefs: [{{kind: Service, name: svc-7}}]\n  timeouts: {{request: {}s}}\n  circuitBreaker: {{}}\n",
                round + 1
            ),
        ),
        (
            "a slice",
            format!(
                "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: svc-8-1, namespace: ns-8, labels: {{kubernetes.io/service-name: svc-8}}}}\n\
                 addressType: IPv4\nports: [{{name: http, port: 8080}}]\nendpoints: [{{addresses: [{address}]}}]\n"
            ),
        ),
        (
            "a Service",
            format!(
                "apiVersion: v1\nkind: Service\nmetadata: {{name: svc-9, namespace: ns-9}}\nspec: {{ports: [{{name: http, port: {}}}]}}\n",
                81 + round
            ),
        ),
    ]
}

#[test]
#[allow(clippy::print_stdout, reason = "the figures are what it is for")]
fn a_change_in_a_large_cluster_computes_what_it_changes_and_no_more() {
    let full = std::env::var("WEIR_SCALE").is_ok_and(|scale| scale == "full");
    let size = if full { FULL } else { SHORT };
    let mut objects = large(size);
    assert_eq!(objects.policies.len(), size.1);
    let mut compiler = Compiler::default();
    let (mut catalog, mut versions) = (Catalog::default(), Versions::new());
    let (ledger, mut memory) = (Arc::new(Ledger::default()), Memory::default());
    let agents = (0..NODES).map(|n| {
        ledger
            .connect(&format!("node-{n}"), &Holding::default(), false)
            .unwrap()
    });
    let agents: Vec<_> = agents.collect();
    let mut round = |what: &str, objects: &Objects| {
        let start = Instant::now();
        let objects = Arc::new(objects.clone());
        let changed = compiler.update(&objects, now());
        let compiled = start.elapsed();
        catalog = encode(compiler.compiled(), &changed.services, &catalog, false);
        let renewed = renew(
            &mut versions,
            compiler.compiled(),
            &changed.services,
            &catalog,
        );
        let encoded = start.elapsed() - compiled;
        let look = Look {
            all_policies: ledger.news().answers.nodes,
            policies: changed.policies,
            breakers: changed.breakers,
            services: renewed
                .iter()
                .map(|key| ResourceId::service(&key.0, &key.1))
                .collect(),
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
            now: now(),
            instant: start,
        };
        let start = Instant::now();
        let statuses = memory.statuses(&view, look);
        println!(
            "{what}: compile {compiled:?}, encode {encoded:?}, statuses {:?} ({} policies, {} breakers)",
            start.elapsed(),
            statuses.policies.len(),
            statuses.breakers.len()
        );
        (statuses.policies.len(), statuses.breakers.len())
    };
    assert_eq!(round("everything", &objects).0, size.1);
    for n in 0..3 {
        for (what, text) in changes(n) {
            change(&mut objects, &text);
            let (policies, breakers) = round(what, &objects);
            assert!(
                policies <= 1 && breakers <= 1,
                "{what}: {policies}, {breakers}"
            );
        }
    }
    drop(agents);
}
