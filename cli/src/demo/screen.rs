//! The terminal as a place to draw on.

use std::fmt::Write as _;
use std::io::{self, Write as _, stdout};

use crossterm::style::{Attribute, Color, SetAttribute, SetForegroundColor};
use crossterm::terminal::{
    BeginSynchronizedUpdate, Clear, ClearType, EndSynchronizedUpdate, EnterAlternateScreen,
    LeaveAlternateScreen, size,
};
use crossterm::{Command, cursor, execute};

/// What is drawn for where the terminal does not tell.
const USUAL_SIZE: (u16, u16) = (80, 24);

/// How text looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    Plain,
    Bold,
    Dim,
    Good,
    Bad,
    Warn,
}

/// One line of text in styles.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Line(Vec<(Style, String)>);

impl Line {
    /// A line of one style.
    pub(super) fn of(style: Style, text: impl Into<String>) -> Line {
        Line(vec![(style, text.into())])
    }

    /// The same with more text.
    pub(super) fn and(mut self, style: Style, text: impl Into<String>) -> Line {
        self.0.push((style, text.into()));
        self
    }

    /// The text alone.
    #[cfg(test)]
    pub(super) fn text(&self) -> String {
        self.0.iter().map(|(_, text)| text.as_str()).collect()
    }

    /// As many lines as it needs at this width, those after the first indented.
    /// Broken anywhere: a path has no blanks.
    pub(super) fn wrap(self, width: usize, indent: usize) -> Vec<Line> {
        let blank = || (Style::Plain, " ".repeat(indent));
        let mut lines = vec![Line::default()];
        let mut left = width.max(indent + 1);
        for (style, text) in self.0 {
            let mut rest = text.chars().peekable();
            while rest.peek().is_some() {
                if left == 0 {
                    lines.push(Line(vec![blank()]));
                    left = width.max(indent + 1) - indent;
                }
                let part: String = rest.by_ref().take(left).collect();
                left -= part.chars().count();
                if let Some(line) = lines.last_mut() {
                    line.0.push((style, part));
                }
            }
        }
        lines
    }

    /// For a terminal of this width.
    fn render(&self, width: usize, colours: bool, out: &mut String) {
        let mut left = width;
        for (style, text) in &self.0 {
            let shown: String = text.chars().take(left).collect();
            left -= shown.chars().count();
            if colours {
                begin(*style, out);
            }
            out.push_str(&shown);
            if colours {
                ansi(SetAttribute(Attribute::Reset), out);
            }
        }
    }
}

fn begin(style: Style, out: &mut String) {
    match style {
        Style::Plain => {}
        Style::Bold => ansi(SetAttribute(Attribute::Bold), out),
        Style::Dim => ansi(SetAttribute(Attribute::Dim), out),
        Style::Good => ansi(SetForegroundColor(Color::DarkGreen), out),
        Style::Bad => ansi(SetForegroundColor(Color::DarkRed), out),
        Style::Warn => ansi(SetForegroundColor(Color::DarkYellow), out),
    }
}

fn ansi(command: impl Command, out: &mut String) {
    // Writing to a string cannot fail.
    let _ = command.write_ansi(out);
}

/// The terminal's second screen, left again when this is dropped.
pub(super) struct Screen {
    colours: bool,
}

impl Screen {
    /// Takes the terminal over. Ctrl-C works as ever.
    pub(super) fn open() -> io::Result<Screen> {
        let screen = Screen {
            colours: std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
        };
        execute!(stdout(), EnterAlternateScreen, cursor::Hide)?;
        Ok(screen)
    }

    /// Columns and rows.
    pub(super) fn size() -> (usize, usize) {
        let (columns, rows) = size().unwrap_or(USUAL_SIZE);
        (usize::from(columns), usize::from(rows))
    }

    /// Shows these lines, and nothing else, in one write.
    pub(super) fn draw(&self, lines: &[Line]) -> io::Result<()> {
        let (width, height) = Screen::size();
        let mut out = String::new();
        ansi(BeginSynchronizedUpdate, &mut out);
        ansi(cursor::MoveTo(0, 0), &mut out);
        for (row, line) in lines.iter().take(height).enumerate() {
            if row > 0 {
                let _ = write!(out, "\r\n");
            }
            line.render(width, self.colours, &mut out);
            // Overwritten and then cleared to its end: nothing is ever blank in between.
            ansi(Clear(ClearType::UntilNewLine), &mut out);
        }
        ansi(Clear(ClearType::FromCursorDown), &mut out);
        ansi(EndSynchronizedUpdate, &mut out);
        let mut terminal = stdout().lock();
        terminal.write_all(out.as_bytes())?;
        terminal.flush()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // There is nobody left to tell.
        let _ = execute!(stdout(), cursor::Show, LeaveAlternateScreen);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_is_wrapped_loses_nothing() {
        let lines = Line::of(Style::Dim, "0:07  ")
            .and(Style::Bad, "abcdefg")
            .wrap(8, 6);
        let texts: Vec<String> = lines.iter().map(Line::text).collect();
        assert_eq!(texts, ["0:07  ab", "      cd", "      ef", "      g"]);
    }

    #[test]
    fn a_line_is_cut_to_the_terminal_whatever_its_styles() {
        let line = Line::of(Style::Bold, "abc").and(Style::Bad, "→ef");
        let mut plain = String::new();
        line.render(4, false, &mut plain);
        assert_eq!(plain, "abc→");
        let mut coloured = String::new();
        line.render(4, true, &mut coloured);
        assert!(
            coloured.starts_with("\x1b[1mabc\x1b[0m") && coloured.ends_with("→\x1b[0m"),
            "{coloured:?}"
        );
    }
}
