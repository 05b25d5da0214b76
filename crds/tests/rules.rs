//! Every CEL rule has a manifest that it refuses, with a twin that it accepts.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may"
)]

mod support;

use serde_json::{Value, json};
use support::{file, in_route, policy, put};
use weir_crds::Kind;
use weir_crds::validate::{Problem, validate};

/// A spec that is refused, where, and with which words.
struct Refusal {
    spec: Value,
    at: String,
    says: String,
}

/// All accepted and all refused specs of the table, those inside routes
/// included.
fn table() -> (Vec<Value>, Vec<Refusal>) {
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    let table = file("rules.yaml");
    for case in table["policies"].as_array().unwrap() {
        good.push(case["good"].clone());
        bad.push(Refusal {
            spec: case["bad"].clone(),
            at: case["at"].as_str().unwrap().to_owned(),
            says: case["says"].as_str().unwrap().to_owned(),
        });
    }
    for case in table["durations"].as_array().unwrap() {
        let at = case["at"].as_str().unwrap();
        let spec = |duration: &Value| {
            let mut spec = if case["with"].is_null() {
                json!({})
            } else {
                case["with"].clone()
            };
            put(&mut spec, at, duration.clone());
            spec
        };
        good.extend(case["in"].as_array().unwrap().iter().map(spec));
        bad.extend(
            case["out"]
                .as_array()
                .unwrap()
                .iter()
                .map(|duration| Refusal {
                    spec: spec(duration),
                    at: format!("spec.{}", at.replace(".0.", "[0].")),
                    says: format!("{duration} must be from "),
                }),
        );
    }
    good.extend(good.clone().iter().filter_map(in_route));
    let routed: Vec<Refusal> = bad
        .iter()
        .filter_map(|Refusal { spec, at, says }| {
            let at = at.replacen("spec.", "spec.routes[0].", 1);
            Some(Refusal {
                spec: in_route(spec)?,
                at,
                says: says.clone(),
            })
        })
        .collect();
    bad.extend(routed);
    (good, bad)
}

fn refused(spec: &Value) -> Vec<Problem> {
    validate(Kind::ResiliencePolicy, &policy(spec)).expect_err(&format!("accepted: {spec}"))
}

#[test]
fn every_good_twin_is_accepted() {
    for spec in table().0 {
        if let Err(problems) = validate(Kind::ResiliencePolicy, &policy(&spec)) {
            panic!("{spec} is refused: {problems:?}");
        }
    }
}

#[test]
fn every_bad_twin_is_refused_once_at_the_right_field_with_what_to_write() {
    for Refusal { spec, at, says } in table().1 {
        let problems = refused(&spec);
        assert_eq!(problems.len(), 1, "{spec}: {problems:?}");
        assert_eq!(problems[0].path, at, "{spec}: {problems:?}");
        assert!(
            problems[0].message.contains(&says),
            "{spec}: {problems:?} does not say {says}"
        );
    }
}

#[test]
fn no_rule_is_without_a_manifest_that_it_refuses() {
    let seen: Vec<Problem> = table()
        .1
        .iter()
        .flat_map(|refusal| refused(&refusal.spec))
        .collect();
    let refuses = |(at, message): &(String, String)| {
        // A message may name the value before the rule's words, and a cause after.
        seen.iter().any(|problem| {
            problem.path.replace("[0]", "[]") == *at && problem.message.contains(message)
        })
    };
    let missing: Vec<_> = Kind::ALL
        .into_iter()
        .flat_map(|kind| rules(kind.schema(), ""))
        .filter(|rule| !refuses(rule))
        .collect();
    assert!(
        missing.is_empty(),
        "rules without a refusal in tests/rules.yaml: {missing:#?}"
    );
}

/// Where each rule reports, and what it says.
fn rules(schema: &Value, path: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for rule in schema["x-kubernetes-validations"]
        .as_array()
        .into_iter()
        .flatten()
    {
        let at = format!("{path}{}", rule["fieldPath"].as_str().unwrap_or_default());
        found.push((
            at,
            rule["message"]
                .as_str()
                .expect("every rule has a message")
                .to_owned(),
        ));
    }
    for (field, schema) in schema["properties"].as_object().into_iter().flatten() {
        let path = if path.is_empty() {
            field.clone()
        } else {
            format!("{path}.{field}")
        };
        found.extend(rules(schema, &path));
    }
    if let Some(items) = schema.get("items") {
        found.extend(rules(items, &format!("{path}[]")));
    }
    found
}
