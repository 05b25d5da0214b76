//! Policies and breakers as somebody may write them who knows the schema and is careless: a good one, changed here and
//! there.

use fastrand::Rng;
use serde_json::{Value, json};
use weir_crds::Kind;

use crate::support::policy;
use crate::support::table::table;
use crate::texts;

/// Values that are right in one place and wrong in most.
fn strangers() -> Vec<Value> {
    let numbers = [json!(0), json!(-1), json!(2.5), json!(3.0), json!(1e300)];
    let large = [json!(i64::MIN), json!(i64::MAX), json!(u64::MAX)];
    let others = [
        json!(null),
        json!(true),
        json!([]),
        json!({}),
        json!([null]),
        json!([[]]),
        json!({ "": null }),
        json!({ "max": 5 }),
    ];
    let texts = texts::ALL.concat();
    let texts = texts.into_iter().map(Value::from);
    numbers
        .into_iter()
        .chain(large)
        .chain(others)
        .chain(texts)
        .collect()
}

/// Writes objects, always the same ones from the same seed.
pub(crate) struct Author {
    rng: Rng,
    good: Vec<Value>,
    strangers: Vec<Value>,
}

/// Something in an object: where, and the schema of it.
struct Place {
    pointer: String,
    schema: &'static Value,
}

impl Author {
    pub(crate) fn new(seed: u64) -> Author {
        Author {
            rng: Rng::with_seed(seed),
            good: table().0,
            strangers: strangers(),
        }
    }

    /// A policy that was changed in one to three places.
    pub(crate) fn policy(&mut self) -> Value {
        let mut object = policy(&self.one_of_the_good());
        // Sections of others beside its own, so that there is more to change.
        for _ in 0..self.rng.usize(0..3) {
            let more = self.one_of_the_good();
            for (section, value) in more.as_object().into_iter().flatten() {
                if section != "targetRefs" {
                    object["spec"][section] = value.clone();
                }
            }
        }
        self.changed(Kind::ResiliencePolicy, object)
    }

    /// A breaker that was changed in one to three places.
    pub(crate) fn breaker(&mut self) -> Value {
        let object = json!({
            "apiVersion": "weir.dev/v1alpha1",
            "kind": "CircuitBreaker",
            "metadata": { "name": "payments", "namespace": "shop" },
            "spec": {
                "override": { "state": "Open", "reason": "drill", "expiresAt": "2026-05-01T12:00:00+02:00" },
                "reset": "2026-05-01",
            },
        });
        self.changed(Kind::CircuitBreaker, object)
    }

    fn one_of_the_good(&mut self) -> Value {
        let which = self.rng.usize(0..self.good.len());
        self.good[which].clone()
    }

    fn changed(&mut self, kind: Kind, mut object: Value) -> Value {
        for _ in 0..self.rng.usize(1..3) {
            let mut places = Vec::new();
            let schema = &kind.schema()["properties"]["spec"];
            find_places(&object["spec"], schema, "/spec".to_owned(), &mut places);
            if self.rng.u8(0..12) == 0 {
                self.change_metadata(&mut object);
            } else if let Some(place) = self.rng.choice(places) {
                self.change(&mut object, &place);
            }
        }
        object
    }

    fn change(&mut self, object: &mut Value, place: &Place) {
        let Some(value) = object.pointer_mut(&place.pointer) else {
            return;
        };
        match self.rng.u8(0..16) {
            0 => remove(object, &place.pointer),
            1 => *value = Value::Null,
            2 => *value = self.stranger(),
            3 => self.swap(value),
            4..10 => *value = self.at_the_edge(place.schema, value),
            _ if place.schema["properties"].is_object() => self.add(value, place.schema),
            _ => *value = self.sample(place.schema),
        }
    }

    fn stranger(&mut self) -> Value {
        let which = self.rng.usize(0..self.strangers.len());
        self.strangers[which].clone()
    }

    /// Two values change places.
    fn swap(&mut self, holder: &mut Value) {
        let mut values: Vec<&mut Value> = match holder {
            Value::Object(fields) => fields.values_mut().collect(),
            Value::Array(items) => items.iter_mut().collect(),
            _ => return,
        };
        self.rng.shuffle(&mut values);
        if let [first, second, ..] = values.as_mut_slice() {
            std::mem::swap(*first, *second);
        }
    }

    /// A field more: mostly one that the schema knows.
    fn add(&mut self, object: &mut Value, schema: &Value) {
        let Some(fields) = object.as_object_mut() else {
            return;
        };
        let Some((name, schema)) = schema["properties"]
            .as_object()
            .and_then(|known| self.rng.choice(known))
        else {
            return;
        };
        if self.rng.u8(0..8) == 0 {
            let misspelt = [format!("{name}s"), name.to_uppercase(), String::new()];
            let name = self.rng.choice(misspelt).unwrap_or_default();
            fields.insert(name, self.stranger());
        } else {
            let value = self.sample(schema);
            fields.insert(name.clone(), value);
        }
    }

