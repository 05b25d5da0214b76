//! Agents as processes on nodes that are network namespaces ([`crate::pods`]):
//! capture with its capabilities, the proxy without any, and a control plane
//! that says what a test tells it ([`Told`]).

mod told;

use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

pub use told::{Told, resource};

use crate::pods::Node;
use crate::wait::eventually;
use crate::{call, programs};

/// The user that the proxy runs as.
pub const PROXY_USER: u32 = 65532;

/// One agent of a node: two processes. They end with the value.
pub struct Agent {
    /// `weir agent capture`.
    pub capture: Process,
    /// `weir agent proxy`.
    pub proxy: Process,
    admin: SocketAddr,
    home: TempDir,
    settings: Settings,
}

/// With what an agent is started.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Of the node, as the control plane knows it.
    pub node: String,
    /// Where the control plane is.
    pub control_plane: SocketAddr,
    /// The node's directory of network namespaces.
    pub namespaces: std::path::PathBuf,
    /// Unlike any other's on the node.
    pub instance: String,
    /// Where the node's agents hand over what breakers know, if they do.
    pub handover: Option<std::path::PathBuf>,
    /// More words for the proxy.
    pub proxy: Vec<String>,
}

impl Settings {
    /// For a node.
    pub fn new(node: &Node, name: &str, told: &Told) -> Settings {
        Settings {
            node: name.to_owned(),
            control_plane: told.address(),
            namespaces: node.netns().to_owned(),
            instance: format!("{name}-1"),
            handover: None,
            proxy: Vec::new(),
        }
    }
}

impl Agent {
    /// Starts both and waits until the proxy says that it is ready.
    ///
    /// # Errors
    /// When a process cannot be started or ends.
    pub async fn start(settings: Settings) -> Result<Agent> {
        let home = TempDir::with_prefix("weir-agent-")?;
        open(home.path(), 0o755)?;
        // Where it was built, the proxy's user may have no way to it.
        let program = Agent::program(&home);
        if std::fs::hard_link(programs::weir(), &program).is_err() {
            std::fs::copy(programs::weir(), &program)?;
        }
        let capture = Agent::start_capture(&home, &settings)?;
        let (proxy, admin) = Agent::start_proxy(&home, &settings)?;
        let agent = Agent {
            capture,
            proxy,
            admin,
            home,
            settings,
        };
        agent.ready().await;
        Ok(agent)
    }

    /// Waits until the proxy is ready.
    pub async fn ready(&self) {
        eventually("an agent that is ready", || async {
            match call::get(self.admin, "/readyz").await {
                Ok(answer) if answer.status == 200 => Ok(()),
                other => Err(format!("{other:?}; {}", self.proxy.log())),
            }
        })
        .await;
    }

