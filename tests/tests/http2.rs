//! HTTP/2 and gRPC as real callers and destinations speak it.

use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, Full};
use hyper::body::Frame;
use weir_tests::call::{self, Caller};
use weir_tests::{Backend, House, Reply, eventually};

const ALL: &str = "  timeouts: {request: 20s}\n  retries: {}\n  circuitBreaker: {}\n  bulkheads: [{name: a, at: Caller, maxConcurrent: 100}]\n  loadShedding: {concurrency: {max: 100}}";

/// A gRPC answer: messages, then this status in the trailers.
fn grpc(messages: &[&str], status: u8) -> Reply {
    let mut frames: Vec<Result<Frame<Bytes>, std::convert::Infallible>> = messages
        .iter()
        .map(|text| {
            let mut data = vec![0];
            data.extend_from_slice(&(text.len() as u32).to_be_bytes());
            data.extend_from_slice(text.as_bytes());
            Ok(Frame::data(Bytes::from(data)))
        })
        .collect();
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", u16::from(status).into());
    frames.push(Ok(Frame::trailers(trailers)));
    let body = http_body_util::StreamBody::new(Frames(frames.into()));
    Reply::of(200, BodyExt::boxed(body)).with("content-type", "application/grpc")
}

struct Frames(std::collections::VecDeque<Result<Frame<Bytes>, std::convert::Infallible>>);

impl futures_core::Stream for Frames {
    type Item = Result<Frame<Bytes>, std::convert::Infallible>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        std::task::Poll::Ready(self.0.pop_front())
    }
}

