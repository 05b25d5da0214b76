//! What kube-proxy does on every node, in both of its ways.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;

use anyhow::Result;

use super::addresses::ALL_PODS;
use super::{Addresses, Family, Node, Pod};

/// The mode of kube-proxy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KubeProxy {
    /// `--proxy-mode=nftables`: a verdict map.
    Nftables,
    /// `--proxy-mode=iptables`: chains of rules.
    Iptables,
}

impl KubeProxy {
    /// Both.
    pub const BOTH: [KubeProxy; 2] = [KubeProxy::Nftables, KubeProxy::Iptables];
}

/// A Service of type `ClusterIP`.
#[derive(Clone, Debug)]
pub struct Service {
    number: u8,
    ports: BTreeMap<u16, Vec<SocketAddr>>,
}

impl Service {
    /// One without ports. The number says its addresses.
    pub fn new(number: u8) -> Service {
        Service {
            number,
            ports: BTreeMap::new(),
        }
    }

    /// The same with a port that leads to this port of these pods, each with the
    /// same chance. Without pods, connections are refused.
    #[must_use]
    pub fn port(mut self, port: u16, pods: &[&Pod], target: u16) -> Service {
        let of = |pod: &&Pod| Family::BOTH.map(|family| pod.addresses().port(family, target));
        self.ports.insert(port, pods.iter().flat_map(of).collect());
        self
    }

    /// Its addresses.
    pub fn addresses(&self) -> Addresses {
        Addresses::of_service(self.number)
    }
}

/// The Services that are there.
#[derive(Debug)]
pub(super) struct Services {
    proxy: KubeProxy,
    all: BTreeMap<u8, Service>,
}

/// A port of a Service in one family.
struct Port {
    /// For names of chains.
    name: String,
    at: SocketAddr,
    endpoints: Vec<SocketAddr>,
}

impl Services {
    pub(super) fn new(proxy: KubeProxy) -> Services {
        Services {
            proxy,
            all: BTreeMap::new(),
        }
    }

    pub(super) fn set(&mut self, service: &Service) {
        self.all.insert(service.number, service.clone());
    }

    pub(super) fn remove(&mut self, service: &Service) {
        self.all.remove(&service.number);
    }

    /// Replaces all rules on these nodes; each table changes at once.
    pub(super) fn apply(&self, nodes: &[Node]) -> Result<()> {
        let families = Family::BOTH.into_iter().zip(ALL_PODS);
        let families: Vec<_> = families
            .map(|(family, pods)| (family, pods, self.ports(family)))
            .collect();
        for node in nodes {
            let inside = node.inside();
            match self.proxy {
                KubeProxy::Nftables => {
                    let rules = families.iter();
                    let rules: String =
                        rules.map(|(f, pods, ports)| nft(*f, pods, ports)).collect();
                    inside.nft(&rules)?;
                }
                KubeProxy::Iptables => {
                    for (family, pods, ports) in &families {
                        let program = match family {
                            Family::V4 => "iptables-restore",
                            Family::V6 => "ip6tables-restore",
                        };
                        inside.run(program, &[], &iptables(pods, ports))?;
                    }
                }
            }
        }
        Ok(())
    }

    fn ports(&self, family: Family) -> Vec<Port> {
        let mut ports = Vec::new();
        for service in self.all.values() {
            for (port, endpoints) in &service.ports {
                let endpoints = endpoints.iter().copied();
                ports.push(Port {
                    name: format!("{}-{port}", service.number),
                    at: service.addresses().port(family, *port),
                    endpoints: endpoints
                        .filter(|endpoint| Family::of(endpoint) == family)
                        .collect(),
                });
            }
        }
        ports
    }
}

/// A connection to a Service gets a mark where its answer would not come back by
/// itself, and a node's address as its source: from outside, and from a pod to itself.
const MARK: &str = "0x4000";

