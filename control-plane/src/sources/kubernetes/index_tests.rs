use serde_json::json;

use super::*;

fn index() -> (Index, Arc<Observed>) {
    let observed = Arc::new(Observed::default());
    (Index::new("weir-system", Arc::clone(&observed)), observed)
}

fn dynamic(value: Value) -> Box<DynamicObject> {
    Box::new(serde_json::from_value(value).unwrap())
}

fn policy(version: u32, retries: &Value, status: &Value) -> Object {
    Object::Policy(dynamic(json!({
        "apiVersion": "weir.dev/v1alpha1", "kind": "ResiliencePolicy",
        "metadata": {"name": "payments", "namespace": "shop", "uid": "u", "generation": 1,
            "resourceVersion": version.to_string(), "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"targetRefs": [{"kind": "Service", "name": "payments"}], "retries": retries},
        "status": status,
    })))
}

fn service(name: &str) -> Object {
    let service =
        json!({"metadata": {"name": name, "namespace": "shop"}, "spec": {"ports": [{"port": 80}]}});
    Object::Service(Box::new(serde_json::from_value(service).unwrap()))
}

fn agent(name: &str, node: Option<&str>, phase: &str) -> Object {
    let labels = json!({"app.kubernetes.io/name": "weir", "app.kubernetes.io/component": "agent"});
    let pod = json!({"metadata": {"name": name, "namespace": "weir-system", "labels": labels},
        "spec": {"containers": [], "nodeName": node}, "status": {"phase": phase}});
    Object::Pod(Box::new(serde_json::from_value(pod).unwrap()))
}

fn key() -> Key {
    ("shop".into(), "payments".into())
}

#[test]
fn nothing_is_complete_before_every_kind_was_listed() {
    let (mut index, _) = index();
    for kind in Kind::ALL {
        assert!(index.missing().contains(&kind));
        index.take(Change::Begin(kind));
        index.take(Change::Done(kind));
    }
    assert!(index.missing().is_empty());
}

#[test]
fn what_a_new_list_does_not_name_is_gone_when_it_ends_and_not_before() {
    let (mut index, _) = index();
    index.take(Change::Applied(service("payments")));
    index.take(Change::Applied(service("orders")));
    index.take(Change::Begin(Kind::Services));
    index.take(Change::Listed(service("orders")));
    assert_eq!(index.objects().services.len(), 2);
    assert!(index.take(Change::Done(Kind::Services)), "it is news");
    let left: Vec<_> = index
        .objects()
        .services
        .keys()
        .map(|key| key.1.as_str())
        .collect();
    assert_eq!(left, ["orders"]);
}

#[test]
fn a_policy_that_cannot_be_read_keeps_its_last_good_version_and_hurts_no_other() {
    let (mut index, _) = index();
    assert!(index.take(Change::Applied(policy(
        1,
        &json!({"attempts": 2}),
        &json!({})
    ))));
    assert!(index.take(Change::Applied(policy(
        2,
        &json!({"attempts": "many"}),
        &json!({})
    ))));
    let kept = &index.objects().policies[&key()];
    assert_eq!(
        kept.object.spec.sections.retries.as_ref().unwrap().attempts,
        2
    );
    let problem = kept.problem.as_ref().unwrap();
    assert!(problem.contains("spec.retries.attempts"), "{problem}");
    assert!(index.take(Change::Applied(policy(
        3,
        &json!({"attempts": 3}),
        &json!({})
    ))));
    assert!(index.objects().policies[&key()].problem.is_none());
}

#[test]
fn a_policy_that_was_never_good_is_shown_as_refused_until_it_is_good_or_gone() {
    let (mut index, _) = index();
    let bad = || policy(1, &json!({"attempts": "many"}), &json!({}));
    index.take(Change::Applied(bad()));
    assert_eq!(index.objects().refused.len(), 1);
    index.take(Change::Applied(policy(2, &json!({}), &json!({}))));
    assert!(index.objects().refused.is_empty());
    index.take(Change::Deleted(policy(2, &json!({}), &json!({}))));
    index.take(Change::Applied(bad()));
    index.take(Change::Deleted(bad()));
    assert!(index.objects().refused.is_empty() && index.objects().policies.is_empty());
}

#[test]
fn a_status_that_comes_back_is_observed_and_no_news_for_the_model() {
    let (mut index, observed) = index();
    let status = json!({"conditions": []});
    assert!(index.take(Change::Applied(policy(1, &json!({}), &Value::Null))));
    assert!(!index.take(Change::Applied(policy(2, &json!({}), &status))));
    let live = observed
        .get(&(Collection::ResiliencePolicies, key()))
        .unwrap();
    assert_eq!((live.version, live.status), (2, status));
    // An older word that arrives late is not believed.
    index.take(Change::Applied(policy(1, &json!({}), &Value::Null)));
    assert_eq!(
        observed
            .get(&(Collection::ResiliencePolicies, key()))
            .unwrap()
            .version,
        2
    );
}

#[test]
fn a_status_that_a_later_version_wrote_does_not_hide_the_policy() {
    let (mut index, _) = index();
    index.take(Change::Applied(policy(
        1,
        &json!({}),
        &json!({"conditions": "other"}),
    )));
    assert!(index.objects().policies.contains_key(&key()));
}

#[test]
fn an_override_counts_from_when_its_spec_was_written_last() {
    let (mut index, _) = index();
    let breaker = json!({
        "metadata": {"name": "payments", "namespace": "shop", "creationTimestamp": "2026-01-01T00:00:00Z",
            "managedFields": [
                {"manager": "kubectl-patch", "operation": "Update", "time": "2026-01-03T00:00:00Z",
                    "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": {"f:override": {}}}},
                {"manager": "weir-control-plane", "operation": "Apply", "subresource": "status",
                    "time": "2026-01-09T00:00:00Z", "fieldsType": "FieldsV1", "fieldsV1": {"f:status": {}}},
            ]},
        "spec": {"reset": "1"},
    });
    index.take(Change::Applied(Object::Breaker(dynamic(breaker))));
    let breaker = &index.objects().breakers[&key()];
    assert_eq!(breaker.written.to_string(), "2026-01-03T00:00:00Z");
    assert!(breaker.object.metadata.managed_fields.is_none());
}

