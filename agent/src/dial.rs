//! New connections to endpoints: the one place where they are made.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering::Relaxed;

use tokio::net::{TcpSocket, TcpStream};

use crate::pods::{Kind, Origin};
use crate::worker::{KEEP_ALIVE, Worker};

/// Where a connection that takes its caller's address has its own port: below
/// those that kernels give to callers, so that it is never mistaken for one of
/// the caller's own connections to the same pod.
const PORTS: std::ops::Range<u16> = 10_240..32_768;
/// Ports that are tried before there is none.
const PORT_TRIES: u32 = 16;

/// Which connections can stand for each other: those that end at the same place,
/// begin in the same network namespace, and have the same address there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Exit {
    /// The pod's number; 0: the agent's own network.
    pub(crate) pod: u64,
    /// The caller whose address they have; none: the pod's, or the agent's.
    pub(crate) source: Option<IpAddr>,
    pub(crate) endpoint: SocketAddr,
}

impl Exit {
    /// For a caller that came so.
    pub(crate) fn new(origin: &Origin, endpoint: SocketAddr) -> Exit {
        Exit {
            pod: origin.pod().map_or(0, |pod| pod.id),
            source: match origin {
                Origin::Inbound { caller, .. } => Some(caller.ip()),
                Origin::Agent(_) | Origin::Outbound { .. } => None,
            },
            endpoint,
        }
    }
}

/// A new connection to an endpoint, as a caller that came so would make it: from
/// a pod's network namespace, and to a pod with the caller's own address. It has
/// no time limit of its own; dropping the future gives the attempt up.
pub(crate) async fn dial(
    worker: &Worker,
    origin: &Origin,
    endpoint: SocketAddr,
) -> io::Result<TcpStream> {
    let io = match origin {
        Origin::Agent(_) => TcpStream::connect(endpoint).await?,
        Origin::Outbound { pod, .. } => {
            let kind = Kind {
                ipv6: endpoint.is_ipv6(),
                transparent: false,
            };
            let socket = pod.socket(kind).await?;
            TcpSocket::from_std_stream(socket.into())
                .connect(endpoint)
                .await?
        }
        Origin::Inbound { pod, caller, .. } => {
            let kind = Kind {
                ipv6: endpoint.is_ipv6(),
                transparent: true,
            };
            let socket = TcpSocket::from_std_stream(pod.socket(kind).await?.into());
            bind(worker, &socket, caller.ip())?;
            socket.connect(endpoint).await?
        }
    };
    // Without it small writes would wait for acknowledgements.
    let _ = io.set_nodelay(true);
    let _ = socket2::SockRef::from(&io).set_tcp_keepalive(&KEEP_ALIVE);
    Ok(io)
}

/// Gives a socket its caller's address.
fn bind(worker: &Worker, socket: &TcpSocket, caller: IpAddr) -> io::Result<()> {
    // Others with the same address go elsewhere, and have ports of their own.
    socket.set_reuseaddr(true)?;
    let span = u64::from(PORTS.end - PORTS.start);
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in 0..PORT_TRIES {
        let offset = u16::try_from(worker.random() % span).unwrap_or(0);
        match socket.bind(SocketAddr::new(caller, PORTS.start + offset)) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => last = error,
            Err(error) => return Err(error),
        }
    }
    Err(last)
}

/// Whether what is known of endpoints may be stale.
pub(crate) fn is_stale(worker: &Worker) -> bool {
    worker.shared.stale.load(Relaxed)
}
