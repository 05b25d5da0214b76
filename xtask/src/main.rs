//! Weir's development tasks, one command each: `cargo xtask test | lint | generate | layers | bench | image |
//! tools | cluster`.
//!
//! `test` runs the steps of [`steps`], which are what CI runs. A step may need programs of others; [`tools`] finds
//! or gets them, and hands their paths to the tests by environment variable. [`layers`] holds the table that says
//! which crate may use which, [`generate`] writes the files that are generated and committed.
#![allow(
    clippy::print_stdout,
    reason = "a command that talks to a person in a terminal"
)]

mod cluster;
mod counts;
mod generate;
mod image;
mod layers;
mod process;
mod steps;
mod tools;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};

/// Development tasks. Start with `cargo xtask test`: it runs all that CI runs, and gets what that needs.
#[derive(Parser)]
#[command(bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Run everything that CI runs; ends with the counts of all tests
    Test {
        /// Run this step alone; may be given more than once
        #[arg(long, value_name = "STEP")]
        only: Vec<String>,
        /// List the steps and stop
        #[arg(long)]
        list: bool,
    },
    /// Run the steps that read code and run none of it
    Lint,
    /// Write the generated files: the wire's Rust code, the CRDs
    Generate {
        /// Write nothing; fail if a file is stale, and name it
        #[arg(long)]
        check: bool,
    },
    /// Check which crate uses which
    Layers,
    /// Compare Weir with its peers; arguments go to weir-bench
    Bench {
        /// What weir-bench is to do, such as `proxy --seconds 10`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Make Weir's container image: target/image/weir.tar, for `ctr images import`, `docker load`, `podman load`
    Image {
        /// Build it as tests are built: sooner, but slow at its work
        #[arg(long)]
        debug: bool,
    },
    /// Get the programs that tests use, and print the variables that tell tests where they are
    Tools,
    /// Run Kubernetes in the background, to try Weir on; one for each user of this machine
    Cluster {
        /// So many nodes, which run pods; only root can make them. Without them objects are kept, and nothing runs
        #[arg(long, value_name = "COUNT", default_value_t = 0)]
        nodes: u8,
        #[command(subcommand)]
        action: Option<cluster::Action>,
    },
}

/// The checkout, whatever directory the command was given in.
fn checkout() -> anyhow::Result<PathBuf> {
    let xtask = std::env::var_os("CARGO_MANIFEST_DIR")
        .context("run this as `cargo xtask`, not by its path")?;
    let root = PathBuf::from(xtask).parent().map(PathBuf::from);
    root.context("xtask has no directory above it: it must stand in Weir's workspace")
}

fn main() -> ExitCode {
    match run(Arguments::parse().task) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("!! {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// True if all is well; what is not has been said.
fn run(task: Task) -> anyhow::Result<bool> {
    let root = checkout()?;
    match task {
        Task::Test { list: true, .. } => steps::list(),
        Task::Test { only, .. } if only.is_empty() => return steps::run(&root, &steps::all()),
        Task::Test { only, .. } => return steps::run(&root, &steps::named(&only)?),
        Task::Lint => return steps::run(&root, &steps::lints()),
        Task::Generate { check: true } => generate::check(&root)?,
        Task::Generate { check: false } => generate::write(&root)?,
        Task::Layers => layers::check(&root)?,
        Task::Image { debug } => image::run(&root, debug)?,
        Task::Cluster { action, nodes } => {
            cluster::run(&root, action.unwrap_or(cluster::Action::Up), nodes)?
        }
        Task::Bench { arguments } => {
            let mut bench = process::cargo(&root);
            bench.args([
                "run",
                "--locked",
                "--release",
                "--package",
                "weir-bench",
                "--",
            ]);
            process::run(bench.args(arguments))?;
        }
        Task::Tools => {
            let tools = tools::Tools::get(&root, &tools::for_tests())?;
            for (variable, path) in tools.environment() {
                println!("export {variable}='{}'", path.display());
            }
            for missing in tools.missing() {
                println!("# {missing}");
            }
            return Ok(tools.missing().is_empty());
        }
    }
    Ok(true)
}
