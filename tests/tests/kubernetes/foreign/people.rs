//! What a person sees and changes with kubectl.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU16, Ordering::SeqCst};

use anyhow::{Context as _, Result, ensure};
use weir_tests::eventually;
use weir_tests::kubernetes::weir::Weir;

use super::policy;

/// What a person sees who looks closely.
pub(super) async fn shown(weir: &Weir) -> Result<()> {
    let wide = weir
        .cluster
        .kubectl(&["-n", "shop", "get", "cb", "-o", "wide"])
        .await?;
    println!("{wide}");
    ensure!(
        wide.contains("Open") && wide.contains("FailureRate"),
        "{wide}"
    );
    let yaml = weir
        .cluster
        .kubectl(&["-n", "shop", "get", "cb", "payments", "-o", "yaml"])
        .await?;
    ensure!(
        yaml.contains("openNodes:") && yaml.contains("node: node-a"),
        "{yaml}"
    );
    let described = eventually("kubectl describe to show the Event", || async {
        let described = weir
            .cluster
            .kubectl(&["-n", "shop", "describe", "rp", "payments"])
            .await
            .map_err(|error| error.to_string())?;
        if described.contains("CircuitOpened") {
            Ok(described)
        } else {
            Err(described)
        }
    })
    .await;
    println!("{described}");
    Ok(())
}

/// `kubectl apply` as most people use it, `diff` and `replace`.
pub(super) async fn client_side(weir: &Weir, status: &AtomicU16) -> Result<()> {
    let manifest = policy("orders", "5s");
    weir.cluster
        .kubectl_in(&["apply", "-f", "-"], &manifest)
        .await?;
    weir.programmed("shop", "orders").await?;
    // It may say "configured" all the same: lists of custom resources are sent whole, without what was filled in.
    let same = async || -> Result<()> {
        let before = weir.object("shop", "rp", "orders").await?;
        weir.cluster
            .kubectl_in(&["apply", "-f", "-"], &manifest)
            .await?;
        let after = weir.object("shop", "rp", "orders").await?;
        ensure!(
            before["metadata"]["generation"] == after["metadata"]["generation"],
            "nothing was changed"
        );
        ensure!(
            before["status"]["targets"] == after["status"]["targets"],
            "{after}"
        );
        Ok(())
    };
    same().await?;
    let diff = ["diff", "-f", "-"];
    weir.cluster
        .kubectl_in(&diff, &manifest)
        .await
        .context("nothing differs")?;
    // The status changes, and that is no difference.
    status.store(503, SeqCst);
    for _ in 0..8 {
        weir.agents["node-a"].get("orders.shop", "/").await?;
    }
    weir.breaker_is("shop", "orders", "Open").await;
    weir.cluster
        .kubectl_in(&diff, &manifest)
        .await
        .context("nothing differs but status")?;
    same().await?;
    let differs = weir
        .cluster
        .kubectl_in(&diff, &policy("orders", "4s"))
        .await
        .err();
    let differs = differs.context("one field differs")?.to_string();
    ensure!(differs.contains("4s"), "{differs}");

    let before = weir.object("shop", "rp", "orders").await?;
    weir.cluster
        .kubectl_in(&["replace", "-f", "-"], &policy("orders", "4s"))
        .await?;
    weir.programmed("shop", "orders").await?;
    let object = weir.object("shop", "rp", "orders").await?;
    ensure!(
        object["status"]["targets"][0]["sections"] == before["status"]["targets"][0]["sections"],
        "{object}"
    );
    weir.cluster
        .kubectl_in(&["apply", "-f", "-"], &manifest)
        .await?;
    weir.programmed("shop", "orders").await
}

/// Two people have the same policy open in their editors, and Weir writes its status meanwhile.
pub(super) async fn editors(weir: &Weir) -> Result<()> {
    // Once the file is open, somebody else edits another field and somebody clears the status.
    let first = editor(
        weir,
        "first",
        "sed -i 's/request: 5s/request: 7s/' \"$1\"\n\
         EDITOR=\"$SECOND\" \"$KUBECTL\" -n shop edit rp orders\n\
         \"$KUBECTL\" -n shop patch rp orders --subresource=status --type=merge -p '{\"status\":null}'\n\
         \"$KUBECTL\" -n shop wait rp orders --for=condition=Programmed --timeout=30s\n",
    )?;
    let second = editor(
        weir,
        "second",
        "sed -i 's/minimumRequests: 5/minimumRequests: 6/' \"$1\"\n",
    )?;
    let mut edit = weir.cluster.kubectl_command();
    let kubectl = edit.as_std().get_program().to_owned();
    edit.args(["-n", "shop", "edit", "rp", "orders"])
        .env("EDITOR", &first)
        .env("SECOND", &second)
        .env("KUBECTL", kubectl);
    let edited = edit.output().await?;
    let said = String::from_utf8_lossy(&edited.stderr).into_owned();
    ensure!(edited.status.success(), "{said}");
    weir.programmed("shop", "orders").await?;
    let object = weir.object("shop", "rp", "orders").await?;
    ensure!(object["spec"]["timeouts"]["request"] == "7s", "{object}");
    ensure!(
        object["spec"]["circuitBreaker"]["minimumRequests"] == 6,
        "{object}"
    );
    Ok(())
}

/// A program that a person's editor stands for: it gets the file as its argument.
fn editor(weir: &Weir, name: &str, script: &str) -> Result<PathBuf> {
    let path = weir.cluster.directory().join(name);
    std::fs::write(&path, format!("#!/bin/sh\nset -e\n{script}"))?;
    std::fs::set_permissions(&path, Permissions::from_mode(0o700))?;
    Ok(path)
}
