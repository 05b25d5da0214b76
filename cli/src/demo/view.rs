//! What the live view shows, as lines: how services and their breakers do, what
//! callers get with Weir and without, and what happened.

use std::time::Duration;

use super::screen::{Line, Style};
use super::script::Mood;
use super::shop::{NAMES, PAYMENTS};
use super::story::{Entry, State, Story, Tone};
use super::tally::{Figures, Tally};
use super::traffic::Side;
use super::words::{clock, share, span};

/// Width that is drawn for, at least.
const WIDTH: usize = 80;
/// Columns of the time before an entry.
const INDENT: usize = 6;
/// Columns of the timeline, one a second.
const TIMELINE: usize = 36;
/// Bars of the timeline, by the share of requests that were answered.
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// What is shown.
pub(super) struct View<'a> {
    pub(super) tally: &'a Tally,
    pub(super) story: &'a Story,
    pub(super) mood: Mood,
    pub(super) elapsed: Duration,
    pub(super) duration: Duration,
    /// Lines about what to try, at the bottom.
    pub(super) hints: &'a [String],
}

impl View<'_> {
    /// The lines for a terminal of this size.
    pub(super) fn lines(&self, (columns, rows): (usize, usize)) -> Vec<Line> {
        let mut lines = vec![self.title(), self.mood_line(), Line::default()];
        lines.push(heading());
        for service in 0..NAMES.len() {
            lines.push(self.service(service));
            if service == PAYMENTS {
                lines.push(self.without());
            }
        }
        lines.push(Line::default());
        lines.extend(self.callers());
        lines.push(Line::default());
        let space = rows.saturating_sub(lines.len() + self.hints.len()).max(1);
        let mut told: Vec<Line> = self.story.latest(space).map(entry).collect();
        // The last one whole: an edit that is wrong says what to write instead.
        if let Some(last) = told.pop() {
            told.extend(last.wrap(columns, INDENT));
        }
        let shown = told.split_off(told.len().saturating_sub(space));
        let blank = space - shown.len();
        lines.extend(shown);
        lines.extend(std::iter::repeat_n(Line::default(), blank));
        lines.extend(self.hints.iter().map(|hint| Line::of(Style::Dim, hint)));
        lines
    }

    fn title(&self) -> Line {
        let left = "Weir: an outage, with and without";
        let right = format!(
            "{} of {}   Ctrl-C ends",
            clock(self.elapsed),
            clock(self.duration)
        );
        let gap = WIDTH.saturating_sub(left.chars().count() + right.chars().count());
        Line::of(Style::Bold, left).and(Style::Dim, format!("{}{right}", " ".repeat(gap)))
    }

    fn mood_line(&self) -> Line {
        let style = match self.mood {
            Mood::Well => Style::Good,
            Mood::Slow | Mood::Cold => Style::Warn,
            Mood::Failing => Style::Bad,
        };
        Line::of(style, format!("▶ {}", self.mood.told()))
    }

    fn present(&self) -> usize {
        usize::try_from(self.elapsed.as_secs()).unwrap_or(usize::MAX)
    }

    fn service(&self, service: usize) -> Line {
        let (state, _) = self.story.breaker(service);
        let style = match state {
            "Closed" | "ForcedClosed" => Style::Good,
            "HalfOpen" => Style::Warn,
            _ => Style::Bad,
        };
        let name = if service == PAYMENTS {
            Style::Bold
        } else {
            Style::Plain
        };
        let line =
            Line::of(name, format!("{:<17}", NAMES[service])).and(style, format!("{state:<12}"));
        let figures = self.tally.of(Side::With, service);
        self.timeline(line, figures, |second| self.story.state_in(service, second))
    }

    fn without(&self) -> Line {
        let line = Line::of(Style::Dim, format!("{:<29}", "  without Weir"));
        self.timeline(line, self.tally.of(Side::Without, PAYMENTS), |_| {
            State::Closed
        })
    }

    /// The last seconds, and how many requests had a good answer in the last
    /// whole one.
    fn timeline(&self, mut line: Line, figures: &Figures, state: impl Fn(usize) -> State) -> Line {
        let first = (self.present() + 1).saturating_sub(TIMELINE);
        let mut width = 0;
        for number in first..=self.present() {
            let Some(second) = figures.second(number) else {
                continue;
            };
            width += 1;
            let (style, mark) = match state(number) {
                State::Open => (Style::Bad, '×'),
                State::HalfOpen => (Style::Warn, '?'),
                State::Closed if second.ended == 0 && number == self.present() => {
                    (Style::Plain, ' ')
                }
                State::Closed if second.ended == 0 => (Style::Bad, BARS[0]),
                State::Closed => bar(second.answered, second.ended),
            };
            line = line.and(style, mark);
        }
        let last = self
            .present()
            .checked_sub(1)
            .and_then(|last| figures.second(last))
            .map_or(0, |s| s.answered);
        line.and(
            Style::Plain,
            format!("{}{last:>8}", " ".repeat(TIMELINE - width)),
        )
    }

    fn callers(&self) -> Vec<Line> {
        let (with, without) = (
            self.tally.of(Side::With, PAYMENTS),
            self.tally.of(Side::Without, PAYMENTS),
        );
        let heading = format!(
            "{:<29}{:>18}{:>18}",
            "CALLERS OF payments", "WITH WEIR", "WITHOUT"
        );
        let mut lines = vec![Line::of(Style::Dim, heading)];
        let (a, b) = (&with.totals, &without.totals);
        let row = |what: &str, style: Style, with: String, without: String| {
            Line::of(Style::Plain, format!("  {what:<27}"))
                .and(style, format!("{with:>18}{without:>18}"))
        };
        lines.push(row(
            "got a good answer",
            Style::Good,
            share(a.answered, a.requests()),
            share(b.answered, b.requests()),
        ));
        lines.push(row(
            "  after a retry by Weir",
            Style::Plain,
            a.retried.to_string(),
            "-".to_owned(),
        ));
        lines.push(row(
            "refused at once",
            Style::Plain,
            share(a.refused, a.requests()),
            "-".to_owned(),
        ));
        lines.push(row(
            "failed",
            Style::Bad,
            share(a.failed, a.requests()),
            share(b.failed, b.requests()),
        ));
        lines.push(row(
            "waited in vain, together",
            Style::Bold,
            span(a.in_vain),
            span(b.in_vain),
        ));
        lines.push(row(
            "are waiting now",
            Style::Plain,
            with.under_way.to_string(),
            without.under_way.to_string(),
        ));
        lines.push(row(
            "wait now, p50 / p99",
            Style::Plain,
            waits(with),
            waits(without),
        ));
        lines
    }
}

