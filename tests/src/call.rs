//! Callers: one request over a connection of its own, or several over one.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

/// No test waits longer for an answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a caller got.
#[derive(Clone, Debug)]
pub struct Got {
    /// The status.
    pub status: u16,
    /// The header fields.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
    /// The trailer fields.
    pub trailers: Option<HeaderMap>,
}

impl Got {
    /// A header field as text; empty where there is none.
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .and_then(|v| v.to_str().ok())
            .unwrap_or("")
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// `GET path` over HTTP/1.1.
pub async fn get(address: SocketAddr, path: &str) -> Result<Got> {
    send(address, request("GET", path, "")?).await
}

/// A request over HTTP/1.1, on a connection of its own.
pub async fn send(address: SocketAddr, request: Request<Full<Bytes>>) -> Result<Got> {
    let mut caller = Caller::h1(address).await?;
    caller.send(request).await
}

/// A request over HTTP/2, on a connection of its own.
pub async fn send_h2(address: SocketAddr, request: Request<Full<Bytes>>) -> Result<Got> {
    let mut caller = Caller::h2(address).await?;
    caller.send(request).await
}

/// A request for [`send`].
pub fn request(method: &str, path: &str, body: &str) -> Result<Request<Full<Bytes>>> {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "weir.test");
    Ok(request.body(Full::new(Bytes::from(body.to_owned())))?)
}

/// A request for [`send_h2`]; HTTP/2 needs the whole URI.
pub fn request_h2(method: &str, path: &str, body: &str) -> Result<Request<Full<Bytes>>> {
    let request = Request::builder()
        .method(method)
        .uri(format!("http://weir.test{path}"));
    Ok(request.body(Full::new(Bytes::from(body.to_owned())))?)
}

/// A caller with one connection.
pub enum Caller {
    /// HTTP/1.1.
    H1(hyper::client::conn::http1::SendRequest<Full<Bytes>>),
    /// HTTP/2.
    H2(hyper::client::conn::http2::SendRequest<Full<Bytes>>),
}

impl Caller {
    /// Connects; speaks HTTP/1.1.
    pub async fn h1(address: SocketAddr) -> Result<Caller> {
        Caller::h1_over(TcpStream::connect(address).await?).await
    }

    /// Speaks HTTP/1.1 over this connection.
    pub async fn h1_over(io: TcpStream) -> Result<Caller> {
        io.set_nodelay(true)?;
        let (send, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io)).await?;
        tokio::spawn(connection);
        Ok(Caller::H1(send))
    }

    /// Connects; speaks HTTP/2.
    pub async fn h2(address: SocketAddr) -> Result<Caller> {
        Caller::h2_over(TcpStream::connect(address).await?).await
    }

    /// Speaks HTTP/2 over this connection.
    pub async fn h2_over(io: TcpStream) -> Result<Caller> {
        io.set_nodelay(true)?;
        let (send, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(io)).await?;
        tokio::spawn(connection);
        Ok(Caller::H2(send))
    }

    /// Sends and reads the whole answer.
    pub async fn send(&mut self, request: Request<Full<Bytes>>) -> Result<Got> {
        let answer = async { read(self.begin(request).await?).await };
        timeout(PATIENCE, answer)
            .await
            .context("no answer within a minute")?
    }

    /// Sends and gives the answer once its head is there.
    pub async fn begin(&mut self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>> {
        Ok(match self {
            Caller::H1(send) => {
                send.ready().await?;
                send.send_request(request).await?
            }
            Caller::H2(send) => {
                send.ready().await?;
                send.send_request(request).await?
            }
        })
    }
}

/// A connection from an address of one's own, such as 127.0.0.2.
pub async fn connect_from(source: IpAddr, address: SocketAddr) -> Result<TcpStream> {
    let socket = match source {
        IpAddr::V4(_) => TcpSocket::new_v4()?,
        IpAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.bind(SocketAddr::new(source, 0))?;
    Ok(socket.connect(address).await?)
}

/// Reads a response to its end.
pub async fn read(response: Response<Incoming>) -> Result<Got> {
    let (parts, body) = response.into_parts();
    let body = body
        .collect()
        .await
        .context("the response's body broke off")?;
    Ok(Got {
        status: parts.status.as_u16(),
        headers: parts.headers,
        trailers: body.trailers().cloned(),
        body: body.to_bytes(),
    })
}

/// Sends these bytes and returns all that comes back until the other side
/// closes.
pub async fn raw(address: SocketAddr, bytes: &[u8]) -> Result<String> {
    let mut io = TcpStream::connect(address).await?;
    io.write_all(bytes).await?;
    let mut all = Vec::new();
    // A reset after the answer is an end too.
    let _ = io.read_to_end(&mut all).await;
    Ok(String::from_utf8_lossy(&all).into_owned())
}
