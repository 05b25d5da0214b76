//! Somebody who plays the proxy.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;

use prost::Message as _;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recvmsg, sendmsg, socket_with,
};

use super::ground::{PATIENCE, POD, Server, eventually};
use crate::capture::wire::{
    Answer, Ask, Beat, Capture, Existing, Given, MAX_ADDRESSES, MAX_MESSAGE, Release, Retreat,
    Sockets, ask,
};

/// Plays the proxy.
pub(super) struct Proxy {
    socket: OwnedFd,
    number: u64,
    /// Takes [`Given::Lasting`] too. It is closed at once otherwise.
    pub(super) keeps_open: bool,
}

/// What is captured in the tests, as a rule: the service's port 80.
pub(super) fn pod_with(outbound: &[SocketAddr], inbound: &[u32]) -> Capture {
    Capture {
        more: false,
        pod: "pod".to_owned(),
        addresses: POD.map(str::to_owned).to_vec(),
        outbound: outbound.iter().map(SocketAddr::to_string).collect(),
        inbound: inbound.to_vec(),
    }
}

impl Proxy {
    pub(super) fn connect(path: &Path) -> Proxy {
        let path = SocketAddrUnix::new(path).unwrap();
        let socket = eventually("capture listens", || {
            let flags = SocketFlags::CLOEXEC;
            let socket =
                socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
            connect(&socket, &path).ok().map(|()| socket)
        });
        set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE)).unwrap();
        Proxy {
            socket,
            number: 0,
            keeps_open: false,
        }
    }

    /// False: capture has closed.
    pub(super) fn send(&mut self, kind: ask::Kind) -> bool {
        let number = if matches!(kind, ask::Kind::Beat(_)) {
            0
        } else {
            self.number += 1;
            self.number
        };
        let ask = Ask {
            number,
            kind: Some(kind),
        };
        let bytes = ask.encode_to_vec();
        let mut nothing = SendAncillaryBuffer::default();
        let parts = [IoSlice::new(&bytes)];
        sendmsg(&self.socket, &parts, &mut nothing, SendFlags::NOSIGNAL).is_ok()
    }

    /// None: capture has closed.
    pub(super) fn hear(&mut self) -> Option<(Answer, Vec<OwnedFd>)> {
        let mut bytes = vec![0; MAX_MESSAGE];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
        let mut beside = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(
            &self.socket,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut beside,
            RecvFlags::CMSG_CLOEXEC,
        )
        .ok()?;
        if received.bytes == 0 {
            return None;
        }
        let given = beside
            .drain()
            .flat_map(|message| match message {
                RecvAncillaryMessage::ScmRights(given) => given.collect(),
                _ => Vec::new(),
            })
            .collect();
        Some((Answer::decode(&bytes[..received.bytes]).unwrap(), given))
    }

    pub(super) fn ask(&mut self, kind: ask::Kind) -> Result<Told, String> {
        assert!(self.send(kind), "capture has closed");
        let (answer, sockets) = self.hear().expect("capture answers");
        assert_eq!(answer.number, self.number);
        if !answer.error.is_empty() {
            return Err(answer.error);
        }
        let given: Vec<Given> = answer.given().collect();
        assert_eq!(given.len(), sockets.len());
        Ok(Told {
            existing: answer.existing,
            given: given
                .into_iter()
                .zip(sockets)
                .filter(|(given, _)| self.keeps_open || *given != Given::Lasting)
                .collect(),
        })
    }

    /// In as many messages as it takes.
    pub(super) fn capture(&mut self, mut pod: Capture) -> Result<Told, String> {
        while pod.outbound.len() > MAX_ADDRESSES {
            let rest = pod.outbound.split_off(MAX_ADDRESSES);
            let outbound = std::mem::replace(&mut pod.outbound, rest);
            let part = Capture {
                outbound,
                more: true,
                ..pod.clone()
            };
            let told = self.ask(ask::Kind::Capture(part))?;
            assert!(
                told.given().is_empty(),
                "nothing is done before it is whole"
            );
        }
        self.ask(ask::Kind::Capture(pod))
    }

    pub(super) fn release(&mut self, pod: &str) {
        let pod = pod.to_owned();
        self.ask(ask::Kind::Release(Release { pod })).unwrap();
    }

    pub(super) fn beat(&mut self) {
        assert!(self.send(ask::Kind::Beat(Beat {})));
    }

    pub(super) fn retreat(&mut self) {
        self.ask(ask::Kind::Retreat(Retreat {})).unwrap();
    }

    pub(super) fn existing(
        &mut self,
        pod: &str,
        to: &[SocketAddr],
        ports: &[u32],
        reset: u32,
    ) -> Vec<u32> {
        let existing = Existing {
            pod: pod.to_owned(),
            destinations: to.iter().map(SocketAddr::to_string).collect(),
            ports: ports.to_vec(),
            reset,
        };
        self.ask(ask::Kind::Existing(existing)).unwrap().existing
    }

    /// A socket to connect with.
    pub(super) fn socket(&mut self, ipv6: bool, transparent: bool) -> socket2::Socket {
        let sockets = Sockets {
            pod: "pod".to_owned(),
            ipv6,
            transparent,
            count: 1,
        };
        let mut told = self.ask(ask::Kind::Sockets(sockets)).unwrap();
        let socket: socket2::Socket = told.take(Given::Socket).into();
        socket.set_nonblocking(false).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }
}

/// An answer that is no error.
pub(super) struct Told {
    pub(super) existing: Vec<u32>,
    given: Vec<(Given, OwnedFd)>,
}

impl Told {
    pub(super) fn take(&mut self, what: Given) -> OwnedFd {
        let place = self.given.iter().position(|(given, _)| *given == what);
        self.given.remove(place.expect("it is given")).1
    }

    pub(super) fn listener(&mut self, what: Given) -> Server {
        self.take(what).into()
    }

    pub(super) fn given(&self) -> Vec<Given> {
        self.given.iter().map(|(given, _)| *given).collect()
    }
}
