//! How many tests ran, added up from what the test runner itself says.
use std::fmt;
use std::ops::AddAssign;

/// Tests by outcome. Shown as `N passed, N failed`, and `, N skipped` where some were ignored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) ignored: u64,
}

impl Counts {
    /// The counts in a runner's closing line, `test result: ok. 3 passed; 0 failed; 1 ignored; …`; `None` for
    /// every other line.
    pub(crate) fn in_line(line: &str) -> Option<Self> {
        let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
        let mut found = Self::default();
        for part in counts.split(';') {
            let Some((number, what)) = part.trim().split_once(' ') else {
                continue;
            };
            match what {
                "passed" => found.passed = number.parse().ok()?,
                "failed" => found.failed = number.parse().ok()?,
                "ignored" => found.ignored = number.parse().ok()?,
                _ => {}
            }
        }
        Some(found)
    }

    /// How many tests were run.
    pub(crate) fn ran(self) -> u64 {
        self.passed + self.failed
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{} passed, {} failed", self.passed, self.failed)?;
        match self.ignored {
            0 => Ok(()),
            ignored => write!(to, ", {ignored} skipped"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runners_closing_line_is_counted() {
        let ok = "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.04s";
        let failed = "test result: FAILED. 2 passed; 5 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1s";
        let mut sum = Counts::in_line(ok).unwrap();
        sum += Counts::in_line(failed).unwrap();
        assert_eq!(
            sum,
            Counts {
                passed: 14,
                failed: 5,
                ignored: 1
            }
        );
        assert_eq!(sum.to_string(), "14 passed, 5 failed, 1 skipped");
    }

    #[test]
    fn what_a_test_prints_is_not_counted() {
        for line in [
            "running 3 tests",
            "test result",
            "the test result: ok. 9 passed; 0 failed",
            "",
        ] {
            assert_eq!(Counts::in_line(line), None, "{line}");
        }
    }
}
