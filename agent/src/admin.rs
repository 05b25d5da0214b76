//! What operators ask an agent over plain HTTP: is it alive, is it ready, what
//! has it counted, where does it listen.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::sync::{Mutex, watch};
use weir_resilience::shed::Cause;

use crate::clock::Clock;
use crate::configuration::Configuration;
use crate::discovery::Progress;
use crate::metrics::{Counter, LATENCY_BOUNDS_US, Totals};
use crate::pods::Pods;
use crate::registry::Registry;
use crate::report::{STATES, Transitions};
use crate::snapshot::Shedder;
use crate::worker::Shared;

/// What the pages are made from.
#[derive(Clone)]
pub(crate) struct Admin {
    pub(crate) clock: Clock,
    pub(crate) shared: Arc<Shared>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) transitions: Arc<Transitions>,
    pub(crate) configuration: Arc<Mutex<Configuration>>,
    pub(crate) progress: watch::Receiver<Progress>,
    pub(crate) pods: Option<Pods>,
    pub(crate) draining: watch::Receiver<bool>,
}

/// What a figure is called on `/metrics`.
fn figure_label(cause: Cause) -> &'static str {
    match cause {
        Cause::Cpu => "cpu",
        Cause::CpuPressure => "cpu_pressure",
        Cause::MemoryPressure => "memory_pressure",
    }
}

/// The pages.
pub(crate) fn router(admin: Admin) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/listeners", get(listeners))
        .with_state(admin)
}

/// Ready: something is in force, pods are captured where that is asked for, and
/// the agent is not on its way out.
async fn readyz(State(admin): State<Admin>) -> (StatusCode, &'static str) {
    if *admin.draining.borrow() {
        (StatusCode::SERVICE_UNAVAILABLE, "draining\n")
    } else if !admin.progress.borrow().enforcing {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            "waiting for the first configuration from the control plane\n",
        )
    } else if admin.pods.as_ref().is_some_and(|pods| !pods.are_settled()) {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            "waiting for pods to be captured\n",
        )
    } else {
        (StatusCode::OK, "ok\n")
    }
}

/// One line per listener: service, port, address.
async fn listeners(State(admin): State<Admin>) -> String {
    let listening = admin.configuration.lock().await.listening();
    listening.iter().fold(String::new(), |mut text, l| {
        let _ = writeln!(text, "{} {} {}", l.service, l.port, l.address);
        text
    })
}

async fn metrics(State(admin): State<Admin>) -> impl IntoResponse {
    (
        [(header::CONTENT_TYPE, "text/plain; version=0.0.4")],
        admin.metrics(),
    )
}

