//! A network of a test's own: addresses that are no loopback addresses, and
//! that no other machine can reach.
//!
//! A network namespace belongs to a thread. The one that enters it, the threads
//! and processes that it starts, and the sockets that they make are all in it;
//! the rest of the test program is not.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd as _;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use anyhow::{Context as _, Result, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The network that the namespace has, on an interface that leads nowhere.
const NETWORK: [u8; 3] = [10, 77, 0];

/// Puts this thread into a new network namespace with addresses from 10.77.0.1
/// on. False where that needs more rights than there are and this is not CI;
/// then a line that begins with `NOT RUN` has been printed.
///
/// To be called first thing in a test whose runtime has one thread.
///
/// # Errors
/// On CI without the rights, or when `ip` is missing or fails.
pub fn enter() -> Result<bool> {
    static MADE: AtomicU32 = AtomicU32::new(0);
    let number = MADE.fetch_add(1, Relaxed);
    let name = format!("weir-test-{}-{number}", std::process::id());
    if let Err(error) = ip(&format!("netns add {name}")) {
        if std::env::var_os("CI").is_some() {
            bail!("no network namespace: {error:#}; run as root");
        }
        println!("NOT RUN: no network namespace: {error:#}; run as root");
        return Ok(false);
    }
    let namespace = File::open(format!("/run/netns/{name}"))?;
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
    // Without a name it goes with the last thread and socket in it.
    ip(&format!("netns delete {name}"))?;
    let [a, b, c] = NETWORK;
    ip("link set lo up")?;
    // A cable from here to here: not every kernel has `dummy` interfaces.
    ip("link add weir0 type veth peer name weir1")?;
    ip("link set weir1 up")?;
    ip(&format!("addr add {a}.{b}.{c}.1/24 dev weir0"))?;
    ip("link set weir0 up")?;
    ip("route add default dev weir0")?;
    for n in 2..=9 {
        ip(&format!("addr add {a}.{b}.{c}.{n}/32 dev weir0"))?;
    }
    Ok(true)
}

/// One of the addresses, 1 to 9.
pub fn address(n: u8) -> IpAddr {
    let [a, b, c] = NETWORK;
    Ipv4Addr::new(a, b, c, n).into()
}

fn ip(arguments: &str) -> Result<()> {
    let ended = Command::new("ip").args(arguments.split(' ')).output();
    let ended = ended.context("ip is missing: get Debian's iproute2")?;
    if !ended.status.success() {
        bail!("ip {arguments}: {}", String::from_utf8_lossy(&ended.stderr));
    }
    Ok(())
}
