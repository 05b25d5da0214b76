//! One direction of a connection: bytes from one socket to the other, and the
//! end of what the sender had to say.

use std::cell::RefCell;
use std::io::{Error, ErrorKind, Result as IoResult};
use std::net::Shutdown;
use std::task::{Context, Poll, ready};

use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::buffer::{Buffer, Spare};

/// Which of the two sockets failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    Sender,
    Receiver,
}

/// One direction. Memory is taken from the worker's spare only while there is
/// something to move.
#[derive(Default)]
pub(super) struct Flow {
    /// Read and not written yet.
    pub(super) buffer: Buffer,
    /// Whether anything was read.
    pub(super) begun: bool,
    /// The sender's end was read.
    pub(super) ended: bool,
    /// It was passed on.
    pub(super) shut: bool,
}

impl Flow {
    /// Moves all that can be moved now; whether anything was.
    pub(super) fn poll_move(
        &mut self,
        from: &TcpStream,
        to: &TcpStream,
        spare: &RefCell<Spare>,
        cx: &mut Context<'_>,
    ) -> Result<bool, Broken> {
        let mut moved = false;
        while !self.shut {
            if !self.buffer.is_empty() {
                match poll_write(to, self.buffer.bytes(), cx) {
                    Poll::Ready(Ok(n)) => self.buffer.consume(n),
                    Poll::Ready(Err(_)) => return Err(Broken::Receiver),
                    Poll::Pending => break,
                }
                moved = true;
            } else if self.ended {
                self.rest(spare);
                if SockRef::from(to).shutdown(Shutdown::Write).is_err() {
                    return Err(Broken::Receiver);
                }
                self.shut = true;
                moved = true;
            } else {
                match self.poll_read(from, spare, cx) {
                    Poll::Ready(Ok(_)) => {}
                    Poll::Ready(Err(_)) => return Err(Broken::Sender),
                    Poll::Pending => {
                        self.rest(spare);
                        break;
                    }
                }
            }
        }
        Ok(moved)
    }

    /// One read, behind what is in the buffer, which must have room or no
    /// memory yet. Nothing read means that the sender has ended.
    pub(super) fn poll_read(
        &mut self,
        from: &TcpStream,
        spare: &RefCell<Spare>,
        cx: &mut Context<'_>,
    ) -> Poll<IoResult<usize>> {
        loop {
            ready!(from.poll_read_ready(cx))?;
            if self.buffer.is_unallocated() {
                self.buffer = spare.borrow_mut().take();
            }
            let mut room = 0;
            let read = self.buffer.fill(|space| {
                room = space.len();
                from.try_read(space)
            });
            match read {
                Ok(0) => self.ended = true,
                Ok(n) => {
                    self.begun = true;
                    if n < room {
                        is_exhausted(from, Interest::READABLE);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                Err(_) => {}
            }
            return Poll::Ready(read);
        }
    }

    /// Whether a read has somewhere to put what it reads.
    pub(super) fn has_room(&self) -> bool {
        self.buffer.is_unallocated() || self.buffer.has_room()
    }

    /// Gives the memory back while there is nothing in it.
    fn rest(&mut self, spare: &RefCell<Spare>) {
        if self.buffer.is_empty() && !self.buffer.is_unallocated() {
            spare.borrow_mut().give(std::mem::take(&mut self.buffer));
        }
    }
}

fn poll_write(to: &TcpStream, bytes: &[u8], cx: &mut Context<'_>) -> Poll<IoResult<usize>> {
    loop {
        ready!(to.poll_write_ready(cx))?;
        match to.try_write(bytes) {
            Ok(0) => return Poll::Ready(Err(ErrorKind::WriteZero.into())),
            Ok(n) => {
                if n < bytes.len() {
                    is_exhausted(to, Interest::WRITABLE);
                }
                return Poll::Ready(Ok(n));
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Poll::Ready(Err(error)),
        }
    }
}

/// A call that did less than it was asked for has left the socket with nothing
/// more to do. Saying so saves the next one, which would only be told so.
///
/// The kernel tells of what is new since then, and it is this thread that
/// listens to it: nothing can be missed in between.
fn is_exhausted(io: &TcpStream, interest: Interest) {
    let _: IoResult<()> = io.try_io(interest, || Err(Error::from(ErrorKind::WouldBlock)));
}
