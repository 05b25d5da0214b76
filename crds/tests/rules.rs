//! Every CEL rule has a manifest that it refuses, with a twin that it accepts.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may"
)]

mod support;

use serde_json::Value;
use support::policy;
use support::table::{Refusal, rules, table};
use weir_crds::Kind;
use weir_crds::validate::{Problem, validate};

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
