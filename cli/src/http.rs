//! A small HTTP/1.1 client: GET, one request at a time on a connection. Enough
//! for asking Weir's own pages and for the callers of the demo.

use std::io;

use tokio::io::{
    AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader,
};
use tokio::net::{TcpStream, ToSocketAddrs};

/// Bytes of one line of a head, or of a chunk's size.
const MAX_LINE: u64 = 16 << 10;
/// Fields of a head.
const MAX_FIELDS: usize = 100;
/// Bytes that are kept of a body, or of one line in it.
const MAX_BODY: usize = 64 << 20;

/// An open connection.
pub(crate) struct Connection {
    stream: BufReader<TcpStream>,
    reusable: bool,
}

impl Connection {
    /// Connects.
    pub(crate) async fn open(address: impl ToSocketAddrs) -> io::Result<Connection> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Connection {
            stream: BufReader::new(stream),
            reusable: true,
        })
    }

    /// Whether another request may follow. It may not after an error, or while
    /// a body was not read to its end.
    pub(crate) fn is_reusable(&self) -> bool {
        self.reusable
    }

    /// Sends a request and reads the head of the answer. `more` are lines of the
    /// head, each with its CRLF.
    pub(crate) async fn get(
        &mut self,
        host: &str,
        target: &str,
        more: &str,
    ) -> io::Result<Response<'_>> {
        self.reusable = false;
        let head = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n{more}\r\n");
        self.stream.get_mut().write_all(head.as_bytes()).await?;
        let status = loop {
            let line = self.line().await?;
            let status = line
                .split(' ')
                .nth(1)
                .and_then(|code| code.parse::<u16>().ok());
            let status = status.ok_or_else(|| invalid("the answer is not HTTP"))?;
            if status >= 200 {
                break status;
            }
            // An interim answer: its head, and the next.
            while !self.line().await?.is_empty() {}
        };
        let mut fields = Vec::new();
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                break;
            }
            if fields.len() == MAX_FIELDS {
                return Err(invalid("the answer's head has too many fields"));
            }
            if let Some((name, value)) = line.split_once(':') {
                fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
            }
        }
        let mut response = Response {
            status,
            fields,
            left: Left::UntilClose,
            pending: Vec::new(),
            connection: self,
        };
        response.left = response.framing()?;
        response.ended_if_nothing_left();
        Ok(response)
    }

    async fn line(&mut self) -> io::Result<String> {
        let mut line = read_line(&mut self.stream).await?;
        line.truncate(line.trim_end_matches(['\r', '\n']).len());
        Ok(line)
    }
}

/// What is left of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    Bytes(u64),
    /// Chunks, and bytes of the present one.
    Chunks(u64),
    UntilClose,
}

/// An answer, its body not read yet.
pub(crate) struct Response<'a> {
    /// Its status code.
    pub(crate) status: u16,
    fields: Vec<(String, String)>,
    left: Left,
    /// The beginning of a line that is not complete.
    pending: Vec<u8>,
    connection: &'a mut Connection,
}

