//! Probes of the kubelet, which a policy never touches: a pod that is busy must
//! not be taken for a broken one.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwap;
use weir_resilience::config::{Probe, RequestView};

/// How the kubelet names itself.
const KUBELET: &[u8] = b"kube-probe/";
/// The method by which gRPC services tell their health.
const GRPC_HEALTH: &str = "/grpc.health.v1.Health/Check";

/// Whether `request`, to the container's `port`, is one of the pod's `probes`.
/// Other traffic comes from the node too (load balancers, ingress on its network),
/// and is no probe; `from_node` is asked only for what looks like one.
pub(crate) fn is_probe(
    probes: &[Probe],
    from_node: impl FnOnce() -> bool,
    port: u16,
    request: &impl RequestView,
) -> bool {
    let named = || {
        let agent = request.header("user-agent");
        agent.is_some_and(|agent| agent.starts_with(KUBELET))
    };
    let like_one = probes.iter().any(|probe| match probe {
        Probe::Http { port: of, path } => {
            let path = path.split('?').next().unwrap_or_default();
            of.get() == port
                && request.method() == "GET"
                && same_path(request.path(), path)
                && named()
        }
        Probe::Grpc { port: of } => of.get() == port && request.path() == GRPC_HEALTH,
        // Over when it is accepted: no request comes.
        Probe::Tcp { .. } => false,
    });
    like_one && from_node()
}

/// The kubelet takes a path without its first slash too.
fn same_path(asked: &str, path: &str) -> bool {
    asked.trim_start_matches('/') == path.trim_start_matches('/')
}

/// What the kubelet of this node calls from.
pub(crate) struct Node {
    /// The gateways of the pods' network, as the agent's own pod has them: with
    /// some network plugins the node's traffic to its pods comes from there.
    gateways: Vec<IpAddr>,
    /// The node's own addresses, as the control plane tells them.
    addresses: ArcSwap<Vec<IpAddr>>,
}

impl Node {
    /// `proc` is where the kernel tells of this process's network.
    pub(crate) fn new(proc: &Path) -> Node {
        let read = |name: &str| fs::read_to_string(proc.join("net").join(name));
        let v4 = read("route").unwrap_or_default();
        let v6 = read("ipv6_route").unwrap_or_default();
        Node {
            gateways: gateways_v4(&v4).chain(gateways_v6(&v6)).collect(),
            addresses: ArcSwap::default(),
        }
    }

    /// These are the node's addresses from now on.
    pub(crate) fn has(&self, addresses: &[IpAddr]) {
        if self.addresses.load().as_slice() != addresses {
            self.addresses.store(Arc::new(addresses.to_vec()));
        }
    }

    /// Whether the kubelet may call from this address.
    pub(crate) fn calls_from(&self, address: IpAddr) -> bool {
        self.gateways.contains(&address) || self.addresses.load().contains(&address)
    }
}

/// The gateways of default routes in `/proc/net/route`: a destination of zero, and
/// the gateway as the machine keeps it in memory.
fn gateways_v4(text: &str) -> impl Iterator<Item = IpAddr> {
    let routes = text.lines().map(|line| line.split_ascii_whitespace());
    routes.filter_map(|mut fields| {
        let (destination, gateway) = (fields.nth(1)?, fields.next()?);
        let gateway = u32::from_str_radix(gateway, 16).ok()?;
        let is_default = destination == "00000000" && gateway != 0;
        is_default.then(|| Ipv4Addr::from(gateway.to_ne_bytes()).into())
    })
}

