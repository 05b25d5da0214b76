//! What `kubectl get` shows of an object: the same columns, from the same
//! CustomResourceDefinition, with the same texts in them.

use std::sync::LazyLock;

use jiff::Timestamp;
use serde_json::Value;

use crate::Kind;

/// One column after NAME.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// Its heading, as kubectl prints it.
    pub heading: String,
    /// Whether it is shown only with `-o wide`.
    pub wide: bool,
    shape: Shape,
    path: Vec<Step>,
}

/// How a value becomes text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    Text,
    Integer,
    Boolean,
    /// A moment, shown as the time since then.
    Date,
}

/// One step of a JSONPath, as far as our columns use it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// `.name`
    Field(String),
    /// `[?(@.type=="Programmed")]`: the first item of a list whose field has
    /// this value.
    Where(String, String),
}

/// The columns of a kind, in order; the first column, NAME, is not among them.
pub fn columns(kind: Kind) -> &'static [Column] {
    static POLICY: LazyLock<Vec<Column>> = LazyLock::new(|| read(Kind::ResiliencePolicy));
    static BREAKER: LazyLock<Vec<Column>> = LazyLock::new(|| read(Kind::CircuitBreaker));
    match kind {
        Kind::ResiliencePolicy => &POLICY,
        Kind::CircuitBreaker => &BREAKER,
    }
}

/// The headings of a table, NAME included.
pub fn headings(kind: Kind, wide: bool) -> Vec<String> {
    std::iter::once("NAME".to_owned())
        .chain(shown(kind, wide).map(|column| column.heading.clone()))
        .collect()
}

/// The cells of one object's row, its name included. `now` is what ages are
/// counted to.
pub fn row(kind: Kind, object: &Value, wide: bool, now: Timestamp) -> Vec<String> {
    let name = object
        .pointer("/metadata/name")
        .and_then(Value::as_str)
        .unwrap_or_default();
    std::iter::once(name.to_owned())
        .chain(shown(kind, wide).map(|column| column.cell(object, now)))
        .collect()
}

/// Rows under each other, every column as wide as its widest cell and three
/// blanks more; a line each, without blanks at its end.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            rows.iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', width - cell.chars().count() + 3));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn shown(kind: Kind, wide: bool) -> impl Iterator<Item = &'static Column> {
    columns(kind)
        .iter()
        .filter(move |column| wide || !column.wide)
}

fn read(kind: Kind) -> Vec<Column> {
    let columns = kind
        .crd()
        .pointer("/spec/versions/0/additionalPrinterColumns")
        .and_then(Value::as_array);
    columns
        .into_iter()
        .flatten()
        .filter_map(|column| {
            let text = |field: &str| column.get(field).and_then(Value::as_str);
            Some(Column {
                heading: text("name")?.to_uppercase(),
                wide: column.get("priority").and_then(Value::as_i64).unwrap_or(0) > 0,
                shape: match text("type")? {
                    "integer" => Shape::Integer,
                    "boolean" => Shape::Boolean,
                    "date" => Shape::Date,
                    _ => Shape::Text,
                },
                path: steps(text("jsonPath")?)?,
            })
        })
        .collect()
}

/// `None` for what is not written like one of our columns.
fn steps(path: &str) -> Option<Vec<Step>> {
    let mut steps = Vec::new();
    let mut rest = path;
    while !rest.is_empty() {
        if let Some(filter) = rest.strip_prefix("[?(@.") {
            let (filter, after) = filter.split_once(")]")?;
            let (field, value) = filter.split_once("==")?;
            steps.push(Step::Where(
                field.to_owned(),
                value.trim_matches('"').to_owned(),
            ));
            rest = after;
        } else {
            let field = rest.strip_prefix('.')?;
            let end = field.find(['.', '[']).unwrap_or(field.len());
            steps.push(Step::Field(
                field
                    .get(..end)
                    .filter(|field| !field.is_empty())?
                    .to_owned(),
            ));
            rest = field.get(end..)?;
        }
    }
    Some(steps)
}

impl Column {
    /// What the column shows of an object; empty where there is nothing.
    pub fn cell(&self, object: &Value, now: Timestamp) -> String {
        let mut value = object;
        for step in &self.path {
            let next = match step {
                Step::Field(field) => value.get(field),
                Step::Where(field, wanted) => value.as_array().and_then(|items| {
                    items
                        .iter()
                        .find(|item| item.get(field).and_then(Value::as_str) == Some(wanted))
                }),
            };
            match next {
                Some(next) => value = next,
                None => return String::new(),
            }
        }
        match (self.shape, value) {
            (Shape::Text, Value::String(text)) => first_line(text),
            (Shape::Text, Value::Number(_) | Value::Bool(_)) => value.to_string(),
            (Shape::Integer, Value::Number(number)) => number.to_string(),
            (Shape::Boolean, Value::Bool(_)) => value.to_string(),
            (Shape::Date, Value::String(text)) => match text.parse::<Timestamp>() {
                Ok(moment) => age(now.as_second() - moment.as_second()),
                Err(_) => "<invalid>".to_owned(),
            },
            _ => String::new(),
        }
    }
}

/// A row is one line.
fn first_line(text: &str) -> String {
    match text.split_once(['\n', '\r', '\u{c}']) {
        Some((first, _)) => format!("{first}..."),
        None => text.to_owned(),
    }
}

