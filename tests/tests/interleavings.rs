//! HTTP/1.1 where bytes come early, late or in part.

use std::net::SocketAddr;

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use weir_tests::call;
use weir_tests::{Backend, House, Reply, eventually};

/// Reads until `end` is there; what was read. Fails when the other side closes
/// before.
async fn read_until(io: &mut TcpStream, end: &str) -> Result<String> {
    let mut all = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let seen = String::from_utf8_lossy(&all).into_owned();
        if seen.contains(end) {
            return Ok(seen);
        }
        let n = io.read(&mut piece).await?;
        anyhow::ensure!(n > 0, "closed after {seen:?}");
        all.extend_from_slice(&piece[..n]);
    }
}

/// A destination whose connections a test plays by hand.
async fn by_hand() -> Result<(SocketAddr, mpsc::Receiver<TcpStream>)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let (send, receive) = mpsc::channel(16);
    tokio::spawn(async move {
        while let Ok((io, _)) = listener.accept().await {
            if send.send(io).await.is_err() {
                return;
            }
        }
    });
    Ok((address, receive))
}

#[tokio::test]
async fn a_body_that_comes_while_its_request_waits_for_a_place_goes_on() -> Result<()> {
    let (leave, left) = oneshot::channel::<()>();
    let left = std::sync::Mutex::new(Some(left));
    let backend = Backend::with(move |seen| {
        let first = left.lock().ok().and_then(|mut l| l.take());
        async move {
            if let Some(first) = first {
                let _ = first.await;
            }
            Reply::text(200, &format!("[{}]", String::from_utf8_lossy(&seen.body)))
        }
    })
    .await;
    let house = House::payments(
        &[backend.address()],
        "  bulkheads: [{name: a, at: Caller, maxConcurrent: 1, maxQueue: 1, maxWait: 30s}]",
    )
    .await?;
    let address = house.listener("payments").await;
    let first = tokio::spawn(async move { call::get(address, "/").await });
    eventually("the first to be there", || async {
        (backend.requests() == 1).then_some(()).ok_or(())
    })
    .await;
    let mut second = TcpStream::connect(address).await?;
    second
        .write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\nconnection: close\r\n\r\n")
        .await?;
    let waiting = || house.metric("weir_bulkhead_waiting", &[]);
    eventually("the second to wait", || async {
        match waiting().await {
            Ok(1.0) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    second.write_all(b"hello").await?;
    // A request on the same worker behind it: what was sent before is read.
    let other = call::get(house.proxy()?, "/").await?;
    assert_eq!(other.status, 502);
    let _ = leave.send(());
    assert_eq!(first.await??.status, 200);
    let answer = tokio::time::timeout(
        std::time::Duration::from_secs(10),
        read_until(&mut second, "[hello]"),
    )
    .await;
    assert!(matches!(answer, Ok(Ok(_))), "{answer:?}");
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn an_answer_before_the_whole_body_was_sent_anew_leaves_no_half_request_behind() -> Result<()>
{
    const SIZE: usize = 15 * 1024 * 1024;
    let (address, mut connections) = by_hand().await?;
    let house = House::payments(
        &[address],
        "  retries: {attempts: 1, maxBufferedBody: 16Mi}",
    )
    .await?;
    let listener = house.listener("payments").await;
    let caller = tokio::spawn(async move {
        let mut io = TcpStream::connect(listener).await?;
        let head = format!("PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: {SIZE}\r\n\r\n");
        io.write_all(head.as_bytes()).await?;
        io.write_all(&vec![b'x'; SIZE]).await?;
        read_until(&mut io, "early")
            .await
            .map(|answer| (answer, io))
    });
    // The first try is read whole and refused.
    let mut first = connections.recv().await.expect("a connection");
    let mut left = SIZE;
    let head = read_until(&mut first, "\r\n\r\n").await?;
    left -= head.split("\r\n\r\n").nth(1).unwrap_or_default().len();
    let mut piece = vec![0; 65536];
    while left > 0 {
        let n = first.read(&mut piece).await?;
        anyhow::ensure!(n > 0, "the first try broke off");
        left -= n;
    }
    first
        .write_all(b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        .await?;
    drop(first);
    // The second is answered on its head alone.
    let mut second = connections.recv().await.expect("a connection");
    read_until(&mut second, "\r\n\r\n").await?;
    second
        .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nearly")
        .await?;
    let (answer, _caller) = caller.await??;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    // The next request must not be sent where the destination expects a body.
    let next = tokio::spawn(async move { call::get(listener, "/next").await });
    let mut third = connections.recv().await.expect("a connection of its own");
    let head = read_until(&mut third, "\r\n\r\n").await?;
    assert!(head.starts_with("GET /next "), "{head}");
    third
        .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nnext")
        .await?;
    assert_eq!(next.await??.text(), "next");
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn a_refused_request_after_empty_lines_is_answered_once() -> Result<()> {
    let house = House::payments(&[], "").await?;
    let all = call::raw(
        house.proxy()?,
        b"\r\n\r\nGET /1 HTTP/1.1\r\nhost: a\r\n\r\nGET /2 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
    )
    .await?;
    assert_eq!(all.matches("HTTP/1.1 502").count(), 2, "{all}");
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn a_caller_that_stops_sending_is_not_the_destinations_failure() -> Result<()> {
    let (address, mut connections) = by_hand().await?;
    let house = House::payments(
        &[address],
        "  timeouts: {request: 100ms}\n  circuitBreaker: {consecutiveFailures: 1}",
    )
    .await?;
    let mut caller = TcpStream::connect(house.listener("payments").await).await?;
    caller
        .write_all(b"PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nhalf")
        .await?;
    let _endpoint = connections.recv().await.expect("a connection");
    let answer = read_until(&mut caller, "\r\n\r\n").await?;
    assert!(answer.starts_with("HTTP/1.1 504"), "{answer}");
    let open = house
        .metric("weir_circuit_breaker_state", &["state=\"Closed\""])
        .await?;
    assert_eq!(open, 1.0, "{}", house.metrics().await?);
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn who_connects_while_the_agent_drains_is_answered() -> Result<()> {
    let backend = Backend::always(200).await;
    let house = House::payments(&[backend.address()], "").await?;
    let listener = house.listener("payments").await;
    // Connected before, and silent.
    let mut early = TcpStream::connect(listener).await?;
    call::get(listener, "/").await?;
    let ending = tokio::spawn(house.shutdown());
    let mut answered = 0;
    while let Ok(mut io) = TcpStream::connect(listener).await {
        let request = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";
        if io.write_all(request).await.is_err() {
            break;
        }
        match read_until(&mut io, "\r\n\r\n").await {
            Ok(answer) => assert!(answer.starts_with("HTTP/1.1 200"), "{answer}"),
            // Still in the listener's queue when that was closed.
            Err(error) if error.is::<std::io::Error>() => break,
            Err(error) => return Err(error.context(format!("after {answered} answers"))),
        }
        answered += 1;
        if answered == 20 {
            break;
        }
    }
    let mut rest = Vec::new();
    early.read_to_end(&mut rest).await?;
    ending.await?;
    assert_eq!(answered, 20);
    Ok(())
}
