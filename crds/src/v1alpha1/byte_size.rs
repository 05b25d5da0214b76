use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A number of bytes, at most 16 MiB: `65536`, `64Ki`, `1Mi`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(u32);

/// Why a text or number is no [`ByteSize`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not a size of at most 16Mi: write one such as 65536, 64Ki or 1Mi")]
pub struct InvalidByteSize(String);

const MAX: u32 = 16 << 20;
/// Every text that matches is at most [`MAX`].
pub(super) const PATTERN: &str = "^([0-9]{1,7}|[0-9]{1,4}Ki|([0-9]|1[0-6])Mi)$";

impl ByteSize {
    /// 64 KiB.
    pub(super) const DEFAULT: ByteSize = ByteSize(64 << 10);

    /// `None` above 16 MiB.
    pub const fn new(bytes: u32) -> Option<ByteSize> {
        if bytes <= MAX {
            Some(ByteSize(bytes))
        } else {
            None
        }
    }

    /// The number of bytes.
    pub const fn get(self) -> usize {
        self.0 as usize
    }
}

impl FromStr for ByteSize {
    type Err = InvalidByteSize;

    fn from_str(text: &str) -> Result<ByteSize, InvalidByteSize> {
        let (digits, unit) = match (text.strip_suffix("Ki"), text.strip_suffix("Mi")) {
            (Some(digits), _) => (digits, 1 << 10),
            (_, Some(digits)) => (digits, 1 << 20),
            _ => (text, 1),
        };
        Some(digits)
            .filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()))
            .and_then(|digits| digits.parse::<u32>().ok())
            .and_then(|number| number.checked_mul(unit))
            .and_then(ByteSize::new)
            .ok_or_else(|| InvalidByteSize(format!("{text:?}")))
    }
}

impl fmt::Display for ByteSize {
    /// In the largest unit that needs no fraction.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str("0"),
            bytes if bytes.is_multiple_of(1 << 20) => write!(f, "{}Mi", bytes >> 20),
            bytes if bytes.is_multiple_of(1 << 10) && bytes >> 10 <= 9999 => {
                write!(f, "{}Ki", bytes >> 10)
            }
            bytes => write!(f, "{bytes}"),
        }
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // Eight digits do not match the pattern for texts.
        if self.0 > 9_999_999 && !self.0.is_multiple_of(1 << 20) {
            serializer.serialize_u32(self.0)
        } else {
            serializer.collect_str(self)
        }
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ByteSize, D::Error> {
        struct Visitor;

        impl serde::de::Visitor<'_> for Visitor {
            type Value = ByteSize;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as 65536, 64Ki or 1Mi")
            }

            fn visit_u64<E: serde::de::Error>(self, bytes: u64) -> Result<ByteSize, E> {
                u32::try_from(bytes)
                    .ok()
                    .and_then(ByteSize::new)
                    .ok_or_else(|| E::custom(InvalidByteSize(bytes.to_string())))
            }

            fn visit_i64<E: serde::de::Error>(self, bytes: i64) -> Result<ByteSize, E> {
                match u64::try_from(bytes) {
                    Ok(bytes) => self.visit_u64(bytes),
                    Err(_) => Err(E::custom(InvalidByteSize(bytes.to_string()))),
                }
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<ByteSize, E> {
                text.parse().map_err(E::custom)
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for ByteSize {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ByteSize".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "x-kubernetes-int-or-string": true,
            "minimum": 0,
            "maximum": MAX,
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
    fn sizes_are_read_with_and_without_units() {
        for (value, bytes, written) in [
            (json!(65536), 65536, json!("64Ki")),
            (json!("65536"), 65536, json!("64Ki")),
            (json!("64Ki"), 65536, json!("64Ki")),
            (json!("16Mi"), 16 << 20, json!("16Mi")),
            (json!(16 << 20), 16 << 20, json!("16Mi")),
            (json!(16_777_000), 16_777_000, json!(16_777_000)),
            (json!(0), 0, json!("0")),
        ] {
            let size: ByteSize = serde_json::from_value(value).unwrap();
            assert_eq!(size.get(), bytes);
            assert_eq!(serde_json::to_value(size).unwrap(), written);
        }
    }

    #[test]
    fn what_is_no_size_is_refused_with_what_to_write() {
        for value in [
            json!(-1),
            json!((16 << 20) + 1),
            json!("17Mi"),
            json!("1k"),
            json!("Ki"),
            json!("1.5Mi"),
            json!(""),
        ] {
            let error = serde_json::from_value::<ByteSize>(value.clone()).unwrap_err();
            assert!(
                error.to_string().contains("write one such as 65536"),
                "{value}: {error}"
            );
        }
    }
}
