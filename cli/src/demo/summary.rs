//! What is said in plain text: a line now and then without a terminal, and the
//! summary at the end.

use std::time::Duration;

use super::shop::PAYMENTS;
use super::story::{Entry, Story};
use super::tally::{Tally, Totals};
use super::traffic::Side;
use super::words::{clock, share, span};

/// One thing that happened.
pub(super) fn told(entry: &Entry) -> String {
    format!("{:>5}  {}", clock(entry.at), entry.text)
}

/// How callers of payments fare, with Weir and without: two lines.
pub(super) fn status(at: Duration, tally: &Tally, story: &Story) -> String {
    let of = |side: Side| {
        let figures = tally.of(side, PAYMENTS);
        let p99 = figures
            .recent_waits()
            .percentile(99)
            .map_or_else(|| "-".to_owned(), span);
        let Totals {
            answered,
            refused,
            failed,
            ..
        } = figures.totals;
        let refused = if side == Side::With {
            format!("{refused} refused, ")
        } else {
            String::new()
        };
        format!(
            "{answered} answered, {refused}{failed} failed, {} waiting, p99 {p99}",
            figures.under_way
        )
    };
    format!(
        "{:>5}    {:<10}{}\n         {:<10}{}",
        clock(at),
        story.breaker(PAYMENTS).0,
        of(Side::With),
        "without",
        of(Side::Without)
    )
}

/// What callers of all services got.
pub(super) fn summary(tally: &Tally, elapsed: Duration) -> String {
    let (with, without) = (tally.total(Side::With), tally.total(Side::Without));
    let share_of = |of: fn(&Totals) -> u64, totals: &Totals| share(of(totals), totals.requests());
    let wait = |totals: &Totals| {
        totals
            .waits
            .percentile(99)
            .map_or_else(|| "-".to_owned(), span)
    };
    let rows = [
        (
            format!("In {}, over all services", span(elapsed)),
            "with Weir".to_owned(),
            "without".to_owned(),
        ),
        (
            "  requests served".to_owned(),
            with.requests().to_string(),
            without.requests().to_string(),
        ),
        (
            "  got a good answer".to_owned(),
            share_of(|totals| totals.answered, &with),
            share_of(|totals| totals.answered, &without),
        ),
        (
            "    after a retry by Weir".to_owned(),
            share_of(|totals| totals.retried, &with),
            "-".to_owned(),
        ),
        (
            "  refused at once".to_owned(),
            share_of(|totals| totals.refused, &with),
            "-".to_owned(),
        ),
        (
            "  failed".to_owned(),
            share_of(|totals| totals.failed, &with),
            share_of(|totals| totals.failed, &without),
        ),
        (
            "  time waited in vain".to_owned(),
            span(with.in_vain),
            span(without.in_vain),
        ),
        (
            "  99 of 100 waited at most".to_owned(),
            wait(&with),
            wait(&without),
        ),
    ];
    rows.iter()
        .map(|(what, with, without)| format!("{what:<32}{with:>16}{without:>16}\n"))
        .collect()
}
