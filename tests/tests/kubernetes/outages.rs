//! What is away for a while: the API server, a member of etcd, the control plane that writes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use weir_tests::kubernetes::Options;
use weir_tests::kubernetes::weir::Weir;
use weir_tests::{Backend, Reply, call, eventually_within, netns};

/// How long the API server is away. A run by hand may take longer: `WEIR_OUTAGE_SECONDS=60`.
fn outage() -> Duration {
    let given = std::env::var("WEIR_OUTAGE_SECONDS")
        .ok()
        .and_then(|given| given.parse().ok());
    Duration::from_secs(given.unwrap_or(8))
}

/// `/well` is always well; the rest fails while it is told to.
struct Destination {
    backend: Backend,
    fails: Arc<AtomicBool>,
}

impl Destination {
    async fn start() -> Destination {
        let fails = Arc::new(AtomicBool::new(false));
        let failing = Arc::clone(&fails);
        let address = format!("{}:0", netns::address(9));
        let backend = Backend::listen(&address, move |seen| {
            let fails = failing.load(SeqCst) && seen.target != "/well";
            async move { Reply::status(if fails { 503 } else { 200 }) }
        })
        .await;
        Destination { backend, fails }
    }
}

/// Callers of an unbroken service through both agents, for as long as it lives.
struct Traffic {
    served: Arc<AtomicU64>,
    lost: Arc<AtomicU64>,
    callers: Vec<JoinHandle<()>>,
}

impl Traffic {
    fn start(weir: &Weir) -> Traffic {
        let (served, lost) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let callers = weir.agents.values().map(|agent| {
            let (proxy, served, lost) = (agent.proxy(), Arc::clone(&served), Arc::clone(&lost));
            tokio::spawn(async move {
                loop {
                    let asked = async {
                        let mut request = call::request("GET", "/well", "")?;
                        request.headers_mut().insert("host", "steady.shop".parse()?);
                        call::send(proxy, request).await
                    };
                    match asked.await {
                        Ok(got) if got.status == 200 => served.fetch_add(1, SeqCst),
                        other => {
                            println!("lost: {other:?}");
                            lost.fetch_add(1, SeqCst)
                        }
                    };
                    sleep(Duration::from_millis(10)).await;
                }
            })
        });
        Traffic {
            callers: callers.collect(),
            served,
            lost,
        }
    }

    fn end(self) -> Result<u64> {
        for caller in self.callers {
            caller.abort();
        }
        let lost = self.lost.load(SeqCst);
        ensure!(lost == 0, "{lost} requests were lost");
        Ok(self.served.load(SeqCst))
    }
}

/// Sends failing requests through both agents until the breaker is open, or good ones until it is closed.
async fn drive(weir: &Weir, destination: &Destination, state: &str) -> Result<()> {
    destination.fails.store(state == "Open", SeqCst);
    let agents: Vec<_> = weir.agents.values().collect();
    eventually_within(
        Duration::from_secs(30),
        &format!("agents to have the breaker {state}"),
        || async {
            let mut right = 0;
            for agent in &agents {
                let got = agent
                    .get("payments.shop", "/")
                    .await
                    .map_err(|error| error.to_string())?;
                let refused = got.header("proxy-status").contains("circuit breaker");
                right += usize::from(refused == (state == "Open"));
            }
            if right == agents.len() {
                Ok(())
            } else {
                Err(format!("{right} of {}", agents.len()))
            }
        },
    )
    .await;
    // One that recovers wants a few good answers.
    if state == "Closed" {
        for agent in &agents {
            for _ in 0..3 {
                agent.get("payments.shop", "/").await?;
            }
        }
    }
    Ok(())
}

/// Waits until the object says so; how long it took.
async fn right_again(weir: &Weir, state: &str) -> Duration {
    let since = Instant::now();
    eventually_within(
        Duration::from_secs(30),
        &format!("the object to say {state}"),
        || async {
            let object = weir
                .object("shop", "cb", "payments")
                .await
                .map_err(|error| error.to_string())?;
            let status = &object["status"];
            // One whose time is over is shown as ready to try; without requests nothing is tried.
            let is = match state {
                "Open" => status["summary"]["nodes"] == "2/2",
                _ => status["state"] == "Closed",
            };
            if is {
                Ok(since.elapsed())
            } else {
                Err(status.to_string())
            }
        },
    )
    .await
}

