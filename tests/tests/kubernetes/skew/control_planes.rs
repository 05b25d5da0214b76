//! An agent of this version at control planes of other ones. No cluster is needed for that.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use prost::Message;
use weir_agent::{Agent, ControlPlaneAddress};
use weir_proto::v1alpha1 as proto;
use weir_tests::wire::{Heard, Server, Stream};
use weir_tests::{Backend, call};

use super::{UNKNOWN_VALUE, field, later};

const SERVICE: i32 = proto::ResourceKind::Service as i32;

/// An agent of this version that asks the server, and is a proxy.
async fn agent(server: &Server) -> Result<Agent> {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let config = weir_agent::Config {
        node: "node-a".to_owned(),
        control_plane: ControlPlaneAddress::new(
            &format!("http://{}", server.address()),
            None,
            None,
        )?,
        proxy: Some(any),
        admin: Some(any),
        state_dir: None,
        caller_namespace: None,
        workers: NonZeroUsize::MIN,
        drain_timeout: Duration::from_secs(1),
        handover: None,
        capture: None,
        stale_after: weir_agent::STALE_AFTER,
        kernel: weir_agent::Kernel::default(),
    };
    Ok(Agent::start(config).await?)
}

/// How many tries a request for the service gets; its destination never answers well.
async fn tries(agent: &Agent, backend: &Backend, service: &str) -> Result<u64> {
    let mut request = call::request("GET", "/", "")?;
    request.headers_mut().insert("host", service.parse()?);
    let before = backend.requests();
    call::send(agent.proxy_addr().context("it is a proxy")?, request).await?;
    Ok(backend.requests() - before)
}

/// Retries as the first version has them.
fn retries(attempts: u32) -> proto::Retries {
    proto::Retries {
        key: "payments".to_owned(),
        attempts,
        status_codes: vec![proto::StatusRange {
            first: 503,
            last: 503,
        }],
        methods: vec!["GET".to_owned()],
        backoff_base_us: 1_000,
        backoff_max_us: 1_000,
        jitter: proto::Jitter::Full.into(),
        budget: Some(proto::RetryBudget {
            percent: 100,
            interval_us: 10_000_000,
            min_retry_count: 100,
            min_retry_interval_us: 1_000_000,
        }),
        max_buffered_body: 65_536,
        ..proto::Retries::default()
    }
}

/// A service with one port and this policy, encoded.
fn service(name: &str, policy: &[u8]) -> Vec<u8> {
    let config = proto::ServiceConfig {
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        ..proto::ServiceConfig::default()
    };
    let port = proto::Port {
        number: 80,
        name: "http".to_owned(),
        protocol: proto::Protocol::Detect.into(),
        ..proto::Port::default()
    };
    let mut port = port.encode_to_vec();
    port.extend(field(5, policy));
    let mut config = config.encode_to_vec();
    config.extend(field(3, &port));
    config
}

fn endpoints(name: &str, backend: &Backend) -> proto::Resource {
    let endpoint = proto::Endpoint {
        address: backend.address().to_string(),
        ..proto::Endpoint::default()
    };
    let body = proto::Endpoints {
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        ports: vec![proto::PortEndpoints {
            port: 80,
            endpoints: vec![endpoint],
        }],
    };
    resource(
        proto::ResourceKind::Endpoints.into(),
        name,
        body.encode_to_vec(),
        &[],
    )
}

fn resource(kind: i32, name: &str, body: Vec<u8>, requires: &[&str]) -> proto::Resource {
    proto::Resource {
        kind,
        name: format!("shop/{name}"),
        version: format!(
            "{:x}",
            body.iter()
                .fold(7u64, |hash, byte| hash.wrapping_mul(31) ^ u64::from(*byte))
        ),
        requires: requires.iter().map(ToString::to_string).collect(),
        body: body.into(),
    }
}

/// The agent's next message; the bytes are understood as this version's.
async fn hear(stream: &mut Stream) -> Result<proto::discover_request::Message> {
    match stream.next().await? {
        Heard::Message(message) => proto::DiscoverRequest::decode(message)?
            .message
            .context("an empty message"),
        end @ Heard::End(..) => bail!("the agent ends the stream: {end:?}"),
    }
}

async fn hear_ack(stream: &mut Stream) -> Result<proto::Ack> {
    match hear(stream).await? {
        proto::discover_request::Message::Ack(ack) => Ok(ack),
        other => bail!("no answer: {other:?}"),
    }
}

