//! `weir agent capture`.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Context as _;
use clap::Args;
use signal_hook::consts::{SIGINT, SIGTERM};
use weir_agent::capture::{BEAT_TIMEOUT, Config, run};

/// Redirect the connections of this node's pods to a proxy on this node, and
/// make its sockets in their networks.
///
/// It needs the capabilities NET_ADMIN, NET_RAW and SYS_ADMIN, reads nothing of
/// what is sent, and does what a `weir agent proxy --capture` asks it to. Told
/// to end, it does so when the proxy has drained; told twice, at once.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The Unix socket to make for the proxy.
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// A directory with the network namespaces of pods; may be repeated.
    #[arg(long, value_name = "DIR", default_value = "/var/run/netns")]
    namespaces: Vec<PathBuf>,
    /// A name that no other capture on this node has: its tables of rules are
    /// called `weir_` and this.
    #[arg(long, value_name = "NAME")]
    instance: String,
    /// The number of the user that the proxy runs as [default: whoever can
    /// connect]
    #[arg(long, value_name = "UID")]
    proxy_user: Option<u32>,
    /// Make a directory in which the proxies of this node hand over what their
    /// breakers know, for the proxy's user, or without the capability CHOWN for
    /// the group of the same number.
    #[arg(long, value_name = "DIR")]
    handover: Option<PathBuf>,
}

/// Without a runtime: it is to be small.
pub(crate) fn execute(options: Options) -> anyhow::Result<ExitCode> {
    let stop = stop().context("cannot catch signals")?;
    let config = Config {
        socket: options.socket,
        proxy_uid: options.proxy_user,
        namespaces: options.namespaces,
        instance: options.instance,
        beat_timeout: BEAT_TIMEOUT,
    };
    if let Some(directory) = &options.handover
        && let Err(error) = weir_agent::prepare_handover(directory, options.proxy_user)
    {
        // Capture works without.
        tracing::warn!(
            directory = %directory.display(),
            %error,
            "an upgrade will hand over nothing of what breakers know"
        );
    }
    run(config, stop)?;
    Ok(ExitCode::SUCCESS)
}

/// Can be read once SIGINT or SIGTERM came; a second one ends the process.
fn stop() -> std::io::Result<UnixStream> {
    let (stop, told) = UnixStream::pair()?;
    let once = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, 1, once.clone())?;
        signal_hook::flag::register(signal, once.clone())?;
        signal_hook::low_level::pipe::register(signal, told.try_clone()?)?;
    }
    Ok(stop)
}