    /// Just within what a schema allows, or just beyond it.
    fn at_the_edge(&mut self, schema: &Value, now: &Value) -> Value {
        if schema["type"] == "integer" || schema["x-kubernetes-int-or-string"] == true {
            let (min, max) = range(schema);
            let near = [min - 1, min, min + 1, max - 1, max, max.saturating_add(1)];
            let number = self.rng.choice(near).unwrap_or_default();
            return match self.rng.u8(0..8) {
                0 => json!(number as f64),
                1 => json!(number as f64 + 0.5),
                2 => json!(number.to_string()),
                3 => self.text(schema).into(),
                _ => json!(number),
            };
        }
        match schema["type"].as_str() {
            Some("string") if schema["enum"].is_array() => {
                let word = now.as_str().unwrap_or_default();
                let wrong = [word.to_lowercase(), format!("{word} "), String::new()];
                match self.rng.choice(wrong) {
                    Some(wrong) if self.rng.bool() => wrong.into(),
                    _ => self.sample(schema),
                }
            }
            Some("string") => {
                let max = usize::try_from(schema["maxLength"].as_u64().unwrap_or(64)).unwrap_or(64);
                let text = now.as_str().unwrap_or_default();
                let near = [
                    String::new(),
                    "a".repeat(max),
                    "a".repeat(max + 1),
                    "é".repeat(max),
                    "/".to_owned() + &"a".repeat(max - 1),
                    format!("{text}\n"),
                    format!(" {text}"),
                    text.to_uppercase(),
                    text.repeat(2),
                ];
                self.rng.choice(near).unwrap_or_default().into()
            }
            Some("array") => {
                let max = usize::try_from(schema["maxItems"].as_u64().unwrap_or(8)).unwrap_or(8);
                let count = self.rng.choice([0, 1, 2, max, max + 1]).unwrap_or_default();
                let mut items = now.as_array().cloned().unwrap_or_default();
                while items.len() < count {
                    items.push(self.sample(&schema["items"]));
                }
                if self.rng.bool() {
                    items.truncate(count);
                } else if let Some(item) = items.first().cloned() {
                    items.push(item);
                }
                items.into()
            }
            Some("boolean") => self
                .rng
                .choice([json!("true"), json!(1), json!(true)])
                .into(),
            _ => json!({}),
        }
    }

    /// What the schema asks for by itself, though rules may refuse it.
    fn sample(&mut self, schema: &Value) -> Value {
        if let Some(default) = schema.get("default")
            && self.rng.u8(0..4) == 0
        {
            return default.clone();
        }
        if schema["x-kubernetes-int-or-string"] == true && self.rng.bool() {
            return self.text(schema).into();
        }
        match schema["type"].as_str() {
            Some("integer") | None => {
                let (min, max) = range(schema);
                let near = [
                    min,
                    max,
                    self.rng.i64(min..=max),
                    self.rng.i64(min..=max.min(min.saturating_add(100))),
                ];
                self.rng.choice(near).into()
            }
            Some("string") => match schema["enum"].as_array() {
                Some(words) => self.rng.choice(words).cloned().into(),
                None => self.text(schema).into(),
            },
            Some("boolean") => self.rng.bool().into(),
            Some("array") => {
                let max = schema["maxItems"].as_u64().unwrap_or(3).min(3);
                let items = (0..self.rng.u64(0..=max)).map(|_| self.sample(&schema["items"]));
                items.collect::<Vec<_>>().into()
            }
            _ => {
                let mut object = json!({});
                let required = schema["required"].as_array().into_iter().flatten();
                let required: Vec<&str> = required.filter_map(Value::as_str).collect();
                for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
                    if required.contains(&name.as_str()) || self.rng.u8(0..3) == 0 {
                        object[name] = self.sample(schema);
                    }
                }
                object
            }
        }
    }

    /// A text of the kind that belongs where this schema is.
    fn text(&mut self, schema: &Value) -> &'static str {
        self.rng
            .choice(texts::like(schema))
            .copied()
            .unwrap_or_default()
    }

    fn change_metadata(&mut self, object: &mut Value) {
        let metadata = &mut object["metadata"];
        let text = self
            .rng
            .choice(texts::METADATA)
            .copied()
            .unwrap_or_default();
        match self.rng.u8(0..5) {
            0 => metadata["name"] = text.into(),
            1 => metadata["labels"] = json!({ text: "x" }),
            2 => metadata["labels"] = json!({ "x": text }),
            3 => metadata["annotations"] = json!({ text: "x" }),
            _ => {
                let field = [
                    "labels",
                    "annotations",
                    "finalizers",
                    "generation",
                    "colour",
                ];
                let field = self.rng.choice(field).unwrap_or_default();
                metadata[field] = self.stranger();
            }
        }
    }
}

/// The range of whole numbers that a schema allows.
fn range(schema: &Value) -> (i64, i64) {
    let limit = |keyword: &str| schema[keyword].as_i64();
    (
        limit("minimum").unwrap_or(0),
        limit("maximum").unwrap_or(i64::MAX),
    )
}

/// All that an object holds at and below `pointer`.
fn find_places(value: &Value, schema: &'static Value, pointer: String, found: &mut Vec<Place>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                if let Some(schema) = schema["properties"].get(name) {
                    find_places(value, schema, format!("{pointer}/{name}"), found);
                }
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                find_places(item, &schema["items"], format!("{pointer}/{index}"), found);
            }
        }
        _ => {}
    }
    if !schema.is_null() {
        found.push(Place { pointer, schema });
    }
}

/// Takes away what is at a pointer.
pub(crate) fn remove(object: &mut Value, pointer: &str) {
    let Some((holder, last)) = pointer.rsplit_once('/') else {
        return;
    };
    match object.pointer_mut(holder) {
        Some(Value::Object(fields)) => drop(fields.shift_remove(last)),
        Some(Value::Array(items)) => {
            if let Some(index) = last.parse().ok().filter(|index| *index < items.len()) {
                items.remove(index);
            }
        }
        _ => {}
    }
}
