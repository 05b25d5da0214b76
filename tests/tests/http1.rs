//! HTTP/1.1 as real callers and destinations speak it.

use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Frame;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use weir_tests::backend::never;
use weir_tests::call::{self, Caller};
use weir_tests::{Backend, House, Reply, eventually};

/// Sections that act on every request.
const ALL: &str = "  timeouts: {request: 20s}\n  retries: {}\n  circuitBreaker: {}\n  bulkheads: [{name: a, at: Caller, maxConcurrent: 100}]\n  loadShedding: {concurrency: {max: 100}}";

/// A destination that reads one request and answers with these bytes, then
/// closes when told to.
async fn scripted(answer: &'static [u8], close: bool) -> Result<std::net::SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((mut io, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut data = vec![0; 65536];
                while io.read(&mut data).await.is_ok_and(|n| n > 0) {
                    if io.write_all(answer).await.is_err() || close {
                        return;
                    }
                }
            });
        }
    });
    Ok(address)
}

#[tokio::test]
async fn a_connection_serves_many_requests_and_so_does_the_one_behind_it() -> Result<()> {
    let backend = Backend::with(|seen| async move { Reply::text(200, &seen.target) }).await;
    let house = House::payments(&[backend.address()], ALL).await?;
    let mut caller = Caller::h1(house.listener("payments").await).await?;
    for n in 0..50 {
        let got = caller
            .send(call::request("GET", &format!("/{n}?q={n}"), "")?)
            .await?;
        assert_eq!((got.status, got.text()), (200, format!("/{n}?q={n}")));
    }
    assert_eq!(backend.connections(), 1);
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() -> Result<()> {
    let backend =
        Backend::with(|seen| async move { Reply::text(200, &format!("[{}]", seen.target)) }).await;
    let house = House::payments(&[backend.address()], ALL).await?;
    let three = b"GET /1 HTTP/1.1\r\nhost: a\r\n\r\nPOST /2 HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabcGET /3 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    let all = call::raw(house.listener("payments").await, three).await?;
    let places: Vec<_> = ["[/1]", "[/2]", "[/3]"]
        .iter()
        .map(|p| all.find(p))
        .collect();
    assert!(
        places.iter().all(Option::is_some) && places.is_sorted(),
        "{all}"
    );
    assert_eq!(backend.seen()[1].body, "abc");
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn a_chunked_upload_with_trailers_arrives_whole() -> Result<()> {
    let backend = Backend::with(|seen| async move {
        let sum = seen
            .trailers
            .as_ref()
            .and_then(|t| t.get("x-sum"))
            .map(|v| v.to_str().unwrap_or("").to_owned());
        Reply::text(
            200,
            &format!(
                "{} {}",
                String::from_utf8_lossy(&seen.body),
                sum.unwrap_or_default()
            ),
        )
    })
    .await;
    let house = House::payments(&[backend.address()], ALL).await?;
    let upload = b"PUT / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\nconnection: close\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\nx-sum: 42\r\n\r\n";
    let all = call::raw(house.listener("payments").await, upload).await?;
    assert!(all.contains("hello world 42"), "{all}");
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn a_streamed_answer_arrives_piece_by_piece_with_its_trailers() -> Result<()> {
    let backend = Backend::with(|_| async { Reply::status(500) }).await;
    let (send, receive) = tokio::sync::oneshot::channel();
    let once = std::sync::Mutex::new(Some(send));
    backend.now(move |_| {
        let (reply, frames) = Reply::streamed(200);
        if let Some(send) = once.lock().ok().and_then(|mut s| s.take()) {
            let _ = send.send(frames);
        }
        async move { reply.with("trailer", "x-sum") }
    });
    let house = House::payments(&[backend.address()], ALL).await?;
    let mut caller = Caller::h1(house.listener("payments").await).await?;
    let mut request = call::request("GET", "/", "")?;
    request.headers_mut().insert("te", "trailers".parse()?);
    let mut body = caller.begin(request).await?.into_body();
    let frames = receive.await?;
    for piece in ["one", "two", "three"] {
        frames.send(Frame::data(Bytes::from(piece))).await?;
        let frame = body
            .frame()
            .await
            .transpose()?
            .and_then(|f| f.into_data().ok());
        assert_eq!(
            frame.as_deref(),
            Some(piece.as_bytes()),
            "each piece before the next is sent"
        );
    }
    drop(frames);
    assert!(body.frame().await.is_none());
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn trailers_of_an_answer_reach_the_caller() -> Result<()> {
    let answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n3\r\nabc\r\n0\r\nx-sum: 7\r\n\r\n";
    let house = House::payments(&[scripted(answer, false).await?], ALL).await?;
    let all = call::raw(
        house.listener("payments").await,
        b"GET / HTTP/1.1\r\nhost: a\r\nte: trailers\r\nconnection: close\r\n\r\n",
    )
    .await?;
    assert!(all.ends_with("3\r\nabc\r\n0\r\nx-sum: 7\r\n\r\n"), "{all}");
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn an_early_answer_reaches_a_caller_that_is_still_sending() -> Result<()> {
    let answer = b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 3\r\n\r\nno!";
    let house = House::payments(
        &[scripted(answer, false).await?],
        "  timeouts: {request: 20s}",
    )
    .await?;
    let mut io = TcpStream::connect(house.listener("payments").await).await?;
    io.write_all(b"PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\nbeginning")
        .await?;
    let mut data = vec![0; 4096];
    let n = io.read(&mut data).await?;
    let text = String::from_utf8_lossy(&data[..n]).into_owned();
    assert!(
        text.starts_with("HTTP/1.1 413") && text.ends_with("no!"),
        "{text}"
    );
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn a_response_without_length_ends_with_its_connection() -> Result<()> {
    let house = House::payments(
        &[scripted(b"HTTP/1.1 200 OK\r\n\r\nall of it", true).await?],
        ALL,
    )
    .await?;
    let all = call::raw(
        house.listener("payments").await,
        b"GET / HTTP/1.1\r\nhost: a\r\n\r\n",
    )
    .await?;
    assert!(
        all.contains("connection: close") && all.ends_with("all of it"),
        "{all}"
    );
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn an_old_caller_is_served_and_its_connection_closed() -> Result<()> {
    let backend = Backend::with(|_| async { Reply::text(200, "fine") }).await;
    let house = House::payments(&[backend.address()], ALL).await?;
    let all = call::raw(house.listener("payments").await, b"GET / HTTP/1.0\r\n\r\n").await?;
    assert!(
        all.starts_with("HTTP/1.1 200") && all.ends_with("fine"),
        "{all}"
    );
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn a_head_answer_has_a_length_and_no_body() -> Result<()> {
    let backend = Backend::with(|_| async { Reply::text(200, "twelve bytes") }).await;
    let house = House::payments(&[backend.address()], ALL).await?;
    let mut caller = Caller::h1(house.listener("payments").await).await?;
    for _ in 0..3 {
        let got = caller.send(call::request("HEAD", "/", "")?).await?;
        assert_eq!(
            (got.status, got.header("content-length"), got.body.len()),
            (200, "12", 0)
        );
    }
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn interim_answers_pass_and_expect_is_left_to_the_destination() -> Result<()> {
    let backend =
        Backend::with(|seen| async move { Reply::text(200, &seen.body.len().to_string()) }).await;
    let house = House::payments(&[backend.address()], ALL).await?;
    let mut io = TcpStream::connect(house.listener("payments").await).await?;
    io.write_all(b"PUT / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 5\r\nconnection: close\r\n\r\n").await?;
    let mut data = vec![0; 4096];
    let n = io.read(&mut data).await?;
    let first = String::from_utf8_lossy(&data[..n]).into_owned();
    assert!(first.starts_with("HTTP/1.1 100 "), "{first}");
    io.write_all(b"hello").await?;
    let mut rest = String::new();
    io.read_to_string(&mut rest).await?;
    assert!(
        rest.starts_with("HTTP/1.1 200") && rest.ends_with('5'),
        "{rest}"
    );
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn a_websocket_like_upgrade_becomes_a_tunnel() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((mut io, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut data = vec![0; 4096];
                let n = io.read(&mut data).await.unwrap_or(0);
                let head = String::from_utf8_lossy(&data[..n]).to_ascii_lowercase();
                assert!(
                    head.contains("connection: upgrade") && head.contains("upgrade: echo"),
                    "{head}"
                );
                let _ = io.write_all(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: echo\r\nconnection: upgrade\r\n\r\n").await;
                while let Ok(n) = io.read(&mut data).await {
                    if n == 0 || io.write_all(&data[..n]).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    let house = House::payments(&[address], ALL).await?;
    let mut io = TcpStream::connect(house.listener("payments").await).await?;
    io.write_all(b"GET /chat HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n")
        .await?;
    let mut data = vec![0; 4096];
    let n = io.read(&mut data).await?;
    assert!(String::from_utf8_lossy(&data[..n]).starts_with("HTTP/1.1 101"));
    for word in ["hello", "again"] {
        io.write_all(word.as_bytes()).await?;
        let n = io.read(&mut data).await?;
        assert_eq!(&data[..n], word.as_bytes());
    }
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn a_request_that_can_be_read_in_two_ways_never_reaches_the_destination() -> Result<()> {
    let backend = Backend::always(200).await;
    let house = House::payments(&[backend.address()], ALL).await?;
    let payments = house.listener("payments").await;
    for bad in [
        &b"GET / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!"[..],
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nx: 1\r\n folded\r\n\r\n",
        b"GET / HTTP/1.1\nhost: a\n\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n",
    ] {
        let all = call::raw(payments, bad).await?;
        assert!(all.starts_with("HTTP/1.1 400") || all.starts_with("HTTP/1.1 501"), "{all}");
        assert!(all.contains("connection: close"), "{all}");
    }
    assert_eq!(backend.requests(), 0);
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_broken_off_for_the_caller_too() -> Result<()> {
    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nonly this";
    let house = House::payments(&[scripted(answer, true).await?], ALL).await?;
    let got = call::get(house.listener("payments").await, "/").await;
    assert!(got.is_err(), "a caller must be able to tell: {got:?}");
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn a_body_that_ends_with_its_connection_does_not_look_whole_when_it_was_cut() -> Result<()> {
    let answer = b"HTTP/1.1 200 OK\r\n\r\nthe beginning";
    let house = House::payments(
        &[scripted(answer, false).await?],
        "  timeouts: {request: 500ms}",
    )
    .await?;
    let mut io = TcpStream::connect(house.listener("payments").await).await?;
    io.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await?;
    let mut all = Vec::new();
    let end = io.read_to_end(&mut all).await;
    assert!(
        end.is_err(),
        "reset, not ended: {}",
        String::from_utf8_lossy(&all)
    );
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn what_is_no_http_is_a_502_with_a_reason() -> Result<()> {
    let house = House::payments(
        &[scripted(b"220 mail.example ESMTP\r\n", true).await?],
        "  timeouts: {request: 5s}",
    )
    .await?;
    let got = call::get(house.listener("payments").await, "/").await?;
    assert_eq!(got.status, 502);
    assert!(
        got.header("proxy-status")
            .contains("error=http_protocol_error"),
        "{got:?}"
    );
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn the_explicit_proxy_finds_services_by_every_name_they_have() -> Result<()> {
    let backend = Backend::with(|seen| async move { Reply::text(200, &seen.target) }).await;
    let house = House::payments(&[backend.address()], ALL).await?;
    let proxy = house.proxy()?;
    for name in [
        "payments",
        "payments.shop",
        "payments.shop.svc",
        "payments.shop.svc.cluster.local",
        "PAYMENTS.shop:80",
    ] {
        let request =
            format!("GET http://{name}/a?b HTTP/1.1\r\nhost: {name}\r\nconnection: close\r\n\r\n");
        let all = call::raw(proxy, request.as_bytes()).await?;
        assert!(
            all.starts_with("HTTP/1.1 200") && all.ends_with("/a?b"),
            "{name}: {all}"
        );
        let by_host = format!("GET /a?b HTTP/1.1\r\nhost: {name}\r\nconnection: close\r\n\r\n");
        assert!(
            call::raw(proxy, by_host.as_bytes())
                .await?
                .starts_with("HTTP/1.1 200"),
            "{name}"
        );
    }
    let unknown = call::raw(
        proxy,
        b"GET http://nobody.shop/ HTTP/1.1\r\nhost: nobody.shop\r\nconnection: close\r\n\r\n",
    )
    .await?;
    assert!(
        unknown.contains("no service called nobody.shop; there are payments.shop"),
        "{unknown}"
    );
    let port = call::raw(
        proxy,
        b"GET http://payments:81/ HTTP/1.1\r\nhost: payments:81\r\nconnection: close\r\n\r\n",
    )
    .await?;
    assert!(port.contains("its ports are 80"), "{port}");
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn a_listener_belongs_to_its_service_whatever_host_the_caller_writes() -> Result<()> {
    let backend = Backend::with(|seen| async move {
        Reply::text(
            200,
            seen.headers
                .get("host")
                .and_then(|h| h.to_str().ok())
                .unwrap_or(""),
        )
    })
    .await;
    let house = House::payments(&[backend.address()], ALL).await?;
    let request = b"GET / HTTP/1.1\r\nhost: somebody.else\r\nconnection: close\r\n\r\n";
    let all = call::raw(house.listener("payments").await, request).await?;
    assert!(
        all.starts_with("HTTP/1.1 200") && all.ends_with("somebody.else"),
        "{all}"
    );
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn draining_loses_no_request_and_tells_callers_to_go_elsewhere() -> Result<()> {
    let backend = Backend::with(|_| async {
        tokio::time::sleep(Duration::from_millis(30)).await;
        Reply::status(200)
    })
    .await;
    let house = House::payments(&[backend.address()], ALL).await?;
    let payments = house.listener("payments").await;
    // Callers that send one request after the other until they are told to stop.
    let callers: Vec<_> = (0..8)
        .map(|_| {
            tokio::spawn(async move {
                let mut caller = Caller::h1(payments).await?;
                let mut served = 0;
                loop {
                    let got = caller.send(call::request("GET", "/", "")?).await?;
                    anyhow::ensure!(got.status == 200, "{got:?}");
                    served += 1;
                    if got.header("connection") == "close" {
                        return Ok::<u64, anyhow::Error>(served);
                    }
                }
            })
        })
        .collect();
    eventually("traffic", || async {
        if backend.requests() > 50 {
            Ok(())
        } else {
            Err(backend.requests())
        }
    })
    .await;
    house.shutdown().await;
    let mut served = 0;
    for caller in callers {
        served += caller.await??;
    }
    assert_eq!(
        served,
        backend.requests(),
        "every request that was sent was answered"
    );
    Ok(())
}

#[tokio::test]
async fn a_stream_of_events_outlives_the_request_timeout() -> Result<()> {
    let backend = Backend::with(|_| never()).await;
    let (send, receive) = tokio::sync::oneshot::channel();
    let once = std::sync::Mutex::new(Some(send));
    backend.now(move |_| {
        let (reply, frames) = Reply::streamed(200);
        if let Some(send) = once.lock().ok().and_then(|mut s| s.take()) {
            let _ = send.send(frames);
        }
        async move { reply.with("content-type", "text/event-stream") }
    });
    let house = House::payments(
        &[backend.address()],
        "  timeouts: {request: 200ms, perTry: 100ms}",
    )
    .await?;
    let mut caller = Caller::h1(house.listener("payments").await).await?;
    let mut body = caller
        .begin(call::request("GET", "/", "")?)
        .await?
        .into_body();
    let frames = receive.await?;
    for n in 0..4 {
        tokio::time::sleep(Duration::from_millis(90)).await;
        frames
            .send(Frame::data(Bytes::from(format!("data: {n}\n\n"))))
            .await?;
        assert!(body.frame().await.transpose()?.is_some(), "event {n}");
    }
    house.shutdown().await;
    Ok(())
}
