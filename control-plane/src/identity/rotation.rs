//! When the root is changed for another, so that nobody is left behind: the
//! new one is published beside the old, signs only once everybody had time to
//! read both, and the old one goes when nothing that it signed is valid.
//!
//! ```text
//! current ──▶ current + next ──▶ previous + current ──▶ current
//!      a third of    published for        all that the old
//!      life left     `overlap`            one signed ran out
//! ```
//! [`plan`] is the whole rule. It reads no clock and does no I/O.

use std::time::Duration;

use jiff::Timestamp;

use super::root::{Certificate, CertificateError, Root};

/// How long certificates and streams live, and how long two roots stand side
/// by side.
#[derive(Clone, Copy, Debug)]
pub struct Lifetimes {
    /// Of a root. Another is made when a third of it is left.
    pub root: Duration,
    /// Of a server's certificate, which is renewed after two thirds of it.
    pub server: Duration,
    /// How long a new root is published before it signs. Agents read the
    /// bundle whenever they connect, and the kubelet brings a changed one into
    /// a pod within two minutes.
    pub overlap: Duration,
    /// Of a stream, at most; at least three fifths of it, unless its token runs
    /// out before. Then the agent opens another, with the token that it has by
    /// then. After half of it a connection takes no new streams, so that none
    /// outlives the root that vouched for it.
    pub stream: Duration,
}

impl Default for Lifetimes {
    fn default() -> Lifetimes {
        const DAY: Duration = Duration::from_secs(86_400);
        Lifetimes {
            root: 365 * DAY,
            server: DAY,
            overlap: DAY,
            stream: Duration::from_secs(50 * 60),
        }
    }
}

/// All roots that count, as the Secret holds them.
#[derive(Clone, Debug)]
pub(crate) struct Roots {
    /// The one that signs.
    pub(crate) current: Root,
    /// The one that will.
    pub(crate) next: Option<Next>,
    /// The one that did. Its key is gone.
    pub(crate) previous: Option<Previous>,
}

#[derive(Clone, Debug)]
pub(crate) struct Next {
    pub(crate) root: Root,
    /// Since when the published bundle has it.
    pub(crate) published: Option<Timestamp>,
}

#[derive(Clone, Debug)]
pub(crate) struct Previous {
    pub(crate) certificate: Certificate,
    /// When nothing that it signed is valid any more.
    pub(crate) until: Timestamp,
}

impl Roots {
    pub(crate) fn new(now: Timestamp, lifetimes: &Lifetimes) -> Result<Roots, CertificateError> {
        Ok(Roots {
            current: Root::make(now, lifetimes.root)?,
            next: None,
            previous: None,
        })
    }

    /// What agents are to trust, in PEM.
    pub(crate) fn bundle(&self) -> String {
        let mut bundle = self.current.certificate().pem().to_owned();
        if let Some(next) = &self.next {
            bundle.push_str(next.root.certificate().pem());
        }
        if let Some(previous) = &self.previous {
            bundle.push_str(previous.certificate.pem());
        }
        bundle
    }

    /// The roots after a change.
    pub(crate) fn after(
        &self,
        change: Change,
        now: Timestamp,
        lifetimes: &Lifetimes,
    ) -> Result<Roots, CertificateError> {
        let mut roots = self.clone();
        match change {
            Change::Prepare => {
                roots.next = Some(Next {
                    root: Root::make(now, lifetimes.root)?,
                    published: None,
                });
            }
            Change::NotePublished => {
                if let Some(next) = &mut roots.next {
                    next.published = Some(now);
                }
            }
            Change::Switch => {
                if let Some(next) = roots.next.take() {
                    // Twice: another replica may sign with the old one until
                    // it hears of this.
                    let until = now
                        .saturating_add(2 * lifetimes.server)
                        .unwrap_or(Timestamp::MAX);
                    let certificate = roots.current.certificate().clone();
                    roots.previous = Some(Previous { certificate, until });
                    roots.current = next.root;
                }
            }
            Change::Drop => roots.previous = None,
        }
        Ok(roots)
    }
}

/// What is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing, until then.
    Wait(Timestamp),
    /// Write the bundle to where agents find it.
    Publish,
    /// Write other roots.
    Write(Change),
}

/// How the roots change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Make the next root.
    Prepare,
    /// Note that the next root is published.
    NotePublished,
    /// Sign with the next root from now on.
    Switch,
    /// Forget the previous root.
    Drop,
}

