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
