//! One caller's connection: a request written whole, an answer read to its end.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
};

use anyhow::{Context as _, bail};

const REQUEST: &[u8] =
    b"GET /bench HTTP/1.1\r\nhost: bench\r\nuser-agent: weir-bench\r\naccept: */*\r\n\r\n";
/// An answer's head must fit in so many bytes; of bodies any length is read through it.
const BUFFER: usize = 16 * 1024;
const MAX_HEADERS: usize = 32;

/// A keep-alive connection with at most one request under way.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    buffer: Box<[u8; BUFFER]>,
    /// Bytes of an incomplete head.
    filled: usize,
    /// Bytes of the body still to come, once the head is read.
    body_left: Option<u64>,
}

impl Connection {
    pub(crate) fn open(target: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(target)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            buffer: Box::new([0; BUFFER]),
            filled: 0,
            body_left: None,
        })
    }

    pub(crate) fn socket(&self) -> &TcpStream {
        &self.stream
    }

    /// Sends a request. The socket's buffer is empty, since the one before has been answered: it takes the whole.
    pub(crate) fn send(&mut self) -> anyhow::Result<()> {
        self.stream
            .write_all(REQUEST)
            .context("cannot send a request")
    }

    /// Reads once, and says whether the answer is complete.
    pub(crate) fn receive(&mut self) -> anyhow::Result<bool> {
        let read = self
            .stream
            .read(&mut self.buffer[self.filled..])
            .context("cannot read an answer")?;
        if read == 0 {
            bail!("the connection was closed while a request was under way");
        }
        let mut fresh = read as u64;
        let left = match self.body_left {
            Some(left) => left,
            None => {
                self.filled += read;
                let Some(head) = parse_head(&self.buffer[..self.filled])? else {
                    if self.filled == BUFFER {
                        bail!("an answer's head is longer than {BUFFER} bytes");
                    }
                    return Ok(false);
                };
                fresh = (self.filled - head.length) as u64;
                self.filled = 0;
                head.body
            }
        };
        let left = left
            .checked_sub(fresh)
            .context("more bytes than the answer announced")?;
        self.body_left = (left > 0).then_some(left);
        Ok(left == 0)
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Head {
    length: usize,
    body: u64,
}

/// The head of a 200 with a length, or `None` if it is not there yet.
fn parse_head(bytes: &[u8]) -> anyhow::Result<Option<Head>> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(length) = response
        .parse(bytes)
        .context("the answer is not HTTP/1.1")?
    else {
        return Ok(None);
    };
    if response.code != Some(200) {
        bail!(
            "an answer other than 200:\n{}",
            String::from_utf8_lossy(bytes).trim_end()
        );
    }
    let body = response
        .headers
        .iter()
        .find(|header| header.name.eq_ignore_ascii_case("content-length"))
        .and_then(|header| str::from_utf8(header.value).ok()?.trim().parse().ok())
        .context("an answer without content-length, which the backend always sends")?;
    Ok(Some(Head { length, body }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_head_gives_its_length_and_the_bodys() {
        let bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\nwww";
        assert_eq!(
            parse_head(bytes).unwrap(),
            Some(Head {
                length: bytes.len() - 3,
                body: 12
            })
        );
    }

    #[test]
    fn half_a_head_is_waited_for() {
        assert_eq!(parse_head(b"HTTP/1.1 200 OK\r\nContent-Le").unwrap(), None);
    }

    #[test]
    fn a_refusal_is_an_error_that_shows_it() {
        let error = parse_head(b"HTTP/1.1 503 No\r\nproxy-status: x\r\ncontent-length: 0\r\n\r\n")
            .unwrap_err();
        assert!(error.to_string().contains("proxy-status: x"), "{error}");
    }

    #[test]
    fn an_answer_without_a_length_is_an_error() {
        assert!(parse_head(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").is_err());
    }

    #[test]
    fn an_answer_in_pieces_is_complete_at_its_last_byte() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut connection = Connection::open(listener.local_addr().unwrap()).unwrap();
        connection.stream.set_nonblocking(false).unwrap();
        let (mut peer, _) = listener.accept().unwrap();
        for (piece, complete) in [
            ("HTTP/1.1 200 OK\r\ncontent-le", false),
            ("ngth: 4\r\n\r\nww", false),
            ("w", false),
            ("w", true),
            ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", true),
        ] {
            peer.write_all(piece.as_bytes()).unwrap();
            assert_eq!(connection.receive().unwrap(), complete, "{piece:?}");
        }
    }
}