/// The breaker opened and closed so often: no Event tells more than that.
async fn no_event_twice(weir: &Weir, opened: i64, closed: i64) -> Result<()> {
    let text = weir
        .cluster
        .kubectl(&["-n", "shop", "get", "events.events.k8s.io", "-o", "json"])
        .await?;
    let list: Value = serde_json::from_str(&text)?;
    let mut told = BTreeMap::<(String, String), i64>::new();
    for event in list["items"].as_array().into_iter().flatten() {
        let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let what = (word(&event["regarding"]["kind"]), word(&event["reason"]));
        *told.entry(what).or_default() += event["series"]["count"].as_i64().unwrap_or(1);
    }
    println!("Events: {told:?}");
    for kind in ["ResiliencePolicy", "Service"] {
        for (reason, times) in [("CircuitOpened", opened), ("CircuitClosed", closed)] {
            let told = told
                .get(&(kind.to_owned(), reason.to_owned()))
                .copied()
                .unwrap_or(0);
            ensure!(
                (1..=times).contains(&told),
                "{reason} of {kind} was told {told} times, and happened {times} times"
            );
        }
    }
    Ok(())
}

/// Who holds the Lease.
async fn holder(weir: &Weir) -> Result<String> {
    let lease = weir
        .object("weir-system", "lease", "weir-control-plane")
        .await?;
    Ok(lease["spec"]["holderIdentity"]
        .as_str()
        .unwrap_or_default()
        .to_owned())
}

async fn shop(weir: &Weir) -> Result<Destination> {
    let destination = Destination::start().await;
    weir.cluster
        .kubectl(&["create", "namespace", "shop"])
        .await?;
    for name in ["payments", "steady"] {
        weir.service("shop", name, &destination.backend).await?;
    }
    weir.policy("shop", "payments", "  circuitBreaker: {minimumRequests: 5, open: {duration: 2s, maxDuration: 2s}, halfOpen: {rampUp: 0s}}").await?;
    weir.policy("shop", "steady", "  timeouts: {request: 5s}")
        .await?;
    for name in ["payments", "steady"] {
        weir.programmed("shop", name).await?;
    }
    weir.breaker_is("shop", "payments", "Closed").await;
    Ok(destination)
}

#[tokio::test]
async fn the_api_server_and_then_the_writing_control_plane_are_away_and_no_request_notices()
-> Result<()> {
    let Some(mut weir) = Weir::install(&["node-a", "node-b"]).await? else {
        return Ok(());
    };
    weir.start_control_plane(2).await?;
    let destination = shop(&weir).await?;
    let traffic = Traffic::start(&weir);

    // Never two that write, whatever happens below.
    let admins: Vec<_> = weir
        .control_planes
        .values()
        .map(|control_plane| control_plane.admin())
        .collect();
    let both = Arc::new(AtomicU64::new(0));
    let seen = Arc::clone(&both);
    let sampling = tokio::spawn(async move {
        loop {
            let mut leaders = 0;
            for admin in &admins {
                if let Ok(got) = call::get(*admin, "/metrics").await {
                    leaders += usize::from(got.text().contains("\nweir_control_plane_leader 1\n"));
                }
            }
            seen.fetch_add(u64::from(leaders > 1), SeqCst);
            sleep(Duration::from_millis(20)).await;
        }
    });

    weir.cluster.stop_api_server()?;
    drive(&weir, &destination, "Open").await?;
    sleep(outage()).await;
    weir.cluster.start_api_server().await?;
    let open = right_again(&weir, "Open").await;
    println!(
        "the API server was away for {:?}; its objects are right {open:?} after it is back",
        outage()
    );
    drive(&weir, &destination, "Closed").await?;
    right_again(&weir, "Closed").await;

    // The one that writes is killed in the middle of an outage.
    let first = holder(&weir).await?;
    drive(&weir, &destination, "Open").await?;
    let writes = weir.control_planes.iter().find(|(_, control_plane)| {
        control_plane
            .process
            .log()
            .is_ok_and(|log| log.contains(&format!("--pod-name={first}")) || log.contains(&first))
    });
    let number = writes.map_or(1, |(number, _)| *number);
    if let Some(mut killed) = weir.control_planes.remove(&number) {
        killed.process.kill().await?;
    }
    let open = right_again(&weir, "Open").await;
    drive(&weir, &destination, "Closed").await?;
    let closed = right_again(&weir, "Closed").await;
    let second = holder(&weir).await?;
    println!(
        "{first} was killed, {second} writes; the object was right after {open:?}, and {closed:?} after it closed"
    );
    assert_ne!(first, second);

    // And it gives the Lease back when it is told to end.
    weir.start_control_plane(number).await?;
    let ended = weir
        .control_planes
        .keys()
        .copied()
        .find(|other| *other != number);
    if let Some(mut ended) = ended.and_then(|ended| weir.control_planes.remove(&ended)) {
        ended.process.stop().await?;
    }
    drive(&weir, &destination, "Open").await?;
    let open = right_again(&weir, "Open").await;
    println!("{second} was told to end; the object was right {open:?} after it opened");
    sampling.abort();
    assert_eq!(both.load(SeqCst), 0, "two wrote at once");
    no_event_twice(&weir, 3, 2).await?;
    println!("{} requests served meanwhile, none lost", traffic.end()?);
    weir.shutdown().await
}

