//! Telling people what runs, on stdout.

use std::io::{Write as _, stdout};

/// Prints `text`. Perhaps nobody reads it any more: what runs goes on.
pub(crate) fn say(text: &str) {
    let mut out = stdout().lock();
    let _ = out
        .write_all(text.as_bytes())
        .and_then(|()| out.write_all(b"\n"))
        .and_then(|()| out.flush());
}

/// Two columns, indented, without the end of the last line.
pub(crate) fn aligned(lines: &[(String, String)]) -> String {
    let width = lines
        .iter()
        .map(|(what, _)| what.chars().count())
        .max()
        .unwrap_or(0);
    let lines: Vec<String> = lines
        .iter()
        .map(|(what, text)| format!("  {what:width$}  {text}"))
        .collect();
    lines.join("\n")
}
