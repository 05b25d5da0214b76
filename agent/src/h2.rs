//! HTTP/2 between a caller and an endpoint, driven by the pipeline.
//!
//! Built on the `h2` crate itself: exact reset codes, no body without flow
//! control. What is received is given back to its sender's window only once it
//! has been passed on.

mod body;
mod headers;
pub(crate) mod pool;
mod rewind;
mod stream;

use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;

use bytes::Bytes;

use self::rewind::Rewind;
use crate::connection::Caller;

/// Flow-control window of a stream, and of the connection around it.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 4 * STREAM_WINDOW;
/// Streams that a caller may have open at once on one connection.
const MAX_STREAMS: u32 = 256;
/// The largest header section of a message, in bytes.
const MAX_HEADERS: u32 = 64 * 1024;
/// Bytes that wait in `h2` for a stream's window.
const SEND_BUFFER: usize = 64 * 1024;

/// Serves one connection until it ends.
pub(crate) async fn serve(caller: Caller) {
    let Caller {
        worker,
        id,
        io,
        buffer,
        destination,
    } = caller;
    let io = Rewind::new(buffer, io, worker.clone());
    let accepted = h2::server::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADERS)
        .max_send_buffer_size(SEND_BUFFER)
        .handshake::<_, Bytes>(io)
        .await;
    let mut connection = match accepted {
        Ok(connection) => connection,
        Err(error) => {
            tracing::debug!(%error, "no HTTP/2 handshake");
            return;
        }
    };
    let destination = Rc::new(destination);
    let mut going_away = false;
    loop {
        let next = poll_fn(|cx| {
            worker.wake_on_drain(id, cx.waker());
            if destination.leaving(&worker) && !going_away {
                going_away = true;
                connection.graceful_shutdown();
            }
            connection.poll_accept(cx)
        });
        match next.await {
            Some(Ok((request, respond))) => {
                tokio::task::spawn_local(stream::serve(
                    worker.clone(),
                    destination.clone(),
                    request,
                    respond,
                ));
            }
            Some(Err(error)) => {
                tracing::debug!(%error, "HTTP/2 connection ended");
                break;
            }
            None => break,
        }
    }
    // Flushes what is left, above all the GOAWAY.
    let _ = poll_fn(|cx| {
        if going_away {
            connection.poll_closed(cx)
        } else {
            Poll::Ready(Ok(()))
        }
    })
    .await;
}

/// A client's connection over `io`, ready for requests; its driver runs as a
/// task of its own until it ends.
async fn connect(
    io: tokio::net::TcpStream,
) -> Result<(h2::client::SendRequest<Bytes>, Driver), h2::Error> {
    let (send, connection) = h2::client::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(MAX_HEADERS)
        .max_send_buffer_size(SEND_BUFFER)
        .enable_push(false)
        .handshake(io)
        .await?;
    Ok((send, connection))
}

type Driver = h2::client::Connection<tokio::net::TcpStream, Bytes>;
