//! What stands in for nodes: objects as the scheduler and kubelets would leave them, with nothing that runs.

use std::net::{IpAddr, UdpSocket};
use std::pin::pin;

use anyhow::{Context as _, Result};
use futures::TryStreamExt as _;
use k8s_openapi::api::core::v1::{Binding, Node, Pod};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, ResourceExt as _};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::Cluster;

/// While it lives, pods are scheduled and look as if they ran.
#[must_use = "pods are left alone again when this is dropped"]
pub struct RunningPods(JoinHandle<()>);

impl Drop for RunningPods {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// An address of this machine that is no loopback address: the API server takes no other in an `EndpointSlice` or in
/// the endpoints of a Service. What a test listens on there, other machines of its network may reach.
///
/// # Errors
/// The machine has no network.
pub fn machine_address() -> Result<IpAddr> {
    // Nothing is sent: the kernel only chooses the address from which it would be.
    let socket = UdpSocket::bind(("0.0.0.0", 0))?;
    socket
        .connect(("198.51.100.1", 9))
        .context("this machine has no address but loopback, and endpoints need one")?;
    Ok(socket.local_addr()?.ip())
}

impl Cluster {
    /// Adds a node that is ready, with this machine's address.
    ///
    /// # Errors
    /// There is one of that name, or the machine has no address.
    pub async fn node(&self, name: &str) -> Result<()> {
        let nodes: Api<Node> = Api::all(self.client().await?);
        let node: Node = serde_json::from_value(json!({
            "metadata": {
                "name": name,
                "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"},
            },
        }))?;
        let made = nodes.create(&PostParams::default(), &node).await?;
        let now = made.metadata.creation_timestamp;
        let ready = |kind: &str, status: &str, reason: &str| {
            json!({
                "type": kind, "status": status, "reason": reason,
                "lastHeartbeatTime": now, "lastTransitionTime": now,
            })
        };
        let room = json!({"cpu": "4", "memory": "8Gi", "pods": "110"});
        let status = json!({"status": {
            "addresses": [
                {"type": "InternalIP", "address": machine_address()?},
                {"type": "Hostname", "address": name},
            ],
            "capacity": room,
            "allocatable": room,
            "conditions": [
                ready("Ready", "True", "KubeletReady"),
                ready("MemoryPressure", "False", "KubeletHasSufficientMemory"),
                ready("DiskPressure", "False", "KubeletHasNoDiskPressure"),
                ready("PIDPressure", "False", "KubeletHasSufficientPID"),
            ],
        }});
        let status = Patch::Merge(status);
        nodes
            .patch_status(name, &PatchParams::default(), &status)
            .await?;
        Ok(())
    }

    /// Stands in for the scheduler and the kubelets, until what is returned is dropped: pods are bound (those of a
    /// DaemonSet to their node, others to the first by name that their `nodeSelector` allows), become running and
    /// ready, and are removed when they were deleted.
    ///
    /// `address` says at which address a pod can be reached; a pod for which it says `None` is bound and stays
    /// `Pending`, to be reported on by the test. Pods with `hostNetwork` have their node's address, and are not asked
    /// about.
    ///
    /// # Errors
    /// The kubeconfig has gone.
    pub async fn schedule_pods(
        &self,
        address: impl Fn(&Pod) -> Option<IpAddr> + Send + Sync + 'static,
    ) -> Result<RunningPods> {
        let client = self.client().await?;
        let task = tokio::spawn(async move {
            let pods: Api<Pod> = Api::all(client.clone());
            let changes = watcher(pods, watcher::Config::default())
                .default_backoff()
                .applied_objects();
            let mut changes = pin!(changes);
            loop {
                // An error of the watch is one that it goes on after.
                match changes.try_next().await {
                    Ok(Some(pod)) => {
                        if let Err(error) = advance(&client, &pod, &address).await {
                            println!("pod {}: {error:#}", pod.name_any());
                        }
                    }
                    Ok(None) => return,
                    Err(error) => println!("watch of pods: {error}"),
                }
            }
        });
        Ok(RunningPods(task))
    }
}

