//! How long a change takes in a large cluster. Run it with
//! `cargo test --release -p weir-control-plane --lib scale -- --ignored --nocapture`.

use std::path::Path;

use super::{compile, encode, from_text, now};
use crate::push::Catalog;
use crate::sources::Objects;

const NAMESPACES: usize = 50;
const SERVICES: usize = 5_000;
const POLICIES: usize = 1_000;

/// One in five Services has a policy of its own, one policy in ten is a
/// consumer's, and each Service has three endpoints.
fn large() -> Objects {
    let mut objects = Objects::default();
    for n in 0..SERVICES {
        let namespace = format!("ns-{}", n % NAMESPACES);
        let mut text = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: svc-{n}, namespace: {namespace}}}\nspec: {{ports: [{{name: http, port: 80}}]}}\n---\n\
             apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: svc-{n}-1, namespace: {namespace}, labels: {{kubernetes.io/service-name: svc-{n}}}}}\n\
             addressType: IPv4\nports: [{{name: http, port: 8080}}]\nendpoints: [{{addresses: [10.0.0.1]}}, {{addresses: [10.0.0.2]}}, {{addresses: [10.0.0.3]}}]\n"
        );
        if n < POLICIES {
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

#[test]
#[ignore = "measures: for a release build on a quiet machine"]
#[allow(clippy::print_stdout, reason = "the figures are what it is for")]
fn a_change_in_a_large_cluster_is_compiled_and_encoded() {
    let objects = large();
    assert_eq!(objects.policies.len(), POLICIES);
    let mut catalog = Catalog::default();
    for round in 0..5 {
        let start = tokio::time::Instant::now();
        let compiled = compile(&objects, now());
        let after = start.elapsed();
        catalog = encode(&compiled, &catalog, false);
        println!(
            "round {round}: compile {after:?}, with encoding {:?}, {} resources",
            start.elapsed(),
            catalog.resources.len()
        );
    }
    assert!(!catalog.resources.is_empty());
}
