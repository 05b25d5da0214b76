use schemars::{JsonSchema, Schema};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    Bulkhead, CircuitBreaker, Connections, Deadline, Fallback, Fault, Hedging, Idempotency,
    LoadBalancing, LoadShedding, OutlierDetection, RateLimit, Retries, Timeouts,
};

/// The sections of a policy or of a route. An absent one changes nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Sections {
    #[serde(skip_serializing_if = "Option::is_none")]
    #[allow(missing_docs, reason = "told once, at the type")]
    pub timeouts: Option<Timeouts>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[allow(missing_docs, reason = "told once, at the type")]
    pub deadline: Option<Deadline>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[allow(missing_docs, reason = "told once, at the type")]
    pub retries: Option<Retries>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[allow(missing_docs, reason = "told once, at the type")]
    pub hedging: Option<Hedging>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[allow(missing_docs, reason = "told once, at the type")]
    pub circuit_breaker: Option<CircuitBreaker>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[allow(missing_docs, reason = "told once, at the type")]
    pub outlier_detection: Option<OutlierDetection>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[allow(missing_docs, reason = "told once, at the type")]
    pub load_balancing: Option<LoadBalancing>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[allow(missing_docs, reason = "told once, at the type")]
    pub connections: Option<Connections>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[allow(missing_docs, reason = "told once, at the type")]
    pub load_shedding: Option<LoadShedding>,
    /// Partitions of callers. At the destination one caller cannot take all of a
    /// pod; at the caller one slow destination cannot take all of a caller. The
    /// first in the list that a request belongs to counts. Up to 16.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub bulkheads: Option<Vec<Bulkhead>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[allow(missing_docs, reason = "told once, at the type")]
    pub rate_limit: Option<RateLimit>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[allow(missing_docs, reason = "told once, at the type")]
    pub idempotency: Option<Idempotency>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[allow(missing_docs, reason = "told once, at the type")]
    pub fallback: Option<Fallback>,
    /// Chaos on purpose, so that retries, timeouts and breakers meet it as if it
    /// were real. The first in the list that a try meets acts. Acts at the
    /// caller's node. Up to 8.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub faults: Option<Vec<Fault>>,
}

/// The name of a section.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the names are those of the sections")]
pub enum Section {
    Timeouts,
    Deadline,
    Retries,
    Hedging,
    CircuitBreaker,
    OutlierDetection,
    LoadBalancing,
    Connections,
    LoadShedding,
    Bulkheads,
    RateLimit,
    Idempotency,
    Fallback,
    Faults,
}

impl Section {
    /// All of them, in the order of the reference.
    pub const ALL: [Section; 14] = [
        Section::Timeouts,
        Section::Deadline,
        Section::Retries,
        Section::Hedging,
        Section::CircuitBreaker,
        Section::OutlierDetection,
        Section::LoadBalancing,
        Section::Connections,
        Section::LoadShedding,
        Section::Bulkheads,
        Section::RateLimit,
        Section::Idempotency,
        Section::Fallback,
        Section::Faults,
    ];

    /// As people write it: `circuitBreaker`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Section::Timeouts => "timeouts",
            Section::Deadline => "deadline",
            Section::Retries => "retries",
            Section::Hedging => "hedging",
            Section::CircuitBreaker => "circuitBreaker",
            Section::OutlierDetection => "outlierDetection",
            Section::LoadBalancing => "loadBalancing",
            Section::Connections => "connections",
            Section::LoadShedding => "loadShedding",
            Section::Bulkheads => "bulkheads",
            Section::RateLimit => "rateLimit",
            Section::Idempotency => "idempotency",
            Section::Fallback => "fallback",
            Section::Faults => "faults",
        }
    }
}

impl std::fmt::Display for Section {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Sections {
    /// Whether a section is given.
    pub fn has(&self, section: Section) -> bool {
        match section {
            Section::Timeouts => self.timeouts.is_some(),
            Section::Deadline => self.deadline.is_some(),
            Section::Retries => self.retries.is_some(),
            Section::Hedging => self.hedging.is_some(),
            Section::CircuitBreaker => self.circuit_breaker.is_some(),
            Section::OutlierDetection => self.outlier_detection.is_some(),
            Section::LoadBalancing => self.load_balancing.is_some(),
            Section::Connections => self.connections.is_some(),
            Section::LoadShedding => self.load_shedding.is_some(),
            Section::Bulkheads => self.bulkheads.is_some(),
            Section::RateLimit => self.rate_limit.is_some(),
            Section::Idempotency => self.idempotency.is_some(),
            Section::Fallback => self.fallback.is_some(),
            Section::Faults => self.faults.is_some(),
        }
    }

    /// The sections that are given.
    pub fn given(&self) -> impl Iterator<Item = Section> + '_ {
        Section::ALL
            .into_iter()
            .filter(|section| self.has(*section))
    }
}

/// Sections as they stand in a route's schema: described by reference to the
/// policy's own sections, and without those that a route cannot have, which are
/// there only to be refused with a reason.
pub(super) fn in_route(route: &mut Schema) {
    let Some(properties) = route.get_mut("properties").and_then(Value::as_object_mut) else {
        return;
    };
    for section in Section::ALL {
        let Some(schema) = properties.get_mut(section.as_str()) else {
            continue;
        };
        match section {
            Section::OutlierDetection | Section::LoadShedding => {
                *schema = json!({
                    "description": format!("Not in a route: belongs to the policy as a whole. See spec.{section}."),
                    "type": "object",
                    "x-kubernetes-preserve-unknown-fields": true,
                });
            }
            _ => refer(schema, &format!("spec.{section}")),
        }
    }
}

/// Puts a reference to `path` in the place of each description: the same fields are described there, and an object
/// that is applied has to fit into an annotation of 256 KiB.
fn refer(schema: &mut Value, path: &str) {
    refer_within(schema, path);
    if let Some(schema) = schema.as_object_mut() {
        schema.insert("description".to_owned(), format!("See {path}.").into());
    }
}

fn refer_within(schema: &mut Value, path: &str) {
    let Some(schema) = schema.as_object_mut() else {
        return;
    };
    schema.remove("description");
    let properties = schema.get_mut("properties").and_then(Value::as_object_mut);
    for (field, schema) in properties.into_iter().flatten() {
        refer(schema, &format!("{path}.{field}"));
    }
    if let Some(items) = schema.get_mut("items") {
        refer_within(items, path);
    }
    // Enums and optional structs are not yet flattened when this runs.
    for keyword in ["oneOf", "anyOf", "allOf"] {
        if let Some(branches) = schema.get_mut(keyword).and_then(Value::as_array_mut) {
            branches
                .iter_mut()
                .for_each(|branch| refer_within(branch, path));
        }
    }
}
