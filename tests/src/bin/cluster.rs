//! A cluster for a person to play with: the one that tests use, kept running in the background.
//!
//! `weir-cluster up DIRECTORY [NODES]` starts it, or finds the one that runs; `weir-cluster load DIRECTORY ARCHIVE` gives
//! its nodes images; `weir-cluster down DIRECTORY` ends it. Between them `weir-cluster serve DIRECTORY [NODES]` holds it: what a killed one leaves behind is nothing. Whether one runs is
//! told by the lock on `DIRECTORY.lock`, in which the process's number stands.
#![allow(
    clippy::print_stdout,
    reason = "a command that talks to a person in a terminal"
)]

use std::fmt::Write as _;
use std::fs::{File, OpenOptions, Permissions, TryLockError};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep};
use weir_tests::kubernetes::{Cluster, Node, Options};

/// How often a person's command looks whether what it waits for is there.
const LOOK: Duration = Duration::from_millis(50);

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = std::env::args_os().skip(1).collect::<Vec<_>>();
    let words = arguments.iter().map(|word| word.to_str());
    let words = words.collect::<Option<Vec<_>>>().unwrap_or_default();
    let place = |directory| Ok::<_, std::io::Error>(Place(std::path::absolute(directory)?));
    match words[..] {
        ["up", directory, ref nodes @ ..] => up(&place(directory)?, count(nodes)?).await,
        ["serve", directory, ref nodes @ ..] => serve(&place(directory)?, count(nodes)?).await,
        ["load", directory, archive] => load(&place(directory)?, archive),
        ["down", directory] => down(&place(directory)?).await,
        _ => {
            bail!(
                "write `weir-cluster up|serve DIRECTORY [NODES]` or `weir-cluster down DIRECTORY`"
            )
        }
    }
}

fn count(nodes: &[&str]) -> Result<u8> {
    let nodes = nodes.join(" ");
    if nodes.is_empty() {
        return Ok(0);
    }
    nodes
        .parse()
        .with_context(|| format!("{nodes}: write how many nodes, 0 to 200"))
}

/// The files of the one cluster that can be at a place.
struct Place(PathBuf);

impl Place {
    fn beside(&self, extension: &str) -> PathBuf {
        let mut path = self.0.clone().into_os_string();
        path.push(extension);
        path.into()
    }

