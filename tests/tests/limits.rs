//! Bulkheads, the concurrency limit, timeouts, and shadow, on real sockets.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tokio::sync::Semaphore;
use weir_tests::backend::{never, slowly};
use weir_tests::{Backend, House, Reply, call, eventually};

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

async fn requests_reach(backend: &Backend, n: u64) {
    eventually("requests at the destination", || async {
        if backend.requests() == n {
            Ok(())
        } else {
            Err(backend.requests())
        }
    })
    .await;
}

#[tokio::test]
async fn a_full_bulkhead_refuses_and_has_room_again_after_the_response_ends() -> Result<()> {
    for at in ["Caller", "Destination"] {
        let (backend, leave) = on_leave().await;
        let spec = format!("  bulkheads: [{{name: checkout, at: {at}, maxConcurrent: 2}}]");
        let house = House::payments(&[backend.address()], &spec).await?;
        let payments = house.listener("payments").await;
        let first = tokio::spawn(async move { call::get(payments, "/").await });
        let second = tokio::spawn(async move { call::get(payments, "/").await });
        requests_reach(&backend, 2).await;
        let refused = call::get(payments, "/").await?;
        assert_eq!(refused.status, 503);
        assert!(
            refused
                .header("proxy-status")
                .contains("bulkhead checkout is full"),
            "{refused:?}"
        );
        leave.add_permits(2);
        assert_eq!((first.await??.status, second.await??.status), (200, 200));
        leave.add_permits(1);
        eventually("a place to be free again", || async {
            match call::get(payments, "/").await {
                Ok(got) if got.status == 200 => Ok(()),
                other => Err(other.map(|got| got.status).map_err(|e| e.to_string())),
            }
        })
        .await;
        house.shutdown().await;
    }
    Ok(())
}

#[tokio::test]
async fn who_waits_in_a_bulkheads_queue_is_served_in_turn() -> Result<()> {
    for at in ["Caller", "Destination"] {
        let (backend, leave) = on_leave().await;
        let spec = format!(
            "  bulkheads: [{{name: checkout, at: {at}, maxConcurrent: 1, maxQueue: 1, maxWait: 30s}}]"
        );
        let house = House::payments(&[backend.address()], &spec).await?;
        let payments = house.listener("payments").await;
        let first = tokio::spawn(async move { call::get(payments, "/first").await });
        requests_reach(&backend, 1).await;
        let second = tokio::spawn(async move { call::get(payments, "/second").await });
        eventually("the second to wait", || async {
            match house.metric("weir_bulkhead_waiting", &[]).await {
                Ok(1.0) => Ok(()),
                other => Err(other.map_err(|e| e.to_string())),
            }
        })
        .await;
        assert_eq!(
            call::get(payments, "/third").await?.status,
            503,
            "the queue is full"
        );
        leave.add_permits(2);
        assert_eq!((first.await??.status, second.await??.status), (200, 200));
        house.shutdown().await;
    }
    Ok(())
}

