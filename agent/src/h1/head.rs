//! Heads of HTTP/1 messages: read strictly, so that what goes on can be read
//! in one way only, and written anew without what concerns one hop.

use std::time::Duration;

use http::Method;
use weir_resilience::config::RequestView;

use super::body::Framing;
use crate::answer::{self, Answer};

/// Most header fields of a message.
const MAX_HEADERS: usize = 128;
/// The largest head, in bytes.
pub(crate) const MAX_HEAD: usize = 64 * 1024;

/// A request's head, as the caller wrote it.
pub(crate) struct RequestHead<'a> {
    pub(crate) method: Method,
    target: &'a str,
    headers: &'a [httparse::Header<'a>],
}

/// What follows from a request's head for its connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RequestMeta {
    /// Length of the head in bytes.
    pub(crate) length: usize,
    pub(crate) body: Framing,
    pub(crate) keep_alive: bool,
    /// The caller speaks HTTP/1.0.
    pub(crate) http10: bool,
    pub(crate) head_method: bool,
    /// `Upgrade` of something that can be passed on.
    pub(crate) upgrade: bool,
}

/// What follows from a response's head.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ResponseMeta {
    pub(crate) length: usize,
    pub(crate) status: u16,
    pub(crate) body: Framing,
    /// The destination keeps the connection.
    pub(crate) keep_alive: bool,
    pub(crate) retry_after: Option<Duration>,
    /// Another agent of Weir refused the request.
    pub(crate) refused: bool,
    /// `text/event-stream`, or 101.
    pub(crate) stream: bool,
}

impl<'a> RequestHead<'a> {
    /// Where the request wants to go: the authority of an absolute target, or
    /// `Host`.
    pub(crate) fn authority(&self) -> Option<&'a str> {
        if let Some(rest) = absolute(self.target) {
            return Some(rest.split(['/', '?', '#']).next().unwrap_or(rest));
        }
        self.field("host")
            .and_then(|value| std::str::from_utf8(value).ok())
    }

    fn field(&self, name: &str) -> Option<&'a [u8]> {
        self.headers
            .iter()
            .find(|h| h.name.eq_ignore_ascii_case(name))
            .map(|h| h.value)
    }

    /// Target in origin form, in two parts: a slash that was left out, and
    /// the rest.
    fn origin_target(&self) -> (&'static str, &'a str) {
        let Some(rest) = absolute(self.target) else {
            return ("", self.target);
        };
        match rest.find(['/', '?', '#']) {
            Some(at) if rest.as_bytes()[at] == b'/' => ("", &rest[at..]),
            Some(at) => ("/", &rest[at..]),
            None => ("/", ""),
        }
    }

    /// Writes the head as it goes to the destination: origin form, and without
    /// the fields that concern this hop only. `Host` is the one that was
    /// meant (RFC 9112, section 3.2.2).
    pub(crate) fn write(&self, meta: &RequestMeta, out: &mut Vec<u8>) {
        let version = if meta.http10 { "HTTP/1.0" } else { "HTTP/1.1" };
        let (slash, target) = self.origin_target();
        for part in [
            self.method.as_str(),
            " ",
            slash,
            target,
            " ",
            version,
            "\r\n",
        ] {
            out.extend_from_slice(part.as_bytes());
        }
        let named = Named::of(self.headers);
        let replace_host = absolute(self.target).is_some();
        if replace_host && let Some(authority) = self.authority() {
            write_field(out, "host", authority.as_bytes());
        }
        for header in self.headers {
            let hop = hop_by_hop(header.name)
                && !(meta.upgrade && header.name.eq_ignore_ascii_case("upgrade"));
            let framing =
                meta.body != Framing::Done && header.name.eq_ignore_ascii_case("transfer-encoding");
            let host = replace_host && header.name.eq_ignore_ascii_case("host");
            if (!hop || framing) && !host && !named.contains(header.name) {
                write_field(out, header.name, header.value);
            }
        }
        if meta.upgrade {
            out.extend_from_slice(b"connection: upgrade\r\n");
        }
        out.extend_from_slice(b"\r\n");
    }
}

