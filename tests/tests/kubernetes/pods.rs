//! What agents that capture are told of the pods on their node, who has an address, and what is said of it all. The
//! agents are played: what is tried is the control plane.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use prost::Message;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use weir_agent::FEATURES;
use weir_proto::v1alpha1 as proto;
use weir_proto::v1alpha1::{ResourceKind, discover_request};
use weir_tests::kubernetes::machine_address;
use weir_tests::kubernetes::weir::Weir;
use weir_tests::wire::{DISCOVER, Heard, REPORT, RESOLVE, Stream};
use weir_tests::{eventually, eventually_within, netns};

/// What is said of capture is computed once in ten seconds.
const PATIENCE: Duration = Duration::from_secs(60);
/// gRPC's status for who does not prove who he is.
const UNAUTHENTICATED: u16 = 16;

/// What an agent was told last.
#[derive(Default)]
struct Told {
    pods: BTreeMap<String, proto::Pod>,
    nodes: BTreeMap<String, proto::Node>,
}

/// An agent that captures, as far as the control plane sees. It is gone when it is dropped.
struct Capturing {
    told: Arc<Mutex<Told>>,
    task: JoinHandle<()>,
}

impl Drop for Capturing {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Capturing {
    async fn start(weir: &Weir, node: &str) -> Result<Capturing> {
        let (at, roots, token) = weir.credentials(node).await?;
        let mut stream = Stream::open(at, &roots, Some(&token), DISCOVER).await?;
        let features = FEATURES.iter().chain(&["capture", "endpointConditions"]);
        let hello = proto::Hello {
            node: node.to_owned(),
            features: features.map(ToString::to_string).collect(),
            ..proto::Hello::default()
        };
        say(&mut stream, discover_request::Message::Hello(hello))?;
        let told = Arc::<Mutex<Told>>::default();
        let (listening, node) = (Arc::clone(&told), node.to_owned());
        let task = tokio::spawn(async move {
            let ended = async {
                while let Heard::Message(response) = stream.next().await? {
                    let response = proto::DiscoverResponse::decode(response)?;
                    let ack = proto::Ack {
                        nonce: response.nonce,
                        rejections: Vec::new(),
                    };
                    listening
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .take(response)?;
                    say(&mut stream, discover_request::Message::Ack(ack))?;
                }
                anyhow::Ok(())
            };
            println!("the stream of {node} ends: {:?}", ended.await);
        });
        Ok(Capturing { told, task })
    }

    /// Waits until it was told of these pods, and no others.
    async fn has(&self, pods: &[&str]) {
        eventually(&format!("the pods to be {pods:?}"), async || {
            let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            let names: Vec<&str> = told.pods.keys().map(String::as_str).collect();
            if names == pods {
                Ok(())
            } else {
                Err(format!("{names:?}"))
            }
        })
        .await;
    }
}

impl Told {
    fn take(&mut self, response: proto::DiscoverResponse) -> Result<()> {
        for resource in response.resources {
            match resource.kind() {
                ResourceKind::Pod => {
                    let pod = proto::Pod::decode(resource.body)?;
                    self.pods.insert(resource.name, pod);
                }
                ResourceKind::Node => {
                    let node = proto::Node::decode(resource.body)?;
                    self.nodes.insert(resource.name, node);
                }
                _ => {}
            }
        }
        for removed in response.removed {
            if removed.kind() == ResourceKind::Pod {
                self.pods.remove(&removed.name);
            }
        }
        Ok(())
    }
}

fn say(stream: &mut Stream, message: discover_request::Message) -> Result<()> {
    let request = proto::DiscoverRequest {
        message: Some(message),
    };
    stream.send(&request.encode_to_vec())
}

/// A stream on which an agent reports.
async fn reporting(weir: &Weir, node: &str) -> Result<Stream> {
    let (at, roots, token) = weir.credentials(node).await?;
    Stream::open(at, &roots, Some(&token), REPORT).await
}

fn report(stream: &mut Stream, node: &str, coverage: proto::Coverage) -> Result<()> {
    let request = proto::ReportRequest {
        node: node.to_owned(),
        sequence: 1,
        complete: true,
        coverage: Some(coverage),
        ..proto::ReportRequest::default()
    };
    stream.send(&request.encode_to_vec())
}

/// Who has these addresses.
async fn resolve(weir: &Weir, addresses: &[IpAddr]) -> Result<Vec<proto::Caller>> {
    let (at, roots, token) = weir.credentials("node-a").await?;
    let request = proto::ResolveRequest {
        addresses: addresses.iter().map(ToString::to_string).collect(),
    };
    let request = request.encode_to_vec();
    let mut stream = Stream::open(at, &roots, None, RESOLVE).await?;
    stream.send(&request)?;
    stream.half_close()?;
    match stream.next().await? {
        Heard::End(UNAUTHENTICATED, _) => {}
        other => bail!("whoever has no token is told: {other:?}"),
    }
    let mut stream = Stream::open(at, &roots, Some(&token), RESOLVE).await?;
    stream.send(&request)?;
    stream.half_close()?;
    match stream.next().await? {
        Heard::Message(response) => Ok(proto::ResolveResponse::decode(response)?.callers),
        end @ Heard::End(..) => bail!("no answer: {end:?}"),
    }
}

/// A pod on `node`; with an address of its own, the one of this number.
fn pod(namespace: &str, name: &str, node: &str, address: Option<u8>) -> Value {
    let labels = address.map(|address| json!({"address": address.to_string()}));
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name, "labels": labels},
        "spec": {
            "nodeName": node,
            "hostNetwork": address.is_none(),
            "containers": [{
                "name": "app", "image": "app",
                "ports": [{"name": "http", "containerPort": 8080}],
                "readinessProbe": {"httpGet": {"path": "/healthz", "port": "http"}},
            }],
        },
    })
}

