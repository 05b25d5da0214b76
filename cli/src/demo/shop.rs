//! Three small HTTP services on free ports of 127.0.0.1. What payments does is
//! told to it; the other two are always well.
//!
//! Like most servers they have so many workers and no more, serve who came
//! first, and finish what they have begun also when nobody waits any more.

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::script::Mood;
use crate::http::read_line;

/// The services' names.
pub(super) const NAMES: [&str; 3] = ["catalog", "payments", "recommendations"];
/// Which of them has the outage.
pub(super) const PAYMENTS: usize = 1;

/// Field of a request that names it, so that its tries can be counted.
pub(super) const REQUEST_ID: &str = "x-demo-request";
/// Field of an answer: which try of the request it is for.
pub(super) const TRY: &str = "x-demo-try";

/// Requests that one service works on at once.
const WORKERS: usize = 48;
/// Connections to one service at once.
const MAX_CONNECTIONS: usize = 2_000;
/// Fields in a request's head.
const MAX_FIELDS: usize = 100;
/// Requests whose tries are remembered.
const REMEMBERED: usize = 1_000;

/// The running services. Dropping it ends them.
pub(super) struct Shop {
    /// Where they are, in the order of [`NAMES`].
    pub(super) addresses: Vec<SocketAddr>,
    mood: watch::Sender<Mood>,
    _tasks: JoinSet<()>,
}

impl Shop {
    /// Starts them.
    pub(super) async fn open() -> io::Result<Shop> {
        let mood = watch::Sender::new(Mood::Well);
        let always_well = watch::Sender::new(Mood::Well);
        let mut tasks = JoinSet::new();
        let mut addresses = Vec::new();
        for (index, name) in NAMES.into_iter().enumerate() {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
            addresses.push(listener.local_addr()?);
            let mood = if index == PAYMENTS {
                mood.subscribe()
            } else {
                always_well.subscribe()
            };
            tasks.spawn(serve(
                listener,
                Arc::new(Service {
                    name,
                    mood,
                    workers: Semaphore::new(WORKERS),
                    tries: Mutex::default(),
                }),
            ));
        }
        Ok(Shop {
            addresses,
            mood,
            _tasks: tasks,
        })
    }

    /// From now on payments does like this.
    pub(super) fn set_mood(&self, mood: Mood) {
        self.mood.send_replace(mood);
    }
}

struct Service {
    name: &'static str,
    mood: watch::Receiver<Mood>,
    workers: Semaphore,
    /// Requests seen last, and how often.
    tries: Mutex<VecDeque<(u64, u32)>>,
}

async fn serve(listener: TcpListener, service: Arc<Service>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok((stream, _)) => {
                    let service = Arc::clone(&service);
                    // What goes wrong on a connection ends it, and nothing else.
                    connections.spawn(async move { drop(service.connection(stream).await) });
                }
                Err(error) => {
                    tracing::warn!(%error, "{} cannot accept a connection", service.name);
                    sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

impl Service {
    /// Answers one request after the other.
    async fn connection(&self, stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut stream = BufReader::new(stream);
        loop {
            read_line(&mut stream).await?;
            let mut id = None;
            for fields in 0.. {
                let line = read_line(&mut stream).await?;
                if line.trim().is_empty() {
                    break;
                }
                if fields == MAX_FIELDS {
                    return Ok(());
                }
                if let Some((name, value)) = line.split_once(':')
                    && name.eq_ignore_ascii_case(REQUEST_ID)
                {
                    id = value.trim().parse().ok();
                }
            }
            let number = id.map_or(1, |id| self.count(id));
            let worker = self.workers.acquire().await.map_err(io::Error::other)?;
            let (status, takes) = self.decide();
            sleep(takes).await;
            drop(worker);
            let body = format!(
                "{{\"service\": \"{}\", \"status\": \"{status}\"}}\n",
                self.name
            );
            let head = format!(
                "HTTP/1.1 {status}\r\nContent-Type: application/json\r\n{TRY}: {number}\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            stream
                .get_mut()
                .write_all((head + &body).as_bytes())
                .await?;
        }
    }

    /// Which try of the request this is, from 1.
    fn count(&self, id: u64) -> u32 {
        let mut tries = self.tries.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, number)) = tries.iter_mut().rev().find(|(known, _)| *known == id) {
            *number += 1;
            return *number;
        }
        if tries.len() == REMEMBERED {
            tries.pop_front();
        }
        tries.push_back((id, 1));
        1
    }

    /// What is answered, and after which time.
    fn decide(&self) -> (&'static str, Duration) {
        let (ok, unavailable, broken) = (
            "200 OK",
            "503 Service Unavailable",
            "500 Internal Server Error",
        );
        let between = |from: u64, to: u64| Duration::from_millis(fastrand::u64(from..=to));
        let is_payments = self.name == NAMES[PAYMENTS];
        match *self.mood.borrow() {
            Mood::Well if is_payments && fastrand::u32(..50) == 0 => (unavailable, between(2, 6)),
            Mood::Well => (ok, between(8, 28)),
            Mood::Slow if fastrand::u32(..6) == 0 => (ok, between(1_100, 1_900)),
            Mood::Slow => (ok, between(20, 100)),
            Mood::Failing if fastrand::u32(..10) < 7 => (broken, between(4_000, 8_000)),
            Mood::Failing => (broken, between(2, 10)),
            Mood::Cold => (ok, between(60, 140)),
        }
    }
}
