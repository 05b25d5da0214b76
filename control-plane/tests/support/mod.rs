//! What the tests of this crate share: directories, an agent that does what it
//! is told, and waiting for something to become true.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test program uses a part of it"
)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "that is how a test fails"
)]

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};
use weir_control_plane::events::Event;
use weir_control_plane::store::{Change, Collection};
use weir_control_plane::{Config, ControlPlane};
use weir_proto::v1alpha1 as proto;
use weir_proto::v1alpha1::discover_request::Message;
use weir_proto::v1alpha1::discovery_client::DiscoveryClient;

/// Longer than anything takes on a busy machine; a test that waits for it fails.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A directory that goes with the test.
pub struct Directory(PathBuf);

impl Directory {
    pub fn new() -> Directory {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "weir-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Directory(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A Service with one endpoint.
pub fn service(name: &str) -> String {
    format!(
        "apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec: {{ports: [{{port: 80}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {name}-1, labels: {{kubernetes.io/service-name: {name}}}}}
addressType: IPv4
ports: [{{port: 8080}}]
endpoints: [{{addresses: [10.0.0.1]}}]
---
"
    )
}

/// A policy for it; `sections` are lines of its spec.
pub fn policy(name: &str, sections: &str) -> String {
    format!(
        "apiVersion: weir.dev/v1alpha1
kind: ResiliencePolicy
metadata: {{name: {name}}}
spec:
  targetRefs: [{{kind: Service, name: {name}}}]
  {sections}
---
"
    )
}

/// A control plane for one directory.
pub async fn start(directory: &Directory) -> ControlPlane {
    start_with(directory, |_| {}).await
}

pub async fn start_with(directory: &Directory, change: impl FnOnce(&mut Config)) -> ControlPlane {
    let mut config = Config::new(vec![directory.path().to_owned()]);
    change(&mut config);
    ControlPlane::start(config).await.unwrap()
}

/// Waits until the objects of a collection, by name, are as `holds` says.
pub async fn until(
    control_plane: &ControlPlane,
    collection: Collection,
    holds: impl Fn(&[Value]) -> bool,
) -> Vec<Value> {
    let mut watch = control_plane.watch(collection);
    let mut objects: Vec<Value> = watch
        .present
        .iter()
        .map(|changed| Value::clone(&changed.object))
        .collect();
    let deadline = Instant::now() + PATIENCE;
    loop {
        if holds(&objects) {
            return objects;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let Ok(changed) = timeout(left, watch.changes.recv()).await else {
            panic!("it does not come true: {objects:#?}");
        };
        let changed = changed.unwrap();
        if changed.collection != collection {
            continue;
        }
        let name = changed.object["metadata"]["name"].clone();
        objects.retain(|object| object["metadata"]["name"] != name);
        if changed.change != Change::Deleted {
            objects.push(Value::clone(&changed.object));
        }
    }
}

pub async fn until_policy(
    control_plane: &ControlPlane,
    name: &str,
    holds: impl Fn(&Value) -> bool,
) -> Value {
    let found = |objects: &[Value]| {
        objects
            .iter()
            .find(|object| object["metadata"]["name"] == name && holds(object))
            .cloned()
    };
    let objects = until(control_plane, Collection::ResiliencePolicies, |objects| {
        found(objects).is_some()
    })
    .await;
    found(&objects).unwrap()
}

/// "True/Programmed: enforced by 1 of 1 agents".
pub fn condition(object: &Value, of: &str) -> String {
    let conditions = object["status"]["conditions"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let word =
        |condition: &Value, field: &str| condition[field].as_str().unwrap_or_default().to_owned();
    conditions
        .iter()
        .find(|condition| condition["type"] == of)
        .map(|of| {
            format!(
                "{}/{}: {}",
                word(of, "status"),
                word(of, "reason"),
                word(of, "message")
            )
        })
        .unwrap_or_default()
}

pub async fn channel(control_plane: &ControlPlane) -> Channel {
    Endpoint::from_shared(format!("http://{}", control_plane.grpc_addr()))
        .unwrap()
        .connect()
        .await
        .unwrap()
}

/// An agent that answers what the test says.
pub struct Agent {
    requests: mpsc::Sender<proto::DiscoverRequest>,
    pub responses: Streaming<proto::DiscoverResponse>,
}

impl Agent {
    pub async fn connect(
        control_plane: &ControlPlane,
        node: &str,
        held: Vec<proto::Held>,
    ) -> Agent {
        let mut client = DiscoveryClient::new(channel(control_plane).await);
        let (requests, receiver) = mpsc::channel(16);
        let hello = proto::Hello {
            node: node.into(),
            held,
            ..Default::default()
        };
        requests
            .send(proto::DiscoverRequest {
                message: Some(Message::Hello(hello)),
            })
            .await
            .unwrap();
        let responses = client
            .discover(ReceiverStream::new(receiver))
            .await
            .unwrap()
            .into_inner();
        Agent {
            requests,
            responses,
        }
    }

    /// The next response, or how the stream ended.
    pub async fn next(&mut self) -> Result<proto::DiscoverResponse, tonic::Status> {
        match timeout(PATIENCE, self.responses.message())
            .await
            .expect("no response")
        {
            Ok(Some(response)) => Ok(response),
            Ok(None) => Err(tonic::Status::ok("the stream ended")),
            Err(status) => Err(status),
        }
    }

    pub async fn answer(&self, nonce: u64, rejections: Vec<proto::Rejection>) {
        let ack = proto::Ack { nonce, rejections };
        let _ = self
            .requests
            .send(proto::DiscoverRequest {
                message: Some(Message::Ack(ack)),
            })
            .await;
    }

    /// Enforces responses until one holds `name`, and gives that one back,
    /// answered.
    pub async fn enforce_until(&mut self, name: &str) -> proto::Resource {
        loop {
            let response = self.next().await.unwrap();
            self.answer(response.nonce, Vec::new()).await;
            let found = response.resources.iter().find(|resource| {
                resource.name == name && resource.kind() == proto::ResourceKind::Service
            });
            if let Some(found) = found {
                return found.clone();
            }
        }
    }
}

pub fn held(resource: &proto::Resource) -> proto::Held {
    proto::Held {
        kind: resource.kind,
        name: resource.name.clone(),
        version: resource.version.clone(),
    }
}

/// Waits for an event, past ones included.
pub async fn until_event(control_plane: &ControlPlane, is: impl Fn(&Event) -> bool) -> Event {
    let mut coming = control_plane.subscribe_events();
    if let Some(found) = control_plane.events().into_iter().find(&is) {
        return found;
    }
    loop {
        let event = timeout(PATIENCE, coming.recv())
            .await
            .expect("the event does not come")
            .unwrap();
        if is(&event) {
            return event;
        }
    }
}
