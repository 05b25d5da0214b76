//! What the API server is asked to write while many breakers flap.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures::stream::{StreamExt as _, iter};
use http::Request;
use kube::api::ListParams;
use kube::{Api, Client};
use tokio::time::Instant;
use weir_crds::v1alpha1::{BreakerState, CircuitBreakerObject};
use weir_tests::kubernetes::weir::{Agent, Weir};
use weir_tests::{Backend, Reply, call, eventually_within};

use super::{PATIENCE, World};

/// Requests under way at once.
const AT_ONCE: usize = 16;
/// The destination is well and ill by turns of so long.
const TURN: Duration = Duration::from_millis(1_500);
/// States to be written before the writes are counted up.
const STATES: f64 = 600.0;
/// Writes that the control plane may make a second, and at once: of states and conditions, and of figures. As in
/// docs/bounds.md.
const CHANGES: (f64, f64) = (50.0, 100.0);
const FIGURES: (f64, f64) = (5.0, 20.0);
/// Writes under way, which only one of the two has counted.
const UNDER_WAY: f64 = 16.0;

/// Writes of CircuitBreakers so far.
#[derive(Clone, Copy, Debug)]
struct Writes {
    state: f64,
    condition: f64,
    figures: f64,
    /// As the API server counts them.
    server: f64,
}

impl Writes {
    async fn count(weir: &Weir, client: &Client) -> Result<Writes> {
        let admin = weir
            .control_planes
            .get(&1)
            .context("it was started")?
            .admin();
        let ours = call::get(admin, "/metrics").await?.text();
        let theirs = client
            .request_text(Request::get("/metrics").body(Vec::new())?)
            .await?;
        let of = |urgency| sum(&ours, "weir_control_plane_writes_total", &[urgency]);
        let writes = ["verb=\"APPLY\"", "verb=\"PATCH\""];
        let server = writes.map(|verb| {
            sum(
                &theirs,
                "apiserver_request_total",
                &["resource=\"circuitbreakers\"", verb],
            )
        });
        Ok(Writes {
            state: of("\"state\""),
            condition: of("\"condition\""),
            figures: of("\"figures\""),
            server: server.iter().sum(),
        })
    }

    fn since(self, before: Writes) -> Writes {
        Writes {
            state: self.state - before.state,
            condition: self.condition - before.condition,
            figures: self.figures - before.figures,
            server: self.server - before.server,
        }
    }
}

/// The figures of one name whose labels hold all of `words`, added up.
fn sum(page: &str, name: &str, words: &[&str]) -> f64 {
    let lines = page
        .lines()
        .filter(|line| line.split('{').next() == Some(name));
    let lines = lines.filter(|line| words.iter().all(|word| line.contains(word)));
    lines
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}

/// Lets `world.flapping` breakers flap until enough was written, counts it, and waits until all are calm again.
pub(crate) async fn flap(weir: &Weir, backend: &Backend, world: &World) -> Result<()> {
    let client = weir.cluster.client().await?;
    let agent = weir.agents.get("node-a").context("it was started")?;
    let epoch = Instant::now();
    backend.now(move |_| async move {
        let turn = epoch.elapsed().as_millis() / TURN.as_millis();
        Reply::status(if turn.is_multiple_of(2) { 503 } else { 200 })
    });
    let over = Arc::new(AtomicBool::new(false));
    let begin = Instant::now();
    let before = Writes::count(weir, &client).await?;
    let counted = async {
        let enough = eventually_within(PATIENCE, "enough states to be written", || async {
            let now = Writes::count(weir, &client)
                .await
                .map_err(|error| error.to_string())?;
            let writes = now.since(before);
            if writes.state >= STATES {
                Ok(writes)
            } else {
                Err(format!("{writes:?}"))
            }
        })
        .await;
        over.store(true, SeqCst);
        (enough, begin.elapsed().as_secs_f64())
    };
    let (_, (writes, seconds)) = tokio::join!(load(agent, world, &over), counted);
    println!(
        "{} breakers flap for {seconds:.1} s: {:.1} states, {:.1} conditions and {:.1} figures written a second; \
         the API server counts {:.1}",
        world.flapping,
        writes.state / seconds,
        writes.condition / seconds,
        writes.figures / seconds,
        writes.server / seconds
    );
    let changes = writes.state + writes.condition;
    assert!(
        changes <= CHANGES.0 * seconds + CHANGES.1,
        "changes exceed their budget: {writes:?} in {seconds} s"
    );
    assert!(
        writes.figures <= FIGURES.0 * seconds + FIGURES.1,
        "figures exceed their budget: {writes:?} in {seconds} s"
    );
    assert!(writes.figures < writes.state, "states go first: {writes:?}");
    let ours = changes + writes.figures;
    assert!(
        writes.server <= ours + UNDER_WAY,
        "the API server was asked for more than is told: {writes:?}"
    );

    backend.now_always(200);
    let calm = Arc::new(AtomicBool::new(false));
    let settled = async {
        eventually_within(PATIENCE, "every breaker to be shown closed", || {
            closed(&client)
        })
        .await;
        calm.store(true, SeqCst);
    };
    tokio::join!(load(agent, world, &calm), settled);
    Ok(())
}

/// Asks every destination in turn until `over`; what is refused is no error.
async fn load(agent: &Agent, world: &World, over: &AtomicBool) {
    let hosts: Vec<String> = (0..world.flapping)
        .map(World::name)
        .map(|(namespace, name)| format!("{name}.{namespace}"))
        .collect();
    while !over.load(SeqCst) {
        let asked = iter(&hosts).for_each_concurrent(AT_ONCE, async |host| {
            let _ = agent.get(host, "/").await;
        });
        asked.await;
    }
}

async fn closed(client: &Client) -> Result<(), String> {
    let api: Api<CircuitBreakerObject> = Api::all(client.clone());
    let found = api
        .list(&ListParams::default())
        .await
        .map_err(|error| error.to_string())?;
    let is_closed = |breaker: &&CircuitBreakerObject| {
        let state = breaker
            .status
            .as_ref()
            .and_then(|status| status.state.as_ref());
        state.is_none_or(|state| *state == BreakerState::Closed)
    };
    let open = found.items.len() - found.items.iter().filter(is_closed).count();
    if open == 0 {
        Ok(())
    } else {
        Err(format!("{open} are not"))
    }
}
