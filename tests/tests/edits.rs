//! Manifests that are edited while traffic flows.

#![allow(clippy::print_stdout)] // figures that were measured

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use anyhow::Result;
use tokio::time::Instant;
use weir_tests::call::{self, Caller};
use weir_tests::{Backend, House, Reply, eventually};

/// Callers that never stop, and what they got.
struct Traffic {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicU64>,
    lost: Arc<AtomicU64>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Traffic {
    fn to(address: std::net::SocketAddr) -> Traffic {
        let stop = Arc::new(AtomicBool::new(false));
        let (served, lost) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let tasks = (0..4)
            .map(|_| {
                let (stop, served, lost) = (stop.clone(), Arc::clone(&served), Arc::clone(&lost));
                tokio::spawn(async move {
                    let Ok(mut caller) = Caller::h1(address).await else {
                        lost.fetch_add(1, SeqCst);
                        return;
                    };
                    while !stop.load(SeqCst) {
                        let Ok(request) = call::request("GET", "/steady", "") else {
                            return;
                        };
                        match caller.send(request).await {
                            Ok(got) if got.status == 200 => served.fetch_add(1, SeqCst),
                            _ => lost.fetch_add(1, SeqCst),
                        };
                        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                    }
                })
            })
            .collect();
        Traffic {
            stop,
            served,
            lost,
            tasks,
        }
    }

    /// Requests served; fails when any was lost.
    async fn end(self) -> Result<u64> {
        self.stop.store(true, SeqCst);
        for task in self.tasks {
            task.await?;
        }
        anyhow::ensure!(
            self.lost.load(SeqCst) == 0,
            "{} requests were lost",
            self.lost.load(SeqCst)
        );
        Ok(self.served.load(SeqCst))
    }
}

/// `/steady` is always well, everything else fails, and is counted.
async fn backend() -> (Backend, Arc<AtomicU64>) {
    let failed = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&failed);
    let backend = Backend::with(move |seen| {
        let count = Arc::clone(&count);
        async move {
            if seen.target == "/steady" {
                return Reply::status(200);
            }
            count.fetch_add(1, SeqCst);
            Reply::status(500)
        }
    })
    .await;
    (backend, failed)
}

/// Extra tries per request say which policy is in force.
fn attempts(n: u32) -> String {
    format!(
        "  retries: {{attempts: {n}, backoff: {{base: 1ms, max: 1ms}}, budget: {{percent: 100, minRetryRate: {{count: 1000, interval: 1s}}}}}}"
    )
}

async fn tries_per_request(house: &House, failed: &AtomicU64, expected: u64) -> Instant {
    let payments = house.listener("payments").await;
    eventually(&format!("{expected} tries a request"), || async {
        let before = failed.load(SeqCst);
        call::get(payments, "/failing")
            .await
            .map_err(|e| e.to_string())?;
        let made = failed.load(SeqCst) - before;
        if made == expected {
            Ok(Instant::now())
        } else {
            Err(format!("{made} tries"))
        }
    })
    .await
}

