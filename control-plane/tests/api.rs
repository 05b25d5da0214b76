//! What people and their tools read, and what agents report.
#![allow(clippy::unwrap_used, reason = "that is how a test fails")]

mod support;

use serde_json::Value;
use support::{
    Agent, Directory, PATIENCE, channel, condition, policy, service, start, until, until_event,
    until_policy,
};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use weir_control_plane::ControlPlane;
use weir_control_plane::store::Collection;
use weir_proto::v1alpha1 as proto;
use weir_proto::v1alpha1::reporting_client::ReportingClient;

async fn request(control_plane: &ControlPlane, path: &str) -> TcpStream {
    let mut stream = TcpStream::connect(control_plane.admin_addr().unwrap())
        .await
        .unwrap();
    let head = format!("GET {path} HTTP/1.1\r\nhost: weir\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

async fn get(control_plane: &ControlPlane, path: &str) -> (String, String) {
    let mut text = String::new();
    let mut stream = request(control_plane, path).await;
    timeout(PATIENCE, stream.read_to_string(&mut text))
        .await
        .unwrap()
        .unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}

fn report(state: proto::BreakerState, since_unix_ms: i64) -> proto::BreakerReport {
    proto::BreakerReport {
        id: Some(proto::BreakerId {
            namespace: "default".into(),
            service: "a".into(),
            key: "a".into(),
        }),
        state: state.into(),
        reason: proto::BreakerReason::FailureRate.into(),
        message: "61% of 240 requests failed in 10s: 503 ×146".into(),
        since_unix_ms,
        failure_percent: 61,
        window_requests: 240,
        request_rate_milli: 24_000,
        rejected_total: 7,
        ..Default::default()
    }
}

/// A Report stream that a test writes to.
async fn reporter(
    control_plane: &ControlPlane,
) -> (
    mpsc::Sender<proto::ReportRequest>,
    tonic::Streaming<proto::ReportResponse>,
) {
    let mut client = ReportingClient::new(channel(control_plane).await);
    let (requests, receiver) = mpsc::channel(16);
    let answers = client
        .report(ReceiverStream::new(receiver))
        .await
        .unwrap()
        .into_inner();
    (requests, answers)
}

#[tokio::test]
async fn a_report_becomes_the_status_of_a_circuit_breaker_and_a_transition_an_event() {
    let directory = Directory::new();
    directory.write(
        "shop.yaml",
        &(service("a") + &policy("a", "circuitBreaker: {}")),
    );
    let control_plane = start(&directory).await;
    let silent = until(&control_plane, Collection::CircuitBreakers, |objects| {
        objects.len() == 1
    })
    .await;
    assert!(silent[0]["status"].get("state").is_none(), "{silent:?}");

    let (requests, mut answers) = reporter(&control_plane).await;
    let id = report(proto::BreakerState::Open, 0).id;
    let transition = proto::BreakerTransition {
        id,
        from: proto::BreakerState::Closed.into(),
        to: proto::BreakerState::Open.into(),
        message: "61% of 240 requests failed".into(),
        at_unix_ms: 1_777_636_800_000,
        ..Default::default()
    };
    let first = proto::ReportRequest {
        node: "node-a".into(),
        sequence: 1,
        breakers: vec![report(proto::BreakerState::Open, 1_777_636_800_000)],
        transitions: vec![transition],
        complete: true,
        ..Default::default()
    };
    requests.send(first).await.unwrap();
    assert_eq!(
        timeout(PATIENCE, answers.message())
            .await
            .unwrap()
            .unwrap()
            .unwrap()
            .sequence,
        1
    );
    let open = |objects: &[Value]| {
        objects
            .iter()
            .any(|object| object["status"]["state"] == "Open")
    };
    let objects = until(&control_plane, Collection::CircuitBreakers, open).await;
    let status = &objects[0]["status"];
    assert_eq!(status["summary"]["nodes"], "1/1");
    assert_eq!(status["summary"]["failed"], "61%");
    assert_eq!(status["requestRate"], "24.0/s");
    assert_eq!(status["reason"], "FailureRate");
    assert_eq!(status["since"], "2026-05-01T12:00:00Z");
    assert_eq!(status["openNodes"][0]["node"], "node-a");
    until_policy(&control_plane, "a", |object| {
        object["status"]["breakers"]["open"] == 1
    })
    .await;
    let event = until_event(&control_plane, |event| event.reason == "CircuitOpened").await;
    assert_eq!((event.from, event.to), (Some("Closed"), Some("Open")));

    let other = proto::ReportRequest {
        node: "node-b".into(),
        sequence: 2,
        ..Default::default()
    };
    requests.send(other).await.unwrap();
    let ended = timeout(PATIENCE, answers.message())
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(ended.code(), tonic::Code::PermissionDenied);
}

#[tokio::test]
async fn of_two_report_streams_for_one_node_the_newer_is_heard() {
    let directory = Directory::new();
    directory.write(
        "shop.yaml",
        &(service("a") + &policy("a", "circuitBreaker: {}")),
    );
    let control_plane = start(&directory).await;
    let say = |sequence| proto::ReportRequest {
        node: "node-a".into(),
        sequence,
        ..Default::default()
    };
    let (older, mut to_older) = reporter(&control_plane).await;
    older.send(say(1)).await.unwrap();
    timeout(PATIENCE, to_older.message())
        .await
        .unwrap()
        .unwrap();
    let (newer, mut to_newer) = reporter(&control_plane).await;
    newer.send(say(1)).await.unwrap();
    timeout(PATIENCE, to_newer.message())
        .await
        .unwrap()
        .unwrap();
    older.send(say(2)).await.unwrap();
    assert_eq!(
        timeout(PATIENCE, to_older.message())
            .await
            .unwrap()
            .unwrap_err()
            .code(),
        tonic::Code::Aborted
    );
}

#[tokio::test]
async fn lists_have_the_form_of_kubernetes_and_can_be_of_one_namespace() {
    let directory = Directory::new();
    directory.write(
        "shop.yaml",
        &(service("a") + &policy("a", "circuitBreaker: {}")),
    );
    let control_plane = start(&directory).await;
    until_policy(&control_plane, "a", |_| true).await;
    let (status, body) = get(&control_plane, "/apis/weir.dev/v1alpha1/resiliencepolicies").await;
    assert!(status.ends_with("200 OK"), "{status}");
    let list: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(
        (list["kind"].as_str(), list["apiVersion"].as_str()),
        (Some("ResiliencePolicyList"), Some("weir.dev/v1alpha1"))
    );
    assert_eq!(list["items"][0]["kind"], "ResiliencePolicy");
    assert_eq!(list["items"][0]["metadata"]["name"], "a");
    assert!(
        list["items"][0]["metadata"]["creationTimestamp"].is_string(),
        "{body}"
    );
    assert!(
        condition(&list["items"][0], "Accepted").starts_with("True"),
        "{body}"
    );
    let (_, body) = get(
        &control_plane,
        "/apis/weir.dev/v1alpha1/circuitbreakers?namespace=other",
    )
    .await;
    assert_eq!(
        serde_json::from_str::<Value>(&body).unwrap()["items"],
        Value::Array(Vec::new())
    );
    let (status, body) = get(&control_plane, "/apis/weir.dev/v1alpha1/breakers").await;
    assert!(
        status.contains("404") && body.contains("ask for resiliencepolicies or circuitbreakers"),
        "{body}"
    );
}

#[tokio::test]
async fn a_watch_begins_with_what_is_there_and_goes_on_with_what_changes() {
    let directory = Directory::new();
    directory.write(
        "shop.yaml",
        &(service("a") + &policy("a", "timeouts: {request: 2s}")),
    );
    let control_plane = start(&directory).await;
    until_policy(&control_plane, "a", |_| true).await;
    let stream = request(
        &control_plane,
        "/apis/weir.dev/v1alpha1/resiliencepolicies?watch=true",
    )
    .await;
    let mut lines = BufReader::new(stream).lines();
    let mut next = async || loop {
        let line = timeout(PATIENCE, lines.next_line())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        if line.starts_with('{') {
            return serde_json::from_str::<Value>(&line).unwrap();
        }
    };
    let first = next().await;
    assert_eq!(
        (
            first["type"].as_str(),
            first["object"]["metadata"]["name"].as_str()
        ),
        (Some("ADDED"), Some("a"))
    );
    directory.write(
        "shop.yaml",
        &(service("a") + &policy("a", "timeouts: {request: 3s}")),
    );
    loop {
        let changed = next().await;
        assert_eq!(changed["type"], "MODIFIED");
        if changed["object"]["spec"]["timeouts"]["request"] == "3s" {
            break;
        }
    }
    control_plane.shutdown().await;
}

#[tokio::test]
async fn health_metrics_and_events_are_served() {
    let directory = Directory::new();
    directory.write("shop.yaml", &(service("a") + &policy("a", "timeouts: {}")));
    let control_plane = start(&directory).await;
    let mut agent = Agent::connect(&control_plane, "node-a", Vec::new()).await;
    agent.enforce_until("default/a").await;
    until_policy(&control_plane, "a", |object| {
        condition(object, "Programmed").starts_with("True")
    })
    .await;
    assert_eq!(get(&control_plane, "/healthz").await.1, "ok\n");
    assert_eq!(get(&control_plane, "/readyz").await.1, "ok\n");
    let (_, metrics) = get(&control_plane, "/metrics").await;
    assert!(
        metrics.contains("weir_control_plane_agents 1\n"),
        "{metrics}"
    );
    assert!(
        metrics.contains("weir_control_plane_resources{kind=\"service\"} 1\n"),
        "{metrics}"
    );
    assert!(
        metrics.contains("weir_control_plane_push_answers_total{result=\"ack\"} 1\n"),
        "{metrics}"
    );
    assert!(
        metrics.contains("weir_control_plane_push_latency_seconds_count 1\n"),
        "{metrics}"
    );
    let (_, events) = get(&control_plane, "/events").await;
    assert!(serde_json::from_str::<Value>(&events).unwrap()["items"].is_array());
}
