//! Destinations: real servers (hyper) on real sockets that answer as a test
//! tells them, and remember what they saw.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// A body of a response.
pub type Body = BoxBody<Bytes, Infallible>;

type Handler = Arc<dyn Fn(Seen) -> Pin<Box<dyn Future<Output = Reply> + Send>> + Send + Sync>;

/// A request as the destination got it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Counts up from 1.
    pub number: u64,
    /// Who sent it, as the socket says.
    pub peer: SocketAddr,
    /// The method.
    pub method: String,
    /// Path and query.
    pub target: String,
    /// The header fields.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
    /// The trailer fields.
    pub trailers: Option<HeaderMap>,
}

/// What a destination does with a request.
pub enum Reply {
    /// Answers.
    Response(Response<Body>),
    /// Closes the connection without an answer.
    Abort,
}

impl Reply {
    /// A status with a short text.
    pub fn status(status: u16) -> Reply {
        Reply::text(status, "")
    }

    /// A status with this text.
    pub fn text(status: u16, text: &str) -> Reply {
        Reply::of(status, Full::new(Bytes::from(text.to_owned())).boxed())
    }

    /// A status with any body.
    pub fn of(status: u16, body: Body) -> Reply {
        let mut response = Response::new(body);
        if let Ok(status) = http::StatusCode::from_u16(status) {
            *response.status_mut() = status;
        }
        Reply::Response(response)
    }

    /// The same with a header field. Names and values are a test's own.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: &str) -> Reply {
        if let (Reply::Response(response), Ok(value)) = (&mut self, value.parse()) {
            response.headers_mut().insert(name, value);
        }
        self
    }

    /// A response whose body a test sends piece by piece.
    pub fn streamed(status: u16) -> (Reply, mpsc::Sender<Frame<Bytes>>) {
        let (send, mut receive) = mpsc::channel(16);
        let frames = futures_stream(move |cx| receive.poll_recv(cx));
        (
            Reply::of(status, BodyExt::boxed(StreamBody::new(frames))),
            send,
        )
    }
}

