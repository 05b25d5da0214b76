//! Connections that are passed through as bytes, declared so or found to be so,
//! between real sockets.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use weir_tests::{Backend, House, Manifests, Reply, eventually};

/// Sections that act on every connection, none of them soon.
const ALL: &str = "  timeouts: {request: 20s}\n  retries: {}\n  circuitBreaker: {}\n  bulkheads: [{name: a, at: Caller, maxConcurrent: 100}, {name: b, at: Destination, maxConcurrent: 100}]\n  loadShedding: {concurrency: {max: 100}}";

/// A house whose service says that its port is TCP.
async fn declared(endpoints: &[SocketAddr], spec: &str) -> Result<House> {
    let manifests = Manifests::new()?;
    manifests.service_with("payments", endpoints, "appProtocol: example.com/ledger")?;
    start(manifests, spec).await
}

/// A house whose service does not say what its port speaks.
async fn undeclared(endpoints: &[SocketAddr], spec: &str) -> Result<House> {
    let manifests = Manifests::new()?;
    let file = manifests.path().join("service-payments.yaml");
    manifests.service("payments", endpoints)?;
    let text = std::fs::read_to_string(&file)?;
    std::fs::write(&file, text.replace("name: http", "name: main"))?;
    start(manifests, spec).await
}

async fn start(manifests: Manifests, spec: &str) -> Result<House> {
    manifests.policy("payments", spec)?;
    let house = House::start(manifests).await?;
    house.condition("payments", "Accepted", "True").await;
    Ok(house)
}

/// An endpoint whose connections the test holds.
struct Endpoint {
    address: SocketAddr,
    accepted: mpsc::UnboundedReceiver<TcpStream>,
}

impl Endpoint {
    async fn listen() -> Result<Endpoint> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (send, accepted) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((io, _)) = listener.accept().await {
                if send.send(io).is_err() {
                    return;
                }
            }
        });
        Ok(Endpoint { address, accepted })
    }

    async fn accept(&mut self) -> Result<TcpStream> {
        self.accepted.recv().await.context("it listens")
    }
}

/// An address at which nobody listens.
async fn nobody() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0").await?.local_addr()?)
}

async fn connect(house: &House) -> Result<TcpStream> {
    Ok(TcpStream::connect(house.listener("payments").await).await?)
}

async fn read(io: &mut TcpStream, length: usize) -> Result<Vec<u8>> {
    let mut data = vec![0; length];
    io.read_exact(&mut data).await?;
    Ok(data)
}

