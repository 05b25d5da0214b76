//! Where a message's body ends (RFC 9112, section 6 and 7.1). Bodies are passed
//! on byte for byte: what is counted here is exactly what is forwarded, so both
//! ends agree on it.

/// The longest chunk-size line, extensions included.
const MAX_SIZE_LINE: u32 = 256;
/// The largest trailer section, in bytes.
const MAX_TRAILERS: u32 = 16 * 1024;

/// How a body is delimited, and how far along it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// Nothing more to come.
    Done,
    /// So many bytes more.
    Length(u64),
    /// Chunked transfer coding.
    Chunked(Chunk),
    /// Up to the end of the connection (responses only).
    UntilClose,
}

/// A place within a chunked body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Chunk {
    /// In the hexadecimal size.
    Size { value: u64, digits: u32 },
    /// In spaces between the size and what may follow.
    Padding { value: u64, line: u32 },
    /// In an extension.
    Extension { value: u64, line: u32 },
    /// Before the LF of the size line.
    SizeEnd { value: u64 },
    /// In the data.
    Data { left: u64 },
    /// Before the CR after the data.
    DataCr,
    /// Before the LF after the data.
    DataLf,
    /// At the start of a trailer line, or of the last, empty one.
    TrailerStart { seen: u32 },
    /// In a trailer line.
    Trailer { seen: u32 },
    /// Before the LF of a trailer line.
    TrailerEnd { seen: u32 },
    /// Before the last LF.
    LastLf,
}

/// The body cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BadBody(pub(crate) &'static str);

impl Framing {
    /// The beginning of a chunked body.
    pub(crate) const CHUNKED: Framing = Framing::Chunked(Chunk::Size {
        value: 0,
        digits: 0,
    });

    /// A body of `length` bytes.
    pub(crate) fn length(length: u64) -> Framing {
        if length == 0 {
            Framing::Done
        } else {
            Framing::Length(length)
        }
    }

    pub(crate) fn is_done(self) -> bool {
        self == Framing::Done
    }

    /// How many of these bytes belong to the body, moving on past them. Fewer
    /// than given only when the body ends among them.
    pub(crate) fn scan(&mut self, data: &[u8]) -> Result<usize, BadBody> {
        match self {
            Framing::Done => Ok(0),
            Framing::UntilClose => Ok(data.len()),
            Framing::Length(left) => {
                let n = usize::try_from(*left).unwrap_or(usize::MAX).min(data.len());
                *self = Framing::length(*left - n as u64);
                Ok(n)
            }
            Framing::Chunked(_) => self.scan_chunked(data),
        }
    }

    fn scan_chunked(&mut self, data: &[u8]) -> Result<usize, BadBody> {
        let mut at = 0;
        while at < data.len() {
            let Framing::Chunked(state) = *self else {
                return Ok(at);
            };
            if let Chunk::Data { left } = state {
                let n = usize::try_from(left)
                    .unwrap_or(usize::MAX)
                    .min(data.len() - at);
                at += n;
                let left = left - n as u64;
                *self = Framing::Chunked(if left == 0 {
                    Chunk::DataCr
                } else {
                    Chunk::Data { left }
                });
                continue;
            }
            *self = state.next(data[at])?;
            at += 1;
        }
        Ok(at)
    }
}

