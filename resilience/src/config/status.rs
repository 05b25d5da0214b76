//! Sets of status codes, small enough to be looked up on every response.

use std::fmt;

const FIRST: u16 = 100;
const LAST: u16 = 599;

/// A set of HTTP statuses, each 100 to 599 (RFC 9110, 15).
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct StatusRanges {
    /// Bit n of the whole stands for status 100 + n.
    words: [u64; StatusRanges::WORDS],
}

impl StatusRanges {
    /// No status.
    pub const EMPTY: StatusRanges = StatusRanges {
        words: [0; StatusRanges::WORDS],
    };

    pub(crate) const WORDS: usize = ((LAST - FIRST) as usize / 64) + 1;

    /// This set and every status from `first` to `last`, both included.
    /// `None` when the range is empty or leaves 100 to 599.
    pub const fn with(mut self, first: u16, last: u16) -> Option<StatusRanges> {
        if first < FIRST || last > LAST || first > last {
            return None;
        }
        let mut bit = (first - FIRST) as usize;
        while bit <= (last - FIRST) as usize {
            self.words[bit / 64] |= 1 << (bit % 64);
            bit += 1;
        }
        Some(self)
    }

    /// Whether `status` is in the set; one outside 100 to 599 never is.
    pub fn contains(&self, status: u16) -> bool {
        StatusRanges::bit(status).is_some_and(|(word, mask)| self.words[word] & mask != 0)
    }

    pub(crate) const fn words(&self) -> [u64; StatusRanges::WORDS] {
        self.words
    }

    /// The word and the mask that stand for `status`.
    pub(crate) fn bit(status: u16) -> Option<(usize, u64)> {
        let bit = usize::from(status.checked_sub(FIRST)?);
        (status <= LAST).then(|| (bit / 64, 1 << (bit % 64)))
    }

    /// Whether no status is in the set.
    pub fn is_empty(&self) -> bool {
        *self == StatusRanges::EMPTY
    }

    fn ranges(&self) -> Vec<(u16, u16)> {
        let mut ranges: Vec<(u16, u16)> = Vec::new();
        for status in (FIRST..=LAST).filter(|status| self.contains(*status)) {
            match ranges.last_mut() {
                Some((_, last)) if *last + 1 == status => *last = status,
                _ => ranges.push((status, status)),
            }
        }
        ranges
    }
}

/// As people write it: `[429, 500-599]`.
impl fmt::Display for StatusRanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (n, (first, last)) in self.ranges().into_iter().enumerate() {
            if n > 0 {
                f.write_str(", ")?;
            }
            if first == last {
                write!(f, "{first}")?;
            } else {
                write!(f, "{first}-{last}")?;
            }
        }
        f.write_str("]")
    }
}

impl fmt::Debug for StatusRanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StatusRanges{self}")
    }
}

/// A set of gRPC statuses, by the numbers of `google.rpc.Code`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct GrpcCodes(u32);

impl GrpcCodes {
    /// No status.
    pub const EMPTY: GrpcCodes = GrpcCodes(0);

    /// This set and `code`. `None` above 16, the last that gRPC defines.
    pub const fn with(self, code: u8) -> Option<GrpcCodes> {
        if code > 16 {
            None
        } else {
            Some(GrpcCodes(self.0 | 1 << code))
        }
    }

    /// Whether `code` is in the set; one that gRPC does not define never is.
    pub const fn contains(&self, code: u8) -> bool {
        code <= 16 && self.0 & (1 << code) != 0
    }

    /// Whether no status is in the set.
    pub const fn is_empty(&self) -> bool {
        self.0 == 0
    }

    pub(crate) const fn bits(&self) -> u32 {
        self.0
    }

    pub(crate) const fn from_bits(bits: u32) -> GrpcCodes {
        GrpcCodes(bits)
    }
}

/// The name of a gRPC status as its specification writes it, `UNAVAILABLE`;
/// `None` for a number that it does not define.
pub const fn grpc_name(code: u8) -> Option<&'static str> {
    Some(match code {
        0 => "OK",
        1 => "CANCELLED",
        2 => "UNKNOWN",
        3 => "INVALID_ARGUMENT",
        4 => "DEADLINE_EXCEEDED",
        5 => "NOT_FOUND",
        6 => "ALREADY_EXISTS",
        7 => "PERMISSION_DENIED",
        8 => "RESOURCE_EXHAUSTED",
        9 => "FAILED_PRECONDITION",
        10 => "ABORTED",
        11 => "OUT_OF_RANGE",
        12 => "UNIMPLEMENTED",
        13 => "INTERNAL",
        14 => "UNAVAILABLE",
        15 => "DATA_LOSS",
        16 => "UNAUTHENTICATED",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_holds_both_its_ends_and_nothing_else() {
        let set = StatusRanges::EMPTY
            .with(429, 429)
            .and_then(|s| s.with(500, 599))
            .unwrap();
        for status in 0..1000 {
            assert_eq!(
                set.contains(status),
                status == 429 || (500..=599).contains(&status)
            );
        }
        assert_eq!(set.to_string(), "[429, 500-599]");
        assert!(StatusRanges::EMPTY.is_empty() && !set.is_empty());
    }

    #[test]
    fn a_range_that_is_empty_or_outside_is_refused() {
        for (first, last) in [(99, 200), (500, 600), (503, 500)] {
            assert_eq!(StatusRanges::EMPTY.with(first, last), None);
        }
    }

    #[test]
    fn every_grpc_status_has_a_name_and_a_place() {
        for code in 0..=u8::MAX {
            let set = GrpcCodes::EMPTY.with(code);
            assert_eq!(set.is_some(), grpc_name(code).is_some());
            if let Some(set) = set {
                assert!((0..=u8::MAX).all(|other| set.contains(other) == (other == code)));
            }
        }
    }
}
