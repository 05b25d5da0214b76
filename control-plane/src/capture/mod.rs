//! Capture, as far as the control plane has a part in it: which Pods each
//! node's agent may capture, and who has an address.
//!
//! [`pushed`] writes the resources of each node, of what changed alone.
//! [`callers`] knows addresses, for agents that ask who calls. [`coverage`] says
//! of each policy what of it is captured.

use std::fmt;

use crate::sources::pods::{Mesh, Pod};
use crate::sources::{Labels, Objects};

mod callers;
mod coverage;
mod pushed;

pub(crate) use callers::Callers;
pub(crate) use coverage::{Covers, Scene};
pub(crate) use pushed::renew;

/// Label of a Namespace; `disabled`: its Pods are not captured.
const CAPTURE: &str = "weir.dev/capture";
/// Where what a cluster cannot do without is.
const SYSTEM: &str = "kube-system";

/// Why a Pod is not captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum WhyNot {
    /// Its network is its node's.
    HostNetwork,
    /// It is the cluster's own, or Weir's.
    System,
    /// It, or its namespace, says so.
    OptedOut,
    /// Another mesh has its connections.
    OtherMesh(Mesh),
    /// It has no address yet.
    NoAddress,
}

impl fmt::Display for WhyNot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WhyNot::HostNetwork => f.write_str("hostNetwork"),
            WhyNot::System => f.write_str("in a system namespace"),
            WhyNot::OptedOut => write!(f, "{CAPTURE}: disabled"),
            WhyNot::OtherMesh(mesh) => write!(f, "other mesh ({})", mesh.as_str()),
            WhyNot::NoAddress => f.write_str("without an address"),
        }
    }
}

/// Why the Pod `name` is not captured, if so.
pub(crate) fn why_not(objects: &Objects, name: &str, pod: &Pod) -> Option<WhyNot> {
    let namespace = namespace_of(name);
    if pod.host_network {
        return Some(WhyNot::HostNetwork);
    }
    if namespace == SYSTEM || namespace == objects.own_namespace {
        return Some(WhyNot::System);
    }
    let labels = objects.namespaces.get(namespace);
    if pod.opted_out || labels.is_some_and(|labels| opts_out(labels)) {
        return Some(WhyNot::OptedOut);
    }
    if let Some(mesh) = pod.mesh {
        return Some(WhyNot::OtherMesh(mesh));
    }
    pod.addresses.is_empty().then_some(WhyNot::NoAddress)
}

fn opts_out(labels: &Labels) -> bool {
    labels.get(CAPTURE).is_some_and(|word| word == "disabled")
}

/// Of "namespace/name".
fn namespace_of(pod: &str) -> &str {
    pod.split_once('/').map_or(pod, |(namespace, _)| namespace)
}

#[cfg(test)]
mod tests;
