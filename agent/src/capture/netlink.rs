//! Netlink: the messages that the kernel is told things by, and its answers.
//!
//! A message is a header, a fixed part and attributes; an attribute is a kind
//! and bytes, or more attributes. The kernel acts on a message inside the call
//! that sends it, so that its answer is there when the call returns: nothing
//! here waits.

use std::io;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto,
    socket_with, sockopt,
};

pub(super) const REQUEST: u16 = 0x1;
pub(super) const ACK: u16 = 0x4;
pub(super) const EXCL: u16 = 0x200;
pub(super) const DUMP: u16 = 0x300;
pub(super) const CREATE: u16 = 0x400;
pub(super) const APPEND: u16 = 0x800;

const ERROR: u16 = 2;
const DONE: u16 = 3;

const HEADER: usize = 16;
const NESTED: u16 = 0x8000;
/// The kind of an attribute, without its flags.
const KIND: u16 = 0x3fff;

/// As much as the kernel puts into one part of a long answer.
const PART: usize = 32 * 1024;
/// The largest change of a pod's rules with room to spare: every outbound
/// address of both families leaves, and as many others come.
const LARGEST: usize = 1024 * 1024;

/// Messages to the kernel, one after the other.
#[derive(Default)]
pub(super) struct Messages {
    bytes: Vec<u8>,
}

impl Messages {
    /// A message with its fixed part, and what `attributes` puts behind it.
    pub(super) fn push(
        &mut self,
        kind: u16,
        flags: u16,
        number: u32,
        fixed: &[u8],
        attributes: impl FnOnce(&mut Attributes<'_>),
    ) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes
            .extend_from_slice(&(flags | REQUEST).to_ne_bytes());
        self.bytes.extend_from_slice(&number.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(fixed);
        pad(&mut self.bytes);
        attributes(&mut Attributes(&mut self.bytes));
        let length = u32::try_from(self.bytes.len() - start).unwrap_or(u32::MAX);
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    }

    /// Has the kernel confirm the message that begins at `start`.
    pub(super) fn confirm(&mut self, start: usize) {
        if let Some(flags) = u16_at(&self.bytes, start + 6) {
            self.bytes[start + 6..start + 8].copy_from_slice(&(flags | ACK).to_ne_bytes());
        }
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }
}

/// Writes a message's attributes.
pub(super) struct Attributes<'a>(&'a mut Vec<u8>);

impl Attributes<'_> {
    pub(super) fn put(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        self.nest_as(kind, |inner| inner.0.extend_from_slice(value))
    }

    /// Text with the zero behind it that the kernel expects.
    pub(super) fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        self.nest_as(kind, |inner| {
            inner.0.extend_from_slice(value.as_bytes());
            inner.0.push(0);
        })
    }

    /// In the network's byte order, as netfilter has its numbers.
    pub(super) fn number(&mut self, kind: u16, value: u32) -> &mut Self {
        self.put(kind, &value.to_be_bytes())
    }

    pub(super) fn nest(&mut self, kind: u16, inner: impl FnOnce(&mut Attributes<'_>)) -> &mut Self {
        self.nest_as(kind | NESTED, inner)
    }

    fn nest_as(&mut self, kind: u16, inner: impl FnOnce(&mut Attributes<'_>)) -> &mut Self {
        let start = self.0.len();
        self.0.extend_from_slice(&[0; 2]);
        self.0.extend_from_slice(&kind.to_ne_bytes());
        inner(&mut Attributes(self.0));
        // What is put here is far below 64 KiB by the bounds of those who put.
        let length = u16::try_from(self.0.len() - start).unwrap_or(u16::MAX);
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        pad(self.0);
        self
    }
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// A message of the kernel.
pub(super) struct Message<'a> {
    pub(super) kind: u16,
    pub(super) number: u32,
    /// The fixed part and the attributes.
    pub(super) body: &'a [u8],
}

/// The messages of one part of an answer. What is cut off is left out.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32_at(bytes, 0)?).ok()?;
        let message = Message {
            kind: u16_at(bytes, 4)?,
            number: u32_at(bytes, 8)?,
            // An error repeats the request, which may be longer than we read.
            body: bytes.get(HEADER..length.min(bytes.len()))?,
        };
        bytes = bytes
            .get(length.max(HEADER).next_multiple_of(4)..)
            .unwrap_or_default();
        Some(message)
    })
}

/// Attributes: each one's kind and value.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)? & KIND;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at + 2)?;
    Some(u16::from_ne_bytes(bytes.try_into().ok()?))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

/// What the kernel did not take: the message's number and why.
pub(super) struct Refusal {
    pub(super) number: u32,
    pub(super) error: Errno,
}

impl From<Errno> for Refusal {
    fn from(error: Errno) -> Refusal {
        Refusal { number: 0, error }
    }
}

impl From<Refusal> for io::Error {
    fn from(refusal: Refusal) -> io::Error {
        refusal.error.into()
    }
}

/// A socket to a part of the kernel, in the network namespace that its thread
/// was in when it was made.
pub(super) struct Socket {
    socket: OwnedFd,
}

