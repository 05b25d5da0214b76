use super::*;

struct View<'a> {
    method: &'a str,
    path: &'a str,
    headers: &'a [(&'a str, &'a str)],
}

impl RequestView for View<'_> {
    fn method(&self) -> &str {
        self.method
    }

    fn path(&self) -> &str {
        self.path
    }

    fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers
            .iter()
            .find(|(other, _)| *other == name)
            .map(|(_, value)| value.as_bytes())
    }
}

fn get(path: &str) -> View<'_> {
    View {
        method: "GET",
        path,
        headers: &[],
    }
}

#[test]
fn a_match_that_asks_for_nothing_matches_all() {
    assert!(Match::default().matches(&get("/")));
}

#[test]
fn all_that_is_given_must_hold() {
    let condition = Match {
        methods: vec!["GET".to_owned(), "PUT".to_owned()],
        path: Some(PathMatch::Exact("/a".to_owned())),
        headers: vec![HeaderMatch {
            name: "x".to_owned(),
            rule: HeaderRule::Present(true),
        }],
        grpc: None,
    };
    let view = View {
        method: "PUT",
        path: "/a",
        headers: &[("x", "")],
    };
    assert!(condition.matches(&view));
    assert!(!condition.matches(&View {
        method: "POST",
        ..view
    }));
    assert!(!condition.matches(&View { path: "/b", ..view }));
    assert!(!condition.matches(&View {
        headers: &[],
        ..view
    }));
}

#[test]
fn a_prefix_matches_whole_path_elements() {
    for prefix in ["/a", "/a/"] {
        let prefix = PathMatch::Prefix(prefix.to_owned());
        assert!(
            ["/a", "/a/", "/a/b"]
                .iter()
                .all(|path| prefix.matches(path))
        );
        assert!(
            ["/", "/ab", "/b/a", ""]
                .iter()
                .all(|path| !prefix.matches(path))
        );
    }
    assert!(PathMatch::Prefix("/".to_owned()).matches("/anything"));
}

#[test]
fn a_header_is_compared_by_value_by_pattern_or_by_presence() {
    let rule = |rule| HeaderMatch {
        name: "tier".to_owned(),
        rule,
    };
    let gold = View {
        method: "GET",
        path: "/",
        headers: &[("tier", "gold")],
    };
    assert!(rule(HeaderRule::Exact("gold".to_owned())).matches(&gold));
    assert!(!rule(HeaderRule::Exact("Gold".to_owned())).matches(&gold));
    assert!(rule(HeaderRule::Regex(Pattern::new("g.*").unwrap())).matches(&gold));
    assert!(!rule(HeaderRule::Regex(Pattern::new("g").unwrap())).matches(&gold));
    assert!(rule(HeaderRule::Present(true)).matches(&gold));
    assert!(!rule(HeaderRule::Present(false)).matches(&gold));
    assert!(rule(HeaderRule::Present(false)).matches(&get("/")));
    assert!(!rule(HeaderRule::Regex(Pattern::new(".*").unwrap())).matches(&get("/")));
}

#[test]
fn a_grpc_match_looks_at_the_call_and_only_at_calls() {
    let condition = |service: &str, method: &str| {
        let part = |part: &str| (!part.is_empty()).then(|| part.to_owned());
        GrpcMatch {
            service: part(service),
            method: part(method),
        }
    };
    let headers = [("content-type", "application/grpc+proto")];
    let call = View {
        method: "POST",
        path: "/shop.Payments/Refund",
        headers: &headers,
    };
    assert!(condition("", "").matches(&call));
    assert!(condition("shop.Payments", "").matches(&call));
    assert!(condition("", "Refund").matches(&call));
    assert!(condition("shop.Payments", "Refund").matches(&call));
    assert!(!condition("Payments", "").matches(&call));
    assert!(!condition("", "Pay").matches(&call));
    assert!(!condition("", "").matches(&View {
        headers: &[("content-type", "text/plain")],
        ..call
    }));
    assert!(!condition("", "").matches(&View { path: "/", ..call }));
}

#[test]
fn a_pattern_matches_all_of_a_value_and_not_a_part() {
    let pattern = Pattern::new("a|ab").unwrap();
    assert!(pattern.matches(b"a") && pattern.matches(b"ab"));
    assert!(!pattern.matches(b"abc") && !pattern.matches(b"xa") && !pattern.matches(b"a\n"));
    assert!(Pattern::new("(?i)gold").unwrap().matches(b"GOLD"));
    assert!(Pattern::new(".*").unwrap().matches("ü".as_bytes()));
}

#[test]
fn a_pattern_cannot_break_out_of_its_anchors() {
    assert!(matches!(
        Pattern::new("a)|(b"),
        Err(PatternError::Syntax(_))
    ));
    assert!(matches!(
        Pattern::new("(?x)a # b"),
        Err(PatternError::Syntax(_))
    ));
}

#[test]
fn a_pattern_that_is_wrong_or_too_big_says_so() {
    let message = |text: &str| Pattern::new(text).unwrap_err().to_string();
    assert_eq!(
        message("("),
        "not a regular expression in RE2 syntax: unclosed group"
    );
    assert!(message(r"(\w{100}){100}").starts_with("too big"));
    assert!(message(&"a".repeat(2000)).starts_with("longer than 1024"));
    assert!(message(&"(".repeat(200)).starts_with("not a regular"));
    assert!(message(r"a(?=b)").contains("look-around"));
}

#[test]
fn patterns_are_equal_by_their_text() {
    let pattern = |text| Pattern::new(text).unwrap();
    assert_eq!(pattern("a"), pattern("a"));
    assert_ne!(pattern("a"), pattern("a|a"));
}
