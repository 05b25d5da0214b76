//! The two CustomResourceDefinitions, made from the Rust types.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use kube::CustomResourceExt;
use serde_json::{Map, Value, json};

use crate::v1alpha1::{CircuitBreakerObject, ResiliencePolicy};

/// Weir's kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// What Weir does for the calls to a destination.
    ResiliencePolicy,
    /// One circuit breaker, to be watched and overridden.
    CircuitBreaker,
}

/// API group of all kinds.
pub const GROUP: &str = "weir.dev";
/// `apiVersion` of all kinds.
pub const API_VERSION: &str = "weir.dev/v1alpha1";

/// Which schema this is: it grows by one with each released change of what the
/// API server accepts, keeps or prints. Rewording changes nothing.
///
/// A schema only ever gains, so a program works with definitions of its own
/// revision and of any later one; with older ones the API server would drop
/// fields without a word.
pub const SCHEMA_REVISION: u32 = 1;
/// The annotation of a CustomResourceDefinition that holds its
/// [`SCHEMA_REVISION`], in decimal; read by [`schema_revision`].
pub const SCHEMA_REVISION_ANNOTATION: &str = "weir.dev/schema-revision";
/// What brings a cluster's definitions up to date, from a checkout.
pub const INSTALL_COMMAND: &str =
    "helm upgrade --install weir-crds charts/weir-crds --namespace weir-system --create-namespace";

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 2] = [Kind::ResiliencePolicy, Kind::CircuitBreaker];

    /// As `kind` says it in a manifest.
    pub const fn as_str(self) -> &'static str {
        match self {
            Kind::ResiliencePolicy => "ResiliencePolicy",
            Kind::CircuitBreaker => "CircuitBreaker",
        }
    }

    /// The kind of that name, where it is one of Weir's.
    pub fn from_name(name: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.as_str() == name)
    }

    /// As in `kubectl get`.
    pub const fn plural(self) -> &'static str {
        match self {
            Kind::ResiliencePolicy => "resiliencepolicies",
            Kind::CircuitBreaker => "circuitbreakers",
        }
    }

    /// Name of the generated file in `crds/`.
    pub fn file_name(self) -> String {
        format!("{GROUP}_{}.yaml", self.plural())
    }

    /// The CustomResourceDefinition, as it is applied to a cluster.
    pub fn crd(self) -> &'static Value {
        static POLICY: LazyLock<Value> = LazyLock::new(|| finished(ResiliencePolicy::crd()));
        static BREAKER: LazyLock<Value> = LazyLock::new(|| finished(CircuitBreakerObject::crd()));
        match self {
            Kind::ResiliencePolicy => &POLICY,
            Kind::CircuitBreaker => &BREAKER,
        }
    }

    /// The schema of its objects (OpenAPI v3, structural).
    pub fn schema(self) -> &'static Value {
        &self.crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The revision of a definition with these annotations; 0 where they name none,
/// which is older than all.
pub fn schema_revision(annotations: &BTreeMap<String, String>) -> u32 {
    let named = annotations.get(SCHEMA_REVISION_ANNOTATION);
    named.and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// What the derives leave to be done.
#[allow(clippy::needless_pass_by_value, reason = "the caller is done with it")]
fn finished(crd: impl serde::Serialize) -> Value {
    let mut crd = json!(crd);
    crd["metadata"]["annotations"] =
        json!({SCHEMA_REVISION_ANNOTATION: SCHEMA_REVISION.to_string()});
    if let Some(schema) = crd.pointer_mut("/spec/versions/0/schema/openAPIV3Schema") {
        tidy(schema);
        // Weir creates CircuitBreakers and leaves `spec` to people: an object
        // without it is whole. A policy without `spec` is refused for what it lacks.
        if let Some(spec) = schema
            .pointer_mut("/properties/spec")
            .filter(|spec| spec.get("required").is_none())
        {
            spec["default"] = json!({});
            if let Some(schema) = schema.as_object_mut() {
                schema.remove("required");
            }
        }
    }
    crd
}

/// Makes a derived schema fit for people and for the API server:
/// - paragraphs of descriptions on one line, `kubectl explain` breaks them itself;
/// - no `nullable`: null is then the same as absent, and rules need not ask;
/// - keys in order, so that a change of the types changes nothing else;
/// - the range of numbers instead of their `format`: the API server does not know
///   the unsigned ones;
/// - defaults in words: `kubectl explain` does not show them otherwise;
/// - no description of the items of a list beside that of the list: `kubectl
///   explain` prints one after the other, and they say the same;
fn tidy(schema: &mut Value) {
    let Some(schema) = schema.as_object_mut() else {
        return;
    };
    schema.remove("nullable");
    if let Some(words) = schema.get_mut("enum").and_then(Value::as_array_mut) {
        words.retain(|word| !word.is_null());
    }
    if let Some(Value::String(description)) = schema.get_mut("description") {
        *description = paragraphs(description);
    }
    describe_default(schema);
    if schema.get("type").is_some_and(|kind| kind == "integer") {
        if schema
            .remove("format")
            .is_some_and(|format| format == "uint32")
        {
            schema.entry("maximum").or_insert(u32::MAX.into());
        }
        whole_numbers(schema);
    }
    if schema.get("x-kubernetes-int-or-string").is_some() {
        whole_numbers(schema);
    }
    if let Some(children) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        children.values_mut().for_each(tidy);
        children.sort_keys();
    }
    if let Some(items) = schema.get_mut("items") {
        tidy(items);
        if let Some(items) = items.as_object_mut() {
            items.remove("description");
        }
    }
    schema.sort_keys();
}

/// The default of a value or list of values. Those of objects are their fields'.
fn describe_default(schema: &mut Map<String, Value>) {
    let words = match schema.get("default") {
        Some(Value::Array(items)) if items.is_empty() => "none".to_owned(),
        Some(Value::Array(items)) => items.iter().map(plain).collect::<Vec<_>>().join(", "),
        None | Some(Value::Object(_)) => return,
        Some(Value::String(text)) if text.is_empty() => return,
        Some(value) => plain(value),
    };
    if let Some(Value::String(description)) = schema.get_mut("description") {
        description.push_str(&format!(" Default: {words}."));
    }
}

/// A value as people write it in a manifest.
fn plain(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

/// `minimum` and `maximum` pass through a float in the derives: 1.0 is 1.
fn whole_numbers(schema: &mut Map<String, Value>) {
    for keyword in ["minimum", "maximum"] {
        if let Some(limit) = schema.get_mut(keyword)
            && let Some(number) = limit.as_f64()
            && number.fract() == 0.0
        {
            *limit = json!(number as i64);
        }
    }
}

fn paragraphs(text: &str) -> String {
    let paragraphs: Vec<String> = text
        .split("\n\n")
        .map(|paragraph| paragraph.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    paragraphs.join("\n\n")
}
