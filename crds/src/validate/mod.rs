//! The API server's verdict on an object, without an API server.
//!
//! An object passes through the same steps, in the same order:
//! 1. `metadata`: `apiVersion`, `kind`, names;
//! 2. `normal`: nulls are dropped and defaults filled in;
//! 3. `structure`: types, unknown fields (which kubectl's strict validation
//!    reports), required fields, ranges, lengths, patterns, lists;
//! 4. `rules`: the CEL rules, on every part whose structure is right.
//!
//! Every problem is told, not only the first, and each says what to write
//! instead. Nothing here looks at other objects or at the clock.

mod metadata;
mod nearest;
mod normal;
mod rules;
mod structure;
mod words;

use std::fmt;

use serde_json::Value;

use crate::Kind;

/// What is wrong with one field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Which field: `spec.retries.attempts`, `spec.routes[0].name`; empty for
    /// the object itself.
    pub path: String,
    /// What is wrong with it, and what to write instead.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            f.write_str(&self.message)
        } else {
            write!(f, "{}: {}", self.path, self.message)
        }
    }
}

/// As many problems as one object is told about; a last one says that there are
/// more.
pub const MAX_PROBLEMS: usize = 100;

/// The object as the API server would store it, with every default filled in,
/// or all that is wrong with it. What comes back can always be read into the
/// types of [`crate::v1alpha1`].
///
/// # Errors
/// At least one [`Problem`], at most [`MAX_PROBLEMS`] and one more.
pub fn validate(kind: Kind, object: &Value) -> Result<Value, Vec<Problem>> {
    let mut problems = Problems::default();
    metadata::check(kind, object, &mut problems);

    let mut object = object.clone();
    normal::fill_in(&mut object, kind.schema());
    structure::check(&object, kind.schema(), &mut problems);
    rules::check(kind, &object, &mut problems);

    if problems.list.is_empty() {
        Ok(object)
    } else {
        Err(problems.list)
    }
}

/// Collects problems up to the bound, and knows where the structure is wrong.
#[derive(Default)]
struct Problems {
    list: Vec<Problem>,
    broken: Vec<String>,
}

impl Problems {
    /// A problem that leaves the structure as it should be.
    fn add(&mut self, path: &str, message: String) {
        if self.list.len() < MAX_PROBLEMS {
            self.list.push(Problem {
                path: path.to_owned(),
                message,
            });
        } else if self.list.len() == MAX_PROBLEMS {
            self.list.push(Problem {
                path: String::new(),
                message: format!("this object has more than {MAX_PROBLEMS} problems: correct these, then check again"),
            });
        }
    }

    /// A problem with which rules about this field, or what holds it, mean
    /// nothing.
    fn add_broken(&mut self, path: &str, message: String) {
        if self.list.len() < MAX_PROBLEMS {
            self.broken.push(path.to_owned());
        }
        self.add(path, message);
    }

    /// Whether nothing more will be told: looking on would be for nothing.
    fn full(&self) -> bool {
        self.list.len() > MAX_PROBLEMS
    }

    /// Whether the structure of `path` and all that it holds is right.
    fn whole(&self, path: &str) -> bool {
        !self.broken.iter().any(|broken| is_within(broken, path))
    }
}

/// Whether `path` is `holder` or a part of it.
fn is_within(path: &str, holder: &str) -> bool {
    path.strip_prefix(holder)
        .is_some_and(|rest| holder.is_empty() || rest.is_empty() || rest.starts_with(['.', '[']))
}

/// The path of a field of what is at `path`.
fn child(path: &str, field: &str) -> String {
    if path.is_empty() {
        field.to_owned()
    } else {
        format!("{path}.{field}")
    }
}

/// What was written, short enough for a message.
fn shown(value: &Value) -> String {
    const MOST: usize = 60;
    let text = match value {
        Value::Object(_) => return "an object".to_owned(),
        Value::Array(_) => return "a list".to_owned(),
        Value::Null => return "nothing (null)".to_owned(),
        value => value.to_string(),
    };
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
