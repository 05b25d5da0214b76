//! Texts that people write where texts belong, right ones and wrong ones.

use serde_json::Value;

const DURATIONS: &[&str] = &[
    "0s",
    "0h0m",
    "1ms",
    "99ms",
    "100ms",
    "999ms",
    "1s",
    "1m30s",
    "90s",
    "30s",
    "61s",
    "10m",
    "1h",
    "25h",
    "720h",
    "1ms1h",
    "1h1h1h1h",
    "1h1h1h1h1h",
    "99999h99999h",
    "100000s",
    "1.5s",
    "-1s",
    "+1s",
    "1d",
    "1us",
    "1 s",
    "10",
    "s",
    "٣s",
];

const CODES: &[&str] = &[
    "503", "500-599", "599-500", "100", "600", "5xx", "5", "500-", "0503", "+503", "503.0",
];

const SIZES: &[&str] = &[
    "0", "65536", "9999999", "64Ki", "9999Ki", "16Mi", "17Mi", "1G", "1k", "-1", "0x10", "1.5Mi",
];

const MOMENTS: &[&str] = &[
    "2026-05-01T12:00:00Z",
    "2026-05-01T12:00:00.5Z",
    "2026-05-01T12:00:00.123456789+05:30",
    "2999-12-31T23:59:59+23:59",
    "2000-01-01T00:00:00-23:59",
    "2024-02-29T00:00:00Z",
    "2023-02-29T00:00:00Z",
    "2024-04-31T00:00:00Z",
    "2024-00-10T00:00:00Z",
    "2024-13-10T00:00:00Z",
    "2024-01-01T24:00:00Z",
    "2024-01-01T23:59:60Z",
    "2024-01-01t00:00:00z",
    "2024-01-01 00:00:00Z",
    "2024-01-01T00:00:00",
    "2024-01-01T00:00Z",
    "2024-01-01T00:00:00.Z",
    "2024-01-01T00:00:00+24:00",
    "1999-01-01T00:00:00Z",
    "2024-01-01",
    "tomorrow",
];

const NAMES: &[&str] = &[
    "payments",
    "shop",
    "a",
    "0",
    "8080",
    "65535",
    "65536",
    "00080",
    "api.example.com",
    "a..b",
    "a.-b",
    ".a",
    "a-",
    "-a",
    "A",
    "a_b",
    "é",
    "*",
    "Service",
    "Mesh",
    "default",
    "all",
    "Critical",
    "shop/checkout",
    "shop/",
    "/shop",
    "a/b/c",
];

const METHODS: &[&str] = &[
    "GET", "POST", "PATCH", "M-SEARCH", "get", "G ET", "*", "CONNECT", "A_B",
];

const HEADERS: &[&str] = &[
    "x-tenant",
    "X-Request-ID",
    "authorization",
    "Authorization",
    "COOKIE",
    "Proxy-Authorization",
    "set-cookie",
    "Content-Length",
    "content-type",
    "transfer-encoding",
    "connection",
    "x tenant",
    "x:tenant",
    "",
    "ſet-cookie",
];

/// Paths, values of headers, and regular expressions of either: they stand in the same fields.
const VALUES: &[&str] = &[
    "/",
    "/a",
    "/a?b",
    "/a b",
    "/a#b",
    "//",
    "a",
    "a b",
    "a  b",
    " a",
    "a\tb",
    "é",
    "text/plain",
    "a|b",
    "/a|/b",
    "/a/[0-9]+",
    "(a",
    "/a/(b",
    "[a",
    "+a",
    "b)",
    "/.*",
    "\\d+",
    "(?i)x",
    "(?P<n>a)",
    "/(?:a|b)$",
];

/// Names and keys of metadata.
pub(crate) const METADATA: &[&str] = &[
    "payments",
    "a.b",
    "a..b",
    "A",
    "a_b",
    "_a",
    "-a",
    "a-",
    "",
    "example.com/a",
    "Example.com/A",
    "example.com/",
    "/a",
    "a/b/c",
    "é",
    "app.kubernetes.io/part-of",
    "exa_mple.com/a",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
];

/// All but those of metadata.
pub(crate) const ALL: &[&[&str]] = &[
    DURATIONS, CODES, SIZES, MOMENTS, NAMES, METHODS, HEADERS, VALUES,
];

/// Those that belong where this schema is.
pub(crate) fn like(schema: &Value) -> &'static [&'static str] {
    let pattern = schema["pattern"].as_str().unwrap_or_default();
    let signs = [
        ("(h|m|s|ms)", DURATIONS),
        ("-[1-5][0-9]", CODES),
        ("Ki", SIZES),
        ("T([01]", MOMENTS),
        ("^[A-Z][A-Z0-9_-]", METHODS),
        ("!#$%", HEADERS),
        ("!-", VALUES),
        ("^[a-z0-9]", NAMES),
    ];
    let like = signs.into_iter().find(|(sign, _)| pattern.contains(sign));
    like.map_or(
        if pattern.is_empty() { VALUES } else { NAMES },
        |(_, texts)| texts,
    )
}
