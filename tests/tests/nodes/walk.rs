//! The README's walk-through, word for word, on real nodes with real pods.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, Result, bail, ensure};
use tokio::process::Command;
use weir_tests::image::{self, Build};
use weir_tests::kubernetes::Cluster;

use super::cluster;

/// What a reader is told to type, in order.
fn script() -> Result<Vec<String>> {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md"))?;
    let part = readme
        .split_once("<!-- walk-through -->")
        .and_then(|(_, rest)| rest.split_once("<!-- /walk-through -->"))
        .context("the README has a walk-through")?
        .0;
    let blocks = part.split("```sh\n").skip(1);
    let block = |block: &str| block.split("```").next().unwrap_or_default().to_owned();
    Ok(blocks.map(block).collect())
}

/// Runs one block as a reader's shell does. Its output.
async fn run(cluster: &Cluster, block: &str) -> Result<String> {
    let mut shell = Command::new("bash");
    // What a reader has running beside ends with the block.
    let beside = "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n";
    shell
        .args(["-e", "-u", "-o", "pipefail", "-c"])
        .arg(format!("{beside}{block}"))
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .env("KUBECONFIG", cluster.kubeconfig())
        .env("PATH", path(cluster)?)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = shell.output().await?;
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    println!("{block}{text}");
    if !output.status.success() {
        let seen = cluster
            .kubectl(&["get", "pods,rp,cb", "-A", "-o", "wide"])
            .await?;
        let logs = [
            "logs",
            "-n",
            "weir-system",
            "daemonset/weir-agent",
            "--all-containers",
        ];
        let logs = cluster.kubectl(&logs).await.unwrap_or_default();
        bail!("{block}: {}\n{text}\n{seen}\n{logs}", output.status);
    }
    Ok(text)
}

/// With kubectl and helm first.
fn path(cluster: &Cluster) -> Result<OsString> {
    let kubectl = cluster.kubectl_command();
    let kubectl = Path::new(kubectl.as_std().get_program());
    let programs = kubectl.parent().context("kubectl lies somewhere")?;
    let usual = std::env::var_os("PATH").unwrap_or_default();
    let all = std::iter::once(programs.to_owned()).chain(std::env::split_paths(&usual));
    Ok(std::env::join_paths(all)?)
}

/// What became of checkout's calls: `200=98 503=1`.
async fn outcomes(cluster: &Cluster) -> Result<BTreeMap<String, u64>> {
    let words = ["logs", "-n", "shop", "deployment/checkout", "--tail=1"];
    let line = cluster.kubectl(&words).await?;
    let word = |word: &str| {
        let (outcome, count) = word.split_once('=')?;
        Some((outcome.to_owned(), count.parse().ok()?))
    };
    Ok(line.split_whitespace().filter_map(word).collect())
}

#[tokio::test]
async fn the_readmes_walk_through_does_what_it_says() -> Result<()> {
    let Some(cluster) = cluster().await? else {
        return Ok(());
    };
    cluster.load_image(&image::weir(Build::Dev)?).await?;
    let script = script()?;
    let [install, shop, broken, mended, ends] = &script[..] else {
        bail!("the walk-through has other steps: {script:?}");
    };
    run(cluster, install).await?;
    run(cluster, shop).await?;
    let pods = [
        "get",
        "pods",
        "-n",
        "shop",
        "-o",
        "jsonpath={.items[*].metadata.uid}",
    ];
    let uids = cluster.kubectl(&pods).await?;

    let shown = run(cluster, broken).await?;
    ensure!(shown.contains("Open"), "{shown}");
    let while_broken = outcomes(cluster).await?;
    ensure!(while_broken.contains_key("503"), "{while_broken:?}");

    run(cluster, mended).await?;
    let before = outcomes(cluster).await?;
    run(cluster, ends).await?;
    let after = outcomes(cluster).await?;
    println!("before the upgrade {before:?}, at the end {after:?}");
    for outcome in ["refused", "reset", "cut", "timeout", "other", "unresolved"] {
        ensure!(
            before.get(outcome) == after.get(outcome),
            "{outcome}: {before:?}, then {after:?}"
        );
    }
    ensure!(
        after.get("200") > before.get("200"),
        "{before:?}, {after:?}"
    );
    // Unmodified, and not restarted.
    let restarts = "jsonpath={.items[*].status.containerStatuses[*].restartCount}";
    let restarts = cluster
        .kubectl(&["get", "pods", "-n", "shop", "-o", restarts])
        .await?;
    ensure!(restarts.split(' ').all(|count| count == "0"), "{restarts}");
    ensure!(cluster.kubectl(&pods).await? == uids);
    Ok(())
}
