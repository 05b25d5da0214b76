//! What breakers know outlives their agent.
//!
//! While an agent is replaced, the old and the new one are on the node together.
//! Each listens at a Unix socket of its own in a directory that both see
//! ([`socket`]); who connects is told at once what the breakers know that are
//! not simply closed, and once more when the agent that is asked drains. A new
//! agent asks all that are there before it serves anybody, and best effort: who
//! does not answer in time is left alone. For its own restart an agent writes
//! the same to a file ([`file`]). The [`message`] is read by older and newer
//! agents.
//!
//! Only processes of the agent's own user are asked and answered. Who can take
//! their place, or the directory's, is root on the node already; and the worst
//! that a lie does is a breaker that refuses for its policy's `maxDuration`.

mod file;
mod message;
mod socket;
#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::clock::Clock;
use crate::registry::{Moment, Registry};

pub(crate) use file::File;
pub use socket::prepare;

/// How long an agent waits at its start for all others together.
const PATIENCE: Duration = Duration::from_millis(500);
/// How long another may take to read what it asked for, and an agent that ends
/// to tell it.
const TELLING: Duration = Duration::from_millis(500);
/// Others that are asked, the newest first.
const MAX_ASKED: usize = 4;
/// Others that are answered at a time.
const MAX_ANSWERED: usize = 8;
/// What is heard of one other: at its asking, and when that one drains.
const FAREWELLS: usize = 1;
/// How often it is tried to listen, until that works.
const AGAIN: Duration = Duration::from_secs(1);

/// An agent's part in handing over.
pub(crate) struct Handover {
    directory: PathBuf,
    registry: Arc<Registry>,
    clock: Clock,
    /// True once this agent drains. Everybody who waits for that holds a
    /// receiver, and nobody else.
    draining: watch::Sender<bool>,
}

impl Handover {
    /// In a directory that all agents of the node see.
    pub(crate) fn new(directory: PathBuf, registry: Arc<Registry>, clock: Clock) -> Handover {
        Handover {
            directory,
            registry,
            clock,
            draining: watch::Sender::new(false),
        }
    }

    /// Asks the others and remembers what they tell. Returns within
    /// [`PATIENCE`], with the tasks that wait for what they tell when they
    /// drain.
    pub(crate) async fn ask(self: &Arc<Self>) -> Vec<JoinHandle<()>> {
        let until = Instant::now() + PATIENCE;
        let mut asked = JoinSet::new();
        let others = timeout_at(until, socket::others(&self.directory, MAX_ASKED)).await;
        for mut other in others.unwrap_or_default() {
            let this = self.clone();
            asked.spawn(async move {
                this.hear(&mut other)
                    .await
                    .map(|breakers| (breakers, other))
            });
        }
        let mut waiting = Vec::new();
        while let Ok(Some(heard)) = timeout_at(until, asked.join_next()).await {
            match heard {
                Ok(Ok((breakers, other))) => {
                    tracing::info!(breakers, "another agent of this node told what it knows");
                    let this = self.clone();
                    waiting.push(tokio::spawn(this.wait_for_farewell(other)));
                }
                Ok(Err(error)) => {
                    tracing::warn!(%error, "another agent of this node does not tell what it knows");
                }
                Err(error) => tracing::error!(%error, "asking another agent failed"),
            }
        }
        if !asked.is_empty() {
            tracing::warn!(
                agents = asked.len(),
                "other agents of this node do not answer; starting without what they know"
            );
        }
        waiting
    }

    /// Takes in one frame; how many breakers it was about.
    async fn hear(&self, other: &mut UnixStream) -> io::Result<usize> {
        let frame = socket::read(other).await?;
        let told = message::decode(&frame);
        let breakers = told.len();
        self.registry.remember(told, self.moment());
        Ok(breakers)
    }

    async fn wait_for_farewell(self: Arc<Self>, mut other: UnixStream) {
        for _ in 0..FAREWELLS {
            match self.hear(&mut other).await {
                Ok(breakers) => {
                    tracing::info!(breakers, "an agent that drains told what it knows");
                }
                // It ended, as it may.
                Err(_) => return,
            }
        }
    }

    /// Answers whoever asks, until it is dropped.
    pub(crate) async fn serve(self: Arc<Self>) {
        let mut said = false;
        let listener = loop {
            match socket::Listener::bind(&self.directory) {
                Ok(listener) => break listener,
                Err(error) => {
                    if !std::mem::replace(&mut said, true) {
                        tracing::warn!(
                            directory = %self.directory.display(),
                            %error,
                            "breakers cannot be handed over to the next agent; tried again every second"
                        );
                    }
                    sleep(AGAIN).await;
                }
            }
        };
        let mut answers = JoinSet::new();
        loop {
            while answers.try_join_next().is_some() {}
            match listener.accept().await {
                Ok(other) if answers.len() < MAX_ANSWERED => {
                    let draining = self.draining.subscribe();
                    answers.spawn(self.clone().answer(other, draining));
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%error, "another agent cannot be answered");
                    sleep(AGAIN).await;
                }
            }
        }
    }

    async fn answer(self: Arc<Self>, mut other: UnixStream, mut draining: watch::Receiver<bool>) {
        let was_draining = *draining.borrow();
        if !self.tell(&mut other).await || was_draining {
            return;
        }
        let mut nothing = [0];
        tokio::select! {
            // It lives as long as this.
            _ = draining.wait_for(|draining| *draining) => {}
            // Nothing is said here: it has gone. (That it can be read may be a false alarm.)
            _ = other.read(&mut nothing) => return,
        }
        self.tell(&mut other).await;
    }

    async fn tell(&self, other: &mut UnixStream) -> bool {
        let frame = self.knowledge();
        matches!(
            timeout(TELLING, socket::write(other, &frame)).await,
            Ok(Ok(()))
        )
    }

    fn knowledge(&self) -> Vec<u8> {
        message::encode(&self.registry.memories(self.moment()))
    }

    fn moment(&self) -> Moment {
        self.clock.moment()
    }

    /// This agent drains: tells those who asked before, and returns once they
    /// are told or do not listen.
    pub(crate) async fn farewell(&self) {
        self.draining.send_replace(true);
        let _ = timeout(TELLING, self.draining.closed()).await;
    }
}
