//! What people write wrong, and what they are told.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may"
)]

mod support;

use serde_json::{Value, json};
use support::{file, policy};
use weir_crds::Kind;
use weir_crds::validate::{MAX_PROBLEMS, validate};

fn verdict(object: &Value) -> Vec<String> {
    let kind = object["kind"]
        .as_str()
        .and_then(Kind::from_name)
        .unwrap_or(Kind::ResiliencePolicy);
    match validate(kind, object) {
        Ok(_) => Vec::new(),
        Err(problems) => problems.iter().map(ToString::to_string).collect(),
    }
}

#[test]
fn each_mistake_is_told_at_its_field_with_what_to_write_instead() {
    for case in file("verdicts.yaml").as_array().unwrap() {
        let object = if case["object"].is_null() {
            policy(&case["spec"])
        } else {
            case["object"].clone()
        };
        assert_eq!(json!(verdict(&object)), case["says"], "{object}");
    }
}

#[test]
fn what_is_accepted_has_every_default_of_what_was_written_and_nothing_else() {
    let stored = validate(
        Kind::ResiliencePolicy,
        &policy(&json!({ "retries": { "backoff": { "base": "50ms" } } })),
    )
    .unwrap();
    assert_eq!(
        stored["spec"],
        json!({
            "targetRefs": [{ "group": "", "kind": "Service", "name": "payments" }],
            "strategy": "Defaults",
            "mode": "Enforce",
            "retries": {
                "attempts": 2,
                "retryOn": {
                    "statusCodes": [429, 500, 502, 503, 504],
                    "grpcCodes": ["Unavailable", "ResourceExhausted"],
                    "connectionFailure": true,
                    "reset": true,
                    "perTryTimeout": true,
                },
                "methods": ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"],
                "backoff": { "base": "50ms", "max": "1s", "jitter": "Full" },
                "budget": { "percent": 20, "interval": "10s", "minRetryRate": { "count": 10, "interval": "1s" } },
                "honorRetryAfter": true,
                "maxBufferedBody": "64Ki",
                "acrossHops": "Suppress",
            },
        })
    );
}

#[test]
fn every_section_that_has_nothing_to_ask_is_good_when_empty() {
    for section in [
        "timeouts",
        "deadline",
        "retries",
        "hedging",
        "circuitBreaker",
        "outlierDetection",
        "loadBalancing",
        "connections",
        "idempotency",
    ] {
        assert_eq!(
            verdict(&policy(&json!({ section: {} }))),
            [""; 0],
            "{section}"
        );
    }
}

#[test]
fn a_huge_object_is_told_a_bounded_number_of_problems() {
    let routes: Vec<Value> = (0..100_000).map(|_| json!({ "nonsense": true })).collect();
    let fields: serde_json::Map<String, Value> = (0..100_000)
        .map(|n| (format!("nonsense{n}"), json!(n)))
        .collect();
    let problems = verdict(&policy(&json!({ "routes": routes, "timeouts": fields })));
    assert_eq!(problems.len(), MAX_PROBLEMS + 1);
    assert!(problems.last().unwrap().contains("more than 100 problems"));
}

#[test]
fn a_long_text_is_not_told_in_full() {
    let problems = verdict(&policy(&json!({ "mode": "ß".repeat(1_000_000) })));
    assert_eq!(problems.len(), 1);
    assert!(problems[0].len() < 300);
}
