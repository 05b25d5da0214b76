//! The breaker that a well-known article builds, and its timeout example, on
//! real sockets.

#![allow(clippy::print_stdout)] // figures that were measured

use std::time::Duration;

use anyhow::Result;
use tokio::time::{Instant, timeout};
use weir_tests::backend::never;
use weir_tests::call::{self, Caller};
use weir_tests::{Backend, House, eventually};

/// At least 3 requests in a fixed window of 10 s, 60 % of them failures: open
/// for 5 s, then 2 probes.
const BREAKER: &str = "  circuitBreaker:
    window: {type: Fixed, duration: 10s}
    minimumRequests: 3
    failurePercent: 60
    open: {duration: 5s, jitterPercent: 0}
    halfOpen: {probes: 2, timeout: 10s, rampUp: 0s}";

#[tokio::test]
async fn the_breaker_of_the_article_opens_refuses_probes_and_closes() -> Result<()> {
    let backend = Backend::always(500).await;
    let house = House::payments(&[backend.address()], BREAKER).await?;
    let payments = house.listener("payments").await;
    house.breaker_is("payments", "Closed").await;

    // Two failures are not enough requests; the third opens.
    for _ in 0..3 {
        assert_eq!(call::get(payments, "/").await?.status, 500);
    }
    let opened = Instant::now();
    for _ in 0..5 {
        let refused = call::get(payments, "/").await?;
        assert_eq!(refused.status, 503);
        let why = refused.header("proxy-status");
        assert!(
            why.starts_with(
                "weir; error=destination_unavailable; details=\"circuit breaker payments open"
            ),
            "{why}"
        );
        let seconds: u64 = refused.header("retry-after").parse()?;
        assert!((1..=5).contains(&seconds), "retry-after: {seconds}");
    }
    assert_eq!(
        backend.requests(),
        3,
        "a refused request never reaches the destination"
    );
    let object = house.breaker_is("payments", "Open").await;
    assert_eq!(object["status"]["reason"], "FailureRate");
    let message = object["status"]["message"].as_str().unwrap_or_default();
    assert!(
        message.contains("100% of 3 requests failed") && message.contains("500 ×3"),
        "{message}"
    );

    // Without any traffic it says that it would try again.
    house.breaker_is("payments", "HalfOpen").await;
    println!(
        "HalfOpen shown {:?} after it opened (open for 5 s)",
        opened.elapsed()
    );
    assert_eq!(backend.requests(), 3, "nobody was risked for it");

    // It still fails: one probe is enough to know.
    assert_eq!(call::get(payments, "/").await?.status, 500);
    assert_eq!(call::get(payments, "/").await?.status, 503);
    assert_eq!(backend.requests(), 4);
    house.breaker_is("payments", "Open").await;

    // It is well again: two probes in a row close it.
    backend.now_always(200);
    house.breaker_is("payments", "HalfOpen").await;
    assert_eq!(call::get(payments, "/").await?.status, 200);
    assert_eq!(call::get(payments, "/").await?.status, 200);
    let closed = house.breaker_is("payments", "Closed").await;
    assert_eq!(closed["status"]["reason"], "Recovered");
    for _ in 0..10 {
        assert_eq!(call::get(payments, "/").await?.status, 200);
    }
    assert_eq!(backend.requests(), 16);
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn a_successful_probe_alone_does_not_close_the_breaker_of_the_article() -> Result<()> {
    let backend = Backend::always(500).await;
    let house = House::payments(
        &[backend.address()],
        &BREAKER.replace("open: {duration: 5s", "open: {duration: 1s"),
    )
    .await?;
    let payments = house.listener("payments").await;
    for _ in 0..3 {
        call::get(payments, "/").await?;
    }
    house.breaker_is("payments", "HalfOpen").await;
    backend.now_always(200);
    assert_eq!(call::get(payments, "/").await?.status, 200);
    assert_eq!(
        house.breaker_is("payments", "HalfOpen").await["status"]["state"],
        "HalfOpen"
    );
    backend.now_always(500);
    assert_eq!(call::get(payments, "/").await?.status, 500);
    house.breaker_is("payments", "Open").await;
    house.shutdown().await;
    Ok(())
}

/// How long after the caller's timeout the handler was told, the best of
/// several: what a busy machine adds is not Weir's.
async fn noticed_after(h2: bool) -> Result<Duration> {
    let backend = Backend::with(|_| never()).await;
    let house = House::payments(&[backend.address()], "  timeouts: {request: 30s}").await?;
    let payments = house.listener("payments").await;
    let mut best = Duration::MAX;
    for _ in 0..5 {
        let before = backend.cancelled().len();
        let requests = backend.requests();
        let mut caller = if h2 {
            Caller::h2(payments).await?
        } else {
            Caller::h1(payments).await?
        };
        let request = if h2 {
            call::request_h2("GET", "/", "")?
        } else {
            call::request("GET", "/", "")?
        };
        let gave_up = timeout(Duration::from_millis(100), caller.send(request)).await;
        assert!(gave_up.is_err(), "the handler never answers");
        drop(caller);
        let gone = Instant::now();
        assert_eq!(backend.requests(), requests + 1);
        let noticed = eventually("the handler to see its cancellation", || async {
            let all = backend.cancelled();
            if all.len() > before {
                Ok(all[before])
            } else {
                Err(all.len())
            }
        })
        .await;
        best = best.min(noticed.saturating_duration_since(gone));
    }
    house.shutdown().await;
    Ok(best)
}

#[tokio::test]
async fn a_handler_over_http1_sees_within_50_ms_that_its_caller_gave_up() -> Result<()> {
    let noticed = noticed_after(false).await?;
    println!("HTTP/1.1: cancellation seen after {noticed:?}");
    assert!(noticed < Duration::from_millis(50), "{noticed:?}");
    Ok(())
}

#[tokio::test]
async fn a_handler_over_http2_sees_within_50_ms_that_its_caller_gave_up() -> Result<()> {
    let noticed = noticed_after(true).await?;
    println!("HTTP/2: cancellation seen after {noticed:?}");
    assert!(noticed < Duration::from_millis(50), "{noticed:?}");
    Ok(())
}

#[tokio::test]
async fn a_handler_sees_that_weirs_own_timeout_passed() -> Result<()> {
    for h2 in [false, true] {
        let backend = Backend::with(|_| never()).await;
        let house = House::payments(&[backend.address()], "  timeouts: {request: 200ms}").await?;
        let payments = house.listener("payments").await;
        let late = if h2 {
            call::send_h2(payments, call::request_h2("GET", "/", "")?).await?
        } else {
            call::get(payments, "/").await?
        };
        assert_eq!(late.status, 504);
        assert!(
            late.header("proxy-status")
                .contains("error=http_response_timeout"),
            "{late:?}"
        );
        eventually("the handler to see its cancellation", || async {
            if backend.cancelled().is_empty() {
                Err("nothing")
            } else {
                Ok(())
            }
        })
        .await;
        house.shutdown().await;
    }
    Ok(())
}
