//! Who has an address. Written as objects change, by every replica, and read by
//! streams.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};

use weir_proto::v1alpha1 as proto;

use crate::sources::pods::{Pod, PodName};

/// Who has one address.
#[derive(Clone, Debug)]
pub(crate) enum Holder {
    /// A Pod, alone.
    Pod {
        name: PodName,
        node: Arc<str>,
        pod: Arc<Pod>,
    },
    /// A node, and all that use its network.
    Node(Arc<str>),
}

/// See the module. Holds what the API server has: each address of a Pod or node.
#[derive(Debug, Default)]
pub(crate) struct Callers(RwLock<HashMap<IpAddr, Holder>>);

impl Callers {
    /// Takes away what is gone, and then adds what came: an address may go from
    /// one to the other.
    pub(super) fn update(&self, gone: Vec<(IpAddr, Holder)>, come: Vec<(IpAddr, Holder)>) {
        if gone.is_empty() && come.is_empty() {
            return;
        }
        let mut holders = self.0.write().unwrap_or_else(PoisonError::into_inner);
        for (address, holder) in gone {
            // A Pod that ends may be told of after another got its address.
            if holders.get(&address).is_some_and(|now| now.is(&holder)) {
                holders.remove(&address);
            }
        }
        holders.extend(come);
    }

    /// Who has the address.
    pub(crate) fn holder(&self, address: IpAddr) -> Option<Holder> {
        let holders = self.0.read().unwrap_or_else(PoisonError::into_inner);
        holders.get(&address.to_canonical()).cloned()
    }

    /// The same, for an agent. Who uses a node's network cannot be told apart.
    pub(crate) fn caller(&self, address: IpAddr) -> proto::Caller {
        let Some(Holder::Pod { name, pod, .. }) = self.holder(address) else {
            return proto::Caller::default();
        };
        let (namespace, name) = name.split_once('/').unwrap_or_default();
        proto::Caller {
            known: true,
            namespace: namespace.to_owned(),
            service_account: pod.service_account.clone(),
            workload: pod.workload.clone(),
            pod: name.to_owned(),
        }
    }
}

impl Holder {
    fn is(&self, other: &Holder) -> bool {
        match (self, other) {
            (Holder::Pod { pod: a, .. }, Holder::Pod { pod: b, .. }) => Arc::ptr_eq(a, b),
            (Holder::Node(a), Holder::Node(b)) => a == b,
            _ => false,
        }
    }
}
