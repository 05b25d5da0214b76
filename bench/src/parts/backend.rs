//! The service behind the proxies: answers every request with the same 200 and a body of the size asked for.

use std::{
    io::{self, ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
};

use super::epoll::{Interest, Poller};

/// A request must fit in so many bytes; proxies add a few headers to the load's one line.
const MAX_REQUEST: usize = 4096;
/// Token of the listener; connections have their index.
const LISTENER: usize = usize::MAX;

struct Connection {
    stream: TcpStream,
    request: [u8; MAX_REQUEST],
    filled: usize,
    /// Bytes of the answer already written, while one is under way.
    written: Option<usize>,
}

enum After {
    Idle,
    Blocked,
    Closed,
}

/// Serves until it is killed. Connections are bounded by the proxies' own pools and this process's descriptors.
pub(crate) fn run(body: usize) -> io::Result<()> {
    let answer = answer(body);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    listener.set_nonblocking(true)?;
    let mut poller = Poller::new()?;
    poller.add(&listener, LISTENER, Interest::Read)?;
    super::announce(listener.local_addr()?)?;

    let mut connections: Vec<Option<Connection>> = Vec::new();
    let mut tokens = Vec::new();
    loop {
        tokens.clear();
        tokens.extend(poller.wait(None)?);
        for &token in &tokens {
            if token == LISTENER {
                accept(&listener, &poller, &mut connections)?;
                continue;
            }
            let Some(Some(connection)) = connections.get_mut(token) else {
                continue;
            };
            let was_blocked = connection.written.is_some();
            match connection.advance(&answer) {
                Ok(After::Idle) if was_blocked => {
                    poller.modify(&connection.stream, token, Interest::Read)?
                }
                Ok(After::Blocked) if !was_blocked => {
                    poller.modify(&connection.stream, token, Interest::Write)?
                }
                Ok(After::Idle | After::Blocked) => {}
                // A proxy that resets is none of the backend's concern: the load sees what became of the request.
                Ok(After::Closed) | Err(_) => connections[token] = None,
            }
        }
    }
}

fn answer(body: usize) -> Vec<u8> {
    let mut answer =
        format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {body}\r\n\r\n")
            .into_bytes();
    answer.resize(answer.len() + body, b'w');
    answer
}

fn accept(
    listener: &TcpListener,
    poller: &Poller,
    connections: &mut Vec<Option<Connection>>,
) -> io::Result<()> {
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        };
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        let token = connections
            .iter()
            .position(Option::is_none)
            .unwrap_or(connections.len());
        poller.add(&stream, token, Interest::Read)?;
        let connection = Connection {
            stream,
            request: [0; MAX_REQUEST],
            filled: 0,
            written: None,
        };
        if token == connections.len() {
            connections.push(Some(connection));
        } else {
            connections[token] = Some(connection);
        }
    }
}

impl Connection {
    fn advance(&mut self, answer: &[u8]) -> io::Result<After> {
        if self.written.is_none() {
            let read = self.stream.read(&mut self.request[self.filled..])?;
            // Nothing read is the end, or a request that does not fit.
            if read == 0 {
                return Ok(After::Closed);
            }
            self.filled += read;
            // Nobody pipelines and requests have no body, so that a request ends where its bytes do.
            if !self.request[..self.filled].ends_with(b"\r\n\r\n") {
                return Ok(After::Idle);
            }
            self.filled = 0;
        }
        let mut from = self.written.take().unwrap_or(0);
        while from < answer.len() {
            match self.stream.write(&answer[from..]) {
                Ok(written) => from += written,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.written = Some(from);
                    return Ok(After::Blocked);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(After::Idle)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_carries_the_body_it_announces() {
        let answer = answer(5);
        assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n"));
        assert!(answer.ends_with(b"content-length: 5\r\n\r\nwwwww"));
    }
}
