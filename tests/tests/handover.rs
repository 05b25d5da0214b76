//! What breakers know outlives the agent that found it out.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{UnixListener, UnixStream};
use weir_agent::{Agent, ControlPlaneAddress, Kernel};
use weir_control_plane::ControlPlane;
use weir_tests::{Backend, Manifests, call, eventually};

const POLICY: &str = "  circuitBreaker: {consecutiveFailures: 2, open: {duration: 60s}}";

/// A node whose agents come and go, and a backend that fails.
struct Node {
    backend: Backend,
    control_plane: ControlPlane,
    manifests: Manifests,
    /// That all of its agents see.
    shared: TempDir,
}

impl Node {
    async fn new() -> Result<Node> {
        let backend = Backend::always(500).await;
        let manifests = Manifests::new()?;
        manifests.service("payments", &[backend.address()])?;
        manifests.policy("payments", POLICY)?;
        let sources = vec![manifests.path().to_owned()];
        let control_plane = ControlPlane::start(weir_control_plane::Config::new(sources)).await?;
        Ok(Node {
            backend,
            control_plane,
            manifests,
            shared: TempDir::with_prefix("weir-handover-")?,
        })
    }

    async fn agent(&self, name: &str, state: Option<&Path>) -> Result<Agent> {
        let control_plane = format!("http://{}", self.control_plane.grpc_addr());
        let agent = Agent::start(weir_agent::Config {
            node: name.to_owned(),
            control_plane: ControlPlaneAddress::new(&control_plane, None, None)?,
            caller_namespace: None,
            proxy: None,
            admin: None,
            state_dir: state.map(Path::to_owned),
            workers: NonZeroUsize::MIN,
            drain_timeout: Duration::from_secs(3),
            handover: Some(self.shared.path().to_owned()),
            capture: None,
            stale_after: weir_agent::STALE_AFTER,
            kernel: Kernel::default(),
        })
        .await?;
        agent.synced().await;
        Ok(agent)
    }

    /// Has an agent's breaker open.
    async fn trip(&self, agent: &Agent) -> Result<()> {
        let payments = payments(agent).await?;
        for _ in 0..2 {
            let got = call::get(payments, "/").await?;
            ensure!(got.status == 500, "{}", got.status);
        }
        ensure!(refuses(agent).await?, "the breaker is closed");
        Ok(())
    }
}

async fn payments(agent: &Agent) -> Result<SocketAddr> {
    let listening = agent.listening().await;
    let first = listening.first().context("it listens for payments")?;
    Ok(first.address)
}

/// Whether an agent refuses a call of itself: the backend answers with 500.
async fn refuses(agent: &Agent) -> Result<bool> {
    let got = call::get(payments(agent).await?, "/").await?;
    Ok(got.status == 503 && got.header("proxy-status").contains("breaker"))
}

/// Waits until an agent can be asked by others.
async fn listens(node: &Node, agents: usize) {
    eventually("sockets of agents", || async {
        let names = std::fs::read_dir(node.shared.path()).map_err(|error| error.to_string())?;
        let names: Vec<_> = names.flatten().map(|name| name.file_name()).collect();
        let sockets = names
            .iter()
            .filter(|name| name.to_string_lossy().ends_with(".sock"));
        match sockets.count() {
            found if found == agents => Ok(()),
            _ => Err(format!("{names:?}")),
        }
    })
    .await;
}

#[tokio::test]
async fn a_new_agent_refuses_what_the_old_one_does_without_a_single_try() -> Result<()> {
    let node = Node::new().await?;
    let old = node.agent("old", None).await?;
    node.trip(&old).await?;
    listens(&node, 1).await;
    let before = node.backend.requests();
    let new = node.agent("new", None).await?;
    ensure!(refuses(&new).await?, "the new agent asks the backend");
    // It hands on what it was told.
    drop(old);
    listens(&node, 1).await;
    let third = node.agent("third", None).await?;
    ensure!(refuses(&third).await?, "the third agent asks the backend");
    ensure!(node.backend.requests() == before);
    Ok(())
}

