//! What is found, and how it is told.

use std::fmt;

use serde::Serialize;

/// What one check came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    /// What was looked at, in a word or two.
    pub(super) check: &'static str,
    /// What it means for capture.
    pub(super) level: Level,
    /// What was found.
    pub(super) found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) next: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Level {
    /// As it should be.
    Ok,
    /// It cannot be seen from here.
    Unknown,
    /// Something will not be captured, or needs a setting.
    Warning,
    /// Capture does not work here.
    Error,
}

impl Finding {
    pub(super) fn ok(check: &'static str, found: impl Into<String>) -> Finding {
        Finding::new(check, Level::Ok, found)
    }

    pub(super) fn unknown(check: &'static str, found: impl Into<String>) -> Finding {
        Finding::new(check, Level::Unknown, found)
    }

    pub(super) fn warning(check: &'static str, found: impl Into<String>) -> Finding {
        Finding::new(check, Level::Warning, found)
    }

    pub(super) fn error(check: &'static str, found: impl Into<String>) -> Finding {
        Finding::new(check, Level::Error, found)
    }

    /// Says what to do about it.
    pub(super) fn next(mut self, step: impl Into<String>) -> Finding {
        self.next = Some(step.into());
        self
    }

    fn new(check: &'static str, level: Level, found: impl Into<String>) -> Finding {
        Finding {
            check,
            level,
            found: found.into(),
            next: None,
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Level::Ok => "ok",
            Level::Unknown => "unknown",
            Level::Warning => "warning",
            Level::Error => "error",
        })
    }
}

/// For people: a line for each finding, under it what to do, and at the end what it comes to.
/// `tried`: whether more than files was looked at.
pub(super) fn text(findings: &[Finding], tried: bool) -> String {
    let mut text = String::new();
    for finding in findings {
        let Finding {
            check,
            level,
            found,
            next,
        } = finding;
        text.push_str(&format!("{level:7}  {check:18}  {found}\n"));
        if let Some(next) = next {
            for line in next.lines() {
                text.push_str(&format!("{:29}{line}\n", ""));
            }
        }
    }
    let count = |level| {
        findings
            .iter()
            .filter(|finding| finding.level == level)
            .count()
    };
    let good = match tried {
        true => "Capture works here",
        false => "Nothing that can be read is in capture's way here; it was not tried",
    };
    let verdict = match (count(Level::Error), count(Level::Warning)) {
        (0, 0) => format!("{good}."),
        (0, 1) => format!("{good}; look at the warning."),
        (0, warnings) => format!("{good}; look at the {warnings} warnings."),
        (1, _) => "Capture does not work here: see the error.".to_owned(),
        (errors, _) => format!("Capture does not work here: see the {errors} errors."),
    };
    text.push('\n');
    text.push_str(&verdict);
    text.push('\n');
    text
}
