//! Counters of the control plane, in the text format of Prometheus. Every
//! label has a closed set of values: no name of an object is one.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use weir_proto::v1alpha1::BreakerState;

use crate::writer::Urgency;

use crate::identity::Reason;

/// Upper bounds of the buckets of push latency, in milliseconds.
const BOUNDS_MS: [u64; 11] = [1, 2, 5, 10, 25, 50, 100, 250, 500, 1_000, 10_000];

/// Breakers by the state of their worst node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct BreakerCounts {
    pub(crate) closed: u64,
    pub(crate) open: u64,
    pub(crate) half_open: u64,
}

/// What stands at the moment of asking.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Gauges {
    pub(crate) agents: u64,
    pub(crate) services: u64,
    pub(crate) endpoints: u64,
    pub(crate) policies: u64,
    pub(crate) source_problems: u64,
    pub(crate) breakers: BreakerCounts,
}

/// What was counted since the start.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    responses: AtomicU64,
    resources: AtomicU64,
    acks: AtomicU64,
    nacks: AtomicU64,
    stale: AtomicU64,
    compiles: AtomicU64,
    opened: AtomicU64,
    half_opened: AtomicU64,
    closed: AtomicU64,
    latency_buckets: [AtomicU64; BOUNDS_MS.len()],
    latency_count: AtomicU64,
    latency_micros: AtomicU64,
    watchers_cut: AtomicU64,
    watch_failures: AtomicU64,
    watches_failing: AtomicU64,
    writes: [AtomicU64; 3],
    write_failures: AtomicU64,
    events: AtomicU64,
    events_lost: AtomicU64,
    holds_lease: AtomicU64,
    refused: [AtomicU64; Reason::ALL.len()],
}

fn add(counter: &AtomicU64, by: usize) {
    counter.fetch_add(by as u64, Ordering::Relaxed);
}

impl Metrics {
    pub(crate) fn pushed(&self, resources: usize) {
        add(&self.responses, 1);
        add(&self.resources, resources);
    }

    pub(crate) fn answered(&self, refused: usize) {
        add(&self.acks, 1);
        add(&self.nacks, refused);
    }

    pub(crate) fn answered_late(&self) {
        add(&self.stale, 1);
    }

    pub(crate) fn compiled(&self) {
        add(&self.compiles, 1);
    }

    pub(crate) fn watcher_cut(&self) {
        add(&self.watchers_cut, 1);
    }

    pub(crate) fn refused(&self, reason: Reason) {
        add(&self.refused[reason as usize], 1);
    }

    /// A watch of the API server failed.
    pub(crate) fn watch_failed(&self) {
        add(&self.watch_failures, 1);
    }

    /// So many watches do not work now.
    pub(crate) fn watches_failing(&self, now: usize) {
        self.watches_failing.store(now as u64, Ordering::Relaxed);
    }

    /// A write to the API server begins, and with it so many Events.
    pub(crate) fn wrote(&self, urgency: Urgency, events: usize) {
        add(&self.writes[urgency as usize], 1);
        add(&self.events, events);
    }

    pub(crate) fn write_failed(&self) {
        add(&self.write_failures, 1);
    }

    pub(crate) fn event_lost(&self) {
        add(&self.events_lost, 1);
    }

    /// Whether this replica writes now.
    pub(crate) fn holds_lease(&self, holds: bool) {
        self.holds_lease.store(u64::from(holds), Ordering::Relaxed);
    }

    pub(crate) fn transition(&self, to: BreakerState) {
        match to {
            BreakerState::Open | BreakerState::ForcedOpen => add(&self.opened, 1),
            BreakerState::HalfOpen => add(&self.half_opened, 1),
            BreakerState::Closed | BreakerState::ForcedClosed => add(&self.closed, 1),
            BreakerState::Unspecified => {}
        }
    }

    /// A change was enforced everywhere after `took`.
    pub(crate) fn settled(&self, took: Duration) {
        let millis = took.as_millis();
        for (bound, bucket) in BOUNDS_MS.iter().zip(&self.latency_buckets) {
            if millis <= u128::from(*bound) {
                add(bucket, 1);
            }
        }
        add(&self.latency_count, 1);
        self.latency_micros.fetch_add(
            u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
            Ordering::Relaxed,
        );
    }

