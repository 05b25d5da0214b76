//! Agents of other versions at a control plane of this one, in a cluster; and kinds of other versions.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use prost::Message;
use serde_json::Value;
use tokio::task::JoinHandle;
use weir_agent::FEATURES;
use weir_crds::crd::{INSTALL_COMMAND, SCHEMA_REVISION, SCHEMA_REVISION_ANNOTATION};
use weir_proto::v1alpha1 as proto;
use weir_tests::kubernetes::weir::Weir;
use weir_tests::wire::{DISCOVER, Heard, REPORT, Stream};
use weir_tests::{eventually, eventually_within};

use super::{UNKNOWN_FIELD, UNKNOWN_VALUE, field, later};
use crate::story::destination;

/// What the older agent cannot do.
const NEW: &str = "circuitBreaker";
/// How long a node may be away until it is called so, and more.
const PATIENCE: Duration = Duration::from_secs(40);

/// An agent of another version. It is gone when it is dropped.
struct OtherAgent(JoinHandle<()>);

impl Drop for OtherAgent {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl OtherAgent {
    /// It answers for `node`, enforces what needs `features` alone, and refuses the rest by name. A newer one says more
    /// than is understood.
    async fn start(
        weir: &Weir,
        node: &str,
        features: Vec<String>,
        newer: bool,
    ) -> Result<OtherAgent> {
        let (at, roots, token) = weir.credentials(node).await?;
        let mut stream = Stream::open(at, &roots, Some(&token), DISCOVER).await?;
        let extend = move |message: Vec<u8>| if newer { later(message) } else { message };
        let hello = proto::Hello {
            node: node.to_owned(),
            features: features.clone(),
            ..proto::Hello::default()
        };
        let mut hello = hello.encode_to_vec();
        if newer {
            // It also holds what this control plane has never heard of.
            let held = proto::Held {
                kind: UNKNOWN_VALUE,
                name: "shop/payments".to_owned(),
                version: "1".to_owned(),
            };
            hello.extend(field(4, &held.encode_to_vec()));
        }
        stream.send(&extend(field(1, &extend(hello))))?;
        if newer {
            // A message of a kind that is not known yet.
            stream.send(&field(UNKNOWN_FIELD, b"news"))?;
        }
        let node = node.to_owned();
        Ok(OtherAgent(tokio::spawn(async move {
            let ended = async {
                while let Heard::Message(response) = stream.next().await? {
                    let response = proto::DiscoverResponse::decode(response)?;
                    let ack = proto::Ack {
                        nonce: response.nonce,
                        rejections: refusals(&response, &features),
                    };
                    stream.send(&extend(field(2, &extend(ack.encode_to_vec()))))?;
                }
                anyhow::Ok(())
            };
            println!("the stream of {node} ends: {:?}", ended.await);
        })))
    }
}

/// What an agent with these features refuses, in an agent's words.
fn refusals(response: &proto::DiscoverResponse, features: &[String]) -> Vec<proto::Rejection> {
    let refuse = |resource: &proto::Resource| {
        let missing: Vec<_> = resource
            .requires
            .iter()
            .filter(|needed| !features.contains(needed))
            .cloned()
            .collect();
        (!missing.is_empty()).then(|| proto::Rejection {
            kind: resource.kind,
            name: resource.name.clone(),
            version: resource.version.clone(),
            message: format!(
                "this agent cannot enforce {}: it needs a newer version",
                missing.join(", ")
            ),
            missing_features: missing,
        })
    };
    response.resources.iter().filter_map(refuse).collect()
}

fn features(more: &[&str], without: &str) -> Vec<String> {
    let all = FEATURES
        .iter()
        .chain(more)
        .filter(|feature| **feature != without);
    all.map(ToString::to_string).collect()
}

/// Waits until the policy's condition `Programmed` has this reason; the whole object then.
async fn programmed_says(weir: &Weir, name: &str, reason: &str) -> (Value, String) {
    eventually_within(
        PATIENCE,
        &format!("Programmed of {name} to say {reason}"),
        || async {
            let object = weir
                .object("shop", "rp", name)
                .await
                .map_err(|error| error.to_string())?;
            let conditions = object["status"]["conditions"].as_array();
            let said = conditions
                .into_iter()
                .flatten()
                .find(|condition| condition["type"] == "Programmed");
            let said = said.cloned().unwrap_or_default();
            if said["reason"] == reason {
                Ok((object, said["message"].to_string()))
            } else {
                Err(said.to_string())
            }
        },
    )
    .await
}

async fn end_agent(weir: &mut Weir, node: &str) -> Result<()> {
    let agent = weir
        .agents
        .get_mut(node)
        .with_context(|| format!("no agent on {node}"))?;
    agent.process.kill().await
}

#[tokio::test]
async fn agents_of_other_versions_are_named_where_they_lack_something_and_enforce_the_rest()
-> Result<()> {
    let Some(mut weir) = Weir::install(&["node-a", "node-b"]).await? else {
        return Ok(());
    };
    let (backend, _) = destination().await;
    weir.cluster
        .kubectl(&["create", "namespace", "shop"])
        .await?;
    for name in ["payments", "steady"] {
        weir.service("shop", name, &backend).await?;
    }
    weir.policy("shop", "payments", "  circuitBreaker: {}\n  retries: {}")
        .await?;
    weir.policy("shop", "steady", "  timeouts: {request: 5s}")
        .await?;

    // One of two is older.
    end_agent(&mut weir, "node-b").await?;
    let older = OtherAgent::start(&weir, "node-b", features(&[], NEW), false).await?;
    let (object, said) = programmed_says(&weir, "payments", "Rejected").await;
    println!("an older agent: {said}");
    ensure!(said.contains("node-b") && said.contains(NEW), "{said}");
    ensure!(
        object["status"]["rejections"][0]["node"] == "node-b",
        "{object}"
    );
    weir.programmed("shop", "steady").await?;
    let listed = weir.cluster.kubectl(&["-n", "shop", "get", "rp"]).await?;
    println!("{listed}");
    ensure!(
        listed
            .lines()
            .any(|line| line.starts_with("payments") && line.contains("1/2")),
        "{listed}"
    );
    ensure!(
        listed
            .lines()
            .any(|line| line.starts_with("steady") && line.contains("2/2")),
        "{listed}"
    );

    // All are.
    end_agent(&mut weir, "node-a").await?;
    let all = OtherAgent::start(&weir, "node-a", features(&[], NEW), false).await?;
    let (_, said) = programmed_says(&weir, "payments", "UnsupportedSection").await;
    println!("nobody else: {said}");
    ensure!(
        said.contains(NEW) && said.contains("update the agents"),
        "{said}"
    );
    weir.programmed("shop", "steady").await?;

    // One is updated to today's, the other beyond.
    drop((older, all));
    weir.restart_agent("node-a").await?;
    let newer = OtherAgent::start(&weir, "node-b", features(&["telepathy"], ""), true).await?;
    weir.programmed("shop", "payments").await?;
    weir.programmed("shop", "steady").await?;
    let reporting = newer_report(&weir).await?;
    let object = weir.breaker_is("shop", "payments", "Open").await;
    ensure!(
        object["status"]["openNodes"][0]["node"] == "node-b",
        "{object}"
    );
    ensure!(object["status"]["summary"]["nodes"] == "1/2", "{object}");
    drop((newer, reporting));

    kinds_of_other_versions(&mut weir).await?;
    weir.shutdown().await
}

/// A breaker has opened at node-b for a reason that nobody here knows.
async fn newer_report(weir: &Weir) -> Result<Stream> {
    let (at, roots, token) = weir.credentials("node-b").await?;
    let mut stream = Stream::open(at, &roots, Some(&token), REPORT).await?;
    let id = proto::BreakerId {
        namespace: "shop".into(),
        service: "payments".into(),
        key: "payments".into(),
    };
    let report = proto::BreakerReport {
        id: Some(id),
        state: proto::BreakerState::Open.into(),
        reason: UNKNOWN_VALUE,
        since_unix_ms: 1_750_000_000_000,
        ..proto::BreakerReport::default()
    };
    let request = proto::ReportRequest {
        node: "node-b".into(),
        sequence: 1,
        complete: true,
        ..proto::ReportRequest::default()
    };
    let mut request = request.encode_to_vec();
    request.extend(field(3, &later(report.encode_to_vec())));
    stream.send(&later(request))?;
    Ok(stream)
}

/// After a rollback the cluster has the kinds of a later version, which is well; with older ones fields would be lost.
async fn kinds_of_other_versions(weir: &mut Weir) -> Result<()> {
    let annotate = async |weir: &Weir, revision: u32| {
        let word = format!("{SCHEMA_REVISION_ANNOTATION}={revision}");
        let crds = [
            "crd",
            "resiliencepolicies.weir.dev",
            "circuitbreakers.weir.dev",
        ];
        weir.cluster
            .kubectl(&[&["annotate", "--overwrite"], &crds[..], &[word.as_str()]].concat())
            .await
    };
    annotate(weir, SCHEMA_REVISION + 1).await?;
    let mut old = weir.control_planes.remove(&1).context("it runs")?;
    old.process.kill().await?;
    weir.start_control_plane(1).await?;
    weir.policy("shop", "steady", "  timeouts: {request: 4s}")
        .await?;
    end_agent(weir, "node-b").await?;
    weir.restart_agent("node-b").await?;
    weir.programmed("shop", "steady").await?;

    annotate(weir, SCHEMA_REVISION - 1).await?;
    weir.launch_control_plane(2).await?;
    let waiting = &weir.control_planes[&2];
    let said = eventually("it to say what it waits for", async || {
        let got = waiting.ready().await.map_err(|error| error.to_string())?;
        let text = got.text();
        if got.status == 503 && text.contains(INSTALL_COMMAND) {
            Ok(text)
        } else {
            Err(format!("{} {text}", got.status))
        }
    })
    .await;
    println!("with older kinds: {said}");
    ensure!(
        waiting.process.log()?.contains(INSTALL_COMMAND),
        "{}",
        waiting.process.log()?
    );
    // Whoever runs already goes on.
    weir.policy("shop", "steady", "  timeouts: {request: 3s}")
        .await?;
    weir.programmed("shop", "steady").await?;
    annotate(weir, SCHEMA_REVISION).await?;
    let waiting = &weir.control_planes[&2];
    eventually_within(
        PATIENCE,
        "it to be ready without a restart",
        async || match waiting.ready().await {
            Ok(got) if got.status == 200 => Ok(()),
            other => Err(format!("{other:?}")),
        },
    )
    .await;
    Ok(())
}