fn grpc_request(path: &str) -> Result<Request<Full<Bytes>>> {
    let request = Request::builder()
        .method("POST")
        .uri(format!("http://payments.shop{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    Ok(request.body(Full::new(Bytes::from_static(&[0, 0, 0, 0, 1, b'x'])))?)
}

fn grpc_status(got: &call::Got) -> String {
    let in_trailers = got.trailers.as_ref().and_then(|t| t.get("grpc-status"));
    let status = in_trailers.or_else(|| got.headers.get("grpc-status"));
    status
        .and_then(|v| v.to_str().ok())
        .unwrap_or("none")
        .to_owned()
}

#[tokio::test]
async fn many_streams_share_one_connection_and_so_does_what_is_behind_it() -> Result<()> {
    let backend = Backend::with(|seen| async move {
        tokio::time::sleep(Duration::from_millis(5)).await;
        Reply::text(200, &format!("{} {}", seen.target, seen.body.len()))
    })
    .await;
    let house = House::payments(&[backend.address()], ALL).await?;
    let payments = house.listener("payments").await;
    let Caller::H2(send) = Caller::h2(payments).await? else {
        unreachable!("it speaks HTTP/2")
    };
    let calls: Vec<_> = (0..50)
        .map(|n| {
            let mut send = send.clone();
            tokio::spawn(async move {
                let body = "y".repeat(n * 1000);
                let response = send
                    .send_request(call::request_h2("POST", &format!("/{n}"), &body)?)
                    .await?;
                call::read(response).await
            })
        })
        .collect();
    for (n, call) in calls.into_iter().enumerate() {
        assert_eq!(call.await??.text(), format!("/{n} {}", n * 1000));
    }
    assert_eq!(backend.connections(), 1);
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn a_body_larger_than_every_window_passes_both_ways() -> Result<()> {
    let backend =
        Backend::with(|seen| async move { Reply::of(200, Full::new(seen.body).boxed()) }).await;
    let house = House::payments(&[backend.address()], "  timeouts: {request: 30s}").await?;
    let body: String = (0..500_000).map(|n| format!("{n:07}\n")).collect();
    let got = call::send_h2(
        house.listener("payments").await,
        call::request_h2("PUT", "/", &body)?,
    )
    .await?;
    assert_eq!(got.body.len(), body.len());
    assert!(got.body == body.as_bytes());
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn a_grpc_status_in_trailers_is_tried_again_before_a_message_reached_the_caller() -> Result<()>
{
    let backend = Backend::with(|seen| async move {
        if seen.number < 3 {
            grpc(&[], 14)
        } else {
            grpc(&["paid"], 0)
        }
    })
    .await;
    let spec = "  retries: {}\n  routes:\n  - name: safe\n    idempotent: true\n    matches: [{grpc: {service: shop.Payments, method: Status}}]";
    let house = House::payments(&[backend.address()], spec).await?;
    let payments = house.listener("payments").await;
    let got = call::send_h2(payments, grpc_request("/shop.Payments/Status")?).await?;
    assert_eq!(
        (grpc_status(&got), got.text().contains("paid")),
        ("0".into(), true)
    );
    assert_eq!(backend.requests(), 3);
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn a_grpc_call_is_not_tried_again_without_the_owners_word() -> Result<()> {
    let backend = Backend::with(|_| async { grpc(&[], 14) }).await;
    let house = House::payments(&[backend.address()], "  retries: {}").await?;
    let got = call::send_h2(
        house.listener("payments").await,
        grpc_request("/shop.Payments/Pay")?,
    )
    .await?;
    assert_eq!(grpc_status(&got), "14");
    assert_eq!(backend.requests(), 1);
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn once_a_message_has_reached_the_caller_the_status_is_final() -> Result<()> {
    let backend = Backend::with(|_| async { grpc(&["half"], 14) }).await;
    let spec = "  retries: {}\n  routes: [{name: all, idempotent: true}]";
    let house = House::payments(&[backend.address()], spec).await?;
    let got = call::send_h2(
        house.listener("payments").await,
        grpc_request("/shop.Payments/Status")?,
    )
    .await?;
    assert_eq!(
        (grpc_status(&got), got.text().contains("half")),
        ("14".into(), true)
    );
    assert_eq!(backend.requests(), 1);
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn grpc_failures_in_trailers_open_the_breaker_and_refusals_are_unavailable_with_pushback()
-> Result<()> {
    let backend = Backend::with(|_| async { grpc(&[], 13) }).await;
    let spec = "  circuitBreaker: {minimumRequests: 3, failurePercent: 60, open: {duration: 60s}}";
    let house = House::payments(&[backend.address()], spec).await?;
    let payments = house.listener("payments").await;
    for _ in 0..3 {
        let got = call::send_h2(payments, grpc_request("/shop.Payments/Pay")?).await?;
        assert_eq!(grpc_status(&got), "13");
    }
    let refused = call::send_h2(payments, grpc_request("/shop.Payments/Pay")?).await?;
    assert_eq!((refused.status, grpc_status(&refused)), (200, "14".into()));
    assert!(
        refused
            .header("grpc-message")
            .contains("circuit breaker payments open"),
        "{refused:?}"
    );
    assert!(refused.header("grpc-retry-pushback-ms").parse::<u64>()? > 0);
    assert_eq!(backend.requests(), 3);
    let object = house.breaker_is("payments", "Open").await;
    assert!(
        object["status"]["message"]
            .to_string()
            .contains("INTERNAL ×3"),
        "{object}"
    );
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn protocols_are_not_translated_and_a_mismatch_says_so() -> Result<()> {
    let backend = Backend::always(200).await;
    let manifests = weir_tests::Manifests::new()?;
    manifests.service_with(
        "payments",
        &[backend.address()],
        "appProtocol: kubernetes.io/h2c",
    )?;
    let house = House::start(manifests).await?;
    let payments = house.listener("payments").await;
    let got = call::get(payments, "/").await?;
    assert_eq!(got.status, 502);
    assert!(
        got.header("proxy-status")
            .contains("the caller speaks HTTP/1.1, the destination HTTP/2"),
        "{got:?}"
    );
    assert_eq!(
        call::send_h2(payments, call::request_h2("GET", "/", "")?)
            .await?
            .status,
        200
    );
    house.shutdown().await;
    Ok(())
}

/// A destination that refuses every stream: it says that it did nothing.
async fn refusing() -> Result<std::net::SocketAddr> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((io, _)) = listener.accept().await {
            tokio::spawn(async move {
                let Ok(mut connection) = h2::server::handshake(io).await else {
                    return;
                };
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    respond.send_reset(h2::Reason::REFUSED_STREAM);
                }
            });
        }
    });
    Ok(address)
}

#[tokio::test]
async fn a_destination_that_refuses_a_stream_did_nothing_and_the_call_goes_elsewhere() -> Result<()>
{
    let good = Backend::with(|_| async { grpc(&["paid"], 0) }).await;
    let spec = "  retries: {budget: {percent: 100}}";
    let house = House::payments(&[refusing().await?, good.address()], spec).await?;
    let payments = house.listener("payments").await;
    for _ in 0..20 {
        let got = call::send_h2(payments, grpc_request("/shop.Payments/Pay")?).await?;
        assert_eq!(grpc_status(&got), "0");
    }
    assert_eq!(good.requests(), 20);
    assert!(house.metric("weir_retries_total", &[]).await? > 0.0);
    house.shutdown().await;
    Ok(())
}

/// Sends its head at once, then a message for each that comes; the status is
/// in the trailers.
async fn chatting() -> Result<std::net::SocketAddr> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((io, _)) = listener.accept().await {
            tokio::spawn(async move {
                let Ok(mut connection) = h2::server::handshake(io).await else {
                    return;
                };
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    tokio::spawn(async move {
                        let head =
                            http::Response::builder().header("content-type", "application/grpc");
                        let Ok(head) = head.body(()) else { return };
                        let Ok(mut send) = respond.send_response(head, false) else {
                            return;
                        };
                        let mut body = request.into_body();
                        while let Some(Ok(message)) = body.data().await {
                            let _ = body.flow_control().release_capacity(message.len());
                            let _ = send.send_data(message, false);
                        }
                        let mut trailers = HeaderMap::new();
                        trailers.insert("grpc-status", 0.into());
                        let _ = send.send_trailers(trailers);
                    });
                }
            });
        }
    });
    Ok(address)
}

