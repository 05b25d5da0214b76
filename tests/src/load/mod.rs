//! Load from a pod: callers that keep calling at a steady rate, and what becomes
//! of their calls.
//!
//! Each caller is on its own and makes one call after the other, as a
//! thread of an application does. A call is lost when its caller does not get
//! the answer that the destination gave; it is not made again.

mod h1;
mod h2;
mod talk;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

pub use self::talk::Echo;
use crate::pods::Namespace;

/// A call that takes longer is lost.
const PATIENCE: Duration = Duration::from_secs(10);

/// How callers call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// HTTP/1.1, each call over a connection of its own.
    NewConnections,
    /// HTTP/1.1, one call after the other over a connection that is kept, until
    /// it is ended from the other side.
    KeepAlive,
    /// HTTP/2, one call after the other over a connection that is kept, until it
    /// is ended from the other side.
    Http2,
    /// A talk with an [`Echo`] on one stream of HTTP/2, over a connection that is
    /// kept.
    Stream,
    /// A talk with an [`Echo`] after an upgrade from HTTP/1.1.
    Upgrade,
    /// A talk with an [`Echo`] in no known protocol.
    Tcp,
}

/// Callers of one kind.
#[derive(Clone, Copy, Debug)]
pub struct Callers {
    /// How they call.
    pub way: Way,
    /// How many there are.
    pub count: u32,
    /// How many calls all of them make together in a second.
    pub rate: u32,
}

/// How a call was lost.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Lost {
    /// There was no connection: it was refused.
    Refused,
    /// The connection was reset.
    Reset,
    /// The connection was closed before the answer was whole.
    Closed,
    /// No answer came in time.
    Late,
    /// Another answer than the destination's.
    Answer(u16),
    /// Anything else.
    Other(String),
}

impl From<io::Error> for Lost {
    fn from(error: io::Error) -> Lost {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Lost::Refused,
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Lost::Reset,
            io::ErrorKind::UnexpectedEof => Lost::Closed,
            _ => Lost::Other(error.to_string()),
        }
    }
}

/// What became of the calls.
#[derive(Clone, Default, Debug)]
pub struct Tally {
    /// Calls that were answered.
    pub answered: u64,
    /// Calls that were lost.
    pub lost: BTreeMap<Lost, u64>,
    /// Connections that were reset while nothing was asked on them.
    pub reset_idle: u64,
    /// Connections that were made.
    pub connections: u64,
    /// Connections of HTTP/2 whose other end said in good order that it goes away.
    pub goodbyes: u64,
    /// The longest time in which no call of anybody was answered.
    pub gap: Duration,
}

impl Tally {
    /// How many calls were lost.
    pub fn losses(&self) -> u64 {
        self.lost.values().sum()
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tally {
            answered,
            lost,
            reset_idle,
            connections,
            goodbyes,
            gap,
        } = self;
        let calls = answered + self.losses();
        write!(
            f,
            "{calls} calls over {connections} connections, {} lost {lost:?}, {reset_idle} reset while idle, {goodbyes} GOAWAY, worst gap {gap:?}",
            self.losses()
        )
    }
}

