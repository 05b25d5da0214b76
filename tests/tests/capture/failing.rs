//! What callers lose when a part of Weir fails while they call.

use anyhow::{Result, ensure};
use rustix::process::Signal;
use weir_tests::eventually;
use weir_tests::load::{Callers, Load, Tally, Way};
use weir_tests::pods::{Family, KubeProxy, Topology};

use crate::captured::{Guarded, retries, service};
use crate::shop::{PORTS, Shop};

/// As many callers as lose a call each when all are cut off in the middle of one.
const CALLERS: u64 = 8;

/// Some that keep their connections and some that do not.
const LOAD: [Callers; 2] = [
    Callers {
        way: Way::KeepAlive,
        count: 4,
        rate: 120,
    },
    Callers {
        way: Way::NewConnections,
        count: 4,
        rate: 80,
    },
];

/// Calls that show that it goes on.
const SOME: u64 = 40;

/// A shop in which one Service has a policy, and callers of it.
async fn busy() -> Result<Option<(Guarded, Load)>> {
    let far = |shop: &Shop| {
        let (to, endpoint) = (&shop.services.far, &shop.far.pod);
        service("far", to, false, &[endpoint], &retries()).to_vec()
    };
    let guarded = Guarded::open(Topology::Ptp, KubeProxy::Nftables, far).await?;
    let Some(guarded) = guarded else {
        return Ok(None);
    };
    let at = guarded.shop.services.far.addresses();
    let at = at.port(Family::V4, PORTS[0].0);
    let load = Load::start(guarded.shop.caller.inside(), at, &LOAD)?;
    captures_again(&guarded).await?;
    Ok(Some((guarded, load)))
}

/// Waits until calls come through the proxy.
async fn captures_again(guarded: &Guarded) -> Result<()> {
    let answered = || {
        guarded
            .agent
            .metric("weir_responses_total", "class=\"2xx\"")
    };
    let before = answered().await?;
    eventually("calls through the proxy", || async {
        match answered().await {
            Ok(now) if now >= before + SOME => Ok(()),
            other => Err(format!("{other:?} after {before}")),
        }
    })
    .await;
    Ok(())
}

/// Not more is lost than what was under way, each time that something failed.
fn check(what: &str, tally: &Tally, failures: u64) -> Result<()> {
    println!("{what}: {tally}");
    ensure!(tally.losses() <= CALLERS * failures, "{what}: {tally}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_that_is_killed_costs_the_calls_under_way_and_no_other() -> Result<()> {
    let Some((mut guarded, load)) = busy().await? else {
        return Ok(());
    };
    guarded.agent.proxy.kill()?;
    load.goes_on(SOME).await;
    guarded.agent.restart_proxy()?;
    guarded.agent.ready().await;
    captures_again(&guarded).await?;
    check("the proxy was killed", &load.end()?, 1)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn capture_that_is_killed_costs_the_calls_under_way_and_no_other() -> Result<()> {
    let Some((mut guarded, load)) = busy().await? else {
        return Ok(());
    };
    guarded.agent.capture.kill()?;
    guarded.agent.captures(0).await;
    load.goes_on(SOME).await;
    guarded.agent.restart_capture()?;
    guarded.agent.captures(2).await;
    captures_again(&guarded).await?;
    check("capture was killed", &load.end()?, 1)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_that_are_killed_cost_the_calls_under_way_and_no_other() -> Result<()> {
    let Some((mut guarded, load)) = busy().await? else {
        return Ok(());
    };
    guarded.agent.capture.signal(Signal::KILL)?;
    guarded.agent.proxy.signal(Signal::KILL)?;
    load.goes_on(SOME).await;
    guarded.agent.restart_capture()?;
    guarded.agent.restart_proxy()?;
    guarded.agent.ready().await;
    captures_again(&guarded).await?;
    check("both were killed", &load.end()?, 1)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_that_stands_still_is_gone_round_until_it_moves_again() -> Result<()> {
    let Some((guarded, load)) = busy().await? else {
        return Ok(());
    };
    guarded.agent.proxy.signal(Signal::STOP)?;
    load.goes_on(SOME).await;
    guarded.agent.proxy.signal(Signal::CONT)?;
    captures_again(&guarded).await?;
    check("the proxy stood still", &load.end()?, 1)
}