impl Chunk {
    fn next(self, byte: u8) -> Result<Framing, BadBody> {
        let next = match (self, byte) {
            (Chunk::Size { value, digits }, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                if digits == 15 {
                    return Err(BadBody("chunk size is too large"));
                }
                let digit = (byte as char).to_digit(16).unwrap_or_default();
                Chunk::Size {
                    value: value << 4 | u64::from(digit),
                    digits: digits + 1,
                }
            }
            (Chunk::Size { digits: 0, .. }, _) => return Err(BadBody("chunk has no size")),
            (Chunk::Size { value, .. }, b'\r') => Chunk::SizeEnd { value },
            (Chunk::Size { value, digits }, b';') => Chunk::Extension {
                value,
                line: digits,
            },
            (Chunk::Size { value, digits }, b' ' | b'\t') => Chunk::Padding {
                value,
                line: digits,
            },
            (Chunk::Padding { value, line }, b' ' | b'\t') if line < MAX_SIZE_LINE => {
                Chunk::Padding {
                    value,
                    line: line + 1,
                }
            }
            (Chunk::Padding { value, line }, b';') => Chunk::Extension { value, line },
            (Chunk::Padding { value, .. }, b'\r') => Chunk::SizeEnd { value },
            // Another reader could take what follows for more digits.
            (Chunk::Padding { .. }, _) => {
                return Err(BadBody("chunk size is not a hexadecimal number"));
            }
            (Chunk::Size { .. }, _) => {
                return Err(BadBody("chunk size is not a hexadecimal number"));
            }
            (Chunk::Extension { value, .. }, b'\r') => Chunk::SizeEnd { value },
            (Chunk::Extension { .. }, b'\n' | 0) => {
                return Err(BadBody("chunk extension has a bare LF or NUL"));
            }
            (Chunk::Extension { value, line }, _) if line < MAX_SIZE_LINE => Chunk::Extension {
                value,
                line: line + 1,
            },
            (Chunk::Extension { .. }, _) => return Err(BadBody("chunk extension is too long")),
            (Chunk::SizeEnd { value: 0 }, b'\n') => Chunk::TrailerStart { seen: 0 },
            (Chunk::SizeEnd { value }, b'\n') => Chunk::Data { left: value },
            (Chunk::DataCr, b'\r') => Chunk::DataLf,
            (Chunk::DataLf, b'\n') => Chunk::Size {
                value: 0,
                digits: 0,
            },
            (Chunk::TrailerStart { .. }, b'\r') => Chunk::LastLf,
            (Chunk::LastLf, b'\n') => return Ok(Framing::Done),
            (Chunk::Trailer { seen }, b'\r') => Chunk::TrailerEnd { seen },
            (Chunk::TrailerEnd { seen }, b'\n') => Chunk::TrailerStart { seen },
            (Chunk::TrailerStart { .. } | Chunk::Trailer { .. }, b'\n' | 0) => {
                return Err(BadBody("trailer has a bare LF or NUL"));
            }
            (Chunk::TrailerStart { .. }, b' ' | b'\t') => return Err(BadBody("trailer is folded")),
            (Chunk::TrailerStart { seen } | Chunk::Trailer { seen }, _) if seen < MAX_TRAILERS => {
                Chunk::Trailer { seen: seen + 1 }
            }
            (Chunk::TrailerStart { .. } | Chunk::Trailer { .. }, _) => {
                return Err(BadBody("trailers are too large"));
            }
            _ => return Err(BadBody("chunk does not end with CR LF")),
        };
        Ok(Framing::Chunked(next))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(data: &[u8]) -> Result<(usize, Framing), BadBody> {
        let mut framing = Framing::CHUNKED;
        let n = framing.scan(data)?;
        Ok((n, framing))
    }

    #[test]
    fn a_chunked_body_ends_with_its_last_line_and_not_a_byte_later() {
        let body = b"5;x=y\r\nhello\r\n0\r\nx-sum: 1\r\n\r\n";
        let mut data = body.to_vec();
        data.extend_from_slice(b"GET / HTTP/1.1\r\n");
        assert_eq!(whole(&data), Ok((body.len(), Framing::Done)));
    }

    #[test]
    fn a_chunked_body_reads_the_same_in_any_pieces() {
        let body = b"1\r\na\r\nA\r\n0123456789\r\n000\r\nt: u\r\n\r\n";
        for size in 1..body.len() {
            let mut framing = Framing::CHUNKED;
            for piece in body.chunks(size) {
                assert_eq!(framing.scan(piece), Ok(piece.len()), "pieces of {size}");
            }
            assert!(framing.is_done(), "pieces of {size}");
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        for bad in [
            &b"\r\n"[..],
            b"g\r\n",
            b"-1\r\n",
            b"0x5\r\n",
            b"5 5\r\nhello\r\n",
            b"5\nhello",
            b"5\r\nhello!",
            b"5\r\nhello\n",
            b"fffffffffffffffff\r\n",
            b"1;a\nb\r\n",
            b"0\r\nx: y\n",
            b"0\r\n folded\r\n",
        ] {
            assert!(whole(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn spaces_behind_a_chunks_size_are_no_part_of_it() {
        let body = b"5  \r\nhello\r\n0 ;x\r\n\r\n";
        assert_eq!(whole(body), Ok((body.len(), Framing::Done)));
    }

    #[test]
    fn endless_extensions_and_trailers_are_refused() {
        let mut extension = b"1;".to_vec();
        extension.resize(1024, b'a');
        assert!(whole(&extension).is_err());
        let mut trailers = b"0\r\n".to_vec();
        for _ in 0..2000 {
            trailers.extend_from_slice(b"x-many: trailers\r\n");
        }
        assert!(whole(&trailers).is_err());
    }

    #[test]
    fn a_body_of_known_length_leaves_what_follows() {
        let mut framing = Framing::length(3);
        assert_eq!(framing.scan(b"ab"), Ok(2));
        assert_eq!(framing.scan(b"cd"), Ok(1));
        assert!(framing.is_done());
    }
}
