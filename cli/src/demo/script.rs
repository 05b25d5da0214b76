//! What happens to payments, and when.

use std::time::Duration;

/// How a service does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mood {
    /// Answers within some 20 ms; one in fifty requests fails.
    Well,
    /// Every sixth answer takes more than a second.
    Slow,
    /// Hangs, or answers 500.
    Failing,
    /// Answers again, but each takes some 100 ms.
    Cold,
}

impl Mood {
    /// For people.
    pub(super) fn told(self) -> &'static str {
        match self {
            Mood::Well => "payments is well; one request in fifty fails, as in real life",
            Mood::Slow => "payments gets slow: every sixth answer takes over a second",
            Mood::Failing => "payments fails: it hangs, or answers 500",
            Mood::Cold => "payments is back, with cold caches: 100 ms an answer",
        }
    }
}

/// The shortest time in which a breaker can be seen to open and to close.
pub(super) const SHORTEST: Duration = Duration::from_secs(20);
/// How long one outage takes from beginning to end, with calm before and after.
const ROUND: Duration = Duration::from_secs(40);

/// One round: each mood, and from which part of the round on, in thousandths.
const ACTS: [(u32, Mood); 5] = [
    (0, Mood::Well),
    (175, Mood::Slow),
    (300, Mood::Failing),
    (575, Mood::Cold),
    (775, Mood::Well),
];

/// The moods in `duration`, which holds as many rounds as fit: when each begins.
pub(super) fn script(duration: Duration) -> Vec<(Duration, Mood)> {
    let rounds = u32::try_from(duration.as_millis() / ROUND.as_millis())
        .unwrap_or(u32::MAX)
        .max(1);
    let round = duration / rounds;
    let acts =
        (0..rounds).flat_map(|n| ACTS.map(|(part, mood)| (round * n + round * part / 1000, mood)));
    let mut script: Vec<(Duration, Mood)> = acts.collect();
    // A round ends as the next begins.
    script.dedup_by_key(|(_, mood)| *mood);
    script
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_demo_has_one_outage_and_a_long_one_has_many() {
        let seconds = |duration| -> Vec<(u64, Mood)> {
            script(Duration::from_secs(duration))
                .into_iter()
                .map(|(at, mood)| (at.as_secs(), mood))
                .collect()
        };
        let one = [
            (0, Mood::Well),
            (7, Mood::Slow),
            (12, Mood::Failing),
            (23, Mood::Cold),
            (31, Mood::Well),
        ];
        assert_eq!(seconds(40), one);
        assert_eq!(seconds(20).len(), 5);
        let two = seconds(100);
        assert_eq!(two.len(), 9);
        assert_eq!(
            two[3..6],
            [(28, Mood::Cold), (38, Mood::Well), (58, Mood::Slow)]
        );
    }
}
