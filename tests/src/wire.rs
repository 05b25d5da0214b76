//! The wire by hand: gRPC streams of which a test decides every byte, at either end. They stand for versions of Weir
//! that are not here.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use h2::client::ResponseFuture;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// How the agent's stream of configuration is named.
pub const DISCOVER: &str = "/weir.v1alpha1.Discovery/Discover";
/// How its question who has which address is named.
pub const RESOLVE: &str = "/weir.v1alpha1.Discovery/Resolve";
/// How its stream of breakers' states is named.
pub const REPORT: &str = "/weir.v1alpha1.Reporting/Report";
/// No test waits longer for a word.
const PATIENCE: Duration = Duration::from_secs(60);
/// A frame's head: whether it is compressed, and its length.
const HEAD: usize = 5;
/// Streams that wait for a test to take them.
const WAITING: usize = 16;
/// gRPC's status for a method that is not known.
const UNIMPLEMENTED: &str = "12";

/// What a stream gives next.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    /// A message.
    Message(Bytes),
    /// Its end: gRPC's status, and what goes with it.
    End(u16, String),
}

/// One end of a stream. Dropping it resets the stream, and ends a client's connection.
pub struct Stream {
    send: SendStream<Bytes>,
    /// The head of the answer, until it was read.
    answer: Option<ResponseFuture>,
    receive: Option<RecvStream>,
    read: BytesMut,
    connection: Option<JoinHandle<()>>,
}

