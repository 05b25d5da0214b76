//! The bare TCP relay: bytes copied both ways on one thread, nothing read into them. What any proxy on this machine must
//! cost at the least, hence the measure of all others.

use std::{io, net::SocketAddr};

use tokio::{
    io::copy_bidirectional_with_sizes,
    net::{TcpListener, TcpStream},
};

/// Bytes of each direction's buffer: as much as HAProxy and Envoy read at once, so that large bodies cost no more
/// calls here than there.
const BUFFER: usize = 16 * 1024;

/// Relays every connection made to it to `upstream`, until it is killed.
pub(crate) async fn run(upstream: SocketAddr) -> io::Result<()> {
    let listener = TcpListener::bind((upstream.ip(), 0)).await?;
    super::announce(listener.local_addr()?)?;
    loop {
        let (caller, _) = listener.accept().await?;
        tokio::spawn(async move {
            // Either side's end ends the pair; there is nobody to tell.
            let _ = relay(caller, upstream).await;
        });
    }
}

async fn relay(mut caller: TcpStream, upstream: SocketAddr) -> io::Result<()> {
    let mut upstream = TcpStream::connect(upstream).await?;
    caller.set_nodelay(true)?;
    upstream.set_nodelay(true)?;
    copy_bidirectional_with_sizes(&mut caller, &mut upstream, BUFFER, BUFFER).await?;
    Ok(())
}
