//! What the schema says about each value by itself.

use std::collections::{HashMap, HashSet};
use std::sync::LazyLock;

use regex::Regex;
use serde_json::{Map, Value};

use super::nearest::nearest;
use super::words::{example, fields_of, listed, quoted, range, what_it_is};
use super::{Problems, child, shown};
use crate::Kind;

/// Every pattern in the schemas, compiled once.
static PATTERNS: LazyLock<HashMap<String, Regex>> = LazyLock::new(|| {
    let mut patterns = HashMap::new();
    Kind::ALL
        .into_iter()
        .for_each(|kind| collect(kind.schema(), &mut patterns));
    patterns
});

fn collect(schema: &Value, patterns: &mut HashMap<String, Regex>) {
    if let Some(pattern) = schema.get("pattern").and_then(Value::as_str)
        && let Ok(regex) = Regex::new(pattern)
    {
        patterns.entry(pattern.to_owned()).or_insert(regex);
    }
    for child in schema
        .get("properties")
        .and_then(Value::as_object)
        .into_iter()
        .flat_map(|map| map.values())
    {
        collect(child, patterns);
    }
    if let Some(items) = schema.get("items") {
        collect(items, patterns);
    }
}

pub(super) fn check(object: &Value, schema: &Value, problems: &mut Problems) {
    let Value::Object(fields) = object else {
        return;
    };
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else {
        return;
    };
    let known = || {
        ["apiVersion", "kind", "metadata"]
            .into_iter()
            .chain(properties.keys().map(String::as_str))
    };
    for (field, value) in fields {
        match properties.get(field) {
            Some(schema) => value_is(value, schema, field, problems),
            None if known().any(|known| known == field) => {}
            None => unknown(field, field, known(), problems),
        }
    }
    required(fields, schema, "", problems);
}

fn value_is(value: &Value, schema: &Value, path: &str, problems: &mut Problems) {
    if problems.full() {
        return;
    }
    if schema.get("x-kubernetes-int-or-string").is_some() {
        match value {
            Value::String(text) => text_is(text, value, schema, path, problems),
            Value::Number(number) if number.is_i64() => number_is(value, schema, path, problems),
            _ => problems.add_broken(
                path,
                format!(
                    "{} is neither a whole number nor text{}",
                    shown(value),
                    example(schema)
                ),
            ),
        }
        return;
    }
    match (schema.get("type").and_then(Value::as_str), value) {
        (Some("object"), Value::Object(fields)) => object_is(fields, schema, path, problems),
        (Some("object"), _) => {
            let fields: Vec<_> = fields_of(schema).collect();
            problems.add_broken(
                path,
                format!(
                    "{} is not an object: write {{}} or fields of it: {}",
                    shown(value),
                    fields.join(", ")
                ),
            );
        }
        (Some("array"), Value::Array(items)) => list_is(items, schema, path, problems),
        (Some("array"), _) => problems.add_broken(
            path,
            format!(
                "{} is not a list: write [...] or lines that begin with -",
                shown(value)
            ),
        ),
        (Some("string"), Value::String(text)) => text_is(text, value, schema, path, problems),
        (Some("string"), _) => {
            let message = match schema.get("enum").and_then(Value::as_array) {
                Some(words) => format!("{} is not one of {}", shown(value), listed(words)),
                None => format!("{} is not text{}", shown(value), quoted(value, schema)),
            };
            problems.add_broken(path, message);
        }
        (Some("boolean"), Value::Bool(_)) => {}
        (Some("boolean"), _) => problems.add_broken(
            path,
            format!(
                "{} is neither true nor false: write one of these, without quotes",
                shown(value)
            ),
        ),
        (Some("integer"), Value::Number(number)) if number.is_i64() => {
            number_is(value, schema, path, problems)
        }
        (Some("integer"), _) => {
            let message = format!(
                "{} is not a whole number: write {} without quotes, unit or fraction",
                shown(value),
                range(schema)
            );
            problems.add_broken(path, message);
        }
        _ => {}
    }
}

fn object_is(fields: &Map<String, Value>, schema: &Value, path: &str, problems: &mut Problems) {
    if schema.get("x-kubernetes-preserve-unknown-fields").is_some() {
        return;
    }
    let properties = schema.get("properties").and_then(Value::as_object);
    for (field, value) in fields {
        let at = child(path, field);
        match properties.and_then(|properties| properties.get(field)) {
            Some(schema) => value_is(value, schema, &at, problems),
            None => unknown(field, &at, fields_of(schema), problems),
        }
    }
    required(fields, schema, path, problems);
}

fn required(fields: &Map<String, Value>, schema: &Value, path: &str, problems: &mut Problems) {
    for field in schema
        .get("required")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
    {
        if !fields.contains_key(field) {
            let schema = &schema["properties"][field];
            let what = match schema.get("enum").and_then(Value::as_array) {
                Some(words) => format!("one of {}", listed(words)),
                None => what_it_is(schema),
            };
            problems.add_broken(
                &child(path, field),
                format!("is missing: write {field}: and {what}"),
            );
        }
    }
}