/// The same of `/proc/net/ipv6_route`, where addresses are written in full.
fn gateways_v6(text: &str) -> impl Iterator<Item = IpAddr> {
    let routes = text.lines().map(|line| line.split_ascii_whitespace());
    routes.filter_map(|mut fields| {
        let (length, gateway) = (fields.nth(1)?, fields.nth(2)?);
        let gateway = u128::from_str_radix(gateway, 16).ok()?;
        let is_default = length == "00" && gateway != 0;
        is_default.then(|| Ipv6Addr::from(gateway).into())
    })
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use super::*;

    struct Asked {
        method: &'static str,
        path: &'static str,
        agent: Option<&'static str>,
    }

    impl RequestView for Asked {
        fn method(&self) -> &str {
            self.method
        }

        fn path(&self) -> &str {
            self.path
        }

        fn header(&self, name: &str) -> Option<&[u8]> {
            self.agent
                .filter(|_| name == "user-agent")
                .map(str::as_bytes)
        }
    }

    fn probes() -> Vec<Probe> {
        let port = |port| NonZeroU16::new(port).unwrap();
        vec![
            Probe::Http {
                port: port(8080),
                path: "/healthz?full=1".to_owned(),
            },
            Probe::Grpc { port: port(9090) },
            Probe::Tcp { port: port(5432) },
        ]
    }

    fn check(asked: &Asked, port: u16, from_node: bool) -> bool {
        is_probe(&probes(), || from_node, port, asked)
    }

    const HTTP: Asked = Asked {
        method: "GET",
        path: "/healthz",
        agent: Some("kube-probe/1.37"),
    };
    const GRPC: Asked = Asked {
        method: "POST",
        path: GRPC_HEALTH,
        agent: Some("kube-probe/1.37 grpc-go/1.79"),
    };

    #[test]
    fn the_probes_of_a_pod_are_known_by_what_they_are() {
        assert!(check(&HTTP, 8080, true));
        assert!(check(&GRPC, 9090, true));
    }

    #[test]
    fn who_is_not_on_the_node_sends_no_probe() {
        assert!(!check(&HTTP, 8080, false));
        assert!(!check(&GRPC, 9090, false));
    }

    #[test]
    fn other_requests_from_the_node_are_no_probes() {
        assert!(!check(&HTTP, 9090, true), "another port");
        assert!(!check(&GRPC, 8080, true), "another port");
        for asked in [
            Asked { path: "/", ..HTTP },
            Asked {
                method: "POST",
                ..HTTP
            },
            Asked {
                agent: Some("curl/8"),
                ..HTTP
            },
            Asked {
                agent: None,
                ..HTTP
            },
        ] {
            assert!(!check(&asked, 8080, true));
        }
        let other = Asked {
            path: "/grpc.health.v1.Health/Watch",
            ..GRPC
        };
        assert!(!check(&other, 9090, true));
        assert!(!is_probe(&[], || true, 8080, &HTTP));
    }

    #[test]
    fn only_what_looks_like_a_probe_costs_a_look_at_the_address() {
        let other = Asked { path: "/", ..HTTP };
        let looked = || unreachable!("it is no probe");
        assert!(!is_probe(&probes(), looked, 8080, &other));
    }

    #[test]
    fn the_kubelet_calls_from_the_gateway_or_from_the_node_itself() {
        let v4 = "Iface\tDestination\tGateway \tFlags\n\
                  eth0\t00000000\t0101A8C0\t0003\n\
                  eth0\t0001A8C0\t00000000\t0001\n";
        let v6 = "fd000000000000000000000000000000 40 00000000000000000000000000000000 00 \
                  00000000000000000000000000000000 00000100 00000001 00000000 00000001 eth0\n\
                  00000000000000000000000000000000 00 00000000000000000000000000000000 00 \
                  fd000000000000000000000000000001 00000400 00000003 00000000 00000003 eth0\n\
                  00000000000000000000000000000000 00 00000000000000000000000000000000 00 \
                  00000000000000000000000000000000 ffffffff 00000001 00000000 00200200 lo\n";
        // As the kernel of a machine with the small end first writes it.
        #[cfg(target_endian = "little")]
        assert!(gateways_v4(v4).eq([IpAddr::from([192, 168, 1, 1])]));
        let gateway: IpAddr = "fd00::1".parse().unwrap();
        assert!(gateways_v6(v6).eq([gateway]));
        let node = Node {
            gateways: vec![gateway],
            addresses: ArcSwap::default(),
        };
        let own = IpAddr::from([10, 0, 0, 7]);
        assert!(node.calls_from(gateway) && !node.calls_from(own));
        node.has(&[own]);
        assert!(node.calls_from(own));
        node.has(&[]);
        assert!(!node.calls_from(own));
    }

    #[test]
    fn a_network_that_is_not_told_of_has_no_gateway() {
        for text in ["", "\n", "x", "eth0 00000000 xyz", "a b c d e"] {
            assert_eq!(gateways_v4(text).count(), 0);
            assert_eq!(gateways_v6(text).count(), 0);
        }
        let node = Node::new(Path::new("/nowhere"));
        assert!(!node.calls_from(IpAddr::from([0, 0, 0, 0])));
    }
}
