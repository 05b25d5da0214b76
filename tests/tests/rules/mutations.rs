//! What somebody changed in good objects, here and there.

use anyhow::Result;
use weir_crds::Kind;

use crate::generate::Author;
use crate::server::Server;
use crate::shrink::smallest;

/// The same objects in every run.
const SEED: u64 = 4;
const POLICIES: usize = 1_000;
const BREAKERS: usize = 250;

/// Differences that are told in full.
const TOLD: usize = 20;

#[tokio::test]
async fn weir_check_and_the_api_server_agree_on_objects_that_somebody_changed() -> Result<()> {
    let Some(server) = Server::start().await? else {
        return Ok(());
    };
    let mut author = Author::new(SEED);
    let mut objects = Vec::new();
    objects.extend((0..POLICIES).map(|_| (Kind::ResiliencePolicy, author.policy())));
    objects.extend((0..BREAKERS).map(|_| (Kind::CircuitBreaker, author.breaker())));

    let verdicts = server.verdicts(&objects).await?;
    let (mut taken, mut differences) = (0, Vec::new());
    for ((kind, object), verdict) in objects.iter().zip(&verdicts) {
        taken += usize::from(verdict.taken().is_some());
        if Server::same(*kind, object, verdict).is_err() {
            differences.push((*kind, object));
        }
    }
    println!(
        "seed {SEED}: {POLICIES} policies and {BREAKERS} breakers, of which the server takes {taken}; {} differences",
        differences.len()
    );
    for (kind, object) in differences.iter().take(TOLD) {
        let (object, difference) = smallest(&server, *kind, object).await?;
        println!("{object}\n{difference}\n");
    }
    assert!(
        differences.is_empty(),
        "the verdicts differ on the objects above"
    );
    server.cluster.shutdown().await
}
