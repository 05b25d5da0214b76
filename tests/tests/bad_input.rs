//! Malformed manifests beside a good one: each has a clear error in the right
//! place, and all else goes on.

use anyhow::{Context, Result};
use serde_json::Value;
use weir_tests::{Backend, House, Manifests, call, eventually, policy};

/// Name of the file, what is in it, the line of the error (0: of the whole
/// file), and what the error says.
fn broken() -> Vec<(&'static str, String, usize, &'static str)> {
    let spec = |text: &str| policy("payments", text);
    let object = |kind: &str, rest: &str| {
        format!(
            "apiVersion: weir.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: odd, namespace: shop}}\n{rest}"
        )
    };
    let nested = |depth: usize| {
        format!(
            "apiVersion: weir.dev/v1alpha1\nkind: ResiliencePolicy\nmetadata: {}{}\n",
            "[".repeat(depth),
            "]".repeat(depth)
        )
    };
    let bomb = {
        let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
        for n in 1..12 {
            let before = format!("*a{}", n - 1);
            text.push_str(&format!(
                "a{n}: &a{n} [{}]\n",
                [before.as_str(); 9].join(", ")
            ));
        }
        text.push_str("apiVersion: weir.dev/v1alpha1\nkind: ResiliencePolicy\nmetadata: {name: bomb, namespace: shop}\n");
        text
    };
    // `policy` puts the sections at line 8.
    vec![
        ("01-not-yaml", "kind: ResiliencePolicy\n  spec: [\n".into(), 2, ""),
        ("02-tabs", "apiVersion: weir.dev/v1alpha1\nkind: ResiliencePolicy\nmetadata:\n\tname: tabs\n".into(), 4, ""),
        ("03-wrong-type", spec("  retries: {attempts: many}"), 8, "attempts"),
        ("04-number-as-text", spec("  retries: {attempts: \"2\"}"), 8, "attempts"),
        ("05-float", spec("  circuitBreaker: {failurePercent: 50.5}"), 8, "failurePercent"),
        ("06-unknown-section", spec("  retires: {}"), 8, "retries"),
        ("07-unknown-field", spec("  circuitBreaker: {minimumRequest: 5}"), 8, "minimumRequests"),
        ("08-too-many-attempts", spec("  retries: {attempts: 100}"), 8, "10"),
        ("09-negative", spec("  retries: {attempts: -1}"), 8, "attempts"),
        ("10-percent-above-100", spec("  circuitBreaker: {failurePercent: 101}"), 8, "100"),
        ("11-duration-without-unit", spec("  timeouts: {request: 15}"), 8, "request"),
        ("12-duration-of-words", spec("  timeouts: {request: 'a while'}"), 8, "request"),
        ("13-absurd-duration", spec("  timeouts: {request: 99999999h}"), 8, "request"),
        ("14-try-longer-than-request", spec("  timeouts: {request: 1s, perTry: 2s}"), 8, "perTry"),
        ("15-backoff-upside-down", spec("  retries: {backoff: {base: 10s, max: 1s}}"), 8, "base"),
        ("16-two-limits", spec("  loadShedding: {concurrency: {max: 5, adaptive: {}}}"), 8, "adaptive"),
        ("17-status-out-of-range", spec("  retries: {retryOn: {statusCodes: [700]}}"), 8, "statusCodes"),
        ("18-grpc-code-unknown", spec("  retries: {retryOn: {grpcCodes: [Unavailible]}}"), 8, "Unavailable"),
        ("19-bad-regex", spec("  routes: [{name: r, matches: [{path: {type: RegularExpression, value: '('}}]}]"), 8, "regular expression"),
        ("20-credentials", spec("  routes: [{name: r, matches: [{headers: [{name: authorization, value: secret}]}]}]"), 8, "credentials"),
        ("21-route-name", spec("  routes: [{name: 'Not A Label'}]"), 8, "name"),
        ("22-fault-without-end", spec("  faults: [{name: f, percent: 10, delay: 1s}]"), 8, "until"),
        ("23-wait-without-queue", spec("  bulkheads: [{name: b, maxConcurrent: 1, maxWait: 1s}]"), 8, "maxQueue"),
        ("24-no-target", object("ResiliencePolicy", "spec: {targetRefs: []}\n"), 4, "targetRefs"),
        ("25-no-spec", object("ResiliencePolicy", ""), 1, "spec"),
        ("26-bad-name", spec("  retries: {}").replace("  name: payments\n", "  name: Pay_ments\n"), 4, "name"),
        ("27-old-version", spec("  retries: {}").replace("weir.dev/v1alpha1", "weir.dev/v1"), 1, "v1alpha1"),
        ("28-override-without-reason", object("CircuitBreaker", "spec: {override: {state: Open, expiresAt: 2100-01-01T00:00:00Z}}\n"), 4, "reason"),
        ("29-list-instead-of-object", "- a\n- b\n".into(), 1, ""),
        ("30-deep", nested(2000), 3, ""),
        ("31-bomb", bomb, 0, ""),
        ("32-too-large", format!("# {}\n{}", "x".repeat(10 << 20), spec("  retries: {}")), 0, "1048576"),
        ("33-duplicate-key", spec("  retries: {attempts: 1, attempts: 2}"), 8, "attempts"),
        ("34-not-utf8", "\u{fffd}".into(), 0, ""),
        ("35-port-out-of-range", "apiVersion: v1\nkind: Service\nmetadata: {name: odd, namespace: shop}\nspec: {ports: [{port: 70000}]}\n".into(), 4, "port"),
        ("36-listen-nowhere", "apiVersion: v1\nkind: Service\nmetadata:\n  name: odd\n  namespace: shop\n  annotations:\n    weir.dev/listen: somewhere\nspec: {ports: [{port: 80}]}\n".into(), 7, "weir.dev/listen"),
        ("37-endpoint-no-address", "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: odd, namespace: shop, labels: {kubernetes.io/service-name: payments}}\naddressType: IPv4\nports: [{port: 80}]\nendpoints: [{addresses: [nowhere]}]\n".into(), 6, "nowhere"),
    ]
}

