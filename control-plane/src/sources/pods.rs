//! Pods and nodes, as far as anybody asks: in a large cluster there are many of
//! them, so that nothing else is kept.

use std::net::IpAddr;
use std::sync::Arc;

use super::Shared;

/// "namespace/name" of a Pod. Shared by all that name it.
pub type PodName = Arc<str>;

/// The Pods of each node.
pub type Pods = Shared<Arc<str>, Shared<PodName, Arc<Pod>>>;

/// A Pod that was given to a node and has not ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// One that was made again under its name has another.
    pub uid: String,
    /// Of its own; none until its network is there, and none where it uses its
    /// node's.
    pub addresses: Vec<IpAddr>,
    /// It uses its node's network.
    pub host_network: bool,
    /// Labelled `weir.dev/capture: disabled`.
    pub opted_out: bool,
    /// The mesh that has its connections already.
    pub mesh: Option<Mesh>,
    /// What it runs as.
    pub service_account: String,
    /// What it belongs to, "Deployment/checkout"; empty: nothing.
    pub workload: String,
    /// Its probes over the network, each once.
    pub probes: Vec<Probe>,
}

/// Another mesh than Weir.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mesh {
    /// Istio, with a sidecar.
    Istio,
    /// Istio, with a proxy on the node.
    IstioAmbient,
    /// Kuma.
    Kuma,
    /// Linkerd.
    Linkerd,
}

impl Mesh {
    /// As people call it.
    pub fn as_str(self) -> &'static str {
        match self {
            Mesh::Istio => "istio",
            Mesh::IstioAmbient => "istio ambient",
            Mesh::Kuma => "kuma",
            Mesh::Linkerd => "linkerd",
        }
    }
}

/// A probe of a kubelet over the network.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Probe {
    /// Of the container.
    pub port: u16,
    /// Of HTTP without TLS; else empty.
    pub path: String,
    /// It speaks gRPC.
    pub grpc: bool,
}

/// A node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// `topology.kubernetes.io/zone`; empty where it has none.
    pub zone: String,
    /// Its own addresses.
    pub addresses: Vec<IpAddr>,
}
