//! What of a policy agents cannot enforce yet. It is accepted, and named.
//!
//! `retries.acrossHops` is not named: its default suppresses what cannot occur
//! while one agent sees every hop, and naming a default would mark every policy
//! with retries.

use weir_crds::v1alpha1 as api;
use weir_crds::v1alpha1::Section;

/// Fields and sections of `policy` that do nothing yet, as paths in its spec.
pub(super) fn unsupported(policy: &api::ResiliencePolicySpec) -> Vec<String> {
    let mut names = Vec::new();
    of_sections(&policy.sections, "", &mut names);
    for route in &policy.routes {
        of_sections(
            &route.sections,
            &format!("routes[{}].", route.name),
            &mut names,
        );
    }
    names
}

/// Whether agents enforce anything of the section.
pub(super) fn is_built(section: Section) -> bool {
    matches!(
        section,
        Section::Timeouts
            | Section::Retries
            | Section::CircuitBreaker
            | Section::Bulkheads
            | Section::LoadShedding
    )
}

fn of_sections(sections: &api::Sections, within: &str, names: &mut Vec<String>) {
    let mut name = |field: &str| names.push(format!("{within}{field}"));
    for section in sections.given().filter(|section| !is_built(*section)) {
        name(section.as_str());
    }
    if sections
        .timeouts
        .as_ref()
        .is_some_and(|timeouts| timeouts.adaptive.is_some())
    {
        name("timeouts.adaptive");
    }
    if let Some(breaker) = &sections.circuit_breaker {
        if breaker.half_open.probe.is_some() {
            name("circuitBreaker.halfOpen.probe");
        }
        if breaker.sharing.scope == api::SharingScope::Mesh {
            name("circuitBreaker.sharing");
        }
    }
    if let Some(shedding) = &sections.load_shedding {
        if shedding
            .concurrency
            .as_ref()
            .is_some_and(|concurrency| concurrency.adaptive.is_some())
        {
            name("loadShedding.concurrency.adaptive");
        }
        for (given, field) in [
            (shedding.queue.is_some(), "loadShedding.queue"),
            (shedding.priority.is_some(), "loadShedding.priority"),
            (shedding.fairness.is_some(), "loadShedding.fairness"),
        ] {
            if given {
                name(field);
            }
        }
    }
}
