//! What holds for every object, however it was written.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may"
)]

mod support;

use std::sync::LazyLock;

use proptest::prelude::*;
use serde_json::{Map, Value, json};
use support::{file, in_route, policy};
use weir_crds::Kind;
use weir_crds::v1alpha1::{CircuitBreakerObject, ResiliencePolicy};
use weir_crds::validate::validate;

/// Every accepted policy of the rules' table, and one breaker.
static GOOD: LazyLock<Vec<Value>> = LazyLock::new(|| {
    let table = file("rules.yaml");
    let specs = table["policies"]
        .as_array()
        .unwrap()
        .iter()
        .map(|case| &case["good"]);
    let mut good: Vec<Value> = specs
        .flat_map(|spec| [Some(spec.clone()), in_route(spec)])
        .flatten()
        .map(|spec| validate(Kind::ResiliencePolicy, &policy(&spec)).unwrap())
        .collect();
    good.push(json!({
        "apiVersion": "weir.dev/v1alpha1",
        "kind": "CircuitBreaker",
        "metadata": { "name": "payments" },
        "spec": {
            "override": { "state": "Open", "reason": "drill", "expiresAt": "2026-05-01T12:00:00+02:00" },
            "reset": "1",
        },
        "status": {
            "conditions": [{
                "type": "Accepted", "status": "True", "reason": "Accepted", "message": "",
                "lastTransitionTime": "2026-05-01T12:00:00Z", "observedGeneration": 1,
            }],
            "state": "HalfOpen", "reason": "OpenElapsed", "since": "2026-05-01T12:00:00Z", "failurePercent": 61,
            "nodes": { "total": 12, "open": 9, "halfOpen": 3 },
            "openNodes": [{
                "node": "a", "state": "Open", "reason": "FailureRate", "since": "2026-05-01T12:00:00Z",
                "failurePercent": 61,
            }],
        },
    }));
    good
});

/// Values that are right in one place and wrong in another.
fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        prop::sample::select(vec![
            json!(null),
            json!(true),
            json!(false),
            json!([]),
            json!({}),
            json!(""),
            json!("0s"),
            json!("1ms"),
            json!("10s"),
            json!("90s"),
            json!("1h"),
            json!("0h0m"),
            json!("1h1h1h1h"),
            json!("99999h99999h"),
            json!("503"),
            json!("599-500"),
            json!("64Ki"),
            json!("16Mi"),
            json!("9999999"),
            json!("GET"),
            json!("Shadow"),
            json!("Count"),
            json!("Mesh"),
            json!("Header"),
            json!("Unavailable"),
            json!("retries"),
            json!("payments"),
            json!("/a"),
            json!("2999-12-31T23:59:59+23:59"),
            json!("2000-01-01T00:00:00.5Z"),
            json!("2024-02-30T00:00:00Z"),
            json!("2024-01-01T24:00:00Z"),
            json!("2024-01-01T23:59:60Z"),
            json!(0),
            json!(1),
            json!(2),
            json!(3.0),
            json!(2.5),
            json!(-1),
            json!(50),
            json!(100),
            json!(500),
            json!(1000),
            json!(65535),
            json!(100_000),
            json!(i64::MAX),
            json!(u64::MAX),
            json!(1e300),
            json!([503, "500-599"]),
            json!(["retries"]),
            json!([{ "name": "a", "value": "b" }]),
            json!({ "max": 5 }),
        ]),
        "[ -~]{0,8}".prop_map(Value::String),
        any::<i64>().prop_map(Value::from),
    ]
}

/// One change somewhere in an object.
#[derive(Clone, Debug)]
enum Change {
    Replace(Value),
    Remove,
    Repeat,
    Add(Value),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        4 => value().prop_map(Change::Replace),
        1 => Just(Change::Remove),
        1 => Just(Change::Repeat),
        2 => value().prop_map(Change::Add),
    ]
}

/// Pointers to all that an object holds.
fn places(value: &Value, at: String, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (field, value) in fields {
                places(
                    value,
                    format!("{at}/{}", field.replace('~', "~0").replace('/', "~1")),
                    found,
                );
            }
        }
        Value::Array(items) => {
            items
                .iter()
                .enumerate()
                .for_each(|(index, item)| places(item, format!("{at}/{index}"), found));
        }
        _ => {}
    }
    found.push(at);
}

/// Fields that a schema gives to what is at a pointer.
fn fields_at(kind: Kind, pointer: &str) -> Vec<String> {
    let mut schema = kind.schema();
    for step in pointer.split('/').skip(1) {
        schema = if step.parse::<usize>().is_ok() {
            &schema["items"]
        } else {
            &schema["properties"][step]
        };
    }
    schema["properties"]
        .as_object()
        .map(|fields| fields.keys().cloned().collect())
        .unwrap_or_default()
}

