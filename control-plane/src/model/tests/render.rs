//! Compiled services and statuses as a person would write them down.

use serde_json::{Map, Value, json};
use weir_proto::v1alpha1 as proto;

use crate::model::ServiceOutcome;

fn span(micros: u64) -> String {
    match micros {
        0 => "off".to_owned(),
        micros if micros % 1_000_000 == 0 => format!("{}s", micros / 1_000_000),
        micros if micros % 1_000 == 0 => format!("{}ms", micros / 1_000),
        micros => format!("{micros}us"),
    }
}

fn codes(ranges: &[proto::StatusRange]) -> String {
    let text = |range: &proto::StatusRange| match range.first == range.last {
        true => range.first.to_string(),
        false => format!("{}-{}", range.first, range.last),
    };
    ranges.iter().map(text).collect::<Vec<_>>().join(" ")
}

pub(super) fn service(service: &ServiceOutcome) -> (String, Value) {
    let config = &service.config;
    let mut ports = Map::new();
    for port in &config.ports {
        let protocol = port.protocol().as_str_name();
        let mut value = json!({ "protocol": protocol.trim_start_matches("PROTOCOL_") });
        if port.http {
            value["http"] = true.into();
        }
        if let Some(endpoints) = &service.endpoints {
            let endpoints = endpoints.ports.iter().find(|of| of.port == port.number);
            value["endpoints"] = endpoints
                .iter()
                .flat_map(|of| &of.endpoints)
                .map(endpoint_line)
                .collect();
        }
        if port.local_only {
            value["localOnly"] = true.into();
        }
        if port.affinity_us > 0 {
            value["affinity"] = span(port.affinity_us).into();
        }
        value["policy"] = port.policy.as_ref().map(policy_sections).into();
        if !port.name.is_empty() {
            value["name"] = port.name.clone().into();
        }
        if !port.listen.is_empty() {
            value["listen"] = port.listen.clone().into();
        }
        if !port.routes.is_empty() {
            value["routes"] = port.routes.iter().map(route).collect();
        }
        ports.insert(port.number.to_string(), value);
    }
    let mut value = json!({ "requires": service.requires, "ports": ports });
    if !config.cluster_addresses.is_empty() {
        value["clusterAddresses"] = config.cluster_addresses.clone().into();
    }
    if config.existing_connections != 0 {
        let word = config.existing_connections().as_str_name();
        value["existingConnections"] = word.trim_start_matches("EXISTING_CONNECTIONS_").into();
    }
    if let Some(refused) = &service.refused {
        value["refused"] = refused.clone().into();
    }
    let name = format!("{}/{}", config.namespace, config.name);
    match config.consumer.as_str() {
        "" => (name, value),
        consumer => (format!("{name}@{consumer}"), value),
    }
}

fn endpoint_line(endpoint: &proto::Endpoint) -> String {
    let mut line = endpoint.address.clone();
    for (word, holds) in [
        (" unready", endpoint.unready),
        (" terminating", endpoint.terminating),
    ] {
        line.push_str(if holds { word } else { "" });
    }
    for (what, names) in [
        ("zones", &endpoint.for_zones),
        ("nodes", &endpoint.for_nodes),
    ] {
        if !names.is_empty() {
            line.push_str(&format!(" for {what} {}", names.join(" ")));
        }
    }
    line
}

fn route(route: &proto::Route) -> Value {
    json!({
        "name": route.name,
        "matches": route.matches.iter().map(|matches| format!("{matches:?}")).collect::<Vec<_>>(),
        "idempotent": route.idempotent,
        "policy": route.policy.as_ref().map(policy_sections),
    })
}

