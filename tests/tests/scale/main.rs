//! Weir in a large cluster: what it costs, and what it costs the API server.
//!
//! CI runs a small one; the figures in docs/performance.md come from
//! `WEIR_SCALE=full`, with a release build given by `WEIR_BIN`.

#![allow(clippy::print_stdout, reason = "tests print what they measured")]

use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::time::Instant;
use weir_tests::kubernetes::weir::{Process, Weir};
use weir_tests::{Backend, Reply, eventually_within, netns};

mod flapping;
mod world;

use world::World;

/// Anything may take so long: policies are written at the pace of the budget.
const PATIENCE: Duration = Duration::from_secs(300);
/// Changes of which the mean is told.
const CHANGES: u32 = 10;

#[tokio::test]
async fn a_large_cluster_is_programmed_and_flapping_breakers_stay_within_the_budget() -> Result<()>
{
    let Some(mut weir) = Weir::install(&["node-a"]).await? else {
        return Ok(());
    };
    let address = format!("{}:0", netns::address(9));
    let backend = Backend::listen(&address, |_| async { Reply::status(200) }).await;
    let world = World::of_this_run(weir.cluster.client().await?, backend.address());

    weir.control_planes
        .get_mut(&1)
        .context("it was started")?
        .process
        .kill()
        .await?;
    let begin = Instant::now();
    world.create().await?;
    println!(
        "{} Services with slices and {} policies made in {:?}",
        world.services,
        world.policies,
        begin.elapsed()
    );

    let begin = Instant::now();
    weir.start_control_plane(1).await?;
    let ready = begin.elapsed();
    eventually_within(PATIENCE, "every policy to be Programmed", || {
        world.programmed()
    })
    .await;
    println!(
        "control plane: ready after {ready:?}, every policy Programmed after {:?}",
        begin.elapsed()
    );
    let control_plane = weir.control_planes.get(&1).context("it was started")?;
    let agent = weir.agents.get("node-a").context("it was started")?;
    println!(
        "resident: control plane {}, agent {}",
        resident(&control_plane.process)?,
        resident(&agent.process)?
    );

    let (mut took, used) = (Duration::ZERO, cpu(&control_plane.process)?);
    for n in 0..CHANGES {
        let begin = Instant::now();
        world.change_policy(n).await?;
        eventually_within(PATIENCE, "the change to be Programmed", || {
            world.policy_programmed()
        })
        .await;
        took += begin.elapsed();
    }
    let used = cpu(&control_plane.process)?.saturating_sub(used);
    println!(
        "a changed policy: Programmed after {:?}, {:?} of CPU in the control plane",
        took / CHANGES,
        used / CHANGES
    );
    flapping::flap(&weir, &backend, &world).await?;
    println!(
        "resident after it: control plane {}, agent {}",
        resident(&control_plane.process)?,
        resident(&agent.process)?
    );
    weir.shutdown().await
}

/// Memory that a process has.
fn resident(process: &Process) -> Result<String> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.id()?))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    Ok(line.context("it has memory")?.trim().to_owned())
}

/// CPU time that a process has used, in steps of 10 ms (proc(5): fields 14 and 15, after the name in parentheses).
fn cpu(process: &Process) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.id()?))?;
    let (_, fields) = stat
        .rsplit_once(')')
        .context("the name is in parentheses")?;
    let ticks = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(str::parse::<u64>);
    let ticks: u64 = ticks.collect::<Result<Vec<_>, _>>()?.iter().sum();
    Ok(Duration::from_millis(10 * ticks))
}
