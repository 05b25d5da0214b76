//! A table that may go on for as long as somebody watches.

use jiff::Timestamp;
use serde_json::Value;
use weir_crds::Kind;
use weir_crds::columns::{headings, row};

/// Blanks between columns.
const GAP: usize = 3;
/// Columns whose cells change their width, and the usual widest: while watching,
/// later rows then stay below their headings.
const ROOM: [(&str, usize); 2] = [("STATE", "HalfOpen".len()), ("REASON", "FailureRate".len())];

/// Columns, and how wide they have been so far.
pub(super) struct Table {
    kind: Kind,
    wide: bool,
    namespace: bool,
    widths: Vec<usize>,
    begun: bool,
}

impl Table {
    /// `namespace`: with a column for it.
    pub(super) fn new(kind: Kind, wide: bool, namespace: bool) -> Table {
        Table {
            kind,
            wide,
            namespace,
            widths: Vec::new(),
            begun: false,
        }
    }

    /// For a table that goes on.
    pub(super) fn with_room(mut self) -> Table {
        let headings = self.with_namespace("NAMESPACE", headings(self.kind, self.wide));
        let room = |heading: &String| {
            ROOM.iter()
                .find(|(name, _)| name == heading)
                .map_or(0, |(_, width)| *width)
        };
        self.widths = headings.iter().map(room).collect();
        self
    }

    /// A line for each object; before the first the headings.
    pub(super) fn lines(&mut self, objects: &[Value], now: Timestamp) -> String {
        let mut rows = Vec::new();
        if !self.begun && !objects.is_empty() {
            self.begun = true;
            rows.push(self.with_namespace("NAMESPACE", headings(self.kind, self.wide)));
        }
        for object in objects {
            let cells = row(self.kind, object, self.wide, now);
            rows.push(self.with_namespace(super::namespace_of(object), cells));
        }
        self.widen(&rows);
        rows.iter().map(|row| self.line(row)).collect()
    }

    fn with_namespace(&self, namespace: &str, mut cells: Vec<String>) -> Vec<String> {
        if self.namespace {
            cells.insert(0, namespace.to_owned());
        }
        cells
    }

    fn widen(&mut self, rows: &[Vec<String>]) {
        for row in rows {
            self.widths.resize(self.widths.len().max(row.len()), 0);
            for (width, cell) in self.widths.iter_mut().zip(row) {
                *width = cell.chars().count().max(*width);
            }
        }
    }

    fn line(&self, row: &[String]) -> String {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&self.widths) {
            line.push_str(&format!("{cell:0$}", width + GAP));
        }
        line.truncate(line.trim_end().len());
        line.push('\n');
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn breaker(name: &str, state: &str) -> Value {
        json!({
            "metadata": { "namespace": "shop", "name": name },
            "status": { "service": "payments:http", "state": state, "since": "2026-05-04T11:59:56Z" },
        })
    }

    #[test]
    fn rows_that_come_later_stay_in_their_columns() {
        let now = "2026-05-04T12:00:00Z".parse().unwrap();
        let mut table = Table::new(Kind::CircuitBreaker, false, true).with_room();
        assert_eq!(table.lines(&[], now), "");
        assert_eq!(
            table.lines(&[breaker("payments", "Closed")], now),
            "NAMESPACE   NAME       SERVICE         STATE      NODES   FAILED   REASON        SINCE\n\
             shop        payments   payments:http   Closed                                    4s\n"
        );
        assert_eq!(
            table.lines(&[breaker("x", "HalfOpen")], now),
            "shop        x          payments:http   HalfOpen                                  4s\n"
        );
    }
}
