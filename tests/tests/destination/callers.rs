//! Bulkheads for callers by who they are, at a control plane that says of an
//! address what the test says.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use prost::Message as _;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use weir_agent::{Agent, ControlPlaneAddress};
use weir_proto::v1alpha1 as proto;
use weir_tests::wire::{Heard, Server, Stream};
use weir_tests::{Backend, Reply, call, eventually};

/// Callers have loopback addresses of their own.
const WEB: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
const OTHER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 3));

fn any() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// An agent with one service, `payments`, which has a bulkhead for callers of the
/// namespace `web` and one for all others, a place in each.
async fn agent(server: &mut Server, backend: &Backend) -> Result<(Agent, Stream)> {
    let config = weir_agent::Config {
        node: "node-a".to_owned(),
        control_plane: ControlPlaneAddress::new(
            &format!("http://{}", server.address()),
            None,
            None,
        )?,
        proxy: None,
        admin: Some(any()),
        state_dir: None,
        caller_namespace: None,
        workers: NonZeroUsize::MIN,
        drain_timeout: Duration::from_secs(1),
        handover: None,
        capture: None,
        stale_after: weir_agent::STALE_AFTER,
        kernel: weir_agent::Kernel::default(),
    };
    let agent = Agent::start(config).await?;
    let mut stream = server.accept().await?;
    ensure!(matches!(stream.next().await?, Heard::Message(_)), "a hello");
    let bulkhead = |name: &str, namespaces: &[&str]| proto::Bulkhead {
        key: format!("payments.{name}"),
        name: name.to_owned(),
        at: proto::BulkheadSide::Destination.into(),
        max_concurrent: 1,
        from_namespaces: namespaces.iter().map(|n| (*n).to_owned()).collect(),
        ..proto::Bulkhead::default()
    };
    let service = proto::ServiceConfig {
        namespace: "shop".to_owned(),
        name: "payments".to_owned(),
        ports: vec![proto::Port {
            number: 80,
            protocol: proto::Protocol::Detect.into(),
            listen: any().to_string(),
            policy: Some(proto::Policy {
                bulkheads: vec![bulkhead("web", &["web"]), bulkhead("default", &[])],
                ..proto::Policy::default()
            }),
            ..proto::Port::default()
        }],
        ..proto::ServiceConfig::default()
    };
    let endpoints = proto::Endpoints {
        namespace: "shop".to_owned(),
        name: "payments".to_owned(),
        ports: vec![proto::PortEndpoints {
            port: 80,
            endpoints: vec![proto::Endpoint {
                address: backend.address().to_string(),
                ..proto::Endpoint::default()
            }],
        }],
    };
    let resource = |kind: proto::ResourceKind, body: Vec<u8>| proto::Resource {
        kind: kind.into(),
        name: "shop/payments".to_owned(),
        version: "1".to_owned(),
        requires: vec!["bulkheads.from".to_owned()],
        body: body.into(),
    };
    let response = proto::DiscoverResponse {
        nonce: 1,
        resources: vec![
            resource(proto::ResourceKind::Service, service.encode_to_vec()),
            resource(proto::ResourceKind::Endpoints, endpoints.encode_to_vec()),
        ],
        removed: Vec::new(),
        synced: true,
    };
    stream.send(&response.encode_to_vec())?;
    agent.synced().await;
    Ok((agent, stream))
}

async fn listener(agent: &Agent) -> Result<SocketAddr> {
    let all = agent.listening().await;
    Ok(all.first().context("payments has a listener")?.address)
}

/// Tells who callers are: [`WEB`] is of the namespace `web`, and nobody is anybody
/// else. Returns what was asked for, in order, once the server has ended.
fn tell(mut server: Server) -> JoinHandle<Result<Vec<String>>> {
    tokio::spawn(async move {
        let mut asked = Vec::new();
        for _ in 0..2 {
            let mut question = server.question().await?;
            let Heard::Message(message) = question.next().await? else {
                bail!("a question is a message");
            };
            let addresses = proto::ResolveRequest::decode(message)?.addresses;
            let caller = |address: &String| proto::Caller {
                known: *address == WEB.to_string(),
                namespace: "web".to_owned(),
                service_account: "default".to_owned(),
                workload: "Deployment/front".to_owned(),
                pod: "front-1".to_owned(),
            };
            let answer = proto::ResolveResponse {
                callers: addresses.iter().map(caller).collect(),
            };
            question.send(&answer.encode_to_vec())?;
            question.finish()?;
            asked.extend(addresses);
        }
        Ok(asked)
    })
}

