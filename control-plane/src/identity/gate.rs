//! Who may open a stream, and for which node.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use kube::api::{Api, PostParams};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until, timeout};
use tonic::metadata::MetadataMap;
use tonic::{Code, Extensions, Status};

use super::door::Connection;
use super::refusals::{Reason, Refusals};
use super::token::{AUDIENCE, Claims, Refused, judge};

/// Reviews that the API server is asked for at once.
const MAX_REVIEWS: usize = 32;
/// Streams whose token waits for that; more are told to come again.
const MAX_WAITING: usize = 1_024;
/// A review takes no longer than this, the wait included.
const REVIEW: Duration = Duration::from_secs(10);

/// Decides on every stream before anything is read from it or sent on it.
#[derive(Clone)]
pub(crate) enum Gate {
    /// Everybody may speak for every node: for manifests in files, on an
    /// address that others do not reach.
    Open,
    /// Agents prove with a token who they are.
    Tokens(Arc<Reviewer>),
}

impl Gate {
    /// Lets a stream in, or says why not.
    pub(crate) async fn admit(
        &self,
        metadata: &MetadataMap,
        extensions: &Extensions,
    ) -> Result<Peer, Status> {
        let connection = extensions.get::<Connection>();
        if let Some(connection) = connection {
            connection.asked();
        }
        let peer = match self {
            Gate::Open => Peer::Anyone,
            Gate::Tokens(reviewer) => {
                // Only a server without a door of ours would not say.
                let from = connection.map_or(IpAddr::from([0, 0, 0, 0]), Connection::peer);
                reviewer.admit(metadata, from).await?
            }
        };
        if let Some(connection) = connection {
            connection.proven();
            if let Peer::Agent { node, until, .. } = &peer {
                connection.is_of(node, *until);
            }
        }
        Ok(peer)
    }

    /// The same for a single call. On a connection on which a stream was let in
    /// it comes from the same agent, for as long as that stream may last: or each
    /// call would cost the API server a review.
    pub(crate) async fn admit_call(
        &self,
        metadata: &MetadataMap,
        extensions: &Extensions,
    ) -> Result<Peer, Status> {
        let known = match self {
            Gate::Open => None,
            Gate::Tokens(reviewer) => extensions.get::<Connection>().and_then(|connection| {
                let (node, until) = connection.agent(Instant::now())?;
                Some(Peer::Agent {
                    node,
                    from: connection.peer(),
                    until,
                    refusals: Arc::clone(&reviewer.refusals),
                })
            }),
        };
        match known {
            Some(peer) => Ok(peer),
            None => self.admit(metadata, extensions).await,
        }
    }
}

/// Whom a stream comes from.
pub(crate) enum Peer {
    /// Nobody asked.
    Anyone,
    /// The agent of one node.
    Agent {
        node: String,
        from: IpAddr,
        /// When the stream is to be opened anew.
        until: Instant,
        refusals: Arc<Refusals>,
    },
}

impl Peer {
    /// The node whose agent it is, where that was asked.
    pub(crate) fn node(&self) -> Option<&str> {
        match self {
            Peer::Anyone => None,
            Peer::Agent { node, .. } => Some(node),
        }
    }

    /// Whether it may say something in the name of `node`.
    pub(crate) fn may_speak_for(&self, node: &str) -> Result<(), Status> {
        match self {
            Peer::Agent {
                node: own,
                from,
                refusals,
                ..
            } if node != own => {
                // What a peer calls itself is shown, but not all of it.
                let node: String = node.chars().take(253).collect();
                let refused = Refused::new(
                    Reason::OtherNode,
                    Code::PermissionDenied,
                    format!(
                        "the token is of node {own}, not of {node}: start the agent with --node {own}"
                    ),
                );
                Err(refuse(refusals, *from, refused))
            }
            _ => Ok(()),
        }
    }

    /// Returns when the stream is to be opened anew, with a newer token.
    pub(crate) async fn worn(&self) {
        match self {
            Peer::Anyone => std::future::pending().await,
            Peer::Agent { until, .. } => sleep_until(*until).await,
        }
    }
}

