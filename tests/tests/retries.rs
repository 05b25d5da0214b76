//! Retries on real sockets: the cases that have hurt users of others.

use std::time::Duration;

use anyhow::Result;
use tokio::time::Instant;
use weir_tests::backend::never;
use weir_tests::{Backend, House, Reply, call};

/// Fails the first `n` requests with `status`.
async fn failing_first(n: u64, status: u16) -> Backend {
    Backend::with(
        move |seen| async move { Reply::status(if seen.number <= n { status } else { 200 }) },
    )
    .await
}

#[tokio::test]
async fn a_get_that_fails_is_tried_again_and_the_caller_sees_only_the_success() -> Result<()> {
    let backend = failing_first(2, 503).await;
    let house = House::payments(&[backend.address()], "  retries: {}").await?;
    let payments = house.listener("payments").await;
    assert_eq!(call::get(payments, "/").await?.status, 200);
    assert_eq!(backend.requests(), 3);
    assert_eq!(house.metric("weir_retries_total", &[]).await?, 2.0);
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn a_post_is_never_tried_again_by_default() -> Result<()> {
    let backend = failing_first(1, 503).await;
    let house = House::payments(&[backend.address()], "  retries: {}").await?;
    let payments = house.listener("payments").await;
    assert_eq!(
        call::send(payments, call::request("POST", "/", "pay")?)
            .await?
            .status,
        503
    );
    assert_eq!(backend.requests(), 1);
    assert_eq!(
        house
            .metric("weir_retries_stopped_total", &["unsafe_method"])
            .await?,
        1.0
    );
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn a_post_on_an_idempotent_route_is_tried_again_with_its_body() -> Result<()> {
    let backend = failing_first(1, 503).await;
    let spec = "  retries: {}\n  routes:\n  - name: refunds\n    idempotent: true\n    matches: [{path: {type: PathPrefix, value: /refunds}}]";
    let house = House::payments(&[backend.address()], spec).await?;
    let payments = house.listener("payments").await;
    let got = call::send(
        payments,
        call::request("POST", "/refunds/7", "give it back")?,
    )
    .await?;
    assert_eq!(got.status, 200);
    let seen = backend.seen();
    assert_eq!(seen.len(), 2);
    assert!(
        seen.iter()
            .all(|s| s.body == "give it back" && s.target == "/refunds/7"),
        "{seen:?}"
    );
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn a_post_whose_connection_is_refused_is_tried_at_another_endpoint() -> Result<()> {
    let mut gone = Backend::always(200).await;
    let nobody = gone.address();
    gone.stop().await;
    let backend = Backend::always(200).await;
    let house = House::payments(&[nobody, backend.address()], "  retries: {}").await?;
    let payments = house.listener("payments").await;
    for _ in 0..10 {
        assert_eq!(
            call::send(payments, call::request("POST", "/", "pay")?)
                .await?
                .status,
            200
        );
    }
    assert_eq!(backend.requests(), 10);
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn a_try_never_goes_to_the_same_endpoint_while_another_is_left() -> Result<()> {
    let bad = Backend::always(503).await;
    let good = Backend::always(200).await;
    let house = House::payments(
        &[bad.address(), good.address()],
        "  retries: {budget: {percent: 100}}",
    )
    .await?;
    let payments = house.listener("payments").await;
    for _ in 0..30 {
        assert_eq!(call::get(payments, "/").await?.status, 200);
    }
    assert_eq!(good.requests(), 30);
    assert!(bad.requests() <= 30);
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn retry_after_is_obeyed_where_it_fits_the_deadline() -> Result<()> {
    let backend = Backend::with(|seen| async move {
        if seen.number == 1 {
            Reply::status(503).with("retry-after", "1")
        } else {
            Reply::status(200)
        }
    })
    .await;
    let house = House::payments(
        &[backend.address()],
        "  timeouts: {request: 10s}\n  retries: {}",
    )
    .await?;
    let payments = house.listener("payments").await;
    let begun = Instant::now();
    assert_eq!(call::get(payments, "/").await?.status, 200);
    assert!(
        begun.elapsed() >= Duration::from_secs(1),
        "came back after {:?}",
        begun.elapsed()
    );
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn retry_after_beyond_the_deadline_fails_now() -> Result<()> {
    let backend = Backend::with(|_| async { Reply::status(503).with("retry-after", "3600") }).await;
    let house = House::payments(
        &[backend.address()],
        "  timeouts: {request: 30s}\n  retries: {}",
    )
    .await?;
    let payments = house.listener("payments").await;
    let got = call::get(payments, "/").await?;
    assert_eq!((got.status, got.header("retry-after")), (503, "3600"));
    assert_eq!(backend.requests(), 1);
    assert_eq!(
        house
            .metric("weir_retries_stopped_total", &["deadline_too_near"])
            .await?,
        1.0
    );
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn a_body_too_large_to_keep_streams_through_and_is_counted() -> Result<()> {
    let backend = failing_first(1, 503).await;
    let house = House::payments(&[backend.address()], "  retries: {maxBufferedBody: 1Ki}").await?;
    let payments = house.listener("payments").await;
    let big = "x".repeat(200_000);
    let got = call::send(payments, call::request("PUT", "/", &big)?).await?;
    assert_eq!(got.status, 503);
    assert_eq!(backend.requests(), 1);
    assert_eq!(backend.seen()[0].body.len(), big.len());
    assert_eq!(
        house
            .metric("weir_retries_stopped_total", &["body_too_large"])
            .await?,
        1.0
    );
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn a_kept_body_arrives_whole_at_the_second_try() -> Result<()> {
    let backend = failing_first(1, 503).await;
    let house = House::payments(&[backend.address()], "  retries: {maxBufferedBody: 64Ki}").await?;
    let payments = house.listener("payments").await;
    let body: String = (0..6000).map(|n| format!("{n:08}\n")).collect();
    assert_eq!(
        call::send(payments, call::request("PUT", "/", &body)?)
            .await?
            .status,
        200
    );
    assert_eq!(backend.seen()[1].body, body);
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn a_try_that_hangs_is_cut_and_made_again() -> Result<()> {
    let backend = Backend::with(|seen| async move {
        if seen.number == 1 {
            never().await
        } else {
            Reply::status(200)
        }
    })
    .await;
    let house = House::payments(
        &[backend.address()],
        "  timeouts: {request: 10s, perTry: 200ms}\n  retries: {}",
    )
    .await?;
    let payments = house.listener("payments").await;
    assert_eq!(call::get(payments, "/").await?.status, 200);
    assert_eq!(
        house
            .metric("weir_failed_tries_total", &["timeout"])
            .await?,
        1.0
    );
    weir_tests::eventually("the first handler to be cancelled", || async {
        if backend.cancelled().len() == 1 {
            Ok(())
        } else {
            Err(backend.cancelled().len())
        }
    })
    .await;
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn the_budget_ends_a_retry_storm() -> Result<()> {
    let backend = Backend::always(503).await;
    let spec = "  retries:\n    backoff: {base: 1ms, max: 1ms}\n    budget: {percent: 20, interval: 10s, minRetryRate: {count: 5, interval: 1s}}";
    let house = House::payments(&[backend.address()], spec).await?;
    let payments = house.listener("payments").await;
    let mut caller = call::Caller::h1(payments).await?;
    let begun = Instant::now();
    for _ in 0..300 {
        assert_eq!(
            caller.send(call::request("GET", "/", "")?).await?.status,
            503
        );
    }
    // A fifth of the requests, and the floor of 5 for each second that it took.
    let floor = 5 * (begun.elapsed().as_secs() + 2);
    let extra = backend.requests() - 300;
    assert!(
        extra <= 60 + floor,
        "{extra} extra tries for 300 requests, floor {floor}"
    );
    assert!(extra >= 50, "20 % is 20 %, not less: {extra}");
    assert!(
        house
            .metric("weir_retries_stopped_total", &["budget_exhausted"])
            .await?
            > 0.0
    );
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn an_open_breaker_stops_retrying() -> Result<()> {
    let backend = Backend::always(500).await;
    let spec = "  retries: {attempts: 5, backoff: {base: 1ms, max: 1ms}}\n  circuitBreaker: {minimumRequests: 2, failurePercent: 50, open: {duration: 60s}}";
    let house = House::payments(&[backend.address()], spec).await?;
    let payments = house.listener("payments").await;
    assert_eq!(
        call::get(payments, "/").await?.status,
        500,
        "the destination's own answer is the last word"
    );
    assert_eq!(backend.requests(), 2);
    assert_eq!(
        house
            .metric("weir_retries_stopped_total", &["breaker_open"])
            .await?,
        1.0
    );
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn a_pooled_connection_that_the_destination_closed_costs_nobody_a_failure() -> Result<()> {
    // It says nothing about closing, and closes after each answer.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        while let Ok((mut io, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut data = [0; 4096];
                if io.read(&mut data).await.is_ok_and(|n| n > 0) {
                    let _ = io
                        .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                        .await;
                }
            });
        }
    });
    let house = House::payments(&[address], "  timeouts: {request: 5s}").await?;
    let payments = house.listener("payments").await;
    let mut caller = call::Caller::h1(payments).await?;
    for _ in 0..100 {
        assert_eq!(
            caller.send(call::request("GET", "/", "")?).await?.status,
            200
        );
    }
    house.shutdown().await;
    Ok(())
}
