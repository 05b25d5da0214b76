//! The rules of the push, over real gRPC, with an agent that does what the test
//! says.

mod support;

use std::time::Duration;

use prost::Message as _;
use support::{
    Agent, Directory, condition, held, policy, service, start, start_with, until_policy,
};
use weir_proto::v1alpha1 as proto;

#[tokio::test]
async fn a_manifest_is_pushed_enforced_and_then_programmed() {
    let directory = Directory::new();
    directory.write(
        "shop.yaml",
        &(service("a") + &policy("a", "timeouts: {request: 2s}")),
    );
    let control_plane = start(&directory).await;
    let before = until_policy(&control_plane, "a", |_| true).await;
    assert!(
        condition(&before, "Programmed").starts_with("Unknown/NoAgents"),
        "{before}"
    );

    let mut agent = Agent::connect(&control_plane, "node-a", Vec::new()).await;
    let response = agent.next().await.unwrap();
    assert!(response.synced);
    let pending = until_policy(&control_plane, "a", |object| {
        condition(object, "Programmed").starts_with("False/Pending")
    })
    .await;
    assert_eq!(pending["status"]["summary"]["agents"], "0/1");

    let service = response
        .resources
        .iter()
        .find(|resource| resource.kind() == proto::ResourceKind::Service)
        .unwrap();
    let config = proto::ServiceConfig::decode(service.body.clone()).unwrap();
    assert_eq!(
        config.ports[0]
            .policy
            .as_ref()
            .unwrap()
            .timeouts
            .as_ref()
            .unwrap()
            .request_us,
        2_000_000
    );
    agent.answer(response.nonce, Vec::new()).await;
    until_policy(&control_plane, "a", |object| {
        condition(object, "Programmed").starts_with("True/Programmed")
    })
    .await;
    control_plane.shutdown().await;
}

#[tokio::test]
async fn an_edit_brings_only_the_difference() {
    let directory = Directory::new();
    directory.write(
        "a.yaml",
        &(service("a") + &policy("a", "timeouts: {request: 2s}")),
    );
    directory.write(
        "b.yaml",
        &(service("b") + &policy("b", "timeouts: {request: 2s}")),
    );
    let control_plane = start(&directory).await;
    let mut agent = Agent::connect(&control_plane, "node-a", Vec::new()).await;
    let first = agent.next().await.unwrap();
    assert_eq!(first.resources.len(), 4);
    agent.answer(first.nonce, Vec::new()).await;

    directory.write(
        "b.yaml",
        &(service("b") + &policy("b", "timeouts: {request: 3s}")),
    );
    let second = agent.next().await.unwrap();
    assert_eq!(second.nonce, first.nonce + 1);
    assert!(!second.synced);
    let names: Vec<_> = second
        .resources
        .iter()
        .map(|resource| (resource.name.as_str(), resource.kind()))
        .collect();
    assert_eq!(names, [("default/b", proto::ResourceKind::Service)]);
}

#[tokio::test]
async fn an_agent_that_comes_back_gets_what_changed_and_is_told_what_went() {
    let directory = Directory::new();
    directory.write(
        "a.yaml",
        &(service("a") + &policy("a", "timeouts: {request: 2s}")),
    );
    let control_plane = start(&directory).await;
    let mut agent = Agent::connect(&control_plane, "node-a", Vec::new()).await;
    let first = agent.next().await.unwrap();
    agent.answer(first.nonce, Vec::new()).await;
    drop(agent);

    let gone = proto::Held {
        kind: proto::ResourceKind::Service.into(),
        name: "default/old".into(),
        version: "1".into(),
    };
    let holds: Vec<_> = first.resources.iter().map(held).chain([gone]).collect();
    let mut agent = Agent::connect(&control_plane, "node-a", holds).await;
    let resumed = agent.next().await.unwrap();
    assert!(
        resumed.synced && resumed.resources.is_empty(),
        "{resumed:?}"
    );
    assert_eq!(resumed.removed.len(), 1);
    assert_eq!(resumed.removed[0].name, "default/old");
    until_policy(&control_plane, "a", |object| {
        condition(object, "Programmed").starts_with("True/Programmed")
    })
    .await;
}

#[tokio::test]
async fn a_refused_resource_is_told_with_its_node_and_not_sent_again_until_it_changes() {
    let directory = Directory::new();
    directory.write(
        "a.yaml",
        &(service("a") + &policy("a", "timeouts: {request: 2s}")),
    );
    let control_plane = start(&directory).await;
    let mut agent = Agent::connect(&control_plane, "node-a", Vec::new()).await;
    let first = agent.next().await.unwrap();
    let rejection = proto::Rejection {
        kind: proto::ResourceKind::Service.into(),
        name: "default/a".into(),
        version: first.resources[0].version.clone(),
        message: "no room".into(),
        missing_features: Vec::new(),
    };
    agent.answer(first.nonce, vec![rejection]).await;
    let object = until_policy(&control_plane, "a", |object| {
        condition(object, "Programmed").starts_with("False/Rejected")
    })
    .await;
    assert!(
        condition(&object, "Programmed").contains("node node-a: no room"),
        "{object}"
    );
    assert_eq!(object["status"]["rejections"][0]["node"], "node-a");
    assert!(
        control_plane
            .events()
            .iter()
            .any(|event| event.reason == "PolicyRejected" && event.message == "no room")
    );

    // Another service comes: only that one is sent.
    directory.write(
        "b.yaml",
        &(service("b") + &policy("b", "timeouts: {request: 2s}")),
    );
    let second = agent.next().await.unwrap();
    assert!(
        second
            .resources
            .iter()
            .all(|resource| resource.name == "default/b"),
        "{second:?}"
    );
    agent.answer(second.nonce, Vec::new()).await;

    directory.write(
        "a.yaml",
        &(service("a") + &policy("a", "timeouts: {request: 3s}")),
    );
    agent.enforce_until("default/a").await;
    until_policy(&control_plane, "a", |object| {
        condition(object, "Programmed").starts_with("True/Programmed")
    })
    .await;
}