impl Stream {
    /// Opens one to a control plane at `https://localhost`, as an agent does it.
    ///
    /// # Errors
    /// Nobody is there, or nobody whom `roots`, in PEM, vouch for.
    pub async fn open(
        at: SocketAddr,
        roots: &str,
        token: Option<&str>,
        path: &str,
    ) -> Result<Stream> {
        let tls = connector(roots)?
            .connect(
                ServerName::try_from("localhost")?,
                TcpStream::connect(at).await?,
            )
            .await?;
        let (client, connection) = h2::client::handshake(tls).await?;
        let connection = tokio::spawn(async move {
            // How it ends is told by its streams.
            let _ = connection.await;
        });
        let mut request = Request::post(format!("https://localhost{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let (answer, send) = client
            .ready()
            .await?
            .send_request(request.body(())?, false)?;
        Ok(Stream {
            send,
            answer: Some(answer),
            receive: None,
            read: BytesMut::new(),
            connection: Some(connection),
        })
    }

    /// Sends an encoded message.
    ///
    /// # Errors
    /// The stream has ended.
    pub fn send(&mut self, message: &[u8]) -> Result<()> {
        let mut frame = BytesMut::with_capacity(HEAD + message.len());
        frame.put_u8(0);
        frame.put_u32(u32::try_from(message.len())?);
        frame.put_slice(message);
        Ok(self.send.send_data(frame.freeze(), false)?)
    }

    /// Ends an answer well.
    ///
    /// # Errors
    /// The stream has ended.
    pub fn finish(&mut self) -> Result<()> {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
        Ok(self.send.send_trailers(trailers)?)
    }

    /// Says that nothing more is sent: a single question is answered only then.
    ///
    /// # Errors
    /// The stream has ended.
    pub fn half_close(&mut self) -> Result<()> {
        Ok(self.send.send_data(Bytes::new(), true)?)
    }

    /// What comes next.
    ///
    /// # Errors
    /// Nothing comes, or no gRPC.
    pub async fn next(&mut self) -> Result<Heard> {
        timeout(PATIENCE, self.hear())
            .await
            .context("nothing is said")?
    }

    async fn hear(&mut self) -> Result<Heard> {
        if let Some(answer) = self.answer.take() {
            let answer = answer.await?;
            if answer.headers().contains_key("grpc-status") {
                return status(answer.headers());
            }
            self.receive = Some(answer.into_body());
        }
        let receive = self.receive.as_mut().context("the stream has ended")?;
        loop {
            if let Some(length) = self
                .read
                .get(1..HEAD)
                .map(|mut length| length.get_u32() as usize)
                && self.read.len() >= HEAD + length
            {
                self.read.advance(HEAD);
                return Ok(Heard::Message(self.read.split_to(length).freeze()));
            }
            match receive.data().await {
                Some(data) => {
                    let data = data?;
                    receive.flow_control().release_capacity(data.len())?;
                    self.read.extend_from_slice(&data);
                }
                None => {
                    let trailers = receive.trailers().await?;
                    self.receive = None;
                    return status(&trailers.unwrap_or_default());
                }
            }
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Some(connection) = &self.connection {
            connection.abort();
        }
    }
}

fn connector(roots: &str) -> Result<TlsConnector> {
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
    Ok(TlsConnector::from(Arc::new(config)))
}

/// A client that is done sends no status.
fn status(fields: &HeaderMap) -> Result<Heard> {
    let text = |name| {
        let value = fields.get(name).map(|value| value.to_str());
        value.unwrap_or(Ok("")).map(str::to_owned)
    };
    let code = match &*text("grpc-status")? {
        "" => 0,
        code => code.parse()?,
    };
    Ok(Heard::End(code, text("grpc-message")?.replace("%20", " ")))
}

/// A control plane that knows the Discovery service and nothing else, in plain text. It ends with the value.
pub struct Server {
    address: SocketAddr,
    streams: mpsc::Receiver<Stream>,
    questions: mpsc::Receiver<Stream>,
    connections: JoinHandle<()>,
}

impl Server {
    /// Listens at any free port of loopback.
    ///
    /// # Errors
    /// There is none.
    pub async fn start() -> Result<Server> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (opened, streams) = mpsc::channel(WAITING);
        let (asked, questions) = mpsc::channel(WAITING);
        let connections = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((io, _)) = listener.accept().await {
                let (opened, asked) = (opened.clone(), asked.clone());
                connections.spawn(async move {
                    // An agent that goes away is a test's doing.
                    let _ = serve(io, opened, asked).await;
                });
            }
        });
        Ok(Server {
            address,
            streams,
            questions,
            connections,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The next stream of configuration that an agent opens.
    ///
    /// # Errors
    /// None does.
    pub async fn accept(&mut self) -> Result<Stream> {
        let stream = timeout(PATIENCE, self.streams.recv())
            .await
            .context("no agent asks")?;
        stream.context("the listener has ended")
    }

    /// The next question who has which address. One that nobody takes is not
    /// answered.
    ///
    /// # Errors
    /// Nobody asks.
    pub async fn question(&mut self) -> Result<Stream> {
        let stream = timeout(PATIENCE, self.questions.recv())
            .await
            .context("no agent asks")?;
        stream.context("the listener has ended")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.connections.abort();
    }
}

async fn serve(
    io: TcpStream,
    opened: mpsc::Sender<Stream>,
    questions: mpsc::Sender<Stream>,
) -> Result<()> {
    let mut connection = h2::server::handshake(io).await?;
    while let Some(asked) = connection.accept().await {
        let (request, mut respond) = asked?;
        let is_question = request.uri().path() == RESOLVE;
        let known = is_question || request.uri().path() == DISCOVER;
        let mut response = Response::builder().header("content-type", "application/grpc");
        if !known {
            response = response.header("grpc-status", UNIMPLEMENTED);
        }
        let send = respond.send_response(response.body(())?, !known)?;
        if known {
            let stream = Stream {
                send,
                answer: None,
                receive: Some(request.into_body()),
                read: BytesMut::new(),
                connection: None,
            };
            if is_question {
                // Beyond what waits it is reset.
                let _ = questions.try_send(stream);
            } else if opened.send(stream).await.is_err() {
                bail!("nobody takes streams any more");
            }
        }
    }
    Ok(())
}
