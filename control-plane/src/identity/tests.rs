//! The gate with a fake API server, and the door with real sockets.

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::TokenReview;
use kube::client::Body;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::codegen::Service;
use tonic::codegen::http::{Request, Response};
use tonic::metadata::MetadataMap;
use tonic::transport::server::Connected as _;
use tonic::{Code, Extensions, Status};

use super::certificate::Served;
use super::root::Root;
use super::*;
use crate::metrics::{Gauges, Metrics};

const AGENT: &str = "system:serviceaccount:weir-system:weir-agent";

/// An API server that gives one answer to every review.
#[derive(Clone)]
struct FakeApi {
    code: u16,
    answer: Value,
    asked: Arc<AtomicUsize>,
}

impl Service<Request<Body>> for FakeApi {
    type Response = Response<Body>;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, std::io::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), std::io::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let FakeApi {
            code,
            answer,
            asked,
        } = self.clone();
        Box::pin(async move {
            asked.fetch_add(1, Ordering::SeqCst);
            let sent = request.into_body().collect_bytes().await.unwrap();
            let review: TokenReview = serde_json::from_slice(&sent).unwrap();
            let audiences = review.spec.audiences.unwrap_or_default();
            assert_eq!(audiences, ["weir-control-plane"]);
            let body = Body::from(serde_json::to_vec(&answer).unwrap());
            Ok(Response::builder().status(code).body(body).unwrap())
        })
    }
}

/// A gate, and what it asked and counted.
struct Watched {
    gate: Gate,
    asked: Arc<AtomicUsize>,
    metrics: Arc<Metrics>,
}

impl Watched {
    fn new(code: u16, answer: Value) -> Watched {
        let (asked, metrics) = (Arc::default(), Arc::new(Metrics::default()));
        let api = FakeApi {
            code,
            answer,
            asked: Arc::clone(&asked),
        };
        let reviewer = Reviewer::new(
            kube::Client::new(api, "weir-system"),
            AGENT.to_owned(),
            Lifetimes::default().stream,
            Arc::new(Refusals::new(Arc::clone(&metrics))),
        );
        Watched {
            gate: Gate::Tokens(Arc::new(reviewer)),
            asked,
            metrics,
        }
    }

    async fn admit(&self, authorization: Option<&str>) -> Result<Peer, Status> {
        let mut metadata = MetadataMap::new();
        if let Some(value) = authorization {
            metadata.insert("authorization", value.parse().unwrap());
        }
        self.gate.admit(&metadata, &Extensions::default()).await
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    fn refused(&self, reason: Reason) -> bool {
        let page = self.metrics.render(&Gauges::default());
        page.contains(&format!("{{reason=\"{}\"}} 1\n", reason.label()))
    }
}

fn token() -> String {
    let claims = r#"{"aud":["weir-control-plane"],"exp":4102444800}"#;
    format!("Bearer e30.{}.x", URL_SAFE_NO_PAD.encode(claims))
}

fn accepted(node: &str) -> Value {
    json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {},
        "status": {
            "authenticated": true,
            "audiences": ["weir-control-plane"],
            "user": {
                "username": AGENT,
                "extra": {"authentication.kubernetes.io/node-name": [node]},
            },
        },
    })
}

fn failure(code: u16) -> Value {
    json!({"apiVersion": "v1", "kind": "Status", "status": "Failure", "message": "no", "code": code})
}

#[tokio::test]
async fn a_stream_speaks_for_the_node_of_its_token_and_no_other() {
    let watched = Watched::new(201, accepted("a"));
    let peer = watched.admit(Some(&token())).await.unwrap();
    assert!(peer.may_speak_for("a").is_ok());
    let refused = peer.may_speak_for("b").unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("--node a"), "{refused}");
    assert!(watched.refused(Reason::OtherNode));
}

#[tokio::test]
async fn what_is_no_token_is_refused_without_asking_the_api_server() {
    for (authorization, reason) in [
        (None, Reason::NoToken),
        (Some("Bearer "), Reason::NoToken),
        (Some("Basic YTpi"), Reason::NoToken),
        (Some("Bearer garbage"), Reason::MalformedToken),
    ] {
        let watched = Watched::new(201, accepted("a"));
        let refused = watched.admit(authorization).await.err().unwrap();
        assert_eq!(refused.code(), Code::Unauthenticated, "{authorization:?}");
        assert!(refused.message().contains("--token-file"), "{refused}");
        assert!(watched.refused(reason), "{authorization:?}");
        assert_eq!(watched.asked(), 0);
    }
}

#[tokio::test]
async fn an_api_server_that_cannot_review_lets_nobody_in_and_is_asked_again() {
    for (code, hint) in [
        (403, "tokenreviews"),
        (500, "try again"),
        (429, "try again"),
    ] {
        let watched = Watched::new(code, failure(code));
        let refused = watched.admit(Some(&token())).await.err().unwrap();
        assert_eq!(refused.code(), Code::Unavailable, "{code}");
        assert!(refused.message().contains(hint), "{refused}");
        assert!(watched.refused(Reason::NotReviewed), "{code}");
        assert!(watched.asked() > 0);
    }
}

