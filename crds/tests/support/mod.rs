//! What several tests of this crate need, and the test that asks a real API server
//! the same.

#![allow(dead_code, reason = "each test uses its part")]

pub(crate) mod table;

use serde_json::{Map, Value, json};

/// A policy for Service payments, with `spec` put over it.
pub(crate) fn policy(spec: &Value) -> Value {
    let mut policy = json!({
        "apiVersion": "weir.dev/v1alpha1",
        "kind": "ResiliencePolicy",
        "metadata": { "name": "payments", "namespace": "shop" },
        "spec": { "targetRefs": [{ "kind": "Service", "name": "payments" }] },
    });
    for (field, value) in spec.as_object().into_iter().flatten() {
        policy["spec"][field] = value.clone();
    }
    policy
}

/// The same spec with its sections inside a route; `None` where something in it
/// has no place in one.
pub(crate) fn in_route(spec: &Value) -> Option<Value> {
    const NOT_IN_ROUTES: [&str; 7] = [
        "targetRefs",
        "strategy",
        "disabled",
        "shadow",
        "routes",
        "outlierDetection",
        "loadShedding",
    ];
    let sections: Map<String, Value> = spec.as_object()?.clone();
    if sections
        .keys()
        .any(|field| NOT_IN_ROUTES.contains(&field.as_str()))
    {
        return None;
    }
    let mut route = json!({ "name": "all" });
    route.as_object_mut()?.extend(sections);
    Some(json!({ "routes": [route] }))
}

/// Puts `value` at a dotted path, with objects on the way to it.
pub(crate) fn put(object: &mut Value, path: &str, value: Value) {
    let mut place = object;
    for step in path.split('.') {
        place = match step.parse::<usize>() {
            Ok(index) => &mut place[index],
            Err(_) => &mut place[step],
        };
    }
    *place = value;
}

/// A file beside the tests, as JSON values.
pub(crate) fn file(name: &str) -> Value {
    let path = format!("{}/../crds/tests/{name}", env!("CARGO_MANIFEST_DIR"));
    serde_yaml::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}