impl RequestView for RequestHead<'_> {
    fn method(&self) -> &str {
        self.method.as_str()
    }

    fn path(&self) -> &str {
        let (slash, target) = self.origin_target();
        if slash.is_empty() {
            target.split(['?', '#']).next().unwrap_or(target)
        } else {
            slash
        }
    }

    fn header(&self, name: &str) -> Option<&[u8]> {
        self.field(name)
    }
}

/// Reads a request's head and hands it to `f`. `None`: more bytes are needed.
pub(crate) fn with_request<R>(
    data: &[u8],
    f: impl FnOnce(&RequestHead<'_>, RequestMeta) -> R,
) -> Result<Option<R>, Answer> {
    let mut headers = [const { std::mem::MaybeUninit::uninit() }; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut []);
    let length = match httparse::ParserConfig::default().parse_request_with_uninit_headers(
        &mut request,
        data,
        &mut headers,
    ) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if data.len() < MAX_HEAD => return Ok(None),
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            return Err(Answer::HeadTooLarge);
        }
        Err(error) => {
            return Err(Answer::BadRequest {
                reason: reason(error),
            });
        }
    };
    if let Some(found) = bare_line_end(&data[..length]) {
        return Err(Answer::BadRequest { reason: found });
    }
    let (Some(method), Some(target), Some(minor)) = (request.method, request.path, request.version)
    else {
        return Err(Answer::BadRequest {
            reason: "the request line is incomplete",
        });
    };
    let Ok(method) = Method::from_bytes(method.as_bytes()) else {
        return Err(Answer::BadRequest {
            reason: "the method is not a token",
        });
    };
    let head = RequestHead {
        method,
        target,
        headers: request.headers,
    };
    let fields = Fields::of(head.headers).map_err(|reason| Answer::BadRequest { reason })?;
    let http10 = minor == 0;
    if head.method == Method::CONNECT {
        return Err(Answer::NotImplemented {
            reason: "CONNECT is not supported; send the request itself",
        });
    }
    let hosts = head
        .headers
        .iter()
        .filter(|h| h.name.eq_ignore_ascii_case("host"))
        .count();
    if hosts > 1 || hosts == 0 && !http10 {
        return Err(Answer::BadRequest {
            reason: "there must be exactly one Host",
        });
    }
    if fields.chunked && (http10 || fields.length.is_some()) {
        return Err(Answer::BadRequest {
            reason: "Transfer-Encoding with Content-Length or HTTP/1.0",
        });
    }
    if fields.other_coding {
        return Err(Answer::NotImplemented {
            reason: "the only transfer coding is chunked",
        });
    }
    let body = if fields.chunked {
        Framing::CHUNKED
    } else {
        Framing::length(fields.length.unwrap_or(0))
    };
    let meta = RequestMeta {
        length,
        body,
        keep_alive: if http10 {
            fields.keep_alive && !fields.close
        } else {
            !fields.close
        },
        http10,
        head_method: head.method == Method::HEAD,
        upgrade: fields.upgrade && !fields.h2c && !http10 && body.is_done(),
    };
    Ok(Some(f(&head, meta)))
}

