//! What a schema allows, in words.

use serde_json::Value;

use crate::v1alpha1::explain_pattern;

pub(super) fn what_it_is(schema: &Value) -> String {
    let kind = schema.get("type").and_then(Value::as_str);
    match (
        kind,
        schema
            .get("pattern")
            .and_then(Value::as_str)
            .and_then(explain_pattern),
    ) {
        (_, Some(words)) => words.to_owned(),
        (Some("integer"), _) => format!("a number, {}", range(schema)),
        (Some("array"), _) => "a list".to_owned(),
        (Some("object"), _) => {
            format!("in it {}", fields_of(schema).collect::<Vec<_>>().join(", "))
        }
        _ => "a text".to_owned(),
    }
}

pub(super) fn fields_of(schema: &Value) -> impl Iterator<Item = &str> {
    schema
        .get("properties")
        .and_then(Value::as_object)
        .into_iter()
        .flat_map(|map| map.keys().map(String::as_str))
}

pub(super) fn range(schema: &Value) -> String {
    match (schema.get("minimum"), schema.get("maximum")) {
        (Some(min), Some(max)) => format!("{min} to {max}"),
        (Some(min), None) => format!("{min} or more"),
        (None, Some(max)) => format!("at most {max}"),
        (None, None) => "a whole number".to_owned(),
    }
}

/// What to write, for what has a pattern.
pub(super) fn example(schema: &Value) -> String {
    match schema
        .get("pattern")
        .and_then(Value::as_str)
        .and_then(explain_pattern)
    {
        Some(words) => format!(": write {words}"),
        None => String::new(),
    }
}

/// A number where a text belongs is mostly a duration without its unit, or a
/// text that YAML took for a number.
pub(super) fn quoted(value: &Value, schema: &Value) -> String {
    let duration = explain_pattern(
        schema
            .get("pattern")
            .and_then(Value::as_str)
            .unwrap_or_default(),
    );
    match value {
        Value::Number(number)
            if number.is_u64() && duration.is_some_and(|words| words.starts_with("a duration")) =>
        {
            format!(" with a unit: write {number}s for seconds, {number}ms for milliseconds")
        }
        Value::Number(_) | Value::Bool(_) if example(schema).is_empty() => {
            ": put it in quotes".to_owned()
        }
        _ => example(schema),
    }
}

pub(super) fn listed(words: &[Value]) -> String {
    words
        .iter()
        .map(|word| {
            word.as_str()
                .filter(|word| !word.is_empty())
                .unwrap_or("\"\"")
        })
        .collect::<Vec<_>>()
        .join(", ")
}
