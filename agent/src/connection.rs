//! A caller's connection, up to knowing what it speaks.

use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::net::TcpStream;
use weir_resilience::Time;

use crate::answer::Answer;
use crate::buffer::Buffer;
use crate::pipeline::{Held, Place};
use crate::timer::Timer;
use crate::worker::{QUIET, Target, Worker};
use crate::{h1, h2};

/// How long a caller may take for a request's head, and idle between two.
pub(crate) const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
pub(crate) const KEEP_ALIVE: Duration = Duration::from_secs(3600);

/// What an HTTP/2 connection begins with (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A caller's connection.
pub(crate) struct Caller {
    pub(crate) worker: Rc<Worker>,
    /// Number of the connection within its worker.
    pub(crate) id: u64,
    pub(crate) io: TcpStream,
    /// Read and not used yet.
    pub(crate) buffer: Buffer,
    pub(crate) target: Target,
}

/// Serves one connection until it ends.
pub(crate) async fn serve(worker: Rc<Worker>, id: u64, io: TcpStream, target: Target) {
    let mut caller = Caller {
        worker,
        id,
        io,
        buffer: Buffer::default(),
        target,
    };
    let mut timer = Timer::new(caller.worker.clock);
    let since = caller.worker.clock.now();
    match poll_fn(|cx| caller.poll_protocol(&mut timer, since, cx)).await {
        Some(true) => h2::serve(caller).await,
        Some(false) => h1::serve(caller).await,
        None => caller.worker.spare.borrow_mut().give(caller.buffer),
    }
}

impl Caller {
    /// Whether the caller speaks HTTP/2; `None` when it left without a word.
    /// Both kinds of HTTP are spoken by the client first, so waiting for the
    /// first bytes holds up nobody.
    ///
    /// While draining, a caller that has just come is given a moment: what it
    /// sent may not have been seen yet.
    fn poll_protocol(
        &mut self,
        timer: &mut Timer,
        since: Time,
        cx: &mut Context<'_>,
    ) -> Poll<Option<bool>> {
        loop {
            let seen = self.buffer.bytes();
            let common = seen.iter().zip(PREFACE).take_while(|(a, b)| a == b).count();
            if common == PREFACE.len() {
                return Poll::Ready(Some(true));
            }
            if common < seen.len() {
                return Poll::Ready(Some(false));
            }
            match self.poll_fill(cx) {
                Poll::Ready(Ok(n)) if n > 0 => {}
                Poll::Ready(_) => return Poll::Ready(None),
                Poll::Pending => {
                    let patience = match (self.buffer.is_empty(), self.worker.draining()) {
                        (false, _) => HEAD_TIMEOUT,
                        (true, true) => QUIET,
                        (true, false) => KEEP_ALIVE,
                    };
                    let now = self.worker.clock.now();
                    return timer.poll(Some(since + patience), now, cx).map(|()| None);
                }
            }
        }
    }

    /// Reads into the buffer, which must have room or no memory yet; memory is
    /// taken only once there is something to read. The connection's task is woken when draining begins.
    pub(crate) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<usize>> {
        if self.buffer.is_unallocated() {
            if self.io.poll_read_ready(cx)?.is_pending() {
                self.worker.wake_on_drain(self.id, cx.waker());
                return Poll::Pending;
            }
            self.buffer = self.worker.spare.borrow_mut().take();
        }
        let read = self.buffer.poll_read(Pin::new(&mut self.io), cx);
        if read.is_pending() {
            self.worker.wake_on_drain(self.id, cx.waker());
        }
        read
    }

    /// Whether [`Caller::poll_fill`] has somewhere to put what it reads.
    pub(crate) fn can_fill(&self) -> bool {
        self.buffer.is_unallocated() || self.buffer.has_room()
    }

    /// Gives the buffer's memory back while there is nothing in it.
    pub(crate) fn rest(&mut self) {
        if self.buffer.is_empty() {
            let buffer = std::mem::take(&mut self.buffer);
            self.worker.spare.borrow_mut().give(buffer);
        }
    }
}

impl Target {
    /// The service and port that a request to `authority` goes to, for a caller
    /// from `namespace`. Where the listener belongs to a service, what the caller
    /// wrote does not matter.
    pub(crate) fn resolve(
        &self,
        snapshot: &Held,
        authority: Option<&str>,
        namespace: Option<&str>,
    ) -> Result<Place, Answer> {
        match self {
            Target::Port(id, number) => {
                let service = snapshot.find(id);
                let place = service.and_then(|service| {
                    let port = snapshot.services[service].port(*number)?;
                    Some(snapshot.place(service, port, namespace))
                });
                place.ok_or_else(|| Answer::UnknownDestination {
                    host: id.to_string(),
                    hint: "it was taken out of the configuration".into(),
                })
            }
            Target::Named => {
                let authority = authority.unwrap_or_default();
                let (host, number) = split_port(authority);
                let service =
                    snapshot
                        .resolve(host)
                        .map_err(|hint| Answer::UnknownDestination {
                            host: if host.is_empty() {
                                "(none)".into()
                            } else {
                                host.into()
                            },
                            hint,
                        })?;
                let ports = &snapshot.services[service].ports;
                let number = number.unwrap_or(80);
                let port = snapshot.services[service].port(number).ok_or_else(|| {
                    let known: Vec<_> = ports.iter().map(|p| p.number.to_string()).collect();
                    Answer::UnknownDestination {
                        host: format!("{host}:{number}"),
                        hint: format!("its ports are {}", known.join(", ")),
                    }
                })?;
                Ok(snapshot.place(service, port, namespace))
            }
        }
    }
}

fn split_port(authority: &str) -> (&str, Option<u16>) {
    // User information is nobody's host.
    let authority = authority.rsplit('@').next().unwrap_or(authority);
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => {
            // A number that is no port matches none.
            (host, Some(port.parse().unwrap_or(0)))
        }
        _ => (authority, None),
    }
}