fn unknown<'a>(
    field: &str,
    path: &str,
    known: impl Iterator<Item = &'a str>,
    problems: &mut Problems,
) {
    if problems.full() {
        return;
    }
    let known: Vec<_> = known.collect();
    let message = match nearest(field, known.iter().copied()) {
        Some(meant) => format!("unknown field: did you mean {meant}?"),
        None => format!("unknown field: here can be {}", known.join(", ")),
    };
    problems.add(path, message);
}

fn list_is(items: &[Value], schema: &Value, path: &str, problems: &mut Problems) {
    let limit = |keyword: &str| {
        schema
            .get(keyword)
            .and_then(Value::as_u64)
            .and_then(|limit| usize::try_from(limit).ok())
    };
    let max = limit("maxItems").unwrap_or(usize::MAX);
    if items.len() > max {
        problems.add_broken(
            path,
            format!("has {} items: write at most {max}", items.len()),
        );
    }
    if let Some(min) = limit("minItems")
        && items.len() < min
    {
        problems.add_broken(
            path,
            format!("has {} items: write at least {min}", items.len()),
        );
    }
    let keys: Vec<&str> = schema
        .get("x-kubernetes-list-map-keys")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let set = schema
        .get("x-kubernetes-list-type")
        .is_some_and(|kind| kind == "set");
    let mut seen = HashSet::new();
    // What is beyond the limit has to go anyway.
    for (index, item) in items.iter().enumerate().take(max) {
        let at = format!("{path}[{index}]");
        if let Some(schema) = schema.get("items") {
            value_is(item, schema, &at, problems);
        }
        let key = match keys.as_slice() {
            [] if set => Some(item.to_string()),
            [] => None,
            keys => Some(
                keys.iter()
                    .map(|key| item.get(key).unwrap_or(&Value::Null).to_string())
                    .collect::<Vec<_>>()
                    .join(" "),
            ),
        };
        if let Some(key) = key
            && !seen.insert(key.clone())
        {
            let message = match keys.first() {
                Some(name) => format!("{name} {key} is there twice: choose another {name}"),
                None => format!("{key} is there twice: remove one"),
            };
            problems.add_broken(&at, message);
        }
    }
}

fn text_is(text: &str, value: &Value, schema: &Value, path: &str, problems: &mut Problems) {
    if let Some(words) = schema.get("enum").and_then(Value::as_array) {
        if !words.contains(value) {
            let meant = nearest(
                text,
                words
                    .iter()
                    .filter_map(Value::as_str)
                    .filter(|word| !word.is_empty()),
            );
            let hint = meant.map_or(String::new(), |meant| format!(": did you mean {meant}?"));
            problems.add_broken(
                path,
                format!("{} is not one of {}{hint}", shown(value), listed(words)),
            );
        }
        return;
    }
    let length = text.chars().count() as u64;
    if let Some(max) = schema.get("maxLength").and_then(Value::as_u64)
        && length > max
    {
        return problems.add_broken(
            path,
            format!(
                "{} has {length} characters: write at most {max}",
                shown(value)
            ),
        );
    }
    if let Some(min) = schema.get("minLength").and_then(Value::as_u64)
        && length < min
    {
        return problems.add_broken(
            path,
            format!("{} is too short{}", shown(value), example(schema)),
        );
    }
    let pattern = schema.get("pattern").and_then(Value::as_str);
    let fits = pattern
        .and_then(|pattern| PATTERNS.get(pattern))
        .is_none_or(|regex| regex.is_match(text));
    let moment = schema
        .get("format")
        .is_none_or(|format| format != "date-time")
        || text.parse::<jiff::Timestamp>().is_ok();
    if !fits || !moment {
        problems.add_broken(
            path,
            format!(
                "{} is not what belongs here{}",
                shown(value),
                example(schema)
            ),
        );
    }
}

fn number_is(value: &Value, schema: &Value, path: &str, problems: &mut Problems) {
    let number = value.as_i64().unwrap_or(i64::MAX);
    let limit = |keyword: &str| schema.get(keyword).and_then(Value::as_i64);
    if limit("maximum").is_some_and(|max| number > max) {
        problems.add_broken(
            path,
            format!("{value} is too large: write {}", range(schema)),
        );
    }
    if limit("minimum").is_some_and(|min| number < min) {
        problems.add_broken(
            path,
            format!("{value} is too small: write {}", range(schema)),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1alpha1::explain_pattern;

    fn patterns(schema: &Value, found: &mut Vec<String>) {
        found.extend(schema["pattern"].as_str().map(str::to_owned));
        for schema in schema["properties"]
            .as_object()
            .into_iter()
            .flat_map(Map::values)
        {
            patterns(schema, found);
        }
        if let Some(items) = schema.get("items") {
            patterns(items, found);
        }
    }

    #[test]
    fn every_pattern_of_the_schemas_is_checked_and_told_in_words() {
        let mut found = Vec::new();
        Kind::ALL
            .into_iter()
            .for_each(|kind| patterns(kind.schema(), &mut found));
        for pattern in found {
            assert!(PATTERNS.contains_key(&pattern), "{pattern}");
            assert!(explain_pattern(&pattern).is_some(), "{pattern}");
        }
    }
}
