//! The proxy's end of the socket between it and capture.

use std::collections::HashMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use prost::Message as _;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

use crate::capture::wire::{self, Ask, Given, ask};

/// Questions that wait to be written. Whoever asks waits for a place.
const QUESTIONS: usize = 256;

/// What capture answered.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) fds: Vec<(Given, OwnedFd)>,
    /// [`wire::Answer::existing`].
    pub(super) existing: Vec<u32>,
}

struct Question {
    kind: ask::Kind,
    /// Nobody waits for the answer to a beat.
    answer: Option<oneshot::Sender<Result<Answered, String>>>,
}

/// A connection to capture.
#[derive(Clone)]
pub(super) struct Link {
    questions: mpsc::Sender<Question>,
}

impl Link {
    /// Connects; the second value is what carries the messages, and returns
    /// when the connection has ended, with why.
    pub(super) fn connect(
        path: &Path,
    ) -> io::Result<(Link, impl Future<Output = io::Error> + use<>)> {
        let socket = rustix::net::socket_with(
            rustix::net::AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
        // tokio has no type for sockets that keep messages apart; what it does with
        // one of a stream, waiting until it is ready, is the same.
        let socket = UnixStream::from_std(socket.into())?;
        let (questions, asked) = mpsc::channel(QUESTIONS);
        Ok((Link { questions }, carry(socket, asked)))
    }

    /// Asks, and waits for the answer. The error is for people.
    pub(super) async fn ask(&self, kind: ask::Kind) -> Result<Answered, String> {
        let (answer, answered) = oneshot::channel();
        let answer = Some(answer);
        // The number of the question comes on top.
        let length = kind.encoded_len() + 16;
        if length > wire::MAX_MESSAGE {
            // It must not end the connection, or nobody would be captured.
            return Err(format!("{length} bytes to ask for: too many for capture"));
        }
        let away = || "capture is away".to_owned();
        let asked = self.questions.send(Question { kind, answer }).await;
        asked.map_err(|_| away())?;
        answered.await.unwrap_or_else(|_| Err(away()))
    }

    /// Tells that every worker moves. Where questions pile up there is no beat:
    /// that is what it is for.
    pub(super) fn beat(&self) {
        let kind = ask::Kind::Beat(wire::Beat {});
        let _ = self.questions.try_send(Question { kind, answer: None });
    }

    /// Returns once the connection has ended.
    pub(super) async fn ended(&self) {
        self.questions.closed().await;
    }
}

/// Carries questions and answers until the connection ends.
async fn carry(socket: UnixStream, mut questions: mpsc::Receiver<Question>) -> io::Error {
    let mut waiting = HashMap::new();
    let mut next = 1;
    let mut packet = vec![0; wire::MAX_MESSAGE];
    loop {
        tokio::select! {
            answered = receive(&socket, &mut packet) => match answered {
                Ok((answer, fds)) => {
                    if let Some(to) = waiting.remove(&answer.number) {
                        let to: oneshot::Sender<_> = to;
                        // Who asked may have gone; what came closes itself.
                        let _ = to.send(match answer.error.as_str() {
                            "" => Ok(Answered { fds, existing: answer.existing }),
                            error => Err(error.to_owned()),
                        });
                    }
                }
                Err(error) => return error,
            },
            question = questions.recv() => {
                let Some(Question { kind, answer }) = question else {
                    return io::Error::other("nobody needs it any more");
                };
                let mut ask = Ask { number: 0, kind: Some(kind) };
                if let Some(answer) = answer {
                    ask.number = next;
                    waiting.insert(next, answer);
                    next += 1;
                }
                if let Err(error) = send(&socket, ask).await {
                    return error;
                }
            }
        }
    }
}

async fn send(socket: &UnixStream, ask: Ask) -> io::Result<()> {
    let bytes = ask.encode_to_vec();
    if bytes.len() > wire::MAX_MESSAGE {
        return Err(io::Error::other("a message to capture is too large"));
    }
    loop {
        socket.writable().await?;
        let sent = socket.try_io(Interest::WRITABLE, || {
            let mut no_fds = SendAncillaryBuffer::default();
            let slices = [IoSlice::new(&bytes)];
            let flags = SendFlags::NOSIGNAL;
            Ok(rustix::net::sendmsg(
                socket.as_fd(),
                &slices,
                &mut no_fds,
                flags,
            )?)
        });
        match sent {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            sent => return sent.map(|_| ()),
        }
    }
}

/// One answer with its file descriptors.
async fn receive(
    socket: &UnixStream,
    packet: &mut [u8],
) -> io::Result<(wire::Answer, Vec<(Given, OwnedFd)>)> {
    loop {
        socket.readable().await?;
        let received = socket.try_io(Interest::READABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(wire::MAX_FDS))];
            let mut beside = RecvAncillaryBuffer::new(&mut space);
            let mut slices = [IoSliceMut::new(packet)];
            let flags = RecvFlags::CMSG_CLOEXEC;
            let got = rustix::net::recvmsg(socket.as_fd(), &mut slices, &mut beside, flags)?;
            let mut fds = Vec::new();
            for message in beside.drain() {
                if let RecvAncillaryMessage::ScmRights(rights) = message {
                    fds.extend(rights);
                }
            }
            Ok((got.bytes, got.flags, fds))
        });
        let (bytes, flags, fds) = match received {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            received => received?,
        };
        if bytes == 0 {
            return Err(io::Error::other("capture has ended"));
        }
        if flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
            return Err(io::Error::other("a message of capture is too large"));
        }
        let answer = wire::Answer::decode(&packet[..bytes]).map_err(io::Error::other)?;
        let given: Vec<_> = answer.given().collect();
        if given.len() != fds.len() {
            return Err(io::Error::other("capture gives other sockets than it says"));
        }
        return Ok((answer, given.into_iter().zip(fds).collect()));
    }
}
