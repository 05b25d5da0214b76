//! A caller's connection, up to knowing what it speaks.

use std::cell::RefCell;
use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::net::TcpStream;
use weir_resilience::Time;
use weir_resilience::config::{self, Protocol, RequestView};

use crate::answer::Answer;
use crate::buffer::Buffer;
use crate::callers::{Found, Identity};
use crate::detect::{PREFACE, Spoken, spoken};
use crate::dial::is_stale;
use crate::pipeline::{Exchange, Held, Place, To};
use crate::pods::Origin;
use crate::probes::is_probe;
use crate::snapshot::Snapshot;
use crate::timer::Timer;
use crate::worker::{Entrance, QUIET, Target, Worker};
use crate::{h1, h2, tcp};

/// How long a caller may take for a request's head, and idle between two.
pub(crate) const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
pub(crate) const KEEP_ALIVE: Duration = Duration::from_secs(3600);
/// How long a caller may be silent where nobody has said what is spoken. Then
/// the endpoint is given the chance to speak first.
const MOMENT: Duration = Duration::from_millis(50);

/// A caller's connection.
pub(crate) struct Caller {
    pub(crate) worker: Rc<Worker>,
    /// Number of the connection within its worker.
    pub(crate) id: u64,
    pub(crate) io: TcpStream,
    /// Read and not used yet.
    pub(crate) buffer: Buffer,
    pub(crate) destination: Destination,
}

/// Serves one connection until it ends.
pub(crate) async fn serve(worker: Rc<Worker>, id: u64, io: TcpStream, entrance: Entrance) {
    let destination = match Destination::of(&io, entrance) {
        Ok(destination) => destination,
        Err(error) => {
            tracing::debug!(%error, "a connection to the capture port itself");
            worker.shared.strays.fetch_add(1, Relaxed);
            // Closing resets: nobody has any business here.
            let _ = socket2::SockRef::from(&io).set_linger(Some(Duration::ZERO));
            return;
        }
    };
    let mut caller = Caller {
        worker,
        id,
        io,
        buffer: Buffer::default(),
        destination,
    };
    let mut timer = Timer::new(caller.worker.clock);
    let since = caller.worker.clock.now();
    let known = match caller.declared() {
        Protocol::Tcp => Some(Spoken::Other),
        Protocol::Detect => {
            let heard = poll_fn(|cx| caller.poll_spoken(&mut timer, since, cx)).await;
            match heard {
                Ok(known) => known,
                Err(_) => return caller.worker.spare.borrow_mut().give(caller.buffer),
            }
        }
        Protocol::Http | Protocol::Http1 | Protocol::Http2 => {
            match poll_fn(|cx| caller.poll_protocol(&mut timer, since, cx)).await {
                Some(true) => Some(Spoken::Http2),
                Some(false) => Some(Spoken::Http1),
                None => return caller.worker.spare.borrow_mut().give(caller.buffer),
            }
        }
    };
    let http = match known {
        Some(spoken @ (Spoken::Http1 | Spoken::Http2)) => Some((caller, spoken)),
        Some(Spoken::Other) => tcp::serve(caller, timer, true).await,
        None => tcp::serve(caller, timer, false).await,
    };
    match http {
        Some((caller, Spoken::Http2)) => h2::serve(caller).await,
        Some((caller, _)) => h1::serve(caller).await,
        None => {}
    }
}

impl Caller {
    /// What is spoken here, as far as it was said. Callers that name where they
    /// want to go do so in HTTP; so is the refusal where there is no such port.
    fn declared(&self) -> Protocol {
        let resolved = self.destination.resolve(&self.worker, None);
        resolved.map_or(Protocol::Http, |(snapshot, place)| {
            snapshot.services[place.service].ports[place.port].protocol
        })
    }

