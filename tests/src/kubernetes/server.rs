//! The processes of a cluster: started, stopped, started again, and ended with whoever started them.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{Instant, sleep};

/// How much of a log an error shows, in lines.
const SHOWN: usize = 15;

/// Ends the processes of a cluster and removes what they leave, when it is dropped and also when this process is gone,
/// even by SIGKILL.
///
/// It is a shell that waits for the end of a pipe whose other end only this process holds. The cluster's processes are
/// in the shell's process group, and so out of reach of Ctrl-C in a terminal, too.
pub(super) struct Guard {
    shell: Child,
}

impl Guard {
    pub(super) fn watch(directory: &Path) -> Result<Guard> {
        let shell = Command::new("sh")
            .args(["-c", include_str!("guard.sh")])
            .arg(directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .context("cannot start sh")?;
        Ok(Guard { shell })
    }

    fn group(&self) -> i32 {
        // Linux gives no process a number above 2²².
        self.shell.id().cast_signed()
    }

    /// A number that no other cluster has while this one is there.
    pub(super) fn number(&self) -> u32 {
        self.shell.id()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        let mut said = String::new();
        if let Some(mut stdout) = self.shell.stdout.take() {
            // It ends when the guard's last process has done its work.
            let _ = stdout.read_to_string(&mut said);
        }
        print!("{said}");
        if let Err(error) = self.shell.wait() {
            println!("the guard of a cluster did not end: {error}");
        }
    }
}

/// One program that can be killed and started again with the same arguments.
pub(super) struct Server {
    name: String,
    program: PathBuf,
    arguments: Vec<OsString>,
    log: PathBuf,
    group: i32,
    child: Mutex<Option<Child>>,
}

impl Server {
    /// What it prints goes to `<name>.log` in `directory`.
    pub(super) fn new(
        name: &str,
        program: &Path,
        arguments: Vec<OsString>,
        directory: &Path,
        guard: &Guard,
    ) -> Server {
        Server {
            name: name.to_owned(),
            program: program.to_owned(),
            arguments,
            log: directory.join(format!("{name}.log")),
            group: guard.group(),
            child: Mutex::new(None),
        }
    }

    fn child(&self) -> MutexGuard<'_, Option<Child>> {
        // The value is whole after a panic elsewhere: nothing below can fail half-way through changing it.
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn start(&self) -> Result<()> {
        let mut child = self.child();
        if child.is_some() {
            bail!("{} was started before: stop it first", self.name);
        }
        let log = OpenOptions::new().create(true).append(true).open(&self.log);
        let log: File = log.with_context(|| format!("cannot write {}", self.log.display()))?;
        let started = Command::new(&self.program)
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(self.group)
            .spawn();
        *child = Some(started.with_context(|| format!("cannot start {}", self.program.display()))?);
        Ok(())
    }

    /// The same in another network: the one that this file stands for.
    pub(super) fn within(mut self, network: Option<&Path>) -> Server {
        if let Some(network) = network {
            let mut net = OsString::from("--net=");
            net.push(network);
            let program = std::mem::replace(&mut self.program, "nsenter".into());
            self.arguments.splice(0..0, [net, program.into()]);
        }
        self
    }

    /// Its process, if it runs.
    pub(super) fn id(&self) -> Option<u32> {
        self.child().as_ref().map(Child::id)
    }

    pub(super) fn runs(&self) -> bool {
        self.child().is_some()
    }

    /// Nothing if it does not run.
    pub(super) fn kill(&self) -> Result<()> {
        if let Some(mut child) = self.child().take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    pub(super) fn signal(&self, signal: Signal) -> Result<()> {
        let child = self.child();
        let child = child
            .as_ref()
            .with_context(|| format!("{} does not run", self.name))?;
        Ok(kill_process(Pid::from_child(child), signal)?)
    }

    /// Waits until `look` says yes. An error of `look` is a no.
    pub(super) async fn until(
        &self,
        patience: Duration,
        state: &str,
        look: impl AsyncFn() -> Result<bool>,
    ) -> Result<()> {
        let until = Instant::now() + patience;
        loop {
            if let Some(child) = self.child().as_mut()
                && let Some(status) = child.try_wait()?
            {
                bail!("{} ended with {status}:\n{}", self.name, self.log());
            }
            let error = match look().await {
                Ok(true) => return Ok(()),
                Ok(false) => "it said no".to_owned(),
                Err(error) => format!("{error:#}"),
            };
            if Instant::now() >= until {
                let log = self.log();
                bail!(
                    "{} was not {state} within {patience:?} ({error}):\n{log}",
                    self.name
                );
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// The end of what it printed.
    fn log(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines = text.lines().collect::<Vec<_>>();
        lines[lines.len().saturating_sub(SHOWN)..].join("\n")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("the end of {}'s log:\n{}", self.name, self.log());
        }
        if let Err(error) = self.kill() {
            println!("{} did not end: {error:#}", self.name);
        }
    }
}
