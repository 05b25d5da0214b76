//! The programs of others, and Weir's own as a process.
//!
//! Where a program is found is told by an environment variable, which
//! `cargo xtask test` sets; without it the name is looked up in `PATH`. A
//! program that is not there fails the test on CI; elsewhere the test says so
//! and passes over it.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};

use anyhow::{Context, Result, bail};

/// A program, or `None` when the test may pass over it.
pub fn find(variable: &str, name: &str) -> Result<Option<PathBuf>> {
    let given = std::env::var_os(variable).map(PathBuf::from);
    let found = given.or_else(|| {
        std::env::split_paths(&std::env::var_os("PATH")?)
            .map(|dir| dir.join(name))
            .find(|file| file.is_file())
    });
    match found {
        Some(found) => Ok(Some(found)),
        None if std::env::var_os("CI").is_some() => {
            bail!("{name} is missing; set {variable} or install it")
        }
        None => {
            println!("NOT RUN: {name} is missing; `cargo xtask test` gets it");
            Ok(None)
        }
    }
}

/// Runs a program to its end; its output, standard error after standard
/// output. An unsuccessful end is an error that shows the output.
pub async fn run(command: &mut tokio::process::Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await;
    let output = output.with_context(|| format!("cannot run {command:?}"))?;
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    if !output.status.success() {
        bail!("{command:?} ended with {}:\n{text}", output.status);
    }
    Ok(text)
}

/// Held by who has built a program and has yet to take it away: the next build may put another in its place.
pub(crate) static BUILDING: Mutex<()> = Mutex::new(());

/// The `weir` program, built once per test run from what is checked out.
#[allow(clippy::expect_used)] // without the program there is nothing to test
pub fn weir() -> PathBuf {
    static WEIR: OnceLock<PathBuf> = OnceLock::new();
    WEIR.get_or_init(|| {
        if let Some(given) = std::env::var_os("WEIR_BIN") {
            return PathBuf::from(given);
        }
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let _one = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
        let built = Command::new(cargo)
            .args(["build", "--quiet", "--package", "weir", "--bin", "weir"])
            .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
            .status();
        assert!(built.expect("cargo runs").success(), "weir does not build");
        // target/debug/deps/<test> → target/debug/weir
        let test = std::env::current_exe().expect("a test knows where it is");
        let profile = test
            .ancestors()
            .nth(2)
            .expect("a test lies in a target directory");
        profile.join("weir")
    })
    .clone()
}
