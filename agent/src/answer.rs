//! What Weir says itself: every reason for which the agent answers in the
//! destination's place, and how each reads over HTTP/1.1, HTTP/2 and gRPC.
//!
//! The reason travels in `Proxy-Status` (RFC 9209), with `Retry-After` where a
//! time is known; gRPC callers get a status and a message instead, and
//! `grpc-retry-pushback-ms`.

use std::fmt::{self, Write as _};
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, StatusCode};
use weir_resilience::shed;

use crate::pods::NoSocket;

/// Whether this `Proxy-Status` is of an agent that refused a request before the
/// destination saw it. What an agent says of the destination (it cannot be reached,
/// it broke off) is no refusal.
pub(crate) fn is_refusal(proxy_status: &[u8]) -> bool {
    [REFUSED, FULL].iter().any(|error| {
        let rest = proxy_status.strip_prefix(b"weir; error=");
        rest.is_some_and(|rest| rest.starts_with(error.as_bytes()))
    })
}

/// The errors of RFC 9209 by which Weir tells that it refused.
const REFUSED: &str = "destination_unavailable";
const FULL: &str = "connection_limit_reached";

/// Why the agent answers itself.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// The breaker refuses; `forced` when a person said so.
    BreakerOpen {
        breaker: Arc<str>,
        retry_after: Option<Duration>,
        forced: bool,
    },
    /// The partition and its queue are full.
    BulkheadFull { bulkhead: Arc<str> },
    /// Waited as long as the partition allows.
    BulkheadWait {
        bulkhead: Arc<str>,
        waited: Duration,
    },
    /// Every endpoint is at `loadShedding.concurrency.max`.
    ConcurrencyLimit { limit: u32 },
    /// The endpoint is overloaded, by `loadShedding.cpu` or `pressure`.
    Shed(shed::Refused),
    /// The service has no ready endpoint.
    NoEndpoints { service: Arc<str> },
    /// The request names no service that this agent knows.
    UnknownDestination { host: String, hint: String },
    /// No connection could be made.
    ConnectFailed { reason: &'static str },
    /// No connection within `timeouts.connect`.
    ConnectTimeout { after: Duration },
    /// The connection ended before a response.
    Terminated,
    /// What came back is not a response.
    BadResponse { reason: &'static str },
    /// Caller and destination do not speak the same protocol.
    ProtocolMismatch {
        spoken: &'static str,
        expected: &'static str,
    },
    /// `timeouts.request` passed.
    RequestTimeout { after: Duration },
    /// `timeouts.perTry` passed, and there is no further try.
    TryTimeout { after: Duration },
    /// `timeouts.idle` passed.
    IdleTimeout { after: Duration },
    /// The caller's request is malformed.
    BadRequest { reason: &'static str },
    /// The caller's header section is too large.
    HeadTooLarge,
    /// Something that the agent does not do.
    NotImplemented { reason: &'static str },
}

/// The code of `google.rpc.Code` that a reason has for gRPC callers.
mod code {
    pub(super) const INTERNAL: u8 = 13;
    pub(super) const INVALID_ARGUMENT: u8 = 3;
    pub(super) const DEADLINE_EXCEEDED: u8 = 4;
    pub(super) const RESOURCE_EXHAUSTED: u8 = 8;
    pub(super) const UNIMPLEMENTED: u8 = 12;
    pub(super) const UNAVAILABLE: u8 = 14;
}

impl Answer {
    /// HTTP status, gRPC status, error type of RFC 9209, and the label under
    /// which it is counted.
    fn codes(&self) -> (u16, u8, &'static str, &'static str) {
        match self {
            Answer::BreakerOpen { .. } => (503, code::UNAVAILABLE, REFUSED, "breaker_open"),
            Answer::BulkheadFull { .. } => (503, code::RESOURCE_EXHAUSTED, FULL, "bulkhead_full"),
            Answer::BulkheadWait { .. } => (503, code::RESOURCE_EXHAUSTED, FULL, "bulkhead_wait"),
            Answer::ConcurrencyLimit { .. } => (503, code::UNAVAILABLE, FULL, "concurrency_limit"),
            Answer::Shed(refused) => (
                503,
                code::UNAVAILABLE,
                REFUSED,
                match refused.cause {
                    shed::Cause::Cpu => "shed_cpu",
                    shed::Cause::CpuPressure | shed::Cause::MemoryPressure => "shed_pressure",
                },
            ),
            Answer::NoEndpoints { .. } => (503, code::UNAVAILABLE, REFUSED, "no_endpoints"),
            Answer::UnknownDestination { .. } => (
                502,
                code::UNAVAILABLE,
                "destination_not_found",
                "unknown_destination",
            ),
            Answer::ConnectFailed { .. } => (
                502,
                code::UNAVAILABLE,
                "connection_refused",
                "connect_failed",
            ),
            Answer::ConnectTimeout { .. } => (
                504,
                code::UNAVAILABLE,
                "connection_timeout",
                "connect_timeout",
            ),
            Answer::Terminated => (
                502,
                code::UNAVAILABLE,
                "connection_terminated",
                "terminated",
            ),
            Answer::BadResponse { .. } => {
                (502, code::INTERNAL, "http_protocol_error", "bad_response")
            }
            Answer::ProtocolMismatch { .. } => (
                502,
                code::INTERNAL,
                "http_protocol_error",
                "protocol_mismatch",
            ),
            Answer::RequestTimeout { .. } => (
                504,
                code::DEADLINE_EXCEEDED,
                "http_response_timeout",
                "request_timeout",
            ),
            Answer::TryTimeout { .. } => (
                504,
                code::DEADLINE_EXCEEDED,
                "http_response_timeout",
                "try_timeout",
            ),
            Answer::IdleTimeout { .. } => (
                504,
                code::DEADLINE_EXCEEDED,
                "connection_read_timeout",
                "idle_timeout",
            ),
            Answer::BadRequest { .. } => (
                400,
                code::INVALID_ARGUMENT,
                "http_request_error",
                "bad_request",
            ),
            Answer::HeadTooLarge => (
                431,
                code::RESOURCE_EXHAUSTED,
                "http_request_error",
                "head_too_large",
            ),
            Answer::NotImplemented { .. } => (
                501,
                code::UNIMPLEMENTED,
                "http_request_error",
                "not_implemented",
            ),
        }
    }

    /// The label under which `/metrics` counts it.
    pub(crate) fn label(&self) -> &'static str {
        self.codes().3
    }

    /// When it makes sense to come back.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Answer::BreakerOpen { retry_after, .. } => *retry_after,
            // Sooner, the figure is still the same.
            Answer::Shed(_) => Some(shed::FOLLOWS),
            _ => None,
        }
    }

    /// Writes the HTTP/1.1 response, whole. `body` is false for HEAD.
    pub(crate) fn write_h1(&self, out: &mut Vec<u8>, close: bool, body: bool) {
        let (status, _, error, _) = self.codes();
        let mut text = Writer(out);
        let reason = StatusCode::from_u16(status)
            .ok()
            .and_then(|s| s.canonical_reason())
            .unwrap_or("");
        // Writing into memory cannot fail.
        let _ = write!(
            text,
            "HTTP/1.1 {status} {reason}\r\nproxy-status: weir; error={error}; details=\""
        );
        let _ = write!(Quoted(&mut text), "{self}");
        text.0.extend_from_slice(b"\"\r\n");
        if let Some(after) = self.retry_after() {
            let _ = write!(text, "retry-after: {}\r\n", seconds_up(after));
        }
        if close {
            text.0.extend_from_slice(b"connection: close\r\n");
        }
        let mut length = Count(0);
        let _ = writeln!(length, "weir: {self}");
        let _ = write!(
            text,
            "content-type: text/plain; charset=utf-8\r\ncontent-length: {}\r\n\r\n",
            length.0
        );
        if body {
            let _ = writeln!(text, "weir: {self}");
        }
    }

    /// The head of the HTTP/2 response; for gRPC a "trailers only" one.
    pub(crate) fn h2_response(&self, grpc: bool) -> http::Response<()> {
        let (status, grpc_status, error, _) = self.codes();
        let mut response = http::Response::new(());
        let mut details = String::new();
        let _ = write!(Quoted(&mut details), "{self}");
        let headers = response.headers_mut();
        insert(
            headers,
            "proxy-status",
            &format!("weir; error={error}; details=\"{details}\""),
        );
        if grpc {
            insert(headers, "content-type", "application/grpc");
            headers.insert("grpc-status", HeaderValue::from(u16::from(grpc_status)));
            insert(
                headers,
                "grpc-message",
                &percent_encode(&format!("weir: {self}")),
            );
            if let Some(after) = self.retry_after() {
                insert(
                    headers,
                    "grpc-retry-pushback-ms",
                    &after.as_millis().to_string(),
                );
            }
        } else {
            insert(headers, "content-type", "text/plain; charset=utf-8");
            if let Some(after) = self.retry_after() {
                headers.insert("retry-after", HeaderValue::from(seconds_up(after)));
            }
            *response.status_mut() =
                StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
        }
        response
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Answer::BreakerOpen {
                breaker,
                forced: true,
                ..
            } => {
                write!(f, "circuit breaker {breaker} is forced open by an override")
            }
            Answer::BreakerOpen {
                breaker,
                retry_after: Some(after),
                ..
            } => {
                write!(
                    f,
                    "circuit breaker {breaker} open, retry in {}s",
                    seconds_up(*after)
                )
            }
            Answer::BreakerOpen { breaker, .. } => write!(f, "circuit breaker {breaker} open"),
            Answer::BulkheadFull { bulkhead } => write!(f, "bulkhead {bulkhead} is full"),
            Answer::BulkheadWait { bulkhead, waited } => {
                write!(
                    f,
                    "bulkhead {bulkhead} is full, waited {waited:?} for a place"
                )
            }
            Answer::ConcurrencyLimit { limit } => {
                write!(
                    f,
                    "every endpoint has {limit} requests, the most it is given"
                )
            }
            Answer::Shed(refused) => write!(f, "load is shed: {refused}"),
            Answer::NoEndpoints { service } => {
                write!(f, "service {service} has no ready endpoints")
            }
            Answer::UnknownDestination { host, hint } => {
                write!(f, "no service called {host}; {hint}")
            }
            Answer::ConnectFailed { reason } => {
                write!(f, "cannot connect to the destination: {reason}")
            }
            Answer::ConnectTimeout { after } => write!(f, "no connection within {after:?}"),
            Answer::Terminated => {
                f.write_str("the destination closed the connection before it answered")
            }
            Answer::BadResponse { reason } => {
                write!(f, "the destination's response is malformed: {reason}")
            }
            Answer::ProtocolMismatch { spoken, expected } => {
                write!(
                    f,
                    "the caller speaks {spoken}, the destination {expected}; Weir does not translate"
                )
            }
            Answer::RequestTimeout { after } => write!(f, "request timeout of {after:?} passed"),
            Answer::TryTimeout { after } => write!(f, "per-try timeout of {after:?} passed"),
            Answer::IdleTimeout { after } => write!(f, "no byte moved for {after:?}"),
            Answer::BadRequest { reason } => write!(f, "malformed request: {reason}"),
            Answer::HeadTooLarge => f.write_str("the request's header section is too large"),
            Answer::NotImplemented { reason } => f.write_str(reason),
        }
    }
}

