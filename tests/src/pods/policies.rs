//! Rules that refuse, and rules that only count.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use anyhow::{Context as _, Result};

use super::{Addresses, Family, Namespace, Pod};

/// Who begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Traffic {
    Ingress,
    Egress,
}

/// A NetworkPolicy of one pod; it ends with the value.
///
/// What it refuses is reset, so that the caller knows at once; [`Policy::refused`]
/// says that it was no port at which nobody listens.
#[derive(Debug)]
pub struct Policy {
    node: Arc<Namespace>,
    table: String,
}

impl Policy {
    pub(super) fn new(
        node: &Arc<Namespace>,
        pod: &Pod,
        traffic: Traffic,
        allowed: &[SocketAddr],
        bridged: bool,
    ) -> Result<Policy> {
        let table = unique("policy");
        let (own, other) = match traffic {
            Traffic::Egress => ("saddr", "daddr"),
            Traffic::Ingress => ("daddr", "saddr"),
        };
        let mut rules = format!(
            "table inet {table} {{\n\
             counter refused {{ }}\n\
             chain forward {{\ntype filter hook forward priority 0;\n\
             ct state established,related accept\n"
        );
        for address in allowed {
            let ip = if address.is_ipv4() { "ip" } else { "ip6" };
            let own = format!("{ip} {own} {}", pod.addresses().ip(Family::of(address)));
            let (other, port) = (format!("{ip} {other} {}", address.ip()), address.port());
            let _ = writeln!(rules, "{own} {other} tcp dport {port} accept");
        }
        // The kernel sends a reset past the translation of addresses when the
        // packet came over a bridge, and the caller of a Service would not know it
        // as its own. An ICMP message it does know; but that comes while `connect`
        // still holds the socket, and counts only a second later, at the next SYN.
        let Addresses { v4, v6 } = pod.addresses();
        for own in [format!("ip {own} {v4}"), format!("ip6 {own} {v6}")] {
            let refuse = format!("{own} tcp flags syn counter name refused reject with");
            if bridged {
                let message = refuse.replace("counter", "ct status dnat counter");
                let _ = writeln!(rules, "{message} icmpx admin-prohibited");
            }
            let _ = writeln!(rules, "{refuse} tcp reset");
        }
        rules += "}\n}";
        node.nft(&rules)?;
        Ok(Policy {
            node: node.clone(),
            table,
        })
    }

    /// Attempts to connect that it refused.
    ///
    /// # Errors
    /// When nft does not say.
    pub fn refused(&self) -> Result<u64> {
        Ok(read(&self.node, &self.table, "refused")?.packets)
    }
}

impl Drop for Policy {
    fn drop(&mut self) {
        let _ = self.node.nft(&format!("delete table inet {}", self.table));
    }
}

/// Where in a namespace packets are looked at, after everything that rewrites them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hook {
    /// What sockets of the namespace get.
    Input,
    /// What passes through it.
    Forward,
    /// What sockets of the namespace send.
    Output,
}

/// Counts packets, and changes nothing.
#[derive(Debug)]
pub struct Counter<'a> {
    namespace: &'a Namespace,
    table: String,
}

impl Namespace {
    /// Counts what passes `hook` and matches, in nft's words, such as
    /// `tcp dport 80`. The counter ends with the value.
    ///
    /// # Errors
    /// When nft refuses it.
    pub fn count(&self, hook: Hook, matches: &str) -> Result<Counter<'_>> {
        let table = unique("count");
        let hook = match hook {
            Hook::Input => "input",
            Hook::Forward => "forward",
            Hook::Output => "output",
        };
        self.nft(&format!(
            "table inet {table} {{\ncounter seen {{ }}\n\
             chain {hook} {{\ntype filter hook {hook} priority 300;\n\
             {matches} counter name seen\n}}\n}}"
        ))?;
        Ok(Counter {
            namespace: self,
            table,
        })
    }
}

impl Counter<'_> {
    /// Packets so far.
    ///
    /// # Errors
    /// When nft does not say.
    pub fn packets(&self) -> Result<u64> {
        Ok(read(self.namespace, &self.table, "seen")?.packets)
    }

    /// Bytes so far, with their IP headers.
    ///
    /// # Errors
    /// When nft does not say.
    pub fn bytes(&self) -> Result<u64> {
        Ok(read(self.namespace, &self.table, "seen")?.bytes)
    }
}

impl Drop for Counter<'_> {
    fn drop(&mut self) {
        let table = format!("delete table inet {}", self.table);
        let _ = self.namespace.nft(&table);
    }
}

struct Figures {
    packets: u64,
    bytes: u64,
}

fn read(namespace: &Namespace, table: &str, counter: &str) -> Result<Figures> {
    let arguments = ["-j", "list", "counter", "inet", table, counter];
    let listed = namespace.run("nft", &arguments, "")?;
    let listed: serde_json::Value = serde_json::from_str(&listed)?;
    let objects = listed["nftables"].as_array().into_iter().flatten();
    let figure = |name| {
        let mut found = objects.clone().filter_map(|o| o["counter"][name].as_u64());
        found.next().with_context(|| format!("no {name}: {listed}"))
    };
    Ok(Figures {
        packets: figure("packets")?,
        bytes: figure("bytes")?,
    })
}

/// A name for a table that nobody else uses.
fn unique(what: &str) -> String {
    static MADE: AtomicU32 = AtomicU32::new(0);
    format!("test-{what}-{}", MADE.fetch_add(1, Relaxed))
}