async fn apply(weir: &Weir, objects: &[Value]) {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string();
    // The ServiceAccount of a new namespace comes in its own time.
    eventually("the objects to be taken", async || {
        let applied = weir.cluster.kubectl_in(&["apply", "-f", "-"], &list).await;
        applied.map_err(|error| error.to_string())
    })
    .await;
}

/// Waits until `Covered` of the policy has this status and reason; its message then.
async fn covered(weir: &Weir, status: &str, reason: &str) -> String {
    let what = format!("Covered to be {status}, {reason}");
    eventually_within(PATIENCE, &what, async || {
        let object = weir.object("shop", "rp", "payments").await;
        let object = object.map_err(|error| error.to_string())?;
        let conditions = object["status"]["conditions"].as_array();
        let mut conditions = conditions.into_iter().flatten();
        let said = conditions.find(|condition| condition["type"] == "Covered");
        let said = said.cloned().unwrap_or_default();
        if said["status"] == status && said["reason"] == reason {
            Ok(said["message"].as_str().unwrap_or_default().to_owned())
        } else {
            Err(said.to_string())
        }
    })
    .await
}

#[tokio::test]
async fn agents_that_capture_are_told_of_their_own_pods_and_it_is_said_what_is_covered()
-> Result<()> {
    let Some(mut weir) = Weir::install(&["node-a", "node-b"]).await? else {
        return Ok(());
    };
    for (namespace, word) in [("shop", "enabled"), ("quiet", "disabled")] {
        let label = format!("weir.dev/capture={word}");
        let namespace = ["namespace", namespace];
        let kubectl = async |words: &[&str]| weir.cluster.kubectl(words).await;
        kubectl(&[&["create"], &namespace[..]].concat()).await?;
        kubectl(&[&["label"], &namespace[..], &[&label]].concat()).await?;
    }
    let mut meshed = pod("shop", "meshed", "node-a", Some(8));
    let containers = meshed.pointer_mut("/spec/containers");
    let containers = containers.and_then(Value::as_array_mut);
    containers
        .context("a pod has containers")?
        .push(json!({"name": "istio-proxy", "image": "proxy"}));
    let [a, b] = [5, 6].map(netns::address);
    let pods = [
        pod("shop", "payments-a", "node-a", Some(5)),
        pod("shop", "payments-b", "node-b", Some(6)),
        pod("quiet", "app", "node-a", Some(7)),
        pod("shop", "host", "node-a", None),
        meshed,
    ];
    apply(&weir, &pods).await;
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": "shop", "name": "payments"},
        "spec": {"ports": [{"name": "http", "port": 80}]},
    });
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "namespace": "shop", "name": "payments-1",
            "labels": {"kubernetes.io/service-name": "payments"},
        },
        "ports": [{"name": "http", "port": 8080}],
        "endpoints": [{"addresses": [a]}, {"addresses": [b]}],
    });
    apply(&weir, &[service, slice]).await;
    let sections = "  bulkheads: [{name: default, maxConcurrent: 8}]";
    weir.policy("shop", "payments", sections).await?;
    let said = covered(&weir, "Unknown", "NoCapture").await;
    println!("without capture: {said}");

    // Agents that capture take the places of those that do not.
    for agent in weir.agents.values_mut() {
        agent.process.kill().await?;
    }
    let on_a = Capturing::start(&weir, "node-a").await?;
    let on_b = Capturing::start(&weir, "node-b").await?;
    on_a.has(&["shop/payments-a"]).await;
    on_b.has(&["shop/payments-b"]).await;
    {
        let told = on_a.told.lock().unwrap_or_else(PoisonError::into_inner);
        let pod = &told.pods["shop/payments-a"];
        ensure!(pod.addresses == [a.to_string()], "{pod:?}");
        ensure!(pod.service_account == "default", "{pod:?}");
        ensure!(pod.probes.len() == 1, "{pod:?}");
        ensure!(pod.probes[0].port == 8080, "{pod:?}");
        ensure!(pod.probes[0].path == "/healthz", "{pod:?}");
        let nodes: BTreeSet<&String> = told.nodes.keys().collect();
        ensure!(nodes.len() == 1, "{nodes:?}");
        let addresses = &told.nodes["node-a"].addresses;
        ensure!(
            *addresses == [machine_address()?.to_string()],
            "{addresses:?}"
        );
    }

    who_has_an_address(&weir).await?;
    what_is_covered(&weir).await?;
    pods_come_and_go(&weir, &on_a).await?;
    drop((on_a, on_b));
    weir.shutdown().await
}