    /// Starts capture anew, as a kubelet does when it has ended.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn restart_capture(&mut self) -> Result<()> {
        self.capture = Agent::start_capture(&self.home, &self.settings)?;
        Ok(())
    }

    /// Starts the proxy anew.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn restart_proxy(&mut self) -> Result<()> {
        (self.proxy, self.admin) = Agent::start_proxy(&self.home, &self.settings)?;
        Ok(())
    }

    fn program(home: &TempDir) -> std::path::PathBuf {
        home.path().join("weir")
    }

    fn start_capture(home: &TempDir, settings: &Settings) -> Result<Process> {
        let mut command = Command::new(Agent::program(home));
        command.args(["agent", "capture", "--socket"]);
        command.arg(home.path().join("capture.sock"));
        command.arg("--namespaces").arg(&settings.namespaces);
        command.args(["--instance", &settings.instance]);
        command.args(["--proxy-user", &PROXY_USER.to_string()]);
        if let Some(directory) = &settings.handover {
            command.arg("--handover").arg(directory);
        }
        Process::start(command, &home.path().join("capture.log"))
    }

    fn start_proxy(home: &TempDir, settings: &Settings) -> Result<(Process, SocketAddr)> {
        let admin = SocketAddr::from(([127, 0, 0, 1], free_port()?));
        let mut command = Command::new(Agent::program(home));
        command.args(["agent", "proxy", "--capture"]);
        command.arg(home.path().join("capture.sock"));
        command.args(["--node", &settings.node, "--admin", &admin.to_string()]);
        command.arg("--control-plane");
        command.arg(format!("http://{}", settings.control_plane));
        if let Some(directory) = &settings.handover {
            command.arg("--handover").arg(directory);
        }
        command.args(&settings.proxy);
        // Another user, and so without any capability.
        command.uid(PROXY_USER).gid(PROXY_USER);
        let process = Process::start(command, &home.path().join("proxy.log"))?;
        Ok((process, admin))
    }

    /// One of the proxy's metrics, summed over its labels that contain `label`.
    ///
    /// # Errors
    /// When the proxy does not answer.
    pub async fn metric(&self, family: &str, label: &str) -> Result<u64> {
        let page = call::get(self.admin, "/metrics").await?.text();
        let of = |line: &&str| {
            let rest = line.strip_prefix(family);
            rest.is_some_and(|rest| rest.starts_with(['{', ' '])) && line.contains(label)
        };
        let values = page.lines().filter(of);
        let value = |line: &str| line.rsplit(' ').next()?.parse::<f64>().ok();
        Ok(values.filter_map(value).sum::<f64>() as u64)
    }

    /// Waits until this many pods are captured.
    pub async fn captures(&self, pods: u64) {
        eventually("captured pods", || async {
            match self.metric("weir_captured_pods", "").await {
                Ok(found) if found == pods => Ok(()),
                other => Err(format!("{other:?} of {pods}; {}", self.proxy.log())),
            }
        })
        .await;
    }
}

/// A process with a log.
pub struct Process {
    child: Child,
    log: std::path::PathBuf,
}

impl Process {
    fn start(mut command: Command, log: &Path) -> Result<Process> {
        let file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)?;
        command
            .env("WEIR_LOG", "info")
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file);
        let child = command
            .spawn()
            .with_context(|| format!("cannot run {command:?}"))?;
        Ok(Process {
            child,
            log: log.to_owned(),
        })
    }

    /// What it wrote last.
    pub fn log(&self) -> String {
        let all = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = all.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(self.pid()?, signal)?;
        Ok(())
    }

    /// Its number.
    ///
    /// # Errors
    /// Never, while the system's numbers are positive.
    pub fn pid(&self) -> Result<Pid> {
        Pid::from_raw(self.child.id().cast_signed()).context("a process has a number")
    }

    /// Kills it and waits for its end.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it does not end in time, or not well.
    pub async fn ended(&mut self, within: Duration) -> Result<()> {
        let until = tokio::time::Instant::now() + within;
        loop {
            match self.child.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => bail!("ended with {status}: {}", self.log()),
                None if tokio::time::Instant::now() > until => {
                    bail!("has not ended within {within:?}: {}", self.log())
                }
                None => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    }

    /// A figure of `/proc/<pid>/status` in kB, such as `VmRSS`.
    ///
    /// # Errors
    /// When it has ended.
    pub fn memory(&self, field: &str) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        let figure = line.and_then(|line| line.split_whitespace().nth(1));
        Ok(figure.context("no such field")?.parse()?)
    }

    /// How many files it has open.
    ///
    /// # Errors
    /// When it has ended.
    pub fn files(&self) -> Result<usize> {
        Ok(std::fs::read_dir(format!("/proc/{}/fd", self.child.id()))?.count())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> Result<u16> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    Ok(listener.local_addr()?.port())
}

/// Sets who may use a file or a directory.
///
/// # Errors
/// When it is not this process's own.
pub fn open(path: &Path, mode: u32) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    Ok(())
}
