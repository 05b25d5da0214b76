//! The little of epoll that load and backend need.

use std::{io, mem::MaybeUninit, os::fd::AsFd, time::Duration};

use rustix::{
    event::{
        Timespec,
        epoll::{self, CreateFlags, Event, EventData, EventFlags},
    },
    fd::OwnedFd,
    io::Errno,
};

/// Events fetched with one call.
const BATCH: usize = 256;

/// What a socket is watched for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interest {
    Read,
    Write,
}

impl Interest {
    fn flags(self) -> EventFlags {
        match self {
            Self::Read => EventFlags::IN,
            Self::Write => EventFlags::OUT,
        }
    }
}

/// A level-triggered epoll set.
#[derive(Debug)]
pub(crate) struct Poller {
    epoll: OwnedFd,
    ready: [MaybeUninit<Event>; BATCH],
}

impl Poller {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            ready: [MaybeUninit::uninit(); BATCH],
        })
    }

    /// Watches `socket`; its events carry `token`. Closing the socket ends the watch.
    pub(crate) fn add(
        &self,
        socket: impl AsFd,
        token: usize,
        interest: Interest,
    ) -> io::Result<()> {
        Ok(epoll::add(
            &self.epoll,
            socket,
            EventData::new_u64(token as u64),
            interest.flags(),
        )?)
    }

    /// Changes what a watched socket is watched for.
    pub(crate) fn modify(
        &self,
        socket: impl AsFd,
        token: usize,
        interest: Interest,
    ) -> io::Result<()> {
        Ok(epoll::modify(
            &self.epoll,
            socket,
            EventData::new_u64(token as u64),
            interest.flags(),
        )?)
    }

    /// Waits for events, at most for `timeout`, and gives the tokens of the sockets that have some.
    pub(crate) fn wait(
        &mut self,
        timeout: Option<Duration>,
    ) -> io::Result<impl Iterator<Item = usize>> {
        let timeout = timeout.map(|t| Timespec {
            tv_sec: t.as_secs() as i64,
            tv_nsec: t.subsec_nanos().into(),
        });
        let events: &[Event] = match epoll::wait(&self.epoll, &mut self.ready, timeout.as_ref()) {
            Ok((events, _)) => events,
            Err(Errno::INTR) => &[],
            Err(error) => return Err(error.into()),
        };
        Ok(events.iter().map(|event| event.data.u64() as usize))
    }
}
