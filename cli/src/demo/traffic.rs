//! Callers: a steady stream of requests to each service, through Weir and, the
//! same, without it. A request that takes long holds up no other.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::shop::{NAMES, REQUEST_ID, TRY};
use crate::http::Connection;

/// Requests a second to each service, in the order of [`NAMES`].
const RATES: [u64; 3] = [30, 80, 20];
/// How long a caller waits where nothing else ends its wait.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);
/// Requests that one stream may have under way; it pauses there.
const MAX_UNDER_WAY: usize = 500;
/// Idle connections of one stream.
const MAX_IDLE: usize = 64;
/// Things that may wait to be counted.
const UNCOUNTED: usize = 1_000;

/// Which way requests go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// Through Weir.
    With,
    /// Straight to the service.
    Without,
}

/// How a request ended, for its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// With a good answer.
    Answered,
    /// The same, after Weir tried again.
    Retried,
    /// Refused by Weir, at once.
    Refused,
    /// With an error, or not within [`PATIENCE`].
    Failed,
}

/// What callers tell.
#[derive(Clone, Copy, Debug)]
pub(super) enum News {
    /// A request was sent.
    Sent,
    /// It ended after this time.
    Ended(End, Duration),
}

/// Whose news.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stream {
    /// Index in [`NAMES`].
    pub(super) service: usize,
    /// Which way.
    pub(super) side: Side,
}

/// All callers. Dropping it ends them.
pub(super) struct Traffic {
    /// What they tell.
    pub(super) news: mpsc::Receiver<(Stream, News)>,
    _tasks: JoinSet<()>,
}

impl Traffic {
    /// Starts them: with Weir to `with`, without to `without`, both in the order
    /// of [`NAMES`].
    pub(super) fn start(with: &[SocketAddr], without: &[SocketAddr]) -> Traffic {
        let (told, news) = mpsc::channel(UNCOUNTED);
        let mut tasks = JoinSet::new();
        for (side, addresses) in [(Side::With, with), (Side::Without, without)] {
            for (service, (address, rate)) in addresses.iter().zip(RATES).enumerate() {
                let stream = Stream { service, side };
                let callers = Callers {
                    stream,
                    address: *address,
                    idle: Mutex::default(),
                    told: told.clone(),
                };
                tasks.spawn(
                    Arc::new(callers)
                        .run(Duration::from_millis(1_000) / u32::try_from(rate).unwrap_or(1)),
                );
            }
        }
        Traffic {
            news,
            _tasks: tasks,
        }
    }
}

/// Those of one stream.
struct Callers {
    stream: Stream,
    address: SocketAddr,
    idle: Mutex<Vec<Connection>>,
    told: mpsc::Sender<(Stream, News)>,
}

impl Callers {
    async fn run(self: Arc<Callers>, every: Duration) {
        let mut under_way = JoinSet::new();
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick(), if under_way.len() < MAX_UNDER_WAY => {
                    under_way.spawn(Arc::clone(&self).call());
                }
                Some(_) = under_way.join_next() => {}
            }
        }
    }

    async fn call(self: Arc<Callers>) {
        let begun = Instant::now();
        self.tell(News::Sent).await;
        let end = timeout(PATIENCE, self.request())
            .await
            .unwrap_or(End::Failed);
        self.tell(News::Ended(end, begun.elapsed())).await;
    }

    async fn tell(&self, news: News) {
        // An error means that the demo is over.
        let _ = self.told.send((self.stream, news)).await;
    }

    async fn request(&self) -> End {
        let idle = self
            .idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        if let Some(connection) = idle
            && let Some(end) = self.on(connection).await
        {
            return end;
        }
        // One that idled may have been closed meanwhile; a fresh one tells the truth.
        match Connection::open(self.address).await {
            Ok(connection) => self.on(connection).await.unwrap_or(End::Failed),
            Err(_) => End::Failed,
        }
    }

    /// `None` where no answer came.
    async fn on(&self, mut connection: Connection) -> Option<End> {
        let host = NAMES.get(self.stream.service)?;
        let id = format!("{REQUEST_ID}: {}\r\n", fastrand::u64(..));
        let more = if self.stream.side == Side::With {
            id.as_str()
        } else {
            ""
        };
        let response = connection
            .get(&format!("{host}.shop"), "/", more)
            .await
            .ok()?;
        let by_weir = response
            .field("proxy-status")
            .is_some_and(|status| status.starts_with("weir"));
        let end = match response.status {
            200..400 if response.field(TRY).is_some_and(|number| number != "1") => End::Retried,
            200..400 => End::Answered,
            503 if by_weir => End::Refused,
            _ => End::Failed,
        };
        response.body().await.ok()?;
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if connection.is_reusable() && idle.len() < MAX_IDLE {
            idle.push(connection);
        }
        Some(end)
    }
}
