//! Serving the proxy: one at a time, one question after the other.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use prost::Message as _;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SocketFlags, accept_with, recv};
use tracing::{info, warn};
use weir_resilience::Time;

use super::peer::Proxy;
use super::pod::Gifts;
use super::pods::Pods;
use super::wire::{Answer, Ask, MAX_MESSAGE, ask};
use crate::clock::Clock;

/// How long a proxy may be away before its pods are let go: what it had open
/// has ended by then, or another has asked for them.
const AWAY: Duration = Duration::from_secs(5);
/// How often pods are looked for that have ended.
const LOOK: Duration = Duration::from_secs(1);
/// Questions that are answered before the clock is looked at again.
const TURN: usize = 32;

/// What serves: see [`Server::serve`].
pub(super) struct Server {
    listener: OwnedFd,
    /// The user that the proxy runs as.
    user: Option<u32>,
    /// Without a beat for so long, the proxy hangs.
    beat_timeout: Duration,
    clock: Clock,
    pods: Pods,
    proxy: Option<Proxy>,
    /// When pods go that no proxy has asked for.
    let_go_at: Option<Time>,
    look_at: Time,
    stopping: bool,
}

/// How reading from the proxy ended.
enum Read {
    /// There is nothing more now.
    Drained,
    /// There may be more.
    More,
    /// It is gone, or what it says makes no sense.
    Gone(&'static str),
}

/// The thread is in a pod's network namespace and cannot leave it.
pub(super) struct Lost;

impl Server {
    pub(super) fn new(
        listener: OwnedFd,
        user: Option<u32>,
        beat_timeout: Duration,
        pods: Pods,
    ) -> Server {
        let clock = Clock::start();
        Server {
            listener,
            user,
            beat_timeout,
            look_at: clock.now(),
            clock,
            pods,
            proxy: None,
            let_go_at: None,
            stopping: false,
        }
    }

    /// Serves until `stop` can be read or is closed; and then as long as the
    /// proxy is there, which drains, and its last words are on their way.
    pub(super) fn serve(mut self, stop: BorrowedFd<'_>) -> Result<(), Lost> {
        let mut buffer = vec![0; MAX_MESSAGE + 1];
        loop {
            let (stops, knocks, speaks) = self.wait(stop);
            if stops {
                self.stopping = true;
            }
            if knocks {
                self.accept();
            }
            let mut drained = true;
            if speaks {
                match self.hear(&mut buffer) {
                    Read::Drained => {}
                    Read::More => drained = false,
                    Read::Gone(why) => self.proxy_left(why),
                }
            }
            // A beat that waits to be read is a beat.
            if drained {
                self.watch();
            }
            self.clean();
            if self.pods.is_lost() {
                return Err(Lost);
            }
            if self.stopping && self.proxy.is_none() && self.let_go_at.is_none() {
                return Ok(());
            }
        }
    }

    /// Waits for something to do: to stop, a proxy that connects, the one that
    /// is connected; or until the next moment that something is due.
    fn wait(&self, stop: BorrowedFd<'_>) -> (bool, bool, bool) {
        let now = self.clock.now();
        let due = self.due().map(|at| at.since(now));
        let due = due.map(|wait| Timespec {
            tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
            // A little later rather than a little too early, again and again.
            tv_nsec: i64::from(wait.subsec_nanos()),
        });
        let of = |wanted: bool| {
            if wanted {
                PollFlags::IN
            } else {
                PollFlags::empty()
            }
        };
        let mut ready = vec![PollFd::from_borrowed_fd(
            self.listener.as_fd(),
            of(!self.stopping),
        )];
        if !self.stopping {
            ready.push(PollFd::from_borrowed_fd(stop, PollFlags::IN));
        }
        if let Some(proxy) = &self.proxy {
            let flags = if proxy.unsent.is_some() {
                PollFlags::OUT
            } else {
                PollFlags::IN
            };
            ready.push(PollFd::from_borrowed_fd(proxy.socket.as_fd(), flags));
        }
        // Interrupted: nothing is ready, and the loop comes back.
        if poll(&mut ready, due.as_ref()).is_err() {
            return (false, false, false);
        }
        let mut happened = ready.iter().map(|each| !each.revents().is_empty());
        let knocks = happened.next().unwrap_or_default();
        let stops = !self.stopping && happened.next().unwrap_or_default();
        let speaks = happened.next().unwrap_or_default();
        (stops, knocks && !self.stopping, speaks)
    }

