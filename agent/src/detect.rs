//! What a caller speaks, by its first bytes.

/// What an HTTP/2 connection begins with (RFC 9113, section 3.4).
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The longest first line that is waited for, in bytes. It only matters for
/// methods that are not among [`METHODS`]: of the others a few bytes tell.
const MAX_LINE: usize = 4096;

/// Methods by which a request line is known before it is whole (RFC 9110,
/// section 9, and RFC 5789).
const METHODS: [&[u8]; 9] = [
    b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"CONNECT", b"OPTIONS", b"TRACE", b"PATCH",
];

/// What a caller speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spoken {
    Http1,
    Http2,
    /// Neither.
    Other,
}

/// What a connection that begins with these bytes speaks; `None` while they
/// are too few to tell.
pub(crate) fn spoken(first: &[u8]) -> Option<Spoken> {
    let common = first.iter().zip(PREFACE).take_while(|(a, b)| a == b);
    let common = common.count();
    if common == PREFACE.len() {
        return Some(Spoken::Http2);
    }
    if common == first.len() {
        return None;
    }
    // Empty lines before a request line are nothing (RFC 9112, section 2.2).
    let begin = first.iter().position(|b| !matches!(b, b'\r' | b'\n'))?;
    let line = &first[begin..];
    match line.iter().position(|b| *b == b'\n') {
        Some(end) if is_request_line(&line[..end]) => Some(Spoken::Http1),
        Some(_) => Some(Spoken::Other),
        None => of_part(line),
    }
}

/// `METHOD SP target SP HTTP/…`. Other protocols of lines have words and
/// spaces too, but not the last one.
fn is_request_line(line: &[u8]) -> bool {
    let mut words = line.splitn(3, |b| *b == b' ');
    let method = words.next().unwrap_or_default();
    let target = words.next().unwrap_or_default();
    let rest = words.next().unwrap_or_default();
    !method.is_empty()
        && method.iter().all(|b| is_token(*b))
        && !target.is_empty()
        && rest.starts_with(b"HTTP/")
}

/// The same of a line that has not ended yet.
fn of_part(line: &[u8]) -> Option<Spoken> {
    let length = line.iter().take_while(|b| is_token(**b)).count();
    let (method, rest) = line.split_at(length);
    match rest {
        _ if line.len() > MAX_LINE => Some(Spoken::Other),
        [] => None,
        [b' ', target @ ..] if length > 0 => {
            let begins = match target.first()? {
                b'/' | b'*' | b'h' => true,
                _ => method == b"CONNECT",
            };
            if begins && METHODS.contains(&method) {
                return Some(Spoken::Http1);
            }
            let printed = target.iter().all(|b| matches!(b, b' '..=b'~' | b'\r'));
            (!printed).then_some(Spoken::Other)
        }
        _ => Some(Spoken::Other),
    }
}

/// A character of a token (RFC 9110, section 5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_line_is_http_whatever_its_method() {
        for line in [
            "GET / HTTP/1.1\r\n",
            "get /a?b=c HTTP/1.0\n",
            "PROPFIND /dav HTTP/1.1\r\nhost: a\r\n",
            "\r\n\r\nPOST http://a/ HTTP/1.1\r\n",
            "CONNECT a:443 HTTP/1.1\r\n",
            "GET / HTTP/9.9\r\n",
        ] {
            assert_eq!(spoken(line.as_bytes()), Some(Spoken::Http1), "{line:?}");
        }
    }

    #[test]
    fn a_known_method_is_known_before_its_line_has_ended() {
        for part in ["GET /", "POST /a/very/long", "OPTIONS *", "CONNECT a"] {
            assert_eq!(spoken(part.as_bytes()), Some(Spoken::Http1), "{part:?}");
        }
    }

    #[test]
    fn every_beginning_of_http_is_waited_for() {
        assert_eq!(spoken(PREFACE), Some(Spoken::Http2));
        for whole in [PREFACE, b"GET /", b"REPORT /x HTTP/1.1\r\n"] {
            for end in 0..whole.len() {
                assert_eq!(spoken(&whole[..end]), None, "{end} of {whole:?}");
            }
        }
        assert_eq!(spoken(b"PRI * HTTP/2.0\r\n\r\nXX"), Some(Spoken::Http1));
    }

    #[test]
    fn what_others_say_first_is_not_http() {
        let others: [&[u8]; 9] = [
            // TLS, PostgreSQL, Redis, Redis by hand, memcached, Graphite, MQTT, HTTP/0.9, a PROXY line.
            b"\x16\x03\x01\x02\x00\x01",
            b"\x00\x00\x00\x08\x04\xd2\x16\x2f",
            b"*1\r\n$4\r\nPING\r\n",
            b"SET a b\r\n",
            b"get /key\r\n",
            b"shop.load 7 1732460000\n",
            b"\x10\x1a\x00\x04MQTT",
            b"GET /\r\n",
            b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n",
        ];
        for first in others {
            assert_eq!(spoken(first), Some(Spoken::Other), "{first:?}");
        }
        assert_eq!(spoken(&[b'a'; MAX_LINE + 1]), Some(Spoken::Other));
    }
}