/// Seconds as kubectl shows an age: exact while short, coarser the longer it is.
/// Up to a second in the future counts as now, for clocks that differ.
fn age(seconds: i64) -> String {
    const MINUTE: i64 = 60;
    const HOUR: i64 = 60 * MINUTE;
    const DAY: i64 = 24 * HOUR;
    const YEAR: i64 = 365 * DAY;
    let two = |large: i64, large_unit: &str, small: i64, small_unit: &str| {
        if small == 0 {
            format!("{large}{large_unit}")
        } else {
            format!("{large}{large_unit}{small}{small_unit}")
        }
    };
    match seconds {
        ..-1 => "<invalid>".to_owned(),
        -1..0 => "0s".to_owned(),
        s if s < 2 * MINUTE => format!("{s}s"),
        s if s < 10 * MINUTE => two(s / MINUTE, "m", s % MINUTE, "s"),
        s if s < 3 * HOUR => format!("{}m", s / MINUTE),
        s if s < 8 * HOUR => two(s / HOUR, "h", s % HOUR / MINUTE, "m"),
        s if s < 2 * DAY => format!("{}h", s / HOUR),
        s if s < 8 * DAY => two(s / DAY, "d", s % DAY / HOUR, "h"),
        s if s < 2 * YEAR => format!("{}d", s / DAY),
        s if s < 8 * YEAR => two(s / YEAR, "y", s % YEAR / DAY, "d"),
        s => format!("{}y", s / YEAR),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn now() -> Timestamp {
        "2026-05-04T12:00:00Z".parse().unwrap()
    }

    #[test]
    fn a_policy_is_shown_as_kubectl_shows_it() {
        let policy = json!({
            "metadata": { "name": "payments", "creationTimestamp": "2026-05-01T12:00:00Z" },
            "spec": { "mode": "Enforce" },
            "status": {
                "summary": { "targets": "Service/payments", "agents": "12/12" },
                "breakers": { "open": 1 },
                "conditions": [
                    { "type": "Accepted", "status": "True", "reason": "Accepted" },
                    { "type": "Programmed", "status": "True", "reason": "Programmed", "message": "all\nnodes" },
                ],
            },
        });
        let rows = [
            headings(Kind::ResiliencePolicy, false),
            row(Kind::ResiliencePolicy, &policy, false, now()),
        ];
        assert_eq!(
            table(&rows),
            "NAME       TARGETS            MODE      PROGRAMMED   AGENTS   OPEN   AGE\n\
             payments   Service/payments   Enforce   True         12/12    1      3d\n"
        );
        let wide = row(Kind::ResiliencePolicy, &policy, true, now());
        assert_eq!(wide.last().unwrap(), "all...");
        assert_eq!(
            headings(Kind::ResiliencePolicy, true)[7..],
            ["REASON", "MESSAGE"]
        );
    }

    #[test]
    fn a_breaker_is_shown_as_kubectl_shows_it() {
        let breaker = json!({
            "metadata": { "name": "payments" },
            "status": {
                "service": "payments:http", "state": "Open", "reason": "FailureRate",
                "since": "2026-05-04T11:59:56Z", "summary": { "nodes": "9/12", "failed": "61%" },
                "rejectedTotal": 1200, "shadow": false,
            },
        });
        let rows = [
            headings(Kind::CircuitBreaker, false),
            row(Kind::CircuitBreaker, &breaker, false, now()),
        ];
        assert_eq!(
            table(&rows),
            "NAME       SERVICE         STATE   NODES   FAILED   REASON        SINCE\n\
             payments   payments:http   Open    9/12    61%      FailureRate   4s\n"
        );
        assert_eq!(
            row(Kind::CircuitBreaker, &breaker, true, now())[7..],
            ["", "1200", "false", ""]
        );
    }

    #[test]
    fn what_has_no_status_yet_has_empty_cells() {
        let fresh = json!({ "metadata": { "name": "new" }, "spec": {} });
        assert_eq!(
            row(Kind::CircuitBreaker, &fresh, false, now()),
            ["new", "", "", "", "", "", ""]
        );
    }

    #[test]
    fn ages_get_coarser_the_longer_they_are() {
        for (seconds, text) in [
            (-2, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (185, "3m5s"),
            (600, "10m"),
            (3 * 3600 - 1, "179m"),
            (3 * 3600, "3h"),
            (3 * 3600 + 300, "3h5m"),
            (8 * 3600, "8h"),
            (47 * 3600, "47h"),
            (48 * 3600, "2d"),
            (49 * 3600, "2d1h"),
            (8 * 86400 + 3600, "8d"),
            (730 * 86400, "2y"),
            (731 * 86400, "2y1d"),
            (8 * 365 * 86400 + 86400, "8y"),
        ] {
            assert_eq!(age(seconds), text, "{seconds}");
        }
    }

    #[test]
    fn every_column_of_the_definitions_is_understood() {
        for kind in Kind::ALL {
            let defined = kind
                .crd()
                .pointer("/spec/versions/0/additionalPrinterColumns")
                .unwrap()
                .as_array()
                .unwrap();
            assert_eq!(columns(kind).len(), defined.len());
        }
    }
}
