use std::fmt::Debug;
use std::future::Future;
use std::time::Duration;

use tokio::time::Instant;

/// How long a condition may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// Looks until `look` gives something; fails the test, naming what was waited
/// for, when it has not within 20 s.
pub async fn eventually<T, F: Future<Output = Result<T, E>>, E: Debug>(
    what: &str,
    look: impl FnMut() -> F,
) -> T {
    eventually_within(PATIENCE, what, look).await
}

/// The same with another bound.
#[allow(clippy::panic)] // this is how a test fails
pub async fn eventually_within<T, F: Future<Output = Result<T, E>>, E: Debug>(
    patience: Duration,
    what: &str,
    mut look: impl FnMut() -> F,
) -> T {
    let until = Instant::now() + patience;
    loop {
        match look().await {
            Ok(found) => return found,
            Err(last) if Instant::now() >= until => {
                panic!("waited {patience:?} for {what}; last seen: {last:?}")
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}
