//! What a pod that means harm can do: nothing to those beside it.
//!
//! Each test ends with a call of the well-behaved pod, which is captured and
//! answered as ever.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use socket2::{Domain, Socket, Type};
use weir_proto::v1alpha1 as proto;
use weir_tests::agents::resource;
use weir_tests::eventually;
use weir_tests::pods::{Family, KubeProxy, Pod, Topology};

use crate::captured::{Guarded, NODE, pod, retries, service};
use crate::shop::{PORTS, Shop, ask};

/// Where what pods begin and what comes to them is redirected to.
const CAPTURE_PORTS: [u16; 2] = [15081, 15086];
/// The mark of the proxy's own connections.
const OURS: u32 = 0x3057;
/// The mark of answers on those that have their caller's address.
const REPLY: u32 = 0x3052;
/// Connections of a flood.
const FLOOD: usize = 2_000;
/// An answer takes no longer than this, or there is none.
const PATIENCE: Duration = Duration::from_secs(20);

/// A shop in which two Services have a policy, and one more pod, which is not told of.
async fn open() -> Result<Option<(Guarded, Pod)>> {
    let two = |shop: &Shop| {
        let (near, far) = (&shop.near.pod, &shop.far.pod);
        [
            service("near", &shop.services.near, false, &[near], &retries()),
            service("far", &shop.services.far, false, &[far], &retries()),
        ]
        .concat()
    };
    let guarded = Guarded::open(Topology::Ptp, KubeProxy::Nftables, two).await?;
    let Some(guarded) = guarded else {
        return Ok(None);
    };
    let other = guarded.shop.network.node(0).pod("other")?;
    Ok(Some((guarded, other)))
}

/// The same; the other pod is captured as well.
async fn open_to_both() -> Result<Option<(Guarded, Pod)>> {
    let Some((guarded, other)) = open().await? else {
        return Ok(None);
    };
    guarded.told.set_on(NODE, pod(&other));
    guarded.told.enforced(NODE).await;
    Ok(Some((guarded, other)))
}

fn far(guarded: &Guarded) -> SocketAddr {
    let services = &guarded.shop.services;
    services.far.addresses().port(Family::V4, PORTS[0].0)
}

/// How many answers the proxy has passed on.
async fn answers(guarded: &Guarded) -> Result<u64> {
    guarded.agent.metric("weir_responses_total", "").await
}

/// Whether a pod's call is answered by the one that it called, as from the pod
/// itself, by way of the proxy.
async fn is_captured(guarded: &Guarded, pod: &Pod) -> Result<()> {
    let before = answers(guarded).await?;
    let answer = ask(pod, far(guarded))?;
    let wanted = format!("far {} {}", PORTS[0].1, pod.addresses().ip(Family::V4));
    ensure!(answer == wanted, "{answer}, not {wanted}");
    let after = answers(guarded).await?;
    ensure!(after == before + 1, "{before} answers, and then {after}");
    Ok(())
}

fn tables(pod: &Pod) -> Result<String> {
    pod.inside().run("nft", &["list", "tables"], "")
}