/// Whether a connection could not be made for want of something that is the
/// agent's own: file descriptors, ports, memory, or capture.
pub(crate) fn is_own_failure(error: &std::io::Error) -> bool {
    const EMFILE: i32 = 24;
    const ENFILE: i32 = 23;
    const ENOMEM: i32 = 12;
    const ENOBUFS: i32 = 105;
    no_socket(error).is_some()
        || matches!(error.kind(), std::io::ErrorKind::AddrNotAvailable)
        || matches!(
            error.raw_os_error(),
            Some(EMFILE | ENFILE | ENOMEM | ENOBUFS)
        )
}

fn no_socket(error: &std::io::Error) -> Option<&NoSocket> {
    error.get_ref()?.downcast_ref()
}

/// Why a connection could not be made, for people.
pub(crate) fn connect_reason(error: &std::io::Error) -> &'static str {
    if let Some(none) = no_socket(error) {
        return none.reason();
    }
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connection refused",
        std::io::ErrorKind::ConnectionReset => "connection reset",
        std::io::ErrorKind::HostUnreachable => "host unreachable",
        std::io::ErrorKind::NetworkUnreachable => "network unreachable",
        std::io::ErrorKind::TimedOut => "timed out",
        std::io::ErrorKind::AddrNotAvailable => "no local address or port is free",
        _ if is_own_failure(error) => "Weir itself is out of file descriptors or memory",
        _ => "connection failed",
    }
}

