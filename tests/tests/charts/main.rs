//! The Helm charts: what they ask of a cluster, what they refuse, what becomes of a cluster that has them, and what
//! each of their ServiceAccounts may do there.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may"
)]

mod installed;
mod rendered;
mod rights;

use std::path::{Path, PathBuf};

use serde::Deserialize as _;
use serde_json::Value;

/// Where people install Weir.
const NAMESPACE: &str = "weir-system";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A file of the checkout.
fn path(within: &str) -> String {
    root().join(within).display().to_string()
}

/// The objects that stand in a text.
fn objects(yaml: &str) -> Vec<Value> {
    let documents = serde_yaml::Deserializer::from_str(yaml);
    let objects = documents.map(|document| Value::deserialize(document).unwrap());
    objects.filter(|object| !object.is_null()).collect()
}
