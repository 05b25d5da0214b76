//! Callers that speak HTTP/2.

use std::net::SocketAddr;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use http::Request;
use tokio::net::TcpStream;

use super::talk::{PAUSE, WORD, WORDS};
use super::{Books, Lost};

impl From<h2::Error> for Lost {
    fn from(error: h2::Error) -> Lost {
        if error.is_io() {
            return error.into_io().map_or(Lost::Closed, Lost::from);
        }
        match error.reason() {
            Some(reason) => Lost::Other(format!("HTTP/2: {reason}")),
            None => Lost::Other(error.to_string()),
        }
    }
}

/// Calls over a connection that it keeps until it is told to go elsewhere.
pub(super) struct Caller {
    at: SocketAddr,
    books: Books,
    kept: Option<SendRequest<Bytes>>,
}

impl Caller {
    pub(super) fn new(at: SocketAddr, books: Books) -> Caller {
        Caller {
            at,
            books,
            kept: None,
        }
    }

    async fn connection(&mut self) -> Result<SendRequest<Bytes>, Lost> {
        if let Some(kept) = self.kept.take() {
            match kept.ready().await {
                Ok(kept) => return Ok(kept),
                Err(end) if is_goodbye(&end) => self.books.goodbye(),
                Err(_) => self.books.reset_while_idle(),
            }
        }
        let io = TcpStream::connect(self.at).await?;
        io.set_nodelay(true)?;
        self.books.connected();
        let (send, connection) = h2::client::handshake(io).await?;
        // How it ends is told by its streams.
        tokio::spawn(connection);
        Ok(send.ready().await?)
    }

    async fn begin(&mut self, ends: bool) -> Result<(ResponseFuture, SendStream<Bytes>), Lost> {
        let mut send = self.connection().await?;
        let request = Request::builder()
            .method(if ends { "GET" } else { "POST" })
            .uri("http://weir.test/")
            .body(())
            .map_err(|error| Lost::Other(error.to_string()))?;
        let begun = send.send_request(request, ends)?;
        self.kept = Some(send);
        Ok(begun)
    }
}

fn is_goodbye(end: &h2::Error) -> bool {
    end.is_go_away() && end.is_remote() && end.reason() == Some(Reason::NO_ERROR)
}

impl super::Caller for Caller {
    async fn call(&mut self) -> Result<(), Lost> {
        let (answer, _) = self.begin(true).await?;
        let mut body = answered(answer).await?;
        while next(&mut body).await?.is_some() {}
        Ok(())
    }

    fn give_up(&mut self) {
        self.kept = None;
    }
}

/// Talks with somebody who repeats every word, in both directions of one
/// stream, as gRPC does.
pub(super) struct Talker(pub(super) Caller);

impl super::Caller for Talker {
    async fn call(&mut self) -> Result<(), Lost> {
        let (answer, mut say) = self.0.begin(false).await?;
        say.send_data(Bytes::from_static(WORD), false)?;
        let mut hear = answered(answer).await?;
        for word in 0..WORDS {
            let mut heard = Vec::new();
            while heard.len() < WORD.len() {
                heard.extend(next(&mut hear).await?.ok_or(Lost::Closed)?);
            }
            tokio::time::sleep(PAUSE).await;
            if word + 1 < WORDS {
                say.send_data(Bytes::from_static(WORD), false)?;
            }
        }
        say.send_data(Bytes::new(), true)?;
        match next(&mut hear).await? {
            None => Ok(()),
            Some(_) => Err(Lost::Other("a word that nobody said".to_owned())),
        }
    }

    fn give_up(&mut self) {
        self.0.give_up();
    }
}

async fn answered(answer: ResponseFuture) -> Result<RecvStream, Lost> {
    let answer = answer.await?;
    match answer.status().as_u16() {
        200 => Ok(answer.into_body()),
        other => Err(Lost::Answer(other)),
    }
}

async fn next(body: &mut RecvStream) -> Result<Option<Bytes>, Lost> {
    while let Some(data) = body.data().await.transpose()? {
        body.flow_control().release_capacity(data.len())?;
        // The end may come with a frame of its own, which says nothing.
        if !data.is_empty() {
            return Ok(Some(data));
        }
    }
    Ok(None)
}
