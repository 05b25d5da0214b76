//! Capture: a process of its own that has pods' connections go through the
//! proxy.
//!
//! It holds the capabilities that this needs, and reads nothing that comes from
//! the network: it enters pods' network namespaces, owns nftables' tables there
//! and makes sockets there, which it hands to the proxy over a Unix socket
//! (`wire`). The proxy has no capability and is the only one to read what
//! callers send.
//!
//! It fails open. When the proxy ends, hangs or drains, nothing is redirected
//! any more; when capture itself ends, the kernel takes the tables away, as
//! they are owned by its sockets. It keeps no listener: when the proxy is dead
//! nobody waits in a queue that is never served.
//!
//! `server` hears the proxy (`peer`), `pods` knows what was asked for, a `pod` is
//! one namespace (`namespaces`) with its `rules` and `routing`, written
//! for the kernel by `nft` and `netlink`. `connections` are those that
//! were open before.

use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;

use self::namespaces::Namespaces;
use self::pods::Pods;
use self::server::{Lost, Server};

mod connections;
mod namespaces;
mod netlink;
mod nft;
mod peer;
mod pod;
mod pods;
mod probe;
mod routing;
mod rules;
mod server;
#[cfg(test)]
mod tests;
#[allow(dead_code)]
pub(crate) mod wire;

pub use probe::{Finding, Need, probe};

/// Three beats of the proxy, which come every 500 ms.
pub const BEAT_TIMEOUT: Duration = Duration::from_millis(1500);

/// Bytes of an instance's name that are used.
const MAX_INSTANCE: usize = 64;

/// How capture runs.
#[derive(Clone, Debug)]
pub struct Config {
    /// The Unix socket that the proxy connects to, made here. It belongs to
    /// `proxy_uid` alone; where that needs a capability that is not there,
    /// others may connect and are sent away.
    pub socket: PathBuf,
    /// The user that the proxy runs as. None: whoever can connect.
    pub proxy_uid: Option<u32>,
    /// Directories with files for network namespaces, such as `/var/run/netns`.
    /// At least one must be there.
    pub namespaces: Vec<PathBuf>,
    /// A name that no other capture on this node has, such as that of the pod
    /// it runs in: the tables are called `weir_` and this, with `_` for what is
    /// no letter or digit.
    pub instance: String,
    /// Without a beat for so long, the proxy is taken to hang:
    /// [`BEAT_TIMEOUT`].
    pub beat_timeout: Duration,
}

/// Why capture cannot begin, or not go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not allowed or not possible on this machine.
    #[error("capture cannot {what}: {problem}")]
    Unable {
        /// What it needs.
        what: Need,
        /// Why that is not to be had.
        problem: String,
    },
    /// No pod could be found.
    #[error(
        "none of these directories is there: {0}; name where the container runtime has its network \
         namespaces, and mount it with HostToContainer"
    )]
    NoNamespaces(String),
    /// The name has no letter or digit.
    #[error("an instance needs a name with a letter or a digit, not {0:?}")]
    Instance(String),
    /// The proxy could not connect.
    #[error("cannot listen at {}: {error}", .path.display())]
    Listen {
        /// Where.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// The thread's own network namespace is not known or not to be reached.
    #[error("cannot be in its own network namespace: {0}")]
    Home(io::Error),
}

/// Captures what a proxy asks for, on this thread, until `stop` can be read or
/// is closed. If a proxy is connected then, it goes on until that has ended:
/// what it drains still needs what is here.
///
/// # Errors
/// At once, with what is missing, where it cannot work. Later only if the
/// thread cannot leave a pod's network namespace; everything is closed then.
#[allow(clippy::needless_pass_by_value)] // it is the whole of a process
pub fn run(config: Config, stop: impl AsFd) -> Result<(), Error> {
    let table = table(&config.instance)?;
    if !config.namespaces.iter().any(|directory| directory.is_dir()) {
        let directories: Vec<_> = config
            .namespaces
            .iter()
            .map(|directory| directory.display().to_string())
            .collect();
        return Err(Error::NoNamespaces(directories.join(", ")));
    }
    for finding in probe() {
        match finding.problem {
            Some(problem) if finding.what.is_essential() => {
                return Err(Error::Unable {
                    what: finding.what,
                    problem,
                });
            }
            Some(problem) => tracing::warn!(what = %finding.what, problem, "capture cannot"),
            None => {}
        }
    }
    let namespaces = Namespaces::new(config.namespaces).map_err(Error::Home)?;
    let listener =
        peer::listen_at(&config.socket, config.proxy_uid).map_err(|error| Error::Listen {
            path: config.socket.clone(),
            error,
        })?;
    tracing::info!(socket = %config.socket.display(), table, "capture waits for the proxy");
    let pods = Pods::new(namespaces, table);
    let server = Server::new(listener, config.proxy_uid, config.beat_timeout, pods);
    let ended = server.serve(stop.as_fd());
    // It may have been made anew by another.
    let _ = std::fs::remove_file(&config.socket);
    ended.map_err(|Lost| Error::Home(io::Error::other("cannot leave a pod's")))
}

/// What the tables are called.
fn table(instance: &str) -> Result<String, Error> {
    let instance: String = instance
        .chars()
        .take(MAX_INSTANCE)
        .map(|letter| {
            if letter.is_ascii_alphanumeric() {
                letter
            } else {
                '_'
            }
        })
        .collect();
    if instance.chars().all(|letter| letter == '_') {
        return Err(Error::Instance(instance));
    }
    Ok(format!("{}{instance}", pod::PREFIX))
}
