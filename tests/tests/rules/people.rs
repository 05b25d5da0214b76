//! What people see at their terminal.

use std::os::unix::fs::PermissionsExt as _;

use anyhow::{Context as _, Result};
use tokio::process::Command;
use weir_tests::programs;

use crate::server::Server;

/// Mistakes that people make, and what both programs have to say about each.
const MISTAKES: &[(&str, &str)] = &[
    ("retires: {}", "unknown field"),
    (
        "retries: {backoff: {base: 2s}}",
        "shorten base or lengthen max",
    ),
    (
        "timeouts: {perTry: 20s}",
        "shorten perTry or lengthen request",
    ),
    (
        "timeouts: {request: 25h}",
        "must be from 1ms to 24h, or 0s for off",
    ),
    (
        "circuitBreaker: {failurePercent: 0}",
        "nothing can open this circuit breaker",
    ),
    ("loadShedding: {}", "write concurrency: {adaptive: {}}"),
    ("strategy: Overrides", "kind Namespace or Mesh"),
    ("retries: {attempts: 11}", "10"),
];

/// A policy of a Service payments with this in its spec.
fn manifest(section: &str) -> String {
    format!(
        "apiVersion: weir.dev/v1alpha1\nkind: ResiliencePolicy\n\
         metadata: {{name: payments, namespace: shop}}\n\
         spec:\n  targetRefs: [{{kind: Service, name: payments}}]\n  {section}\n"
    )
}

const APPLY: [&str; 3] = ["apply", "--filename", "-"];

#[tokio::test]
async fn kubectl_apply_and_weir_check_refuse_a_mistake_with_the_same_words() -> Result<()> {
    let Some(server) = Server::start().await? else {
        return Ok(());
    };
    let file = server.cluster.directory().join("payments.yaml");
    for (section, words) in MISTAKES {
        std::fs::write(&file, manifest(section))?;
        let path = file.to_str().context("a path of letters")?;
        let apply = server.cluster.kubectl(&["apply", "--filename", path]).await;
        let apply = apply.expect_err("the server refuses it").to_string();
        let check = programs::run(Command::new(programs::weir()).args(["check", path])).await;
        let check = check.expect_err("weir check refuses it").to_string();
        println!("{section}\n{apply}\n{check}");
        assert!(apply.contains(words), "{section}: {apply}");
        assert!(check.contains(words), "{section}: {check}");
    }
    server.cluster.shutdown().await
}

#[tokio::test]
async fn a_policy_can_be_compared_with_its_file_edited_and_listed() -> Result<()> {
    let Some(server) = Server::start().await? else {
        return Ok(());
    };
    let kubectl =
        async |arguments: &[&str], input: &str| server.cluster.kubectl_in(arguments, input).await;
    let diff = ["diff", "--filename", "-"];
    let spec = "--output=jsonpath={.spec.retries.attempts}";
    let attempts = [
        "get",
        "resiliencepolicy",
        "payments",
        "--namespace=shop",
        spec,
    ];

    let said = kubectl(&APPLY, &manifest("retries: {attempts: 1}")).await?;
    assert!(said.contains("created"), "{said}");
    // Defaults that the server filled in are no difference to what the file leaves out.
    assert_eq!(
        kubectl(&diff, &manifest("retries: {attempts: 1}")).await?,
        ""
    );
    // kubectl itself says "configured": it compares lists as a whole, and a default stands in one.
    kubectl(&APPLY, &manifest("retries: {attempts: 1}")).await?;
    let generation = "--output=jsonpath={.metadata.generation}";
    let generation = [
        "get",
        "resiliencepolicy",
        "payments",
        "--namespace=shop",
        generation,
    ];
    assert_eq!(kubectl(&generation, "").await?, "1");
    let differs = kubectl(&diff, &manifest("retries: {attempts: 3}")).await;
    let differs = differs.expect_err("diff ends with 1").to_string();
    println!("{differs}");
    assert!(
        differs.contains("-    attempts: 1") && differs.contains("+    attempts: 3"),
        "{differs}"
    );

    // An editor that does what a person would.
    let edit = async |change: &str| {
        let editor = server.cluster.directory().join("editor");
        std::fs::write(
            &editor,
            format!("#!/bin/sh\nexec sed -i '{change}' \"$1\"\n"),
        )?;
        std::fs::set_permissions(&editor, std::fs::Permissions::from_mode(0o755))?;
        let edit = ["edit", "resiliencepolicy", "payments", "--namespace=shop"];
        let mut command = server.cluster.kubectl_command();
        programs::run(command.args(edit).env("KUBE_EDITOR", editor)).await
    };
    let said = edit("s/attempts: 1/attempts: 2/").await?;
    assert!(said.contains("edited"), "{said}");
    assert_eq!(kubectl(&attempts, "").await?, "2");
    let refused = edit("s/attempts: 2/attempts: 11/").await;
    let refused = refused.expect_err("the server refuses it").to_string();
    println!("{refused}");
    assert!(refused.contains("is invalid"), "{refused}");
    assert_eq!(kubectl(&attempts, "").await?, "2");

    let listed = kubectl(&["get", "weir", "--namespace=shop"], "").await?;
    assert!(listed.contains("payments"), "{listed}");
    server.cluster.shutdown().await
}