    /// Everything, as Prometheus reads it.
    pub(crate) fn render(&self, now: &Gauges) -> String {
        let mut page = Page(String::with_capacity(4096));
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        page.one(
            "weir_control_plane_agents",
            "gauge",
            "Agents with a discovery stream.",
            now.agents,
        );
        page.many(
            "weir_control_plane_resources",
            "gauge",
            "Resources that agents should hold.",
            "kind",
            &[("service", now.services), ("endpoints", now.endpoints)],
        );
        page.one(
            "weir_control_plane_policies",
            "gauge",
            "Policies known, good or not.",
            now.policies,
        );
        page.one(
            "weir_control_plane_source_problems",
            "gauge",
            "Findings in the manifests as they are now.",
            now.source_problems,
        );
        page.many(
            "weir_control_plane_circuit_breakers",
            "gauge",
            "Breakers by the state of their worst node.",
            "state",
            &[
                ("Closed", now.breakers.closed),
                ("Open", now.breakers.open),
                ("HalfOpen", now.breakers.half_open),
            ],
        );
        page.many(
            "weir_control_plane_circuit_breaker_transitions_total",
            "counter",
            "Transitions of breakers, on every node.",
            "to",
            &[
                ("Open", get(&self.opened)),
                ("HalfOpen", get(&self.half_opened)),
                ("Closed", get(&self.closed)),
            ],
        );
        page.one(
            "weir_control_plane_compiles_total",
            "counter",
            "Times that the model was compiled.",
            get(&self.compiles),
        );
        page.one(
            "weir_control_plane_push_responses_total",
            "counter",
            "Discovery responses sent.",
            get(&self.responses),
        );
        page.one(
            "weir_control_plane_push_resources_total",
            "counter",
            "Resources sent in them.",
            get(&self.resources),
        );
        page.many(
            "weir_control_plane_push_answers_total",
            "counter",
            "Answers of agents, and resources refused.",
            "result",
            &[
                ("ack", get(&self.acks)),
                ("nack", get(&self.nacks)),
                ("stale", get(&self.stale)),
            ],
        );
        page.one(
            "weir_control_plane_watchers_cut_total",
            "counter",
            "Watchers of the API that read too slowly.",
            get(&self.watchers_cut),
        );
        page.one(
            "weir_control_plane_watches_failing",
            "gauge",
            "Watches of the API server that do not work now, of seven; what is known stays in force.",
            get(&self.watches_failing),
        );
        page.one(
            "weir_control_plane_watch_failures_total",
            "counter",
            "Failures of watches of the API server; each is tried again.",
            get(&self.watch_failures),
        );
        page.one(
            "weir_control_plane_leader",
            "gauge",
            "1 while this replica holds the Lease and writes to the API server.",
            get(&self.holds_lease),
        );
        let writes = |urgency: Urgency| get(&self.writes[urgency as usize]);
        page.many(
            "weir_control_plane_writes_total",
            "counter",
            "Writes of statuses and CircuitBreakers to the API server, by what was new.",
            "about",
            &[
                ("state", writes(Urgency::State)),
                ("condition", writes(Urgency::Condition)),
                ("figures", writes(Urgency::Figures)),
            ],
        );
        page.one(
            "weir_control_plane_write_failures_total",
            "counter",
            "Writes to the API server that failed; each is tried again.",
            get(&self.write_failures),
        );
        page.one(
            "weir_control_plane_events_total",
            "counter",
            "Events written to the API server.",
            get(&self.events),
        );
        page.one(
            "weir_control_plane_events_lost_total",
            "counter",
            "Events that the API server refused, or that were too many to keep.",
            get(&self.events_lost),
        );
        page.many(
            "weir_control_plane_refused_total",
            "counter",
            "Connections and streams that were not let in, by why.",
            "reason",
            &Reason::ALL.map(|reason| (reason.label(), get(&self.refused[reason as usize]))),
        );
        page.head(
            "weir_control_plane_push_latency_seconds",
            "histogram",
            "From a change to the last agent enforcing it.",
        );
        for (bound, bucket) in BOUNDS_MS.iter().zip(&self.latency_buckets) {
            let bound = Duration::from_millis(*bound).as_secs_f64();
            page.line(format_args!(
                "weir_control_plane_push_latency_seconds_bucket{{le=\"{bound}\"}} {}",
                get(bucket)
            ));
        }
        let count = get(&self.latency_count);
        let sum = Duration::from_micros(get(&self.latency_micros)).as_secs_f64();
        page.line(format_args!(
            "weir_control_plane_push_latency_seconds_bucket{{le=\"+Inf\"}} {count}"
        ));
        page.line(format_args!(
            "weir_control_plane_push_latency_seconds_sum {sum}"
        ));
        page.line(format_args!(
            "weir_control_plane_push_latency_seconds_count {count}"
        ));
        page.0
    }
}

struct Page(String);

impl Page {
    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.0, "{line}");
    }

    fn head(&mut self, name: &str, kind: &str, help: &str) {
        self.line(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}"));
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: u64) {
        self.head(name, kind, help);
        self.line(format_args!("{name} {value}"));
    }

    fn many(&mut self, name: &str, kind: &str, help: &str, label: &str, values: &[(&str, u64)]) {
        self.head(name, kind, help);
        for (of, value) in values {
            self.line(format_args!("{name}{{{label}=\"{of}\"}} {value}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_latency_counts_in_every_bucket_that_holds_it() {
        let metrics = Metrics::default();
        metrics.settled(Duration::from_millis(7));
        let page = metrics.render(&Gauges::default());
        assert!(page.contains("bucket{le=\"0.005\"} 0\n"), "{page}");
        assert!(page.contains("bucket{le=\"0.01\"} 1\n"), "{page}");
        assert!(
            page.contains("weir_control_plane_push_latency_seconds_sum 0.007\n"),
            "{page}"
        );
    }

    #[test]
    fn every_sample_has_its_type() {
        let page = Metrics::default().render(&Gauges::default());
        for line in page.lines().filter(|line| !line.starts_with('#')) {
            let name = line.split(['{', ' ']).next().unwrap();
            let family = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|end| name.strip_suffix(end))
                .unwrap_or(name);
            assert!(page.contains(&format!("# TYPE {family} ")), "{line}");
        }
    }
}