/// What is to be done about `roots`, while the bundle `published` is what
/// agents find.
pub(crate) fn plan(
    roots: &Roots,
    published: Option<&str>,
    now: Timestamp,
    lifetimes: &Lifetimes,
) -> Step {
    // First of all: every other step counts on it.
    if published != Some(&roots.bundle()) {
        return Step::Publish;
    }
    let current = roots.current.certificate();
    let (change, due) = match (&roots.next, &roots.previous) {
        (Some(next), _) => match next.published {
            None => (Change::NotePublished, now),
            Some(since) => {
                let overlapped = since
                    .saturating_add(lifetimes.overlap)
                    .unwrap_or(Timestamp::MAX);
                // A root that has run out is trusted by nobody: nothing to wait for.
                (Change::Switch, overlapped.min(current.not_after()))
            }
        },
        (None, Some(previous)) => (Change::Drop, previous.until),
        (None, None) => (Change::Prepare, current.last_third()),
    };
    if due <= now {
        Step::Write(change)
    } else {
        Step::Wait(due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn days(n: u32) -> Duration {
        Duration::from_secs(86_400) * n
    }

    fn planned(roots: &Roots, now: Timestamp) -> Step {
        plan(roots, Some(&roots.bundle()), now, &Lifetimes::default())
    }

    fn certificates(bundle: &str) -> usize {
        bundle.matches("BEGIN CERTIFICATE").count()
    }

    #[test]
    fn a_new_root_is_published_before_anything_else() {
        let now = at("2026-01-01T00:00:00Z");
        let lifetimes = Lifetimes::default();
        let roots = Roots::new(now, &lifetimes).unwrap();
        assert_eq!(plan(&roots, None, now, &lifetimes), Step::Publish);
        assert_eq!(plan(&roots, Some("other"), now, &lifetimes), Step::Publish);
        assert!(matches!(planned(&roots, now), Step::Wait(_)));
    }

    #[test]
    fn a_root_is_changed_in_four_steps_and_agents_know_every_signer_all_the_time() {
        let lifetimes = Lifetimes::default();
        let mut now = at("2026-01-01T00:00:00Z");
        let mut roots = Roots::new(now, &lifetimes).unwrap();
        let first = roots.current.certificate().clone();

        let Step::Wait(until) = planned(&roots, now) else {
            panic!("nothing to do yet")
        };
        let left = first.not_after().duration_since(until);
        assert!(left.as_secs() / 86_400 == 365 / 3, "{left:?}");
        now = until;
        assert_eq!(planned(&roots, now), Step::Write(Change::Prepare));

        roots = roots.after(Change::Prepare, now, &lifetimes).unwrap();
        assert_eq!(certificates(&roots.bundle()), 2);
        assert_eq!(roots.current.certificate(), &first);
        // Not published yet: the clock does not run.
        assert_eq!(
            plan(&roots, Some(first.pem()), now, &lifetimes),
            Step::Publish
        );

        assert_eq!(planned(&roots, now), Step::Write(Change::NotePublished));
        roots = roots.after(Change::NotePublished, now, &lifetimes).unwrap();
        let switch = now.saturating_add(lifetimes.overlap).unwrap();
        assert_eq!(planned(&roots, now), Step::Wait(switch));

        now = switch;
        assert_eq!(planned(&roots, now), Step::Write(Change::Switch));
        roots = roots.after(Change::Switch, now, &lifetimes).unwrap();
        assert_ne!(roots.current.certificate(), &first);
        assert_eq!(certificates(&roots.bundle()), 2);
        assert!(roots.bundle().contains(first.pem()));

        let gone = now.saturating_add(days(2)).unwrap();
        assert_eq!(planned(&roots, now), Step::Wait(gone));
        now = gone;
        assert_eq!(planned(&roots, now), Step::Write(Change::Drop));
        roots = roots.after(Change::Drop, now, &lifetimes).unwrap();
        assert_eq!(roots.bundle(), roots.current.certificate().pem());
        assert!(matches!(planned(&roots, now), Step::Wait(_)));
    }

    #[test]
    fn a_root_that_ran_out_while_nobody_was_there_is_changed_at_once() {
        let lifetimes = Lifetimes::default();
        let made = at("2026-01-01T00:00:00Z");
        let now = at("2028-01-01T00:00:00Z");
        let mut roots = Roots::new(made, &lifetimes).unwrap();
        for change in [Change::Prepare, Change::NotePublished, Change::Switch] {
            assert_eq!(planned(&roots, now), Step::Write(change));
            roots = roots.after(change, now, &lifetimes).unwrap();
        }
        assert!(roots.current.certificate().not_after() > now);
    }

    #[test]
    fn a_bundle_that_somebody_took_away_stops_the_switch_until_it_is_back() {
        let lifetimes = Lifetimes::default();
        let now = at("2026-11-01T00:00:00Z");
        let roots = Roots::new(at("2026-01-01T00:00:00Z"), &lifetimes)
            .and_then(|roots| roots.after(Change::Prepare, now, &lifetimes))
            .and_then(|roots| roots.after(Change::NotePublished, now, &lifetimes))
            .unwrap();
        let later = now.saturating_add(days(9)).unwrap();
        assert_eq!(planned(&roots, later), Step::Write(Change::Switch));
        assert_eq!(plan(&roots, None, later, &lifetimes), Step::Publish);
    }
}