#[tokio::test]
async fn an_open_gate_lets_everybody_speak_for_every_node() {
    let peer = Gate::Open
        .admit(&MetadataMap::new(), &Extensions::default())
        .await
        .unwrap();
    assert!(peer.may_speak_for("any").is_ok());
}

fn served(root: &Root) -> Served {
    let names = service_names("weir-system");
    Served::sign(root, &names, Timestamp::now(), Lifetimes::default().server).unwrap()
}

async fn connect(
    to: std::net::SocketAddr,
    roots: &[&Root],
    name: &str,
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut store = RootCertStore::empty();
    for root in roots {
        let der = CertificateDer::from_pem_slice(root.certificate().pem().as_bytes()).unwrap();
        store.add(der).unwrap();
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(store)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let tcp = TcpStream::connect(to).await?;
    let name = ServerName::try_from(name.to_owned()).unwrap();
    TlsConnector::from(Arc::new(config))
        .connect(name, tcp)
        .await
}

#[tokio::test]
async fn a_certificate_changes_under_open_connections() {
    let life = Lifetimes::default().root;
    let old = Root::make(Timestamp::now(), life).unwrap();
    let new = Root::make(Timestamp::now(), life).unwrap();
    let (certificate, seen) = watch::channel(None);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let metrics = Arc::new(Metrics::default());
    let door = Door::new(
        listener,
        Some(Tls::new(seen, life).unwrap()),
        Arc::new(Refusals::new(Arc::clone(&metrics))),
    );
    let mut connections = door.open();
    // The door opens with the first certificate; until then connections wait.
    let waiting = tokio::spawn({
        let old = old.clone();
        async move { connect(address, &[&old], "weir-control-plane.weir-system.svc").await }
    });
    certificate.send_replace(Some(served(&old)));
    let mut first = waiting.await.unwrap().unwrap();
    let mut accepted = connections.next().await.unwrap().unwrap();

    certificate.send_replace(Some(served(&new)));
    let refused = connect(address, &[&old], "localhost").await.unwrap_err();
    assert!(refused.to_string().contains("UnknownIssuer"), "{refused}");
    connect(address, &[&old, &new], "localhost").await.unwrap();
    let other = connect(address, &[&new], "elsewhere").await.unwrap_err();
    assert!(other.to_string().contains("not valid for name"), "{other}");

    first.write_all(b"still here").await.unwrap();
    let mut heard = [0; 10];
    accepted.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"still here");
}

#[tokio::test]
async fn a_connection_on_which_nobody_proves_who_he_is_is_closed() {
    for asked in [false, true] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let metrics = Arc::new(Metrics::default());
        let refusals = Arc::new(Refusals::new(Arc::clone(&metrics)));
        let mut door = Door::new(listener, None, refusals);
        door.prove = std::time::Duration::from_millis(1);
        let mut connections = door.open();
        let _idle = TcpStream::connect(address).await.unwrap();
        let mut conn = connections.next().await.unwrap().unwrap();
        if asked {
            conn.connect_info().asked();
        }
        let closed = conn.read_u8().await.unwrap_err();
        assert_eq!(closed.kind(), std::io::ErrorKind::TimedOut);
        // Whoever asked and was refused has been counted as that.
        let page = metrics.render(&Gauges::default());
        let counted = page.contains("{reason=\"silent\"} 1\n");
        assert_eq!(counted, !asked, "{page}");

        let mut proven = TcpStream::connect(address).await.unwrap();
        let mut conn = connections.next().await.unwrap().unwrap();
        conn.connect_info().proven();
        proven.write_all(b"x").await.unwrap();
        assert_eq!(conn.read_u8().await.unwrap(), b'x');
    }
}

#[tokio::test]
async fn what_speaks_no_tls_is_refused_and_holds_up_nobody() {
    let root = Root::make(Timestamp::now(), Lifetimes::default().root).unwrap();
    let (_certificate, seen) = watch::channel(Some(served(&root)));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let metrics = Arc::new(Metrics::default());
    let refusals = Arc::new(Refusals::new(Arc::clone(&metrics)));
    let tls = Tls::new(seen, Lifetimes::default().stream).unwrap();
    let mut connections = Door::new(listener, Some(tls), refusals).open();
    let _silent = TcpStream::connect(address).await.unwrap();
    let mut plain = TcpStream::connect(address).await.unwrap();
    plain
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .await
        .unwrap();
    // It gets an alert, or its connection reset, and nothing else.
    let mut heard = Vec::new();
    let _ = plain.read_to_end(&mut heard).await;
    assert!(heard.len() < 16, "{heard:?}");
    let page = metrics.render(&Gauges::default());
    assert!(page.contains("{reason=\"handshake\"} 1\n"), "{page}");
    connect(address, &[&root], "localhost").await.unwrap();
    assert!(connections.next().await.unwrap().is_ok());
}