fn policy_sections(policy: &proto::Policy) -> Value {
    let mut sections = Map::new();
    if let Some(of) = &policy.timeouts {
        sections.insert("timeouts".into(), json!({
            "request": span(of.request_us), "perTry": span(of.per_try_us), "connect": span(of.connect_us),
            "idle": span(of.idle_us), "maxStream": span(of.max_stream_us), "tcpIdle": span(of.tcp_idle_us), "shadow": of.shadow,
        }));
    }
    if let Some(of) = &policy.retries {
        let budget = of.budget.unwrap_or_default();
        sections.insert("retries".into(), json!({
            "key": of.key, "attempts": of.attempts, "statusCodes": codes(&of.status_codes), "grpcCodes": of.grpc_codes,
            "connectionFailure": of.connection_failure, "reset": of.reset, "perTryTimeout": of.per_try_timeout,
            "methods": of.methods.join(" "),
            "backoff": format!("{} to {} {}", span(of.backoff_base_us), span(of.backoff_max_us), of.jitter().as_str_name()),
            "budget": format!("{}% of {}, at least {} in {}", budget.percent, span(budget.interval_us), budget.min_retry_count, span(budget.min_retry_interval_us)),
            "honorRetryAfter": of.honor_retry_after, "maxBufferedBody": of.max_buffered_body, "shadow": of.shadow,
        }));
    }
    if let Some(of) = &policy.circuit_breaker {
        sections.insert("circuitBreaker".into(), breaker_section(of));
    }
    if !policy.bulkheads.is_empty() {
        let bulkhead = |of: &proto::Bulkhead| {
            let mut value = json!({
                "key": of.key, "name": of.name, "at": of.at().as_str_name().trim_start_matches("BULKHEAD_SIDE_"),
                "headers": of.headers.iter().map(|header| format!("{header:?}")).collect::<Vec<_>>(),
                "maxConcurrent": of.max_concurrent, "maxQueue": of.max_queue, "maxWait": span(of.max_wait_us), "shadow": of.shadow,
            });
            for (list, names) in [
                ("fromNamespaces", &of.from_namespaces),
                ("fromServiceAccounts", &of.from_service_accounts),
                ("fromWorkloads", &of.from_workloads),
            ] {
                if !names.is_empty() {
                    value[list] = names.join(" ").into();
                }
            }
            value
        };
        sections.insert(
            "bulkheads".into(),
            policy.bulkheads.iter().map(bulkhead).collect(),
        );
    }
    if let Some(of) = &policy.load_shedding {
        let mut value =
            json!({ "key": of.key, "maxConcurrency": of.max_concurrency, "shadow": of.shadow });
        if let Some(cpu) = &of.cpu {
            let source = cpu.source().as_str_name().trim_start_matches("CPU_SOURCE_");
            value["cpu"] = json!(format!(
                "{source}: 0% at {}% to {}% at 100%",
                cpu.threshold_percent, cpu.max_drop_percent
            ));
        }
        if let Some(pressure) = &of.pressure {
            value["pressure"] = json!(format!("from {}%", pressure.some_percent));
        }
        sections.insert("loadShedding".into(), value);
    }
    sections.into()
}

fn breaker_section(of: &proto::CircuitBreaker) -> Value {
    let window = of.window.unwrap_or_default();
    let mut value = json!({
        "key": of.key,
        "window": format!("{} {} or {} requests", window.r#type().as_str_name().trim_start_matches("WINDOW_TYPE_"), span(window.duration_us), window.requests),
        "minimumRequests": of.minimum_requests, "failurePercent": of.failure_percent, "consecutiveFailures": of.consecutive_failures,
        "failureOn": format!("{}; gRPC {:?}; timeouts {}; connection {}", codes(&of.failure_status_codes), of.failure_grpc_codes, of.failure_timeouts, of.failure_connection),
        "open": format!("{} to {} ±{}%, Retry-After {}", span(of.open_us), span(of.open_max_us), of.open_jitter_percent, of.open_honor_retry_after),
        "halfOpen": format!("{} probes in {}, ramp up {}", of.probes, span(of.half_open_timeout_us), span(of.ramp_up_us)),
        "shadow": of.shadow,
    });
    if let Some(slow) = &of.slow_requests {
        value["slowRequests"] = json!(format!(
            "{}% over {}",
            slow.percent,
            span(slow.threshold_us)
        ));
    }
    if let Some(forced) = &of.r#override {
        value["override"] = json!(format!(
            "{} until {}: {}",
            forced.state().as_str_name(),
            forced.expires_at_unix_ms,
            forced.reason
        ));
    }
    if !of.reset.is_empty() {
        value["reset"] = of.reset.clone().into();
    }
    value
}

fn name(object: &Value) -> String {
    let word = |field: &str| {
        object["metadata"][field]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    format!("{}/{}", word("namespace"), word("name"))
}

fn conditions(of: &Value) -> Value {
    let line = |condition: &Value| {
        let word = |field: &str| condition[field].as_str().unwrap_or_default().to_owned();
        format!(
            "{}={}/{}: {}",
            word("type"),
            word("status"),
            word("reason"),
            word("message")
        )
    };
    of["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .map(line)
        .collect()
}

pub(super) fn policy(object: &Value) -> (String, Value) {
    let status = &object["status"];
    let target = |target: &Value| {
        let sections = target["sections"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|section| {
                let word = |field: &str| section[field].as_str().unwrap_or_default().to_owned();
                format!(
                    "{} from {} ({})",
                    word("section"),
                    word("from"),
                    word("mode")
                )
            });
        json!({ "conditions": conditions(target), "sections": sections.collect::<Vec<_>>() })
    };
    let targets: Vec<Value> = status["targets"]
        .as_array()
        .into_iter()
        .flatten()
        .map(target)
        .collect();
    let value = json!({
        "generation": object["metadata"]["generation"],
        "conditions": conditions(status),
        "targets": targets,
        "summary": status["summary"],
        "breakers": status["breakers"],
    });
    (name(object), value)
}

pub(super) fn breaker(object: &Value) -> (String, Value) {
    let status = &object["status"];
    let value = json!({ "conditions": conditions(status), "service": status["service"], "shadow": status["shadow"] });
    (name(object), value)
}
