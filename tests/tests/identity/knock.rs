//! A stream opened by hand, to see every word of the answer.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, Request};
use prost::Message;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use weir_proto::v1alpha1 as proto;

use super::PATIENCE;

/// What whoever knocked was told.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// It was let in, and got a message.
    Something,
    /// It got nothing but a gRPC status and its message.
    Nothing(u16, String),
}

/// Says on the Discovery service that it is the agent of `node`.
pub(crate) async fn discover(
    at: SocketAddr,
    roots: &str,
    token: Option<&str>,
    node: &str,
) -> Result<Told> {
    let hello = proto::Hello {
        node: node.to_owned(),
        ..Default::default()
    };
    let message = proto::DiscoverRequest {
        message: Some(proto::discover_request::Message::Hello(hello)),
    };
    knock(
        at,
        roots,
        token,
        "weir.v1alpha1.Discovery/Discover",
        &message,
    )
    .await
}

/// Reports for `node` on the Reporting service.
pub(crate) async fn report(
    at: SocketAddr,
    roots: &str,
    token: Option<&str>,
    node: &str,
) -> Result<Told> {
    let message = proto::ReportRequest {
        node: node.to_owned(),
        sequence: 1,
        complete: true,
        ..Default::default()
    };
    knock(at, roots, token, "weir.v1alpha1.Reporting/Report", &message).await
}

async fn knock(
    at: SocketAddr,
    roots: &str,
    token: Option<&str>,
    path: &str,
    message: &impl Message,
) -> Result<Told> {
    let mut store = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(roots.as_bytes()) {
        store.add(root?)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(store)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let tls = TlsConnector::from(Arc::new(config))
        .connect(
            ServerName::try_from("localhost")?,
            TcpStream::connect(at).await?,
        )
        .await?;
    let (client, connection) = h2::client::handshake(tls).await?;
    let driver = tokio::spawn(connection);
    let mut request = Request::post(format!("https://localhost/{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let (response, mut sent) = client
        .ready()
        .await?
        .send_request(request.body(())?, false)?;
    sent.send_data(framed(message), false)?;
    let told = timeout(PATIENCE, hear(response))
        .await
        .context("no answer")?;
    driver.abort();
    told
}

async fn hear(response: h2::client::ResponseFuture) -> Result<Told> {
    let response = response.await?;
    if response.headers().contains_key("grpc-status") {
        return status(response.headers());
    }
    let mut body = response.into_body();
    if let Some(data) = body.data().await {
        data?;
        return Ok(Told::Something);
    }
    status(&body.trailers().await?.context("a status ends a stream")?)
}

fn status(fields: &HeaderMap) -> Result<Told> {
    let text = |name| {
        let value = fields.get(name).map(|value| value.to_str());
        value.unwrap_or(Ok("")).map(str::to_owned)
    };
    let message = text("grpc-message")?.replace("%20", " ");
    Ok(Told::Nothing(text("grpc-status")?.parse()?, message))
}

/// gRPC's frame: no compression, the length, the message.
fn framed(message: &impl Message) -> Bytes {
    let encoded = message.encode_to_vec();
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(encoded.len() as u32);
    frame.put_slice(&encoded);
    frame.freeze()
}
