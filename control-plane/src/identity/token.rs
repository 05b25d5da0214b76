//! What a token says of itself, and what the API server says of it.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::TokenReviewStatus;
use serde::Deserialize;
use tonic::Code;

use super::refusals::Reason;

/// Whom an agent's token must be made for.
pub(crate) const AUDIENCE: &str = "weir-control-plane";
/// Where the API server says which node the token's pod is on (Kubernetes 1.32
/// and later).
const NODE: &str = "authentication.kubernetes.io/node-name";
/// A stream lasts so long at least, whatever the clocks say.
const SHORTEST: Duration = Duration::from_secs(10);

/// A token's own words (RFC 7519). They prove nothing until the API server has
/// said that the token is genuine; before, they only help to say what is wrong.
#[derive(Debug, Deserialize)]
pub(crate) struct Claims {
    /// When it runs out, in seconds since 1970.
    exp: Option<i64>,
    #[serde(default)]
    aud: Audiences,
}

#[derive(Debug, Default, Deserialize)]
#[serde(untagged)]
enum Audiences {
    One(String),
    Many(Vec<String>),
    #[default]
    None,
}

impl Claims {
    /// `None` where the token is no JSON Web Token.
    pub(crate) fn of(token: &str) -> Option<Claims> {
        let mut parts = token.split('.');
        let (_, payload, _) = (parts.next()?, parts.next()?, parts.next()?);
        if parts.next().is_some() {
            return None;
        }
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()
    }

    fn is_for(&self, audience: &str) -> bool {
        match &self.aud {
            Audiences::One(one) => one == audience,
            Audiences::Many(many) => many.iter().any(|one| one == audience),
            Audiences::None => false,
        }
    }

    fn has_run_out(&self, now: Timestamp) -> bool {
        self.exp.is_some_and(|exp| exp <= now.as_second())
    }

    /// How long a stream with this token lasts: `longest`, or until the token
    /// runs out if that is earlier (the kubelet replaces a token of an hour
    /// after 48 minutes, so one that was just read may have 12 left); and of
    /// that a part between 60 and 100 %, by `chance` from 0 to 1, or agents
    /// that came together would come again together.
    pub(crate) fn lasting(&self, now: Timestamp, longest: Duration, chance: f64) -> Duration {
        let left = self.exp.map_or(longest, |exp| {
            let seconds = exp.saturating_sub(now.as_second());
            Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
        });
        longest.min(left).mul_f64(0.6 + 0.4 * chance).max(SHORTEST)
    }
}

/// A refusal as the agent hears it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) reason: Reason,
    pub(crate) code: Code,
    pub(crate) message: String,
}

impl Refused {
    pub(crate) fn new(reason: Reason, code: Code, message: impl Into<String>) -> Refused {
        Refused {
            reason,
            code,
            message: message.into(),
        }
    }
}

/// The node that a token speaks for.
///
/// # Errors
/// Where the API server does not know it, or it is not an agent's.
pub(crate) fn judge(
    claims: &Claims,
    review: &TokenReviewStatus,
    account: &str,
    now: Timestamp,
) -> Result<String, Refused> {
    let unauthenticated =
        |reason, message: &str| Err(Refused::new(reason, Code::Unauthenticated, message));
    if review.authenticated != Some(true) {
        if claims.has_run_out(now) {
            return unauthenticated(
                Reason::ExpiredToken,
                "the token has expired: let the agent read a projected token, which the kubelet renews",
            );
        }
        if !claims.is_for(AUDIENCE) {
            return unauthenticated(Reason::OtherAudience, OTHER_AUDIENCE);
        }
        return unauthenticated(
            Reason::UnknownToken,
            "the API server does not accept the token: it is of another cluster, or its pod or \
             ServiceAccount is gone",
        );
    }
    // An API server that knows no audiences says yes to any.
    let audiences = review.audiences.as_deref().unwrap_or_default();
    if !audiences.iter().any(|audience| audience == AUDIENCE) {
        return unauthenticated(Reason::OtherAudience, OTHER_AUDIENCE);
    }
    let denied =
        |reason, message: String| Err(Refused::new(reason, Code::PermissionDenied, message));
    let user = review.user.clone().unwrap_or_default();
    let name = user.username.unwrap_or_default();
    if name != account {
        return denied(
            Reason::OtherAccount,
            format!("the token is of {name}, but agents are {account}"),
        );
    }
    let extra: BTreeMap<_, _> = user.extra.unwrap_or_default();
    match extra.get(NODE).map(Vec::as_slice) {
        Some([node]) if !node.is_empty() => Ok(node.clone()),
        _ => denied(
            Reason::NoNode,
            "the token names no node: let the agent read a projected token of its own pod; \
             Kubernetes puts the node in since 1.32"
                .to_owned(),
        ),
    }
}