fn nft(family: Family, pods: &str, ports: &[Port]) -> String {
    let ip = match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    };
    let table = format!("table {ip} kube-proxy");
    // Empty maps and sets cannot be written down; without Services there is nothing to do.
    let mut rules = format!("{table}\ndelete {table}\n");
    if ports.is_empty() {
        return rules;
    }
    let _ = writeln!(rules, "{table} {{");
    for port in ports {
        let name = &port.name;
        for (n, endpoint) in port.endpoints.iter().enumerate() {
            let _ = writeln!(
                rules,
                "chain ep-{name}-{n} {{\n\
                 {ip} saddr {} meta mark set meta mark or {MARK}\n\
                 meta l4proto tcp dnat to {endpoint}\n}}",
                endpoint.ip()
            );
        }
        let (chain, count) = (format!("svc-{name}"), port.endpoints.len());
        let _ = writeln!(rules, "chain {chain} {{");
        if count > 0 {
            let _ = write!(
                rules,
                "{ip} saddr != {pods} meta mark set meta mark or {MARK}\n\
                 numgen random mod {count} vmap {{ "
            );
            for n in 0..count {
                let _ = write!(rules, "{n} : goto ep-{name}-{n}, ");
            }
            rules += "}\n";
        }
        rules += "}\n";
    }
    let at = |port: &Port| format!("{} . {}", port.at.ip(), port.at.port());
    let verdicts: String = ports
        .iter()
        .map(|port| format!("{} : goto svc-{}, ", at(port), port.name))
        .collect();
    for hook in ["prerouting", "output"] {
        let _ = writeln!(
            rules,
            "chain nat-{hook} {{\ntype nat hook {hook} priority -100;\n\
             {ip} daddr . tcp dport vmap {{ {verdicts} }}\n}}"
        );
    }
    let empty = ports.iter().filter(|port| port.endpoints.is_empty());
    let empty: Vec<String> = empty.map(at).collect();
    for hook in ["forward", "output"] {
        let _ = writeln!(
            rules,
            "chain refuse-{hook} {{\ntype filter hook {hook} priority -110;"
        );
        if !empty.is_empty() {
            let empty = empty.join(", ");
            let _ = writeln!(rules, "{ip} daddr . tcp dport {{ {empty} }} reject");
        }
        rules += "}\n";
    }
    let _ = writeln!(
        rules,
        "chain nat-postrouting {{\ntype nat hook postrouting priority 100;\n\
         meta mark and {MARK} != 0 meta mark set meta mark xor {MARK} masquerade fully-random\n}}\n}}"
    );
    rules
}

fn iptables(pods: &str, ports: &[Port]) -> String {
    let mut chains = "*nat\n:KUBE-SERVICES -\n".to_owned();
    let mut rules = format!(
        "-A PREROUTING -j KUBE-SERVICES\n\
         -A OUTPUT -j KUBE-SERVICES\n\
         -A POSTROUTING -m mark --mark {MARK}/{MARK} -j MASQUERADE --random-fully\n"
    );
    let mut filter = "*filter\n".to_owned();
    for port in ports {
        let (name, at) = (&port.name, port.at.ip());
        let to = format!("-d {at} -p tcp --dport {}", port.at.port());
        if port.endpoints.is_empty() {
            for chain in ["FORWARD", "OUTPUT"] {
                let _ = writeln!(filter, "-A {chain} {to} -j REJECT");
            }
            continue;
        }
        let _ = writeln!(chains, ":KUBE-SVC-{name} -");
        let _ = writeln!(
            rules,
            "-A KUBE-SERVICES {to} -j KUBE-SVC-{name}\n\
             -A KUBE-SVC-{name} ! -s {pods} -j MARK --or-mark {MARK}"
        );
        let count = port.endpoints.len();
        for (n, endpoint) in port.endpoints.iter().enumerate() {
            let _ = writeln!(chains, ":KUBE-SEP-{name}-{n} -");
            let left = count - n;
            let chance = match left {
                1 => String::new(),
                _ => {
                    let share = 1.0 / left as f64;
                    format!("-m statistic --mode random --probability {share:.10} ")
                }
            };
            let _ = writeln!(
                rules,
                "-A KUBE-SVC-{name} {chance}-j KUBE-SEP-{name}-{n}\n\
                 -A KUBE-SEP-{name}-{n} -s {} -j MARK --or-mark {MARK}\n\
                 -A KUBE-SEP-{name}-{n} -p tcp -j DNAT --to-destination {endpoint}",
                endpoint.ip()
            );
        }
    }
    format!("{chains}{rules}COMMIT\n{filter}COMMIT\n")
}
