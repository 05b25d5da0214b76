//! Control plane and agent as processes that are killed and come back.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use anyhow::{Context, Result};
use tokio::process::{Child, Command};
use weir_tests::call::{self, Caller};
use weir_tests::{Backend, Manifests, Reply, eventually, programs};

/// An address that was free a moment ago.
fn free() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// Where everything of one test is.
struct Plan {
    manifests: Manifests,
    state: tempfile::TempDir,
    grpc: SocketAddr,
    admin: SocketAddr,
    agent_admin: SocketAddr,
    payments: SocketAddr,
}

impl Plan {
    fn new(backend: &Backend, spec: &str) -> Result<Plan> {
        let manifests = Manifests::new()?;
        let payments = free()?;
        manifests.service("payments", &[backend.address()])?;
        let file = manifests.path().join("service-payments.yaml");
        let text = std::fs::read_to_string(&file)?.replace("127.0.0.1:0", &payments.to_string());
        std::fs::write(&file, text)?;
        manifests.policy("payments", spec)?;
        let state = tempfile::TempDir::with_prefix("weir-test-")?;
        Ok(Plan {
            manifests,
            state,
            grpc: free()?,
            admin: free()?,
            agent_admin: free()?,
            payments,
        })
    }

    fn control_plane(&self) -> Result<Child> {
        spawn(&[
            "control-plane",
            "-f",
            text(self.manifests.path())?,
            "--grpc",
            &self.grpc.to_string(),
            "--admin",
            &self.admin.to_string(),
        ])
    }

    fn agent(&self) -> Result<Child> {
        let (control_plane, admin) = (
            format!("http://{}", self.grpc),
            self.agent_admin.to_string(),
        );
        spawn(&[
            "agent",
            "--control-plane",
            &control_plane,
            "--node",
            "test",
            "--admin",
            &admin,
            "--workers",
            "1",
            "--state-dir",
            text(self.state.path())?,
        ])
    }

    async fn serving(&self) {
        eventually("the agent to serve payments", || async {
            match call::get(self.payments, "/").await {
                Ok(got) if got.status == 200 => Ok(()),
                Ok(got) => Err(got.text()),
                Err(error) => Err(error.to_string()),
            }
        })
        .await;
    }

    /// Whether the agent says that it is in touch with the control plane.
    async fn connected(&self, wanted: bool) {
        let line = format!("weir_connected_to_control_plane {}", u8::from(wanted));
        eventually(&line, || async {
            let metrics = call::get(self.agent_admin, "/metrics")
                .await
                .map_err(|e| e.to_string())?
                .text();
            if metrics.lines().any(|l| l == line) {
                Ok(())
            } else {
                Err("not yet".to_owned())
            }
        })
        .await;
    }
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path in UTF-8")
}

fn spawn(args: &[&str]) -> Result<Child> {
    let mut command = Command::new(programs::weir());
    command
        .args(args)
        .env("WEIR_LOG", "warn")
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null());
    Ok(command.kill_on_drop(true).spawn()?)
}