#[tokio::test]
async fn etcd_loses_its_leader_and_no_request_notices() -> Result<()> {
    let options = Options {
        etcd_members: 3,
        ..Options::default()
    };
    let Some(weir) = Weir::install_with(&["node-a", "node-b"], options).await? else {
        return Ok(());
    };
    let destination = shop(&weir).await?;
    let traffic = Traffic::start(&weir);
    let member = weir.cluster.stop_etcd_leader().await?;
    drive(&weir, &destination, "Open").await?;
    let open = right_again(&weir, "Open").await;
    println!(
        "etcd lost member {member}, its leader; the object was right {open:?} after the breaker opened"
    );
    weir.cluster.start_etcd().await?;
    drive(&weir, &destination, "Closed").await?;
    right_again(&weir, "Closed").await;
    no_event_twice(&weir, 1, 1).await?;
    println!("{} requests served meanwhile, none lost", traffic.end()?);
    weir.shutdown().await
}

#[tokio::test]
async fn an_api_server_that_hangs_or_is_not_there_yet_is_waited_for() -> Result<()> {
    let Some(mut weir) = Weir::install(&["node-a", "node-b"]).await? else {
        return Ok(());
    };
    let destination = shop(&weir).await?;
    let traffic = Traffic::start(&weir);

    // It accepts connections and answers nothing, for longer than the Lease lasts.
    weir.cluster.pause_api_server()?;
    drive(&weir, &destination, "Open").await?;
    eventually_within(
        Duration::from_secs(30),
        "the writer to stand back",
        || async {
            let leads = weir.control_planes[&1]
                .figure("weir_control_plane_leader")
                .await;
            match leads {
                Ok(0.0) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        },
    )
    .await;
    weir.cluster.resume_api_server()?;
    let open = right_again(&weir, "Open").await;
    println!("the API server hung; its objects are right {open:?} after it goes on");
    drive(&weir, &destination, "Closed").await?;
    right_again(&weir, "Closed").await;

    // A control plane that begins without one waits, and says for what.
    weir.start_control_plane(2).await?;
    if let Some(control_plane) = weir.control_planes.get_mut(&2) {
        control_plane.process.kill().await?;
    }
    weir.cluster.stop_api_server()?;
    weir.relaunch_control_plane(2)?;
    let admin = weir.control_planes[&2].admin();
    let waits = eventually_within(
        Duration::from_secs(30),
        "it to say what it waits for",
        || async {
            let got = call::get(admin, "/readyz")
                .await
                .map_err(|error| error.to_string())?;
            if got.status == 503 {
                Ok(got.text())
            } else {
                Err(got.text())
            }
        },
    )
    .await;
    println!("without an API server: {}", waits.trim());
    weir.cluster.start_api_server().await?;
    eventually_within(Duration::from_secs(30), "it to be ready", || async {
        let got = weir.control_planes[&2]
            .ready()
            .await
            .map_err(|error| error.to_string())?;
        if got.status == 200 {
            Ok(())
        } else {
            Err(got.text())
        }
    })
    .await;
    println!("{} requests served meanwhile, none lost", traffic.end()?);
    weir.shutdown().await
}

#[tokio::test]
async fn an_agent_that_starts_while_everything_else_is_away_enforces_what_it_kept() -> Result<()> {
    let Some(mut weir) = Weir::install(&["node-a"]).await? else {
        return Ok(());
    };
    let destination = shop(&weir).await?;
    weir.cluster.stop_api_server()?;
    if let Some(mut control_plane) = weir.control_planes.remove(&1) {
        control_plane.process.kill().await?;
    }
    if let Some(agent) = weir.agents.get_mut("node-a") {
        agent.process.kill().await?;
    }
    weir.restart_agent("node-a").await?;
    destination.fails.store(true, SeqCst);
    let mut said = BTreeSet::new();
    for _ in 0..8 {
        said.insert(
            weir.agents["node-a"]
                .get("payments.shop", "/")
                .await?
                .header("proxy-status")
                .to_owned(),
        );
    }
    assert!(
        said.iter().any(|said| said.contains("circuit breaker")),
        "{said:?}"
    );
    weir.shutdown().await
}
