//! Runs the command as a person would.

use std::io::Write as _;
use std::process::{Command, Stdio};

/// How it ended and what it said.
pub(crate) struct Done {
    /// Exit code.
    pub(crate) code: i32,
    /// What it wrote to stdout.
    pub(crate) out: String,
    /// What it wrote to stderr.
    pub(crate) err: String,
}

/// The command, in the directory of this crate, without this shell's settings.
pub(crate) fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
    command
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    for variable in ["WEIR_LOG", "WEIR_LOG_FORMAT", "WEIR_NODE", "WEIR_SERVER"] {
        command.env_remove(variable);
    }
    command
}

/// Runs it to its end.
pub(crate) fn weir(arguments: &[&str]) -> Done {
    weir_with_input(arguments, "")
}

/// Runs it to its end with this on its stdin.
pub(crate) fn weir_with_input(arguments: &[&str], input: &str) -> Done {
    let mut child = command(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // One that ended before it read anything is fine.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    Done {
        code: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}
