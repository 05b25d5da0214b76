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

use serde_json::Value;

mod decode;
mod load;
mod positions;

pub use decode::{Typed, decode};
pub use load::load;
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
    /// `v1` Namespace; only its labels are read.
    Namespace,
}

impl Kind {
    /// As it is written in a manifest.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::ResiliencePolicy => "ResiliencePolicy",
            Kind::CircuitBreaker => "CircuitBreaker",
            Kind::Service => "Service",
            Kind::EndpointSlice => "EndpointSlice",
            Kind::Namespace => "Namespace",
        }
    }

    /// The `apiVersion` that it is served in.
    pub fn api_version(self) -> &'static str {
        match self {
            Kind::ResiliencePolicy | Kind::CircuitBreaker => "weir.dev/v1alpha1",
            Kind::Service | Kind::Namespace => "v1",
            Kind::EndpointSlice => "discovery.k8s.io/v1",
        }
    }

    fn named(kind: &str) -> Option<Kind> {
        [
            Kind::ResiliencePolicy,
            Kind::CircuitBreaker,
            Kind::Service,
            Kind::EndpointSlice,
            Kind::Namespace,
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
    /// Its namespace; empty for a Namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.kind.as_str();
        match self.kind {
            Kind::Namespace => write!(f, "{kind} {}", self.name),
            _ => write!(f, "{kind} {}/{}", self.namespace, self.name),
        }
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
    /// All that was written, with `metadata.namespace` filled in where there is
    /// one.
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

#[cfg(test)]
mod tests;
