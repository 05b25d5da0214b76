//! Weir's Kubernetes kinds as Rust types, their schema, and its rules.
//!
//! - [`v1alpha1`]: the types. Their doc comments are the reference manual.
//! - [`crd`]: the CustomResourceDefinitions made from them; `crds/*.yaml` is
//!   their output, and a test fails when it is stale.
//! - [`validate`]: what the API server would say to an object, without one.
//! - [`columns`]: what `kubectl get` shows of an object.

pub mod columns;
pub mod crd;
pub mod v1alpha1;
pub mod validate;

pub use crd::Kind;
