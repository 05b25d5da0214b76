//! From a manifest to a typed object, with everything that is wrong with it.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use weir_crds::v1alpha1::{CircuitBreakerObject, ResiliencePolicy};

use super::load::dns_name;
use super::{Finding, Kind, Manifest};
use crate::model::{LISTEN, listen_address, refusals};
use crate::sources::{Labels, labels_of};

/// An object of one of the kinds that are read; cheap to clone.
#[derive(Clone, Debug)]
pub enum Typed {
    /// A policy, its defaults filled in.
    ResiliencePolicy(Arc<ResiliencePolicy>),
    /// A person's word over a breaker, its defaults filled in.
    CircuitBreaker(Arc<CircuitBreakerObject>),
    /// A service.
    Service(Arc<Service>),
    /// Where a service's requests go.
    EndpointSlice(Arc<EndpointSlice>),
    /// A namespace's labels.
    Namespace(Arc<Labels>),
}

/// Makes a typed object of a manifest.
///
/// # Errors
/// Everything that an API server would refuse it for.
pub fn decode(manifest: &Manifest) -> Result<Typed, Vec<Finding>> {
    match manifest.id.kind {
        Kind::ResiliencePolicy => {
            let policy: ResiliencePolicy = ours(manifest, weir_crds::Kind::ResiliencePolicy)?;
            let findings = refusals(&policy.spec)
                .into_iter()
                .map(|problem| manifest.finding(problem.path, problem.message));
            finish(
                findings.collect(),
                Typed::ResiliencePolicy(Arc::new(policy)),
            )
        }
        Kind::CircuitBreaker => ours(manifest, weir_crds::Kind::CircuitBreaker)
            .map(|breaker| Typed::CircuitBreaker(Arc::new(breaker))),
        Kind::Service => {
            let service = theirs(manifest)?;
            finish(
                check_service(manifest, &service),
                Typed::Service(Arc::new(service)),
            )
        }
        Kind::EndpointSlice => {
            let slice = theirs(manifest)?;
            finish(
                check_slice(manifest, &slice),
                Typed::EndpointSlice(Arc::new(slice)),
            )
        }
        Kind::Namespace => {
            let namespace: Namespace = theirs(manifest)?;
            Ok(Typed::Namespace(labels_of(&namespace)))
        }
    }
}

fn finish(findings: Vec<Finding>, typed: Typed) -> Result<Typed, Vec<Finding>> {
    if findings.is_empty() {
        Ok(typed)
    } else {
        Err(findings)
    }
}

/// Our own kinds: schema, defaults and rules are those of the CRD.
fn ours<T: DeserializeOwned>(
    manifest: &Manifest,
    kind: weir_crds::Kind,
) -> Result<T, Vec<Finding>> {
    let defaulted = weir_crds::validate::validate(kind, &manifest.value).map_err(|problems| {
        problems
            .into_iter()
            .map(|problem| manifest.finding(problem.path, problem.message))
            .collect::<Vec<_>>()
    })?;
    serde_path_to_error::deserialize(defaulted).map_err(|error| {
        vec![manifest.finding(error.path().to_string(), error.inner().to_string())]
    })
}

/// Kinds of Kubernetes itself, unknown fields refused as `kubectl apply` does.
fn theirs<T: DeserializeOwned + Serialize>(manifest: &Manifest) -> Result<T, Vec<Finding>> {
    let object: T = serde_path_to_error::deserialize(&manifest.value).map_err(|error| {
        vec![manifest.finding(error.path().to_string(), error.inner().to_string())]
    })?;
    let mut findings = Vec::new();
    if let Ok(known) = serde_json::to_value(&object) {
        unknown_fields(
            manifest,
            &manifest.value,
            &known,
            &mut String::new(),
            &mut findings,
        );
    }
    if findings.is_empty() {
        Ok(object)
    } else {
        Err(findings)
    }
}

