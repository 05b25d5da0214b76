//! `weir control-plane`.

use std::net::SocketAddr;
use std::process::ExitCode;

use clap::Args;
use weir_control_plane::{Config, ControlPlane};

use crate::args::Manifests;
use crate::say::{aligned, say};
use crate::signals::Signals;

/// Run a control plane alone: it reads manifests, pushes what they ask for to
/// agents, and shows what became of it.
#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    manifests: Manifests,
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
    let config = Config {
        grpc: options.grpc,
        admin: Some(options.admin),
        ..Config::new(options.manifests.files)
    };
    let control_plane = ControlPlane::start(config).await?;
    let mut lines = vec![(
        "agents".to_owned(),
        format!(
            "weir agent --control-plane http://{}",
            control_plane.grpc_addr()
        ),
    )];
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
