//! Manifests from text: several documents in one file, each an object of
//! Kubernetes, each value with its line and column.
//!
//! [`load`] splits the text, so that a broken document takes no other with it,
//! and reads each one with serde and once more for positions. [`decode`] makes
//! a typed object of what was loaded, or says where it is wrong. [`check`] is
//! both, for people who want a verdict.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize as _;
use serde_json::Value;

mod decode;
mod positions;

pub use decode::{Typed, decode};
pub use positions::Position;

use positions::Positions;

/// Bytes that one file may have. Kubernetes itself stores no object above
/// 1.5 MiB.
pub const MAX_FILE_BYTES: u64 = 1 << 20;
/// Objects that one file may hold.
pub const MAX_OBJECTS: usize = 2_000;
/// Findings that are kept for one file; a person reads the first few.
const MAX_FINDINGS: usize = 100;

/// The namespace of an object that names none.
pub const DEFAULT_NAMESPACE: &str = "default";

/// Which kind of object; only these are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `weir.dev/v1alpha1` ResiliencePolicy.
    ResiliencePolicy,
    /// `weir.dev/v1alpha1` CircuitBreaker.
    CircuitBreaker,
    /// `v1` Service.
    Service,
    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice,
}

impl Kind {
    /// As it is written in a manifest.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::ResiliencePolicy => "ResiliencePolicy",
            Kind::CircuitBreaker => "CircuitBreaker",
            Kind::Service => "Service",
            Kind::EndpointSlice => "EndpointSlice",
        }
    }

    /// The `apiVersion` that it is served in.
    pub fn api_version(self) -> &'static str {
        match self {
            Kind::ResiliencePolicy | Kind::CircuitBreaker => "weir.dev/v1alpha1",
            Kind::Service => "v1",
            Kind::EndpointSlice => "discovery.k8s.io/v1",
        }
    }

    fn named(kind: &str) -> Option<Kind> {
        [
            Kind::ResiliencePolicy,
            Kind::CircuitBreaker,
            Kind::Service,
            Kind::EndpointSlice,
        ]
        .into_iter()
        .find(|known| known.as_str() == kind)
    }
}

/// Names one object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind.as_str(), self.namespace, self.name)
    }
}

/// Something wrong in a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Line of the offending value.
    pub line: usize,
    /// Its column.
    pub column: usize,
    /// The object that it is in, where that can be told.
    pub object: Option<ObjectId>,
    /// Path of the value in the object, `spec.retries.attempts`; empty where
    /// the finding is about the whole.
    pub path: String,
    /// What is wrong, and what to write instead.
    pub message: String,
}

impl fmt::Display for Finding {
    /// `12:5: ResiliencePolicy shop/payments: spec.retries.attempts: …`; put
    /// the file and a colon before it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: ", self.line, self.column)?;
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

/// One object as it was written.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// Which object.
    pub id: ObjectId,
    /// All that was written, with `metadata.namespace` filled in.
    pub value: Value,
    positions: Arc<Positions>,
    /// Path of the object within its document: `items[3]` in a List.
    within: String,
    /// Where its document begins.
    start: Position,
}

impl Manifest {
    /// Where the value at `path` (`spec.routes[0].name`) was written, or the
    /// deepest part of the path that was.
    pub fn position(&self, path: &str) -> Position {
        let separator = if self.within.is_empty() || path.is_empty() {
            ""
        } else {
            "."
        };
        self.positions
            .find(&format!("{}{separator}{path}", self.within))
            .unwrap_or(self.start)
    }

    /// A finding about the value at `path`.
    pub fn finding(&self, path: impl Into<String>, message: impl Into<String>) -> Finding {
        let path = path.into();
        let Position { line, column } = self.position(&path);
        Finding {
            line,
            column,
            object: Some(self.id.clone()),
            path,
            message: message.into(),
        }
    }
}

/// What a text holds.
#[derive(Debug, Default)]
pub struct Loaded {
    /// The objects, in the order of the text, each id once.
    pub manifests: Vec<Manifest>,
    /// What is wrong before any schema is asked.
    pub findings: Vec<Finding>,
    /// Objects of kinds that are not read: "ConfigMap default/x".
    pub ignored: Vec<String>,
    /// True where some document could not be told to be an object, so that an
    /// object missing here may only be unreadable.
    pub unreadable: bool,
}

impl Loaded {
    /// Whether the text says nothing at all.
    pub fn is_empty(&self) -> bool {
        self.manifests.is_empty() && self.findings.is_empty() && self.ignored.is_empty()
    }

    fn report(&mut self, finding: Finding) {
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(finding);
        }
    }
}

/// Everything that is wrong with `text`, read from `path`, in its order. Empty:
/// an API server would take it.
pub fn check(path: &Path, text: &str) -> Vec<Finding> {
    if text.len() as u64 > MAX_FILE_BYTES {
        return vec![too_large(path, text.len() as u64)];
    }
    let loaded = load(text);
    let mut findings = loaded.findings;
    for manifest in &loaded.manifests {
        if let Err(wrong) = decode(manifest) {
            findings.extend(wrong);
        }
    }
    findings.sort_by_key(|finding| (finding.line, finding.column));
    findings
}

/// The finding about a file that is too large to be read.
pub(super) fn too_large(path: &Path, bytes: u64) -> Finding {
    whole_file(format!(
        "{} has {bytes} bytes; a file may have {MAX_FILE_BYTES}: split it into several",
        path.file_name().unwrap_or(path.as_os_str()).display()
    ))
}

/// A finding about a file as a whole.
pub(super) fn whole_file(message: String) -> Finding {
    Finding {
        line: 1,
        column: 1,
        object: None,
        path: String::new(),
        message,
    }
}

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
                document.take(value, String::new(), &mut loaded);
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
fn documents(text: &str) -> Vec<(usize, &str)> {
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
    fn take(&self, value: Value, within: String, loaded: &mut Loaded) {
        match self.object(value, &within) {
            Ok(Taken::Object(manifest)) => {
                if loaded.manifests.len() == MAX_OBJECTS {
                    loaded.unreadable = true;
                    loaded.report(self.finding(
                        &within,
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
                    self.take(item, format!("items[{index}]"), loaded);
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
        if let Err(message) = dns_name(&name, known != Kind::Service) {
            return wrong("metadata.name", &format!("name {name:?}: {message}"));
        }
        let namespace = match &value["metadata"]["namespace"] {
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
        value["metadata"]["namespace"] = namespace.clone().into();
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
fn dns_name(name: &str, dots: bool) -> Result<(), String> {
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

#[cfg(test)]
mod tests;
