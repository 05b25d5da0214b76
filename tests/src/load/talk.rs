//! Connections on which both sides talk for a while: a word, and the same word
//! back.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, bail};
use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::{Books, Lost};

/// What is said, and how often: a talk takes longer than a proxy takes to begin
/// to drain.
pub(super) const WORD: &[u8] = b"hello\n";
pub(super) const WORDS: u32 = 10;
pub(super) const PAUSE: Duration = Duration::from_millis(50);

/// The head of a request for another protocol, and of the answer.
const UPGRADE: &[u8] =
    b"GET /talk HTTP/1.1\r\nhost: weir.test\r\nconnection: upgrade\r\nupgrade: talk\r\n\r\n";
const UPGRADED: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: talk\r\n\r\n";
const END: &[u8] = b"\r\n\r\n";
const MAX_HEAD: usize = 4096;

/// Somebody who talks, each time over a connection of its own.
pub(super) struct Talker {
    at: SocketAddr,
    /// After an upgrade from HTTP/1.1.
    upgrades: bool,
    books: Books,
}

impl Talker {
    pub(super) fn new(at: SocketAddr, upgrades: bool, books: Books) -> Talker {
        Talker {
            at,
            upgrades,
            books,
        }
    }
}

impl super::Caller for Talker {
    async fn call(&mut self) -> Result<(), Lost> {
        let mut io = TcpStream::connect(self.at).await?;
        io.set_nodelay(true)?;
        self.books.connected();
        if self.upgrades {
            io.write_all(UPGRADE).await?;
            let head = head(&mut io).await?;
            let status = head
                .split(' ')
                .nth(1)
                .and_then(|status| status.parse().ok());
            match status {
                Some(101) => {}
                Some(other) => return Err(Lost::Answer(other)),
                None => return Err(Lost::Other(head)),
            }
        }
        let mut heard = [0; WORD.len()];
        for _ in 0..WORDS {
            io.write_all(WORD).await?;
            io.read_exact(&mut heard).await?;
            tokio::time::sleep(PAUSE).await;
        }
        io.shutdown().await?;
        match io.read(&mut heard).await? {
            0 => Ok(()),
            _ => Err(Lost::Other("a word that nobody said".to_owned())),
        }
    }

    fn give_up(&mut self) {}
}

/// Reads up to the end of a head, and nothing of what follows.
async fn head(io: &mut TcpStream) -> std::io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(END) && head.len() < MAX_HEAD {
        head.push(io.read_u8().await?);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

/// Somebody who repeats every word: on a stream of HTTP/2, after an upgrade, or
/// just so. It ends with the value.
pub struct Echo {
    _connections: JoinSet<()>,
}

impl Echo {
    /// At a socket that listens already, such as one in a pod.
    ///
    /// # Errors
    /// Outside of a runtime.
    pub fn at(listener: std::net::TcpListener) -> Result<Echo> {
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let mut all = JoinSet::new();
        all.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                if let Ok((io, _)) = listener.accept().await {
                    connections.spawn(async {
                        // How it ends is for the other side to judge.
                        let _ = repeat(io).await;
                    });
                }
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Echo { _connections: all })
    }
}

async fn repeat(mut io: TcpStream) -> Result<()> {
    io.set_nodelay(true)?;
    let mut first = [0; 3];
    if io.peek(&mut first).await? == 0 {
        return Ok(());
    }
    match &first {
        b"PRI" => return repeat_streams(io).await,
        b"GET" => {
            let head = head(&mut io).await?;
            if !head.to_ascii_lowercase().contains("upgrade: talk") {
                bail!("not asked to talk: {head}");
            }
            io.write_all(UPGRADED).await?;
        }
        _ => {}
    }
    let (mut hear, mut say) = io.split();
    tokio::io::copy(&mut hear, &mut say).await?;
    say.shutdown().await?;
    Ok(())
}

async fn repeat_streams(io: TcpStream) -> Result<()> {
    let mut connection = h2::server::handshake(io).await?;
    let mut streams = JoinSet::new();
    while let Some(accepted) = connection.accept().await {
        let (request, mut respond) = accepted?;
        streams.spawn(async move {
            let mut hear = request.into_body();
            let mut say = respond.send_response(http::Response::new(()), false)?;
            while let Some(data) = hear.data().await {
                let data = data?;
                hear.flow_control().release_capacity(data.len())?;
                say.send_data(data, false)?;
            }
            say.send_data(Bytes::new(), true)
        });
    }
    for ended in streams.join_all().await {
        ended?;
    }
    Ok(())
}