    /// When something is due though nothing happens.
    fn due(&self) -> Option<Time> {
        let proxy = self.proxy.as_ref();
        let beat = proxy
            .filter(|proxy| !proxy.hangs && proxy.unsent.is_none())
            .and_then(|proxy| proxy.beaten);
        let unsent = proxy
            .and_then(|proxy| proxy.unsent.as_ref())
            .map(|unsent| unsent.since);
        [
            beat.map(|at| at + self.beat_timeout),
            unsent.map(|at| at + self.beat_timeout),
            self.let_go_at,
            (self.pods.len() > 0).then_some(self.look_at),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    fn accept(&mut self) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        while let Ok(socket) = accept_with(&self.listener, flags) {
            // The proxy is in another container, where processes are numbered
            // apart: its own number is 0 here, for which rustix has no value.
            let user = match getsockopt(&socket, PeerCredentials) {
                Ok(peer) => peer.uid(),
                Err(error) => {
                    warn!(%error, "refused: it cannot be told who it is");
                    continue;
                }
            };
            if self.user.is_some_and(|allowed| allowed != user) {
                warn!(user, "refused: only the proxy's user may ask");
                continue;
            }
            if self.proxy.is_some() {
                self.proxy_left("another has come");
            }
            info!("the proxy is here");
            self.proxy = Some(Proxy::new(socket));
            if self.let_go_at.is_some() {
                self.let_go_at = Some(self.clock.now() + AWAY);
            }
        }
    }

    fn proxy_left(&mut self, why: &'static str) {
        if self.proxy.take().is_none() {
            return;
        }
        self.pods.proxy_left();
        let pods = self.pods.len();
        info!(pods, why, "the proxy is gone: nothing is redirected");
        self.let_go_at = Some(self.clock.now() + AWAY);
    }

    /// Reads what the proxy says and answers it.
    fn hear(&mut self, buffer: &mut [u8]) -> Read {
        let now = self.clock.now();
        let Some(proxy) = &mut self.proxy else {
            return Read::Drained;
        };
        if let Some(unsent) = proxy.unsent.take()
            && let Err(why) = proxy.send(unsent.bytes, unsent.gifts, unsent.since)
        {
            return Read::Gone(why);
        }
        for _ in 0..TURN {
            let Some(proxy) = &mut self.proxy else {
                return Read::Drained;
            };
            if proxy.unsent.is_some() {
                return Read::Drained;
            }
            let length = match recv(&proxy.socket, &mut *buffer, RecvFlags::empty()) {
                Ok((0, _)) => return Read::Gone("it has ended"),
                Ok((length, _)) => length,
                Err(Errno::AGAIN) => return Read::Drained,
                Err(Errno::INTR) => continue,
                Err(_) => return Read::Gone("its connection is broken"),
            };
            let ask = match buffer.get(..length.min(MAX_MESSAGE)).map(Ask::decode) {
                Some(Ok(ask)) if length <= MAX_MESSAGE => ask,
                _ => return Read::Gone("it sent what cannot be read"),
            };
            if let Some(ask::Kind::Beat(_)) = ask.kind {
                self.beat(now);
                continue;
            }
            let (answer, gifts) = self.answer(ask);
            if self.pods.is_lost() {
                return Read::Drained;
            }
            if let Some(proxy) = &mut self.proxy
                && let Err(why) = proxy.send(answer.encode_to_vec(), gifts, now)
            {
                return Read::Gone(why);
            }
        }
        Read::More
    }

    fn answer(&mut self, ask: Ask) -> (Answer, Gifts) {
        let mut existing = Vec::new();
        let done = match ask.kind {
            Some(ask::Kind::Capture(ask)) => self.pods.capture(&ask),
            Some(ask::Kind::Sockets(ask)) => self.pods.sockets(&ask),
            Some(ask::Kind::Release(ask)) => {
                self.pods.release(&ask);
                Ok(Gifts::new())
            }
            Some(ask::Kind::Retreat(_)) => {
                self.pods.retreat();
                info!(
                    pods = self.pods.len(),
                    "the proxy drains: nothing is redirected"
                );
                Ok(Gifts::new())
            }
            Some(ask::Kind::Existing(ask)) => self.pods.existing(&ask).map(|counts| {
                existing = counts;
                Gifts::new()
            }),
            Some(ask::Kind::Beat(_)) | None => Ok(Gifts::new()),
        };
        let (error, gifts) = match done {
            Ok(gifts) => (String::new(), gifts),
            Err(error) => (error.to_string(), Gifts::new()),
        };
        let answer = Answer {
            number: ask.number,
            error,
            given: gifts.iter().map(|(given, _)| (*given).into()).collect(),
            existing,
        };
        (answer, gifts)
    }

    fn beat(&mut self, now: Time) {
        let Some(proxy) = &mut self.proxy else {
            return;
        };
        proxy.beaten = Some(now);
        if proxy.hangs {
            proxy.hangs = false;
            self.pods.put_back();
            let pods = self.pods.len();
            info!(pods, "the proxy moves again: pods are captured again");
        }
    }

    /// Notices a proxy that does not move.
    fn watch(&mut self) {
        let now = self.clock.now();
        let Some(proxy) = &mut self.proxy else {
            return;
        };
        if let Some(unsent) = &proxy.unsent {
            if now.since(unsent.since) >= self.beat_timeout {
                self.proxy_left("it does not read its answers");
            }
            return;
        }
        let silent = proxy.beaten.map(|beaten| now.since(beaten));
        // One that drains is sent nobody any more: what it has is its own to end.
        let in_the_way = !proxy.hangs && !self.pods.have_retreated();
        if in_the_way && silent.is_some_and(|silent| silent >= self.beat_timeout) {
            proxy.hangs = true;
            self.pods.take_away();
            let pods = self.pods.len();
            warn!(
                pods,
                "the proxy does not move: nothing is redirected until it does"
            );
        }
    }

    /// Lets go of pods that nobody needs.
    fn clean(&mut self) {
        let now = self.clock.now();
        if self.let_go_at.is_some_and(|at| at <= now) {
            self.let_go_at = None;
            self.pods.let_unasked_go();
        }
        if self.look_at <= now {
            self.look_at = now + LOOK;
            self.pods.let_ended_go();
        }
    }
}
