//! A whole Weir for one test.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use tempfile::TempDir;
use weir_agent::{Agent, ControlPlaneAddress, Kernel};
use weir_control_plane::{Config, ControlPlane};

use crate::call;
use crate::machine::Machine;
use crate::wait::eventually;

/// Manifests in a directory of their own, as a person would edit them.
pub struct Manifests {
    dir: TempDir,
}

impl Manifests {
    /// An empty directory.
    pub fn new() -> Result<Manifests> {
        Ok(Manifests {
            dir: TempDir::with_prefix("weir-test-")?,
        })
    }

    /// Where they are.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Writes a file as an editor does: a new one, moved over the old.
    pub fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.path().join(name);
        let fresh = self.path().join(format!(".{name}.new"));
        std::fs::write(&fresh, text)?;
        std::fs::rename(&fresh, &path)?;
        Ok(path)
    }

    /// A service with one port, 80, at these endpoints, and a listener on any
    /// free port.
    pub fn service(&self, name: &str, endpoints: &[SocketAddr]) -> Result<()> {
        self.service_with(name, endpoints, "")
    }

    /// The same; `port` is added to the port's fields (`appProtocol: …`).
    pub fn service_with(&self, name: &str, endpoints: &[SocketAddr], port: &str) -> Result<()> {
        let mut text = format!(
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  namespace: shop\n  annotations: {{weir.dev/listen: '127.0.0.1:0'}}\n\
             spec:\n  ports: [{{name: http, port: 80{}{port}}}]\n",
            if port.is_empty() { "" } else { ", " }
        );
        for (n, endpoint) in endpoints.iter().enumerate() {
            text.push_str(&format!(
                "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {name}-{n}\n  namespace: shop\n  \
                 labels: {{kubernetes.io/service-name: {name}}}\naddressType: IPv4\nports: [{{name: http, port: {}}}]\n\
                 endpoints: [{{addresses: ['{}'], conditions: {{ready: true}}}}]\n",
                endpoint.port(),
                endpoint.ip()
            ));
        }
        self.write(&format!("service-{name}.yaml"), &text)
            .map(|_| ())
    }

    /// A policy called `name` for the service `name`; `spec` is YAML, indented
    /// by two.
    pub fn policy(&self, name: &str, spec: &str) -> Result<PathBuf> {
        self.write(&format!("policy-{name}.yaml"), &policy(name, spec))
    }
}

/// The text of a policy for the service of the same name.
pub fn policy(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: weir.dev/v1alpha1\nkind: ResiliencePolicy\nmetadata:\n  name: {name}\n  namespace: shop\nspec:\n  \
         targetRefs: [{{kind: Service, name: {name}}}]\n{spec}\n"
    )
}

/// Control plane and agent, speaking gRPC to each other, on any free ports.
pub struct House {
    /// What they run on.
    pub manifests: Manifests,
    control_plane: ControlPlane,
    agent: Agent,
}

impl House {
    /// Starts both and waits until the agent enforces everything.
    pub async fn start(manifests: Manifests) -> Result<House> {
        House::start_for(manifests, None).await
    }

    /// The same, with all callers in the namespace `callers`.
    pub async fn start_for(manifests: Manifests, callers: Option<&str>) -> Result<House> {
        House::start_with(manifests, callers, Kernel::default()).await
    }

    /// The same on a machine that is as busy as this kernel tells.
    pub async fn start_on(manifests: Manifests, machine: &Machine) -> Result<House> {
        House::start_with(manifests, None, machine.kernel()).await
    }

    async fn start_with(
        manifests: Manifests,
        callers: Option<&str>,
        kernel: Kernel,
    ) -> Result<House> {
        let control_plane =
            ControlPlane::start(Config::new(vec![manifests.path().to_owned()])).await?;
        let agent = Agent::start(weir_agent::Config {
            node: "test".into(),
            control_plane: ControlPlaneAddress::new(
                &format!("http://{}", control_plane.grpc_addr()),
                None,
                None,
            )?,
            caller_namespace: callers.map(str::to_owned),
            proxy: Some(any()),
            admin: Some(any()),
            state_dir: None,
            workers: NonZeroUsize::MIN,
            drain_timeout: Duration::from_secs(3),
            handover: None,
            capture: None,
            stale_after: weir_agent::STALE_AFTER,
            kernel,
        })
        .await?;
        agent.synced().await;
        Ok(House {
            manifests,
            control_plane,
            agent,
        })
    }

