//! What people are told about capture's numbers.

use crate::capture::pod::PREFIX;
use crate::capture::routing::{TABLE, TURN};
use crate::capture::rules::{OURS, REPLY};
use crate::capture::wire::{INBOUND_PORT, OUTBOUND_PORT};

#[test]
fn the_documents_name_the_numbers_that_are_used() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/capture.md");
    let text = std::fs::read_to_string(path).unwrap();
    for row in [
        format!("| tables | `ip {PREFIX}<agent's pod>` and `ip6 {PREFIX}<agent's pod>` |"),
        format!("| port for what a pod calls, on its loopback address | {OUTBOUND_PORT} |"),
        format!("| port for what comes to a pod | {INBOUND_PORT} |"),
        format!("| mark of the proxy's own packets | `{OURS:#x}` |"),
        format!("| mark of replies to connections with their caller's address | `{REPLY:#x}` |"),
        format!(
            "| routing table for those, and the rule that leads to it | {TABLE}, turn {TURN} |"
        ),
    ] {
        assert!(text.contains(&row), "docs/capture.md lacks: {row}");
    }
}
