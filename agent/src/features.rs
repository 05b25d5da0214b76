//! What this agent can enforce, as it tells the control plane.
//!
//! proto3 ignores what it does not know, so an older agent would drop a new
//! section without a word. Hence a resource names what it needs, and an agent
//! that lacks one of these refuses it by name.

/// Every feature, one word each.
pub const FEATURES: &[&str] = &[
    "timeouts",
    "retries",
    "circuitBreaker",
    "bulkheads",
    "loadShedding.concurrency.max",
    "consumerPolicies",
];

/// Those of `required` that this agent lacks.
pub(crate) fn missing(required: &[String]) -> Vec<String> {
    required
        .iter()
        .filter(|r| !FEATURES.contains(&r.as_str()))
        .cloned()
        .collect()
}
