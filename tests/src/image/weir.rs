//! Weir's own image.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::PoisonError;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::Image;
use crate::programs::BUILDING;

/// How `weir` is built for an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Build {
    /// As it ships.
    Release,
    /// As tests are built: soon, and with all checks.
    Dev,
}

/// The name of Weir's image, which the chart's values have, too: `weir:0.1.0`.
pub fn weir_name() -> String {
    format!("weir:{}", env!("CARGO_PKG_VERSION"))
}

/// Weir's image of what is checked out: one static program, which no user but 65532 needs to run, and nothing else.
///
/// # Errors
/// It does not build.
pub fn weir(build: Build) -> Result<Image> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut cargo = Command::new(cargo);
    cargo
        .args([
            "rustc",
            "--locked",
            "--quiet",
            "--package=weir",
            "--bin=weir",
        ])
        .arg("--message-format=json-render-diagnostics")
        .args((build == Build::Release).then_some("--release"))
        // Given to the last crate alone, this links libc into the program, and builds no other crate anew.
        .args(["--", "-Ctarget-feature=+crt-static", "-Cstrip=symbols"])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    let _one = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
    let output = cargo.output().context("cannot run cargo")?;
    if !output.status.success() {
        bail!("weir does not build as a static program: {}", output.status);
    }
    let program = String::from_utf8(output.stdout)?
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .find_map(|message| Some(message["executable"].as_str()?.to_owned()))
        .context("cargo names no program")?;
    let image = Image::new(&weir_name())
        .program("/weir", Path::new(&program))?
        .entrypoint(&["/weir"])
        .user("65532:65532");
    Ok(image)
}