/// Callers at work. They end with the value.
pub struct Load {
    books: Books,
    stop: Option<watch::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Load {
    /// Has callers in a pod's network namespace call this address.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn start(from: &Namespace, at: SocketAddr, callers: &[Callers]) -> Result<Load> {
        let books = Books::default();
        let (stop, stopped) = watch::channel(());
        let (theirs, callers) = (books.clone(), callers.to_vec());
        let thread = from.enter(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            // A thread of this one, and so in the namespace.
            let work = move || runtime.block_on(run(at, &callers, &theirs, stopped));
            Ok(std::thread::Builder::new()
                .name("callers".to_owned())
                .spawn(work)?)
        })?;
        Ok(Load {
            books,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// What became of the calls so far.
    pub fn tally(&self) -> Tally {
        self.books.lock().tally.clone()
    }

    /// Waits until so many more calls have been answered.
    pub async fn goes_on(&self, calls: u64) {
        let enough = self.tally().answered + calls;
        crate::eventually("calls that are answered", || async {
            let tally = self.tally();
            if tally.answered >= enough {
                Ok(())
            } else {
                Err(format!("{} of {enough}: {tally}", tally.answered))
            }
        })
        .await;
    }

    /// Ends it, once the calls that are under way have ended.
    ///
    /// # Errors
    /// When a caller panicked.
    pub fn end(mut self) -> Result<Tally> {
        self.books.lock().ending = true;
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            thread.join().ok().context("a caller panicked")?;
        }
        Ok(self.tally())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The tally, as callers see it.
#[derive(Clone, Default)]
struct Books(Arc<Mutex<Entries>>);

#[derive(Default)]
struct Entries {
    tally: Tally,
    last_answer: Option<Instant>,
    /// Callers stop: that nobody is answered is no gap any more.
    ending: bool,
}

impl Books {
    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connected(&self) {
        self.lock().tally.connections += 1;
    }

    fn goodbye(&self) {
        self.lock().tally.goodbyes += 1;
    }

    fn reset_while_idle(&self) {
        self.lock().tally.reset_idle += 1;
    }

    fn ended(&self, call: Result<(), Lost>) {
        let mut entries = self.lock();
        match call {
            Ok(()) => {
                let now = Instant::now();
                let last = entries.last_answer.replace(now);
                let gap = last.map_or(Duration::ZERO, |last| now - last);
                if !entries.ending {
                    entries.tally.gap = entries.tally.gap.max(gap);
                }
                entries.tally.answered += 1;
            }
            Err(lost) => *entries.tally.lost.entry(lost).or_default() += 1,
        }
    }
}

/// Somebody who calls.
trait Caller {
    /// One call.
    fn call(&mut self) -> impl Future<Output = Result<(), Lost>> + Send;

    /// A call has taken too long.
    fn give_up(&mut self);
}

async fn run(at: SocketAddr, callers: &[Callers], books: &Books, stopped: watch::Receiver<()>) {
    let mut all = JoinSet::new();
    for Callers { way, count, rate } in callers {
        let pause = Duration::from_secs(1) * *count / *rate;
        for place in 0..*count {
            // Not all at the same moment.
            let first = Instant::now() + pause * place / *count;
            let stopped = stopped.clone();
            let entries = books.clone();
            let h1 = |keeps| h1::Caller::new(at, keeps, books.clone());
            let h2 = || h2::Caller::new(at, books.clone());
            let talker = |upgrades| talk::Talker::new(at, upgrades, books.clone());
            match way {
                Way::NewConnections => {
                    all.spawn(keep_calling(h1(false), first, pause, entries, stopped))
                }
                Way::KeepAlive => all.spawn(keep_calling(h1(true), first, pause, entries, stopped)),
                Way::Http2 => all.spawn(keep_calling(h2(), first, pause, entries, stopped)),
                Way::Stream => {
                    let talker = h2::Talker(h2());
                    all.spawn(keep_calling(talker, first, pause, entries, stopped))
                }
                Way::Upgrade => {
                    all.spawn(keep_calling(talker(true), first, pause, entries, stopped))
                }
                Way::Tcp => all.spawn(keep_calling(talker(false), first, pause, entries, stopped)),
            };
        }
    }
    while let Some(ended) = all.join_next().await {
        if let Err(error) = ended {
            std::panic::resume_unwind(error.into_panic());
        }
    }
}

async fn keep_calling(
    mut caller: impl Caller,
    first: Instant,
    pause: Duration,
    books: Books,
    mut stopped: watch::Receiver<()>,
) {
    tokio::time::sleep_until(first).await;
    let mut turn = interval(pause);
    turn.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = turn.tick() => {}
            // The sender is gone.
            _ = stopped.changed() => return,
        }
        let called = timeout(PATIENCE, caller.call()).await;
        books.ended(called.unwrap_or_else(|_| {
            caller.give_up();
            Err(Lost::Late)
        }));
    }
}
