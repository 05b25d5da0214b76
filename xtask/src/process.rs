//! Other programs: started, watched, their output passed on.
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use anyhow::{Context as _, bail};

/// How long something took. The one place where a task reads the clock.
#[expect(
    clippy::disallowed_types,
    reason = "tasks tell people how long their steps took; nothing is decided by it but a limit"
)]
pub(crate) struct Stopwatch(std::time::Instant);

impl Stopwatch {
    #[expect(clippy::disallowed_types, reason = "as above")]
    pub(crate) fn start() -> Self {
        Self(std::time::Instant::now())
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}

/// The cargo that runs this task, in the checkout, with nothing to read.
pub(crate) fn cargo(root: &Path) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root).stdin(Stdio::null());
    cargo
}

/// Where cargo puts what it builds.
///
/// # Errors
/// Cargo does not say.
pub(crate) fn target_directory(root: &Path) -> anyhow::Result<PathBuf> {
    let metadata =
        output(cargo(root).args(["metadata", "--locked", "--no-deps", "--format-version=1"]))?;
    let metadata: serde_json::Value = serde_json::from_str(&metadata)?;
    metadata["target_directory"]
        .as_str()
        .map(PathBuf::from)
        .context("cargo metadata names no target directory")
}

/// The command as a person would type it.
fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let program = program.file_name().unwrap_or(program.as_os_str());
    std::iter::once(program)
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

/// Runs to the end with this process's own output.
///
/// # Errors
/// The program cannot be started, or ends with anything but 0.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<()> {
    let shown = shown(command);
    println!("$ {shown}");
    let status = command
        .status()
        .with_context(|| format!("cannot start `{shown}`"))?;
    if !status.success() {
        bail!("`{shown}`: {status}");
    }
    Ok(())
}

/// Runs quietly; what it prints is the answer.
///
/// # Errors
/// The program cannot be started, ends with anything but 0 (the error carries what it said), or prints no UTF-8.
pub(crate) fn output(command: &mut Command) -> anyhow::Result<String> {
    let shown = shown(command);
    let output = command
        .output()
        .with_context(|| format!("cannot start `{shown}`"))?;
    if !output.status.success() {
        bail!(
            "`{shown}`: {}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
    }
    String::from_utf8(output.stdout)
        .with_context(|| format!("`{shown}` printed something that is no text"))
}

/// Runs to the end; what it prints is shown only if it fails.
///
/// # Errors
/// As [`output`].
pub(crate) fn quietly(command: &mut Command) -> anyhow::Result<()> {
    println!("$ {}", shown(command));
    output(command).map(drop)
}

/// Runs to the end, at most `limit` long; each line of its standard output is passed on and given to `on_line`.
/// Since that output is no terminal, programs that draw on one print a plain log.
///
/// At the limit the program is killed; what it started itself may go on.
///
/// # Errors
/// The program cannot be started, ends with anything but 0, or reaches the limit.
pub(crate) fn watch(
    command: &mut Command,
    limit: Duration,
    mut on_line: impl FnMut(&str),
) -> anyhow::Result<()> {
    let shown = shown(command);
    println!("$ {shown}");
    let started = Stopwatch::start();
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{shown}`"))?;
    let stdout = child
        .stdout
        .take()
        .context("its standard output was asked for as a pipe")?;
    let (to, lines) = sync_channel::<String>(256);
    // The thread ends with the pipe, or with the receiver: it is not joined, for at the limit the pipe may stay open.
    std::thread::spawn(move || {
        let mut reader = BufReader::new(stdout);
        let mut line = Vec::new();
        while reader
            .read_until(b'\n', &mut line)
            .is_ok_and(|read| read > 0)
        {
            if to
                .send(String::from_utf8_lossy(&line).trim_end().to_owned())
                .is_err()
            {
                return;
            }
            line.clear();
        }
    });
    loop {
        match lines.recv_timeout(limit.saturating_sub(started.elapsed())) {
            Ok(line) => {
                println!("{line}");
                on_line(&line);
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                child
                    .kill()
                    .with_context(|| format!("`{shown}` cannot be stopped"))?;
                child.wait()?;
                bail!(
                    "`{shown}` was still running after {} s, and was stopped",
                    limit.as_secs()
                );
            }
        }
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("`{shown}`: {status}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut sh = Command::new("sh");
        sh.args(["-c", script]);
        sh
    }

    #[test]
    fn every_line_is_seen_also_when_the_program_fails() {
        let mut seen = Vec::new();
        let end = watch(
            &mut shell("echo one; printf two; exit 3"),
            Duration::from_secs(60),
            |line| seen.push(line.to_owned()),
        );
        assert_eq!(seen, ["one", "two"]);
        assert!(end.unwrap_err().to_string().contains("exit status: 3"));
    }

    #[test]
    fn a_program_that_does_not_end_is_stopped() {
        let end = watch(&mut shell("exec sleep 600"), Duration::ZERO, |_| {});
        assert!(end.unwrap_err().to_string().contains("was stopped"));
    }
}