#[tokio::test]
async fn an_edit_is_enforced_at_once_and_no_request_is_lost() -> Result<()> {
    let (backend, failed) = backend().await;
    let house = House::payments(&[backend.address()], &attempts(0)).await?;
    let payments = house.listener("payments").await;
    let traffic = Traffic::to(payments);
    tries_per_request(&house, &failed, 1).await;
    for n in [1, 3, 0, 2] {
        let edited = Instant::now();
        house.manifests.policy("payments", &attempts(n))?;
        let enforced = tries_per_request(&house, &failed, u64::from(n) + 1).await;
        println!(
            "attempts: {n} enforced {:?} after the edit",
            enforced - edited
        );
    }
    assert_eq!(
        house.listener("payments").await,
        payments,
        "the listener stayed"
    );
    println!("{} requests served meanwhile", traffic.end().await?);
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn a_broken_edit_keeps_the_last_good_policy_and_says_file_line_and_what_to_write()
-> Result<()> {
    let (backend, failed) = backend().await;
    let house = House::payments(&[backend.address()], &attempts(2)).await?;
    let traffic = Traffic::to(house.listener("payments").await);
    tries_per_request(&house, &failed, 3).await;
    let broken = [
        ("attempts: 2", "attempts: many", "attempts"),
        ("attempts: 2", "attempts: 200", "10"),
        ("attempts: 2", "atempts: 2", "attempts"),
        (
            "retries: {attempts: 2",
            "retries: {attempts: 2, [",
            "policy-payments.yaml",
        ),
    ];
    let good = weir_tests::policy("payments", &attempts(2));
    for (from, to, expected) in broken {
        let path = house
            .manifests
            .write("policy-payments.yaml", &good.replace(from, to))?;
        let file = path
            .file_name()
            .and_then(|n| n.to_str())
            .unwrap_or_default()
            .to_owned();
        let said = eventually(&format!("{to:?} to be refused"), || async {
            let object = house
                .object("resiliencepolicies", "payments")
                .await
                .map_err(|e| e.to_string())?;
            let conditions = object["status"]["conditions"].to_string();
            if conditions.contains(&file) && conditions.contains(expected) {
                Ok(conditions)
            } else {
                Err(conditions)
            }
        })
        .await;
        assert!(said.contains(&format!("{file}:")), "with a line: {said}");
        tries_per_request(&house, &failed, 3).await;
        house.manifests.write("policy-payments.yaml", &good)?;
        eventually("the mended policy to be accepted", || async {
            let object = house
                .object("resiliencepolicies", "payments")
                .await
                .map_err(|e| e.to_string())?;
            let conditions = object["status"]["conditions"].to_string();
            if conditions.contains(&format!("{file}:")) {
                Err(conditions)
            } else {
                Ok(())
            }
        })
        .await;
    }
    house.manifests.policy("payments", &attempts(1))?;
    tries_per_request(&house, &failed, 2).await;
    traffic.end().await?;
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn half_written_files_are_survived() -> Result<()> {
    let (backend, failed) = backend().await;
    let house = House::payments(&[backend.address()], &attempts(2)).await?;
    let traffic = Traffic::to(house.listener("payments").await);
    let text = weir_tests::policy("payments", &attempts(2));
    let path = house.manifests.path().join("policy-payments.yaml");
    // An editor that truncates and writes in place, cut at any byte.
    for cut in (0..text.len()).step_by(23) {
        std::fs::write(&path, &text[..cut])?;
        tries_per_request(&house, &failed, 3).await;
    }
    // One that removes and creates.
    std::fs::remove_file(&path)?;
    std::fs::write(&path, weir_tests::policy("payments", &attempts(1)))?;
    tries_per_request(&house, &failed, 2).await;
    traffic.end().await?;
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn a_breakers_state_survives_a_change_of_its_policy() -> Result<()> {
    let (backend, _) = backend().await;
    let spec = |percent: u32| {
        format!(
            "  circuitBreaker: {{minimumRequests: 3, failurePercent: {percent}, open: {{duration: 60s}}}}"
        )
    };
    let house = House::payments(&[backend.address()], &spec(50)).await?;
    let payments = house.listener("payments").await;
    for _ in 0..3 {
        call::get(payments, "/failing").await?;
    }
    let before = house.breaker_is("payments", "Open").await;
    house.manifests.policy("payments", &spec(60))?;
    house.condition("payments", "Programmed", "True").await;
    let after = house.breaker_is("payments", "Open").await;
    assert_eq!(before["status"]["since"], after["status"]["since"]);
    assert_eq!(call::get(payments, "/failing").await?.status, 503);
    assert_eq!(backend.requests(), 3);
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn a_removed_service_is_gone_and_comes_back() -> Result<()> {
    let (backend, _) = backend().await;
    let house = House::payments(&[backend.address()], &attempts(0)).await?;
    let payments = house.listener("payments").await;
    assert_eq!(call::get(payments, "/steady").await?.status, 200);
    let file = house.manifests.path().join("service-payments.yaml");
    let text = std::fs::read_to_string(&file)?;
    std::fs::remove_file(&file)?;
    eventually("the listener to be closed", || async {
        let left = house.agent().listening().await;
        if left.is_empty() { Ok(()) } else { Err(left) }
    })
    .await;
    assert!(call::get(payments, "/steady").await.is_err());
    std::fs::write(&file, text)?;
    let again = house.listener("payments").await;
    assert_eq!(call::get(again, "/steady").await?.status, 200);
    house.shutdown().await;
    Ok(())
}
