//! The generated files, and what must be true of a schema whatever it describes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may"
)]

mod support;

use serde_json::Value;
use weir_crds::Kind;
use weir_crds::v1alpha1::Section;

fn committed(kind: Kind) -> String {
    let path = format!("{}/{}", env!("CARGO_MANIFEST_DIR"), kind.file_name());
    std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{path}: {error}: run `cargo xtask generate`"))
}

#[test]
fn the_committed_definitions_are_those_of_the_types() {
    for kind in Kind::ALL {
        let committed: Value = serde_yaml::from_str(&committed(kind)).unwrap();
        assert!(
            committed == *kind.crd(),
            "{} is stale: run `cargo xtask generate`",
            kind.file_name()
        );
    }
}

#[test]
fn each_definition_is_small_enough_to_be_kept_and_applied() {
    // Annotations of an object are at most 256 KiB together, and a plain
    // `kubectl apply` keeps the whole object in one.
    const ANNOTATIONS: usize = 256 << 10;
    for kind in Kind::ALL {
        let file = committed(kind).len();
        assert!(file <= 200_000, "{} has {file} bytes", kind.file_name());
        let json = serde_json::to_string(kind.crd()).unwrap().len();
        assert!(json + 100 <= ANNOTATIONS, "{kind} has {json} bytes as JSON");
    }
}

/// Calls `check` with every schema below, and its path.
fn each<'a>(schema: &'a Value, path: &str, check: &mut dyn FnMut(&str, &'a Value)) {
    check(path, schema);
    for (field, schema) in schema["properties"].as_object().into_iter().flatten() {
        each(schema, &format!("{path}.{field}"), check);
    }
    if let Some(items) = schema.get("items") {
        each(items, &format!("{path}[]"), check);
    }
}

fn each_of_all(mut check: impl FnMut(&str, &Value)) {
    for kind in Kind::ALL {
        each(kind.schema(), kind.as_str(), &mut check);
    }
}

#[test]
fn every_list_and_every_text_is_bounded_and_there_are_no_floats() {
    each_of_all(|path, schema| {
        let has = |keyword: &str| schema.get(keyword).is_some();
        match schema["type"].as_str() {
            Some("array") => {
                assert!(has("maxItems"), "{path} has no maxItems");
                assert!(
                    has("x-kubernetes-list-type"),
                    "{path} does not say how it is merged"
                );
            }
            Some("string") => assert!(has("maxLength") || has("enum"), "{path} has no maxLength"),
            Some("object" | "boolean") => {}
            Some("integer") => assert!(has("minimum"), "{path} has no minimum"),
            None if has("x-kubernetes-int-or-string") => {
                assert!(has("maxLength"), "{path} has no maxLength")
            }
            other => panic!("{path} is of type {other:?}"),
        }
        assert!(!has("nullable"), "{path} is nullable");
        let words = schema["enum"].as_array();
        assert!(
            words.is_none_or(|words| words.iter().all(Value::is_string)),
            "{path} has a word that is none"
        );
        assert!(
            !has("format") || schema["format"] == "date-time",
            "{path} has format {}",
            schema["format"]
        );
    });
}

#[test]
fn every_number_that_people_write_has_a_largest_value() {
    let schema = |kind: Kind| &kind.schema()["properties"]["spec"];
    for kind in Kind::ALL {
        each(schema(kind), "spec", &mut |path, schema| {
            if schema["type"] == "integer" {
                assert!(schema.get("maximum").is_some(), "{path} has no maximum");
            }
        });
    }
}

#[test]
fn no_field_and_no_word_that_people_write_is_something_else_in_yaml() {
    // kubectl reads YAML 1.1: `on: …` is a field named true.
    const TAKEN: [&str; 10] = [
        "y", "n", "yes", "no", "on", "off", "true", "false", "null", "~",
    ];
    let free =
        |word: &str| !TAKEN.contains(&word.to_lowercase().as_str()) && word.parse::<f64>().is_err();
    for kind in Kind::ALL {
        each(
            &kind.schema()["properties"]["spec"],
            "spec",
            &mut |path, schema| {
                for field in schema["properties"]
                    .as_object()
                    .into_iter()
                    .flat_map(|fields| fields.keys())
                {
                    assert!(free(field), "{path}.{field}");
                }
                for word in schema["enum"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(Value::as_str)
                {
                    assert!(free(word), "{path}: {word}");
                }
            },
        );
    }
}

#[test]
fn every_field_is_described_once() {
    each_of_all(|path, schema| {
        let description = schema["description"].as_str().unwrap_or_default();
        // `kubectl explain` tells the items of a list beside the list.
        let item = path.ends_with("[]");
        if path != "ResiliencePolicy" && path != "CircuitBreaker" {
            assert_eq!(description.is_empty(), item, "{path}: {description:?}");
        }
        let in_route = path
            .strip_prefix("ResiliencePolicy.spec.routes[].")
            .and_then(|path| path.split_once('.'));
        let copy = in_route.is_some_and(|(section, _)| {
            Section::ALL
                .iter()
                .any(|known| section.trim_end_matches("[]") == known.as_str())
        });
        if copy && !item {
            assert!(
                description.starts_with("See spec."),
                "{path}: {description:?}"
            );
        }
    });
}

#[test]
fn every_rule_says_what_to_write() {
    each_of_all(|path, schema| {
        for rule in schema["x-kubernetes-validations"]
            .as_array()
            .into_iter()
            .flatten()
        {
            assert!(
                rule["message"]
                    .as_str()
                    .is_some_and(|text| !text.contains('\n')),
                "{path}: {rule}"
            );
        }
    });
}

#[test]
fn every_section_stands_in_the_policy_and_in_routes() {
    let spec = &Kind::ResiliencePolicy.schema()["properties"]["spec"]["properties"];
    for section in Section::ALL {
        assert!(spec.get(section.as_str()).is_some(), "spec.{section}");
        assert!(
            spec["routes"]["items"]["properties"]
                .get(section.as_str())
                .is_some(),
            "spec.routes[].{section}"
        );
    }
}

#[test]
fn kubectl_finds_the_kinds_by_their_short_names_and_category() {
    for (kind, short) in [(Kind::ResiliencePolicy, "rp"), (Kind::CircuitBreaker, "cb")] {
        let names = &kind.crd()["spec"]["names"];
        assert_eq!(names["shortNames"], serde_json::json!([short]));
        assert_eq!(names["categories"], serde_json::json!(["weir"]));
        assert_eq!(names["plural"], kind.plural());
        assert_eq!(kind.crd()["spec"]["scope"], "Namespaced");
    }
}
