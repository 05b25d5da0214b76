//! The objects of a large cluster.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use futures::stream::{StreamExt as _, TryStreamExt as _, iter};
use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use weir_crds::v1alpha1::{ConditionStatus, ResiliencePolicy};

const NAMESPACES: usize = 20;
/// Objects that are made at once.
const AT_ONCE: usize = 32;

/// See the module. The first policies have breakers that open at the first failure, and try again after a second.
pub(crate) struct World {
    client: Client,
    backend: SocketAddr,
    pub(crate) services: usize,
    pub(crate) policies: usize,
    /// How many breakers flap.
    pub(crate) flapping: usize,
}

impl World {
    pub(crate) fn of_this_run(client: Client, backend: SocketAddr) -> World {
        let full = std::env::var("WEIR_SCALE").is_ok_and(|scale| scale == "full");
        let (services, policies) = if full { (5_000, 1_000) } else { (1_000, 300) };
        World {
            client,
            backend,
            services,
            policies,
            flapping: 300,
        }
    }

    /// Namespace and name of the nth Service, and of its policy.
    pub(crate) fn name(n: usize) -> (String, String) {
        (format!("scale-{}", n % NAMESPACES), format!("svc-{n}"))
    }

    pub(crate) async fn create(&self) -> Result<()> {
        for n in 0..NAMESPACES {
            let name = format!("scale-{n}");
            let namespace = serde_json::from_value(json!({"metadata": {"name": name}}))?;
            let api: Api<Namespace> = Api::all(self.client.clone());
            api.create(&PostParams::default(), &namespace).await?;
        }
        let all = iter(0..self.services).map(Ok::<_, anyhow::Error>);
        all.try_for_each_concurrent(AT_ONCE, async |n| self.create_one(n).await)
            .await
    }

    async fn create_one(&self, n: usize) -> Result<()> {
        let (namespace, name) = World::name(n);
        let metadata = json!({"name": name, "namespace": namespace});
        let ports = json!([{"name": "http", "port": 80, "appProtocol": "http"}]);
        self.make::<Service>(
            &namespace,
            json!({"metadata": metadata, "spec": {"ports": ports}}),
        )
        .await?;
        let slice = json!({
            "metadata": {
                "name": format!("{name}-1"), "namespace": namespace,
                "labels": {"kubernetes.io/service-name": name},
            },
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": self.backend.port()}],
            "endpoints": [{"addresses": [self.backend.ip()], "conditions": {"ready": true}}],
        });
        self.make::<EndpointSlice>(&namespace, slice).await?;
        if n >= self.policies {
            return Ok(());
        }
        let breaker = if n < self.flapping {
            json!({
                "consecutiveFailures": 1,
                "open": {"duration": "1s", "jitterPercent": 0},
                "halfOpen": {"probes": 1, "rampUp": "0s"},
            })
        } else {
            json!({})
        };
        let policy = json!({
            "apiVersion": "weir.dev/v1alpha1", "kind": "ResiliencePolicy", "metadata": metadata,
            "spec": {
                "targetRefs": [{"kind": "Service", "name": name}],
                "timeouts": {}, "circuitBreaker": breaker,
            },
        });
        self.make::<ResiliencePolicy>(&namespace, policy).await
    }

    async fn make<K>(&self, namespace: &str, object: Value) -> Result<()>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
            + DeserializeOwned
            + serde::Serialize
            + Clone
            + std::fmt::Debug,
    {
        let api: Api<K> = Api::namespaced(self.client.clone(), namespace);
        api.create(&PostParams::default(), &serde_json::from_value(object)?)
            .await?;
        Ok(())
    }

    /// Whether every policy's present generation is enforced.
    pub(crate) async fn programmed(&self) -> Result<(), String> {
        let api: Api<ResiliencePolicy> = Api::all(self.client.clone());
        let found = api
            .list(&ListParams::default())
            .await
            .map_err(|error| error.to_string())?;
        let programmed = found
            .items
            .iter()
            .filter(|policy| is_programmed(policy))
            .count();
        if programmed == self.policies {
            Ok(())
        } else {
            Err(format!("{programmed} of {}", self.policies))
        }
    }

    /// Changes the last policy.
    pub(crate) async fn change_policy(&self, n: u32) -> Result<()> {
        let spec = json!({"spec": {"timeouts": {"request": format!("{}s", n + 20)}}});
        let (api, name) = self.last();
        api.patch(&name, &PatchParams::default(), &Patch::Merge(spec))
            .await
            .context("a change")?;
        Ok(())
    }

    /// Whether that change is enforced.
    pub(crate) async fn policy_programmed(&self) -> Result<(), String> {
        let (api, name) = self.last();
        let policy = api.get(&name).await.map_err(|error| error.to_string())?;
        if is_programmed(&policy) {
            Ok(())
        } else {
            Err(format!("{:?}", policy.status))
        }
    }

    fn last(&self) -> (Api<ResiliencePolicy>, String) {
        let (namespace, name) = World::name(self.policies - 1);
        (Api::namespaced(self.client.clone(), &namespace), name)
    }
}

fn is_programmed(policy: &ResiliencePolicy) -> bool {
    let conditions = policy.status.iter().flat_map(|status| &status.conditions);
    let mut programmed = conditions.filter(|condition| condition.r#type == "Programmed");
    programmed.any(|condition| {
        condition.status == ConditionStatus::True
            && condition.observed_generation == policy.metadata.generation
    })
}
