//! What of each pod's traffic is captured: a function of the pods and of the
//! configuration in force.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use weir_resilience::config::{self, ExistingConnections, ServiceId};

use crate::snapshot::Snapshot;

/// What is captured of one pod.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Plan {
    pub(crate) pod: config::Pod,
    /// Where connections of its own go that come to Weir. Shared by the pods of
    /// a namespace, to which the same policies apply.
    pub(crate) outbound: Arc<Vec<Captured>>,
    /// Its own ports whose callers come to Weir.
    pub(crate) inbound: Vec<u16>,
}

/// An address that callers use for a service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Captured {
    pub(crate) address: SocketAddr,
    pub(crate) service: ServiceId,
    /// What becomes of connections that were open before.
    pub(crate) reset: bool,
}

/// All plans, by the pod's UID.
pub(crate) type Plans = BTreeMap<String, Plan>;

/// Only what a policy asks for: of a pod's own calls those to services that have
/// something to be done at the caller's side, of the calls to it those where it
/// is the endpoint of a service that has something to be done at the destination.
pub(crate) fn plans<'p>(
    snapshot: &Snapshot,
    pods: impl Iterator<Item = &'p config::Pod> + Clone,
    existing: ExistingConnections,
) -> Plans {
    let mut ports: HashMap<IpAddr, Vec<u16>> = pods
        .clone()
        .flat_map(|pod| pod.addresses.iter().map(|address| (*address, Vec::new())))
        .collect();
    for address in snapshot.served() {
        if let Some(ports) = ports.get_mut(&address.ip()) {
            ports.push(address.port());
        }
    }
    let mut of_namespace: HashMap<&str, Arc<Vec<Captured>>> = HashMap::new();
    let plan = |pod: &'p config::Pod| {
        let outbound = of_namespace
            .entry(&pod.namespace)
            .or_insert_with(|| Arc::new(outbound(snapshot, &pod.namespace, existing)))
            .clone();
        let mut inbound: Vec<u16> = pod
            .addresses
            .iter()
            .filter_map(|address| ports.get(address))
            .flatten()
            .copied()
            .collect();
        inbound.sort_unstable();
        inbound.dedup();
        let plan = Plan {
            pod: pod.clone(),
            outbound,
            inbound,
        };
        (pod.uid.clone(), plan)
    };
    pods.map(plan).collect()
}

/// What callers from `namespace` use for services that have rules for them.
fn outbound(snapshot: &Snapshot, namespace: &str, existing: ExistingConnections) -> Vec<Captured> {
    let mut all = Vec::new();
    for (index, service) in snapshot.services.iter().enumerate() {
        let reset = service.existing.unwrap_or(existing) == ExistingConnections::Reset;
        for (port_index, port) in service.ports.iter().enumerate() {
            let place = snapshot.place(index, port_index, Some(namespace));
            if snapshot.at_caller(place).acts_at_caller() {
                all.extend(service.names(port).map(|address| Captured {
                    address,
                    service: service.id.clone(),
                    reset,
                }));
            }
        }
    }
    all.sort();
    all.dedup_by(|a, b| a.address == b.address);
    all
}
