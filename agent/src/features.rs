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
    "bulkheads.from",
    "loadShedding.concurrency.max",
    "loadShedding.cpu",
    "loadShedding.pressure",
    "consumerPolicies",
    "tcp",
    "endpointConditions",
];

/// What this agent can be sent besides, where it captures pods' connections.
pub const CAPTURE: &str = "capture";

/// What an agent says of itself.
pub(crate) fn all(captures: bool) -> Vec<String> {
    let capture = captures.then_some(CAPTURE);
    let all = FEATURES.iter().copied().chain(capture);
    all.map(str::to_owned).collect()
}

/// Those of `required` that this agent lacks.
pub(crate) fn missing(required: &[String]) -> Vec<String> {
    required
        .iter()
        .filter(|r| !FEATURES.contains(&r.as_str()))
        .cloned()
        .collect()
}
