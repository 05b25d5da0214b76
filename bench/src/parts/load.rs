//! The load: callers that each hold one HTTP/1.1 connection and never send before they have had their answer.
//!
//! Without a rate the loop is closed: an answered caller asks again at once, and what is measured is how much the proxy can do.
//! With a rate it is open: requests fall due at random moments (as from many independent callers) whether or not
//! earlier ones are answered, and a latency counts from the moment a request was due, so that waiting for a free
//! connection is part of it.

use std::{collections::VecDeque, io, net::SocketAddr, num::NonZeroU64, time::Duration};

use anyhow::{Context as _, bail};
use clap::Args;
use rustix::thread::set_current_timer_slack;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{
    connection::Connection,
    epoll::{Interest, Poller},
};
use crate::{
    histogram::Histogram,
    procfs::{self, CpuTime, CpuUse},
};

/// How long answers are waited for once the window is over.
const DRAIN: Duration = Duration::from_secs(1);
/// The same arrivals for every proxy in every round.
const SEED: u64 = 0x5745_4952;

/// What to load, how, and whose CPU time to read at both ends of the window.
#[derive(Args, Clone, Debug)]
pub(crate) struct LoadArgs {
    /// The proxy's address
    #[arg(long)]
    pub(crate) target: SocketAddr,
    /// The proxy's process
    #[arg(long)]
    pub(crate) pid: u32,
    #[arg(long)]
    pub(crate) connections: u16,
    /// Seconds before the window, not measured
    #[arg(long)]
    pub(crate) warmup: f64,
    /// Seconds of the window
    #[arg(long)]
    pub(crate) seconds: f64,
    /// Requests per second; without it, as many as are answered
    #[arg(long)]
    pub(crate) rate: Option<f64>,
}

/// What happened in the window.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct LoadResult {
    /// Requests that fell due in the window.
    pub(crate) due: u64,
    /// Requests answered in the window.
    pub(crate) served: u64,
    /// The window's length as it was.
    pub(crate) seconds: f64,
    /// What the proxy used.
    pub(crate) cpu: CpuUse,
    /// The proxy's resident memory at the window's end.
    pub(crate) resident_bytes: u64,
    /// Latencies, with a rate.
    pub(crate) p50_ns: Option<u64>,
    pub(crate) p99_ns: Option<u64>,
    pub(crate) p999_ns: Option<u64>,
}

impl LoadResult {
    /// Whether the proxy kept up with what was due.
    pub(crate) fn carried(&self) -> bool {
        self.served as f64 >= 0.99 * self.due as f64
    }
}

/// Loads the proxy and tells what happened. Any answer but 200 and any lost connection ends it with an error: figures
/// of a proxy that refuses compare nothing.
pub(crate) fn run(args: &LoadArgs) -> anyhow::Result<LoadResult> {
    // By default the kernel may wake a sleeper 50 µs late, more than what is measured here.
    set_current_timer_slack(NonZeroU64::new(1)).context("cannot ask for exact timers")?;
    let mut callers = Callers::connect(args)?;
    match args.rate {
        None => closed(args, &mut callers),
        Some(rate) => open(args, &mut callers, rate),
    }
}

struct Callers {
    poller: Poller,
    connections: Vec<Connection>,
    ready: Vec<usize>,
}

impl Callers {
    fn connect(args: &LoadArgs) -> anyhow::Result<Self> {
        let poller = Poller::new()?;
        let connections = (0..usize::from(args.connections))
            .map(|token| {
                let connection = Connection::open(args.target)?;
                poller.add(connection.socket(), token, Interest::Read)?;
                Ok(connection)
            })
            .collect::<io::Result<Vec<_>>>()
            .with_context(|| format!("cannot connect to {}", args.target))?;
        Ok(Self {
            poller,
            connections,
            ready: Vec::new(),
        })
    }

    /// Waits, and calls `answered` for every connection whose answer is complete.
    fn poll(
        &mut self,
        timeout: Duration,
        mut answered: impl FnMut(usize, &mut Connection) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        self.ready.clear();
        self.ready.extend(self.poller.wait(Some(timeout))?);
        for &token in &self.ready {
            let connection = &mut self.connections[token];
            if connection.receive()? {
                answered(token, connection)?;
            }
        }
        Ok(())
    }
}

/// The proxy's figures at one end of the window.
struct Mark {
    at: Instant,
    cpu: CpuTime,
}

impl Mark {
    fn now(pid: u32) -> anyhow::Result<Self> {
        let cpu =
            CpuTime::of(pid).context("cannot read the proxy's CPU time: it may have ended")?;
        Ok(Self {
            at: Instant::now(),
            cpu,
        })
    }
}

fn closed(args: &LoadArgs, callers: &mut Callers) -> anyhow::Result<LoadResult> {
    for connection in &mut callers.connections {
        connection.send()?;
    }
    let mut serve = |until: Instant| -> anyhow::Result<u64> {
        let mut served = 0;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(served);
            }
            callers.poll(left, |_, connection| {
                served += 1;
                connection.send()
            })?;
        }
    };
    serve(Instant::now() + Duration::from_secs_f64(args.warmup))?;
    let start = Mark::now(args.pid)?;
    let served = serve(start.at + Duration::from_secs_f64(args.seconds))?;
    let end = Mark::now(args.pid)?;
    if served == 0 {
        bail!("not one answer in {} s", args.seconds);
    }
    Ok(LoadResult {
        due: served,
        served,
        seconds: (end.at - start.at).as_secs_f64(),
        cpu: end.cpu.since(start.cpu),
        resident_bytes: procfs::resident_bytes(args.pid)?,
        p50_ns: None,
        p99_ns: None,
        p999_ns: None,
    })
}

