//! What the API server does to an object before it looks at it.

use serde_json::{Number, Value};

/// Drops nulls (none of our fields is nullable), fills in defaults, and makes
/// whole numbers that were written with a fraction (`3.0`) whole.
pub(super) fn fill_in(value: &mut Value, schema: &Value) {
    match value {
        Value::Object(object) => {
            let Some(properties) = schema.get("properties").and_then(Value::as_object) else {
                return;
            };
            object.retain(|field, value| !(value.is_null() && properties.contains_key(field)));
            for (field, schema) in properties {
                if let Some(default) = schema.get("default")
                    && !object.contains_key(field)
                {
                    object.insert(field.clone(), default.clone());
                }
                if let Some(value) = object.get_mut(field) {
                    fill_in(value, schema);
                }
            }
        }
        Value::Array(list) => {
            let Some(items) = schema.get("items") else {
                return;
            };
            list.iter_mut().for_each(|value| fill_in(value, items));
        }
        Value::Number(number) => {
            let integer = schema.get("type").is_some_and(|kind| kind == "integer")
                || schema.get("x-kubernetes-int-or-string").is_some();
            if integer
                && let Some(float) = number.as_f64()
                && number.is_f64()
                && float.fract() == 0.0
                && float.abs() < 1e15
            {
                *number = Number::from(float as i64);
            }
        }
        _ => {}
    }
}
