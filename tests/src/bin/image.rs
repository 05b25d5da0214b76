//! Weir's own image: `weir-image release|dev ARCHIVE` builds `weir` and writes it.
#![allow(
    clippy::print_stdout,
    reason = "a command that talks to a person in a terminal"
)]

use anyhow::{Result, bail};
use weir_tests::image::{Build, weir, weir_name};

fn main() -> Result<()> {
    let arguments = std::env::args_os().skip(1).collect::<Vec<_>>();
    let [build, archive] = &arguments[..] else {
        bail!("write `weir-image release|dev ARCHIVE`");
    };
    let build = match build.to_str() {
        Some("release") => Build::Release,
        Some("dev") => Build::Dev,
        _ => bail!("{}: write release or dev", build.display()),
    };
    weir(build)?.write(archive.as_ref())?;
    let size = std::fs::metadata(archive)?.len() / 1_000_000;
    println!("{}, {size} MB: {}", weir_name(), archive.display());
    Ok(())
}
