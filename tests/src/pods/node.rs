//! Nodes and pods, and the cables between them.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use super::Topology;
use super::addresses::Addresses;
use super::namespace::Namespace;
use super::policies::{Policy, Traffic};

/// Calico's gateway, which no interface has: the node answers for it.
const ROUTED_GATEWAY: &str = "169.254.1.1";
/// The hardware address of every node's end in Calico, and the link-local address that it makes.
const ROUTED_HARDWARE: &str = "ee:ee:ee:ee:ee:ee";
const ROUTED_GATEWAY_V6: &str = "fe80::ecee:eeff:feee:eeee";

/// Threads that start and end pods: an end waits for the kernel most of the time.
const AT_A_TIME: usize = 8;

/// For every namespace: an address is there at once, without asking whether
/// somebody else has it; IPv6 is on, whatever the machine's own default is.
const SYSCTLS: [(&str, &str); 4] = [
    ("ipv6/conf/all/accept_dad", "0"),
    ("ipv6/conf/default/accept_dad", "0"),
    ("ipv6/conf/all/disable_ipv6", "0"),
    ("ipv6/conf/default/disable_ipv6", "0"),
];

/// A node: it forwards for its pods, and refuses a packet whose source lies
/// elsewhere than where the packet came from, as Calico demands.
#[derive(Debug)]
pub struct Node {
    number: u8,
    topology: Topology,
    inside: Arc<Namespace>,
    netns: PathBuf,
    hosts: Arc<Mutex<Hosts>>,
    home: Arc<TempDir>,
}

/// Which addresses of the pod network are taken.
#[derive(Default, Debug)]
struct Hosts {
    taken: BTreeSet<u8>,
    /// Addresses are given round in turn: one that has just become free is the
    /// last to be given again.
    last: u8,
}

impl Hosts {
    fn take(&mut self) -> Option<u8> {
        let order = (self.last.saturating_add(1).max(2)..=254).chain(2..=254);
        let host = order.into_iter().find(|host| !self.taken.contains(host))?;
        self.taken.insert(host);
        self.last = host;
        Some(host)
    }
}

impl Node {
    pub(super) fn new(number: u8, topology: Topology, home: &Arc<TempDir>) -> Result<Node> {
        let netns = home.path().join(number.to_string()).join("netns");
        fs::create_dir_all(&netns)?;
        let mut sysctls = SYSCTLS.to_vec();
        sysctls.extend([
            ("ipv4/ip_forward", "1"),
            ("ipv4/conf/all/rp_filter", "0"),
            ("ipv4/conf/default/rp_filter", "1"),
            ("ipv6/conf/all/forwarding", "1"),
        ]);
        if let Topology::Bridge { br_netfilter } = topology {
            let value = if br_netfilter { "1" } else { "0" };
            // A kernel without it does what 0 says.
            if br_netfilter || Path::new("/proc/sys/net/bridge").exists() {
                sysctls.push(("bridge/bridge-nf-call-iptables", value));
                sysctls.push(("bridge/bridge-nf-call-ip6tables", value));
            }
        }
        let path = netns.with_file_name("node");
        let inside = Arc::new(Namespace::new(path, home, &sysctls)?);
        let mut lines = "link set lo up\n".to_owned();
        if let Topology::Bridge { .. } = topology {
            let Addresses { v4, v6 } = Addresses::of_pod(number, 1);
            // Without snooping there is no first moment in which a neighbour is not found.
            lines += "link add cni0 type bridge mcast_snooping 0\n";
            let _ = writeln!(lines, "addr add {v4}/24 dev cni0");
            let _ = writeln!(lines, "addr add {v6}/64 dev cni0 nodad");
            lines += "link set cni0 up\n";
        }
        inside.ip(&lines)?;
        Ok(Node {
            number,
            topology,
            inside,
            netns,
            hosts: Arc::default(),
            home: home.clone(),
        })
    }

    /// Its network namespace.
    pub fn inside(&self) -> &Namespace {
        &self.inside
    }

    /// The directory with one name for each pod's namespace, as /var/run/netns on
    /// a node. Names that no pod has may be put there.
    pub fn netns(&self) -> &Path {
        &self.netns
    }

