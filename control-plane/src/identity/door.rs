//! Where agents connect: accepts within limits, and speaks TLS if it is told to.
//!
//! New connections are paced, and what exceeds the pace waits in the kernel's
//! queue rather than being turned away: the queue holds five seconds' worth,
//! and whoever is turned away comes again later than it would have had its
//! turn. A handshake may take [`HANDSHAKE`], and as many run at once as the pace
//! lets in within that time, so that peers which never finish one hold up
//! nobody. A connection on which nobody proves who he is is closed after
//! [`PROVE`]: at this pace such ones never take all places.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::{Instant, Sleep, sleep, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use super::certificate::{self, Served};
use super::refusals::{Reason, Refusals};

/// Connections at once: two for each of 10,000 nodes, since a node has two
/// agents while one replaces the other.
const MAX_CONNECTIONS: usize = 20_000;
/// New connections a second; as many may come at once.
const PER_SECOND: u32 = 200;
/// A handshake takes no longer than this.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Handshakes at once: what the pace lets in within [`HANDSHAKE`].
const MAX_HANDSHAKES: usize = 1_024;
/// The first stream must be let in within this.
const PROVE: Duration = Duration::from_secs(30);
/// Accepting pauses for this when the process has no file descriptors left.
const PAUSE: Duration = Duration::from_millis(100);
/// Connections that may wait for the server to take them.
const HANDED_OVER: usize = 16;

/// TLS, from the moment that there is a certificate.
pub(crate) struct Tls {
    config: Arc<ServerConfig>,
    certificate: watch::Receiver<Option<Served>>,
    connection_age: Duration,
}

impl Tls {
    /// A connection takes new streams for `connection_age`.
    pub(crate) fn new(
        certificate: watch::Receiver<Option<Served>>,
        connection_age: Duration,
    ) -> Result<Tls, rustls::Error> {
        Ok(Tls {
            config: certificate::tls(certificate.clone())?,
            certificate,
            connection_age,
        })
    }
}

/// Accepts connections.
pub(crate) struct Door {
    listener: TcpListener,
    tls: Option<Tls>,
    refusals: Arc<Refusals>,
    /// [`PROVE`], but in tests.
    pub(super) prove: Duration,
}

impl Door {
    /// Accepts from `listener`; without `tls` in plain text.
    pub(crate) fn new(listener: TcpListener, tls: Option<Tls>, refusals: Arc<Refusals>) -> Door {
        Door {
            listener,
            tls,
            refusals,
            prove: PROVE,
        }
    }

    /// How long a connection takes new streams; `None`: for ever.
    pub(crate) fn connection_age(&self) -> Option<Duration> {
        self.tls.as_ref().map(|tls| tls.connection_age)
    }

    /// Begins to accept. It ends, and the listener with it, when what is
    /// returned is dropped.
    pub(crate) fn open(self) -> ReceiverStream<io::Result<Conn>> {
        let (accepted, connections) = mpsc::channel(HANDED_OVER);
        tokio::spawn(async move {
            tokio::select! {
                () = accepted.closed() => {}
                () = self.accept(&accepted) => {}
            }
        });
        ReceiverStream::new(connections)
    }

    async fn accept(self, accepted: &mpsc::Sender<io::Result<Conn>>) {
        let acceptor = match self.tls {
            None => None,
            Some(mut tls) => {
                if tls.certificate.wait_for(Option::is_some).await.is_err() {
                    return;
                }
                Some(TlsAcceptor::from(tls.config))
            }
        };
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
        let mut pace = Pace::default();
        loop {
            sleep_until(pace.turn(Instant::now())).await;
            // Never closed, so that an error cannot come.
            let Ok(handshake) = Arc::clone(&handshakes).acquire_owned().await else {
                return;
            };
            let (tcp, peer) = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection; trying again");
                    sleep(PAUSE).await;
                    continue;
                }
            };
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                self.refusals.refuse(
                    peer.ip(),
                    Reason::TooManyConnections,
                    &format!("there are {MAX_CONNECTIONS} connections already"),
                );
                continue;
            };
            // Without it small messages wait for one another; a failure is the peer's loss.
            let _ = tcp.set_nodelay(true);
            let accepted = accepted.clone();
            let acceptor = acceptor.clone();
            let refusals = Arc::clone(&self.refusals);
            let prove = self.prove;
            tokio::spawn(async move {
                let Some(io) = shake_hands(acceptor, tcp, peer.ip(), &refusals).await else {
                    return;
                };
                drop(handshake);
                let connection = Conn {
                    io,
                    connection: Connection::new(peer),
                    unproven: Some(Box::pin(sleep(prove))),
                    refusals,
                    _place: place,
                };
                // The server may have ended.
                let _ = accepted.send(Ok(connection)).await;
            });
        }
    }
}

async fn shake_hands(
    acceptor: Option<TlsAcceptor>,
    tcp: TcpStream,
    peer: IpAddr,
    refusals: &Refusals,
) -> Option<Io> {
    let Some(acceptor) = acceptor else {
        return Some(Io::Plain(tcp));
    };
    let message = match timeout(HANDSHAKE, acceptor.accept(tcp)).await {
        Ok(Ok(tls)) => return Some(Io::Tls(Box::new(tls))),
        Ok(Err(error)) => format!("no TLS: {error}: agents connect with https://"),
        Err(_) => "the TLS handshake took longer than 5 s".to_owned(),
    };
    refusals.refuse(peer, Reason::Handshake, &message);
    None
}

