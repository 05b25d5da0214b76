//! Which requests a route or a bulkhead is for.

use std::fmt;
use std::hash::{Hash, Hasher};

use regex::bytes::{Regex, RegexBuilder};

#[cfg(test)]
mod tests;

/// What matching looks at of a request.
pub trait RequestView {
    /// The method as it came, `GET`.
    fn method(&self) -> &str;
    /// The path without the query, `/pay/refunds`.
    fn path(&self) -> &str;
    /// The first value of a header, whose name is given in lower case.
    fn header(&self, lower_case_name: &str) -> Option<&[u8]>;
}

/// A condition on requests: all that is given must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Match {
    /// Any of these, case-sensitive (RFC 9110, 9.1); none: any method.
    pub methods: Vec<String>,
    /// The path.
    pub path: Option<PathMatch>,
    /// Every one of these.
    pub headers: Vec<HeaderMatch>,
    /// The call, where the request is a gRPC one.
    pub grpc: Option<GrpcMatch>,
}

impl Match {
    /// Whether `request` meets the condition.
    pub fn matches(&self, request: &impl RequestView) -> bool {
        (self.methods.is_empty() || self.methods.iter().any(|method| method == request.method()))
            && self
                .path
                .as_ref()
                .is_none_or(|path| path.matches(request.path()))
            && self.grpc.as_ref().is_none_or(|grpc| grpc.matches(request))
            && self.headers.iter().all(|header| header.matches(request))
    }
}

/// A condition on the path, without the query.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PathMatch {
    /// The whole path.
    Exact(String),
    /// Whole path elements: `/a` matches `/a` and `/a/b`, not `/ab`. A slash
    /// at its end changes nothing.
    Prefix(String),
    /// A pattern for the whole path.
    Regex(Pattern),
}

impl PathMatch {
    /// Whether `path` meets the condition.
    pub fn matches(&self, path: &str) -> bool {
        match self {
            PathMatch::Exact(exact) => path == exact,
            PathMatch::Prefix(prefix) => path
                .strip_prefix(prefix.trim_end_matches('/'))
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
            PathMatch::Regex(pattern) => pattern.matches(path.as_bytes()),
        }
    }
}

/// A condition on one header.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HeaderMatch {
    /// Its name in lower case.
    pub name: String,
    /// What must hold of its first value.
    pub rule: HeaderRule,
}

/// What must hold of a header's first value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HeaderRule {
    /// It is this.
    Exact(String),
    /// It matches this.
    Regex(Pattern),
    /// It is there (true) or is not there (false).
    Present(bool),
}

impl HeaderMatch {
    /// Whether `request` meets the condition.
    pub fn matches(&self, request: &impl RequestView) -> bool {
        let value = request.header(&self.name);
        match &self.rule {
            HeaderRule::Exact(exact) => value == Some(exact.as_bytes()),
            HeaderRule::Regex(pattern) => value.is_some_and(|value| pattern.matches(value)),
            HeaderRule::Present(present) => value.is_some() == *present,
        }
    }
}

/// A condition on gRPC calls; a request that is not one never meets it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GrpcMatch {
    /// The full name of the service, `shop.Payments`; `None`: any.
    pub service: Option<String>,
    /// The method, `Refund`; `None`: any.
    pub method: Option<String>,
}

impl GrpcMatch {
    /// Whether `request` is a gRPC call that meets the condition.
    pub fn matches(&self, request: &impl RequestView) -> bool {
        let grpc = request
            .header("content-type")
            .and_then(|value| value.get(..b"application/grpc".len()))
            .is_some_and(|start| start.eq_ignore_ascii_case(b"application/grpc"));
        let call = request
            .path()
            .strip_prefix('/')
            .and_then(|path| path.rsplit_once('/'));
        grpc && call.is_some_and(|(service, method)| {
            self.service
                .as_deref()
                .is_none_or(|wanted| wanted == service)
                && self.method.as_deref().is_none_or(|wanted| wanted == method)
        })
    }
}

/// A regular expression in RE2 syntax for the whole of a value. It takes time
/// linear in the value, and its compiled size is bounded.
#[derive(Clone)]
pub struct Pattern {
    text: String,
    regex: Regex,
}

impl Pattern {
    /// Longest text, in bytes.
    pub const MAX_LENGTH: usize = 1024;
    /// Largest compiled form, in bytes.
    pub const MAX_COMPILED: usize = 1 << 20;

    /// Compiles `text`; the error says what is wrong with it.
    pub fn new(text: &str) -> Result<Pattern, PatternError> {
        if text.len() > Pattern::MAX_LENGTH {
            return Err(PatternError::TooLong);
        }
        // Alone first: "a)|(b" becomes valid, and another pattern, once it
        // stands in parentheses.
        compile(text)?;
        let regex = compile(&format!(r"\A(?:{text})\z"))?;
        Ok(Pattern {
            text: text.to_owned(),
            regex,
        })
    }

    /// Whether all of `value` matches.
    pub fn matches(&self, value: &[u8]) -> bool {
        self.regex.is_match(value)
    }

    /// The text that it was made from.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

fn compile(text: &str) -> Result<Regex, PatternError> {
    RegexBuilder::new(text)
        .size_limit(Pattern::MAX_COMPILED)
        .dfa_size_limit(Pattern::MAX_COMPILED)
        .nest_limit(32)
        .build()
        .map_err(|error| match error {
            regex::Error::CompiledTooBig(_) => PatternError::TooBig,
            // The library draws the pattern and a marker over several lines;
            // the last one says what is wrong.
            other => {
                let text = other.to_string();
                let last = text.lines().last().unwrap_or_default();
                PatternError::Syntax(last.trim_start_matches("error:").trim().to_owned())
            }
        })
}

/// Why a text is not a pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// It is not RE2 syntax.
    #[error("not a regular expression in RE2 syntax: {0}")]
    Syntax(String),
    /// The text is too long.
    #[error("longer than {} bytes", Pattern::MAX_LENGTH)]
    TooLong,
    /// The compiled form would be too big.
    #[error("too big once compiled; use smaller repetitions, or (?-u) before \\w, \\d and \\s")]
    TooBig,
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Pattern) -> bool {
        self.text == other.text
    }
}

impl Eq for Pattern {}

impl Hash for Pattern {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pattern({:?})", self.text)
    }
}