/// Reads a response's head; `None`: more bytes are needed. `write` gets the
/// head as it goes to the caller, its last empty line left out.
pub(crate) fn read_response(
    data: &[u8],
    to_head: bool,
    write: Option<&mut Vec<u8>>,
) -> Result<Option<ResponseMeta>, &'static str> {
    let mut headers = [const { std::mem::MaybeUninit::uninit() }; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut []);
    let length = match httparse::ParserConfig::default().parse_response_with_uninit_headers(
        &mut response,
        data,
        &mut headers,
    ) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if data.len() < MAX_HEAD => return Ok(None),
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            return Err("its header section is too large");
        }
        Err(error) => return Err(reason(error)),
    };
    if let Some(found) = bare_line_end(&data[..length]) {
        return Err(found);
    }
    let (Some(status), Some(minor)) = (response.code, response.version) else {
        return Err("the status line is incomplete");
    };
    let fields = Fields::of(response.headers)?;
    if fields.chunked && fields.length.is_some() {
        return Err("Transfer-Encoding with Content-Length");
    }
    if fields.other_coding {
        return Err("a transfer coding other than chunked");
    }
    let body = if to_head || status < 200 || status == 204 || status == 304 {
        Framing::Done
    } else if fields.chunked {
        Framing::CHUNKED
    } else {
        fields.length.map_or(Framing::UntilClose, Framing::length)
    };
    let keep_alive = body != Framing::UntilClose
        && if minor == 0 {
            fields.keep_alive && !fields.close
        } else {
            !fields.close
        };
    if let Some(out) = write {
        out.extend_from_slice(b"HTTP/1.1 ");
        let digits = [
            b'0' + (status / 100) as u8,
            b'0' + (status / 10 % 10) as u8,
            b'0' + (status % 10) as u8,
        ];
        out.extend_from_slice(&digits);
        out.push(b' ');
        out.extend_from_slice(response.reason.unwrap_or("").as_bytes());
        out.extend_from_slice(b"\r\n");
        let named = Named::of(response.headers);
        for header in response.headers.iter() {
            let hop = hop_by_hop(header.name);
            let kept = header.name.eq_ignore_ascii_case("transfer-encoding") && fields.chunked
                || status == 101 && header.name.eq_ignore_ascii_case("upgrade");
            if (!hop || kept) && !named.contains(header.name) {
                write_field(out, header.name, header.value);
            }
        }
        if status == 101 {
            out.extend_from_slice(b"connection: upgrade\r\n");
        }
    }
    Ok(Some(ResponseMeta {
        length,
        status,
        body,
        keep_alive,
        retry_after: fields.retry_after,
        refused: fields.refused,
        stream: fields.event_stream || status == 101,
    }))
}

fn write_field(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Fields of one hop (RFC 9110, section 7.6.1), and those that a proxy is
/// spoken to with.
fn hop_by_hop(name: &str) -> bool {
    const HOP: [&str; 8] = [
        "connection",
        "keep-alive",
        "proxy-connection",
        "proxy-authorization",
        "proxy-authenticate",
        "te",
        "transfer-encoding",
        "upgrade",
    ];
    HOP.iter()
        .any(|hop| name.len() == hop.len() && name.eq_ignore_ascii_case(hop))
}

/// Fields named by `Connection`, which are of this hop too.
struct Named<'a> {
    headers: &'a [httparse::Header<'a>],
    /// Whether `Connection` names any field; most messages have none.
    any: bool,
}

impl<'a> Named<'a> {
    fn of(headers: &'a [httparse::Header<'a>]) -> Named<'a> {
        let any = Named { headers, any: true }.all().next().is_some();
        Named { headers, any }
    }

    /// The names; framing and routing are never anybody's to drop.
    fn all(&self) -> impl Iterator<Item = &'a str> {
        const NEEDED: [&str; 7] = [
            "close",
            "keep-alive",
            "upgrade",
            "te",
            "host",
            "content-length",
            "transfer-encoding",
        ];
        self.headers
            .iter()
            .filter(|h| h.name.eq_ignore_ascii_case("connection"))
            .flat_map(|h| tokens(h.value))
            .filter(|token| NEEDED.iter().all(|n| !token.eq_ignore_ascii_case(n)))
    }

    fn contains(&self, name: &str) -> bool {
        self.any && self.all().any(|named| named.eq_ignore_ascii_case(name))
    }
}