    /// Its own addresses.
    pub fn addresses(&self) -> Addresses {
        Addresses::of_node(self.number)
    }

    /// Starts a pod. Several threads may do so at once.
    ///
    /// # Errors
    /// When the name is in use, and at the 254th pod.
    pub fn pod(&self, name: &str) -> Result<Pod> {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        let host = hosts.take();
        drop(hosts);
        let host = host.context("no more than 253 pods fit on a node")?;
        let taken = Taken {
            host,
            node: self.inside.clone(),
            hosts: self.hosts.clone(),
        };
        let inside = Namespace::new(self.netns.join(name), &self.home, &SYSCTLS)?;
        let pod = Pod {
            name: name.to_owned(),
            addresses: Addresses::of_pod(self.number, host),
            topology: self.topology,
            inside,
            taken,
        };
        let (of_node, of_pod) = self.cable(&pod);
        pod.taken.node.ip(&of_node)?;
        if self.topology == Topology::Routed {
            self.inside.enter(|| {
                // Both as Calico: answer for the gateway, and at once.
                let name = pod.taken.cable();
                let of = |group| Path::new("/proc/sys/net/ipv4").join(group).join(&name);
                fs::write(of("conf").join("proxy_arp"), "1")?;
                fs::write(of("neigh").join("proxy_delay"), "0")?;
                Ok(())
            })?;
        }
        pod.inside.ip(&of_pod)?;
        Ok(pod)
    }

    /// Starts pods with these names, several at a time.
    ///
    /// # Errors
    /// As [`Node::pod`].
    pub fn pods(&self, names: &[String]) -> Result<Vec<Pod>> {
        in_parallel(names.iter().collect(), |name| self.pod(name))
            .into_iter()
            .collect()
    }

    /// What `ip` has to do on the node and then in the pod.
    fn cable(&self, pod: &Pod) -> (String, String) {
        let name = pod.taken.cable();
        let path = pod.inside.path().display();
        let Addresses { v4, v6 } = pod.addresses;
        let Addresses {
            v4: gateway,
            v6: gateway6,
        } = Addresses::of_pod(self.number, 1);
        let hardware = match self.topology {
            Topology::Routed => format!("address {ROUTED_HARDWARE}"),
            _ => String::new(),
        };
        let node = format!(
            "link add {name} {hardware} type veth peer name eth0 netns {path}\n\
             link set {name} up\n"
        );
        let routes = format!(
            "route add {v4}/32 dev {name} scope link\n\
             route add {v6}/128 dev {name}\n"
        );
        let up = "link set lo up\nlink set eth0 up\n";
        match self.topology {
            Topology::Routed => (
                node + &routes,
                format!(
                    "{up}addr add {v4}/32 dev eth0\n\
                     addr add {v6}/128 dev eth0 nodad\n\
                     route add {ROUTED_GATEWAY} dev eth0 scope link\n\
                     route add default via {ROUTED_GATEWAY} dev eth0\n\
                     route add ::/0 via {ROUTED_GATEWAY_V6} dev eth0\n"
                ),
            ),
            Topology::Ptp => (
                format!(
                    "{node}addr add {gateway}/32 dev {name}\n\
                     addr add {gateway6}/128 dev {name} nodad\n{routes}"
                ),
                format!(
                    "{up}addr add {v4}/24 dev eth0 noprefixroute\n\
                     addr add {v6}/64 dev eth0 nodad noprefixroute\n\
                     route add {gateway} dev eth0 scope link src {v4}\n\
                     route add {gateway6} dev eth0\n\
                     route add default via {gateway} dev eth0 src {v4}\n\
                     route add ::/0 via {gateway6} dev eth0\n"
                ),
            ),
            Topology::Bridge { .. } => (
                format!(
                    "{node}link set {name} master cni0\n\
                     link set {name} type bridge_slave hairpin on\n"
                ),
                format!(
                    "{up}addr add {v4}/24 dev eth0\n\
                     addr add {v6}/64 dev eth0 nodad\n\
                     route add default via {gateway} dev eth0\n\
                     route add ::/0 via {gateway6} dev eth0\n"
                ),
            ),
        }
    }
}

