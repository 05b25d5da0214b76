//! Schemas of the short texts that appear in several sections. The fields
//! themselves are `String`s: the schema is what keeps them right.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

macro_rules! text {
    ($(#[doc = $doc:literal] $name:ident: $min:literal to $max:literal, $pattern:literal, $words:literal;)*) => {
        $(
            #[doc = $doc]
            pub(super) struct $name;

            impl JsonSchema for $name {
                fn inline_schema() -> bool {
                    true
                }

                fn schema_name() -> std::borrow::Cow<'static, str> {
                    stringify!($name).into()
                }

                fn json_schema(_: &mut SchemaGenerator) -> Schema {
                    json_schema!({ "type": "string", "minLength": $min, "maxLength": $max, "pattern": $pattern })
                }
            }
        )*

        /// What to write where a schema has this pattern, in words and with an
        /// example: a pattern alone helps nobody.
        pub(crate) fn explain_pattern(pattern: &str) -> Option<&'static str> {
            match pattern {
                $($pattern => Some($words),)*
                super::duration::PATTERN => Some("a duration such as 500ms, 10s or 1h30m"),
                super::status_code::PATTERN => Some("a status code such as 503 or a range such as 500-599"),
                super::byte_size::PATTERN => Some("a size such as 65536, 64Ki or 1Mi, at most 16Mi"),
                super::timestamp::PATTERN => Some("a moment such as 2026-05-01T12:00:00Z"),
                _ => None,
            }
        }
    };
}

text! {
    /// Name of a namespace, Service, route…: RFC 1123.
    DnsLabel: 1 to 63, "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
        "a name of lower-case letters, digits and -, such as payments";
    /// Name of a host, or of most Kubernetes objects: RFC 1123.
    DnsName: 1 to 253, "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$",
        "a name of lower-case letters, digits, - and ., such as payments or api.example.com";
    /// Name of a header: a token of RFC 9110.
    HeaderName: 1 to 64, "^[A-Za-z0-9!#$%&'*+.^_`|~-]+$",
        "the name of a header, such as x-request-id";
    /// Value of a header: visible characters, with blanks only between them.
    HeaderValue: 1 to 256, "^[!-~]([ -~]*[!-~])?$",
        "the value of a header: ASCII characters, without blanks at its ends";
    /// An HTTP method.
    Method: 1 to 32, "^[A-Z][A-Z0-9_-]*$",
        "a method in upper case, such as GET";
    /// `namespace/name`.
    NamespacedName: 3 to 317, "^[a-z0-9]([-a-z0-9]*[a-z0-9])?/[a-z0-9]([-a-z0-9.]*[a-z0-9])?$",
        "a namespace and a name, such as shop/checkout";
    /// Path of a request, without a query.
    Path: 1 to 256, "^/[!-\"$->@-~]*$",
        "a path without query, such as /healthz";
    /// Name of a level of priority.
    LevelName: 1 to 32, "^[A-Za-z0-9]([-_A-Za-z0-9]*[A-Za-z0-9])?$",
        "a name of letters, digits, - and _, such as Critical";
    /// Full name of a gRPC service: `shop.v1.Payments`.
    GrpcService: 1 to 128, "^[A-Za-z_][A-Za-z0-9_]*([.][A-Za-z_][A-Za-z0-9_]*)*$",
        "the full name of a gRPC service, such as shop.v1.Payments";
    /// Name of a gRPC method.
    GrpcMethod: 1 to 64, "^[A-Za-z_][A-Za-z0-9_]*$",
        "the name of a gRPC method, such as Refund";
}