#[tokio::test]
async fn waiting_ends_after_max_wait_and_is_not_the_destinations_failure() -> Result<()> {
    let (backend, leave) = on_leave().await;
    let spec = "  bulkheads: [{name: checkout, at: Destination, maxConcurrent: 1, maxQueue: 5, maxWait: 100ms}]\n  circuitBreaker: {minimumRequests: 1, failurePercent: 1}";
    let house = House::payments(&[backend.address()], spec).await?;
    let payments = house.listener("payments").await;
    let first = tokio::spawn(async move { call::get(payments, "/").await });
    requests_reach(&backend, 1).await;
    let late = call::get(payments, "/").await?;
    assert_eq!(late.status, 503);
    assert!(
        late.header("proxy-status").contains("waited 100ms"),
        "{late:?}"
    );
    leave.add_permits(1);
    assert_eq!(first.await??.status, 200);
    assert_eq!(
        house.breaker_is("payments", "Closed").await["status"]["state"],
        "Closed"
    );
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn partitions_are_chosen_by_header() -> Result<()> {
    let (backend, leave) = on_leave().await;
    let spec = "  bulkheads:\n  - {name: batch, at: Destination, maxConcurrent: 1, from: {headers: [{name: x-caller, value: batch}]}}\n  - {name: rest, at: Destination, maxConcurrent: 10}";
    let house = House::payments(&[backend.address()], spec).await?;
    let payments = house.listener("payments").await;
    let batch = || -> Result<_> {
        let mut request = call::request("GET", "/", "")?;
        request.headers_mut().insert("x-caller", "batch".parse()?);
        Ok(request)
    };
    let request = batch()?;
    let held = tokio::spawn(async move { call::send(payments, request).await });
    requests_reach(&backend, 1).await;
    assert_eq!(call::send(payments, batch()?).await?.status, 503);
    leave.add_permits(1);
    assert_eq!(held.await??.status, 200);
    leave.add_permits(1);
    assert_eq!(
        call::get(payments, "/").await?.status,
        200,
        "others have room of their own"
    );
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn an_endpoint_is_not_given_more_than_the_limit_and_another_takes_over() -> Result<()> {
    let (one, leave_one) = on_leave().await;
    let (two, leave_two) = on_leave().await;
    let house = House::payments(
        &[one.address(), two.address()],
        "  loadShedding: {concurrency: {max: 1}}",
    )
    .await?;
    let payments = house.listener("payments").await;
    let first = tokio::spawn(async move { call::get(payments, "/").await });
    let second = tokio::spawn(async move { call::get(payments, "/").await });
    requests_reach(&one, 1).await;
    requests_reach(&two, 1).await;
    let refused = call::get(payments, "/").await?;
    assert_eq!(refused.status, 503);
    assert!(
        refused
            .header("proxy-status")
            .contains("every endpoint has 1 requests"),
        "{refused:?}"
    );
    leave_one.add_permits(1);
    leave_two.add_permits(1);
    assert_eq!((first.await??.status, second.await??.status), (200, 200));
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn weirs_own_refusals_never_open_a_breaker() -> Result<()> {
    let (backend, leave) = on_leave().await;
    let spec = "  loadShedding: {concurrency: {max: 1}}\n  circuitBreaker: {minimumRequests: 2, failurePercent: 10}";
    let house = House::payments(&[backend.address()], spec).await?;
    let payments = house.listener("payments").await;
    let held = tokio::spawn(async move { call::get(payments, "/").await });
    requests_reach(&backend, 1).await;
    for _ in 0..20 {
        assert_eq!(call::get(payments, "/").await?.status, 503);
    }
    leave.add_permits(1);
    assert_eq!(held.await??.status, 200);
    leave.add_permits(1);
    assert_eq!(call::get(payments, "/").await?.status, 200);
    assert_eq!(
        house.breaker_is("payments", "Closed").await["status"]["failurePercent"],
        0
    );
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn a_caller_that_leaves_gives_everything_back_and_is_no_failure() -> Result<()> {
    let backend = Backend::with(|_| never()).await;
    let spec = "  bulkheads: [{name: all, at: Caller, maxConcurrent: 5}]\n  loadShedding: {concurrency: {max: 5}}\n  circuitBreaker: {minimumRequests: 2, failurePercent: 10}";
    let house = House::payments(&[backend.address()], spec).await?;
    let payments = house.listener("payments").await;
    for _ in 0..4 {
        let callers: Vec<_> = (0..5)
            .map(|_| tokio::spawn(async move { call::get(payments, "/").await }))
            .collect();
        let all = backend.requests() + 5;
        eventually("all to be at the destination", || async {
            if backend.requests() >= all {
                Ok(())
            } else {
                Err(backend.requests())
            }
        })
        .await;
        callers.iter().for_each(tokio::task::JoinHandle::abort);
        eventually("every place to be free", || async {
            match house.metric("weir_bulkhead_in_use", &[]).await {
                Ok(0.0) => Ok(()),
                other => Err(other.map_err(|e| e.to_string())),
            }
        })
        .await;
    }
    assert_eq!(house.metric("weir_cancelled_total", &[]).await?, 20.0);
    assert_eq!(
        house.breaker_is("payments", "Closed").await["status"]["failurePercent"],
        0
    );
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn a_destination_that_does_not_take_connections_is_given_up_after_connect() -> Result<()> {
    // A listener whose queue is full drops further handshakes.
    let socket = tokio::net::TcpSocket::new_v4()?;
    socket.bind("127.0.0.1:0".parse()?)?;
    let listener = socket.listen(1)?;
    let address = listener.local_addr()?;
    let mut fill = Vec::new();
    while let Ok(Ok(io)) = tokio::time::timeout(
        Duration::from_millis(200),
        tokio::net::TcpStream::connect(address),
    )
    .await
    {
        fill.push(io);
    }
    let house = House::payments(&[address], "  timeouts: {request: 30s, connect: 100ms}").await?;
    let payments = house.listener("payments").await;
    let late = call::get(payments, "/").await?;
    assert_eq!(late.status, 504);
    assert!(
        late.header("proxy-status")
            .contains("error=connection_timeout"),
        "{late:?}"
    );
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn no_endpoint_is_said_as_such() -> Result<()> {
    let house = House::payments(&[], "  timeouts: {request: 1s}").await?;
    let payments = house.listener("payments").await;
    let got = call::get(payments, "/").await?;
    assert_eq!(got.status, 503);
    assert!(
        got.header("proxy-status")
            .contains("shop/payments has no ready endpoints"),
        "{got:?}"
    );
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn in_shadow_every_section_decides_and_counts_and_changes_nothing() -> Result<()> {
    let backend = Backend::with(|seen| async move {
        if seen.target == "/slow" {
            slowly(Duration::from_millis(300), 200).await
        } else {
            Reply::status(500)
        }
    })
    .await;
    let spec = "  mode: Shadow\n  timeouts: {request: 100ms}\n  retries: {retryOn: {statusCodes: [500-599]}}\n  circuitBreaker: {minimumRequests: 2, failurePercent: 50, open: {duration: 60s}}\n  bulkheads: [{name: one, at: Caller, maxConcurrent: 1}]\n  loadShedding: {concurrency: {max: 1}}";
    let house = House::payments(&[backend.address()], spec).await?;
    let payments = house.listener("payments").await;
    for _ in 0..10 {
        assert_eq!(call::get(payments, "/").await?.status, 500);
    }
    assert_eq!(
        backend.requests(),
        10,
        "nothing was refused and nothing repeated"
    );
    let object = house.breaker_is("payments", "Open").await;
    assert_eq!(object["status"]["shadow"], true);
    let pair: Vec<_> = (0..2)
        .map(|_| tokio::spawn(async move { call::get(payments, "/slow").await }))
        .collect();
    for got in pair {
        assert_eq!(got.await??.status, 200, "no timeout, no limit");
    }
    for section in [
        "timeouts",
        "retries",
        "circuitBreaker",
        "bulkheads",
        "loadShedding",
    ] {
        assert!(
            house
                .metric("weir_shadow_decisions_total", &[section])
                .await?
                > 0.0,
            "{section}"
        );
    }
    assert_eq!(house.metric("weir_answers_total", &[]).await?, 0.0);
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn a_silence_longer_than_idle_ends_the_request() -> Result<()> {
    // Before a head: Weir answers. After one: the response breaks off.
    let backend = Backend::with(|seen| async move {
        if seen.target == "/mute" {
            return never().await;
        }
        let (reply, frames) = Reply::streamed(200);
        tokio::spawn(async move {
            let _ = frames.send(hyper::body::Frame::data("begun".into())).await;
            frames.closed().await;
        });
        reply
    })
    .await;
    let house =
        House::payments(&[backend.address()], "  timeouts: {request: 0s, idle: 1s}").await?;
    let payments = house.listener("payments").await;
    for h2 in [false, true] {
        let ask = async |path: &str| {
            if h2 {
                call::send_h2(payments, call::request_h2("GET", path, "")?).await
            } else {
                call::get(payments, path).await
            }
        };
        let mute = ask("/mute").await?;
        assert_eq!(mute.status, 504);
        assert!(
            mute.header("proxy-status").contains("no byte moved for 1s"),
            "{mute:?}"
        );
        assert!(ask("/begun").await.is_err(), "it breaks off");
    }
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn a_stream_ends_at_max_stream_however_lively_it_is() -> Result<()> {
    let backend = Backend::with(|_| async {
        let (reply, frames) = Reply::streamed(200);
        tokio::spawn(async move {
            while frames
                .send(hyper::body::Frame::data("data: tick\n\n".into()))
                .await
                .is_ok()
            {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        reply.with("content-type", "text/event-stream")
    })
    .await;
    let spec = "  timeouts: {request: 100ms, maxStream: 1s}";
    let house = House::payments(&[backend.address()], spec).await?;
    let payments = house.listener("payments").await;
    for h2 in [false, true] {
        let begun = tokio::time::Instant::now();
        let ended = if h2 {
            call::send_h2(payments, call::request_h2("GET", "/", "")?).await
        } else {
            call::get(payments, "/").await
        };
        assert!(ended.is_err(), "it is broken off");
        assert!(
            begun.elapsed() >= Duration::from_secs(1),
            "after maxStream, not after request"
        );
    }
    house.shutdown().await;
    Ok(())
}