async fn who_has_an_address(weir: &Weir) -> Result<()> {
    let [payments, quiet] = [5, 7].map(netns::address);
    let nobody = IpAddr::from([203, 0, 113, 9]);
    let callers = resolve(weir, &[payments, nobody, quiet, machine_address()?]).await?;
    let known: Vec<&str> = callers.iter().map(|caller| &*caller.pod).collect();
    // Who uses a node's network cannot be told apart.
    ensure!(known == ["payments-a", "", "app", ""], "{callers:?}");
    let caller = &callers[0];
    ensure!(caller.known && !callers[1].known, "{callers:?}");
    ensure!(caller.namespace == "shop", "{caller:?}");
    ensure!(caller.service_account == "default", "{caller:?}");
    Ok(())
}

async fn what_is_covered(weir: &Weir) -> Result<()> {
    let mut of_a = reporting(weir, "node-a").await?;
    let mut of_b = reporting(weir, "node-b").await?;
    report(&mut of_a, "node-a", proto::Coverage::default())?;
    report(&mut of_b, "node-b", proto::Coverage::default())?;
    let said = covered(weir, "True", "Covered").await;
    println!("with capture: {said}");
    ensure!(said.contains("2 of 2 pods behind it"), "{said}");
    let past = proto::OpenConnections {
        namespace: "shop".to_owned(),
        service: "payments".to_owned(),
        connections: 12,
    };
    let coverage = proto::Coverage {
        connections: vec![past],
        ..proto::Coverage::default()
    };
    report(&mut of_b, "node-b", coverage)?;
    let said = covered(weir, "False", "PartiallyCovered").await;
    println!("with connections of before: {said}");
    ensure!(
        said == "12 connections on 1 node were open before",
        "{said}"
    );
    Ok(())
}

async fn pods_come_and_go(weir: &Weir, on_a: &Capturing) -> Result<()> {
    let kubectl = async |words: &[&str]| weir.cluster.kubectl(words).await;
    let label = |word: &'static str| ["label", "--overwrite", "namespace", "quiet", word];
    kubectl(&label("weir.dev/capture=enabled")).await?;
    on_a.has(&["quiet/app", "shop/payments-a"]).await;
    kubectl(&label("weir.dev/capture=disabled")).await?;
    on_a.has(&["shop/payments-a"]).await;
    let start = Instant::now();
    apply(weir, &[pod("shop", "new", "node-a", Some(9))]).await;
    on_a.has(&["shop/new", "shop/payments-a"]).await;
    println!(
        "a new pod is told {:?} after it is asked for",
        start.elapsed()
    );
    kubectl(&["-n", "shop", "delete", "pod", "payments-a", "--wait=false"]).await?;
    on_a.has(&["shop/new"]).await;
    Ok(())
}
