//! A stream opened by hand, to see every word of the answer.

use std::net::SocketAddr;

use anyhow::Result;
use prost::Message;
use weir_proto::v1alpha1 as proto;
use weir_tests::wire::{DISCOVER, Heard, REPORT, Stream};

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
    knock(at, roots, token, DISCOVER, &message).await
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
    knock(at, roots, token, REPORT, &message).await
}

async fn knock(
    at: SocketAddr,
    roots: &str,
    token: Option<&str>,
    path: &str,
    message: &impl Message,
) -> Result<Told> {
    let mut stream = Stream::open(at, roots, token, path).await?;
    stream.send(&message.encode_to_vec())?;
    Ok(match stream.next().await? {
        Heard::Message(_) => Told::Something,
        Heard::End(code, message) => Told::Nothing(code, message),
    })
}
