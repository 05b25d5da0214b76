//! What the pipeline needs to know of header and trailer fields.

use std::time::Duration;

use http::HeaderMap;
use weir_resilience::config::RequestView;
use weir_resilience::retry::Pushback;

use crate::answer;

/// Fields of one hop have no place in HTTP/2 (RFC 9113, section 8.2.2).
pub(super) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    for name in [
        "connection",
        "keep-alive",
        "proxy-connection",
        "proxy-authorization",
        "transfer-encoding",
        "upgrade",
    ] {
        headers.remove(name);
    }
}

pub(super) fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(http::header::CONTENT_TYPE)
        .is_some_and(|t| t.as_bytes().starts_with(b"application/grpc"))
}

fn number<T: std::str::FromStr>(headers: &HeaderMap, name: &str) -> Option<T> {
    headers.get(name)?.to_str().ok()?.parse().ok()
}

pub(super) fn grpc_status(headers: &HeaderMap) -> Option<u8> {
    number(headers, "grpc-status")
}

pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    number::<u32>(headers, "retry-after").map(|seconds| Duration::from_secs(seconds.into()))
}

/// Whether another agent refused the request.
pub(super) fn is_refusal(headers: &HeaderMap) -> bool {
    let said = headers.get("proxy-status");
    said.is_some_and(|said| answer::is_refusal(said.as_bytes()))
}

pub(super) fn pushback(headers: &HeaderMap) -> Option<Pushback> {
    let value = headers.get("grpc-retry-pushback-ms")?;
    // What cannot be read means "do not" (gRFC A6).
    let millis = value.to_str().ok().and_then(|v| v.parse::<u32>().ok());
    Some(millis.map_or(Pushback::Stop, |ms| {
        Pushback::After(Duration::from_millis(ms.into()))
    }))
}

/// A request's head for routes and partitions.
pub(super) struct View<'a>(pub(super) &'a http::request::Parts);

impl RequestView for View<'_> {
    fn method(&self) -> &str {
        self.0.method.as_str()
    }

    fn path(&self) -> &str {
        self.0.uri.path()
    }

    fn header(&self, name: &str) -> Option<&[u8]> {
        self.0.headers.get(name).map(http::HeaderValue::as_bytes)
    }
}
