//! What every Kubernetes object has: `apiVersion`, `kind`, `metadata`.

use std::sync::LazyLock;

use regex::Regex;
use serde_json::Value;

use super::nearest::nearest;
use super::{Problems, shown};
use crate::Kind;
use crate::crd::API_VERSION;

const FIELDS: [&str; 15] = [
    "annotations",
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "finalizers",
    "generateName",
    "generation",
    "labels",
    "managedFields",
    "name",
    "namespace",
    "ownerReferences",
    "resourceVersion",
    "selfLink",
    "uid",
];

/// All annotations of an object together, in bytes.
const MAX_ANNOTATIONS: usize = 256 << 10;

pub(super) fn check(kind: Kind, object: &Value, problems: &mut Problems) {
    let Some(object) = object.as_object() else {
        let message = format!(
            "{} is not a Kubernetes object: write apiVersion, kind, metadata and spec",
            shown(object)
        );
        return problems.add_broken("", message);
    };
    for (field, expected) in [("apiVersion", API_VERSION), ("kind", kind.as_str())] {
        match object.get(field) {
            Some(Value::String(written)) if written == expected => {}
            Some(written) => problems.add(
                field,
                format!("{} is not {expected}: write {expected}", shown(written)),
            ),
            None => problems.add(field, format!("is missing: write {expected}")),
        }
    }
    let metadata = match object.get("metadata") {
        Some(Value::Object(metadata)) => metadata,
        Some(written) if !written.is_null() => {
            return problems.add(
                "metadata",
                format!(
                    "{} is not an object: write name: and a name in it",
                    shown(written)
                ),
            );
        }
        _ => {
            return problems.add(
                "metadata.name",
                "is missing: give the object a name".to_owned(),
            );
        }
    };
    for field in metadata.keys() {
        if !FIELDS.contains(&field.as_str()) {
            let path = format!("metadata.{field}");
            match nearest(field, FIELDS) {
                Some(known) => problems.add(&path, format!("unknown field: did you mean {known}?")),
                None => problems.add(
                    &path,
                    "unknown field: labels and annotations take names of your own".to_owned(),
                ),
            }
        }
    }

    let text = |field: &str| metadata.get(field).filter(|value| !value.is_null());
    match (text("name"), text("generateName")) {
        (Some(name), _) => name_is("metadata.name", name, &SUBDOMAIN, problems),
        // The API server adds five characters to it.
        (None, Some(Value::String(prefix))) if !prefix.is_empty() => {
            let name = Value::String(format!("{prefix}aaaaa"));
            name_is("metadata.generateName", &name, &SUBDOMAIN, problems);
        }
        (None, _) => problems.add(
            "metadata.name",
            "is missing: give the object a name".to_owned(),
        ),
    }
    if let Some(namespace) = text("namespace") {
        name_is("metadata.namespace", namespace, &LABEL, problems);
    }
    if let Some(labels) = text("labels") {
        map_is("metadata.labels", labels, Some(&LABEL_VALUE), problems);
    }
    if let Some(annotations) = text("annotations") {
        map_is("metadata.annotations", annotations, None, problems);
    }
}

/// A form that names have.
struct Form {
    pattern: LazyLock<Option<Regex>>,
    max: usize,
    words: &'static str,
}

static SUBDOMAIN: Form = Form {
    pattern: LazyLock::new(|| {
        Regex::new(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$").ok()
    }),
    max: 253,
    words: "write lower-case letters, digits, - and ., with a letter or digit at both ends and around each dot",
};

static LABEL: Form = Form {
    pattern: LazyLock::new(|| Regex::new(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$").ok()),
    max: 63,
    words: "write lower-case letters, digits and -, with a letter or digit at both ends",
};

static LABEL_VALUE: Form = Form {
    pattern: LazyLock::new(|| Regex::new(r"^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$").ok()),
    max: 63,
    words: "write letters, digits, -, _ and ., with a letter or digit at both ends",
};

impl Form {
    fn fits(&self, name: &str) -> bool {
        name.len() <= self.max
            && self
                .pattern
                .as_ref()
                .is_none_or(|pattern| pattern.is_match(name))
    }
}

fn name_is(path: &str, value: &Value, form: &Form, problems: &mut Problems) {
    match value {
        Value::String(name) if form.fits(name) => {}
        Value::String(name) if name.len() > form.max => {
            problems.add(
                path,
                format!(
                    "{} has more than {} characters: shorten it",
                    shown(value),
                    form.max
                ),
            );
        }
        _ => problems.add(
            path,
            format!("{} is not a name: {}", shown(value), form.words),
        ),
    }
}

fn map_is(path: &str, map: &Value, values: Option<&Form>, problems: &mut Problems) {
    let Some(map) = map.as_object() else {
        return problems.add(
            path,
            format!("{} is not a map: write key: value", shown(map)),
        );
    };
    let mut size = 0;
    for (key, value) in map {
        let path = format!("{path}.{key}");
        // The API server asks nothing of the case of an annotation's key.
        let folded = if values.is_none() {
            key.to_lowercase()
        } else {
            key.clone()
        };
        let (prefix, name) = folded
            .rsplit_once('/')
            .map_or((None, folded.as_str()), |(prefix, name)| {
                (Some(prefix), name)
            });
        if name.is_empty()
            || !LABEL_VALUE.fits(name)
            || prefix.is_some_and(|prefix| !SUBDOMAIN.fits(prefix))
        {
            problems.add(
                &path,
                "is not a key: write name or example.com/name".to_owned(),
            );
        }
        match (value, values) {
            (Value::String(text), Some(form)) if !form.fits(text) => {
                problems.add(
                    &path,
                    format!(
                        "{} is not the value of a label: {}",
                        shown(value),
                        form.words
                    ),
                );
            }
            (Value::String(_), Some(_)) => {}
            (Value::String(text), None) => size += key.len() + text.len(),
            _ => problems.add(
                &path,
                format!("{} is not text: put it in quotes", shown(value)),
            ),
        }
    }
    if size > MAX_ANNOTATIONS {
        problems.add(
            path,
            format!("are {size} bytes together, more than {MAX_ANNOTATIONS}: remove some"),
        );
    }
}
