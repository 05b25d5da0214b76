//! From text to objects: documents are told apart, read, and asked what they
//! are.

use std::sync::Arc;

use serde::Deserialize as _;
use serde_json::Value;

use super::positions::Positions;
use super::{DEFAULT_NAMESPACE, Finding, Kind, Loaded, MAX_OBJECTS, Manifest, ObjectId, Position};

/// Reads all documents of `text`.
pub fn load(text: &str) -> Loaded {
    let mut loaded = Loaded::default();
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    for (first_line, document) in documents(text) {
        match read(document, first_line) {
            Ok((value, positions)) => {
                let start = positions.start().unwrap_or(Position {
                    line: first_line,
                    column: 1,
                });
                let document = Document {
                    positions: Arc::new(positions),
                    start,
                };
                document.take(value, "", &mut loaded);
            }
            Err(finding) => {
                loaded.unreadable = true;
                loaded.report(finding);
            }
        }
    }
    loaded
}

/// The documents of a text, each with the number of its first line. A line that
/// begins with `---` ends a document wherever it stands (YAML 1.2, 9.1.2), so
/// lines are enough to tell them apart.
pub(super) fn documents(text: &str) -> Vec<(usize, &str)> {
    let mut documents = Vec::new();
    let mut begin = (1, 0);
    let mut offset = 0;
    for (index, line) in text.split_inclusive('\n').enumerate() {
        let marks = line
            .strip_prefix("---")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']));
        if marks && offset > 0 {
            documents.push((begin.0, &text[begin.1..offset]));
            begin = (index + 1, offset);
        }
        offset += line.len();
    }
    documents.push((begin.0, &text[begin.1..]));
    documents.retain(|(_, document)| document.lines().any(|line| !says_nothing(line)));
    documents
}

fn says_nothing(line: &str) -> bool {
    let line = line.strip_prefix("---").unwrap_or(line).trim();
    line.is_empty() || line == "..." || line.starts_with('#') || line.starts_with('%')
}

fn read(document: &str, first_line: usize) -> Result<(Value, Positions), Finding> {
    let finding = |at: Position, message: String| Finding {
        line: at.line,
        column: at.column,
        object: None,
        path: String::new(),
        message,
    };
    let positions = Positions::read(document, first_line);
    if let Err(error) = &positions
        && error.refused
    {
        return Err(finding(error.at, error.message.clone()));
    }
    let value =
        Value::deserialize(serde_yaml::Deserializer::from_str(document)).map_err(|error| {
            let at = error.location().map_or(
                Position {
                    line: first_line,
                    column: 1,
                },
                |location| Position {
                    line: location.line() + first_line - 1,
                    column: location.column(),
                },
            );
            finding(at, explain(&error.to_string()))
        })?;
    let positions = positions.map_err(|error| finding(error.at, explain(&error.message)))?;
    Ok((value, positions))
}

/// A parser's message without its own (document-relative) place, and with what
/// to write.
fn explain(message: &str) -> String {
    let plain = message.split(" at line ").next().unwrap_or(message);
    let advice = if plain.contains("cannot start any token") {
        "quote the value if it begins with a special character, and indent with spaces, not tabs"
    } else if plain.contains("mapping values are not allowed") {
        "quote a value that holds `: `, or check the indentation of this line"
    } else if plain.contains("did not find expected") || plain.contains("could not find expected") {
        "check the indentation, a missing `:`, or a quote or bracket that is not closed"
    } else if plain.contains("unexpected end") || plain.contains("end of stream") {
        "the file seems to be cut off: write the rest"
    } else if plain.contains("more than one document") {
        "begin each document with a line `---`"
    } else {
        "write it as YAML"
    };
    format!("not valid YAML: {plain}; {advice}")
}

struct Document {
    positions: Arc<Positions>,
    start: Position,
}

impl Document {
    fn at(&self, path: &str) -> Position {
        self.positions.find(path).unwrap_or(self.start)
    }

    fn finding(&self, path: &str, message: String) -> Finding {
        let Position { line, column } = self.at(path);
        Finding {
            line,
            column,
            object: None,
            path: String::new(),
            message,
        }
    }

    /// Takes the object at `within`, or the objects of a List.
    fn take(&self, value: Value, within: &str, loaded: &mut Loaded) {
        match self.object(value, within) {
            Ok(Taken::Object(manifest)) => {
                if loaded.manifests.len() == MAX_OBJECTS {
                    loaded.unreadable = true;
                    loaded.report(self.finding(
                        within,
                        format!("a file may hold {MAX_OBJECTS} objects: split it"),
                    ));
                } else if let Some(first) = loaded
                    .manifests
                    .iter()
                    .find(|other| other.id == manifest.id)
                {
                    let line = first.position("").line;
                    let message = format!(
                        "the same object stands in line {line} of this file, and that one counts: remove one of them"
                    );
                    loaded.report(manifest.finding("", message));
                } else {
                    loaded.manifests.push(*manifest);
                }
            }
            Ok(Taken::Items(items)) => {
                for (index, item) in items.into_iter().enumerate() {
                    self.take(item, &format!("items[{index}]"), loaded);
                }
            }
            Ok(Taken::Ignored(what)) => loaded.ignored.push(what),
            Err(finding) => {
                loaded.unreadable = true;
                loaded.report(finding);
            }
        }
    }