/// A metric family: name, kind, help.
type Family = (&'static str, &'static str, &'static str);

const FAMILIES: &[Family] = &[
    (
        "weir_responses_total",
        "counter",
        "Responses of destinations, as callers got them, by class.",
    ),
    (
        "weir_cancelled_total",
        "counter",
        "Requests whose caller left before the response ended; of what is passed through, connections that the caller reset.",
    ),
    (
        "weir_tcp_connections_total",
        "counter",
        "Connections passed through as bytes that have ended, by how: both sides were done, the endpoint reset it, or nothing was said for tcpIdle.",
    ),
    (
        "weir_tries_total",
        "counter",
        "Tries sent to endpoints, first ones and repeated ones.",
    ),
    (
        "weir_failed_tries_total",
        "counter",
        "Tries that failed, by how.",
    ),
    (
        "weir_retries_total",
        "counter",
        "Tries made after a failed one.",
    ),
    (
        "weir_retries_stopped_total",
        "counter",
        "Failed tries that were not repeated, by why.",
    ),
    (
        "weir_answers_total",
        "counter",
        "Answers that Weir gave in a destination's place, by reason.",
    ),
    (
        "weir_shadow_decisions_total",
        "counter",
        "What sections in shadow would have done.",
    ),
    (
        "weir_upstream_connections_total",
        "counter",
        "Connections to endpoints, new and used again.",
    ),
];

impl Admin {
    /// Everything, in Prometheus' text format.
    pub(crate) fn metrics(&self) -> String {
        let mut out = String::with_capacity(16 * 1024);
        let ports: Vec<_> = self
            .registry
            .ports()
            .into_iter()
            .map(|(name, m)| (name, m.totals()))
            .collect();
        for (family, kind, help) in FAMILIES {
            head(&mut out, family, kind, help);
            let label = label_of(family);
            for ((id, port, destination), totals) in &ports {
                let side = side_of(*destination);
                for (counter, of, value) in Counter::ALL.iter().filter(|(_, f, _)| f == family) {
                    debug_assert_eq!(of, family);
                    let count = totals.counters[*counter as usize];
                    let more = if value.is_empty() {
                        String::new()
                    } else {
                        format!(",{label}=\"{value}\"")
                    };
                    let _ = writeln!(
                        out,
                        "{family}{{service=\"{id}\",port=\"{port}\"{side}{more}}} {count}"
                    );
                }
            }
        }
        head(
            &mut out,
            "weir_request_duration_seconds",
            "histogram",
            "From a request's head to the end of its answer.",
        );
        for ((id, port, destination), totals) in &ports {
            let side = side_of(*destination);
            histogram(
                &mut out,
                &format!("service=\"{id}\",port=\"{port}\"{side}"),
                totals,
            );
        }
        self.breakers(&mut out);
        self.bulkheads(&mut out);
        self.load(&mut out);
        self.process(&mut out);
        out
    }

    fn breakers(&self, out: &mut String) {
        let now = self.clock.now();
        let snapshot = self.shared.snapshot.load_full();
        let all: Vec<_> = snapshot
            .breakers()
            .map(|(id, breaker)| (id, breaker, breaker.machine.status(now)))
            .collect();
        head(
            out,
            "weir_circuit_breaker_state",
            "gauge",
            "1 for the state that the breaker is in, 0 for the others.",
        );
        for (id, breaker, status) in &all {
            for (state, name) in STATES {
                let on = u8::from(state == status.state);
                let key = &breaker.key;
                let _ = writeln!(
                    out,
                    "weir_circuit_breaker_state{{service=\"{id}\",breaker=\"{key}\",state=\"{name}\"}} {on}"
                );
            }
        }
        head(
            out,
            "weir_circuit_breaker_transitions_total",
            "counter",
            "States entered; also those between two scrapes.",
        );
        for (id, breaker, _) in &all {
            let counts = self.transitions.of(&((*id).clone(), breaker.key.clone()));
            for ((_, name), count) in STATES.iter().zip(counts) {
                let key = &breaker.key;
                let _ = writeln!(
                    out,
                    "weir_circuit_breaker_transitions_total{{service=\"{id}\",breaker=\"{key}\",to=\"{name}\"}} {count}"
                );
            }
        }
        head(
            out,
            "weir_circuit_breaker_rejected_total",
            "counter",
            "Requests that the breaker refused.",
        );
        for (id, breaker, status) in &all {
            let (key, count) = (&breaker.key, status.rejected_total);
            let _ = writeln!(
                out,
                "weir_circuit_breaker_rejected_total{{service=\"{id}\",breaker=\"{key}\"}} {count}"
            );
        }
    }

    fn load(&self, out: &mut String) {
        let now = self.clock.now();
        let snapshot = self.shared.snapshot.load_full();
        let mut all = snapshot.sheds();
        all.sort_by_key(|of| (of.service, of.endpoint));
        all.dedup_by_key(|of| (of.service, of.endpoint));
        head(
            out,
            "weir_endpoint_load_ratio",
            "gauge",
            "Of an endpoint that sheds: the figures that it goes by, 0 to 1.",
        );
        for Shedder {
            service,
            endpoint,
            shed,
            ..
        } in &all
        {
            for (cause, figure) in shed.figures(now) {
                let (label, value) = (figure_label(cause), figure.ratio());
                let _ = writeln!(
                    out,
                    "weir_endpoint_load_ratio{{service=\"{service}\",endpoint=\"{endpoint}\",figure=\"{label}\"}} {value}"
                );
            }
        }
        head(
            out,
            "weir_load_shedding_ratio",
            "gauge",
            "Share of an endpoint's requests that is refused for its load now, 0 to 1.",
        );
        for Shedder {
            service,
            endpoint,
            shed,
            ..
        } in &all
        {
            let value = shed.refuses(now).ratio();
            let _ = writeln!(
                out,
                "weir_load_shedding_ratio{{service=\"{service}\",endpoint=\"{endpoint}\"}} {value}"
            );
        }
    }

    fn bulkheads(&self, out: &mut String) {
        let all = self.registry.bulkheads();
        type Read = fn(&weir_resilience::bulkhead::Bulkhead) -> u64;
        let families: [(Family, Read); 3] = [
            (
                (
                    "weir_bulkhead_in_use",
                    "gauge",
                    "Requests that have a place.",
                ),
                |b| b.in_use().into(),
            ),
            (
                (
                    "weir_bulkhead_waiting",
                    "gauge",
                    "Requests that wait for a place.",
                ),
                |b| b.waiting().into(),
            ),
            (
                (
                    "weir_bulkhead_refused_total",
                    "counter",
                    "Requests that got no place.",
                ),
                |b| b.refused_total(),
            ),
        ];
        for ((family, kind, help), read) in families {
            head(out, family, kind, help);
            for (id, key, endpoint, bulkhead) in &all {
                let at = endpoint.map(|e| e.to_string()).unwrap_or_default();
                let value = read(bulkhead);
                let _ = writeln!(
                    out,
                    "{family}{{service=\"{id}\",bulkhead=\"{key}\",endpoint=\"{at}\"}} {value}"
                );
            }
        }
        head(
            out,
            "weir_retry_budget_requests",
            "gauge",
            "Requests within the budget's interval.",
        );
        let budgets: Vec<_> = self
            .registry
            .budgets()
            .into_iter()
            .map(|(id, key, b)| (id, key, b.status(self.clock.now())))
            .collect();
        for (id, key, (requests, _)) in &budgets {
            let _ = writeln!(
                out,
                "weir_retry_budget_requests{{service=\"{id}\",budget=\"{key}\"}} {requests}"
            );
        }
        head(
            out,
            "weir_retry_budget_used",
            "gauge",
            "Extra tries within the budget's interval.",
        );
        for (id, key, (_, used)) in &budgets {
            let _ = writeln!(
                out,
                "weir_retry_budget_used{{service=\"{id}\",budget=\"{key}\"}} {used}"
            );
        }
    }

    fn process(&self, out: &mut String) {
        head(
            out,
            "weir_connections",
            "gauge",
            "Callers' connections, by worker.",
        );
        for (worker, load) in self.shared.loads.iter().enumerate() {
            let _ = writeln!(
                out,
                "weir_connections{{worker=\"{worker}\"}} {}",
                load.0.load(Relaxed)
            );
        }
        head(
            out,
            "weir_upstream_idle_connections",
            "gauge",
            "Idle connections to endpoints, by worker.",
        );
        for (worker, idle) in self.shared.idle.iter().enumerate() {
            let _ = writeln!(
                out,
                "weir_upstream_idle_connections{{worker=\"{worker}\"}} {}",
                idle.load(Relaxed)
            );
        }
        let one = |out: &mut String, (family, kind, help): Family, value: u64| {
            head(out, family, kind, help);
            let _ = writeln!(out, "{family} {value}");
        };
        let panics = self.shared.panics.load(Relaxed) as u64;
        one(
            out,
            (
                "weir_panics_total",
                "counter",
                "Connections lost to a bug in Weir; please report it.",
            ),
            panics,
        );
        let captured: [(Family, &AtomicUsize); 4] = [
            (
                (
                    "weir_captured_pods",
                    "gauge",
                    "Pods of this node whose connections are captured.",
                ),
                &self.shared.captured_pods,
            ),
            (
                (
                    "weir_uncaptured_pods",
                    "gauge",
                    "Pods of this node that should be captured and cannot be; the log says why.",
                ),
                &self.shared.uncaptured_pods,
            ),
            (
                (
                    "weir_bypassing_connections",
                    "gauge",
                    "Connections of captured pods that were open before and go past Weir.",
                ),
                &self.shared.bypassing,
            ),
            (
                (
                    "weir_stray_connections_total",
                    "counter",
                    "Connections to a capture port that no rule had sent there; they are reset.",
                ),
                &self.shared.strays,
            ),
        ];
        for (family, value) in captured {
            one(out, family, value.load(Relaxed) as u64);
        }
        let unrouted = self.shared.unrouted_total() as u64;
        one(
            out,
            (
                "weir_unknown_destination_total",
                "counter",
                "Requests that named no known service.",
            ),
            unrouted,
        );
        one(
            out,
            (
                "weir_malformed_requests_total",
                "counter",
                "Requests that could not be read, and were answered 400, 431 or 501.",
            ),
            self.shared.malformed_total() as u64,
        );
        let lookups = "weir_caller_lookups_total";
        head(
            out,
            lookups,
            "counter",
            "Addresses of callers that the control plane was asked for, by what it knew.",
        );
        for (result, count) in self.shared.callers.counts() {
            let _ = writeln!(out, "{lookups}{{result=\"{result}\"}} {count}");
        }
        let synced = u64::from(self.progress.borrow().synced);
        one(
            out,
            (
                "weir_connected_to_control_plane",
                "gauge",
                "Whether the control plane is in reach.",
            ),
            synced,
        );
        let descriptors = std::fs::read_dir("/proc/self/fd").map_or(0, |d| d.count() as u64);
        one(
            out,
            (
                "weir_open_file_descriptors",
                "gauge",
                "File descriptors in use.",
            ),
            descriptors,
        );
    }
}

fn label_of(family: &str) -> &'static str {
    match family {
        "weir_responses_total" => "class",
        "weir_failed_tries_total" | "weir_retries_stopped_total" | "weir_answers_total" => "reason",
        "weir_shadow_decisions_total" => "section",
        "weir_tcp_connections_total" => "end",
        _ => "kind",
    }
}

fn head(out: &mut String, family: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {family} {help}\n# TYPE {family} {kind}");
}

/// The label of what is counted at the destination's side. Everything else is
/// the caller's.
fn side_of(destination: bool) -> &'static str {
    if destination {
        ",side=\"destination\""
    } else {
        ""
    }
}

fn histogram(out: &mut String, labels: &str, totals: &Totals) {
    let name = "weir_request_duration_seconds";
    let mut sum = 0;
    for (bound, count) in LATENCY_BOUNDS_US.iter().zip(totals.latency) {
        sum += count;
        let le = *bound as f64 / 1e6;
        let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{le}\"}} {sum}");
    }
    sum += totals.latency[LATENCY_BOUNDS_US.len()];
    let _ = writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {sum}");
    let _ = writeln!(
        out,
        "{name}_sum{{{labels}}} {}",
        totals.latency_sum_us as f64 / 1e6
    );
    let _ = writeln!(out, "{name}_count{{{labels}}} {sum}");
}