/// Comma-separated tokens of a field's value.
fn tokens(value: &[u8]) -> impl Iterator<Item = &str> {
    value
        .split(|b| *b == b',')
        .filter_map(|part| std::str::from_utf8(part).ok())
        .map(|part| part.trim_matches([' ', '\t']))
        .filter(|part| !part.is_empty())
}

/// What the fields say about framing and connection.
#[derive(Default)]
struct Fields {
    length: Option<u64>,
    chunked: bool,
    other_coding: bool,
    close: bool,
    keep_alive: bool,
    /// `Connection` names `Upgrade`.
    upgrade: bool,
    /// `Upgrade` to HTTP/2, which is told apart by its preface: declined.
    h2c: bool,
    retry_after: Option<Duration>,
    refused: bool,
    event_stream: bool,
}

impl Fields {
    fn of(headers: &[httparse::Header<'_>]) -> Result<Fields, &'static str> {
        let mut fields = Fields::default();
        for header in headers {
            let value = header.value;
            // The first letter sorts most fields out.
            match header.name.as_bytes().first().map(u8::to_ascii_lowercase) {
                Some(b'c') if header.name.eq_ignore_ascii_case("content-length") => {
                    let length = content_length(value).ok_or("Content-Length is not a number")?;
                    if fields.length.is_some_and(|l| l != length) {
                        return Err("several Content-Length that differ");
                    }
                    fields.length = Some(length);
                }
                Some(b'c') if header.name.eq_ignore_ascii_case("connection") => {
                    for token in tokens(value) {
                        fields.close |= token.eq_ignore_ascii_case("close");
                        fields.keep_alive |= token.eq_ignore_ascii_case("keep-alive");
                        fields.upgrade |= token.eq_ignore_ascii_case("upgrade");
                    }
                }
                Some(b'c') if header.name.eq_ignore_ascii_case("content-type") => {
                    let kind = value.get(..17).unwrap_or_default();
                    fields.event_stream = kind.eq_ignore_ascii_case(b"text/event-stream");
                }
                Some(b't') if header.name.eq_ignore_ascii_case("transfer-encoding") => {
                    if fields.chunked || !value.eq_ignore_ascii_case(b"chunked") {
                        fields.other_coding = true;
                    }
                    fields.chunked = true;
                }
                Some(b'u') if header.name.eq_ignore_ascii_case("upgrade") => {
                    fields.h2c |= tokens(value).any(|t| t.to_ascii_lowercase().starts_with("h2c"));
                }
                Some(b'p') if header.name.eq_ignore_ascii_case("proxy-status") => {
                    fields.refused |= answer::is_refusal(value);
                }
                Some(b'r') if header.name.eq_ignore_ascii_case("retry-after") => {
                    let seconds = std::str::from_utf8(value)
                        .ok()
                        .and_then(|v| v.parse::<u32>().ok());
                    fields.retry_after = seconds.map(|s| Duration::from_secs(s.into()));
                }
                _ => {}
            }
        }
        Ok(fields)
    }
}

/// Digits only: no sign, no space, no list.
fn content_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// Whether a target is in absolute form; the rest after the scheme.
fn absolute(target: &str) -> Option<&str> {
    let scheme = target.get(..7)?;
    scheme.eq_ignore_ascii_case("http://").then(|| &target[7..])
}

/// A CR or LF that stands alone is read differently by different programs.
fn bare_line_end(head: &[u8]) -> Option<&'static str> {
    let mut last = 0;
    for byte in head {
        match (last, *byte) {
            (b'\r', b'\n') => {}
            (b'\r', _) => return Some("a CR stands alone"),
            (_, b'\n') => return Some("a LF stands alone"),
            _ => {}
        }
        last = *byte;
    }
    None
}

fn reason(error: httparse::Error) -> &'static str {
    match error {
        httparse::Error::HeaderName => "a header's name is not a token",
        httparse::Error::HeaderValue => "a header's value has a forbidden character",
        httparse::Error::NewLine => "a line does not end with CR LF",
        httparse::Error::Status => "the status is not a number",
        httparse::Error::Token => "the first line is malformed",
        httparse::Error::TooManyHeaders => "there are too many headers",
        httparse::Error::Version => "the version is not HTTP/1.0 or HTTP/1.1",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forwarded(request: &str) -> Result<(String, RequestMeta), Answer> {
        let read = with_request(request.as_bytes(), |head, meta| {
            let mut out = Vec::new();
            head.write(&meta, &mut out);
            (String::from_utf8(out).unwrap(), meta)
        });
        read.map(|r| r.expect("a whole head"))
    }

    #[test]
    fn a_request_in_absolute_form_goes_on_in_origin_form() {
        let (out, _) = forwarded(
            "GET http://payments.shop:8080/a?b=c HTTP/1.1\r\nHost: wrong\r\nA: 1\r\n\r\n",
        )
        .unwrap();
        assert_eq!(
            out,
            "GET /a?b=c HTTP/1.1\r\nhost: payments.shop:8080\r\nA: 1\r\n\r\n"
        );
    }

    #[test]
    fn fields_of_one_hop_end_here() {
        let (out, meta) = forwarded(
            "POST / HTTP/1.1\r\nHost: a\r\nConnection: close, X-Secret\r\nX-Secret: 1\r\nKeep-Alive: 5\r\n\
             Proxy-Authorization: x\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n",
        )
        .unwrap();
        assert_eq!(
            out,
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n"
        );
        assert!(!meta.keep_alive);
    }

    #[test]
    fn an_upgrade_is_passed_on_only_where_it_is_asked_for_and_not_to_http2() {
        for (fields, upgrade) in [
            ("Connection: upgrade\r\nUpgrade: websocket", true),
            ("Upgrade: websocket", false),
            ("Connection: upgrade\r\nUpgrade: h2c", false),
            (
                "Connection: upgrade\r\nUpgrade: h2c\r\nUpgrade: websocket",
                false,
            ),
        ] {
            let (out, meta) =
                forwarded(&format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n")).unwrap();
            assert_eq!(meta.upgrade, upgrade, "{fields}");
            assert_eq!(out.contains("pgrade:"), upgrade, "{out}");
        }
    }

    #[test]
    fn connection_names_as_many_fields_as_it_likes() {
        let many: Vec<String> = (0..20).map(|n| format!("x-{n}")).collect();
        let fields: String = many.iter().map(|n| format!("{n}: 1\r\n")).collect();
        let request = format!(
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: {}\r\n{fields}\r\n",
            many.join(", ")
        );
        let (out, _) = forwarded(&request).unwrap();
        assert_eq!(out, "GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    }

    #[test]
    fn connection_cannot_drop_what_frames_or_routes_a_message() {
        let (out, _) =
            forwarded("POST / HTTP/1.1\r\nHost: a\r\nConnection: content-length, host\r\nContent-Length: 1\r\n\r\n")
                .unwrap();
        assert!(
            out.contains("Content-Length: 1") && out.contains("Host: a"),
            "{out}"
        );
    }

    #[test]
    fn requests_that_could_be_read_in_two_ways_are_refused() {
        for bad in [
            "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\n",
            "GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
            "GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n",
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\nHost: a\n\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n folded\r\n\r\n",
            "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        ] {
            assert!(forwarded(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_response_without_length_ends_with_its_connection() {
        let meta = read_response(b"HTTP/1.1 200 OK\r\n\r\n", false, None)
            .unwrap()
            .unwrap();
        assert_eq!((meta.body, meta.keep_alive), (Framing::UntilClose, false));
        let meta = read_response(b"HTTP/1.1 204 No Content\r\n\r\n", false, None)
            .unwrap()
            .unwrap();
        assert_eq!((meta.body, meta.keep_alive), (Framing::Done, true));
        let meta = read_response(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", true, None)
            .unwrap()
            .unwrap();
        assert_eq!(meta.body, Framing::Done);
    }
}
