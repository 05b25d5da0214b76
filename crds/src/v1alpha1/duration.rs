use std::fmt;
use std::str::FromStr;
use std::time;

use kube::core::Rule;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A span of time as people write it: `500ms`, `1m30s`; `0s` is zero.
///
/// The format is that of Gateway API (GEP-2257): one to four groups of one to
/// five digits and a unit, `h`, `m`, `s` or `ms`, which are added up. The
/// longest is `99999h59m59s999ms`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Duration(time::Duration);

/// Why a text is no [`Duration`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a duration: write one such as 500ms, 10s or 1h30m")]
pub struct InvalidDuration(String);

pub(super) const PATTERN: &str = "^([0-9]{1,5}(h|m|s|ms)){1,4}$";
const MAX_LENGTH: usize = 28;
const MAX_MILLIS: u64 = (((99_999 * 60 + 59) * 60) + 59) * 1000 + 999;

impl Duration {
    /// Nothing; for most fields "off".
    pub const ZERO: Duration = Duration(time::Duration::ZERO);

    /// `None` beyond the format's longest duration.
    pub const fn from_millis(millis: u64) -> Option<Duration> {
        if millis <= MAX_MILLIS {
            Some(Duration(time::Duration::from_millis(millis)))
        } else {
            None
        }
    }

    /// For defaults: they are all far below the longest duration.
    pub(crate) const fn millis(millis: u32) -> Duration {
        Duration(time::Duration::from_millis(millis as u64))
    }

    /// For defaults.
    pub(crate) const fn secs(secs: u16) -> Duration {
        Duration(time::Duration::from_secs(secs as u64))
    }

    /// The same for computing.
    pub const fn get(self) -> time::Duration {
        self.0
    }

    /// `None` for zero, which is how people write "off".
    pub const fn on(self) -> Option<time::Duration> {
        if self.0.is_zero() { None } else { Some(self.0) }
    }
}

impl From<Duration> for time::Duration {
    fn from(duration: Duration) -> time::Duration {
        duration.0
    }
}

impl FromStr for Duration {
    type Err = InvalidDuration;

    fn from_str(text: &str) -> Result<Duration, InvalidDuration> {
        parse(text)
            .and_then(Duration::from_millis)
            .ok_or_else(|| InvalidDuration(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<u64> {
    let mut rest = text;
    let mut millis = 0u64;
    for group in 0.. {
        if rest.is_empty() {
            return (group > 0).then_some(millis);
        }
        if group == 4 {
            return None;
        }
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        if !(1..=5).contains(&digits) {
            return None;
        }
        let number: u64 = rest.get(..digits)?.parse().ok()?;
        rest = rest.get(digits..)?;
        let unit = rest.bytes().take_while(u8::is_ascii_alphabetic).count();
        millis += number
            * match rest.get(..unit)? {
                "h" => 3_600_000,
                "m" => 60_000,
                "s" => 1_000,
                "ms" => 1,
                _ => return None,
            };
        rest = rest.get(unit..)?;
    }
    None
}

impl fmt::Display for Duration {
    /// The canonical form: each unit at most once, the largest first.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut millis = self.0.as_millis();
        if millis == 0 {
            return f.write_str("0s");
        }
        for (unit, size) in [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)] {
            if millis >= size {
                write!(f, "{}{unit}", millis / size)?;
                millis %= size;
            }
        }
        Ok(())
    }
}

impl Serialize for Duration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for Duration {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": PATTERN, "maxLength": MAX_LENGTH })
    }
}

/// The rule for a duration that must lie in a range.
pub(super) fn within(min: &str, max: &str) -> [Rule; 1] {
    [Rule::new(format!(
        "duration(self) >= duration('{min}') && duration(self) <= duration('{max}')"
    ))
    .message(format!("must be from {min} to {max}").as_str())]
}

/// The rule for a duration that may also be `0s`.
pub(super) fn off_or_within(min: &str, max: &str) -> [Rule; 1] {
    [Rule::new(format!(
        "duration(self) == duration('0s') || duration(self) >= duration('{min}') && duration(self) <= duration('{max}')"
    ))
    .message(format!("must be from {min} to {max}, or 0s for off").as_str())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_people_write_them_and_written_canonically() {
        for (text, millis, canonical) in [
            ("0s", 0, "0s"),
            ("0h0ms", 0, "0s"),
            ("500ms", 500, "500ms"),
            ("1m30s", 90_000, "1m30s"),
            ("90s", 90_000, "1m30s"),
            ("300s", 300_000, "5m"),
            ("1ms1h", 3_600_001, "1h1ms"),
            ("99999h59m59s999ms", MAX_MILLIS, "99999h59m59s999ms"),
        ] {
            let parsed: Duration = text.parse().unwrap();
            assert_eq!(parsed.get(), time::Duration::from_millis(millis), "{text}");
            assert_eq!(parsed.to_string(), canonical, "{text}");
        }
    }

    #[test]
    fn what_is_no_duration_is_refused_with_what_to_write() {
        for text in [
            "",
            "5",
            "s",
            "1.5s",
            "-1s",
            "1d",
            "1us",
            "100000s",
            "1h1h1h1h1h",
            " 1s",
            "1s ",
            "1 s",
            "99999h60m",
            "1ß",
        ] {
            let error = text.parse::<Duration>().unwrap_err();
            assert!(
                error.to_string().contains("write one such as 500ms"),
                "{text}"
            );
        }
    }
}
