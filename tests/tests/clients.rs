//! Clients of others through the agent.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::process::Command;
use weir_tests::programs::{find, run};
use weir_tests::{Backend, House, Manifests, Reply};

const ALL: &str = "  timeouts: {request: 10s}\n  retries: {}\n  circuitBreaker: {}\n  bulkheads: [{name: a, at: Caller, maxConcurrent: 1000}]\n  loadShedding: {concurrency: {max: 1000}}";

async fn echo() -> Backend {
    Backend::with(|seen| async move {
        Reply::text(
            200,
            &format!("{} {} {}", seen.method, seen.target, seen.body.len()),
        )
    })
    .await
}

// The agent's workers have threads of their own; the destination needs one too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curl_speaks_http1_http2_and_proxy() -> Result<()> {
    let Some(curl) = find("WEIR_CURL", "curl")? else {
        return Ok(());
    };
    let backend = echo().await;
    let house = House::payments(&[backend.address()], ALL).await?;
    let payments = house.listener("payments").await;
    let proxy = house.proxy()?;
    let ask = |args: &[&str]| {
        let mut command = Command::new(&curl);
        command
            .args([
                "--silent",
                "--show-error",
                "--fail",
                "--max-time",
                "20",
                "--noproxy",
                "",
            ])
            .args(args);
        command
    };
    let plain = run(&mut ask(&[&format!("http://{payments}/a?b=c")])).await?;
    assert_eq!(plain, "GET /a?b=c 0");
    let upload = run(&mut ask(&[
        "--data",
        "0123456789",
        &format!("http://{payments}/u"),
    ]))
    .await?;
    assert_eq!(upload, "POST /u 10");
    let chunked = ask(&[
        "-H",
        "transfer-encoding: chunked",
        "--data",
        "0123456789",
        &format!("http://{payments}/u"),
    ]);
    assert_eq!(run(&mut { chunked }).await?, "POST /u 10");
    let h2 = run(&mut ask(&[
        "--http2-prior-knowledge",
        &format!("http://{payments}/h2"),
    ]))
    .await?;
    assert_eq!(h2, "GET /h2 0");
    let proxied = run(&mut ask(&[
        "-x",
        &format!("http://{proxy}"),
        "http://payments.shop/by-name",
    ]))
    .await?;
    assert_eq!(proxied, "GET /by-name 0");
    house.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrk_gets_every_answer() -> Result<()> {
    let Some(wrk) = find("WEIR_WRK", "wrk")? else {
        return Ok(());
    };
    let backend = echo().await;
    let house = House::payments(&[backend.address()], ALL).await?;
    let payments = house.listener("payments").await;
    let said = run(Command::new(wrk).args(["-t1", "-c32", "-d2s", &format!("http://{payments}/")]))
        .await?;
    assert!(
        said.contains("Requests/sec")
            && !said.contains("Non-2xx")
            && !said.contains("Socket errors"),
        "{said}"
    );
    house.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h2load_gets_every_answer_over_many_streams() -> Result<()> {
    let Some(h2load) = find("WEIR_H2LOAD", "h2load")? else {
        return Ok(());
    };
    let backend = echo().await;
    let house = House::payments(&[backend.address()], ALL).await?;
    let payments = house.listener("payments").await;
    let args = ["-n5000", "-c8", "-m32", &format!("http://{payments}/")];
    let said = run(Command::new(h2load).args(args)).await?;
    assert!(
        said.contains("5000 succeeded, 0 failed, 0 errored, 0 timeout"),
        "{said}"
    );
    house.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pythons_requests_keeps_its_session() -> Result<()> {
    let Some(python) = find("WEIR_PYTHON", "weir-python")? else {
        return Ok(());
    };
    let backend = echo().await;
    let house = House::payments(&[backend.address()], ALL).await?;
    let payments = house.listener("payments").await;
    let proxy = house.proxy()?;
    let script = format!(
        r#"
import requests
with requests.Session() as session:
    session.trust_env = False
    for n in range(50):
        answer = session.post("http://{payments}/n", data=b"x" * n)
        assert answer.status_code == 200 and answer.text == f"POST /n {{n}}", answer.text
    stream = session.put("http://{payments}/gen", data=(b"chunk" for _ in range(100)))
    assert stream.text == "PUT /gen 500", stream.text
    named = session.get("http://payments.shop/named", proxies={{"http": "http://{proxy}"}})
    assert named.text == "GET /named 0", named.text
print("fine")
"#
    );
    assert_eq!(
        run(Command::new(python).args(["-c", &script]))
            .await?
            .trim(),
        "fine"
    );
    house.shutdown().await;
    Ok(())
}

/// A gRPC server and a caller by grpcio, without generated code: methods take
/// and give bytes.
const GRPC_SERVER: &str = r#"
import sys, time, grpc
from concurrent import futures
calls = 0
def pay(request, context):
    global calls
    calls += 1
    if request == b"fail":
        context.abort(grpc.StatusCode.INTERNAL, "no")
    return b"paid " + request
def flaky(request, context):
    global calls
    calls += 1
    if calls % 2:
        context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
    return b"well"
handlers = grpc.method_handlers_generic_handler("shop.Payments", {
    "Pay": grpc.unary_unary_rpc_method_handler(pay),
    "Flaky": grpc.unary_unary_rpc_method_handler(flaky),
})
server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
server.add_generic_rpc_handlers((handlers,))
print(server.add_insecure_port("127.0.0.1:0"), flush=True)
server.start()
sys.stdin.read()
server.stop(0)
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpcio_calls_through_the_agent_and_a_flaky_method_is_retried() -> Result<()> {
    use tokio::io::{AsyncBufReadExt, BufReader};
    let Some(python) = find("WEIR_PYTHON", "weir-python")? else {
        return Ok(());
    };
    let mut server = Command::new(&python);
    server
        .args(["-c", GRPC_SERVER])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped());
    let mut server = server.kill_on_drop(true).spawn()?;
    let mut lines = BufReader::new(server.stdout.take().context("its output is piped")?).lines();
    let port = tokio::time::timeout(Duration::from_secs(30), lines.next_line()).await??;
    let port: u16 = port.context("the server says its port")?.trim().parse()?;

    let manifests = Manifests::new()?;
    manifests.service_with(
        "payments",
        &[([127, 0, 0, 1], port).into()],
        "appProtocol: kubernetes.io/h2c",
    )?;
    manifests.policy(
        "payments",
        "  timeouts: {request: 10s}\n  retries: {backoff: {base: 1ms, max: 2ms}, budget: {percent: 100}}\n  routes: [{name: flaky, idempotent: true, matches: [{grpc: {service: shop.Payments, method: Flaky}}]}]",
    )?;
    let house = House::start(manifests).await?;
    let payments = house.listener("payments").await;
    let script = format!(
        r#"
import grpc
channel = grpc.insecure_channel("{payments}", options=[("grpc.enable_http_proxy", 0)])
pay = channel.unary_unary("/shop.Payments/Pay")
for n in range(50):
    assert pay(str(n).encode(), timeout=10) == b"paid " + str(n).encode()
try:
    pay(b"fail", timeout=10)
    raise SystemExit("it must fail")
except grpc.RpcError as error:
    assert error.code() == grpc.StatusCode.INTERNAL and error.details() == "no", error
flaky = channel.unary_unary("/shop.Payments/Flaky")
for n in range(20):
    assert flaky(b"", timeout=10) == b"well"
print("fine")
"#
    );
    assert_eq!(
        run(Command::new(&python).args(["-c", &script]))
            .await?
            .trim(),
        "fine"
    );
    assert!(house.metric("weir_retries_total", &[]).await? >= 1.0);
    house.shutdown().await;
    Ok(())
}
