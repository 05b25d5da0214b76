//! Every case of the table of rules.

use anyhow::Result;
use weir_crds::Kind;

use crate::server::{Server, Verdict};
use crate::support::policy;
use crate::support::table::{rules, table};

#[tokio::test]
async fn every_rule_refuses_on_a_real_server_at_its_field_and_says_what_to_write() -> Result<()> {
    let Some(server) = Server::start().await? else {
        return Ok(());
    };
    let (good, bad) = table();

    let objects: Vec<_> = good
        .iter()
        .map(|spec| (Kind::ResiliencePolicy, policy(spec)))
        .collect();
    let verdicts = server.verdicts(&objects).await?;
    for ((kind, object), verdict) in objects.iter().zip(&verdicts) {
        Server::same(*kind, object, verdict)?;
        assert!(verdict.taken().is_some(), "{object}: {verdict:?}");
    }

    let objects: Vec<_> = bad
        .iter()
        .map(|refusal| (Kind::ResiliencePolicy, policy(&refusal.spec)))
        .collect();
    let verdicts = server.verdicts(&objects).await?;
    let mut told = Vec::new();
    for ((case, (kind, object)), verdict) in bad.iter().zip(&objects).zip(&verdicts) {
        Server::same(*kind, object, verdict)?;
        let Verdict::Refused(refusal) = verdict else {
            panic!("taken: {object}");
        };
        // The value stands elsewhere in the server's words.
        let says = case
            .says
            .split_once(" must be")
            .map_or_else(|| case.says.clone(), |(_, range)| format!("must be{range}"));
        let said = |cause: &(String, String)| is_about(cause, &case.at) && cause.1.contains(&says);
        assert!(
            refusal.causes.iter().any(said),
            "{object}: not {says:?} at {}: {refusal:?}",
            case.at
        );
        let causes = refusal.causes.iter().cloned();
        told.extend(causes.map(|(field, message)| (field.replace("[0]", "[]"), message)));
    }

    let rules: Vec<_> = Kind::ALL
        .into_iter()
        .flat_map(|kind| rules(kind.schema(), ""))
        .collect();
    for (at, message) in &rules {
        let refuses = |cause: &(String, String)| is_about(cause, at) && cause.1.contains(message);
        assert!(
            told.iter().any(refuses),
            "nothing was refused at {at} by: {message}"
        );
    }
    println!(
        "{} policies taken and {} refused, by each of the {} rules at least once",
        good.len(),
        bad.len(),
        rules.len()
    );
    server.cluster.shutdown().await
}

/// Whether a cause is about the field at this path. A rule that cannot be evaluated, about a regular expression that is
/// none, is told at what holds the field.
fn is_about((field, message): &(String, String), path: &str) -> bool {
    field == path || message.contains("evaluating rule: ") && path.starts_with(&format!("{field}."))
}
