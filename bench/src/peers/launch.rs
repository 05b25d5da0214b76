//! Running a proxy: its configuration written, its processes started on their cores, ready when it answers.

use std::{
    ffi::{OsStr, OsString},
    fs,
    net::SocketAddr,
    path::Path,
};

use anyhow::Context as _;
use tempfile::TempDir;

use super::{Contender, Peer, enforced::enforced};
use crate::{
    child::{Child, free_addresses},
    parts::pin::Cores,
};

/// A proxy that answers.
#[derive(Debug)]
pub(crate) struct Running {
    /// The process whose CPU time and memory count.
    pub(crate) proxy: Child,
    /// Processes that it needs beside it and that no request passes through.
    beside: Vec<Child>,
    pub(crate) address: SocketAddr,
    /// Configuration, logs and state, of this start alone: nothing is left over from the round before. Declared last,
    /// so that it goes when the processes are gone.
    _files: TempDir,
}

impl Running {
    /// Ends its processes and waits for them.
    pub(crate) async fn end(self) -> anyhow::Result<()> {
        self.proxy.end().await?;
        for child in self.beside {
            child.end().await?;
        }
        Ok(())
    }
}

/// Starts `contender` before `upstream`, with room for `connections`; its files go into `dir`.
pub(crate) async fn launch(
    contender: &Contender,
    cores: Cores,
    upstream: SocketAddr,
    connections: u16,
    dir: &Path,
) -> anyhow::Result<Running> {
    let name = contender.peer.name();
    let files =
        TempDir::with_prefix_in(format!("{name}-"), dir).context("no directory for its files")?;
    let dir = files.path();
    // Every process runs in its own directory, so that no argument holds a path, nor a space.
    let words = |arguments: &str| -> Vec<OsString> {
        std::iter::once(contender.binary.as_os_str())
            .chain(arguments.split_whitespace().map(OsStr::new))
            .map(OsStr::to_owned)
            .collect()
    };
    let [listen, grpc, control_admin, agent_admin] = free_addresses()?;
    if let Some((file, template)) = template(contender.peer) {
        let file = dir.join(file);
        file.parent().map_or(Ok(()), fs::create_dir_all)?;
        let text = fill(template, listen, upstream, connections);
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    let mut beside = Vec::new();
    let command = match contender.peer {
        Peer::Relay => {
            let command = words(&format!("relay --upstream {upstream}"));
            let (mut proxy, address) = Child::start_part(name, cores.proxy, &command, dir).await?;
            proxy.ready(address).await?;
            return Ok(Running {
                proxy,
                beside,
                address,
                _files: files,
            });
        }
        Peer::Haproxy => words("-db -f haproxy.cfg"),
        Peer::Nginx => words("-p ./ -e stderr -c nginx.conf"),
        Peer::Envoy => {
            words("-c envoy.yaml --concurrency 1 --disable-hot-restart --log-level error")
        }
        Peer::Weir => {
            // A process of its own, so that the figures are the agent's alone.
            let control =
                format!("control-plane -f manifests --grpc {grpc} --admin {control_admin}");
            beside.push(Child::start(
                "weir-control-plane",
                cores.rest,
                &words(&control),
                dir,
            )?);
            words(&format!(
                "agent --control-plane http://{grpc} --node bench --workers 1 --admin {agent_admin} --state-dir state"
            ))
        }
    };
    let mut proxy = Child::start(name, cores.proxy, &command, dir)?;
    let mut ready = proxy.ready(listen).await;
    if ready.is_ok() && contender.peer == Peer::Weir {
        ready = enforced(control_admin).await;
    }
    if let Err(error) = ready {
        // If what it needs has ended, that is the cause.
        beside.iter_mut().try_for_each(Child::check)?;
        return Err(error);
    }
    Ok(Running {
        proxy,
        beside,
        address: listen,
        _files: files,
    })
}

/// The file that the peer reads, and what is in it; the relay reads none.
fn template(peer: Peer) -> Option<(&'static str, &'static str)> {
    match peer {
        Peer::Relay => None,
        Peer::Weir => Some((
            "manifests/weir.yaml",
            include_str!("../../configs/weir.yaml"),
        )),
        Peer::Haproxy => Some(("haproxy.cfg", include_str!("../../configs/haproxy.cfg"))),
        Peer::Nginx => Some(("nginx.conf", include_str!("../../configs/nginx.conf"))),
        Peer::Envoy => Some(("envoy.yaml", include_str!("../../configs/envoy.yaml"))),
    }
}

fn fill(template: &str, listen: SocketAddr, upstream: SocketAddr, connections: u16) -> String {
    [
        ("@LISTEN@", listen.to_string()),
        ("@LISTEN_HOST@", listen.ip().to_string()),
        ("@LISTEN_PORT@", listen.port().to_string()),
        ("@UPSTREAM@", upstream.to_string()),
        ("@UPSTREAM_HOST@", upstream.ip().to_string()),
        ("@UPSTREAM_PORT@", upstream.port().to_string()),
        ("@CONNECTIONS@", connections.to_string()),
    ]
    .into_iter()
    .fold(template.to_owned(), |text, (placeholder, value)| {
        text.replace(placeholder, &value)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_placeholder_is_left_in_any_configuration() {
        let [listen, upstream] = free_addresses().unwrap();
        for (_, template) in Peer::ALL.into_iter().filter_map(template) {
            let text = fill(template, listen, upstream, 64);
            let names = |word: &&str| {
                word.len() > 2 && word.chars().all(|c| c.is_ascii_uppercase() || c == '_')
            };
            assert_eq!(text.split('@').find(names), None);
        }
    }
}