impl Socket {
    /// None: routing, which is number 0.
    pub(super) fn open(part: Option<Protocol>) -> io::Result<Socket> {
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            part,
        )?;
        Ok(Socket { socket })
    }

    /// The same socket for somebody else: what it owns lives until both are
    /// closed.
    pub(super) fn share(&self) -> io::Result<OwnedFd> {
        self.socket.try_clone()
    }

    /// Lets it send a whole change at once, whatever the system's limit.
    pub(super) fn widen(&self) -> io::Result<()> {
        sockopt::set_socket_send_buffer_size_force(&self.socket, LARGEST)?;
        Ok(())
    }

    fn send(&self, messages: &Messages) -> Result<(), Errno> {
        let kernel = SocketAddrNetlink::new(0, 0);
        sendto(&self.socket, &messages.bytes, SendFlags::empty(), &kernel)?;
        Ok(())
    }

    /// Sends and reads what the kernel says to it: the first refusal, if any,
    /// or that the message numbered `last` was done.
    pub(super) fn request(&self, messages: &Messages, last: u32) -> Result<(), Refusal> {
        self.send(messages)?;
        let mut bytes = [0; 1024];
        let mut done = false;
        let mut refused: Option<Refusal> = None;
        loop {
            let length = match recv(&self.socket, &mut bytes, RecvFlags::empty()) {
                Ok((length, _)) => length,
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(error.into()),
            };
            for message in messages_of(&bytes, length) {
                match failure(&message) {
                    Some(Some(error)) if refused.is_none() => {
                        refused = Some(Refusal {
                            number: message.number,
                            error,
                        });
                    }
                    Some(None) => done |= message.number == last,
                    _ => {}
                }
            }
        }
        match refused {
            Some(refusal) => Err(refusal),
            None if done => Ok(()),
            // Not told either way: as good as refused.
            None => Err(Errno::PROTO.into()),
        }
    }

    /// Sends a question and hands each message of the long answer on, until one
    /// is enough. The socket is of no use then: the rest of the answer is in it.
    pub(super) fn dump(
        &self,
        question: &Messages,
        mut each: impl FnMut(&Message<'_>) -> ControlFlow<()>,
    ) -> Result<(), Errno> {
        self.send(question)?;
        let mut bytes = vec![0; PART];
        loop {
            let length = match recv(&self.socket, &mut bytes[..], RecvFlags::empty()) {
                Ok((length, _)) => length,
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error),
            };
            for message in messages_of(&bytes, length) {
                if message.kind == DONE {
                    return Ok(());
                }
                match failure(&message) {
                    Some(Some(error)) => return Err(error),
                    Some(None) => return Ok(()),
                    None if each(&message).is_break() => return Ok(()),
                    None => {}
                }
            }
        }
    }
}

fn messages_of(bytes: &[u8], length: usize) -> impl Iterator<Item = Message<'_>> {
    messages(bytes.get(..length).unwrap_or(bytes))
}

/// None: no error message; `Some(None)`: it says that all is well.
fn failure(message: &Message<'_>) -> Option<Option<Errno>> {
    if message.kind != ERROR {
        return None;
    }
    let code = u32_at(message.body, 0).map_or(-1, u32::cast_signed);
    Some((code != 0).then(|| Errno::from_raw_os_error(code.wrapping_neg())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_nested_and_read_back() {
        let mut sent = Messages::default();
        sent.push(7, CREATE, 9, &[1, 2], |a| {
            a.text(1, "abcd").nest(2, |a| {
                a.number(3, 0x0102_0304).put(4, &[5]);
            });
        });
        let read: Vec<_> = messages(&sent.bytes).collect();
        let [message] = read.as_slice() else {
            panic!("one message")
        };
        assert_eq!((message.kind, message.number), (7, 9));
        let found: Vec<_> = attributes(&message.body[4..]).collect();
        assert_eq!(found[0], (1, b"abcd\0".as_slice()));
        let inner: Vec<_> = attributes(found[1].1).collect();
        assert_eq!(found[1].0, 2);
        assert_eq!(inner, [(3, [1, 2, 3, 4].as_slice()), (4, &[5])]);
        assert_eq!(sent.len() % 4, 0);
    }

    #[test]
    fn answers_that_are_cut_off_or_lie_about_their_length_end() {
        let mut sent = Messages::default();
        sent.push(7, 0, 9, &[0; 4], |a| {
            a.text(1, "abcd").put(2, &[1]);
        });
        for length in 0..sent.len() {
            for message in messages(&sent.bytes[..length]) {
                assert!(attributes(message.body.get(4..).unwrap_or_default()).count() <= 2);
            }
        }
        for claimed in [0, 1, 15, 17, u32::MAX] {
            let mut bytes = sent.bytes.clone();
            bytes[..4].copy_from_slice(&claimed.to_ne_bytes());
            assert!(messages(&bytes).count() <= bytes.len() / HEADER);
        }
        for claimed in [0_u16, 1, 3, u16::MAX] {
            let bytes = claimed.to_ne_bytes();
            assert_eq!(attributes(&[bytes[0], bytes[1], 0, 0]).count(), 0);
        }
    }
}
