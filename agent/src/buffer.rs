//! Bytes on their way: read at one end, consumed at the other.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, ReadBuf};

/// First size of a buffer.
const FIRST: usize = 16 * 1024;
/// Buffers kept by a worker for the next connection.
const SPARE: usize = 256;

/// A buffer that grows only when asked to and never moves bytes without need.
#[derive(Default)]
pub(crate) struct Buffer {
    data: Vec<u8>,
    start: usize,
    end: usize,
}

impl Buffer {
    /// What has been read and not consumed.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.data[self.start..self.end]
    }

    pub(crate) fn len(&self) -> usize {
        self.end - self.start
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Takes `n` bytes from the front.
    pub(crate) fn consume(&mut self, n: usize) {
        self.start += n.min(self.len());
        if self.is_empty() {
            self.start = 0;
            self.end = 0;
        }
    }

    /// Whether there is memory behind it at all.
    pub(crate) fn is_unallocated(&self) -> bool {
        self.data.is_empty()
    }

    /// Whether a read has room without growing.
    pub(crate) fn has_room(&self) -> bool {
        self.len() < self.data.len()
    }

    /// Makes room for more, up to `max` bytes in all; false when there is no more.
    pub(crate) fn grow(&mut self, max: usize) -> bool {
        if self.data.len() >= max {
            return false;
        }
        let size = (self.data.len() * 2).clamp(FIRST, max);
        self.data.resize(size, 0);
        true
    }

    /// One call of `read` with the free space; it tells how many bytes it has
    /// put there. Call it only where [`Buffer::has_room`].
    pub(crate) fn fill(
        &mut self,
        read: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let n = read(&mut self.data[self.end..])?;
        self.end = (self.end + n).min(self.data.len());
        Ok(n)
    }

    /// One read into the free space. Zero bytes mean the end of the stream;
    /// call it only where [`Buffer::has_room`].
    pub(crate) fn poll_read<R: AsyncRead>(
        &mut self,
        io: Pin<&mut R>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        if self.end == self.data.len() && self.start > 0 {
            self.data.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let mut space = ReadBuf::new(&mut self.data[self.end..]);
        match io.poll_read(cx, &mut space) {
            Poll::Ready(Ok(())) => {
                let n = space.filled().len();
                self.end += n;
                Poll::Ready(Ok(n))
            }
            Poll::Ready(Err(e)) => Poll::Ready(Err(e)),
            Poll::Pending => Poll::Pending,
        }
    }
}

/// Spare memory of one worker, so that idle connections hold none.
#[derive(Default)]
pub(crate) struct Spare {
    free: Vec<Vec<u8>>,
}

impl Spare {
    /// A buffer with room.
    pub(crate) fn take(&mut self) -> Buffer {
        let data = self.free.pop().unwrap_or_else(|| vec![0; FIRST]);
        Buffer {
            data,
            start: 0,
            end: 0,
        }
    }

    /// Takes the memory back. What is in it is gone; what has grown is freed.
    pub(crate) fn give(&mut self, buffer: Buffer) {
        if buffer.data.len() == FIRST && self.free.len() < SPARE {
            self.free.push(buffer.data);
        }
    }
}