/// Whether it ends with a reset. What comes before is thrown away.
async fn is_reset(io: &mut TcpStream) -> bool {
    let mut data = [0; 4096];
    loop {
        match io.read(&mut data).await {
            Ok(0) => return false,
            Ok(_) => {}
            Err(error) => return error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}

/// Whether a new connection is reset, be it before it is known to be there.
async fn is_refused(house: &House) -> bool {
    match TcpStream::connect(house.listener("payments").await).await {
        Ok(mut io) => is_reset(&mut io).await,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

fn reset(io: TcpStream) -> Result<()> {
    io.set_zero_linger()?;
    drop(io);
    Ok(())
}

/// Waits until nobody holds a place any more.
async fn all_is_given_back(house: &House) {
    eventually("every place to be given back", || async {
        match house.metric("weir_bulkhead_in_use", &[]).await {
            Ok(0.0) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

async fn count(house: &House, family: &str, labels: &[&str], wanted: f64) {
    eventually(&format!("{family} {labels:?} to be {wanted}"), || async {
        match house.metric(family, labels).await {
            Ok(n) if n == wanted => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

#[tokio::test]
async fn bytes_pass_both_ways_and_either_side_may_end_first() -> Result<()> {
    let mut endpoint = Endpoint::listen().await?;
    let house = declared(&[endpoint.address], ALL).await?;
    for caller_first in [true, false] {
        let mut caller = connect(&house).await?;
        let mut callee = endpoint.accept().await?;
        caller.write_all(b"\x00question").await?;
        assert_eq!(read(&mut callee, 9).await?, b"\x00question");
        callee.write_all(b"answer").await?;
        assert_eq!(read(&mut caller, 6).await?, b"answer");
        assert!(house.metric("weir_bulkhead_in_use", &[]).await? > 0.0);
        let (first, second) = match caller_first {
            true => (&mut caller, &mut callee),
            false => (&mut callee, &mut caller),
        };
        first.shutdown().await?;
        let mut rest = Vec::new();
        second.read_to_end(&mut rest).await?;
        assert!(rest.is_empty());
        // The other direction is still open.
        second.write_all(b"late words").await?;
        second.shutdown().await?;
        first.read_to_end(&mut rest).await?;
        assert_eq!(rest, b"late words");
    }
    let complete = ["end=\"complete\""];
    count(&house, "weir_tcp_connections_total", &complete, 2.0).await;
    all_is_given_back(&house).await;
    assert_eq!(
        house
            .metric("weir_request_duration_seconds_count", &[])
            .await?,
        0.0
    );
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn a_server_that_speaks_first_is_heard_where_nobody_said_what_is_spoken() -> Result<()> {
    let mut endpoint = Endpoint::listen().await?;
    let house = undeclared(&[endpoint.address], ALL).await?;
    let mut caller = connect(&house).await?;
    let mut callee = endpoint.accept().await?;
    callee.write_all(b"220 ready\r\n").await?;
    assert_eq!(read(&mut caller, 11).await?, b"220 ready\r\n");
    // From then on it is passed through, whatever it looks like.
    caller.write_all(b"GET / HTTP/1.1\r\n").await?;
    assert_eq!(read(&mut callee, 16).await?, b"GET / HTTP/1.1\r\n");
    drop(caller);
    drop(callee);
    all_is_given_back(&house).await;
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn a_caller_of_http_that_pauses_first_still_has_its_policy() -> Result<()> {
    for version in [1, 2] {
        let tries = Arc::new(AtomicU32::new(0));
        let seen = tries.clone();
        let backend = Backend::with(move |_| {
            let first = seen.fetch_add(1, Relaxed) == 0;
            async move { Reply::status(if first { 503 } else { 200 }) }
        })
        .await;
        let house = undeclared(&[backend.address()], ALL).await?;
        let (near, far) = tokio::io::duplex(64 * 1024);
        let mut caller = connect(&house).await?;
        // It is silent until Weir has connected to give the endpoint the first word.
        count(&house, "weir_upstream_connections_total", &[], 1.0).await;
        tokio::spawn(async move {
            let mut near = near;
            tokio::io::copy_bidirectional(&mut caller, &mut near).await
        });
        let status = over(far, version).await?;
        assert_eq!((status, tries.load(Relaxed)), (200, 2));
        all_is_given_back(&house).await;
        house.shutdown().await;
    }
    Ok(())
}

/// One request over a stream that is there already; the status.
async fn over(io: tokio::io::DuplexStream, version: u8) -> Result<u16> {
    use http_body_util::Empty;
    use hyper_util::rt::{TokioExecutor, TokioIo};
    let body = Empty::<bytes::Bytes>::new();
    let request = http::Request::get("http://payments.shop/").header("host", "payments.shop");
    let request = request.body(body)?;
    if version == 2 {
        let (mut send, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(io)).await?;
        tokio::spawn(connection);
        return Ok(send.send_request(request).await?.status().as_u16());
    }
    let (mut send, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io)).await?;
    tokio::spawn(connection);
    Ok(send.send_request(request).await?.status().as_u16())
}

#[tokio::test]
async fn a_caller_of_http_is_told_why_also_when_it_pauses_and_nobody_listens() -> Result<()> {
    let house = undeclared(&[nobody().await?], "  timeouts: {}").await?;
    let mut caller = connect(&house).await?;
    count(&house, "weir_answers_total", &["connect_failed"], 1.0).await;
    caller
        .write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        .await?;
    let mut answer = String::new();
    caller.read_to_string(&mut answer).await?;
    assert!(answer.starts_with("HTTP/1.1 502"), "{answer}");
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn what_is_not_http_passes_untouched_where_nobody_said_what_is_spoken() -> Result<()> {
    let mut endpoint = Endpoint::listen().await?;
    let house = undeclared(&[endpoint.address], ALL).await?;
    for first in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc"[..],
        b"*1\r\n$4\r\nPING\r\n",
        b"SET a b\r\n",
    ] {
        let mut caller = connect(&house).await?;
        caller.write_all(first).await?;
        let mut callee = endpoint.accept().await?;
        assert_eq!(read(&mut callee, first.len()).await?, first);
    }
    // It could become HTTP, but does not.
    let mut caller = connect(&house).await?;
    caller.write_all(b"HELLO").await?;
    let mut callee = endpoint.accept().await?;
    assert_eq!(read(&mut callee, 5).await?, b"HELLO");
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn an_end_without_a_word_is_passed_on() -> Result<()> {
    let mut endpoint = Endpoint::listen().await?;
    let house = undeclared(&[endpoint.address], ALL).await?;
    let mut caller = connect(&house).await?;
    caller.shutdown().await?;
    let mut callee = endpoint.accept().await?;
    assert_eq!(callee.read(&mut [0; 1]).await?, 0);
    callee.write_all(b"14:03:07").await?;
    drop(callee);
    let mut all = Vec::new();
    caller.read_to_end(&mut all).await?;
    assert_eq!(all, b"14:03:07");
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn a_port_that_is_said_to_be_http_is_never_passed_through() -> Result<()> {
    let mut endpoint = Endpoint::listen().await?;
    let house = House::payments(&[endpoint.address], ALL).await?;
    let mut caller = connect(&house).await?;
    caller
        .write_all(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n")
        .await?;
    let mut answer = String::new();
    caller.read_to_string(&mut answer).await?;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert!(endpoint.accepted.try_recv().is_err());
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn an_upgrade_passes_where_nobody_said_what_is_spoken() -> Result<()> {
    let mut endpoint = Endpoint::listen().await?;
    let house = undeclared(&[endpoint.address], ALL).await?;
    let mut caller = connect(&house).await?;
    caller
        .write_all(
            b"GET /chat HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
        )
        .await?;
    let mut callee = endpoint.accept().await?;
    let mut head = [0; 1024];
    let n = callee.read(&mut head).await?;
    assert!(String::from_utf8_lossy(&head[..n]).contains("upgrade: websocket"));
    callee
        .write_all(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n\x81\x02hi")
        .await?;
    let mut got = Vec::new();
    while !got.ends_with(b"\x81\x02hi") {
        ensure!(caller.read_buf(&mut got).await? > 0, "it goes on");
    }
    assert!(got.starts_with(b"HTTP/1.1 101"));
    caller.write_all(b"\x81\x82abcd").await?;
    assert_eq!(read(&mut callee, 6).await?, b"\x81\x82abcd");
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn a_connection_that_one_endpoint_does_not_take_goes_to_another() -> Result<()> {
    let mut endpoint = Endpoint::listen().await?;
    let endpoints = [nobody().await?, endpoint.address];
    let house = declared(&endpoints, ALL).await?;
    for _ in 0..10 {
        let mut caller = connect(&house).await?;
        let mut callee = endpoint.accept().await?;
        caller.write_all(b"here").await?;
        assert_eq!(read(&mut callee, 4).await?, b"here");
    }
    let retries = house.metric("weir_retries_total", &[]).await?;
    let failed = house
        .metric("weir_failed_tries_total", &["connect"])
        .await?;
    assert!(retries > 0.0 && retries == failed, "{retries} {failed}");
    all_is_given_back(&house).await;
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn what_is_refused_is_reset_and_an_open_breaker_refuses() -> Result<()> {
    let spec =
        "  circuitBreaker: {consecutiveFailures: 2, open: {duration: 60s, maxDuration: 60s}}";
    let mut endpoint = Endpoint::listen().await?;
    let house = declared(&[endpoint.address], spec).await?;
    // The endpoint resets what it has begun: that is its failure.
    for _ in 0..2 {
        let mut caller = connect(&house).await?;
        let mut callee = endpoint.accept().await?;
        callee.write_all(b"w").await?;
        assert_eq!(read(&mut caller, 1).await?, b"w");
        reset(callee)?;
        assert!(is_reset(&mut caller).await);
    }
    house.breaker_is("payments", "Open").await;
    assert!(is_refused(&house).await);
    assert!(endpoint.accepted.try_recv().is_err());
    count(&house, "weir_answers_total", &["breaker_open"], 1.0).await;
    count(
        &house,
        "weir_tcp_connections_total",
        &["end=\"reset\""],
        2.0,
    )
    .await;
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn a_connection_that_is_kept_closes_a_breaker_again() -> Result<()> {
    let spec = "  circuitBreaker: {consecutiveFailures: 1, open: {duration: 1s, jitterPercent: 0}, halfOpen: {probes: 1, rampUp: 0s}}";
    let mut endpoint = Endpoint::listen().await?;
    let house = declared(&[endpoint.address], spec).await?;
    let mut caller = connect(&house).await?;
    reset(endpoint.accept().await?)?;
    assert!(is_reset(&mut caller).await);
    house.breaker_is("payments", "Open").await;
    house.breaker_is("payments", "HalfOpen").await;
    // Neither side says anything.
    let _caller = connect(&house).await?;
    let _callee = endpoint.accept().await?;
    house.breaker_is("payments", "Closed").await;
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn a_place_is_held_as_long_as_the_connection() -> Result<()> {
    let spec = "  bulkheads: [{name: one, at: Caller, maxConcurrent: 1}]";
    let mut endpoint = Endpoint::listen().await?;
    let house = declared(&[endpoint.address], spec).await?;
    let first = connect(&house).await?;
    let _callee = endpoint.accept().await?;
    assert!(is_refused(&house).await);
    reset(first)?;
    all_is_given_back(&house).await;
    let _third = connect(&house).await?;
    endpoint.accept().await?;
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn a_callers_reset_reaches_the_endpoint_also_while_it_does_not_read() -> Result<()> {
    let mut endpoint = Endpoint::listen().await?;
    let house = declared(&[endpoint.address], ALL).await?;
    let caller = connect(&house).await?;
    let mut callee = endpoint.accept().await?;
    reset(caller)?;
    assert!(is_reset(&mut callee).await);

    let caller = connect(&house).await?;
    let callee = endpoint.accept().await?;
    // Until everything on the way is full.
    let data = vec![7; 64 * 1024];
    let full = Duration::from_millis(500);
    while tokio::time::timeout(full, caller.writable()).await.is_ok() {
        let _ = caller.try_write(&data);
    }
    reset(caller)?;
    callee.ready(Interest::ERROR).await?;
    let gone = "weir_cancelled_total";
    count(&house, gone, &[], 2.0).await;
    all_is_given_back(&house).await;
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn the_last_words_of_an_endpoint_arrive_although_it_resets_what_follows() -> Result<()> {
    let mut endpoint = Endpoint::listen().await?;
    let house = declared(&[endpoint.address], ALL).await?;
    let mut caller = connect(&house).await?;
    let mut callee = endpoint.accept().await?;
    callee.write_all(b"bye").await?;
    drop(callee);
    assert_eq!(read(&mut caller, 3).await?, b"bye");
    assert_eq!(caller.read(&mut [0; 1]).await?, 0);
    // As TLS does once the other side is done; nobody takes it any more.
    let _ = caller.write_all(b"bye to you").await;
    let complete = ["end=\"complete\""];
    let _ = caller.shutdown().await;
    count(&house, "weir_tcp_connections_total", &complete, 1.0).await;
    assert_eq!(house.metric("weir_failed_tries_total", &[]).await?, 0.0);
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn a_connection_on_which_nothing_is_said_is_reset_after_tcp_idle_and_not_before() -> Result<()>
{
    let spec = "  timeouts: {request: 100ms, idle: 1s, tcpIdle: 2s}";
    let mut endpoint = Endpoint::listen().await?;
    let house = declared(&[endpoint.address], spec).await?;
    let mut caller = connect(&house).await?;
    let mut callee = endpoint.accept().await?;
    assert!(is_reset(&mut caller).await);
    assert!(is_reset(&mut callee).await);
    count(&house, "weir_tcp_connections_total", &["end=\"idle\""], 1.0).await;
    count(&house, "weir_answers_total", &[], 0.0).await;
    house.shutdown().await;
    Ok(())
}

/// Memory of this process, in bytes.
fn resident() -> Result<usize> {
    let text = std::fs::read_to_string("/proc/self/status")?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|rest| rest.trim().strip_suffix(" kB"));
    Ok(kilobytes.context("VmRSS")?.trim().parse::<usize>()? * 1024)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_transfer_passes_both_ways_at_once_in_little_memory() -> Result<()> {
    const PIECE: usize = 64 * 1024;
    const PIECES: usize = 1024;
    /// What all the buffers of this test and of the agent may come to.
    const LITTLE: usize = 16 * 1024 * 1024;
    let mut endpoint = Endpoint::listen().await?;
    let house = declared(&[endpoint.address], ALL).await?;
    let caller = connect(&house).await?;
    let callee = endpoint.accept().await?;
    let before = resident()?;
    let send = |mut io: tokio::net::tcp::OwnedWriteHalf| async move {
        let mut piece = vec![0; PIECE];
        for n in 0..PIECES {
            piece.fill(n as u8);
            io.write_all(&piece).await?;
        }
        io.shutdown().await
    };
    let receive = |mut io: tokio::net::tcp::OwnedReadHalf| async move {
        let mut piece = vec![0; PIECE];
        for n in 0..PIECES {
            io.read_exact(&mut piece).await?;
            ensure!(piece.iter().all(|b| *b == n as u8), "piece {n} is whole");
        }
        ensure!(io.read(&mut piece).await? == 0, "and then it ends");
        anyhow::Ok(())
    };
    let ((caller_in, caller_out), (callee_in, callee_out)) =
        (caller.into_split(), callee.into_split());
    let sending = (
        tokio::spawn(send(caller_out)),
        tokio::spawn(send(callee_out)),
    );
    let receiving = (
        tokio::spawn(receive(caller_in)),
        tokio::spawn(receive(callee_in)),
    );
    receiving.0.await??;
    receiving.1.await??;
    sending.0.await??;
    sending.1.await??;
    let grown = resident()?.saturating_sub(before);
    assert!(grown < LITTLE, "{grown} bytes more");
    all_is_given_back(&house).await;
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn a_connection_goes_on_while_the_agent_drains() -> Result<()> {
    let mut endpoint = Endpoint::listen().await?;
    let house = declared(&[endpoint.address], ALL).await?;
    let mut caller = connect(&house).await?;
    let mut callee = endpoint.accept().await?;
    let mut idle = TcpStream::connect(house.proxy()?).await?;
    let ending = tokio::spawn(house.shutdown());
    // One that waits for a request ends as soon as the agent drains.
    assert_eq!(idle.read(&mut [0; 1]).await?, 0);
    caller.write_all(b"still here").await?;
    assert_eq!(read(&mut callee, 10).await?, b"still here");
    // Until the time is over: then the callers can tell that it was cut.
    assert!(is_reset(&mut caller).await);
    ending.await?;
    Ok(())
}

#[tokio::test]
async fn routes_are_not_for_connections_without_requests() -> Result<()> {
    let spec = "  bulkheads: [{name: rest, at: Caller, maxConcurrent: 100}]\n  routes: [{name: all, bulkheads: [{name: none, at: Caller, maxConcurrent: 1}]}]";
    let mut endpoint = Endpoint::listen().await?;
    let house = undeclared(&[endpoint.address], spec).await?;
    let mut kept = Vec::new();
    for _ in 0..3 {
        let mut caller = connect(&house).await?;
        caller.write_all(b"\x00").await?;
        kept.push((caller, endpoint.accept().await?));
    }
    assert_eq!(house.metric("weir_bulkhead_in_use", &["rest"]).await?, 3.0);
    house.shutdown().await;
    Ok(())
}