/// Asks the API server about tokens.
pub(crate) struct Reviewer {
    reviews: Api<TokenReview>,
    /// The user that agents are.
    account: String,
    /// How long a stream lasts at most.
    longest: Duration,
    turns: Semaphore,
    places: Semaphore,
    refusals: Arc<Refusals>,
}

impl Reviewer {
    /// Lets in who is `account` (`system:serviceaccount:<namespace>:<name>`).
    pub(crate) fn new(
        client: kube::Client,
        account: String,
        longest: Duration,
        refusals: Arc<Refusals>,
    ) -> Reviewer {
        Reviewer {
            reviews: Api::all(client),
            account,
            longest,
            turns: Semaphore::new(MAX_REVIEWS),
            places: Semaphore::new(MAX_WAITING),
            refusals,
        }
    }

    async fn admit(&self, metadata: &MetadataMap, from: IpAddr) -> Result<Peer, Status> {
        self.prove(metadata)
            .await
            .map(|(node, lasting)| Peer::Agent {
                node,
                from,
                until: Instant::now() + lasting,
                refusals: Arc::clone(&self.refusals),
            })
            .map_err(|refused| refuse(&self.refusals, from, refused))
    }

    /// The node of a stream's token, and how long the stream may last.
    async fn prove(&self, metadata: &MetadataMap) -> Result<(String, Duration), Refused> {
        let token = bearer(metadata).ok_or_else(|| {
            Refused::new(
                Reason::NoToken,
                Code::Unauthenticated,
                "there is no token: start the agent with --token-file and a projected token with \
                 audience weir-control-plane",
            )
        })?;
        let claims = Claims::of(token).ok_or_else(|| {
            Refused::new(
                Reason::MalformedToken,
                Code::Unauthenticated,
                "that is no ServiceAccount token: --token-file must name a projected one",
            )
        })?;
        let review = self.review(token).await?;
        let now = Timestamp::now();
        let node = judge(
            &claims,
            &review.status.unwrap_or_default(),
            &self.account,
            now,
        )?;
        Ok((node, claims.lasting(now, self.longest, fastrand::f64())))
    }

    async fn review(&self, token: &str) -> Result<TokenReview, Refused> {
        let unavailable =
            |message: String| Refused::new(Reason::NotReviewed, Code::Unavailable, message);
        let _place = self
            .places
            .try_acquire()
            .map_err(|_| unavailable("too many agents come at once: try again".to_owned()))?;
        let asked = async {
            // Never closed, so that an error cannot come.
            let _turn = self.turns.acquire().await;
            let review = TokenReview {
                spec: TokenReviewSpec {
                    token: Some(token.to_owned()),
                    audiences: Some(vec![AUDIENCE.to_owned()]),
                },
                ..TokenReview::default()
            };
            self.reviews.create(&PostParams::default(), &review).await
        };
        match timeout(REVIEW, asked).await {
            Ok(Ok(review)) => Ok(review),
            Ok(Err(kube::Error::Api(status))) if status.code == 403 => Err(unavailable(
                "the control plane may not review tokens: let its ServiceAccount create \
                 tokenreviews.authentication.k8s.io; agents keep what they enforce, and try again"
                    .to_owned(),
            )),
            Ok(Err(error)) => Err(unavailable(format!(
                "the API server cannot review the token now: {error}: agents keep what they \
                 enforce, and try again"
            ))),
            Err(_) => Err(unavailable(
                "the API server did not review the token within 10 s: agents keep what they \
                 enforce, and try again"
                    .to_owned(),
            )),
        }
    }
}

fn bearer(metadata: &MetadataMap) -> Option<&str> {
    let value = metadata.get("authorization")?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then(|| token.trim())
        .filter(|token| !token.is_empty())
}

fn refuse(refusals: &Refusals, from: IpAddr, refused: Refused) -> Status {
    refusals.refuse(from, refused.reason, &refused.message);
    Status::new(refused.code, refused.message)
}