#[tokio::test]
async fn what_opens_while_both_are_there_is_told_when_the_old_one_drains() -> Result<()> {
    let node = Node::new().await?;
    let old = node.agent("old", None).await?;
    listens(&node, 1).await;
    let new = node.agent("new", None).await?;
    node.trip(&old).await?;
    let before = node.backend.requests();
    old.shutdown().await;
    // It is read by another task.
    eventually("the new agent to know", || async {
        let directory = node.shared.path();
        let known = told(directory).await.map_err(|error| error.to_string())?;
        if known > 0 {
            Ok(())
        } else {
            Err(String::new())
        }
    })
    .await;
    ensure!(refuses(&new).await?, "the new agent asks the backend");
    ensure!(node.backend.requests() == before);
    Ok(())
}

/// How many bytes the agents there tell.
async fn told(directory: &Path) -> Result<u32> {
    use tokio::io::AsyncReadExt as _;
    let mut all = 0;
    for name in std::fs::read_dir(directory)? {
        all += UnixStream::connect(name?.path()).await?.read_u32().await?;
    }
    Ok(all)
}

#[tokio::test]
async fn an_agent_that_is_started_again_or_has_crashed_goes_on_where_it_was() -> Result<()> {
    let mut node = Node::new().await?;
    let state = TempDir::with_prefix("weir-state-")?;
    for crashes in [false, true] {
        // None of them hears of it from another.
        node.shared = TempDir::with_prefix("weir-handover-")?;
        let file = state.path().join("breakers.pb");
        let _ = std::fs::remove_file(&file);
        let agent = node.agent("one", Some(state.path())).await?;
        node.trip(&agent).await?;
        if crashes {
            eventually("what breakers know on disk", || async {
                match std::fs::metadata(&file) {
                    Ok(file) if file.len() > 0 => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            })
            .await;
            drop(agent);
        } else {
            agent.shutdown().await;
        }
        let before = node.backend.requests();
        let again = node.agent("one", Some(state.path())).await?;
        ensure!(refuses(&again).await?, "it asks the backend");
        ensure!(node.backend.requests() == before);
        again.shutdown().await;
    }
    Ok(())
}

#[tokio::test]
async fn who_hangs_or_lies_does_not_hold_up_an_agents_start() -> Result<()> {
    let node = Node::new().await?;
    let at = |name: &str| UnixListener::bind(node.shared.path().join(name));
    // One that is never accepted; ones that send too much, nonsense, and a part.
    let _hangs = at("a.sock")?;
    let said: [(&str, &[u8]); 3] = [
        ("b.sock", &[0xff; 64]),
        ("c.sock", &[0, 0, 0, 4, 0xff, 0xff, 0xff, 0xff]),
        ("d.sock", &[0, 0, 1, 0, 1]),
    ];
    for (name, words) in said {
        let listener = at(name)?;
        tokio::spawn(async move {
            let mut all = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.write_all(words).await;
                all.push(stream);
            }
        });
    }
    std::fs::write(node.shared.path().join("e.sock"), "no socket")?;
    let agent = node.agent("new", None).await?;
    node.trip(&agent).await
}

#[tokio::test]
async fn what_an_agent_remembers_does_not_stand_against_an_override() -> Result<()> {
    let node = Node::new().await?;
    let state = TempDir::with_prefix("weir-state-")?;
    let agent = node.agent("one", Some(state.path())).await?;
    node.trip(&agent).await?;
    agent.shutdown().await;
    let soon =
        k8s_openapi::jiff::Timestamp::now() + k8s_openapi::jiff::SignedDuration::from_mins(10);
    let object = format!(
        "apiVersion: weir.dev/v1alpha1\nkind: CircuitBreaker\nmetadata: {{name: payments, namespace: shop}}\n\
         spec: {{override: {{state: Closed, reason: 'we know', expiresAt: '{soon:.0}'}}}}\n"
    );
    node.manifests.write("breaker.yaml", &object)?;
    let again = node.agent("one", Some(state.path())).await?;
    eventually("the override in force", || async {
        match refuses(&again).await {
            Ok(false) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    Ok(())
}