/// Fields of `written` that the type did not take, for they are not in `known`,
/// which is what it wrote back.
fn unknown_fields(
    manifest: &Manifest,
    written: &Value,
    known: &Value,
    path: &mut String,
    findings: &mut Vec<Finding>,
) {
    let end = path.len();
    match (written, known) {
        (Value::Object(written), Value::Object(known)) => {
            for (key, value) in written {
                let dot = if end == 0 { "" } else { "." };
                if key.contains(['.', '/', '[']) {
                    path.push_str(&format!("[\"{key}\"]"))
                } else {
                    path.push_str(&format!("{dot}{key}"))
                }
                match known.get(key) {
                    Some(known) => unknown_fields(manifest, value, known, path, findings),
                    None if value.is_null() || path == "status" => {}
                    None => findings.push(manifest.finding(
                        path.clone(),
                        "unknown field: remove it, or check its spelling",
                    )),
                }
                path.truncate(end);
            }
        }
        (Value::Array(written), Value::Array(known)) => {
            for (index, (value, known)) in written.iter().zip(known).enumerate() {
                path.push_str(&format!("[{index}]"));
                unknown_fields(manifest, value, known, path, findings);
                path.truncate(end);
            }
        }
        _ => {}
    }
}

fn is_port(port: i32) -> bool {
    (1..=65_535).contains(&port)
}

fn check_service(manifest: &Manifest, service: &Service) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (name, text) in service.metadata.annotations.iter().flatten() {
        if name
            .strip_prefix(LISTEN)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            && let Err(message) = listen_address(text)
        {
            let path = format!("metadata.annotations[\"{name}\"]");
            findings.push(manifest.finding(path, message));
        }
    }
    let ports = service
        .spec
        .as_ref()
        .and_then(|spec| spec.ports.as_deref())
        .unwrap_or_default();
    let external = service
        .spec
        .as_ref()
        .is_some_and(|spec| spec.type_.as_deref() == Some("ExternalName"));
    if ports.is_empty() && !external {
        findings.push(manifest.finding(
            "spec.ports",
            "a Service needs a port: write `ports: [{port: 80}]`",
        ));
    }
    let mut names = HashSet::new();
    let mut numbers = HashSet::new();
    for (index, port) in ports.iter().enumerate() {
        let path = format!("spec.ports[{index}]");
        if !is_port(port.port) {
            findings.push(manifest.finding(
                format!("{path}.port"),
                format!("{} is not a port: write 1 to 65535", port.port),
            ));
        }
        let name = port.name.as_deref().unwrap_or_default();
        if !name.is_empty()
            && let Err(message) = dns_name(name, false)
        {
            let message = format!("name {name:?}: {message}");
            findings.push(manifest.finding(format!("{path}.name"), message));
        }
        if name.is_empty() && ports.len() > 1 {
            findings.push(manifest.finding(
                path.clone(),
                "with several ports each needs a name: write `name: http`, for example",
            ));
        } else if !name.is_empty() && !names.insert(name) {
            findings.push(manifest.finding(
                format!("{path}.name"),
                format!("the name {name} is used twice: give each port its own"),
            ));
        }
        if !numbers.insert((port.port, port.protocol.as_deref().unwrap_or("TCP"))) {
            findings.push(manifest.finding(
                format!("{path}.port"),
                format!("port {} is given twice: remove one", port.port),
            ));
        }
    }
    findings
}

fn check_slice(manifest: &Manifest, slice: &EndpointSlice) -> Vec<Finding> {
    let mut findings = Vec::new();
    let v6 = match slice.address_type.as_str() {
        "IPv4" => Some(false),
        "IPv6" => Some(true),
        "FQDN" => None,
        other => {
            let message = format!("{other:?} is not an address type: write IPv4 or IPv6");
            return vec![manifest.finding("addressType", message)];
        }
    };
    for (at, endpoint) in slice.endpoints.iter().enumerate() {
        if endpoint.addresses.is_empty() {
            findings.push(manifest.finding(
                format!("endpoints[{at}].addresses"),
                "an endpoint needs an address",
            ));
        }
        for (index, address) in endpoint.addresses.iter().enumerate() {
            let good =
                v6.is_none_or(|v6| address.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv6() == v6));
            if !good {
                let message = format!(
                    "{address:?} is not an {} address: write the address alone, without a port",
                    slice.address_type
                );
                findings
                    .push(manifest.finding(format!("endpoints[{at}].addresses[{index}]"), message));
            }
        }
    }
    for (index, port) in slice
        .ports
        .as_deref()
        .unwrap_or_default()
        .iter()
        .enumerate()
    {
        if let Some(number) = port.port.filter(|number| !is_port(*number)) {
            let message = format!("{number} is not a port: write 1 to 65535");
            findings.push(manifest.finding(format!("ports[{index}].port"), message));
        }
    }
    findings
}
