//! `weir control-plane`.

use std::net::SocketAddr;
use std::process::ExitCode;

use clap::Args;
use weir_control_plane::{Config, ControlPlane};

use crate::agent::aligned;
use crate::args::Manifests;
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
    println!("weir control plane");
    let mut lines = vec![(
        "agents".to_owned(),
        format!(
            "weir agent --control-plane http://{}",
            control_plane.grpc_addr()
        ),
    )];
    lines.extend(state_line(&control_plane));
    print!("{}", aligned(&lines));
    signals.next().await;
    tokio::select! {
        () = control_plane.shutdown() => {}
        () = signals.next() => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// Where the state of everything is shown.
pub(crate) fn state_line(control_plane: &ControlPlane) -> Option<(String, String)> {
    let admin = control_plane.admin_addr()?;
    let server = if admin == crate::get::DEFAULT_SERVER {
        String::new()
    } else {
        format!(" --server http://{admin}")
    };
    Some((
        "state".to_owned(),
        format!("weir get breakers -w{server} (http://{admin}/metrics, /events, /readyz)"),
    ))
}