#[tokio::test]
async fn an_answer_to_another_nonce_is_not_an_answer() {
    let directory = Directory::new();
    directory.write(
        "a.yaml",
        &(service("a") + &policy("a", "timeouts: {request: 2s}")),
    );
    let control_plane = start(&directory).await;
    let mut agent = Agent::connect(&control_plane, "node-a", Vec::new()).await;
    let first = agent.next().await.unwrap();
    agent.answer(first.nonce + 7, Vec::new()).await;
    agent.answer(first.nonce, Vec::new()).await;
    until_policy(&control_plane, "a", |object| {
        condition(object, "Programmed").starts_with("True/Programmed")
    })
    .await;
}

#[tokio::test]
async fn an_agent_that_does_not_answer_loses_its_stream_and_holds_up_nobody() {
    let directory = Directory::new();
    directory.write(
        "a.yaml",
        &(service("a") + &policy("a", "timeouts: {request: 2s}")),
    );
    let control_plane = start_with(&directory, |config| {
        config.timing.answer = Duration::from_millis(300)
    })
    .await;
    let mut slow = Agent::connect(&control_plane, "slow", Vec::new()).await;
    slow.next().await.unwrap();
    let mut quick = Agent::connect(&control_plane, "quick", Vec::new()).await;
    quick.enforce_until("default/a").await;
    assert_eq!(
        slow.next().await.unwrap_err().code(),
        tonic::Code::DeadlineExceeded
    );
    let object = until_policy(&control_plane, "a", |object| {
        condition(object, "Programmed").starts_with("False/Unreachable")
    })
    .await;
    assert_eq!(object["status"]["agents"]["programmed"], 1);

    directory.write(
        "a.yaml",
        &(service("a") + &policy("a", "timeouts: {request: 3s}")),
    );
    quick.enforce_until("default/a").await;
}

#[tokio::test]
async fn of_two_streams_for_one_node_the_newer_wins() {
    let directory = Directory::new();
    directory.write(
        "a.yaml",
        &(service("a") + &policy("a", "timeouts: {request: 2s}")),
    );
    let control_plane = start(&directory).await;
    let mut older = Agent::connect(&control_plane, "node-a", Vec::new()).await;
    older.next().await.unwrap();
    let mut newer = Agent::connect(&control_plane, "node-a", Vec::new()).await;
    newer.enforce_until("default/a").await;
    assert_eq!(older.next().await.unwrap_err().code(), tonic::Code::Aborted);
    let object = until_policy(&control_plane, "a", |object| {
        condition(object, "Programmed").starts_with("True/Programmed")
    })
    .await;
    assert_eq!(object["status"]["agents"]["expected"], 1);
}

#[tokio::test]
async fn a_stream_must_begin_with_a_hello_that_names_its_node() {
    let directory = Directory::new();
    let control_plane = start(&directory).await;
    let mut nameless = Agent::connect(&control_plane, "", Vec::new()).await;
    assert_eq!(
        nameless.next().await.unwrap_err().code(),
        tonic::Code::InvalidArgument
    );
}

#[tokio::test]
async fn shutting_down_ends_the_streams_and_says_why() {
    let directory = Directory::new();
    let control_plane = start(&directory).await;
    let mut agent = Agent::connect(&control_plane, "node-a", Vec::new()).await;
    agent.next().await.unwrap();
    control_plane.shutdown().await;
    assert_eq!(
        agent.next().await.unwrap_err().code(),
        tonic::Code::Unavailable
    );
}

#[tokio::test]
async fn a_control_plane_that_starts_on_broken_manifests_takes_nothing_from_its_agents() {
    let directory = Directory::new();
    let whole = service("a") + &policy("a", "timeouts: {request: 2s}");
    directory.write("a.yaml", &whole);
    let control_plane = start(&directory).await;
    let mut agent = Agent::connect(&control_plane, "node-a", Vec::new()).await;
    let first = agent.next().await.unwrap();
    agent.answer(first.nonce, Vec::new()).await;
    control_plane.shutdown().await;

    directory.write("a.yaml", &whole[..whole.len() / 3]);
    let control_plane = start(&directory).await;
    let holds = first.resources.iter().map(held).collect();
    let mut agent = Agent::connect(&control_plane, "node-a", holds).await;
    let resumed = agent.next().await.unwrap();
    assert!(resumed.synced && resumed.removed.is_empty(), "{resumed:?}");
    agent.answer(resumed.nonce, Vec::new()).await;

    std::fs::remove_file(directory.path().join("a.yaml")).unwrap();
    let emptied = agent.next().await.unwrap();
    assert_eq!(emptied.removed.len(), 2, "{emptied:?}");
}
