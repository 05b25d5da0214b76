//! Load shedding by what is measured. The endpoints are on loopback, so that the
//! machine that a test plays stands for their pods.

use anyhow::Result;
use weir_tests::{Backend, House, Machine, Manifests, Reply, call, eventually};

async fn house_on(machine: &Machine, backend: &Backend, spec: &str) -> Result<House> {
    let manifests = Manifests::new()?;
    manifests.service("payments", &[backend.address()])?;
    manifests.policy("payments", spec)?;
    let house = House::start_on(manifests, machine).await?;
    house.condition("payments", "Programmed", "True").await;
    Ok(house)
}

/// Asks until load is shed, and returns that answer.
async fn shed(house: &House) -> call::Got {
    let payments = house.listener("payments").await;
    eventually("load to be shed", || async {
        match call::get(payments, "/").await {
            Ok(got) if got.status == 503 => Ok(got),
            other => Err(format!("{other:?}")),
        }
    })
    .await
}

/// Waits until nothing is refused any more.
async fn relieved(house: &House) {
    eventually("no request to be refused", || async {
        match house.metric("weir_load_shedding_ratio", &[]).await {
            Ok(0.0) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

#[tokio::test]
async fn requests_are_refused_while_the_cpu_is_used_up_and_only_then() -> Result<()> {
    let (machine, backend) = (Machine::idle()?, Backend::always(200).await);
    let spec = "  loadShedding: {cpu: {thresholdPercent: 50, maxDropPercent: 100}}";
    let house = house_on(&machine, &backend, spec).await?;
    let payments = house.listener("payments").await;
    for _ in 0..20 {
        assert_eq!(call::get(payments, "/").await?.status, 200);
    }
    machine.uses(95);
    let refused = shed(&house).await;
    let why = refused.header("proxy-status");
    assert!(
        why.starts_with(
            "weir; error=destination_unavailable; details=\"load is shed: use of CPU is "
        ) && why.ends_with("%, the limit 50%\""),
        "{why}"
    );
    assert_eq!(refused.header("retry-after"), "1");
    let counted = house
        .metric("weir_answers_total", &["reason=\"shed_cpu\""])
        .await?;
    assert!(counted >= 1.0);
    machine.uses(10);
    relieved(&house).await;
    for _ in 0..20 {
        assert_eq!(call::get(payments, "/").await?.status, 200);
    }
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn requests_are_refused_while_tasks_wait() -> Result<()> {
    let (machine, backend) = (Machine::idle()?, Backend::always(200).await);
    machine.waits(100);
    let house = house_on(
        &machine,
        &backend,
        "  loadShedding: {pressure: {somePercent: 20}}",
    )
    .await?;
    let refused = shed(&house).await;
    let why = refused.header("proxy-status");
    assert!(why.contains("time waiting for CPU is "), "{why}");
    let counted = house
        .metric("weir_answers_total", &["reason=\"shed_pressure\""])
        .await?;
    assert!(counted >= 1.0);
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn what_is_shed_is_no_failure_of_the_destination() -> Result<()> {
    let (machine, backend) = (Machine::idle()?, Backend::always(200).await);
    let spec = "  circuitBreaker: {consecutiveFailures: 1}\n  loadShedding: {cpu: {source: Node, maxDropPercent: 100}}";
    let house = house_on(&machine, &backend, spec).await?;
    machine.uses(100);
    for _ in 0..5 {
        let refused = shed(&house).await;
        assert!(
            refused.header("proxy-status").contains("load is shed"),
            "{refused:?}"
        );
    }
    assert_eq!(house.metric("weir_failed_tries_total", &[]).await?, 0.0);
    let open = house
        .metric("weir_circuit_breaker_transitions_total", &["to=\"Open\""])
        .await?;
    assert_eq!(open, 0.0);
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn a_shadow_only_counts_what_it_would_have_shed() -> Result<()> {
    let (machine, backend) = (Machine::idle()?, Backend::always(200).await);
    machine.uses(100);
    let spec = "  mode: Shadow\n  loadShedding: {cpu: {thresholdPercent: 1, maxDropPercent: 100}}";
    let house = house_on(&machine, &backend, spec).await?;
    let payments = house.listener("payments").await;
    eventually("the shadow to count", || async {
        let got = call::get(payments, "/").await.map_err(|e| e.to_string())?;
        if got.status != 200 {
            return Err(format!("{got:?}"));
        }
        let shadow = house.metric("weir_shadow_decisions_total", &["loadShedding"]);
        match shadow.await {
            Ok(count) if count >= 1.0 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let refused = house.metric("weir_answers_total", &["shed"]).await?;
    assert_eq!(refused, 0.0);
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn a_grpc_caller_is_told_when_to_come_back() -> Result<()> {
    let (machine, backend) = (
        Machine::idle()?,
        Backend::with(|_| async { Reply::status(200) }).await,
    );
    machine.uses(100);
    let spec = "  loadShedding: {cpu: {thresholdPercent: 1, maxDropPercent: 100}}";
    let house = house_on(&machine, &backend, spec).await?;
    let payments = house.listener("payments").await;
    let refused = eventually("load to be shed", || async {
        let mut request =
            call::request_h2("POST", "/shop.Payments/Pay", "").map_err(|e| e.to_string())?;
        let grpc = http::HeaderValue::from_static("application/grpc");
        request.headers_mut().insert("content-type", grpc);
        match call::send_h2(payments, request).await {
            Ok(got) if got.header("grpc-status") == "14" => Ok(got),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    assert_eq!(refused.header("grpc-retry-pushback-ms"), "1000");
    let message = refused.header("grpc-message");
    assert!(message.contains("load is shed"), "{message}");
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn what_another_agent_refused_is_no_failure_either() -> Result<()> {
    let machine = Machine::idle()?;
    let said =
        |error: &str| Reply::status(503).with("proxy-status", &format!("weir; error={error}"));
    let refusing = Backend::with(move |_| async move { said("destination_unavailable") }).await;
    let spec = "  circuitBreaker: {consecutiveFailures: 1}";
    let house = house_on(&machine, &refusing, spec).await?;
    let payments = house.listener("payments").await;
    for _ in 0..3 {
        assert_eq!(call::get(payments, "/").await?.status, 503);
        let h2 = call::send_h2(payments, call::request_h2("GET", "/", "")?).await?;
        assert_eq!(h2.status, 503);
    }
    assert_eq!(refusing.requests(), 6);
    // What it says of the destination counts.
    refusing.now(move |_| async move { said("connection_refused") });
    assert_eq!(call::get(payments, "/").await?.status, 503);
    house.breaker_is("payments", "Open").await;
    house.shutdown().await;
    Ok(())
}