    /// What the caller speaks where nobody has said it; `None` after a
    /// [`MOMENT`] in which it has not told. An end without a word is passed on
    /// like any other.
    fn poll_spoken(
        &mut self,
        timer: &mut Timer,
        since: Time,
        cx: &mut Context<'_>,
    ) -> Poll<std::io::Result<Option<Spoken>>> {
        loop {
            if let Some(spoken) = spoken(self.buffer.bytes()) {
                return Poll::Ready(Ok(Some(spoken)));
            }
            match self.poll_fill(cx) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Ok(Some(Spoken::Other))),
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    let now = self.worker.clock.now();
                    return timer.poll(Some(since + MOMENT), now, cx).map(|()| Ok(None));
                }
            }
        }
    }

    /// Where only HTTP is spoken: whether it is HTTP/2; `None` when the caller left without a word.
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
                    let patience = match (self.buffer.is_empty(), self.leaving()) {
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

    /// Whether the connection should end after what it is doing.
    pub(crate) fn leaving(&self) -> bool {
        self.destination.leaving(&self.worker)
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

/// Where a connection's requests go.
pub(crate) struct Destination {
    pub(crate) origin: Origin,
    /// Who calls.
    identity: Identity,
    /// Where no policy is in force for it any more.
    bare: RefCell<Option<Held>>,
}

impl Destination {
    /// Of a connection that was accepted at `entrance`. The error is one that
    /// did not come there by a rule of capture.
    fn of(io: &TcpStream, entrance: Entrance) -> std::io::Result<Destination> {
        let origin = match entrance {
            Entrance::Own(target) => Origin::Agent(target),
            Entrance::Outbound(pod) => Origin::Outbound {
                pod,
                original: original(io)?,
            },
            Entrance::Inbound(pod) => Origin::Inbound {
                pod,
                original: original(io)?,
                caller: io.peer_addr().map(canonical)?,
            },
        };
        let address = match &origin {
            Origin::Inbound { caller, .. } => Some(*caller),
            // Who it is matters at the destination's side alone.
            Origin::Outbound { .. } => None,
            Origin::Agent(_) => io.peer_addr().map(canonical).ok(),
        };
        Ok(Destination {
            origin,
            identity: Identity::of(address.map(|address| address.ip())),
            bare: RefCell::default(),
        })
    }

    /// Whether the connection should end after what it is doing: the agent ends,
    /// or the pod's connections do not come through it any more.
    pub(crate) fn leaving(&self, worker: &Worker) -> bool {
        worker.draining() || self.origin.pod().is_some_and(|pod| pod.is_leaving())
    }

    /// The service and port that a request to `authority` goes to, and the
    /// configuration that holds for it. Where the address tells, what the caller
    /// wrote does not matter.
    pub(crate) fn resolve(
        &self,
        worker: &Worker,
        authority: Option<&str>,
    ) -> Result<(Held, Place), Answer> {
        let snapshot = worker.snapshot();
        let (found, original) = match &self.origin {
            Origin::Agent(target) => {
                let namespace = worker.callers_namespace();
                let place = target.resolve(&snapshot, authority, namespace)?;
                return Ok((snapshot, place));
            }
            Origin::Outbound { pod, original } => {
                let found = snapshot.called(*original, &pod.config.namespace);
                let found = found.map(|mut place| {
                    if place.to == To::Any {
                        place.to = self.choose(worker, &snapshot, place, *original);
                    }
                    place
                });
                (found, *original)
            }
            Origin::Inbound { original, .. } => (snapshot.serving(*original), *original),
        };
        Ok(match found {
            Some(place) => (snapshot, place),
            // What it came for was taken back since: it goes where it was going.
            None => self.bare(original),
        })
    }

    /// To where it was going, without a policy.
    fn bare(&self, original: SocketAddr) -> (Held, Place) {
        let mut bare = self.bare.borrow_mut();
        let bare = bare.get_or_insert_with(|| Rc::new(Arc::new(Snapshot::bare(original))));
        (bare.clone(), Place::only())
    }

    /// Where a probe of the pod goes; `None` for everything else.
    pub(crate) fn probed(
        &self,
        worker: &Worker,
        request: &impl RequestView,
    ) -> Option<(Held, Place)> {
        let Origin::Inbound {
            pod,
            original,
            caller,
        } = &self.origin
        else {
            return None;
        };
        let from_node = || worker.shared.node.calls_from(caller.ip());
        is_probe(&pod.config.probes, from_node, original.port(), request)
            .then(|| self.bare(*original))
    }

    /// Who calls, as far as a section at `place` needs it. The error is the
    /// address that somebody has to be asked for.
    pub(crate) fn known_caller(
        &self,
        snapshot: &Held,
        place: Place,
        now: Time,
    ) -> Result<Option<Arc<config::Caller>>, IpAddr> {
        if !snapshot.asks_who_calls(place) {
            return Ok(None);
        }
        self.identity.known(now)
    }

    /// Has an answer to [`Destination::known_caller`].
    pub(crate) fn keep_caller(&self, found: Found) {
        self.identity.keep(found);
    }

    /// Who calls; a moment may pass until somebody has told.
    pub(crate) async fn caller(
        &self,
        worker: &Worker,
        snapshot: &Held,
        place: Place,
    ) -> Option<Arc<config::Caller>> {
        match self.known_caller(snapshot, place, worker.clock.now()) {
            Ok(caller) => caller,
            Err(address) => {
                let found = worker.shared.callers.find(address).await;
                self.keep_caller(found.clone());
                found.caller
            }
        }
    }

    /// Where the tries of a request to a Service's own address go.
    fn choose(&self, worker: &Worker, snapshot: &Held, place: Place, original: SocketAddr) -> To {
        if is_stale(worker) {
            return To::Service(original);
        }
        let port = &snapshot.services[place.service].ports[place.port];
        let kept = port.affinity.and_then(|keep| {
            let pod = self.origin.pod()?;
            let endpoint = pod.endpoint(original, keep, worker.clock.now())?;
            let mut usable = port.endpoints.iter().take(port.usable);
            usable.position(|e| e.address == endpoint)
        });
        let ipv6 = original.is_ipv6();
        kept.map_or(To::Family { ipv6 }, To::Rather)
    }

    /// A try goes to this endpoint: where the Service keeps a caller's endpoint,
    /// the next one does too.
    pub(crate) fn chosen(&self, worker: &Worker, exchange: &Exchange, endpoint: SocketAddr) {
        if let Origin::Outbound { pod, original } = &self.origin
            && exchange.keeps_endpoint()
        {
            pod.keep_endpoint(*original, endpoint, worker.clock.now());
        }
    }
}

/// Where a connection that was redirected was going.
fn original(io: &TcpStream) -> std::io::Result<SocketAddr> {
    let local = canonical(io.local_addr()?);
    let socket = socket2::SockRef::from(io);
    let original = match local {
        SocketAddr::V4(_) => socket.original_dst_v4()?,
        SocketAddr::V6(_) => socket.original_dst_v6()?,
    };
    match original.as_socket() {
        Some(original) if original != local => Ok(original),
        _ => Err(std::io::Error::other("it was not redirected")),
    }
}

/// An IPv4 address that a socket of both families shows as IPv6.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

impl Target {
    /// The service and port that a request to `authority` goes to, for a caller
    /// from `namespace`. Where the listener belongs to a service, what the caller
    /// wrote does not matter.
    fn resolve(
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