/// A stream of frames from a channel.
fn futures_stream(
    poll: impl FnMut(&mut std::task::Context<'_>) -> std::task::Poll<Option<Frame<Bytes>>>
    + Send
    + Sync
    + Unpin
    + 'static,
) -> impl futures_core::Stream<Item = Result<Frame<Bytes>, Infallible>> + Send + Sync + 'static {
    struct Frames<F>(F);
    impl<F> futures_core::Stream for Frames<F>
    where
        F: FnMut(&mut std::task::Context<'_>) -> std::task::Poll<Option<Frame<Bytes>>> + Unpin,
    {
        type Item = Result<Frame<Bytes>, Infallible>;

        fn poll_next(
            mut self: Pin<&mut Self>,
            cx: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Self::Item>> {
            (self.0)(cx).map(|frame| frame.map(Ok))
        }
    }
    Frames(poll)
}

/// A destination. It ends with the value.
pub struct Backend {
    address: SocketAddr,
    state: Arc<State>,
    tasks: Option<JoinSet<()>>,
}

struct State {
    handler: Mutex<Handler>,
    requests: AtomicU64,
    connections: AtomicU64,
    cancelled: Mutex<Vec<Instant>>,
    seen: Mutex<Vec<Seen>>,
}

/// Requests that are remembered; a test with more of them counts in its handler.
const REMEMBERED: usize = 10_000;

impl Backend {
    /// Answers every request with `status`.
    pub async fn always(status: u16) -> Backend {
        Backend::with(move |_| async move { Reply::status(status) }).await
    }

    /// Answers as `handler` says.
    pub async fn with<F, A>(handler: F) -> Backend
    where
        F: Fn(Seen) -> A + Send + Sync + 'static,
        A: Future<Output = Reply> + Send + 'static,
    {
        Backend::listen("127.0.0.1:0", handler).await
    }

    /// The same on a given address. HTTP/1.1 and HTTP/2 with prior knowledge
    /// are told apart by the first bytes.
    #[allow(clippy::expect_used)] // a test cannot go on without its destination
    pub async fn listen<F, A>(address: &str, handler: F) -> Backend
    where
        F: Fn(Seen) -> A + Send + Sync + 'static,
        A: Future<Output = Reply> + Send + 'static,
    {
        let listener = TcpListener::bind(address).await.expect("a free port");
        Backend::serve(listener, handler)
    }

    /// The same at a socket that listens already, such as one in a pod.
    #[allow(clippy::expect_used)] // as above
    pub fn at<F, A>(listener: std::net::TcpListener, handler: F) -> Backend
    where
        F: Fn(Seen) -> A + Send + Sync + 'static,
        A: Future<Output = Reply> + Send + 'static,
    {
        listener
            .set_nonblocking(true)
            .expect("any socket can be told so");
        let listener = TcpListener::from_std(listener).expect("a runtime with I/O");
        Backend::serve(listener, handler)
    }

    #[allow(clippy::expect_used)] // as above
    fn serve<F, A>(listener: TcpListener, handler: F) -> Backend
    where
        F: Fn(Seen) -> A + Send + Sync + 'static,
        A: Future<Output = Reply> + Send + 'static,
    {
        let address = listener
            .local_addr()
            .expect("a bound listener has an address");
        let state = Arc::new(State {
            handler: Mutex::new(boxed(handler)),
            requests: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            cancelled: Mutex::new(Vec::new()),
            seen: Mutex::new(Vec::new()),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, state.clone()));
        Backend {
            address,
            state,
            tasks: Some(tasks),
        }
    }

    /// Answers as `handler` says from now on.
    pub fn now<F, A>(&self, handler: F)
    where
        F: Fn(Seen) -> A + Send + Sync + 'static,
        A: Future<Output = Reply> + Send + 'static,
    {
        *self
            .state
            .handler
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = boxed(handler);
    }

    /// Answers every request with `status` from now on.
    pub fn now_always(&self, status: u16) {
        self.now(move |_| async move { Reply::status(status) });
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Requests that came.
    pub fn requests(&self) -> u64 {
        self.state.requests.load(SeqCst)
    }

    /// Connections that came.
    pub fn connections(&self) -> u64 {
        self.state.connections.load(SeqCst)
    }

    /// Requests whose handling was cancelled because their caller left.
    pub fn cancelled(&self) -> Vec<Instant> {
        self.state
            .cancelled
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// What came, in order.
    ///
    /// # Panics
    /// When more came than are remembered: what is missing would look as if it
    /// had never come.
    pub fn seen(&self) -> Vec<Seen> {
        let seen = self
            .state
            .seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        assert!(
            seen.len() < REMEMBERED,
            "more than {REMEMBERED} requests came: count them in the handler"
        );
        seen
    }

    /// Stops listening and drops every connection.
    pub async fn stop(&mut self) {
        if let Some(mut tasks) = self.tasks.take() {
            tasks.shutdown().await;
        }
    }
}

fn boxed<F, A>(handler: F) -> Handler
where
    F: Fn(Seen) -> A + Send + Sync + 'static,
    A: Future<Output = Reply> + Send + 'static,
{
    Arc::new(move |seen| Box::pin(handler(seen)))
}

async fn accept(listener: TcpListener, state: Arc<State>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((io, peer)) = listener.accept().await else {
            continue;
        };
        state.connections.fetch_add(1, SeqCst);
        connections.spawn(serve(io, peer, state.clone()));
        while connections.try_join_next().is_some() {}
    }
}

async fn serve(io: tokio::net::TcpStream, peer: SocketAddr, state: Arc<State>) {
    let _ = io.set_nodelay(true);
    let mut first = [0; 3];
    let h2 = matches!(io.peek(&mut first).await, Ok(3)) && &first == b"PRI";
    let service = service_fn(move |request| answer(request, peer, state.clone()));
    // How a connection ends is the caller's business.
    let _ = if h2 {
        hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .max_concurrent_streams(200)
            .serve_connection(TokioIo::new(io), service)
            .await
    } else {
        hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(io), service)
            .await
    };
}

async fn answer(
    request: Request<Incoming>,
    peer: SocketAddr,
    state: Arc<State>,
) -> Result<Response<Body>, Aborted> {
    let number = state.requests.fetch_add(1, SeqCst) + 1;
    let noticed = Noticed {
        state: state.clone(),
        done: false,
    };
    let (parts, body) = request.into_parts();
    let Ok(body) = body.collect().await else {
        return Err(Aborted);
    };
    let seen = Seen {
        number,
        peer,
        method: parts.method.to_string(),
        target: parts
            .uri
            .path_and_query()
            .map(ToString::to_string)
            .unwrap_or_default(),
        headers: parts.headers,
        trailers: body.trailers().cloned(),
        body: body.to_bytes(),
    };
    {
        let mut all = state.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() < REMEMBERED {
            all.push(seen.clone());
        }
    }
    let handler = state
        .handler
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    let reply = handler(seen).await;
    noticed.done();
    match reply {
        Reply::Response(response) => Ok(response),
        Reply::Abort => Err(Aborted),
    }
}

/// Notes when a handler is dropped before it has answered.
struct Noticed {
    state: Arc<State>,
    done: bool,
}

impl Noticed {
    fn done(mut self) {
        self.done = true;
    }
}

impl Drop for Noticed {
    fn drop(&mut self) {
        if !self.done {
            self.state
                .cancelled
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(Instant::now());
        }
    }
}

/// Why a backend answered nothing.
#[derive(Debug)]
struct Aborted;

impl std::fmt::Display for Aborted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the test told the backend not to answer")
    }
}

impl std::error::Error for Aborted {}

/// A handler that never answers.
pub async fn never() -> Reply {
    std::future::pending::<()>().await;
    Reply::Abort
}

/// A handler that answers after `wait`.
pub async fn slowly(wait: Duration, status: u16) -> Reply {
    tokio::time::sleep(wait).await;
    Reply::status(status)
}
