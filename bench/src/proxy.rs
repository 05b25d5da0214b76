//! The comparison: every proxy in turn on the same core, before the same backend, under the same load, in rounds.

use std::{
    ffi::OsString,
    fs,
    io::{self, IsTerminal as _, Write as _},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, bail};
use clap::Args;
use serde::Serialize;

use crate::{
    child::{self, Child},
    parts::{load::LoadResult, pin::Cores},
    peers::{
        Contender, Peer, find,
        launch::{self, Running},
    },
    procfs,
    summary::{Line, Round},
    table,
};

/// Seconds under load before a window begins: pools fill, buffers find their size, the clock frequency settles.
const WARMUP: f64 = 0.5;

/// Compares Weir's agent, HAProxy, nginx and Envoy with a bare TCP relay: CPU per request, throughput, latency, memory
///
/// All run in this one invocation, in turn, on one core, under the same load. A proxy that is not there is an error that
/// says how to get it.
#[derive(Args, Clone, Debug)]
pub(crate) struct ProxyArgs {
    /// Proxies to compare, by comma; the relay is always among them
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Peer::ALL)]
    only: Vec<Peer>,
    /// Gets the proxies that are missing: by apt-get, and Envoy by pip into the user's cache directory
    #[arg(long)]
    install: bool,
    /// A built `weir`, instead of building it
    #[arg(long, value_name = "PATH")]
    weir: Option<PathBuf>,
    /// Rounds; in each, every proxy is started anew and loaded twice
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,
    /// Length of each of the two windows, in seconds
    #[arg(long, default_value_t = 2.0, value_parser = seconds)]
    seconds: f64,
    /// Connections that the load holds
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=900))]
    connections: u16,
    /// Bytes of each response's body
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(..=1 << 20))]
    body: u32,
    /// Requests per second for the latencies [default: half of what the relay carries]
    #[arg(long, value_parser = rate)]
    rate: Option<f64>,
    /// Writes all figures of all rounds to a file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text
        .parse()
        .map_err(|_| "write a number of seconds, as 2 or 0.5".to_owned())?;
    if (0.1..=3600.0).contains(&seconds) {
        Ok(seconds)
    } else {
        Err("write 0.1 to 3600 seconds".to_owned())
    }
}

fn rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text
        .parse()
        .map_err(|_| "write a number of requests per second, as 10000".to_owned())?;
    if (1.0..=1e7).contains(&rate) {
        Ok(rate)
    } else {
        Err("write 1 to 10000000 requests per second".to_owned())
    }
}

/// Everything that was measured, and how.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) processor: Option<String>,
    pub(crate) cores: Cores,
    pub(crate) connections: u16,
    pub(crate) body: u32,
    pub(crate) rounds: u16,
    pub(crate) seconds: f64,
    /// Requests per second at which latencies were measured.
    pub(crate) rate: f64,
    /// The relay first, then by CPU per request.
    pub(crate) lines: Vec<Line>,
}