/// Requests one after the other; how many were served and how many were not.
fn steady(
    address: SocketAddr,
) -> (
    Arc<AtomicBool>,
    Arc<AtomicU64>,
    Arc<AtomicU64>,
    tokio::task::JoinHandle<()>,
) {
    let stop = Arc::new(AtomicBool::new(false));
    let (served, lost) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (s, w, l) = (stop.clone(), served.clone(), lost.clone());
    let task = tokio::spawn(async move {
        let Ok(mut caller) = Caller::h1(address).await else {
            l.fetch_add(1, SeqCst);
            return;
        };
        while !s.load(SeqCst) {
            let Ok(request) = call::request("GET", "/", "") else {
                return;
            };
            match caller.send(request).await {
                Ok(got) if got.status == 200 => w.fetch_add(1, SeqCst),
                _ => l.fetch_add(1, SeqCst),
            };
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    });
    (stop, served, lost, task)
}

#[tokio::test]
async fn no_request_fails_because_the_control_plane_dies_and_comes_back() -> Result<()> {
    let backend = Backend::always(200).await;
    let plan = Plan::new(&backend, "  retries: {}")?;
    let mut control_plane = plan.control_plane()?;
    let _agent = plan.agent()?;
    plan.serving().await;
    plan.connected(true).await;
    let (stop, served, lost, task) = steady(plan.payments);
    for _ in 0..3 {
        control_plane.kill().await?;
        plan.connected(false).await;
        let before = served.load(SeqCst);
        eventually("traffic without a control plane", || async {
            if served.load(SeqCst) > before + 20 {
                Ok(())
            } else {
                Err(served.load(SeqCst))
            }
        })
        .await;
        control_plane = plan.control_plane()?;
        plan.connected(true).await;
    }
    stop.store(true, SeqCst);
    task.await?;
    assert_eq!(lost.load(SeqCst), 0);
    // What was edited while it was away is enforced once it is back.
    control_plane.kill().await?;
    plan.manifests.policy(
        "payments",
        "  bulkheads: [{name: none, at: Caller, maxConcurrent: 1}]\n  timeouts: {request: 50ms}",
    )?;
    backend.now(|_| weir_tests::backend::never());
    let _control_plane = plan.control_plane()?;
    eventually("the edit to be enforced", || async {
        match tokio::time::timeout(
            std::time::Duration::from_secs(1),
            call::get(plan.payments, "/"),
        )
        .await
        {
            Ok(Ok(got)) if got.status == 504 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    Ok(())
}

#[tokio::test]
async fn an_agent_that_comes_back_enforces_the_last_good_configuration_before_its_first_request()
-> Result<()> {
    // What is enforced shows in the tries: 1 + 2 for each request.
    let backend = Backend::with(|_| async { Reply::status(503) }).await;
    let spec = "  retries: {attempts: 2, backoff: {base: 1ms, max: 1ms}, budget: {percent: 100}}";
    let plan = Plan::new(&backend, spec)?;
    let mut control_plane = plan.control_plane()?;
    let mut agent = plan.agent()?;
    plan.connected(true).await;
    assert_eq!(call::get(plan.payments, "/").await?.status, 503);
    assert_eq!(backend.requests(), 3);
    for with_control_plane in [true, false] {
        if !with_control_plane {
            control_plane.kill().await?;
        }
        agent.kill().await?;
        assert!(
            call::get(plan.payments, "/").await.is_err(),
            "nobody listens"
        );
        let before = backend.requests();
        agent = plan.agent()?;
        let first = eventually("the first answer", || async {
            call::get(plan.payments, "/")
                .await
                .map_err(|e| e.to_string())
        })
        .await;
        assert_eq!(first.status, 503);
        assert_eq!(
            backend.requests() - before,
            3,
            "the first request already met the policy"
        );
    }
    Ok(())
}

#[tokio::test]
async fn weir_run_ends_on_sigterm_after_the_requests_under_way() -> Result<()> {
    let backend =
        Backend::with(|_| weir_tests::backend::slowly(std::time::Duration::from_millis(700), 200))
            .await;
    let plan = Plan::new(&backend, "  retries: {}")?;
    let (admin, agent_admin, proxy) = (
        plan.admin.to_string(),
        plan.agent_admin.to_string(),
        free()?.to_string(),
    );
    let mut weir = spawn(&[
        "run",
        "-f",
        text(plan.manifests.path())?,
        "--admin",
        &admin,
        "--agent-admin",
        &agent_admin,
        "--proxy",
        &proxy,
    ])?;
    plan.serving().await;
    let payments = plan.payments;
    let under_way = tokio::spawn(async move { call::get(payments, "/").await });
    eventually("the request to be under way", || async {
        if backend.requests() >= 2 {
            Ok(())
        } else {
            Err(backend.requests())
        }
    })
    .await;
    let pid = weir.id().context("it runs")?.to_string();
    programs::run(Command::new("kill").args(["-TERM", &pid])).await?;
    assert_eq!(under_way.await??.status, 200);
    let ended = tokio::time::timeout(std::time::Duration::from_secs(20), weir.wait()).await??;
    assert!(ended.success(), "{ended}");
    assert!(
        call::get(payments, "/").await.is_err(),
        "nothing is left running"
    );
    Ok(())
}
