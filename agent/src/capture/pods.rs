//! All pods that are captured, and what may be asked about them.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use tracing::{info, warn};

use super::connections;
use super::namespaces::{FindError, Namespaces};
use super::pod::{Gifts, Pod, PodError};
use super::rules::Wanted;
use super::wire::{
    Capture, Existing, INBOUND_PORT, MAX_ADDRESSES, MAX_FDS, OUTBOUND_PORT, Release, Sockets,
};

/// Pods on a node.
pub(super) const MAX_PODS: usize = 1024;
/// Addresses and ports that one pod's connections are redirected for.
pub(super) const MAX_OUTBOUND: usize = 16_384;
/// Ports of one pod that are redirected.
pub(super) const MAX_INBOUND: usize = 256;
/// Addresses of one pod.
const MAX_OWN_ADDRESSES: usize = 16;
/// Bytes of a pod's UID.
const MAX_NAME: usize = 128;

/// Why the proxy does not get what it asks for.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    #[error("more than {MAX_PODS} pods")]
    Pods,
    #[error("a pod's UID has 1 to {MAX_NAME} bytes, this one has {0}")]
    Name(usize),
    #[error("{count} {what}, more than {most}")]
    Many {
        what: &'static str,
        count: usize,
        most: usize,
    },
    #[error("{0:?} is no IP address")]
    Address(String),
    #[error("{0:?} is no address with a port, such as 10.96.0.7:80 or [fd00::7]:80")]
    Destination(String),
    #[error("{0} is no port that a pod can be called at")]
    Port(u32),
    #[error("pod {0} is not captured")]
    Unknown(String),
    #[error("{path} holds its address and is captured for pod {pod}")]
    Taken { path: String, pod: String },
    #[error("the proxy has had every redirection taken away: no pod is captured any more")]
    Retreated,
    #[error(transparent)]
    Find(#[from] FindError),
    #[error(transparent)]
    Pod(#[from] PodError),
}

/// Whether connections are redirected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Redirecting,
    /// Nothing of the rules is there, and they are put back later.
    Away,
    /// What is open goes on, nothing new is redirected, and nothing is put
    /// back.
    Retreated,
}

/// The pods of a node.
pub(super) struct Pods {
    namespaces: Namespaces,
    /// What the tables are called.
    table: String,
    mode: Mode,
    pods: HashMap<String, Entry>,
    /// What was asked for in parts and is not whole yet, by the pod. At most as
    /// many as there may be pods.
    parts: HashMap<String, Vec<SocketAddr>>,
}

struct Entry {
    pod: Pod,
    /// By the proxy that is connected now.
    asked: bool,
}

