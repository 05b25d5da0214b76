//! Whether agents and people are answered, and if not, what is waited for.

use tokio::sync::watch;

/// Begins unready and becomes ready once: what is in force stays in force, and
/// agents are answered, whatever goes away later.
#[derive(Debug)]
pub(crate) struct Readiness(watch::Sender<Option<String>>);

impl Default for Readiness {
    fn default() -> Readiness {
        Readiness(watch::Sender::new(Some("starting".to_owned())))
    }
}

impl Readiness {
    /// Not ready: says what for. No effect once ready.
    pub(crate) fn wait_for(&self, what: String) {
        self.0.send_if_modified(|waits| match waits {
            Some(now) if *now != what => {
                *now = what;
                true
            }
            _ => false,
        });
    }

    /// Ready, for good.
    pub(crate) fn ready(&self) {
        self.0.send_replace(None);
    }

    /// What is waited for; `None` when ready.
    pub(crate) fn waits_for(&self) -> Option<String> {
        self.0.borrow().clone()
    }

    /// Returns once ready.
    pub(crate) async fn is_ready(&self) {
        // The sender is `self`, and so it is there.
        let _ = self.0.subscribe().wait_for(Option::is_none).await;
    }
}
