//! Running a proxy: its configuration written, its processes started on their cores, ready when it answers.

use std::{ffi::OsString, fs, net::SocketAddr, path::Path};

use anyhow::Context as _;

use super::{Contender, Peer};
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
    pub(crate) beside: Vec<Child>,
    pub(crate) address: SocketAddr,
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

/// Starts `contender` before `upstream`, with room for `connections`; its files go to `dir`.
pub(crate) async fn launch(
    contender: &Contender,
    cores: Cores,
    upstream: SocketAddr,
    connections: u16,
    dir: &Path,
) -> anyhow::Result<Running> {
    let name = contender.peer.name();
    let words = |words: &[&str]| -> Vec<OsString> {
        std::iter::once(contender.binary.clone().into_os_string())
            .chain(words.iter().map(OsString::from))
            .collect()
    };
    let [listen, grpc, control_admin, agent_admin] = free_addresses()?;
    let config = dir.join(format!("{name}.yaml"));
    if let Some(template) = template(contender.peer) {
        let text = fill(template, listen, upstream, connections, dir);
        fs::write(&config, text).with_context(|| format!("cannot write {}", config.display()))?;
    }
    let config = config.display().to_string();
    let mut beside = Vec::new();
    let command = match contender.peer {
        Peer::Relay => {
            let command = words(&["relay", "--upstream", &upstream.to_string()]);
            let (mut proxy, address) = Child::start_part(name, cores.proxy, &command, dir).await?;
            proxy.ready(address).await?;
            return Ok(Running {
                proxy,
                beside,
                address,
            });
        }
        Peer::Haproxy => words(&["-db", "-f", &config]),
        Peer::Nginx => words(&[
            "-p",
            &dir.display().to_string(),
            "-e",
            "stderr",
            "-c",
            &config,
        ]),
        Peer::Envoy => words(&[
            "-c",
            &config,
            "--concurrency",
            "1",
            "--disable-hot-restart",
            "--log-level",
            "error",
        ]),
        Peer::Weir => {
            let state = dir.join("state").display().to_string();
            let (grpc, control_admin) = (grpc.to_string(), control_admin.to_string());
            // A process of its own, so that the figures are the agent's alone.
            let control = words(&[
                "control-plane",
                "-f",
                &config,
                "--grpc",
                &grpc,
                "--admin",
                &control_admin,
            ]);
            beside.push(Child::start(
                "weir-control-plane",
                cores.rest,
                &control,
                dir,
            )?);
            let (from, admin) = (format!("http://{grpc}"), agent_admin.to_string());
            let agent = [
                "agent",
                "--control-plane",
                &from,
                "--node",
                "bench",
                "--workers",
                "1",
                "--admin",
                &admin,
            ];
            words(&[&agent[..], &["--state-dir", &state]].concat())
        }
    };
    let mut proxy = Child::start(name, cores.proxy, &command, dir)?;
    if let Err(error) = proxy.ready(listen).await {
        // If what it needs has ended, that is the cause.
        beside.iter_mut().try_for_each(Child::check)?;
        return Err(error);
    }
    Ok(Running {
        proxy,
        beside,
        address: listen,
    })
}

/// The peer's configuration; the relay has none.
fn template(peer: Peer) -> Option<&'static str> {
    match peer {
        Peer::Relay => None,
        Peer::Weir => Some(include_str!("../../configs/weir.yaml")),
        Peer::Haproxy => Some(include_str!("../../configs/haproxy.cfg")),
        Peer::Nginx => Some(include_str!("../../configs/nginx.conf")),
        Peer::Envoy => Some(include_str!("../../configs/envoy.yaml")),
    }
}

fn fill(
    template: &str,
    listen: SocketAddr,
    upstream: SocketAddr,
    connections: u16,
    dir: &Path,
) -> String {
    [
        ("@LISTEN@", listen.to_string()),
        ("@LISTEN_HOST@", listen.ip().to_string()),
        ("@LISTEN_PORT@", listen.port().to_string()),
        ("@UPSTREAM@", upstream.to_string()),
        ("@UPSTREAM_HOST@", upstream.ip().to_string()),
        ("@UPSTREAM_PORT@", upstream.port().to_string()),
        ("@CONNECTIONS@", connections.to_string()),
        ("@DIR@", dir.display().to_string()),
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
        for template in Peer::ALL.into_iter().filter_map(template) {
            let text = fill(template, listen, upstream, 64, Path::new("/tmp/x"));
            let names = |word: &&str| {
                word.len() > 2 && word.chars().all(|c| c.is_ascii_uppercase() || c == '_')
            };
            assert_eq!(text.split('@').find(names), None);
        }
    }
}
