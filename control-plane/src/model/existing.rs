//! What becomes of connections that were open before they could be captured, as
//! a policy's annotation says it. The nearest policy that says a word counts.

use weir_proto::v1alpha1::ExistingConnections;

use super::merge::{Layer, Policy, Rank};

/// Annotation of a policy: `Keep` or `Reset`.
const EXISTING: &str = "weir.dev/existing-connections";

/// The word in the annotation, or what is wrong with it.
fn word(policy: Policy<'_>) -> Option<Result<ExistingConnections, String>> {
    let text = policy.annotations?.get(EXISTING)?;
    Some(match text.as_str() {
        "Keep" => Ok(ExistingConnections::Keep),
        "Reset" => Ok(ExistingConnections::Reset),
        other => Err(format!(
            "annotation {EXISTING}: {other:?} is no word for it: write Keep or Reset"
        )),
    })
}

/// What is wrong with the policy's word.
pub(super) fn problem(policy: Policy<'_>) -> Option<String> {
    word(policy)?.err()
}

/// What the policies of a Service say, of which those at each port are given, the
/// nearest first.
pub(super) fn said(ports: &[[(Rank, Option<&Layer<'_>>); 8]]) -> ExistingConnections {
    let of_ports = ports.iter().flatten();
    let mut layers: Vec<_> = of_ports
        .filter_map(|(rank, layer)| Some((*rank, (*layer)?)))
        .collect();
    layers.sort_by_key(|(rank, _)| *rank);
    let mut policies = layers.into_iter().flat_map(|(_, layer)| layer.policies());
    policies
        .find_map(|policy| word(policy)?.ok())
        .unwrap_or_default()
}
