//! `weir agent proxy`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use weir_agent::{Agent, Capturing, ControlPlaneAddress, ExistingConnections, Listening};

use crate::args::{AgentOptions, duration};
use crate::say::{aligned, say};
use crate::signals::Signals;

/// Get policies from a control plane and enforce them on the traffic of this
/// node.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Where the control plane is: http://127.0.0.1:15010, or https:// and a
    /// name of its Service.
    #[arg(
        long,
        value_name = "URL",
        env = "WEIR_CONTROL_PLANE",
        hide_env_values = true
    )]
    control_plane: String,
    /// The roots that vouch for a control plane at https://, in PEM: ca.crt of
    /// the ConfigMap weir-ca. Read for each connection.
    #[arg(
        long,
        value_name = "FILE",
        env = "WEIR_CONTROL_PLANE_CA",
        hide_env_values = true
    )]
    control_plane_ca: Option<PathBuf>,
    /// A projected ServiceAccount token with audience weir-control-plane, which
    /// says what node this is. Read for each stream.
    #[arg(
        long,
        value_name = "FILE",
        env = "WEIR_TOKEN_FILE",
        hide_env_values = true
    )]
    token_file: Option<PathBuf>,
    /// Serve the connections of this node's pods: the socket of a
    /// `weir agent capture` that has them come here.
    #[arg(long, value_name = "SOCKET")]
    capture: Option<PathBuf>,
    /// Ask the other agents of this node what their breakers know, and tell the
    /// next: a directory that all of them see, made by `weir agent capture`.
    #[arg(long, value_name = "DIR")]
    handover: Option<PathBuf>,
    /// What becomes of pods' connections that were open before they could be
    /// captured: they live on as they were, or are ended a few at a time, and
    /// come back captured. A policy can say otherwise.
    #[arg(long, value_enum, default_value_t = Existing::Keep, requires = "capture")]
    existing_connections: Existing,
    /// Believe what is known of endpoints for so long without a control plane;
    /// after that captured connections go to their Service's own address.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    stale_after: Duration,
    /// Be an explicit HTTP proxy at this address, such as 127.0.0.1:15081.
    #[arg(long, value_name = "ADDR")]
    proxy: Option<SocketAddr>,
    /// Health, readiness and metrics.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:15082")]
    admin: SocketAddr,
    #[command(flatten)]
    agent: AgentOptions,
}

/// [`Options::existing_connections`].
#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "PascalCase")]
enum Existing {
    Keep,
    Reset,
}

pub(crate) async fn execute(options: Options) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::catch()?;
    let control_plane = ControlPlaneAddress::new(
        &options.control_plane,
        options.control_plane_ca,
        options.token_file,
    )?;
    let mut config = options
        .agent
        .config(control_plane, options.proxy, options.admin);
    config.stale_after = options.stale_after;
    config.handover = options.handover;
    config.capture = options.capture.map(|socket| Capturing {
        socket,
        existing: match options.existing_connections {
            Existing::Keep => ExistingConnections::Keep,
            Existing::Reset => ExistingConnections::Reset,
        },
    });
    say(&format!(
        "weir agent, node {}, control plane {}",
        config.node, config.control_plane
    ));
    let agent = Agent::start(config).await?;
    // What it kept from its last run is in force before the control plane answers.
    let kept = agent.listening().await;
    let mut lines = listeners(&kept);
    lines.extend(pages(&agent, &kept));
    say(&aligned(&lines));
    tokio::select! {
        () = agent.synced() => {}
        () = signals.next() => return Ok(drain(agent, &mut signals).await),
    }
    let now = agent.listening().await;
    if now != kept {
        say(&aligned(&listeners(&now)));
    }
    say("what the control plane asks for is in force");
    signals.next().await;
    Ok(drain(agent, &mut signals).await)
}

/// Lets requests finish; a second signal ends everything at once.
pub(crate) async fn drain(agent: Agent, signals: &mut Signals) -> ExitCode {
    tracing::info!("ending once requests under way are done; a second signal ends at once");
    tokio::select! {
        () = agent.shutdown() => ExitCode::SUCCESS,
        () = signals.next() => {
            tracing::warn!("ended before all requests were done");
            ExitCode::FAILURE
        }
    }
}

/// Where services are listened for.
pub(crate) fn listeners(listening: &[Listening]) -> Vec<(String, String)> {
    let line = |listening: &Listening| {
        let Listening {
            service,
            port,
            address,
        } = listening;
        (format!("{service}:{port}"), format!("http://{address}"))
    };
    listening.iter().map(line).collect()
}

/// Where an agent listens besides, and what for.
pub(crate) fn pages(agent: &Agent, listening: &[Listening]) -> Vec<(String, String)> {
    let mut lines = Vec::new();
    if let Some(proxy) = agent.proxy_addr() {
        let url = example(listening);
        lines.push((
            "any service".to_owned(),
            format!("as an HTTP proxy: curl -x http://{proxy} {url}"),
        ));
    }
    if let Some(admin) = agent.admin_addr() {
        lines.push((
            "agent".to_owned(),
            format!("http://{admin}/metrics (/healthz, /readyz, /listeners)"),
        ));
    }
    lines
}

/// A URL that the proxy understands.
fn example(listening: &[Listening]) -> String {
    let named = listening
        .first()
        .and_then(|first| Some((first.service.split_once('/')?, first.port)));
    match named {
        Some(((namespace, name), 80)) => format!("http://{name}.{namespace}/"),
        Some(((namespace, name), port)) => format!("http://{name}.{namespace}:{port}/"),
        None => "http://<service>.<namespace>/".to_owned(),
    }
}
