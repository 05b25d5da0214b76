//! A small shop on two nodes, and the table of calls that have to work there.

use std::fmt;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use tokio::sync::{Semaphore, SemaphorePermit};
use weir_tests::pods::{Family, KubeProxy, Network, Pod, Service, Topology};
use weir_tests::{Backend, Reply};

/// The ports of a Service, and where each leads.
pub(crate) const PORTS: [(u16, u16); 2] = [(80, 8080), (8443, 9090)];

/// A caller on one node, an endpoint there and one on the other node.
pub(crate) struct Shop {
    pub(crate) caller: Pod,
    pub(crate) near: Endpoint,
    pub(crate) far: Endpoint,
    pub(crate) services: Services,
    pub(crate) network: Network,
}

/// Services by where their endpoints are.
pub(crate) struct Services {
    pub(crate) near: Service,
    pub(crate) far: Service,
    pub(crate) both: Service,
}

/// A pod with a server at each target port, which says who it is and who calls.
pub(crate) struct Endpoint {
    pub(crate) pod: Pod,
    /// Answers that are held until there is one of these: those at `/held`.
    pub(crate) held: Arc<Semaphore>,
    servers: Vec<Backend>,
}

impl Endpoint {
    fn start(pod: Pod) -> Result<Endpoint> {
        let held = Arc::new(Semaphore::new(0));
        let server = |(_, target): (u16, u16)| {
            let listener = pod
                .inside()
                .listen((Ipv6Addr::UNSPECIFIED, target).into())?;
            let name = pod.name().to_owned();
            let held = held.clone();
            Ok(Backend::at(listener, move |seen| {
                let peer = seen.peer.ip().to_canonical();
                let text = format!("{name} {target} {peer}");
                let held = (seen.target == "/held").then(|| held.clone());
                async move {
                    if let Some(held) = held {
                        // Never closed.
                        let _ = held.acquire().await.map(SemaphorePermit::forget);
                    }
                    Reply::text(200, &text)
                }
            }))
        };
        let servers = PORTS.into_iter().map(server).collect::<Result<_>>()?;
        Ok(Endpoint { pod, held, servers })
    }

    /// Requests that its server has been given.
    pub(crate) fn requests(&self) -> u64 {
        self.servers.iter().map(Backend::requests).sum()
    }
}

impl Shop {
    /// None where it cannot be made: see [`Network::new`].
    pub(crate) fn open(topology: Topology, proxy: KubeProxy) -> Result<Option<Shop>> {
        let Some(network) = Network::new(topology, proxy, 2)? else {
            return Ok(None);
        };
        let caller = network.node(0).pod("caller")?;
        let near = Endpoint::start(network.node(0).pod("near")?)?;
        let far = Endpoint::start(network.node(1).pod("far")?)?;
        let service = |number, pods: &[&Pod]| {
            let ports = PORTS.into_iter();
            ports.fold(Service::new(number), |service, (port, target)| {
                service.port(port, pods, target)
            })
        };
        let services = Services {
            near: service(1, &[&near.pod]),
            far: service(2, &[&far.pod]),
            both: service(3, &[&near.pod, &far.pod]),
        };
        for service in [&services.near, &services.far, &services.both] {
            network.serve(service)?;
        }
        Ok(Some(Shop {
            caller,
            near,
            far,
            services,
            network,
        }))
    }

    /// Makes the call with curl, and says what is wrong with the answer.
    pub(crate) fn check(&self, case: &Case) -> Result<()> {
        let (endpoint, service) = match case.place {
            Place::SameNode => (&self.near, &self.services.near),
            Place::OtherNode => (&self.far, &self.services.far),
        };
        let (port, target) = case.port;
        let at = match case.way {
            Way::ClusterIp => service.addresses().port(case.family, port),
            Way::Headless => endpoint.pod.addresses().port(case.family, target),
        };
        let caller = self.caller.addresses().ip(case.family);
        let wanted = format!("{} {target} {caller}", endpoint.pod.name());
        let got = ask(&self.caller, at).with_context(|| case.to_string())?;
        anyhow::ensure!(got == wanted, "{case}: wanted {wanted}, got {got}");
        Ok(())
    }
}

/// What the server at this address says to a pod.
pub(crate) fn ask(pod: &Pod, at: SocketAddr) -> Result<String> {
    pod.inside().curl(&format!("http://{at}/"))
}

/// A way in which a pod calls another.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    pub(crate) family: Family,
    pub(crate) way: Way,
    pub(crate) place: Place,
    /// A Service's port and the endpoint's.
    pub(crate) port: (u16, u16),
}

/// What is called.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Way {
    /// The Service's own address.
    ClusterIp,
    /// An endpoint's address, which is what DNS gives for a headless Service.
    Headless,
}

/// Where the endpoint is, seen from the caller.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    SameNode,
    OtherNode,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Case {
            family,
            way,
            place,
            port,
        } = self;
        write!(f, "{way:?} over IP{family:?} to port {port:?} on {place:?}")
    }
}

/// Every call that works in this topology.
pub(crate) fn cases(topology: Topology) -> Vec<Case> {
    let mut cases = Vec::new();
    for family in Family::BOTH {
        for way in [Way::ClusterIp, Way::Headless] {
            for place in [Place::SameNode, Place::OtherNode] {
                // The answer would come straight over the bridge, from an address that was not called.
                let lost = way == Way::ClusterIp && place == Place::SameNode;
                if lost && !topology.filters_neighbours() {
                    continue;
                }
                cases.extend(PORTS.map(|port| Case {
                    family,
                    way,
                    place,
                    port,
                }));
            }
        }
    }
    cases
}
