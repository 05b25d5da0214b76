use kube::core::Rule;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::text::{HeaderName, HeaderValue};

/// What a request's header must be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    Rule::new("!(self.name.lowerAscii() in ['authorization', 'proxy-authorization', 'cookie'])")
        .message("credentials do not belong in a policy, which many may read: match another header")
        .field_path(".name"),
    Rule::new("(self.type == 'Present') != has(self.value)")
        .message("type Exact (unless given) and RegularExpression need value; type Present has none")
        .field_path(".value"),
    Rule::new("self.type != 'RegularExpression' || !has(self.value) || [''.matches(self.value)].size() == 1")
        .message("value must be a regular expression in RE2 syntax")
        .field_path(".value"),
]))]
pub struct HeaderMatch {
    /// Name of the header, in any case. Not authorization, proxy-authorization or
    /// cookie: credentials do not belong in a policy.
    #[schemars(with = "HeaderName")]
    pub name: String,
    /// Exact: value is the header's value. RegularExpression: value (RE2 syntax)
    /// matches the whole of it. Present: the header is there, whatever its value.
    #[serde(default)]
    pub r#type: HeaderMatchType,
    /// For Exact and RegularExpression.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<HeaderValue>")]
    pub value: Option<String>,
}

/// How a header is compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs, reason = "told once, at the field")]
pub enum HeaderMatchType {
    #[default]
    Exact,
    RegularExpression,
    Present,
}
