//! Conditions on requests.

use weir_proto::v1alpha1 as proto;

use super::{At, all};
use crate::config::matching::{GrpcMatch, HeaderMatch, HeaderRule, Match, PathMatch, Pattern};

/// Methods or headers of one condition.
const MAX_PARTS: usize = 16;
/// Bytes of a literal path or header value.
const MAX_LITERAL: usize = 4096;

pub(super) fn request(at: &mut At<'_>, message: &proto::Match) -> Option<Match> {
    at.at_most("methods", message.methods.len(), MAX_PARTS);
    let methods = methods(at, "methods", &message.methods);
    let path = match &message.path {
        None => Some(None),
        Some(message) => path(&mut at.field("path"), message).map(Some),
    };
    let headers = headers(at, &message.headers);
    let grpc = match &message.grpc {
        None => Some(None),
        Some(message) => grpc(&mut at.field("grpc"), message).map(Some),
    };
    Some(Match {
        methods: methods?,
        path: path?,
        headers: headers?,
        grpc: grpc?,
    })
}

pub(super) fn methods(at: &mut At<'_>, field: &str, methods: &[String]) -> Option<Vec<String>> {
    let mut good = true;
    for (n, method) in methods.iter().enumerate() {
        if !is_token(method) || method.bytes().any(|byte| byte.is_ascii_lowercase()) {
            good = false;
            let path = format!("{field}[{n}]");
            at.refuse(
                &path,
                format!("{method:?} is not a method; write it in upper case, \"GET\""),
            );
        }
    }
    good.then(|| methods.to_vec())
}

pub(super) fn headers(
    at: &mut At<'_>,
    messages: &[proto::HeaderMatch],
) -> Option<Vec<HeaderMatch>> {
    at.at_most("headers", messages.len(), MAX_PARTS);
    let headers = messages.iter().enumerate();
    all(headers
        .map(|(n, message)| header(&mut at.item("headers", n), message))
        .collect())
}

fn header(at: &mut At<'_>, message: &proto::HeaderMatch) -> Option<HeaderMatch> {
    use proto::header_match::Match;
    let name = &message.name;
    let name_is_good = is_token(name) && !name.bytes().any(|byte| byte.is_ascii_uppercase());
    if !name_is_good {
        at.refuse(
            "name",
            format!("{name:?} is not a header name in lower case"),
        );
    }
    let rule = match &message.r#match {
        Some(Match::Exact(exact)) => literal(at, "exact", exact).map(HeaderRule::Exact),
        Some(Match::Regex(text)) => pattern(at, text).map(HeaderRule::Regex),
        Some(Match::Present(present)) => Some(HeaderRule::Present(*present)),
        None => {
            at.refuse("match", "missing; give one of exact, regex and present");
            None
        }
    };
    let rule = rule?;
    name_is_good.then(|| HeaderMatch {
        name: name.clone(),
        rule,
    })
}

fn path(at: &mut At<'_>, message: &proto::PathMatch) -> Option<PathMatch> {
    use proto::path_match::Match;
    match &message.r#match {
        Some(Match::Exact(exact)) => absolute(at, "exact", exact).map(PathMatch::Exact),
        Some(Match::Prefix(prefix)) => absolute(at, "prefix", prefix).map(PathMatch::Prefix),
        Some(Match::Regex(text)) => pattern(at, text).map(PathMatch::Regex),
        None => {
            at.refuse("match", "missing; give one of exact, prefix and regex");
            None
        }
    }
}

fn absolute(at: &mut At<'_>, field: &str, path: &str) -> Option<String> {
    if !path.starts_with('/') {
        at.refuse(field, format!("{path:?} must begin with /"));
        return None;
    }
    literal(at, field, path)
}

fn literal(at: &mut At<'_>, field: &str, text: &str) -> Option<String> {
    if text.len() > MAX_LITERAL {
        at.refuse(
            field,
            format!("{} bytes; at most {MAX_LITERAL} are allowed", text.len()),
        );
        return None;
    }
    Some(text.to_owned())
}

fn pattern(at: &mut At<'_>, text: &str) -> Option<Pattern> {
    Pattern::new(text)
        .map_err(|error| at.refuse("regex", error.to_string()))
        .ok()
}

fn grpc(at: &mut At<'_>, message: &proto::GrpcMatch) -> Option<GrpcMatch> {
    let mut part = |field: &str, text: &str| {
        if text.is_empty() {
            return Some(None);
        }
        if text.len() > MAX_LITERAL || text.contains('/') {
            at.refuse(field, format!("{text:?} must be a name without /"));
            return None;
        }
        Some(Some(text.to_owned()))
    };
    let service = part("service", &message.service);
    let method = part("method", &message.method);
    Some(GrpcMatch {
        service: service?,
        method: method?,
    })
}

/// RFC 9110, 5.6.2.
fn is_token(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    (1..=256).contains(&text.len()) && text.bytes().all(allowed)
}
