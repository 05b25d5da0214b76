//! A caller that speaks HTTP/1.1, byte by byte: what libraries do beside it, such
//! as calling once more, would hide what was lost.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{Books, Lost};

/// The longest answer.
const MAX_ANSWER: usize = 16 * 1024;

pub(super) struct Caller {
    at: SocketAddr,
    keeps: bool,
    books: Books,
    kept: Option<TcpStream>,
}

impl Caller {
    pub(super) fn new(at: SocketAddr, keeps: bool, books: Books) -> Caller {
        Caller {
            at,
            keeps,
            books,
            kept: None,
        }
    }

    /// The connection that was kept, unless it has ended meanwhile; or a new
    /// one.
    async fn connection(&mut self) -> Result<TcpStream, Lost> {
        if let Some(kept) = self.kept.take() {
            match kept.try_read(&mut [0]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(kept),
                Ok(0) => {}
                Ok(_) => return Err(Lost::Other("an answer to no question".to_owned())),
                Err(_) => self.books.reset_while_idle(),
            }
        }
        let io = TcpStream::connect(self.at).await?;
        io.set_nodelay(true)?;
        self.books.connected();
        Ok(io)
    }
}

impl super::Caller for Caller {
    async fn call(&mut self) -> Result<(), Lost> {
        let mut io = self.connection().await?;
        let then = if self.keeps { "keep-alive" } else { "close" };
        let request = format!("GET / HTTP/1.1\r\nhost: weir.test\r\nconnection: {then}\r\n\r\n");
        io.write_all(request.as_bytes()).await?;
        let answer = Answer::read(&mut io).await?;
        if self.keeps && answer.keep_alive {
            self.kept = Some(io);
        }
        match answer.status {
            200 => Ok(()),
            other => Err(Lost::Answer(other)),
        }
    }

    fn give_up(&mut self) {
        self.kept = None;
    }
}

struct Answer {
    status: u16,
    keep_alive: bool,
}

impl Answer {
    /// Reads a whole one.
    async fn read(io: &mut TcpStream) -> Result<Answer, Lost> {
        let mut read = Vec::new();
        loop {
            if io.read_buf(&mut read).await? == 0 {
                return Err(Lost::Closed);
            }
            if let Some((answer, length)) = Answer::head(&read)? {
                while read.len() < length {
                    if io.read_buf(&mut read).await? == 0 {
                        return Err(Lost::Closed);
                    }
                }
                return Ok(answer);
            }
            if read.len() > MAX_ANSWER {
                return Err(Lost::Other("an answer without end".to_owned()));
            }
        }
    }

    /// What the head says, and how long it is with the body; none while it is
    /// not whole.
    fn head(read: &[u8]) -> Result<Option<(Answer, usize)>, Lost> {
        let Some(end) = read.windows(4).position(|four| four == b"\r\n\r\n") else {
            return Ok(None);
        };
        let head = String::from_utf8_lossy(&read[..end]).to_ascii_lowercase();
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1));
        let fields: Vec<_> = lines.filter_map(|line| line.split_once(':')).collect();
        let field = |name| {
            let of = |(known, value): &(&str, &'_ str)| {
                (*known == name).then(|| value.trim().to_owned())
            };
            fields.iter().find_map(of)
        };
        let length = field("content-length").and_then(|length| length.parse::<usize>().ok());
        let (Some(Ok(status)), Some(length)) = (status.map(str::parse), length) else {
            return Err(Lost::Other(format!("not an answer: {head}")));
        };
        let answer = Answer {
            status,
            keep_alive: field("connection").is_none_or(|then| then != "close"),
        };
        Ok(Some((answer, end + 4 + length)))
    }
}
