//! New connections to endpoints: the one place where they are made.

use std::io;
use std::net::SocketAddr;

use tokio::net::TcpStream;

use crate::worker::{KEEP_ALIVE, Worker};

/// A new connection to an endpoint. It has no time limit of its own; dropping
/// the future gives the attempt up.
pub(crate) async fn dial(_worker: &Worker, endpoint: SocketAddr) -> io::Result<TcpStream> {
    let io = TcpStream::connect(endpoint).await?;
    // Without it small writes would wait for acknowledgements.
    let _ = io.set_nodelay(true);
    let _ = socket2::SockRef::from(&io).set_tcp_keepalive(&KEEP_ALIVE);
    Ok(io)
}