const OTHER_AUDIENCE: &str =
    "the token is for another audience: project one with audience weir-control-plane";

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::authentication::v1::UserInfo;

    const AGENT: &str = "system:serviceaccount:weir-system:weir-agent";

    fn now() -> Timestamp {
        "2026-01-01T00:00:00Z".parse().unwrap()
    }

    fn token(payload: &str) -> String {
        format!("e30.{}.x", URL_SAFE_NO_PAD.encode(payload))
    }

    fn claims(left: i64, audience: &str) -> Claims {
        let exp = now().as_second() + left;
        Claims::of(&token(&format!(r#"{{"exp":{exp},"aud":["{audience}"]}}"#))).unwrap()
    }

    fn review(account: &str, audience: &str, node: &[&str]) -> TokenReviewStatus {
        TokenReviewStatus {
            authenticated: Some(true),
            audiences: Some(vec![audience.to_owned()]),
            user: Some(UserInfo {
                username: Some(account.to_owned()),
                extra: Some(
                    [(
                        NODE.to_owned(),
                        node.iter().map(ToString::to_string).collect(),
                    )]
                    .into(),
                ),
                ..UserInfo::default()
            }),
            error: None,
        }
    }

    #[test]
    fn a_token_of_the_agents_account_speaks_for_its_node() {
        let claims = claims(3600, AUDIENCE);
        let judged = judge(&claims, &review(AGENT, AUDIENCE, &["a"]), AGENT, now());
        assert_eq!(judged, Ok("a".to_owned()));
    }

    #[test]
    fn every_other_token_is_refused_with_what_to_do() {
        let unknown = TokenReviewStatus::default();
        let other = "system:serviceaccount:shop:default";
        let cases = [
            (
                claims(-1, AUDIENCE),
                unknown.clone(),
                Reason::ExpiredToken,
                Code::Unauthenticated,
            ),
            (
                claims(9, "vault"),
                unknown.clone(),
                Reason::OtherAudience,
                Code::Unauthenticated,
            ),
            (
                claims(9, AUDIENCE),
                unknown,
                Reason::UnknownToken,
                Code::Unauthenticated,
            ),
            (
                claims(9, AUDIENCE),
                review(AGENT, "kubernetes", &["a"]),
                Reason::OtherAudience,
                Code::Unauthenticated,
            ),
            (
                claims(9, AUDIENCE),
                review(other, AUDIENCE, &["a"]),
                Reason::OtherAccount,
                Code::PermissionDenied,
            ),
            (
                claims(9, AUDIENCE),
                review(AGENT, AUDIENCE, &[]),
                Reason::NoNode,
                Code::PermissionDenied,
            ),
            (
                claims(9, AUDIENCE),
                review(AGENT, AUDIENCE, &["a", "b"]),
                Reason::NoNode,
                Code::PermissionDenied,
            ),
        ];
        for (claims, review, reason, code) in cases {
            let refused = judge(&claims, &review, AGENT, now()).unwrap_err();
            assert_eq!((refused.reason, refused.code), (reason, code));
        }
    }

    #[test]
    fn what_is_no_token_is_known_without_asking() {
        for text in ["", "x", "a.b", "a.b.c", "a.b.c.d", "e30.e30.e30.e30", "..."] {
            assert!(Claims::of(text).is_none(), "{text}");
        }
        assert!(Claims::of(&token(r#"{"exp":"soon"}"#)).is_none());
        assert!(
            Claims::of(&token(r#"{"aud":"one"}"#))
                .unwrap()
                .is_for("one")
        );
    }

    #[test]
    fn a_stream_ends_before_its_token_does_and_not_all_at_once() {
        let longest = Duration::from_secs(3000);
        let fresh = claims(3600, AUDIENCE);
        assert_eq!(fresh.lasting(now(), longest, 0.0), longest.mul_f64(0.6));
        assert_eq!(fresh.lasting(now(), longest, 1.0), longest);
        let old = claims(720, AUDIENCE);
        assert_eq!(old.lasting(now(), longest, 1.0), Duration::from_secs(720));
        let over = claims(-5, AUDIENCE);
        assert_eq!(over.lasting(now(), longest, 0.5), SHORTEST);
    }
}
