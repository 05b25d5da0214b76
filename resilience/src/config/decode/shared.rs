//! Sections with equal keys share one state, so what shapes it must be equal.

use std::collections::HashMap;
use std::num::NonZeroU32;

use super::At;
use crate::config::{Breaker, Budget, Bulkhead, CpuShedding, Percent, Policy, Service};

/// What shapes the state of load shedding.
type Limits = (Option<NonZeroU32>, Option<CpuShedding>, Option<Percent>);

#[derive(Default)]
struct Seen<'s> {
    breakers: HashMap<&'s str, &'s Breaker>,
    budgets: HashMap<&'s str, &'s Budget>,
    bulkheads: HashMap<&'s str, &'s Bulkhead>,
    limits: HashMap<&'s str, Limits>,
}

/// Refuses a key that is used with two different sections.
pub(super) fn check(at: &mut At<'_>, service: &Service) {
    let mut seen = Seen::default();
    for (n, port) in service.ports.iter().enumerate() {
        let mut at = at.item("ports", n);
        policy(&mut at, &mut seen, &port.policy);
        for (n, route) in port.routes.iter().enumerate() {
            policy(&mut at.item("routes", n), &mut seen, &route.policy);
        }
    }
}

fn policy<'s>(at: &mut At<'_>, seen: &mut Seen<'s>, policy: &'s Policy) {
    let mut at = at.field("policy");
    if let Some(breaker) = &policy.breaker
        && *seen.breakers.entry(&breaker.key).or_insert(breaker) != breaker
    {
        differs(&mut at, "circuit_breaker", &breaker.key);
    }
    if let Some(retries) = &policy.retries
        && *seen.budgets.entry(&retries.key).or_insert(&retries.budget) != &retries.budget
    {
        differs(&mut at, "retries", &retries.key);
    }
    for bulkhead in policy
        .caller_bulkheads
        .iter()
        .chain(&policy.destination_bulkheads)
    {
        let limits = |of: &Bulkhead| (of.max_concurrent, of.max_queue, of.max_wait);
        let first = *seen.bulkheads.entry(&bulkhead.key).or_insert(bulkhead);
        if limits(first) != limits(bulkhead) {
            differs(&mut at, "bulkheads", &bulkhead.key);
        }
    }
    if let Some(shedding) = &policy.shedding {
        let limits = (shedding.max_concurrency, shedding.cpu, shedding.pressure);
        if *seen.limits.entry(&shedding.key).or_insert(limits) != limits {
            differs(&mut at, "load_shedding", &shedding.key);
        }
    }
}

fn differs(at: &mut At<'_>, section: &str, key: &str) {
    let message = format!("key {key:?} is also used with other limits; give each its own key");
    at.refuse(section, message);
}
