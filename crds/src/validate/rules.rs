//! The CEL rules.

use std::collections::HashMap;
use std::sync::LazyLock;

use kube_cel::{CompiledSchema, ErrorKind, ValidationError};
use serde_json::Value;

use super::{Problem, Problems, child, shown};
use crate::Kind;

/// The rules of one kind, compiled once.
struct Rules {
    schema: CompiledSchema,
    /// What each rule says, by its text: for those that cannot be evaluated,
    /// such as one about a regular expression that is none.
    messages: HashMap<String, String>,
}

static POLICY: LazyLock<Rules> = LazyLock::new(|| Rules::new(Kind::ResiliencePolicy));
static BREAKER: LazyLock<Rules> = LazyLock::new(|| Rules::new(Kind::CircuitBreaker));

impl Rules {
    fn new(kind: Kind) -> Rules {
        let schema = kind.schema();
        let mut messages = HashMap::new();
        collect(schema, &mut messages);
        Rules {
            schema: kube_cel::compile_schema(schema),
            messages,
        }
    }
}

fn collect(schema: &Value, messages: &mut HashMap<String, String>) {
    for rule in schema
        .get("x-kubernetes-validations")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        if let (Some(Value::String(rule)), Some(Value::String(message))) =
            (rule.get("rule"), rule.get("message"))
        {
            messages.insert(rule.clone(), message.clone());
        }
    }
    for child in schema
        .get("properties")
        .and_then(Value::as_object)
        .into_iter()
        .flat_map(|map| map.values())
    {
        collect(child, messages);
    }
    if let Some(items) = schema.get("items") {
        collect(items, messages);
    }
}

pub(super) fn check(kind: Kind, object: &Value, problems: &mut Problems) {
    if problems.full() {
        return;
    }
    let rules: &Rules = match kind {
        Kind::ResiliencePolicy => &POLICY,
        Kind::CircuitBreaker => &BREAKER,
    };
    let mut found = Vec::new();
    descend(&rules.schema, object, "", problems, &mut |path, error| {
        let at = format!("{path}{}{}", dot(path, &error.field_path), error.field_path);
        let message = match error.kind {
            ErrorKind::ValidationFailure => error.message,
            // Only a regular expression that is none keeps a rule from being
            // evaluated.
            _ => unreadable(rules.messages.get(&error.rule), &error.message),
        };
        found.push(Problem {
            message: with_value(message, lookup(object, &at)),
            path: at,
        });
    });
    // The schema's fields are visited in no particular order.
    found.sort_by(|a, b| (&a.path, &a.message).cmp(&(&b.path, &b.message)));
    for problem in found {
        problems.add(&problem.path, problem.message);
    }
}

/// Evaluates the rules of the largest parts whose structure is right.
fn descend(
    schema: &CompiledSchema,
    value: &Value,
    path: &str,
    problems: &Problems,
    found: &mut impl FnMut(&str, ValidationError),
) {
    if problems.whole(path) {
        if let Err(errors) = kube_cel::validate_compiled(schema, value, None) {
            errors
                .into_vec()
                .into_iter()
                .for_each(|error| found(path, error));
        }
        return;
    }
    match value {
        Value::Object(object) => {
            for (field, schema) in &schema.properties {
                if let Some(value) = object.get(field) {
                    descend(schema, value, &child(path, field), problems, found);
                }
            }
        }
        Value::Array(list) => {
            for (index, value) in list.iter().enumerate() {
                if let Some(schema) = &schema.items {
                    descend(schema, value, &format!("{path}[{index}]"), problems, found);
                }
            }
        }
        _ => {}
    }
}

/// What a rule says, and why it could not be evaluated.
fn unreadable(message: Option<&String>, error: &str) -> String {
    let why = error
        .lines()
        .rev()
        .find_map(|line| line.trim().strip_prefix("error: "));
    match (message, why) {
        (Some(message), Some(why)) => format!("{message}: {why}"),
        (Some(message), None) => message.clone(),
        (None, _) => error.to_owned(),
    }
}

/// What joins the path of a part with the path within it.
fn dot(path: &str, within: &str) -> &'static str {
    if path.is_empty() || within.is_empty() || within.starts_with(['[', '.']) {
        ""
    } else {
        "."
    }
}

/// Rules about one value say "must be…" and are told with that value before.
fn with_value(message: String, value: Option<&Value>) -> String {
    match value {
        Some(value) if message.starts_with("must be") => format!("{} {message}", shown(value)),
        _ => message,
    }
}

fn lookup<'a>(object: &'a Value, path: &str) -> Option<&'a Value> {
    let pointer = path.replace(['.', '['], "/").replace(']', "");
    object.pointer(&format!("/{pointer}"))
}