fn apply(kind: Kind, object: &mut Value, place: usize, which: usize, change: &Change) {
    let mut all = Vec::new();
    places(object, String::new(), &mut all);
    // What is not ours to judge in depth.
    all.retain(|at| at.starts_with("/spec") || at.starts_with("/status"));
    let Some(at) = all.get(place % all.len().max(1)).cloned() else {
        return;
    };
    match change {
        Change::Replace(value) => *object.pointer_mut(&at).unwrap() = value.clone(),
        Change::Remove => {
            let (holder, last) = at.rsplit_once('/').unwrap();
            match object.pointer_mut(holder).unwrap() {
                Value::Object(fields) => drop(fields.shift_remove(last)),
                Value::Array(items) => drop(items.remove(last.parse().unwrap())),
                _ => {}
            }
        }
        Change::Repeat => {
            if let Some(Value::Array(items)) = object.pointer_mut(&at)
                && let Some(first) = items.first().cloned()
            {
                items.push(first);
            }
        }
        Change::Add(value) => {
            let fields = fields_at(kind, &at);
            if let (Some(Value::Object(holder)), false) =
                (object.pointer_mut(&at), fields.is_empty())
            {
                holder.insert(fields[which % fields.len()].clone(), value.clone());
            }
        }
    }
}

/// What is accepted can be read, and what was read is accepted and the same.
fn readable(kind: Kind, stored: &Value) {
    let written = match kind {
        Kind::ResiliencePolicy => {
            serde_json::from_value::<ResiliencePolicy>(stored.clone()).map(|object| json!(object))
        }
        Kind::CircuitBreaker => serde_json::from_value::<CircuitBreakerObject>(stored.clone())
            .map(|object| json!(object)),
    };
    let written =
        written.unwrap_or_else(|error| panic!("accepted, and cannot be read: {error}: {stored}"));
    let again =
        validate(kind, &written).unwrap_or_else(|problems| panic!("{problems:?} of {written}"));
    let read = |value: &Value| match kind {
        Kind::ResiliencePolicy => {
            json!(serde_json::from_value::<ResiliencePolicy>(value.clone()).unwrap())
        }
        Kind::CircuitBreaker => {
            json!(serde_json::from_value::<CircuitBreakerObject>(value.clone()).unwrap())
        }
    };
    assert_eq!(read(&again), written);
}

/// One of the good objects, as often a breaker as there are kinds.
fn good() -> impl Strategy<Value = Value> {
    let (breaker, policies) = GOOD.split_last().unwrap();
    prop_oneof![
        Just(breaker.clone()),
        prop::sample::select(policies.to_vec())
    ]
}

fn kind_of(object: &Value) -> Kind {
    Kind::from_name(object["kind"].as_str().unwrap()).unwrap()
}

fn anything() -> impl Strategy<Value = Value> {
    value().prop_recursive(4, 32, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::Array),
            prop::collection::vec(
                (
                    prop::sample::select(vec![
                        "metadata", "name", "spec", "routes", "retries", "x", ""
                    ]),
                    inner
                ),
                0..6
            )
            .prop_map(|fields| Value::Object(
                fields
                    .into_iter()
                    .map(|(name, value)| (name.to_owned(), value))
                    .collect::<Map<_, _>>()
            )),
        ]
    })
}

#[test]
fn every_good_object_can_be_read() {
    for object in GOOD.iter() {
        readable(kind_of(object), &validate(kind_of(object), object).unwrap());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_accepted_can_always_be_read(
        object in good(),
        changes in prop::collection::vec((any::<usize>(), any::<usize>(), change()), 1..3),
    ) {
        let mut object = object;
        let kind = kind_of(&object);
        for (place, field, change) in &changes {
            apply(kind, &mut object, *place, *field, change);
        }
        if let Ok(stored) = validate(kind, &object) {
            readable(kind, &stored);
        }
    }

    #[test]
    fn what_is_stored_is_accepted_as_it_is(object in good(), place: usize, field: usize, change in change()) {
        let mut object = object;
        let kind = kind_of(&object);
        apply(kind, &mut object, place, field, &change);
        if let Ok(stored) = validate(kind, &object) {
            prop_assert_eq!(validate(kind, &stored), Ok(stored));
        }
    }

    #[test]
    fn nothing_that_can_be_written_upsets_the_check(object in anything()) {
        for kind in Kind::ALL {
            if let Err(problems) = validate(kind, &object) {
                prop_assert!(!problems.is_empty());
            }
        }
    }
}