/// Every text in a page.
fn texts(of: &Value, into: &mut Vec<String>) {
    match of {
        Value::String(text) => into.push(text.clone()),
        Value::Array(items) => items.iter().for_each(|item| texts(item, into)),
        Value::Object(fields) => fields.values().for_each(|field| texts(field, into)),
        _ => {}
    }
}

#[tokio::test]
async fn every_malformed_manifest_has_a_clear_error_in_its_place_and_all_else_goes_on() -> Result<()>
{
    let backend = Backend::always(200).await;
    let manifests = Manifests::new()?;
    manifests.service("payments", &[backend.address()])?;
    manifests.policy("payments", "  retries: {}")?;
    let house = House::start(manifests).await?;
    let payments = house.listener("payments").await;
    let admin = house
        .control_plane()
        .admin_addr()
        .context("there is an admin address")?;
    let mut missed = Vec::new();
    for (name, text, line, says) in broken() {
        let file = format!("{name}.yaml");
        if name == "34-not-utf8" {
            std::fs::write(house.manifests.path().join(&file), b"kind: \xff\xfe\n")?;
        } else {
            // A name of its own, so that it does not meet the good one.
            let own = text.replace("  name: payments\n", &format!("  name: p{}\n", &name[..2]));
            let text = own.replace("name: odd", &format!("name: odd{}", &name[..2]));
            house.manifests.write(&file, &text)?;
        }
        let place = if line == 0 {
            file.clone()
        } else {
            format!("{file}:{line}")
        };
        let found = eventually(&format!("an error about {file}"), || async {
            let mut said = Vec::new();
            for page in ["/events", "/apis/weir.dev/v1alpha1/resiliencepolicies"] {
                let got = call::get(admin, page).await.map_err(|e| e.to_string())?;
                let page: Value = serde_json::from_slice(&got.body).map_err(|e| e.to_string())?;
                texts(&page, &mut said);
            }
            said.retain(|text| text.contains(&file));
            if said.is_empty() {
                Err(file.clone())
            } else {
                Ok(said.join("\n"))
            }
        })
        .await;
        if !found.contains(&place) || !found.contains(says) {
            missed.push(format!("{place} should say {says:?}, says:\n{found}"));
        }
        assert_eq!(call::get(payments, "/").await?.status, 200, "after {name}");
        std::fs::remove_file(house.manifests.path().join(&file))?;
    }
    assert!(missed.is_empty(), "{}", missed.join("\n\n"));
    house.condition("payments", "Programmed", "True").await;
    house
        .manifests
        .policy("payments", "  retries: {attempts: 3}")?;
    house.condition("payments", "Programmed", "True").await;
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn of_two_policies_for_one_target_the_loser_is_told_who_won() -> Result<()> {
    let backend = Backend::always(200).await;
    let manifests = Manifests::new()?;
    manifests.service("payments", &[backend.address()])?;
    manifests.write(
        "a.yaml",
        &policy("payments", "  retries: {attempts: 1}").replacen("name: payments", "name: aaa", 1),
    )?;
    manifests.write(
        "b.yaml",
        &policy("payments", "  retries: {attempts: 3}").replacen("name: payments", "name: bbb", 1),
    )?;
    let house = House::start(manifests).await?;
    house.condition("aaa", "Programmed", "True").await;
    let loser = house.condition("bbb", "Accepted", "False").await;
    assert_eq!(loser["reason"], "Conflicted");
    assert!(loser["message"].to_string().contains("aaa"), "{loser}");
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn a_policy_for_a_service_that_is_not_there_says_which_there_are() -> Result<()> {
    let backend = Backend::always(200).await;
    let manifests = Manifests::new()?;
    manifests.service("payments", &[backend.address()])?;
    manifests.write("p.yaml", &policy("paymnts", "  retries: {}"))?;
    let house = House::start(manifests).await?;
    let unresolved = house.condition("paymnts", "ResolvedRefs", "False").await;
    assert_eq!(unresolved["reason"], "TargetNotFound");
    assert!(
        unresolved["message"].to_string().contains("payments"),
        "{unresolved}"
    );
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn a_section_that_is_not_enforced_yet_is_named_and_the_rest_is_in_force() -> Result<()> {
    let backend = Backend::with(|seen| async move {
        weir_tests::Reply::status(if seen.number == 1 { 503 } else { 200 })
    })
    .await;
    let house = House::payments(
        &[backend.address()],
        "  retries: {}\n  hedging: {}\n  outlierDetection: {}",
    )
    .await?;
    let condition = house
        .condition_for("payments", "Programmed", "UnsupportedSection")
        .await;
    let message = condition["message"].to_string();
    assert!(
        message.contains("hedging") && message.contains("outlierDetection"),
        "{message}"
    );
    assert!(!message.contains("retries"), "{message}");
    assert_eq!(
        call::get(house.listener("payments").await, "/")
            .await?
            .status,
        200
    );
    assert_eq!(backend.requests(), 2);
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn an_address_that_is_taken_is_told_with_the_node_and_the_service_keeps_the_rest()
-> Result<()> {
    let backend = Backend::always(200).await;
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let house = House::payments(&[backend.address()], "  retries: {}").await?;
    let payments = house.listener("payments").await;
    let file = house.manifests.path().join("service-payments.yaml");
    let text = std::fs::read_to_string(&file)?;
    house.manifests.write(
        "service-payments.yaml",
        &text.replace("127.0.0.1:0", &taken.local_addr()?.to_string()),
    )?;
    let condition = house
        .condition_for("payments", "Programmed", "Rejected")
        .await;
    let message = condition["message"].to_string();
    assert!(
        message.contains("test") && message.contains("another process does"),
        "{message}"
    );
    assert_eq!(
        call::get(payments, "/").await?.status,
        200,
        "the last good one stays in force"
    );
    house.manifests.write("service-payments.yaml", &text)?;
    house.condition("payments", "Programmed", "True").await;
    house.shutdown().await;
    Ok(())
}
