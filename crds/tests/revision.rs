//! Each revision of the schema, as an outline that people can compare:
//! `tests/schema/<revision>.txt`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may")]

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::Value;
use weir_crds::Kind;
use weir_crds::crd::{SCHEMA_REVISION, SCHEMA_REVISION_ANNOTATION, schema_revision};

/// What the API server accepts, keeps and prints of a kind: all but the words
/// that explain it.
fn outline(kind: Kind) -> String {
    let crd = kind.crd();
    let mut out = format!("{kind} {}\n", crd["spec"]["names"]);
    for column in crd["spec"]["versions"][0]["additionalPrinterColumns"]
        .as_array()
        .into_iter()
        .flatten()
    {
        writeln!(out, "column {column}").unwrap();
    }
    fields(kind.schema(), kind.as_str(), &mut out);
    out
}

fn fields(schema: &Value, path: &str, out: &mut String) {
    let mut own = schema.as_object().unwrap().clone();
    own.shift_remove("description");
    let properties = own.shift_remove("properties");
    let items = own.shift_remove("items");
    for rule in own
        .get_mut("x-kubernetes-validations")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        rule.as_object_mut().unwrap().shift_remove("message");
    }
    writeln!(out, "{path} {}", Value::Object(own)).unwrap();
    for (name, field) in properties.iter().filter_map(Value::as_object).flatten() {
        fields(field, &format!("{path}.{name}"), out);
    }
    if let Some(items) = items {
        fields(&items, &format!("{path}[]"), out);
    }
}

#[test]
fn a_changed_schema_has_a_new_revision() {
    let file = format!(
        "{}/tests/schema/{SCHEMA_REVISION}.txt",
        env!("CARGO_MANIFEST_DIR")
    );
    let now: String = Kind::ALL.into_iter().map(outline).collect();
    if std::env::var_os("WEIR_UPDATE_GOLDEN").is_some() {
        std::fs::write(&file, &now).unwrap();
    }
    let recorded = std::fs::read_to_string(&file).unwrap_or_default();
    if recorded == now {
        return;
    }
    let difference = now
        .lines()
        .filter(|line| !recorded.contains(line))
        .map(|line| format!("+ {line}\n"))
        .chain(
            recorded
                .lines()
                .filter(|line| !now.contains(line))
                .map(|line| format!("- {line}\n")),
        );
    panic!(
        "the schema is not that of revision {SCHEMA_REVISION}:\n{}\
         raise SCHEMA_REVISION if that one was released, then run `WEIR_UPDATE_GOLDEN=1 cargo test -p weir-crds --test revision`",
        difference.collect::<String>()
    );
}

#[test]
fn every_definition_says_its_revision() {
    for kind in Kind::ALL {
        let annotations = &kind.crd()["metadata"]["annotations"];
        let annotations: BTreeMap<String, String> =
            serde_json::from_value(annotations.clone()).unwrap();
        assert_eq!(schema_revision(&annotations), SCHEMA_REVISION, "{kind}");
    }
}

#[test]
fn a_definition_that_names_no_revision_is_older_than_all() {
    assert_eq!(schema_revision(&BTreeMap::new()), 0);
    let garbage = BTreeMap::from([(SCHEMA_REVISION_ANNOTATION.to_owned(), "new".to_owned())]);
    assert_eq!(schema_revision(&garbage), 0);
}
