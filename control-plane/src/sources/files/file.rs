//! One file: its last good objects, and what is wrong with it now.

use std::sync::Arc;

use serde_json::Value;
use tokio::time::Instant;

use super::listing::Stamp;
use crate::sources::manifest::{self, Finding, ObjectId, Typed, whole_file};

/// An object in its last good version.
#[derive(Clone, Debug)]
pub(super) struct Good {
    pub(super) id: ObjectId,
    pub(super) typed: Typed,
    /// Hash of its spec.
    pub(super) spec: u64,
    pub(super) line: usize,
    /// What is wrong with a newer version.
    pub(super) problem: Option<Finding>,
}

/// An object without a good version.
#[derive(Clone, Debug)]
pub(super) struct Bad {
    pub(super) id: ObjectId,
    pub(super) written: Value,
    pub(super) problem: Finding,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct FileState {
    pub(super) stamp: Option<Stamp>,
    pub(super) good: Vec<Good>,
    pub(super) bad: Vec<Bad>,
    pub(super) findings: Vec<Finding>,
    pub(super) ignored: Vec<String>,
    /// Some of it cannot be told to be an object.
    pub(super) unreadable: bool,
    /// Since when it is gone.
    pub(super) gone: Option<Instant>,
}

impl FileState {
    /// Takes in what was read. What cannot be told to be removed stays.
    pub(super) fn take(&mut self, text: Result<String, Finding>) {
        let text = match text {
            Ok(text) => text,
            Err(finding) => return self.keep_all(finding),
        };
        let loaded = manifest::load(&text);
        if loaded.is_empty() && !self.good.is_empty() {
            return self.keep_all(whole_file(
                "holds nothing: write its objects again, or remove the file".to_owned(),
            ));
        }
        let before = std::mem::take(&mut self.good);
        self.unreadable = loaded.unreadable;
        self.bad.clear();
        self.findings = loaded.findings;
        self.ignored = loaded.ignored;
        for manifest in &loaded.manifests {
            let (id, line) = (manifest.id.clone(), manifest.position("").line);
            match manifest::decode(manifest) {
                Ok(typed) => {
                    let spec = spec_hash(&manifest.value);
                    self.good.push(Good {
                        id,
                        typed,
                        spec,
                        line,
                        problem: None,
                    });
                }
                Err(findings) => {
                    let problem = first(&findings);
                    match before.iter().find(|good| good.id == id) {
                        Some(last) => self.good.push(Good {
                            problem: Some(problem),
                            ..last.clone()
                        }),
                        None => self.bad.push(Bad {
                            id,
                            written: manifest.value.clone(),
                            problem,
                        }),
                    }
                    self.findings.extend(findings);
                }
            }
        }
        if loaded.unreadable {
            let problem = first(&self.findings);
            for last in before {
                let named = self.good.iter().any(|good| good.id == last.id);
                if !named {
                    self.good.push(Good {
                        problem: Some(problem.clone()),
                        ..last
                    });
                }
            }
        }
        self.findings
            .sort_by_key(|finding| (finding.line, finding.column));
    }

    fn keep_all(&mut self, finding: Finding) {
        self.unreadable = true;
        for good in &mut self.good {
            good.problem = Some(finding.clone());
        }
        self.findings = vec![finding];
    }
}

fn first(findings: &[Finding]) -> Finding {
    findings
        .first()
        .cloned()
        .unwrap_or_else(|| whole_file("cannot be used".to_owned()))
}

/// Kubernetes counts a new generation when the spec changes, and so do we.
/// Kinds without a spec are taken whole.
fn spec_hash(value: &Value) -> u64 {
    let of = value.get("spec").unwrap_or(value);
    xxhash_rust::xxh3::xxh3_64(of.to_string().as_bytes())
}

/// Where an object stands, "shop.yaml:14".
pub(super) fn origin(path: &std::path::Path, line: usize) -> Arc<str> {
    format!("{}:{line}", path.display()).into()
}
