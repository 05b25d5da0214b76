//! Small clusters out of network namespaces: nodes with pods, wired as CNI
//! plugins wire them, with what kube-proxy and NetworkPolicy do to packets.
//! Nothing else of Kubernetes is there; any program runs in a pod unmodified.
//!
//! ```text
//!   Network                                    <dir>/1/node, <dir>/1/netns/<pod>, …
//!   ├─ Node 1 ── eth0 ───── cable ───── eth0 ── Node 2
//!   │   │  Topology: how a pod's cable ends here  │
//!   │   ├─ Pod (eth0)                             └─ Pod
//!   │   └─ Pod
//!   └─ services (KubeProxy: DNAT on every node), policies, counters
//! ```
//!
//! Everything goes with the values that made it. Addresses are the same in every
//! [`Network`]: none of them leaves its namespaces.

mod addresses;
mod namespace;
mod node;
mod policies;
mod services;
mod sweep;

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result, bail};
use tempfile::TempDir;

use crate::programs;

pub use addresses::{Addresses, Family};
pub use namespace::{Namespace, Running};
pub use node::{Node, Pod, end};
pub use policies::{Counter, Hook, Policy};
use services::Services;
pub use services::{KubeProxy, Service};

/// How a pod's cable ends on its node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Topology {
    /// A route to each pod, and no address at the node's end of its cable: the
    /// pod's gateway is 169.254.1.1, for which the node answers by proxy ARP, or
    /// the link-local address of the node's end. As Calico.
    Routed,
    /// A route to each pod, and the pod network's gateway address at every cable's
    /// end. As kindnet and the CNI plugin `ptp`.
    Ptp,
    /// One bridge, which has the gateway address. As flannel and the CNI plugin
    /// `bridge`.
    Bridge {
        /// Whether frames between two pods of a node meet the node's IP rules.
        /// Kubernetes demands it: without it, a pod that calls a Service gets
        /// no answer from an endpoint on its own node, since the answer does
        /// not pass where the address was changed.
        br_netfilter: bool,
    },
}

impl Topology {
    /// All of them.
    pub const ALL: [Topology; 4] = [
        Topology::Routed,
        Topology::Ptp,
        Topology::Bridge { br_netfilter: true },
        Topology::Bridge {
            br_netfilter: false,
        },
    ];

    /// Whether what two pods of one node say to each other meets the node's
    /// IP rules: kube-proxy's and those of a NetworkPolicy.
    pub fn filters_neighbours(self) -> bool {
        self != Topology::Bridge {
            br_netfilter: false,
        }
    }
}

/// Nodes with pods. It ends with the value.
#[derive(Debug)]
pub struct Network {
    nodes: Vec<Node>,
    services: Mutex<Services>,
}

impl Network {
    /// One node, or two that are joined by a cable. None where that needs more
    /// rights or another kernel than there are, and this is not CI; then a line
    /// that begins with `NOT RUN` has been printed.
    ///
    /// # Errors
    /// On CI, when rights, `ip`, `nft`, `iptables`, `curl` or `br_netfilter` are missing.
    pub fn new(topology: Topology, proxy: KubeProxy, nodes: u8) -> Result<Option<Network>> {
        if programs::find("WEIR_CURL", "curl")?.is_none() {
            return Ok(None);
        }
        match Network::made(topology, proxy, nodes) {
            Ok(network) => Ok(Some(network)),
            Err(error) if std::env::var_os("CI").is_none() => {
                println!("NOT RUN: no pods in network namespaces: {error:#}; run as root");
                Ok(None)
            }
            Err(error) => Err(error.context("no pods in network namespaces; run as root")),
        }
    }

    fn made(topology: Topology, proxy: KubeProxy, nodes: u8) -> Result<Network> {
        if !(1..=2).contains(&nodes) {
            bail!("{nodes} nodes: give 1 or 2");
        }
        sweep::once();
        let home = tempfile::Builder::new()
            .prefix(&sweep::prefix(std::process::id()))
            .tempdir()?;
        let home: Arc<TempDir> = Arc::new(home);
        let nodes = (1..=nodes)
            .map(|number| Node::new(number, topology, &home).context("cannot make a node"))
            .collect::<Result<Vec<_>>>()?;
        node::join(&nodes)?;
        let services = Services::new(proxy);
        // Whether nft or iptables are there shows now, and not at the first Service.
        services.apply(&nodes[..1])?;
        Ok(Network {
            nodes,
            services: Mutex::new(services),
        })
    }

    /// A node by its place, from 0.
    ///
    /// # Panics
    /// When there is none.
    pub fn node(&self, place: usize) -> &Node {
        &self.nodes[place]
    }

    /// All nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Puts a Service on every node, or changes it; connections that are there stay.
    ///
    /// # Errors
    /// When nft or iptables refuse the rules.
    pub fn serve(&self, service: &Service) -> Result<()> {
        let mut services = self.services.lock().unwrap_or_else(PoisonError::into_inner);
        services.set(service);
        services.apply(&self.nodes)
    }

    /// Takes a Service away from every node.
    ///
    /// # Errors
    /// When nft or iptables refuse the rules.
    pub fn withdraw(&self, service: &Service) -> Result<()> {
        let mut services = self.services.lock().unwrap_or_else(PoisonError::into_inner);
        services.remove(service);
        services.apply(&self.nodes)
    }
}
