//! Pods that come and go, and what many of them cost while nobody calls.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tokio::time::Instant;
use weir_proto::v1alpha1::ResourceKind;
use weir_tests::agents::Process;
use weir_tests::eventually;
use weir_tests::pods::{Family, KubeProxy, Pod, Topology, end};

use crate::captured::{Guarded, NODE, pod, retries, service};
use crate::shop::{PORTS, Shop, ask};

/// How many pods come and go.
const PODS: &str = "WEIR_CHURN_PODS";
const DEFAULT_PODS: usize = 200;
/// So many are there at once.
const ROUND: usize = 50;
/// As many as a kubelet starts by default.
const FULL_NODE: usize = 110;
/// Two listeners for each family, and some to spare: a figure that is far above
/// it would mean that files are kept which nobody needs.
const MOST_FILES: usize = 12;

/// A shop in which two Services have a policy.
async fn open() -> Result<Option<Guarded>> {
    let two = |shop: &Shop| {
        let (near, far) = (&shop.near.pod, &shop.far.pod);
        [
            service("near", &shop.services.near, false, &[near], &retries()),
            service("far", &shop.services.far, false, &[far], &retries()),
        ]
        .concat()
    };
    Guarded::open(Topology::Ptp, KubeProxy::Nftables, two).await
}

fn named(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{prefix}-{n}")).collect()
}

/// Has the kernel show when a pod's namespace ends: then a cable ends that is
/// fastened there, and with it its other end on the node.
fn watch(guarded: &Guarded, pod: &Pod, number: usize) -> Result<()> {
    let path = pod.inside().path().display();
    let cable = format!("link add watch{number} type veth peer name watch netns {path}");
    guarded.shop.network.node(0).inside().ip(&cable)
}

/// How many pods are watched whose namespaces have not ended.
fn watched(guarded: &Guarded) -> Result<usize> {
    let node = guarded.shop.network.node(0).inside();
    let links = node.run("ip", &["-oneline", "link", "show", "type", "veth"], "")?;
    Ok(links.matches(": watch").count())
}

/// What a namespace is called in lists of open files.
fn label(pod: &Pod) -> Result<String> {
    Ok(format!(
        "net:[{}]",
        fs::metadata(pod.inside().path())?.ino()
    ))
}

/// Which of these namespaces a process has open by themselves.
fn holds(process: &Process, labels: &[String]) -> Result<Vec<String>> {
    let number = process.pid()?.as_raw_nonzero();
    let files = fs::read_dir(format!("/proc/{number}/fd"))?;
    let links = files.flatten().flat_map(|file| fs::read_link(file.path()));
    let links = links.map(|link| link.to_string_lossy().into_owned());
    Ok(links.filter(|link| labels.contains(link)).collect())
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let last = sorted.len().saturating_sub(1);
    sorted
        .get(last * percent / 100)
        .copied()
        .unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_pods_that_have_come_and_gone_nothing_stays_open() -> Result<()> {
    let pods = match std::env::var(PODS) {
        Ok(number) => number.parse().context(PODS)?,
        Err(_) => DEFAULT_PODS,
    };
    let Some(guarded) = open().await? else {
        return Ok(());
    };
    let Guarded { agent, told, shop } = &guarded;
    let at = shop.services.far.addresses().port(Family::V4, PORTS[0].0);
    // With whatever the first call makes for good.
    ask(&shop.caller, at)?;
    let (capture, proxy) = (agent.capture.files()?, agent.proxy.files()?);
    let mut took = Vec::new();
    let mut labels = Vec::new();
    for round in 0..pods.div_ceil(ROUND) {
        let names = named(&format!("round{round}"), ROUND.min(pods - round * ROUND));
        let all = shop.network.node(0).pods(&names)?;
        for (number, one) in all.iter().enumerate() {
            watch(&guarded, one, round * ROUND + number)?;
            labels.push(label(one)?);
            let since = Instant::now();
            told.set_on(NODE, pod(one));
            told.enforced(NODE).await;
            took.push(since.elapsed());
        }
        let met = agent
            .metric("weir_responses_total", "class=\"2xx\"")
            .await?;
        let caller = all.last().context("a round has pods")?;
        let answer = ask(caller, at)?;
        let address = caller.addresses().ip(Family::V4).to_string();
        ensure!(answer.ends_with(&address), "{answer}, not to {address}");
        let now = agent
            .metric("weir_responses_total", "class=\"2xx\"")
            .await?;
        ensure!(now == met + 1, "{met} answers, and then {now}");

        // Either may be heard of first.
        if round % 2 == 0 {
            end(all);
        }
        for name in &names {
            told.remove(NODE, ResourceKind::Pod, &format!("shop/{name}"));
        }
        let since = Instant::now();
        told.enforced(NODE).await;
        agent.captures(2).await;
        println!("round {round}: let go of after {:?}", since.elapsed());
    }
    took.sort_unstable();
    println!(
        "{pods} pods: captured after {:?} (p50), {:?} (p99)",
        percentile(&took, 50),
        percentile(&took, 99)
    );
    eventually("namespaces that have ended", || async {
        match watched(&guarded) {
            Ok(0) => Ok(()),
            left => Err(format!(
                "{left:?} are left; capture has {:?}, the proxy {:?}",
                holds(&agent.capture, &labels),
                holds(&agent.proxy, &labels)
            )),
        }
    })
    .await;
    eventually("files that are closed", || async {
        match (agent.capture.files(), agent.proxy.files()) {
            (Ok(a), Ok(b)) if a <= capture && b <= proxy => Ok(()),
            other => Err(format!("{other:?}, before: {capture} and {proxy}")),
        }
    })
    .await;
    let names = fs::read_dir(shop.network.node(0).netns())?.count();
    ensure!(names == 2, "{names} names of namespaces");
    let tables = shop.network.node(0).inside();
    let tables = tables.run("nft", &["list", "tables"], "")?;
    ensure!(!tables.contains("weir"), "on the node: {tables}");
    ask(&shop.caller, at).map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_node_on_which_nobody_calls_costs_a_few_files_a_pod() -> Result<()> {
    let Some(guarded) = open().await? else {
        return Ok(());
    };
    let Guarded { agent, told, shop } = &guarded;
    let (capture, proxy) = (agent.capture.files()?, agent.proxy.files()?);
    let figures = |what: &str| -> Result<()> {
        for (name, process) in [("capture", &agent.capture), ("the proxy", &agent.proxy)] {
            let (all, own) = (process.memory("VmRSS")?, process.memory("RssAnon")?);
            println!("{what}: {name} has {all} kB, of which {own} kB are its own");
        }
        Ok(())
    };
    figures("2 pods")?;
    let more = FULL_NODE - 2;
    let all = shop.network.node(0).pods(&named("idle", more))?;
    let since = Instant::now();
    for one in &all {
        told.set_on(NODE, pod(one));
    }
    told.enforced(NODE).await;
    println!("{more} pods at once: captured after {:?}", since.elapsed());
    agent.captures(FULL_NODE as u64).await;
    figures("110 pods")?;
    let kept = [
        ("capture", agent.capture.files()?.saturating_sub(capture)),
        ("the proxy", agent.proxy.files()?.saturating_sub(proxy)),
    ];
    for (name, files) in kept {
        println!("{name} has {files} files for {more} pods");
        ensure!(files <= MOST_FILES * more, "{name}: {files} files");
    }
    end(all);
    Ok(())
}
