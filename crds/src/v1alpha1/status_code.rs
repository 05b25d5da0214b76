use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// One HTTP status code, or an inclusive range of them: `503`, `500-599`.
/// Codes are 100 to 599. A range names its two ends, in either order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StatusCodes {
    first: u16,
    last: u16,
}

/// Why a text or number is no [`StatusCodes`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0} is not a status code from 100 to 599 or a range of them: write one such as 503 or 500-599"
)]
pub struct InvalidStatusCodes(String);

const CODES: std::ops::RangeInclusive<u16> = 100..=599;
pub(super) const PATTERN: &str = "^[1-5][0-9]{2}(-[1-5][0-9]{2})?$";

impl StatusCodes {
    /// One code; `None` outside 100 to 599.
    pub const fn one(code: u16) -> Option<StatusCodes> {
        StatusCodes::range(code, code)
    }

    /// All codes between the ends, both included; `None` when an end lies
    /// outside 100 to 599.
    pub const fn range(a: u16, b: u16) -> Option<StatusCodes> {
        let (first, last) = if a <= b { (a, b) } else { (b, a) };
        if first >= *CODES.start() && last <= *CODES.end() {
            Some(StatusCodes { first, last })
        } else {
            None
        }
    }

    /// The lowest code.
    pub const fn first(self) -> u16 {
        self.first
    }

    /// The highest code.
    pub const fn last(self) -> u16 {
        self.last
    }

    /// 429 and all 5xx codes: the usual signs of a destination in trouble.
    pub(super) fn trouble() -> Vec<StatusCodes> {
        vec![
            StatusCodes {
                first: 429,
                last: 429,
            },
            StatusCodes {
                first: 500,
                last: 599,
            },
        ]
    }

    /// 429, 500, 502, 503, 504: the codes after which another try can help.
    pub(super) fn retriable() -> Vec<StatusCodes> {
        [429, 500, 502, 503, 504]
            .map(|code| StatusCodes {
                first: code,
                last: code,
            })
            .to_vec()
    }
}

impl FromStr for StatusCodes {
    type Err = InvalidStatusCodes;

    fn from_str(text: &str) -> Result<StatusCodes, InvalidStatusCodes> {
        let code = |text: &str| {
            (text.len() == 3 && text.bytes().all(|b| b.is_ascii_digit()))
                .then(|| text.parse().ok())
                .flatten()
        };
        let codes = match text.split_once('-') {
            Some((a, b)) => code(a)
                .zip(code(b))
                .and_then(|(a, b)| StatusCodes::range(a, b)),
            None => code(text).and_then(StatusCodes::one),
        };
        codes.ok_or_else(|| InvalidStatusCodes(format!("{text:?}")))
    }
}

impl fmt::Display for StatusCodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

impl Serialize for StatusCodes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.first == self.last {
            serializer.serialize_u16(self.first)
        } else {
            serializer.collect_str(self)
        }
    }
}

impl<'de> Deserialize<'de> for StatusCodes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<StatusCodes, D::Error> {
        struct Visitor;

        impl serde::de::Visitor<'_> for Visitor {
            type Value = StatusCodes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a status code such as 503 or a range such as 500-599")
            }

            fn visit_u64<E: serde::de::Error>(self, code: u64) -> Result<StatusCodes, E> {
                u16::try_from(code)
                    .ok()
                    .and_then(StatusCodes::one)
                    .ok_or_else(|| E::custom(InvalidStatusCodes(code.to_string())))
            }

            fn visit_i64<E: serde::de::Error>(self, code: i64) -> Result<StatusCodes, E> {
                match u64::try_from(code) {
                    Ok(code) => self.visit_u64(code),
                    Err(_) => Err(E::custom(InvalidStatusCodes(code.to_string()))),
                }
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<StatusCodes, E> {
                text.parse().map_err(E::custom)
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for StatusCodes {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "StatusCodes".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "x-kubernetes-int-or-string": true,
            "minimum": CODES.start(),
            "maximum": CODES.end(),
            "pattern": PATTERN,
            "maxLength": 7,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn codes_and_ranges_are_read_from_numbers_and_texts() {
        for (value, first, last, written) in [
            (json!(503), 503, 503, json!(503)),
            (json!("503"), 503, 503, json!(503)),
            (json!("500-599"), 500, 599, json!("500-599")),
            (json!("599-500"), 500, 599, json!("500-599")),
            (json!("429-429"), 429, 429, json!(429)),
        ] {
            let codes: StatusCodes = serde_json::from_value(value).unwrap();
            assert_eq!((codes.first(), codes.last()), (first, last));
            assert_eq!(serde_json::to_value(codes).unwrap(), written);
        }
    }

    #[test]
    fn what_is_no_code_is_refused_with_what_to_write() {
        for value in [
            json!(99),
            json!(600),
            json!(-1),
            json!("5xx"),
            json!("500-600"),
            json!("+50"),
            json!("500-"),
            json!(""),
        ] {
            let error = serde_json::from_value::<StatusCodes>(value.clone()).unwrap_err();
            assert!(
                error
                    .to_string()
                    .contains("write one such as 503 or 500-599"),
                "{value}: {error}"
            );
        }
    }
}
