//! `cargo xtask cluster`: a Kubernetes API server for a person, the one that tests use.
use std::path::{Path, PathBuf};

use anyhow::bail;
use clap::Subcommand;

use crate::process::{self, cargo};
use crate::tools::{self, Tools};

/// What is to be done with the cluster.
#[derive(Clone, Subcommand)]
pub(crate) enum Action {
    /// Start it, or find the one that runs, and print how to reach it; the same as no word at all
    Up,
    /// Give its nodes the images in an archive
    Load {
        /// What `cargo xtask image` or `docker save` wrote
        archive: PathBuf,
    },
    /// End it, and remove its files
    Down,
}

/// Gets the programs and hands over to `weir-cluster` of `weir-tests`.
///
/// # Errors
/// A program is missing, or the cluster cannot be started or ended.
pub(crate) fn run(root: &Path, action: Action, nodes: u8) -> anyhow::Result<()> {
    let cluster = tools::cache()?.join("cluster");
    let mut command = cargo(root);
    command.args(["run", "--locked"]);
    command.args(["--package", "weir-tests", "--bin", "weir-cluster", "--"]);
    match action {
        Action::Up => {
            let mut needed = tools::FOR_CLUSTERS.to_vec();
            if nodes > 0 {
                if !tools::is_root() {
                    bail!(
                        "nodes have namespaces, mounts and cgroups of their own, which only root can make: \
                         run this as root, or without --nodes"
                    );
                }
                needed.extend(tools::FOR_NODES);
            }
            let tools = Tools::get(root, &needed)?;
            if !tools.missing().is_empty() {
                bail!("{}", tools.missing().join("\n!! "));
            }
            command.envs(tools.environment());
            command.arg("up").arg(cluster).arg(nodes.to_string());
        }
        Action::Load { archive } => {
            command.arg("load").arg(cluster);
            command.arg(std::path::absolute(archive)?);
        }
        Action::Down => {
            command.arg("down").arg(cluster);
        }
    }
    process::run(&mut command)
}