    /// A house with one service, `payments`, at these endpoints, and one
    /// policy for it.
    pub async fn payments(endpoints: &[SocketAddr], spec: &str) -> Result<House> {
        let manifests = Manifests::new()?;
        manifests.service("payments", endpoints)?;
        if !spec.is_empty() {
            manifests.policy("payments", spec)?;
        }
        let house = House::start(manifests).await?;
        if !spec.is_empty() {
            // A test that means another policy than the one in force proves nothing.
            house.condition("payments", "Accepted", "True").await;
        }
        Ok(house)
    }

    /// The agent.
    pub fn agent(&self) -> &Agent {
        &self.agent
    }

    /// The control plane.
    pub fn control_plane(&self) -> &ControlPlane {
        &self.control_plane
    }

    /// The explicit proxy.
    pub fn proxy(&self) -> Result<SocketAddr> {
        self.agent
            .proxy_addr()
            .context("there is an explicit proxy")
    }

    /// Where the agent listens for a service.
    pub async fn listener(&self, service: &str) -> SocketAddr {
        let wanted = format!("shop/{service}");
        eventually("the service's listener", || async {
            let all = self.agent.listening().await;
            all.iter()
                .find(|l| l.service == wanted)
                .map(|l| l.address)
                .ok_or(all)
        })
        .await
    }

    /// An object of namespace `shop` as the control plane shows it.
    pub async fn object(&self, plural: &str, name: &str) -> Result<Value> {
        self.object_in("shop", plural, name).await
    }

    /// An object of any namespace.
    pub async fn object_in(&self, namespace: &str, plural: &str, name: &str) -> Result<Value> {
        let admin = self
            .control_plane
            .admin_addr()
            .context("there is an admin address")?;
        let got = call::get(
            admin,
            &format!("/apis/weir.dev/v1alpha1/{plural}?namespace={namespace}"),
        )
        .await?;
        let list: Value = serde_json::from_slice(&got.body)?;
        let items = list["items"].as_array().cloned().unwrap_or_default();
        items
            .into_iter()
            .find(|i| i["metadata"]["name"] == name)
            .with_context(|| format!("there is no {plural}/{name}"))
    }

    /// Waits until a breaker shows this state.
    pub async fn breaker_is(&self, name: &str, state: &str) -> Value {
        eventually(&format!("breaker {name} to be {state}"), || async {
            let object = self
                .object("circuitbreakers", name)
                .await
                .map_err(|e| e.to_string())?;
            if object["status"]["state"] == state {
                Ok(object)
            } else {
                Err(object["status"].to_string())
            }
        })
        .await
    }

    /// Waits until a policy's condition has this status, and returns it.
    pub async fn condition(&self, policy: &str, kind: &str, status: &str) -> Value {
        self.condition_with(policy, kind, "status", status).await
    }

    /// Waits until a policy's condition has this reason, and returns it.
    pub async fn condition_for(&self, policy: &str, kind: &str, reason: &str) -> Value {
        self.condition_with(policy, kind, "reason", reason).await
    }

    async fn condition_with(&self, policy: &str, kind: &str, field: &str, wanted: &str) -> Value {
        eventually(
            &format!("{field} {wanted} in {kind} of {policy}"),
            || async {
                let object = self.object("resiliencepolicies", policy).await;
                let status = object.map_err(|e| e.to_string())?["status"].clone();
                let mut conditions = status["conditions"].as_array().into_iter().flatten();
                let found = conditions.find(|c| c["type"] == kind && c[field] == wanted);
                found.cloned().ok_or_else(|| status.to_string())
            },
        )
        .await
    }

    /// The agent's metrics.
    pub async fn metrics(&self) -> Result<String> {
        let admin = self
            .agent
            .admin_addr()
            .context("there is an admin address")?;
        Ok(call::get(admin, "/metrics").await?.text())
    }

    /// The sum of a metric's samples whose labels hold all of `labels`.
    pub async fn metric(&self, family: &str, labels: &[&str]) -> Result<f64> {
        let text = self.metrics().await?;
        let samples = text.lines().filter(|line| {
            line.strip_prefix(family)
                .is_some_and(|rest| rest.starts_with(['{', ' ']))
                && labels.iter().all(|label| line.contains(label))
        });
        Ok(samples
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum())
    }

    /// Ends both, gracefully.
    pub async fn shutdown(self) -> Manifests {
        self.agent.shutdown().await;
        self.control_plane.shutdown().await;
        self.manifests
    }
}

fn any() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}