#[tokio::test]
async fn an_agent_enforces_what_an_older_control_plane_knows() -> Result<()> {
    let backend = Backend::always(503).await;
    let mut server = Server::start().await?;
    let agent = agent(&server).await?;
    let mut stream = server.accept().await?;
    ensure!(matches!(
        hear(&mut stream).await?,
        proto::discover_request::Message::Hello(_)
    ));
    // It does not say what a resource needs, and has no Reporting service.
    let policy = field(2, &retries(1).encode_to_vec());
    let response = proto::DiscoverResponse {
        nonce: 1,
        resources: vec![
            endpoints("payments", &backend),
            resource(SERVICE, "payments", service("payments", &policy), &[]),
        ],
        synced: true,
        ..proto::DiscoverResponse::default()
    };
    stream.send(&response.encode_to_vec())?;
    let ack = hear_ack(&mut stream).await?;
    ensure!(ack.nonce == 1 && ack.rejections.is_empty(), "{ack:?}");
    ensure!(tries(&agent, &backend, "payments.shop").await? == 2);

    // It goes, and what is in force stays.
    drop((stream, server));
    ensure!(tries(&agent, &backend, "payments.shop").await? == 2);
    agent.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn an_agent_refuses_by_name_what_only_a_newer_one_can_do_and_keeps_its_last_good_word()
-> Result<()> {
    let backend = Backend::always(503).await;
    let mut server = Server::start().await?;
    let agent = agent(&server).await?;
    let mut stream = server.accept().await?;
    ensure!(matches!(
        hear(&mut stream).await?,
        proto::discover_request::Message::Hello(_)
    ));

    // Fields that are not known are everywhere, and harmless: what needs them would say so.
    let good = |attempts| later(field(2, &later(retries(attempts).encode_to_vec())));
    let mut encoded = Vec::new();
    for resource in [
        endpoints("payments", &backend),
        endpoints("stock", &backend),
        resource(
            SERVICE,
            "payments",
            later(service("payments", &good(1))),
            &["retries"],
        ),
        resource(
            SERVICE,
            "stock",
            later(service("stock", &good(2))),
            &["retries"],
        ),
    ] {
        encoded.extend(field(2, &later(resource.encode_to_vec())));
    }
    let first = proto::DiscoverResponse {
        nonce: 1,
        synced: true,
        ..proto::DiscoverResponse::default()
    };
    encoded.extend(first.encode_to_vec());
    stream.send(&later(encoded))?;
    let ack = hear_ack(&mut stream).await?;
    ensure!(ack.rejections.is_empty(), "{ack:?}");
    ensure!(tries(&agent, &backend, "payments.shop").await? == 2);

    let mut jitter = retries(5);
    jitter.jitter = UNKNOWN_VALUE;
    let second = proto::DiscoverResponse {
        nonce: 2,
        resources: vec![
            resource(
                SERVICE,
                "payments",
                service("payments", &good(5)),
                &["retries", "telepathy"],
            ),
            resource(SERVICE, "stock", service("stock", &good(3)), &["retries"]),
            resource(
                SERVICE,
                "odd",
                service("odd", &field(2, &jitter.encode_to_vec())),
                &["retries"],
            ),
            resource(UNKNOWN_VALUE, "weather", b"sunny".to_vec(), &[]),
        ],
        removed: vec![proto::Removed {
            kind: UNKNOWN_VALUE,
            name: "shop/moon".to_owned(),
        }],
        ..proto::DiscoverResponse::default()
    };
    stream.send(&second.encode_to_vec())?;
    let ack = hear_ack(&mut stream).await?;
    for rejection in &ack.rejections {
        println!("{}: {}", rejection.name, rejection.message);
    }
    let names: Vec<_> = ack
        .rejections
        .iter()
        .map(|rejection| rejection.name.as_str())
        .collect();
    ensure!(
        ack.nonce == 2 && names == ["shop/payments", "shop/odd", "shop/weather"],
        "{ack:?}"
    );
    ensure!(
        ack.rejections[0].missing_features == ["telepathy"],
        "{ack:?}"
    );
    ensure!(ack.rejections[2].kind == UNKNOWN_VALUE, "{ack:?}");
    ensure!(
        tries(&agent, &backend, "payments.shop").await? == 2,
        "the last good word stays"
    );
    ensure!(
        tries(&agent, &backend, "stock.shop").await? == 4,
        "the others' are new"
    );

    // What it holds is told to whoever comes after, without what it refused.
    drop(stream);
    let mut stream = server.accept().await?;
    let proto::discover_request::Message::Hello(hello) = hear(&mut stream).await? else {
        bail!("a stream begins with a hello");
    };
    let mut held: Vec<_> = hello
        .held
        .iter()
        .filter(|held| held.kind == SERVICE)
        .map(|held| held.name.as_str())
        .collect();
    held.sort_unstable();
    ensure!(held == ["shop/payments", "shop/stock"], "{held:?}");
    agent.shutdown().await;
    Ok(())
}