/// The share of requests with a good answer, as a bar.
fn bar(answered: u64, ended: u64) -> (Style, char) {
    let eighths = usize::try_from(answered * 8 / ended.max(1)).unwrap_or(0);
    // One in eight failing is where people begin to complain.
    let style = if eighths >= 7 {
        Style::Good
    } else {
        Style::Bad
    };
    (style, BARS[eighths.saturating_sub(1).min(BARS.len() - 1)])
}

/// With what the marks of the timeline mean.
fn heading() -> Line {
    Line::of(Style::Dim, format!("{:<17}{:<12}", "SERVICE", "BREAKER"))
        .and(Style::Good, "█")
        .and(Style::Dim, " answered ")
        .and(Style::Bad, "▃")
        .and(Style::Dim, " some ")
        .and(Style::Bad, "×")
        .and(Style::Dim, " open ")
        .and(Style::Warn, "?")
        .and(Style::Dim, " half-open    GOOD/S")
}

fn waits(figures: &Figures) -> String {
    let waits = figures.recent_waits();
    match (waits.percentile(50), waits.percentile(99)) {
        (Some(half), Some(most)) => format!("{} / {}", span(half), span(most)),
        _ => "-".to_owned(),
    }
}

fn entry(entry: &Entry) -> Line {
    let style = match entry.tone {
        Tone::Announced => Style::Bold,
        Tone::Bad => Style::Bad,
        Tone::Hopeful => Style::Warn,
        Tone::Good => Style::Good,
    };
    Line::of(Style::Dim, format!("{}  ", clock(entry.at))).and(style, entry.text.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::traffic::{End, News, Stream};
    use weir_control_plane::events::{Event, Severity};

    fn transition(second: i64, from: &'static str, to: &'static str) -> Event {
        Event {
            at_unix_ms: second * 1_000,
            severity: Severity::Normal,
            reason: "CircuitOpened",
            kind: "CircuitBreaker",
            namespace: "shop".to_owned(),
            name: "payments".to_owned(),
            node: None,
            from: Some(from),
            to: Some(to),
            shadow: false,
            message: "51% of 375 requests failed in 2s: timeout ×175, 500 ×16".to_owned(),
        }
    }

    #[test]
    fn everything_fits_a_terminal_of_80_by_24() {
        let mut tally = Tally::default();
        let mut story = Story::begin(0);
        for (second, answered, refused) in [
            (0, 8, 0),
            (1, 8, 0),
            (2, 2, 6),
            (3, 0, 8),
            (4, 0, 8),
            (5, 8, 0),
        ] {
            for (end, count) in [(End::Answered, answered), (End::Refused, refused)] {
                for _ in 0..count {
                    let stream = Stream {
                        service: PAYMENTS,
                        side: Side::With,
                    };
                    tally.count(second, stream, News::Sent);
                    tally.count(second, stream, News::Ended(end, Duration::from_millis(20)));
                }
            }
        }
        tally.reach(6);
        let way = [
            (3, "Closed", "Open"),
            (4, "Open", "HalfOpen"),
            (5, "HalfOpen", "Closed"),
        ];
        for (second, from, to) in way {
            story.hear(&transition(second, from, to));
        }
        let view = View {
            tally: &tally,
            story: &story,
            mood: Mood::Well,
            elapsed: Duration::from_millis(6_500),
            duration: Duration::from_secs(40),
            hints: &["try this".to_owned()],
        };
        let lines: Vec<String> = view.lines((80, 24)).iter().map(Line::text).collect();
        assert_eq!(lines.len(), 24, "{lines:#?}");
        assert!(lines[0].ends_with("0:06 of 0:40   Ctrl-C ends"));
        assert_eq!(
            lines[5].trim_end(),
            format!("payments         Closed      ██▂×?█ {:29}       8", "")
        );
        assert_eq!(
            lines[10],
            "  got a good answer                    26   54%           0    0%"
        );
        assert_eq!(lines[23], "try this");
        // Its last line goes on below itself; the others are cut where the terminal ends.
        let last = lines
            .iter()
            .position(|line| line.starts_with("0:05  payments HalfOpen"))
            .unwrap();
        assert_eq!(lines[last + 1], "      , 500 ×16");
        assert!(
            lines
                .iter()
                .all(|line| line.starts_with("0:0") || line.chars().count() <= 80),
            "{lines:#?}"
        );
    }
}
