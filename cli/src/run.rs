//! `weir run`.

use std::net::SocketAddr;
use std::process::ExitCode;

use clap::Args;
use weir_agent::{Agent, ControlPlaneAddress};
use weir_control_plane::{Config, ControlPlane};

use crate::agent::{drain, listeners, pages};
use crate::args::{AgentOptions, Manifests};
use crate::control_plane::state_lines;
use crate::say::{aligned, say};
use crate::signals::Signals;

/// Run Weir on this machine: a control plane and an agent in one process.
///
/// Services are reached at the addresses that their annotation weir.dev/listen
/// names, and by name through the HTTP proxy. It stays in the foreground; on
/// SIGTERM or Ctrl-C it lets requests finish and ends, on a second one at once.
#[derive(Debug, Args)]
#[command(after_help = "Try: weir run -f examples/shop")]
pub(crate) struct Options {
    #[command(flatten)]
    manifests: Manifests,
    /// HTTP proxy for all services by name.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:15081")]
    proxy: SocketAddr,
    /// State for `weir get`, events, metrics and health. There is no
    /// authentication: keep it on a loopback address.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:15080")]
    admin: SocketAddr,
    /// Health, readiness and metrics of the agent.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:15082")]
    agent_admin: SocketAddr,
    #[command(flatten)]
    agent: AgentOptions,
}

pub(crate) async fn execute(options: Options) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::catch()?;
    let files = options.manifests.files;
    let shown: Vec<String> = files
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    let control_plane = ControlPlane::start(Config {
        admin: Some(options.admin),
        ..Config::new(files)
    })
    .await?;
    // They speak gRPC as they would over a network: one way for all to be tried.
    let grpc = format!("http://{}", control_plane.grpc_addr());
    let grpc = ControlPlaneAddress::new(&grpc, None, None)?;
    let agent = Agent::start(
        options
            .agent
            .config(grpc, Some(options.proxy), options.agent_admin),
    )
    .await?;
    let told_to_end = tokio::select! {
        () = agent.synced() => false,
        () = signals.next() => true,
    };
    if !told_to_end {
        let listening = agent.listening().await;
        let mut lines = listeners(&listening);
        lines.extend(pages(&agent, &listening));
        lines.extend(state_lines(&control_plane));
        say(&format!(
            "weir is running\n{}\nEdit {} while it runs; Ctrl-C ends.",
            aligned(&lines),
            shown.join(", ")
        ));
        signals.next().await;
    }
    let code = drain(agent, &mut signals).await;
    tokio::select! {
        () = control_plane.shutdown() => {}
        () = signals.next() => {}
    }
    Ok(code)
}