    fn lock_file(&self) -> Result<File> {
        let path = self.beside(".lock");
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        options
            .open(&path)
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// The lock, or `None` if the process that serves a cluster here has it.
    fn lock(&self) -> Result<Option<File>> {
        let file = self.lock_file()?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error.into()),
        }
    }

    fn kubeconfig(&self) -> PathBuf {
        self.0.join("admin.kubeconfig")
    }

    /// The number of the process that serves the cluster, or did last.
    fn server(&self) -> Result<u32> {
        let path = self.beside(".lock");
        let number = std::fs::read_to_string(&path)?;
        let number = number.trim().parse();
        number.with_context(|| format!("no process's number in {}", path.display()))
    }

    /// What runs commands in a node, once the cluster is ready.
    fn door(&self, node: &str) -> PathBuf {
        self.0.join(node)
    }

    /// Where they stand, one a line.
    fn doors_file(&self) -> PathBuf {
        self.0.join("doors")
    }

    /// Holds the number of the process that serves the cluster once that can be used.
    fn ready_file(&self) -> PathBuf {
        self.0.join("ready")
    }

    fn is_ready(&self, server: u32) -> Result<bool> {
        match std::fs::read_to_string(self.ready_file()) {
            Ok(number) => Ok(number == server.to_string()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

async fn up(place: &Place, nodes: u8) -> Result<()> {
    let log = place.beside(".log");
    let said = || std::fs::read_to_string(&log).unwrap_or_default();
    let began = Instant::now();
    if place.lock()?.is_some() {
        let and = match nodes {
            0 => String::new(),
            1 => ", and a node".to_owned(),
            _ => format!(", and {nodes} nodes"),
        };
        println!("Starting etcd, kube-apiserver and kube-controller-manager{and}.");
        let output = File::create(&log)?;
        let mut server = Command::new(std::env::current_exe()?)
            .arg("serve")
            .arg(&place.0)
            .arg(nodes.to_string())
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .process_group(0)
            .spawn()?;
        while !place.is_ready(server.id())? {
            if let Some(status) = server.try_wait()? {
                bail!("the cluster did not start ({status}):\n{}", said());
            }
            sleep(LOOK).await;
        }
        println!("Ready after {:.1} s.", began.elapsed().as_secs_f32());
    } else {
        println!("A cluster runs already.");
        while !place.is_ready(place.server()?)? {
            if place.lock()?.is_some() {
                bail!("it did not start:\n{}", said());
            }
            sleep(LOOK).await;
        }
    }
    let doors = std::fs::read_to_string(place.doors_file())?;
    if doors.is_empty() {
        println!("It has no nodes: what is applied is kept and judged, pods stay Pending.\n");
    } else {
        println!("To give its nodes an image: cargo xtask cluster load ARCHIVE");
        for door in doors.lines() {
            println!("A shell in a node:  {door} bash");
        }
        println!();
    }
    println!("export KUBECONFIG='{}'", place.kubeconfig().display());
    let programs = std::env::var_os("WEIR_KUBECTL").map(PathBuf::from);
    if let Some(programs) = programs.as_deref().and_then(Path::parent) {
        println!(
            "export PATH='{}':\"$PATH\"   # kubectl and helm of its version",
            programs.display()
        );
    }
    println!("\nTo end it: cargo xtask cluster down");
    Ok(())
}

fn load(place: &Place, archive: &str) -> Result<()> {
    let doors = std::fs::read_to_string(place.doors_file()).unwrap_or_default();
    if doors.is_empty() {
        bail!("no cluster with nodes runs: cargo xtask cluster --nodes 2");
    }
    for door in doors.lines() {
        let mut import = Command::new(door);
        import.args(Node::IMPORT).arg(std::path::absolute(archive)?);
        let status = import
            .status()
            .with_context(|| format!("cannot run {door}"))?;
        if !status.success() {
            bail!("{archive} was not taken: {status}");
        }
    }
    Ok(())
}

async fn down(place: &Place) -> Result<()> {
    if place.lock()?.is_some() {
        println!("No cluster runs.");
        return Ok(());
    }
    let process = Pid::from_raw(place.server()?.cast_signed());
    let process = process.context("no process has the number 0")?;
    kill_process(process, Signal::TERM)?;
    while place.lock()?.is_none() {
        sleep(LOOK).await;
    }
    println!("The cluster has ended, and its files are gone.");
    Ok(())
}

async fn serve(place: &Place, nodes: u8) -> Result<()> {
    let Some(mut lock) = place.lock()? else {
        bail!("a cluster runs at {} already", place.0.display());
    };
    // Always as long as the last one's, so that nobody reads half of each.
    write!(lock, "{:>10}", std::process::id())?;
    // From before this machine lost power: nothing else ends a cluster and leaves its files.
    if place.kubeconfig().exists() {
        std::fs::remove_dir_all(&place.0)?;
    } else if place.0.exists() {
        bail!(
            "{} is there, and is no cluster's: name another",
            place.0.display()
        );
    }
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let options = Options {
        nodes,
        directory: Some(place.0.clone()),
        ..Options::default()
    };
    let cluster = tokio::select! {
        started = Cluster::start_with(options) => started?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    let cluster = cluster.context("a program is missing")?;
    let mut doors = String::new();
    for node in cluster.nodes() {
        let (name, door) = (node.name(), place.door(&node.name()));
        let command = node.command("env")?;
        let command = command.as_std();
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let words = words.map(|word| word.to_string_lossy()).collect::<Vec<_>>();
        let script = format!(
            "#!/bin/sh\n# Runs a command in node {name}.\nPATH='{}':\"$PATH\" exec {} \"$@\"\n",
            node.programs().display(),
            words.join(" ")
        );
        std::fs::write(&door, script)?;
        std::fs::set_permissions(&door, Permissions::from_mode(0o755))?;
        writeln!(doors, "{}", door.display())?;
    }
    std::fs::write(place.doors_file(), doors)?;
    let fresh = place.0.join(".ready.new");
    std::fs::write(&fresh, std::process::id().to_string())?;
    std::fs::rename(fresh, place.ready_file())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    cluster.shutdown().await
}