    fn object(&self, mut value: Value, within: &str) -> Result<Taken, Finding> {
        let inside = |path: &str| {
            if within.is_empty() {
                path.to_owned()
            } else {
                format!("{within}.{path}")
            }
        };
        let wrong =
            |path: &str, message: &str| Err(self.finding(&inside(path), message.to_owned()));
        if !value.is_object() {
            return wrong(
                "",
                "not an object of Kubernetes: write `apiVersion:`, `kind:` and `metadata:`",
            );
        }
        let Some(kind) = value["kind"].as_str().map(str::to_owned) else {
            return wrong(
                "kind",
                "which kind of object is this? write `kind: ResiliencePolicy`, for example",
            );
        };
        let Some(api_version) = value["apiVersion"].as_str().map(str::to_owned) else {
            return wrong(
                "apiVersion",
                "write `apiVersion:`, for example `apiVersion: weir.dev/v1alpha1`",
            );
        };
        if within.is_empty() && kind.ends_with("List") && value["items"].is_array() {
            let Value::Array(items) = value["items"].take() else {
                return Ok(Taken::Items(Vec::new()));
            };
            return Ok(Taken::Items(items));
        }
        let known = Kind::named(&kind);
        if known.is_none_or(|known| known.api_version() != api_version) {
            if let Some(known) = known.filter(|known| {
                api_version.starts_with("weir.dev/") || known.api_version().starts_with("weir.dev/")
            }) {
                let message = format!(
                    "{kind} is not served in {api_version}: write `apiVersion: {}`",
                    known.api_version()
                );
                return wrong("apiVersion", &message);
            }
            if api_version.starts_with("weir.dev/") {
                return wrong(
                    "kind",
                    &format!(
                        "weir.dev has no kind {kind}: write ResiliencePolicy or CircuitBreaker"
                    ),
                );
            }
            let name = value["metadata"]["name"]
                .as_str()
                .unwrap_or("without a name");
            return Ok(Taken::Ignored(format!("{kind} {name}")));
        }
        let Some(known) = known else {
            return wrong("kind", "unknown kind");
        };
        let Some(name) = value["metadata"]["name"].as_str().map(str::to_owned) else {
            return wrong(
                "metadata",
                "an object in a file needs a name: write `metadata: {name: …}`",
            );
        };
        if let Err(message) = dns_name(&name, !matches!(known, Kind::Service | Kind::Namespace)) {
            return wrong("metadata.name", &format!("name {name:?}: {message}"));
        }
        let namespace = match &value["metadata"]["namespace"] {
            Value::Null if known == Kind::Namespace => String::new(),
            _ if known == Kind::Namespace => {
                return wrong(
                    "metadata.namespace",
                    "a Namespace is in no namespace: remove this field",
                );
            }
            Value::Null => DEFAULT_NAMESPACE.to_owned(),
            Value::String(namespace) => match dns_name(namespace, false) {
                Ok(()) => namespace.clone(),
                Err(message) => {
                    return wrong(
                        "metadata.namespace",
                        &format!("namespace {namespace:?}: {message}"),
                    );
                }
            },
            _ => return wrong("metadata.namespace", "a namespace is a word: quote it"),
        };
        if !namespace.is_empty() {
            value["metadata"]["namespace"] = namespace.clone().into();
        }
        Ok(Taken::Object(Box::new(Manifest {
            id: ObjectId {
                kind: known,
                namespace,
                name,
            },
            value,
            positions: Arc::clone(&self.positions),
            within: within.to_owned(),
            start: self.start,
        })))
    }
}

enum Taken {
    Object(Box<Manifest>),
    Items(Vec<Value>),
    Ignored(String),
}

/// RFC 1123: a label, or with `dots` several of them.
pub(super) fn dns_name(name: &str, dots: bool) -> Result<(), String> {
    let (limit, what) = if dots { (253, ", and `.`") } else { (63, "") };
    let edges = |part: &str| !part.is_empty() && !part.starts_with('-') && !part.ends_with('-');
    let letters = name
        .bytes()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || (dots && b == b'.'));
    if letters && name.len() <= limit && name.split('.').all(edges) {
        return Ok(());
    }
    Err(format!(
        "write lower-case letters, digits and `-`{what}, beginning and ending with a letter or digit, at most {limit}"
    ))
}
