//! Ports for servers that must come back on the port that they had.

use std::net::{SocketAddr, TcpListener};

use anyhow::{Result, bail};

use super::loopback;

/// Below the range from which Linux takes the ports of connections (32768 and up unless somebody changed it): a port
/// from there could be in use by a connection just when its server is started again.
const RANGE: std::ops::Range<u16> = 20_000..32_000;

/// So many different ports of 127.0.0.1 that were free a moment ago. They are drawn, so that test processes that start
/// at the same time do not meet.
pub(super) fn free(count: usize) -> Result<Vec<SocketAddr>> {
    let mut held = Vec::new();
    for _ in 0..100 * count {
        if held.len() == count {
            break;
        }
        held.extend(TcpListener::bind(loopback(fastrand::u16(RANGE))));
    }
    if held.len() < count {
        bail!("of the ports {RANGE:?} hardly any is free");
    }
    held.iter()
        .map(|listener| Ok(listener.local_addr()?))
        .collect()
}