/// Whole seconds, never less than the time itself in whole milliseconds:
/// coming back early is coming back in vain.
fn seconds_up(time: Duration) -> u64 {
    u64::try_from(time.as_millis().div_ceil(1000)).unwrap_or(u64::MAX)
}

fn insert(headers: &mut HeaderMap, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

/// Percent-encoding of `grpc-message`: printable ASCII but `%` stays.
fn percent_encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if (0x20..0x7f).contains(&byte) && byte != b'%' {
            out.push(byte as char);
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

/// Counts what is written: the length has to be told before the text.
struct Count(usize);

impl fmt::Write for Count {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0 += text.len();
        Ok(())
    }
}

struct Writer<'a>(&'a mut Vec<u8>);

impl fmt::Write for Writer<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

/// Keeps what is written fit for a quoted string of a structured field
/// (RFC 8941): printable ASCII, `"` and `\` escaped.
struct Quoted<'a, W>(&'a mut W);

impl<W: fmt::Write> fmt::Write for Quoted<'_, W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            match c {
                '"' | '\\' => {
                    self.0.write_char('\\')?;
                    self.0.write_char(c)?;
                }
                ' '..='~' => self.0.write_char(c)?,
                _ => self.0.write_char('?')?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_over_http1_names_breaker_and_time() {
        let answer = Answer::BreakerOpen {
            breaker: "payments".into(),
            retry_after: Some(Duration::from_millis(2100)),
            forced: false,
        };
        let mut out = Vec::new();
        answer.write_h1(&mut out, false, true);
        let text = String::from_utf8(out).unwrap();
        assert_eq!(
            text,
            "HTTP/1.1 503 Service Unavailable\r\n\
             proxy-status: weir; error=destination_unavailable; details=\"circuit breaker payments open, retry in 3s\"\r\n\
             retry-after: 3\r\n\
             content-type: text/plain; charset=utf-8\r\n\
             content-length: 49\r\n\r\n\
             weir: circuit breaker payments open, retry in 3s\n"
        );
    }

    #[test]
    fn a_refusal_over_grpc_is_a_status_with_pushback() {
        let answer = Answer::BreakerOpen {
            breaker: "payments".into(),
            retry_after: Some(Duration::from_millis(2100)),
            forced: false,
        };
        let response = answer.h2_response(true);
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["grpc-status"], "14");
        assert_eq!(response.headers()["grpc-retry-pushback-ms"], "2100");
        assert_eq!(
            response.headers()["grpc-message"],
            "weir: circuit breaker payments open, retry in 3s"
        );
    }

    #[test]
    fn what_a_caller_wrote_cannot_leave_the_quoted_string() {
        let answer = Answer::UnknownDestination {
            host: "a\"b\\c\u{e9}\r\n".into(),
            hint: "x".into(),
        };
        let mut out = Vec::new();
        answer.write_h1(&mut out, true, false);
        let text = String::from_utf8(out).unwrap();
        assert!(
            text.contains("details=\"no service called a\\\"b\\\\c???; x\"\r\n"),
            "{text}"
        );
        assert!(text.ends_with("\r\n\r\n"));
    }
}
