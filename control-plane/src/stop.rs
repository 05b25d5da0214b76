//! The word that everything should end.

use tokio::sync::watch;

/// Waits until `stop` is true, or nobody can set it any more.
pub(crate) async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that the control plane was dropped, which is an end too.
    let _ = stop.wait_for(|stop| *stop).await;
}
