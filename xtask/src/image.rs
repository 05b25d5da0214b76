//! `cargo xtask image`: Weir's container image, without a daemon and without a registry.
use std::path::Path;

use crate::process::{self, cargo, target_directory};

/// Hands over to `weir-image` of `weir-tests`, which makes the images of tests, too.
///
/// # Errors
/// Weir does not build, or the image cannot be written.
pub(crate) fn run(root: &Path, debug: bool) -> anyhow::Result<()> {
    let directory = target_directory(root)?.join("image");
    std::fs::create_dir_all(&directory)?;
    let mut command = cargo(root);
    command.args(["run", "--locked", "--package=weir-tests"]);
    command.args(["--bin=weir-image", "--"]);
    command.arg(if debug { "dev" } else { "release" });
    process::run(command.arg(directory.join("weir.tar")))
}