/// Sends a request as it is. All that comes back.
fn send(mut io: TcpStream, request: &str) -> io::Result<String> {
    io.set_read_timeout(Some(PATIENCE))?;
    io.write_all(request.as_bytes())?;
    let mut answer = String::new();
    io.read_to_string(&mut answer)?;
    Ok(answer)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_that_nobody_told_of_is_left_alone() -> Result<()> {
    let Some((guarded, stranger)) = open().await? else {
        return Ok(());
    };
    let caller = &guarded.shop.caller;
    ensure!(tables(caller)?.contains("weir"), "{}", tables(caller)?);
    let before = answers(&guarded).await?;
    ask(&stranger, far(&guarded))?;
    ensure!(answers(&guarded).await? == before, "it was captured");
    ensure!(tables(&stranger)?.is_empty(), "{}", tables(&stranger)?);
    is_captured(&guarded, caller).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_no_namespace_is_of_is_named_and_others_are_captured() -> Result<()> {
    let Some((guarded, other)) = open().await? else {
        return Ok(());
    };
    let Guarded { agent, told, shop } = &guarded;
    let lost = proto::Pod {
        namespace: "shop".to_owned(),
        name: "lost".to_owned(),
        uid: "uid-of-lost".to_owned(),
        addresses: vec!["10.244.1.250".to_owned()],
        ..proto::Pod::default()
    };
    told.set_on(NODE, resource(proto::ResourceKind::Pod, "shop/lost", &lost));
    told.set_on(NODE, pod(&other));
    agent.captures(3).await;
    eventually("a pod that is named", || async {
        let coverage = told.coverage(NODE).unwrap_or_default();
        match coverage.pods.as_slice() {
            [pod] if pod.name == "lost" && pod.reason.contains("10.244.1.250") => Ok(()),
            other => Err(format!("{other:?}, {}", coverage.failure)),
        }
    })
    .await;
    is_captured(&guarded, &other).await?;
    is_captured(&guarded, &shop.caller).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_takes_anothers_address_keeps_nobody_from_being_captured() -> Result<()> {
    let Some((guarded, thief)) = open_to_both().await? else {
        return Ok(());
    };
    let Guarded { agent, told, shop } = &guarded;
    let victim = shop.network.node(0).pod("victim")?;
    for family in Family::BOTH {
        let address = victim.addresses().ip(family);
        thief.inside().ip(&format!("addr add {address} dev lo"))?;
    }
    let before = tables(&thief)?;
    told.set_on(NODE, pod(&victim));
    told.enforced(NODE).await;
    agent.captures(4).await;
    ensure!(tables(&victim)?.contains("weir"), "{}", tables(&victim)?);
    ensure!(tables(&thief)? == before, "{}", tables(&thief)?);
    is_captured(&guarded, &victim).await?;
    is_captured(&guarded, &shop.caller).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_calls_the_ports_of_the_proxy_is_refused() -> Result<()> {
    let Some((guarded, attacker)) = open_to_both().await? else {
        return Ok(());
    };
    let shop = &guarded.shop;
    let before = answers(&guarded).await?;
    for port in CAPTURE_PORTS {
        let mut places = vec![
            SocketAddr::from(([127, 0, 0, 1], port)),
            SocketAddr::from((Ipv6Addr::LOCALHOST, port)),
        ];
        for family in Family::BOTH {
            for pod in [&attacker, &shop.near.pod, &shop.caller] {
                places.push(pod.addresses().port(family, port));
            }
        }
        for place in places {
            let answer = attacker.inside().connect(place)?.and_then(|io| {
                let request = format!("GET / HTTP/1.1\r\nhost: {}\r\n\r\n", far(&guarded));
                send(io, &request)
            });
            match answer {
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset
                    ) => {}
                other => bail!("{place}: {other:?}"),
            }
        }
    }
    ensure!(answers(&guarded).await? == before, "one was passed on");
    is_captured(&guarded, &shop.caller).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_request_says_it_goes_where_it_was_sent() -> Result<()> {
    let Some((guarded, attacker)) = open_to_both().await? else {
        return Ok(());
    };
    let shop = &guarded.shop;
    let near = shop.services.near.addresses().port(Family::V4, PORTS[0].0);
    let wanted = format!("far {} {}", PORTS[0].1, attacker.addresses().ip(Family::V4));
    for head in [
        format!("GET / HTTP/1.1\r\nhost: {near}\r\n"),
        "GET / HTTP/1.1\r\nhost: near.shop.svc.cluster.local\r\n".to_owned(),
        format!("GET http://{near}/ HTTP/1.1\r\nhost: {near}\r\n"),
        format!("GET / HTTP/1.1\r\nhost: weir.test\r\nforwarded: host={near}\r\n"),
        "GET / HTTP/1.1\r\nhost: weir.test\r\nx-weir-destination: shop/near\r\n\
         x-weir-caller: shop/caller\r\nx-weir-attempt: 7\r\nproxy-status: weir; error=x\r\n"
            .to_owned(),
    ] {
        let io = attacker.inside().connect(far(&guarded))??;
        let answer = send(io, &format!("{head}connection: close\r\n\r\n"))?;
        ensure!(
            answer.starts_with("HTTP/1.1 200") && answer.contains(&wanted),
            "{head}{answer}"
        );
    }
    is_captured(&guarded, &shop.caller).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_marks_its_packets_as_the_proxy_does_goes_past_its_own_policy_only() -> Result<()>
{
    let Some((guarded, attacker)) = open_to_both().await? else {
        return Ok(());
    };
    let request = "GET / HTTP/1.1\r\nhost: weir.test\r\nconnection: close\r\n\r\n";
    for mark in [OURS, REPLY] {
        let before = answers(&guarded).await?;
        let marked = attacker.inside().enter(|| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            socket.set_mark(mark)?;
            let connected = socket.connect_timeout(&far(&guarded).into(), PATIENCE);
            Ok(connected.map(|()| TcpStream::from(socket)))
        })?;
        let answer = marked.and_then(|io| send(io, request));
        // What the other mark does is for the pod itself to bear.
        if mark == OURS {
            let answer = answer?;
            ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            ensure!(answers(&guarded).await? == before, "it was captured");
        }
        is_captured(&guarded, &guarded.shop.caller).await?;
        is_captured(&guarded, &attacker).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_connections_from_one_pod_keeps_no_other_from_calling() -> Result<()> {
    let Some((guarded, attacker)) = open_to_both().await? else {
        return Ok(());
    };
    let at = far(&guarded);
    let flood = attacker.inside().enter(|| {
        let opened = (0..FLOOD).map(|_| TcpStream::connect(at));
        Ok(opened.collect::<io::Result<Vec<_>>>()?)
    })?;
    for _ in 0..10 {
        is_captured(&guarded, &guarded.shop.caller).await?;
    }
    let open = guarded.agent.metric("weir_connections", "").await?;
    println!("{} connections, of which {open} are open", flood.len());
    drop(flood);
    eventually("connections that have ended", || async {
        match guarded.agent.metric("weir_connections", "").await {
            Ok(0) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    is_captured(&guarded, &guarded.shop.caller).await
}