/// When the next connection may be accepted.
#[derive(Default)]
struct Pace {
    /// When the one after the last was due at an even pace.
    due: Option<Instant>,
}

impl Pace {
    const BETWEEN: Duration = Duration::from_nanos(1_000_000_000 / PER_SECOND as u64);
    const AHEAD: Duration = Duration::from_secs(1);

    fn turn(&mut self, now: Instant) -> Instant {
        let full = now.checked_sub(Self::AHEAD).unwrap_or(now);
        let turn = self.due.map_or(full, |due| due.max(full));
        self.due = Some(turn + Self::BETWEEN);
        turn
    }
}

/// What a stream knows of its connection.
#[derive(Clone)]
pub(crate) struct Connection {
    peer: SocketAddr,
    stage: Arc<AtomicU8>,
    /// The node whose agent has it, and until when that is believed.
    agent: Arc<Mutex<Option<(String, Instant)>>>,
}

impl Connection {
    const SILENT: u8 = 0;
    const ASKED: u8 = 1;
    const PROVEN: u8 = 2;

    fn new(peer: SocketAddr) -> Connection {
        Connection {
            peer,
            stage: Arc::new(AtomicU8::new(Self::SILENT)),
            agent: Arc::default(),
        }
    }

    pub(crate) fn peer(&self) -> IpAddr {
        self.peer.ip()
    }

    /// A stream wants to be let in.
    pub(crate) fn asked(&self) {
        self.stage.fetch_max(Self::ASKED, Ordering::Relaxed);
    }

    /// A stream was let in.
    pub(crate) fn proven(&self) {
        self.stage.fetch_max(Self::PROVEN, Ordering::Relaxed);
    }

    /// The agent of `node` has it, as was proven.
    pub(crate) fn is_of(&self, node: &str, until: Instant) {
        *self.agent.lock().unwrap_or_else(PoisonError::into_inner) = Some((node.to_owned(), until));
    }

    /// Whose agent has it, if that was proven and is believed at `now`.
    pub(crate) fn agent(&self, now: Instant) -> Option<(String, Instant)> {
        let agent = self.agent.lock().unwrap_or_else(PoisonError::into_inner);
        agent.clone().filter(|(_, until)| now < *until)
    }

    fn stage(&self) -> u8 {
        self.stage.load(Ordering::Relaxed)
    }
}

/// An accepted connection.
pub(crate) struct Conn {
    io: Io,
    connection: Connection,
    /// Until when a stream must be let in; `None` once one was.
    unproven: Option<Pin<Box<Sleep>>>,
    refusals: Arc<Refusals>,
    /// Given back when the connection ends.
    _place: OwnedSemaphorePermit,
}

enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Connected for Conn {
    type ConnectInfo = Connection;

    fn connect_info(&self) -> Connection {
        self.connection.clone()
    }
}

impl Conn {
    /// Ready, with an error, when nobody proved who he is in time.
    fn poll_unproven(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let Some(deadline) = &mut self.unproven else {
            return Poll::Pending;
        };
        if self.connection.stage() == Connection::PROVEN {
            self.unproven = None;
            return Poll::Pending;
        }
        ready!(deadline.as_mut().poll(cx));
        // A stream that was refused has been counted as what it was.
        if self.connection.stage() == Connection::SILENT {
            self.refusals.refuse(
                self.connection.peer(),
                Reason::Silent,
                "connected, and opened no stream in time",
            );
        }
        Poll::Ready(io::ErrorKind::TimedOut.into())
    }
}

impl AsyncRead for Conn {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let conn = self.get_mut();
        if let Poll::Ready(error) = conn.poll_unproven(cx) {
            return Poll::Ready(Err(error));
        }
        match &mut conn.io {
            Io::Plain(io) => Pin::new(io).poll_read(cx, buffer),
            Io::Tls(io) => Pin::new(io).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Conn {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().io {
            Io::Plain(io) => Pin::new(io).poll_write(cx, bytes),
            Io::Tls(io) => Pin::new(io).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().io {
            Io::Plain(io) => Pin::new(io).poll_write_vectored(cx, bytes),
            Io::Tls(io) => Pin::new(io).poll_write_vectored(cx, bytes),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Plain(io) => io.is_write_vectored(),
            Io::Tls(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Plain(io) => Pin::new(io).poll_flush(cx),
            Io::Tls(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Plain(io) => Pin::new(io).poll_shutdown(cx),
            Io::Tls(io) => Pin::new(io).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_hundred_may_come_at_once_and_then_two_hundred_a_second() {
        let mut pace = Pace::default();
        let now = Instant::now() + Duration::from_secs(60);
        for n in 0..=PER_SECOND {
            assert!(pace.turn(now) <= now, "{n}");
        }
        let mut last = now;
        for _ in 0..PER_SECOND {
            let turn = pace.turn(now);
            assert!(turn > last);
            last = turn;
        }
        assert_eq!(last - now, Duration::from_secs(1));
        // After a rest as many may come as at first.
        let later = now + Duration::from_secs(60);
        for n in 0..=PER_SECOND {
            assert!(pace.turn(later) <= later, "{n}");
        }
        assert!(pace.turn(later) > later);
    }

    #[test]
    fn handshakes_that_never_end_leave_room_for_all_that_the_pace_lets_in() {
        let at_once = HANDSHAKE.as_secs() * u64::from(PER_SECOND);
        assert!(MAX_HANDSHAKES as u64 >= at_once);
        let unproven = (PROVE + HANDSHAKE).as_secs() * u64::from(PER_SECOND);
        assert!(MAX_CONNECTIONS as u64 > 2 * unproven);
    }
}