/// Moments at which requests fall due, in nanoseconds from the start: exponential gaps, so that arrivals are
/// independent of each other.
struct Schedule {
    next_ns: f64,
    mean_gap_ns: f64,
    random: fastrand::Rng,
}

impl Schedule {
    fn new(rate: f64) -> Self {
        Self {
            next_ns: 0.0,
            mean_gap_ns: 1e9 / rate,
            random: fastrand::Rng::with_seed(SEED),
        }
    }

    fn due_ns(&self) -> u64 {
        self.next_ns as u64
    }

    fn advance(&mut self) {
        // 1 - [0, 1) is never 0, whose logarithm is none.
        self.next_ns -= self.mean_gap_ns * (1.0 - self.random.f64()).ln();
    }
}

fn open(args: &LoadArgs, callers: &mut Callers, rate: f64) -> anyhow::Result<LoadResult> {
    let nanos = |seconds: f64| Duration::from_secs_f64(seconds).as_nanos() as u64;
    let window = nanos(args.warmup)..nanos(args.warmup + args.seconds);
    let mut schedule = Schedule::new(rate);
    let mut latencies = Histogram::new();
    // First in, first out: every connection is used, none falls asleep.
    let mut idle: VecDeque<usize> = (0..callers.connections.len()).collect();
    // When the request under way on each connection was due.
    let mut due_ns = vec![0; callers.connections.len()];
    let (mut due, mut served) = (0, 0);
    let mut start = None;

    let begin = Instant::now();
    let elapsed = || begin.elapsed().as_nanos() as u64;
    loop {
        let now = elapsed();
        if start.is_none() && now >= window.start {
            start = Some(Mark::now(args.pid)?);
        }
        if now >= window.end {
            break;
        }
        while schedule.due_ns() <= now.min(window.end - 1)
            && let Some(token) = idle.pop_front()
        {
            due_ns[token] = schedule.due_ns();
            due += u64::from(window.contains(&due_ns[token]));
            callers.connections[token].send()?;
            schedule.advance();
        }
        // Without an idle connection only an answer can help, and it wakes the loop.
        let until = if idle.is_empty() {
            window.end
        } else {
            schedule.due_ns().min(window.end)
        };
        callers.poll(
            Duration::from_nanos(until.saturating_sub(elapsed())),
            |token, _| {
                let now = elapsed();
                served += u64::from(window.contains(&now));
                if window.contains(&due_ns[token]) {
                    latencies.record(now - due_ns[token]);
                }
                idle.push_back(token);
                Ok(())
            },
        )?;
    }
    let end = Mark::now(args.pid)?;
    let Some(start) = start else {
        bail!("the window is empty")
    };
    let resident_bytes = procfs::resident_bytes(args.pid)?;

    // What was due and never sent has waited at least until now; leaving it out would flatter the slow.
    while schedule.due_ns() < window.end {
        if window.contains(&schedule.due_ns()) {
            due += 1;
            latencies.record(window.end - schedule.due_ns());
        }
        schedule.advance();
    }
    let drained = window.end + DRAIN.as_nanos() as u64;
    while idle.len() < callers.connections.len() && elapsed() < drained {
        callers.poll(
            Duration::from_nanos(drained.saturating_sub(elapsed())),
            |token, _| {
                latencies.record(elapsed() - due_ns[token]);
                idle.push_back(token);
                Ok(())
            },
        )?;
    }
    if idle.len() < callers.connections.len() {
        bail!(
            "{} requests had no answer {DRAIN:?} after the last was sent",
            callers.connections.len() - idle.len()
        );
    }
    Ok(LoadResult {
        due,
        served,
        seconds: (end.at - start.at).as_secs_f64(),
        cpu: end.cpu.since(start.cpu),
        resident_bytes,
        p50_ns: latencies.quantile(0.5),
        p99_ns: latencies.quantile(0.99),
        p999_ns: latencies.quantile(0.999),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_come_at_the_rate_asked_for_and_are_the_same_each_time() {
        let mut moments = Vec::new();
        for _ in 0..2 {
            let mut schedule = Schedule::new(10_000.0);
            for _ in 0..100_000 {
                schedule.advance();
            }
            moments.push(schedule.due_ns());
        }
        assert_eq!(moments[0], moments[1]);
        let seconds = moments[0] as f64 / 1e9;
        assert!(
            (seconds - 10.0).abs() < 0.1,
            "100,000 requests took {seconds} s"
        );
    }

    #[test]
    fn a_proxy_that_answers_less_than_99_of_100_due_has_not_carried_the_rate() {
        let mut result = crate::summary::tests::load(990, 1, None);
        result.due = 1_000;
        assert!(result.carried());
        result.due = 1_001;
        assert!(!result.carried());
    }
}