/// Measures, and prints the table on standard output.
pub(crate) async fn run(args: &ProxyArgs) -> anyhow::Result<()> {
    if cfg!(debug_assertions) {
        bail!("a debug build measures itself: write `cargo run --release -p weir-bench -- proxy`");
    }
    let peers: Vec<Peer> = Peer::ALL
        .into_iter()
        .filter(|p| *p == Peer::Relay || args.only.contains(p))
        .collect();
    let contenders = find::find_all(&peers, args.weir.as_deref(), args.install)?;
    let report = measure(args, &contenders).await?;
    if let Some(file) = &args.json {
        fs::write(file, serde_json::to_string_pretty(&report)? + "\n")
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    io::stdout().write_all(table::render(&report).as_bytes())?;
    Ok(())
}

async fn measure(args: &ProxyArgs, contenders: &[Contender]) -> anyhow::Result<Report> {
    let bench = Bench::start(args).await?;
    let relay = contenders
        .iter()
        .find(|c| c.peer == Peer::Relay)
        .context("the relay is always measured")?;
    let rate = match args.rate {
        Some(rate) => rate,
        None => {
            bench.say("first, what the relay carries");
            let running = bench.launch(relay).await?;
            let first = bench.load(relay, &running, None).await?;
            running.end().await?;
            (first.served as f64 / first.seconds / 2.0).round()
        }
    };
    let mut rounds = vec![Vec::new(); contenders.len()];
    for number in 0..usize::from(args.rounds) {
        // Another one begins each round, so that none always follows the same one.
        for index in (0..contenders.len()).map(|i| (i + number) % contenders.len()) {
            let contender = &contenders[index];
            bench.say(&format!(
                "round {} of {}: {}",
                number + 1,
                args.rounds,
                contender.peer.name()
            ));
            rounds[index].push(bench.round(contender, rate).await?);
        }
    }
    bench.say("");

    let base = contenders
        .iter()
        .position(|c| c.peer == Peer::Relay)
        .unwrap_or(0);
    let mut lines: Vec<Line> = contenders
        .iter()
        .zip(&rounds)
        .filter_map(|(c, own)| Line::of(c.peer.name(), c.version.as_deref(), own, &rounds[base]))
        .collect();
    let relay_first = |line: &Line| (line.name != Peer::Relay.name(), line.cpu_us.to_relay.median);
    lines.sort_by(|a, b| {
        relay_first(a)
            .partial_cmp(&relay_first(b))
            .unwrap_or(std::cmp::Ordering::Equal)
    });
    Ok(Report {
        processor: procfs::processor(),
        cores: bench.cores,
        connections: args.connections,
        body: args.body,
        rounds: args.rounds,
        seconds: args.seconds,
        rate,
        lines,
    })
}

/// What stands during the whole comparison.
struct Bench<'a> {
    args: &'a ProxyArgs,
    cores: Cores,
    upstream: SocketAddr,
    /// Declared before `dir`, whose files it writes: it ends first.
    _backend: Child,
    dir: tempfile::TempDir,
}

impl<'a> Bench<'a> {
    async fn start(args: &'a ProxyArgs) -> anyhow::Result<Self> {
        let cores = Cores::allowed().context("cannot tell which CPUs there are")?;
        let dir = tempfile::Builder::new()
            .prefix("weir-bench-")
            .tempdir()
            .context("no temporary directory")?;
        let command = own_part(&["backend", "--body", &args.body.to_string()])?;
        let (backend, upstream) =
            Child::start_part("backend", cores.rest, &command, dir.path()).await?;
        Ok(Self {
            args,
            cores,
            upstream,
            _backend: backend,
            dir,
        })
    }

    async fn launch(&self, contender: &Contender) -> anyhow::Result<Running> {
        launch::launch(
            contender,
            self.cores,
            self.upstream,
            self.args.connections,
            self.dir.path(),
        )
        .await
    }

    async fn round(&self, contender: &Contender, rate: f64) -> anyhow::Result<Round> {
        let running = self.launch(contender).await?;
        let full = self.load(contender, &running, None).await?;
        let half = self.load(contender, &running, Some(rate)).await?;
        running.end().await?;
        Ok(Round { full, half })
    }

    async fn load(
        &self,
        contender: &Contender,
        running: &Running,
        rate: Option<f64>,
    ) -> anyhow::Result<LoadResult> {
        let args = self.args;
        let mut command = own_part(&["load"])?;
        for (flag, value) in [
            ("--target", running.address.to_string()),
            ("--pid", running.proxy.pid()?.to_string()),
            ("--connections", args.connections.to_string()),
            ("--warmup", WARMUP.to_string()),
            ("--seconds", args.seconds.to_string()),
        ] {
            command.extend([flag.into(), value.into()]);
        }
        if let Some(rate) = rate {
            command.extend(["--rate".into(), rate.to_string().into()]);
        }
        let output = child::pinned(self.cores.rest, &command)?
            .stderr(Stdio::piped())
            .output()
            .await?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!(
                "the load on {} failed: {}",
                contender.peer.name(),
                said.trim().trim_start_matches("error: ")
            );
        }
        serde_json::from_slice(&output.stdout).context("the load's result cannot be read")
    }

    /// Shows what is going on: on a terminal in one line that is overwritten, else in a line of its own.
    fn say(&self, what: &str) {
        let mut err = io::stderr().lock();
        // Progress that cannot be shown is no reason to stop measuring.
        let _ = if err.is_terminal() {
            write!(err, "\r\x1b[K{what}")
        } else if what.is_empty() {
            Ok(())
        } else {
            writeln!(err, "{what}")
        };
        let _ = err.flush();
    }
}

fn own_part(words: &[&str]) -> anyhow::Result<Vec<OsString>> {
    let own: &Path = &child::own_path()?;
    Ok(std::iter::once(own.as_os_str().to_owned())
        .chain(words.iter().map(OsString::from))
        .collect())
}