/// The next step in the life of a pod, if one is due. Each brings a change of the pod, and so the call for the next.
async fn advance(
    client: &Client,
    pod: &Pod,
    address: &(impl Fn(&Pod) -> Option<IpAddr> + Sync),
) -> Result<()> {
    let namespace = pod.namespace().unwrap_or_default();
    let name = pod.name_any();
    let pods: Api<Pod> = Api::namespaced(client.clone(), &namespace);
    let spec = pod.spec.as_ref().context("a pod has a spec")?;
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());

    let done = if pod.metadata.deletion_timestamp.is_some() {
        let at_once = DeleteParams::default().grace_period(0);
        pods.delete(&name, &at_once).await.map(drop)
    } else if let Some(node) = &spec.node_name {
        if phase != Some("Pending") {
            return Ok(());
        }
        let host = host(client, node).await?;
        let own = match spec.host_network {
            Some(true) => Some(host),
            _ => address(pod),
        };
        let Some(own) = own else { return Ok(()) };
        let status = Patch::Strategic(json!({"status": running(pod, host, own)}));
        let parameters = PatchParams::default();
        pods.patch_status(&name, &parameters, &status)
            .await
            .map(drop)
    } else {
        let Some(node) = place(client, pod).await? else {
            return Ok(());
        };
        let binding: Binding = serde_json::from_value(json!({
            "metadata": {"name": name},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        }))?;
        let bound: kube::Result<Value> = pods
            .create_subresource("binding", &name, &PostParams::default(), &binding)
            .await;
        bound.map(drop)
    };
    match done {
        // Somebody was faster; the watch tells what there is to do now.
        Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => Ok(()),
        done => Ok(done?),
    }
}

/// The node for a pod.
async fn place(client: &Client, pod: &Pod) -> Result<Option<String>> {
    let spec = serde_json::to_value(&pod.spec)?;
    // This is how the DaemonSet controller says which node a pod is for.
    let terms =
        "/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms";
    let field = "/0/matchFields/0/values/0";
    if let Some(node) = spec
        .pointer(&format!("{terms}{field}"))
        .and_then(Value::as_str)
    {
        return Ok(Some(node.to_owned()));
    }
    let selector = spec["nodeSelector"].as_object().into_iter().flatten();
    let selector = selector
        .filter_map(|(label, value)| Some(format!("{label}={}", value.as_str()?)))
        .collect::<Vec<_>>()
        .join(",");
    let nodes: Api<Node> = Api::all(client.clone());
    let fitting = nodes.list(&ListParams::default().labels(&selector)).await?;
    Ok(fitting.items.iter().map(|node| node.name_any()).min())
}

async fn host(client: &Client, node: &str) -> Result<IpAddr> {
    let nodes: Api<Node> = Api::all(client.clone());
    let status = nodes.get(node).await?.status.unwrap_or_default();
    let addresses = status.addresses.unwrap_or_default();
    let internal = addresses
        .iter()
        .find(|address| address.type_ == "InternalIP")
        .with_context(|| format!("node {node} has no address"))?;
    Ok(internal.address.parse()?)
}

/// What a kubelet says of a pod of which all is well.
fn running(pod: &Pod, host: IpAddr, own: IpAddr) -> Value {
    let since = &pod.metadata.creation_timestamp;
    let conditions = ["PodScheduled", "Initialized", "ContainersReady", "Ready"]
        .map(|kind| json!({"type": kind, "status": "True", "lastTransitionTime": since}));
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let containers = containers
        .map(|container| {
            json!({
                "name": container.name,
                "image": container.image,
                "imageID": "",
                "containerID": format!("none://{}", container.name),
                "ready": true,
                "started": true,
                "restartCount": 0,
                "state": {"running": {"startedAt": since}},
            })
        })
        .collect::<Vec<_>>();
    json!({
        "phase": "Running",
        "startTime": since,
        "hostIP": host,
        "hostIPs": [{"ip": host}],
        "podIP": own,
        "podIPs": [{"ip": own}],
        "conditions": conditions,
        "containerStatuses": containers,
    })
}
