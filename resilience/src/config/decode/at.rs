//! Where in a message the decoder is, and what it finds wrong there.

use std::collections::HashSet;
use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::time::Duration;

use super::{MAX_DURATION, MAX_KEY, Problem};

/// A place in the message, and where its problems go.
pub(super) struct At<'a> {
    path: String,
    problems: &'a mut Vec<Problem>,
}

impl At<'_> {
    pub(super) fn root(problems: &mut Vec<Problem>) -> At<'_> {
        At {
            path: String::new(),
            problems,
        }
    }

    fn path_of(&self, field: &str) -> String {
        if self.path.is_empty() {
            field.to_owned()
        } else {
            format!("{}.{field}", self.path)
        }
    }

    pub(super) fn field(&mut self, field: &str) -> At<'_> {
        At {
            path: self.path_of(field),
            problems: self.problems,
        }
    }

    pub(super) fn item(&mut self, field: &str, n: usize) -> At<'_> {
        At {
            path: format!("{}[{n}]", self.path_of(field)),
            problems: self.problems,
        }
    }

    pub(super) fn refuse(&mut self, field: &str, message: impl Into<String>) {
        let path = self.path_of(field);
        self.problems.push(Problem {
            path,
            message: message.into(),
        });
    }

    pub(super) fn at_most(&mut self, field: &str, length: usize, max: usize) {
        if length > max {
            self.refuse(
                field,
                format!("{length} entries; at most {max} are allowed"),
            );
        }
    }

    /// A DNS label (RFC 1123).
    pub(super) fn label(&mut self, field: &str, value: &str) -> bool {
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let good = (1..=63).contains(&value.len())
            && value.bytes().all(inner)
            && !value.starts_with('-')
            && !value.ends_with('-');
        if !good {
            self.refuse(
                field,
                format!("{value:?} is not a DNS label; write 1 to 63 of a-z, 0-9 and -, not - first or last"),
            );
        }
        good
    }

    /// A DNS subdomain (RFC 1123): what Pods and Nodes are named.
    pub(super) fn subdomain(&mut self, field: &str, value: &str) -> bool {
        let edge = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let label = |label: &str| {
            let bytes = label.as_bytes();
            bytes.first().is_some_and(edge)
                && bytes.last().is_some_and(edge)
                && bytes.iter().all(|byte| edge(byte) || *byte == b'-')
        };
        let good = value.len() <= 253 && value.split('.').all(label);
        if !good {
            self.refuse(
                field,
                format!("{value:?} is no DNS name; write 1 to 253 of a-z, 0-9, - and ., each part with a-z or 0-9 first and last"),
            );
        }
        good
    }

    /// Text of at most `max` bytes that must be there.
    pub(super) fn text(&mut self, field: &str, value: &str, max: usize) -> bool {
        let good = (1..=max).contains(&value.len());
        if !good {
            self.refuse(field, format!("must have 1 to {max} characters"));
        }
        good
    }

    /// IP addresses, each once.
    pub(super) fn ips(&mut self, field: &str, texts: &[String], max: usize) -> Option<Vec<IpAddr>> {
        self.at_most(field, texts.len(), max);
        let ips = texts.iter().enumerate().map(|(n, text)| {
            let ip = text.parse().ok();
            if ip.is_none() {
                self.refuse(
                    &format!("{field}[{n}]"),
                    format!("{text:?} is not an IP address; write \"10.0.0.1\" or \"fd00::1\""),
                );
            }
            ip
        });
        let ips: Vec<Option<IpAddr>> = ips.collect();
        self.once(field, &ips);
        ips.into_iter().collect()
    }

    /// Refuses what is in the list more than once.
    pub(super) fn once<T: Eq + Hash + std::fmt::Debug>(
        &mut self,
        field: &str,
        items: &[Option<T>],
    ) {
        let mut seen = HashSet::new();
        for (n, item) in items.iter().enumerate() {
            if let Some(item) = item
                && !seen.insert(item)
            {
                self.refuse(
                    &format!("{field}[{n}]"),
                    format!("{item:?} is given already; give it once"),
                );
            }
        }
    }

    /// The name of shared state.
    pub(super) fn key(&mut self, key: &str) -> Option<String> {
        if key.is_empty() || key.len() > MAX_KEY {
            self.refuse("key", format!("must have 1 to {MAX_KEY} characters"));
            return None;
        }
        Some(key.to_owned())
    }

    /// Port 0 stands for any free port, which the agent picks.
    pub(super) fn listener(&mut self, text: &str) -> Option<SocketAddr> {
        match text.parse::<SocketAddr>() {
            Ok(address) if address.port() == 0 => Some(address),
            _ => self.address("listen", text),
        }
    }

    pub(super) fn address(&mut self, field: &str, text: &str) -> Option<SocketAddr> {
        match text.parse::<SocketAddr>() {
            Ok(address) if address.port() != 0 => Some(address),
            Ok(_) => {
                self.refuse(
                    field,
                    format!("{text:?} has port 0; write a port from 1 to 65535"),
                );
                None
            }
            Err(_) => {
                self.refuse(
                    field,
                    format!("{text:?} is not an IP address and port; write \"10.0.0.1:8080\" or \"[fd00::1]:8080\""),
                );
                None
            }
        }
    }

    pub(super) fn between(&mut self, field: &str, value: u32, min: u32, max: u32) -> Option<u32> {
        if (min..=max).contains(&value) {
            return Some(value);
        }
        self.refuse(
            field,
            format!("{value} is out of range; write {min} to {max}"),
        );
        None
    }

    pub(super) fn non_zero(&mut self, field: &str, value: u32) -> Option<NonZeroU32> {
        let good = NonZeroU32::new(value);
        if good.is_none() {
            self.refuse(field, "must be at least 1");
        }
        good
    }

    /// Zero is "off".
    pub(super) fn optional_duration(
        &mut self,
        field: &str,
        micros: u64,
    ) -> Option<Option<Duration>> {
        let duration = Duration::from_micros(micros);
        if duration > MAX_DURATION {
            self.refuse(field, format!("{micros} µs is longer than a year"));
            return None;
        }
        Some((micros > 0).then_some(duration))
    }

    pub(super) fn duration(&mut self, field: &str, micros: u64) -> Option<Duration> {
        let duration = self.optional_duration(field, micros)?;
        if duration.is_none() {
            self.refuse(field, "must be longer than zero");
        }
        duration
    }
}