#[test]
fn nodes_with_an_agent_are_those_of_its_pods_that_have_not_ended() {
    let (mut index, _) = index();
    index.take(Change::Applied(agent("a", None, "Pending")));
    index.take(Change::Applied(agent("b", Some("n1"), "Running")));
    index.take(Change::Applied(agent("c", Some("n2"), "Running")));
    let nodes = |index: &Index| {
        index
            .objects()
            .agents
            .clone()
            .unwrap()
            .into_iter()
            .collect::<Vec<_>>()
    };
    assert_eq!(nodes(&index), ["n1", "n2"]);
    index.take(Change::Applied(agent("c", Some("n2"), "Failed")));
    assert_eq!(nodes(&index), ["n1"]);
}

/// A Pod as large as they are.
fn large_pod(n: usize, address: &str) -> Object {
    let env: Vec<Value> = (0..60)
        .map(|n| json!({"name": format!("VARIABLE_{n}"), "value": "a value of some length, as they have"}))
        .collect();
    let owner = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("app-{}-6d4cf56db6", n / 10), "uid": "u", "controller": true});
    let pod = json!({
        "metadata": {
            "name": format!("app-{}-6d4cf56db6-{n:05}", n / 10),
            "namespace": format!("namespace-{}", n % 50),
            "uid": format!("4c2b8f4e-5a52-4d0f-9a39-{n:012}"),
            "labels": {"app": "app", "pod-template-hash": "6d4cf56db6"},
            "ownerReferences": [owner],
        },
        "spec": {
            "nodeName": format!("node-{}", n % 100),
            "serviceAccountName": "app",
            "containers": [{
                "name": "app", "image": "registry.example/app:1", "env": env,
                "ports": [{"name": "http", "containerPort": 8080}],
                "livenessProbe": {"httpGet": {"path": "/livez", "port": "http"}},
                "readinessProbe": {"httpGet": {"path": "/readyz", "port": "http"}},
            }],
        },
        "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]},
    });
    Object::Pod(Box::new(serde_json::from_value(pod).unwrap()))
}

fn resident_kilobytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap()
}

#[test]
#[allow(clippy::print_stdout, reason = "the figure is what it is for")]
fn of_many_pods_little_is_kept_and_a_change_copies_those_of_one_node() {
    let address = |n: usize| format!("10.{}.{}.1", n / 250, n % 250);
    let (mut index, _) = index();
    let before = resident_kilobytes();
    for n in 0..5_000 {
        assert!(index.take(Change::Applied(large_pod(n, &address(n)))));
    }
    let kept = resident_kilobytes().saturating_sub(before);
    println!("5000 pods in the index: {kept} kB more resident");
    let published = index.objects().clone();
    assert!(
        !index.take(Change::Applied(large_pod(7, &address(7)))),
        "no news"
    );
    assert!(index.take(Change::Applied(large_pod(7, "10.99.0.1"))));
    let now = &index.objects().pods;
    let changed = published.pods.differences(now, Shared::is);
    let changed: Vec<&str> = changed.into_iter().map(|(node, _, _)| &**node).collect();
    assert_eq!(changed, ["node-7"]);
    index.take(Change::Begin(Kind::Pods));
    assert!(index.take(Change::Done(Kind::Pods)));
    assert!(index.objects().pods.is_empty() && index.places.is_empty());
}

#[test]
fn a_pod_that_was_made_again_elsewhere_leaves_its_old_node() {
    let on = |node: &str| agent("weir-agent-x", Some(node), "Running");
    let (mut index, _) = index();
    index.take(Change::Applied(on("one")));
    assert!(index.take(Change::Applied(on("two"))));
    let nodes: Vec<&str> = index.objects().pods.keys().map(|node| &**node).collect();
    assert_eq!(nodes, ["two"]);
    assert_eq!(index.objects().agents, Some(["two".to_owned()].into()));
    assert!(index.take(Change::Deleted(on("two"))));
    assert!(index.objects().pods.is_empty());
}