impl Pods {
    pub(super) fn new(namespaces: Namespaces, table: String) -> Pods {
        Pods {
            namespaces,
            table,
            mode: Mode::Redirecting,
            pods: HashMap::new(),
            parts: HashMap::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.pods.len()
    }

    /// Whether nothing may be done any more: the thread is in a pod's
    /// namespace and cannot leave it.
    pub(super) fn is_lost(&self) -> bool {
        self.namespaces.is_lost()
    }

    pub(super) fn capture(&mut self, ask: &Capture) -> Result<Gifts, AskError> {
        if self.mode == Mode::Retreated {
            return Err(AskError::Retreated);
        }
        let mut outbound = self.parts.remove(&ask.pod).unwrap_or_default();
        outbound.extend(destinations(&ask.outbound)?);
        at_most("addresses to redirect", outbound.len(), MAX_OUTBOUND)?;
        if ask.more {
            at_most("pods", self.parts.len() + 1, MAX_PODS)?;
            self.parts.insert(ask.pod.clone(), outbound);
            return Ok(Gifts::new());
        }
        let wanted = Wanted::new(outbound, ports(&ask.inbound)?);
        let addresses = addresses(&ask.addresses)?;
        // A pod whose sandbox was made anew has another namespace.
        let another = self.pods.get(&ask.pod).is_some_and(|entry| {
            entry.pod.addresses() != addresses || !entry.pod.namespace().is_there()
        });
        if another {
            self.let_go(&ask.pod);
        }
        let redirecting = self.mode == Mode::Redirecting;
        if let Some(entry) = self.pods.get_mut(&ask.pod) {
            entry.asked = true;
            let gifts = entry
                .pod
                .capture(&self.namespaces, &self.table, wanted, redirecting)?;
            return Ok(gifts);
        }
        if !(1..=MAX_NAME).contains(&ask.pod.len()) {
            return Err(AskError::Name(ask.pod.len()));
        }
        if self.pods.len() >= MAX_PODS {
            return Err(AskError::Pods);
        }
        let mut pod = self.find(addresses)?;
        let gifts = pod.capture(&self.namespaces, &self.table, wanted, redirecting)?;
        self.pods
            .insert(ask.pod.clone(), Entry { pod, asked: true });
        Ok(gifts)
    }

    fn find(&mut self, addresses: Vec<IpAddr>) -> Result<Pod, AskError> {
        // A pod that has ended may have had this address.
        self.let_ended_go();
        let taken: HashMap<_, _> = self
            .pods
            .iter()
            .map(|(name, entry)| (entry.pod.identity(), name))
            .collect();
        let namespace = self
            .namespaces
            .find(&addresses, |identity| taken.contains_key(&identity))?;
        match taken.get(&namespace.identity()) {
            Some(pod) => Err(AskError::Taken {
                path: namespace.path().display().to_string(),
                pod: (*pod).clone(),
            }),
            None => Ok(Pod::new(namespace, addresses)),
        }
    }

    pub(super) fn release(&mut self, ask: &Release) {
        self.let_go(&ask.pod);
    }

    fn let_go(&mut self, name: &str) {
        if let Some(mut entry) = self.pods.remove(name) {
            entry.pod.let_go(&self.namespaces);
        }
    }

    pub(super) fn sockets(&self, ask: &Sockets) -> Result<Gifts, AskError> {
        let count = usize::try_from(ask.count).unwrap_or(usize::MAX);
        at_most("sockets at once", count, MAX_FDS)?;
        let entry = self.get(&ask.pod)?;
        let gifts = entry
            .pod
            .sockets(&self.namespaces, ask.ipv6, ask.transparent, count)?;
        Ok(gifts)
    }

    pub(super) fn existing(&self, ask: &Existing) -> Result<Vec<u32>, AskError> {
        let entry = self.get(&ask.pod)?;
        let destinations = destinations(&ask.destinations)?;
        let ports = ports(&ask.ports)?;
        let reset = usize::try_from(ask.reset).unwrap_or(usize::MAX);
        let counted = self
            .namespaces
            .within(entry.pod.namespace(), || {
                connections::existing(&destinations, &ports, reset)
            })
            .map_err(PodError::Enter)?;
        Ok(counted.map_err(PodError::Connections)?)
    }

    fn get(&self, name: &str) -> Result<&Entry, AskError> {
        self.pods
            .get(name)
            .ok_or_else(|| AskError::Unknown(name.to_owned()))
    }

    /// Takes the rules away until they are put back: nobody serves what is
    /// redirected. Who waits for an answer gets none: they are told so.
    pub(super) fn take_away(&mut self) {
        if self.mode == Mode::Redirecting {
            self.mode = Mode::Away;
        }
        for entry in self.pods.values_mut() {
            entry.pod.retreat();
        }
        for (name, entry) in &mut self.pods {
            if let Err(error) = entry.pod.end_accepted(&self.namespaces) {
                warn!(pod = name, %error, "a pod's connections are left as they are");
            }
        }
        for entry in self.pods.values_mut() {
            entry.pod.let_go(&self.namespaces);
        }
    }

    /// Redirects again as it was asked for.
    pub(super) fn put_back(&mut self) {
        if self.mode != Mode::Away {
            return;
        }
        self.mode = Mode::Redirecting;
        for (name, entry) in self.pods.iter_mut().filter(|(_, entry)| entry.asked) {
            if let Err(error) = entry.pod.put_back(&self.namespaces, &self.table) {
                warn!(pod = name, %error, "a pod is not captured again");
            }
        }
    }

    /// Whether nothing new is redirected, for good.
    pub(super) fn have_retreated(&self) -> bool {
        self.mode == Mode::Retreated
    }

    /// Redirects nothing new, for good.
    pub(super) fn retreat(&mut self) {
        self.mode = Mode::Retreated;
        for entry in self.pods.values_mut() {
            entry.pod.retreat();
        }
    }

    /// The proxy is gone. What it has open is ending: its last words still
    /// reach the application.
    pub(super) fn proxy_left(&mut self) {
        self.parts.clear();
        for entry in self.pods.values_mut() {
            entry.asked = false;
            entry.pod.retreat();
            entry.pod.forget_proxy();
        }
        self.mode = Mode::Redirecting;
    }

    /// Lets go of what the proxy of now has not asked for.
    pub(super) fn let_unasked_go(&mut self) {
        self.let_those_go(|entry| !entry.asked);
    }

    /// Lets go of pods whose namespace has ended: what we hold would keep it
    /// alive.
    pub(super) fn let_ended_go(&mut self) {
        let ended = self.let_those_go(|entry| !entry.pod.namespace().is_there());
        if ended > 0 {
            info!(ended, captured = self.len(), "pods have ended");
        }
    }

    fn let_those_go(&mut self, go: impl Fn(&Entry) -> bool) -> usize {
        let names: Vec<_> = self
            .pods
            .iter()
            .filter(|(_, entry)| go(entry))
            .map(|(name, _)| name.clone())
            .collect();
        for name in &names {
            self.let_go(name);
        }
        names.len()
    }
}

fn destinations(asked: &[String]) -> Result<Vec<SocketAddr>, AskError> {
    at_most("addresses in one message", asked.len(), MAX_ADDRESSES)?;
    asked
        .iter()
        .map(|address| {
            address
                .parse()
                .map_err(|_| AskError::Destination(address.clone()))
        })
        .collect()
}

fn ports(asked: &[u32]) -> Result<Vec<u16>, AskError> {
    at_most("ports to redirect", asked.len(), MAX_INBOUND)?;
    asked
        .iter()
        .map(|port| match u16::try_from(*port) {
            Ok(port) if ![0, OUTBOUND_PORT, INBOUND_PORT].contains(&port) => Ok(port),
            _ => Err(AskError::Port(*port)),
        })
        .collect()
}

fn addresses(asked: &[String]) -> Result<Vec<IpAddr>, AskError> {
    at_most("addresses of a pod", asked.len(), MAX_OWN_ADDRESSES)?;
    asked
        .iter()
        .map(|address| {
            address
                .parse()
                .map_err(|_| AskError::Address(address.clone()))
        })
        .collect()
}

fn at_most(what: &'static str, count: usize, most: usize) -> Result<(), AskError> {
    if count > most {
        return Err(AskError::Many { what, count, most });
    }
    Ok(())
}