#[tokio::test]
async fn a_conversation_begins_with_the_destinations_head_and_outlives_the_request_timeout()
-> Result<()> {
    // On an idempotent route too, where a head is held for a moment.
    for routes in ["", "\n  routes: [{name: all, idempotent: true}]"] {
        let spec = format!("  timeouts: {{request: 500ms}}\n  retries: {{}}{routes}");
        let house = House::payments(&[chatting().await?], &spec).await?;
        let io = tokio::net::TcpStream::connect(house.listener("payments").await).await?;
        let (mut send, connection) = h2::client::handshake(io).await?;
        tokio::spawn(connection);
        let request = Request::post("http://payments.shop/shop.Payments/Chat")
            .header("content-type", "application/grpc")
            .body(())?;
        let (response, mut words) = send.send_request(request, false)?;
        let mut answers = tokio::time::timeout(Duration::from_secs(10), response)
            .await??
            .into_body();
        let begun = tokio::time::Instant::now();
        let mut n = 0u8;
        while begun.elapsed() < Duration::from_millis(600) {
            n = n.wrapping_add(1);
            words.send_data(Bytes::from(vec![0, 0, 0, 0, 1, n]), false)?;
            let answer = tokio::time::timeout(Duration::from_secs(10), answers.data()).await?;
            assert_eq!(
                answer.transpose()?.as_deref(),
                Some(&[0, 0, 0, 0, 1, n][..])
            );
        }
        words.send_data(Bytes::new(), true)?;
        assert!(answers.data().await.is_none());
        let trailers = answers.trailers().await?;
        assert_eq!(
            trailers
                .as_ref()
                .and_then(|t| t.get("grpc-status"))
                .map(|s| s.as_bytes()),
            Some(&b"0"[..])
        );
        house.shutdown().await;
    }
    Ok(())
}

#[tokio::test]
async fn draining_sends_goaway_and_finishes_the_streams_under_way() -> Result<()> {
    let backend = Backend::with(|_| async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        Reply::status(200)
    })
    .await;
    let house = House::payments(&[backend.address()], ALL).await?;
    let payments = house.listener("payments").await;
    let Caller::H2(send) = Caller::h2(payments).await? else {
        unreachable!("it speaks HTTP/2")
    };
    let calls: Vec<_> = (0..5)
        .map(|_| {
            let mut send = send.clone();
            tokio::spawn(async move {
                call::read(send.send_request(call::request_h2("GET", "/", "")?).await?).await
            })
        })
        .collect();
    eventually("all under way", || async {
        if backend.requests() == 5 {
            Ok(())
        } else {
            Err(backend.requests())
        }
    })
    .await;
    house.shutdown().await;
    for call in calls {
        assert_eq!(call.await??.status, 200);
    }
    eventually("the connection to be closed to new streams", || async {
        if send.is_closed() {
            Ok(())
        } else {
            Err("open")
        }
    })
    .await;
    Ok(())
}

#[tokio::test]
async fn a_refusal_of_head_has_no_body() -> Result<()> {
    let house = House::payments(&[], "").await?;
    let got = call::send_h2(
        house.listener("payments").await,
        call::request_h2("HEAD", "/", "")?,
    )
    .await?;
    assert_eq!((got.status, got.text().as_str()), (503, ""));
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn the_authority_is_the_only_word_on_the_host() -> Result<()> {
    let backend = Backend::always(200).await;
    let house = House::payments(&[backend.address()], "").await?;
    let mut request = call::request_h2("GET", "/", "")?;
    request.headers_mut().insert("host", "other.test".parse()?);
    call::send_h2(house.listener("payments").await, request).await?;
    assert_eq!(backend.seen()[0].headers.get("host"), None);
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn a_stream_beyond_the_endpoints_limit_was_never_sent() -> Result<()> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((io, _)) = listener.accept().await {
            let service = hyper::service::service_fn(|_| async {
                let (reply, frames) = Reply::streamed(200);
                // The stream never ends.
                std::mem::forget(frames);
                match reply.with("content-type", "text/event-stream") {
                    Reply::Response(response) => Ok(response),
                    Reply::Abort => Err(std::io::Error::other("no response")),
                }
            });
            tokio::spawn(
                hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new())
                    .max_concurrent_streams(1)
                    .serve_connection(hyper_util::rt::TokioIo::new(io), service),
            );
        }
    });
    let house = House::payments(
        &[address],
        "  timeouts: {perTry: 100ms}\n  retries: {attempts: 1, methods: [GET]}",
    )
    .await?;
    let payments = house.listener("payments").await;
    let mut first = Caller::h2(payments).await?;
    let stream = first.begin(call::request_h2("POST", "/1", "")?).await?;
    assert_eq!(stream.status(), 200);
    let got = call::send_h2(payments, call::request_h2("POST", "/2", "")?).await?;
    assert_eq!(got.status, 504);
    assert_eq!(house.metric("weir_retries_total", &[]).await?, 1.0);
    drop(stream);
    house.shutdown().await;
    Ok(())
}