/// A destination that answers once the test gives leave.
async fn on_leave() -> (Backend, Arc<Semaphore>) {
    let leave = Arc::new(Semaphore::new(0));
    let gate = leave.clone();
    let backend = Backend::with(move |_| {
        let gate = gate.clone();
        async move {
            if let Ok(permit) = gate.acquire().await {
                permit.forget();
            }
            Reply::status(200)
        }
    })
    .await;
    (backend, leave)
}

async fn caller(from: IpAddr, to: SocketAddr, h2: bool) -> Result<call::Caller> {
    let io = call::connect_from(from, to).await?;
    if h2 {
        call::Caller::h2_over(io).await
    } else {
        call::Caller::h1_over(io).await
    }
}

async fn get(mut caller: call::Caller, h2: bool) -> Result<call::Got> {
    let request = if h2 { call::request_h2 } else { call::request };
    caller.send(request("GET", "/", "")?).await
}

async fn reach(backend: &Backend, n: u64) {
    eventually("requests at the destination", || async {
        (backend.requests() == n)
            .then_some(())
            .ok_or(backend.requests())
    })
    .await;
}

#[tokio::test]
async fn callers_have_the_bulkhead_that_is_for_them() -> Result<()> {
    for h2 in [false, true] {
        let mut server = Server::start().await?;
        let (backend, leave) = on_leave().await;
        let (agent, _stream) = agent(&mut server, &backend).await?;
        let payments = listener(&agent).await?;
        let told = tell(server);
        let mut at_work = Vec::new();
        for (n, from) in [(1, WEB), (2, OTHER)] {
            let caller = caller(from, payments, h2).await?;
            at_work.push(tokio::spawn(get(caller, h2)));
            reach(&backend, n).await;
        }
        for (from, full) in [
            (WEB, "bulkhead web is full"),
            (OTHER, "bulkhead default is full"),
        ] {
            let refused = get(caller(from, payments, h2).await?, h2).await?;
            assert_eq!(refused.status, 503);
            let why = refused.header("proxy-status");
            assert!(why.contains(full), "{why}");
        }
        leave.add_permits(2);
        for request in at_work {
            assert_eq!(request.await??.status, 200);
        }
        let asked = told.await??;
        assert_eq!(
            asked,
            [WEB.to_string(), OTHER.to_string()],
            "each is asked for once"
        );
        agent.shutdown().await;
    }
    Ok(())
}

#[tokio::test]
async fn a_control_plane_that_does_not_tell_who_calls_holds_nobody_up() -> Result<()> {
    let mut server = Server::start().await?;
    let backend = Backend::always(200).await;
    let (agent, _stream) = agent(&mut server, &backend).await?;
    let payments = listener(&agent).await?;
    // It hears the question and says nothing.
    let got = get(caller(WEB, payments, false).await?, false).await?;
    assert_eq!(got.status, 200);
    let _question = server.question().await?;
    drop(server);
    // And now it is gone.
    for h2 in [false, true] {
        let got = get(caller(OTHER, payments, h2).await?, h2).await?;
        assert_eq!(got.status, 200);
    }
    let admin = agent.admin_addr().context("it has an admin address")?;
    eventually("the failures to be counted", || async {
        let text = call::get(admin, "/metrics")
            .await
            .map_err(|e| e.to_string())?
            .text();
        let failed = "weir_caller_lookups_total{result=\"failed\"} ";
        let count = text.lines().find_map(|line| line.strip_prefix(failed));
        match count.map(str::parse::<u64>) {
            Some(Ok(count)) if count >= 2 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    agent.shutdown().await;
    Ok(())
}
