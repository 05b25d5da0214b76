//! The table of `rules.yaml`.

use serde_json::{Value, json};

use super::{file, in_route, put};

/// A spec that is refused, where, and with which words.
pub(crate) struct Refusal {
    pub(crate) spec: Value,
    pub(crate) at: String,
    pub(crate) says: String,
}

/// All accepted and all refused specs of the table, those inside routes
/// included.
pub(crate) fn table() -> (Vec<Value>, Vec<Refusal>) {
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

/// Where each rule reports, and what it says.
pub(crate) fn rules(schema: &Value, path: &str) -> Vec<(String, String)> {
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