impl Response<'_> {
    /// A field of the head; `name` in lower case.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.fields
            .iter()
            .find(|(field, _)| field == name)
            .map(|(_, value)| value.as_str())
    }

    fn framing(&self) -> io::Result<Left> {
        if matches!(self.status, 204 | 304) {
            return Ok(Left::Bytes(0));
        }
        if self
            .field("transfer-encoding")
            .is_some_and(|coding| coding.eq_ignore_ascii_case("chunked"))
        {
            return Ok(Left::Chunks(0));
        }
        match self.field("content-length") {
            Some(length) => length
                .parse()
                .map(Left::Bytes)
                .map_err(|_| invalid("the answer's length is no number")),
            None => Ok(Left::UntilClose),
        }
    }

    /// The next bytes of the body; `None` at its end.
    async fn more(&mut self) -> io::Result<Option<Vec<u8>>> {
        if self.left == Left::Chunks(0) {
            let size = self.connection.line().await?;
            let size = size.split(';').next().unwrap_or_default().trim();
            let size = u64::from_str_radix(size, 16)
                .map_err(|_| invalid("a chunk's size is no number"))?;
            if size == 0 {
                while !self.connection.line().await?.is_empty() {}
                self.left = Left::Bytes(0);
            } else {
                self.left = Left::Chunks(size);
            }
        }
        let available = match self.left {
            Left::Bytes(0) => {
                self.ended_if_nothing_left();
                return Ok(None);
            }
            Left::Bytes(left) | Left::Chunks(left) => left,
            Left::UntilClose => u64::MAX,
        };
        let buffer = self.connection.stream.fill_buf().await?;
        if buffer.is_empty() {
            return if self.left == Left::UntilClose {
                Ok(None)
            } else {
                Err(io::ErrorKind::UnexpectedEof.into())
            };
        }
        let taken = buffer
            .len()
            .min(usize::try_from(available).unwrap_or(usize::MAX));
        let bytes = buffer.get(..taken).unwrap_or_default().to_vec();
        self.connection.stream.consume(taken);
        let taken = taken as u64;
        match &mut self.left {
            Left::Bytes(left) => *left -= taken,
            Left::UntilClose => {}
            Left::Chunks(left) => {
                *left -= taken;
                if *left == 0 {
                    self.connection.line().await?;
                }
            }
        }
        self.ended_if_nothing_left();
        Ok(Some(bytes))
    }

    fn ended_if_nothing_left(&mut self) {
        if self.left == Left::Bytes(0) {
            self.connection.reusable = !self
                .field("connection")
                .is_some_and(|c| c.eq_ignore_ascii_case("close"));
        }
    }

    /// The whole body.
    pub(crate) async fn body(mut self) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        while let Some(bytes) = self.more().await? {
            if body.len() + bytes.len() > MAX_BODY {
                return Err(invalid("the answer is too large"));
            }
            body.extend(bytes);
        }
        Ok(body)
    }

    /// The next line of the body, without its end; `None` at the end of all.
    pub(crate) async fn next_line(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
                let rest = self.pending.split_off(end + 1);
                let mut line = std::mem::replace(&mut self.pending, rest);
                line.pop();
                return Ok(Some(line));
            }
            if self.pending.len() > MAX_BODY {
                return Err(invalid("a line of the answer is too long"));
            }
            match self.more().await? {
                Some(bytes) => self.pending.extend(bytes),
                None => return Ok(None),
            }
        }
    }
}

/// One line with its end; an error where there is none within [`MAX_LINE`].
pub(crate) async fn read_line(from: &mut (impl AsyncBufRead + Unpin)) -> io::Result<String> {
    let mut line = String::new();
    from.take(MAX_LINE).read_line(&mut line).await?;
    if line.ends_with('\n') {
        Ok(line)
    } else if (line.len() as u64) < MAX_LINE {
        Err(io::ErrorKind::UnexpectedEof.into())
    } else {
        Err(invalid("a line of the head is too long"))
    }
}

fn invalid(message: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    /// A connection to a server that gives these answers, one for each request.
    async fn answering(answers: &'static [&'static str]) -> Connection {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let mut stream = BufReader::new(listener.accept().await.unwrap().0);
            for answer in answers {
                while read_line(&mut stream).await.unwrap() != "\r\n" {}
                stream.get_mut().write_all(answer.as_bytes()).await.unwrap();
            }
        });
        Connection::open(address).await.unwrap()
    }

    #[tokio::test]
    async fn answers_on_one_connection_are_told_apart() {
        let mut connection = answering(&[
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nX-Try: 2\r\n\r\nabc",
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nde\r\n1;x=y\r\nf\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\nghi",
        ])
        .await;
        let response = connection.get("x", "/", "").await.unwrap();
        assert_eq!((response.status, response.field("x-try")), (200, Some("2")));
        assert_eq!(response.body().await.unwrap(), b"abc");
        assert!(connection.is_reusable());
        let response = connection.get("x", "/", "").await.unwrap();
        assert_eq!(response.status, 503);
        assert_eq!(response.body().await.unwrap(), b"def");
        assert!(connection.is_reusable());
        assert_eq!(
            connection
                .get("x", "/", "")
                .await
                .unwrap()
                .body()
                .await
                .unwrap(),
            b"ghi"
        );
        assert!(!connection.is_reusable());
    }

    #[tokio::test]
    async fn a_body_is_read_by_lines_across_chunks() {
        let mut connection =
            answering(&["HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n5\r\n\ntwo\n\r\n0\r\n\r\n"]).await;
        let mut response = connection.get("x", "/", "").await.unwrap();
        assert_eq!(response.next_line().await.unwrap().unwrap(), b"one");
        assert_eq!(response.next_line().await.unwrap().unwrap(), b"two");
        assert_eq!(response.next_line().await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_body_that_ends_too_early_is_an_error() {
        let mut connection = answering(&["HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"]).await;
        let response = connection.get("x", "/", "").await.unwrap();
        assert_eq!(
            response.body().await.unwrap_err().kind(),
            io::ErrorKind::UnexpectedEof
        );
        assert!(!connection.is_reusable());
    }
}
