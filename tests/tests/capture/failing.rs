//! What callers lose when a part of Weir fails while they call.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;

use anyhow::{Result, ensure};
use rustix::process::Signal;
use weir_tests::eventually;
use weir_tests::load::{Callers, Load, Lost, Tally, Way};
use weir_tests::pods::{Family, KubeProxy, Pod, Topology};

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
async fn both_that_are_killed_cost_what_comes_until_the_kernel_has_ended_them() -> Result<()> {
    let Some((mut guarded, load)) = busy().await? else {
        return Ok(());
    };
    guarded.agent.capture.signal(Signal::KILL)?;
    guarded.agent.proxy.signal(Signal::KILL)?;
    load.goes_on(SOME).await;
    let refused = |tally: &Tally| tally.lost.get(&Lost::Refused).copied().unwrap_or(0);
    let at_once = refused(&load.tally());
    guarded.agent.restart_capture()?;
    guarded.agent.restart_proxy()?;
    guarded.agent.ready().await;
    captures_again(&guarded).await?;
    // Nobody listens any more, and the kernel is still about to take the rules away.
    let tally = load.end()?;
    println!("both were killed: {tally}");
    ensure!(refused(&tally) == at_once, "{tally}");
    // Two processes end, one after the other: each may cost what is under way then.
    ensure!(tally.losses() - at_once <= 2 * CALLERS, "{tally}");
    Ok(())
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

/// The whole answer to one request, whatever it says.
fn answer(pod: &Pod, at: SocketAddr) -> Result<String> {
    let mut io = pod.inside().connect(at)??;
    io.write_all(b"GET / HTTP/1.1\r\nhost: weir.test\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    io.read_to_string(&mut answer)?;
    Ok(answer)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_capture_stands_still_calls_go_on_and_what_cannot_is_told_why() -> Result<()> {
    let Some((guarded, load)) = busy().await? else {
        return Ok(());
    };
    let Guarded { agent, shop, .. } = &guarded;
    // Nobody has called so yet: there is no connection, and no socket for one.
    let at = shop.services.far.addresses().port(Family::V6, PORTS[0].0);
    agent.capture.signal(Signal::STOP)?;
    captures_again(&guarded).await?;
    let told = answer(&shop.caller, at)?;
    ensure!(
        told.starts_with("HTTP/1.1 502")
            && told.contains("capture")
            && told.contains("does not answer"),
        "{told}"
    );
    captures_again(&guarded).await?;
    agent.capture.signal(Signal::CONT)?;
    eventually("calls that reach their endpoint", || async {
        match answer(&shop.caller, at) {
            Ok(told) if told.starts_with("HTTP/1.1 200") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let tally = load.end()?;
    println!("capture stood still: {tally}");
    let told = |lost: &Lost| *lost == Lost::Answer(502);
    ensure!(tally.lost.keys().all(told), "{tally}");
    Ok(())
}