/// Joins two nodes, or gives one a cable that leads nowhere.
pub(super) fn join(nodes: &[Node]) -> Result<()> {
    let [first, others @ ..] = nodes else {
        return Ok(());
    };
    let far = match others {
        [other, ..] => format!("eth0 netns {}", other.inside.path().display()),
        [] => "far\nlink set far up".to_owned(),
    };
    let cable = format!("link add eth0 type veth peer name {far}");
    first.inside.ip(&cable)?;
    for node in nodes {
        let Addresses { v4, v6 } = node.addresses();
        let mut lines = format!(
            "addr add {v4}/24 dev eth0\n\
             addr add {v6}/64 dev eth0 nodad\n\
             link set eth0 up\n\
             route add default dev eth0\n\
             route add ::/0 dev eth0\n"
        );
        for other in nodes.iter().filter(|other| other.number != node.number) {
            let Addresses { v4, v6 } = other.addresses();
            let pods = Addresses::of_pod(other.number, 0);
            let _ = writeln!(lines, "route add {}/24 via {v4}", pods.v4);
            let _ = writeln!(lines, "route add {}/64 via {v6}", pods.v6);
        }
        node.inside.ip(&lines)?;
    }
    Ok(())
}

/// A pod: a network namespace with an `eth0` that has the pod's addresses. It
/// ends with the value: its cable is pulled, then its name goes. A namespace that
/// somebody holds open stays, as on a node.
#[derive(Debug)]
pub struct Pod {
    name: String,
    addresses: Addresses,
    topology: Topology,
    // The order in which they end.
    taken: Taken,
    inside: Namespace,
}

impl Pod {
    /// Its name, which is also that of its namespace below [`Node::netns`].
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its addresses.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Its network namespace.
    pub fn inside(&self) -> &Namespace {
        &self.inside
    }

    /// A NetworkPolicy for what the pod begins: connections to `to` and to nobody
    /// else, at most one policy at a time. The rules are in its node's forward
    /// chain and go by the pod's address and by where a Service has led, as those
    /// of Calico and kube-router. Between pods of one node it holds only where
    /// [`Topology::filters_neighbours`].
    ///
    /// # Errors
    /// When nft refuses the rules.
    pub fn allow_only_egress(&self, to: &[SocketAddr]) -> Result<Policy> {
        self.allow_only(Traffic::Egress, to)
    }

    /// The same for what others begin: connections from these addresses to that
    /// port of the pod. Its own node is no such other.
    ///
    /// # Errors
    /// When nft refuses the rules.
    pub fn allow_only_ingress(&self, from: &[SocketAddr]) -> Result<Policy> {
        self.allow_only(Traffic::Ingress, from)
    }

    fn allow_only(&self, traffic: Traffic, allowed: &[SocketAddr]) -> Result<Policy> {
        let bridged = self.topology == Topology::Bridge { br_netfilter: true };
        Policy::new(&self.taken.node, self, traffic, allowed, bridged)
    }
}

/// Ends pods, several at a time.
pub fn end(pods: Vec<Pod>) {
    in_parallel(pods, drop);
}

/// Works on all of them, each thread on a share. The results are in order.
fn in_parallel<T: Send, R: Send>(mut items: Vec<T>, work: impl Fn(T) -> R + Sync) -> Vec<R> {
    let share = items.len().div_ceil(AT_A_TIME).max(1);
    thread::scope(|scope| {
        let mut shares = Vec::new();
        while !items.is_empty() {
            let rest = items.split_off(share.min(items.len()));
            let items = std::mem::replace(&mut items, rest);
            let work = &work;
            shares.push(scope.spawn(move || items.into_iter().map(work).collect::<Vec<_>>()));
        }
        let results = shares.into_iter().map(|share| share.join());
        let results = results.map(|share| share.unwrap_or_else(|panic| resume_unwind(panic)));
        results.flatten().collect()
    })
}

/// A pod's place on its node.
#[derive(Debug)]
struct Taken {
    host: u8,
    node: Arc<Namespace>,
    hosts: Arc<Mutex<Hosts>>,
}

impl Taken {
    /// The node's end of the cable.
    fn cable(&self) -> String {
        format!("pod{}", self.host)
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        // It is not there when the pod came to nothing.
        let _ = self.node.ip(&format!("link delete {}", self.cable()));
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        hosts.taken.remove(&self.host);
    }
}
