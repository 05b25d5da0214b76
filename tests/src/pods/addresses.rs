//! Who has which address.
//!
//! | | IPv4 | IPv6 |
//! |---|---|---|
//! | node N | 192.168.96.N | fd77:96::N |
//! | pods of node N | 10.244.N.2 … 254 | fd77:244:N::2 … fe |
//! | their gateway | 10.244.N.1 | fd77:244:N::1 |
//! | Service S | 10.96.0.S | fd77:10::S |

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// All pods of all nodes, as kube-proxy's `--cluster-cidr`.
pub(super) const ALL_PODS: [&str; 2] = ["10.244.0.0/16", "fd77:244::/32"];

/// A version of IP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const BOTH: [Family; 2] = [Family::V4, Family::V6];

    /// The one of this address.
    pub fn of(address: &SocketAddr) -> Family {
        match address {
            SocketAddr::V4(_) => Family::V4,
            SocketAddr::V6(_) => Family::V6,
        }
    }
}

/// The two addresses that everybody here has.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Addresses {
    /// IPv4.
    pub v4: Ipv4Addr,
    /// IPv6.
    pub v6: Ipv6Addr,
}

impl Addresses {
    /// The one of this family.
    pub fn ip(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4.into(),
            Family::V6 => self.v6.into(),
        }
    }

    /// The same with a port.
    pub fn port(&self, family: Family, port: u16) -> SocketAddr {
        (self.ip(family), port).into()
    }

    pub(super) fn of_node(node: u8) -> Addresses {
        Addresses {
            v4: Ipv4Addr::new(192, 168, 96, node),
            v6: Ipv6Addr::new(0xfd77, 0x96, 0, 0, 0, 0, 0, node.into()),
        }
    }

    /// Of a pod, or of the gateway, which is host 1.
    pub(super) fn of_pod(node: u8, host: u8) -> Addresses {
        Addresses {
            v4: Ipv4Addr::new(10, 244, node, host),
            v6: Ipv6Addr::new(0xfd77, 0x244, node.into(), 0, 0, 0, 0, host.into()),
        }
    }

    pub(super) fn of_service(service: u8) -> Addresses {
        Addresses {
            v4: Ipv4Addr::new(10, 96, 0, service),
            v6: Ipv6Addr::new(0xfd77, 0x10, 0, 0, 0, 0, 0, service.into()),
        }
    }
}
