//! `weir control-plane`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use weir_control_plane::{Config, ControlPlane, Kubernetes, Lifetimes, Source};

use crate::args::host_name;
use crate::say::{aligned, say};
use crate::signals::Signals;

/// Run a control plane alone: it reads manifests, or what a cluster's API server
/// holds, pushes what they ask for to agents, and shows what became of it.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("source").required(true).args(["files", "kubernetes"]))]
pub(crate) struct Options {
    /// A directory of manifests (*.yaml, *.yml) or a file; may be repeated.
    /// Changes are followed while it runs.
    #[arg(short, long = "filename", value_name = "PATH")]
    files: Vec<PathBuf>,
    /// Read from the API server of a cluster, and write status there.
    #[arg(long)]
    kubernetes: bool,
    /// How the API server is reached [default: as a Pod does, or as kubectl would]
    #[arg(long, value_name = "FILE", requires = "kubernetes")]
    kubeconfig: Option<PathBuf>,
    /// The namespace that Weir is in.
    #[arg(
        long,
        value_name = "NAME",
        env = "POD_NAMESPACE",
        hide_env_values = true,
        default_value = "weir-system",
        requires = "kubernetes"
    )]
    namespace: String,
    /// Name of this replica, unique among them [default: the host name, which
    /// is the Pod's]
    #[arg(
        long,
        value_name = "NAME",
        env = "POD_NAME",
        hide_env_values = true,
        requires = "kubernetes"
    )]
    pod_name: Option<String>,
    /// The agents' ServiceAccount, in the same namespace.
    #[arg(
        long,
        value_name = "NAME",
        default_value = "weir-agent",
        requires = "kubernetes"
    )]
    agent_service_account: String,
    /// Where agents connect.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:15010")]
    grpc: SocketAddr,
    /// State for `weir get`, events, metrics and health. There is no
    /// authentication: keep it on a loopback address.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:15080")]
    admin: SocketAddr,
}

pub(crate) async fn execute(options: Options) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::catch()?;
    let in_cluster = options.kubernetes;
    let source = match in_cluster {
        false => Source::Files(options.files),
        true => Source::Kubernetes(Kubernetes {
            kubeconfig: options.kubeconfig,
            namespace: options.namespace,
            instance: options.pod_name.unwrap_or_else(host_name),
            agent_service_account: options.agent_service_account,
            lifetimes: Lifetimes::default(),
        }),
    };
    let config = Config {
        grpc: options.grpc,
        admin: Some(options.admin),
        source,
        ..Config::default()
    };
    let control_plane = ControlPlane::start(config).await?;
    let grpc = control_plane.grpc_addr();
    let agents = match in_cluster {
        // Its certificate has names, and no address.
        true => format!(
            "weir agent --control-plane https://localhost:{} --control-plane-ca FILE --token-file FILE",
            grpc.port()
        ),
        false => format!("weir agent --control-plane http://{grpc}"),
    };
    let mut lines = vec![("agents".to_owned(), agents)];
    lines.extend(state_lines(&control_plane));
    say(&format!("weir control plane\n{}", aligned(&lines)));
    signals.next().await;
    tokio::select! {
        () = control_plane.shutdown() => {}
        () = signals.next() => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// Where the state of everything is shown.
pub(crate) fn state_lines(control_plane: &ControlPlane) -> Vec<(String, String)> {
    let Some(admin) = control_plane.admin_addr() else {
        return Vec::new();
    };
    let server = if admin == crate::get::DEFAULT_SERVER {
        String::new()
    } else {
        format!(" --server http://{admin}")
    };
    vec![
        ("state".to_owned(), format!("weir get breakers -w{server}")),
        (
            "control plane".to_owned(),
            format!("http://{admin}/metrics (/healthz, /readyz, /events)"),
        ),
    ]
}
