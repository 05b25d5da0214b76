//! What somebody may have meant.

/// The candidate that `written` is most likely a misspelling of: equal but for
/// case, or at most a third of its letters apart.
pub(super) fn nearest<'a>(
    written: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    // Longer than any field or word there is, and expensive to compare.
    if written.len() > 64 {
        return None;
    }
    let folded = written.to_lowercase();
    candidates
        .into_iter()
        .map(|candidate| (distance(&folded, &candidate.to_lowercase()), candidate))
        .filter(|(distance, candidate)| {
            *distance <= (candidate.len().max(written.len()) / 3).max(1)
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Letters to add, take away, replace or swap (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before_last: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = replaced.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(before_last[j - 2] + 1);
            }
            row.push(least);
        }
        before_last = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelling_finds_its_word_and_a_stranger_none() {
        let fields = ["retries", "routes", "timeouts", "circuitBreaker"];
        assert_eq!(nearest("retires", fields), Some("retries"));
        assert_eq!(nearest("timeout", fields), Some("timeouts"));
        assert_eq!(nearest("CIRCUITBREAKER", fields), Some("circuitBreaker"));
        assert_eq!(nearest("circuit-braker", fields), Some("circuitBreaker"));
        assert_eq!(nearest("colour", fields), None);
        assert_eq!(nearest(&"r".repeat(100), fields), None);
    }
}
