//! `weir-bench`: Weir beside its peers, in one run, as ratios. `weir-bench proxy` compares what a request costs.
//!
//! ```text
//! proxy.rs   the rounds ─▶ peers/ (find, configure, start) ─▶ parts/ (relay, backend, load: child processes, pinned)
//!                │                                               │
//!            summary.rs ◀──────── figures of each round ─────────┘
//!                │
//!            table.rs   what people read
//! ```

mod child;
mod histogram;
mod parts;
mod peers;
mod procfs;
mod proxy;
mod summary;
mod table;

use std::{
    ffi::OsString,
    io::{self, Write as _},
    net::SocketAddr,
    process::ExitCode,
};

use anyhow::{Context as _, bail};
use clap::{Parser, Subcommand};
use tokio::signal::{
    ctrl_c,
    unix::{SignalKind, signal},
};

/// Weir beside its peers, in one run, as ratios
#[derive(Parser, Debug)]
#[command(name = "weir-bench", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Proxy(proxy::ProxyArgs),
    /// Part: the bare TCP relay
    #[command(hide = true)]
    Relay {
        #[arg(long)]
        upstream: SocketAddr,
    },
    /// Part: the service behind the proxies
    #[command(hide = true)]
    Backend {
        #[arg(long)]
        body: usize,
    },
    /// Part: the load before them
    #[command(hide = true)]
    Load(parts::load::LoadArgs),
    /// Part: becomes another command on one CPU
    #[command(hide = true)]
    Exec {
        #[arg(long)]
        cpu: usize,
        #[arg(last = true)]
        command: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Without the backtrace that `RUST_BACKTRACE` would put behind every plain "missing: nginx".
            let _ = writeln!(io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Proxy(args) => async_runtime()?.block_on(async {
            // Dropping the measurement ends every process that it started.
            tokio::select! {
                result = proxy::run(&args) => result,
                result = stopped() => { result?; bail!("stopped before the end: no figures") }
            }
        }),
        Command::Relay { upstream } => Ok(async_runtime()?.block_on(parts::relay::run(upstream))?),
        Command::Backend { body } => Ok(parts::backend::run(body)?),
        Command::Load(args) => {
            let result = parts::load::run(&args)?;
            Ok(writeln!(
                io::stdout(),
                "{}",
                serde_json::to_string(&result)?
            )?)
        }
        Command::Exec { cpu, command } => Err(parts::pin::exec(cpu, &command)),
    }
}

/// Comes back on Ctrl-C or SIGTERM.
async fn stopped() -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        result = ctrl_c() => result,
        _ = terminate.recv() => Ok(()),
    }
}

fn async_runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")
}
