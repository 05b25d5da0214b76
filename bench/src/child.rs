//! The processes of a measurement: started on their core, watched, ended when dropped.

use std::{
    ffi::OsString,
    fs::{self, File},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, bail};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    process::{Child as Process, Command},
    time::{Instant, sleep, timeout},
};

/// How long a proxy may take until it first answers.
const START_LIMIT: Duration = Duration::from_secs(10);
/// Lines of a failed process's output that are shown.
const SHOWN_LINES: usize = 12;
const PROBE: &[u8] = b"GET /ready HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n";

/// A process that is killed when this is dropped, and by the kernel should this process die first.
#[derive(Debug)]
pub(crate) struct Child {
    name: String,
    process: Process,
    /// Where its error output goes, and its standard output unless that is read.
    log: PathBuf,
}

/// A command to be run on one core.
pub(crate) fn pinned(cpu: usize, command: &[OsString]) -> anyhow::Result<Command> {
    let mut pinned = own()?;
    pinned
        .args(["exec", "--cpu"])
        .arg(cpu.to_string())
        .arg("--")
        .args(command)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    Ok(pinned)
}

/// This program itself, for its parts.
pub(crate) fn own_path() -> anyhow::Result<PathBuf> {
    std::env::current_exe().context("cannot tell where this program lies")
}

fn own() -> anyhow::Result<Command> {
    Ok(Command::new(own_path()?))
}

impl Child {
    /// Starts a proxy in `dir`; what it prints goes to a file there.
    pub(crate) fn start(
        name: &str,
        cpu: usize,
        command: &[OsString],
        dir: &Path,
    ) -> anyhow::Result<Self> {
        let log = dir.join(format!("{name}.log"));
        let out = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let process = pinned(cpu, command)?
            .current_dir(dir)
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        Ok(Self {
            name: name.to_owned(),
            process,
            log,
        })
    }

    /// Starts one of this program's parts that listens, and waits until it says where.
    pub(crate) async fn start_part(
        name: &str,
        cpu: usize,
        command: &[OsString],
        dir: &Path,
    ) -> anyhow::Result<(Self, SocketAddr)> {
        let log = dir.join(format!("{name}.log"));
        let mut process = pinned(cpu, command)?
            .stdout(Stdio::piped())
            .stderr(File::create(&log)?)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let stdout = process.stdout.take().context("no standard output")?;
        let mut line = String::new();
        timeout(START_LIMIT, BufReader::new(stdout).read_line(&mut line))
            .await
            .with_context(|| format!("{name} does not say where it listens"))??;
        let child = Self {
            name: name.to_owned(),
            process,
            log,
        };
        let address = line
            .trim()
            .parse()
            .map_err(|_| child.failure("did not start"))?;
        Ok((child, address))
    }

    /// The process id, as long as it runs.
    pub(crate) fn pid(&self) -> anyhow::Result<u32> {
        self.process
            .id()
            .with_context(|| format!("{} has ended", self.name))
    }

    /// Waits until a request to `address` is answered with 200.
    pub(crate) async fn ready(&mut self, address: SocketAddr) -> anyhow::Result<()> {
        let deadline = Instant::now() + START_LIMIT;
        loop {
            if let Ok(Some(true)) = timeout(Duration::from_secs(1), answers(address))
                .await
                .map(Result::ok)
            {
                return Ok(());
            }
            self.check()?;
            if Instant::now() > deadline {
                return Err(self.failure(&format!(
                    "does not answer 200 on {address} within {START_LIMIT:?}"
                )));
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Fails if the process has ended, with its last words.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        match self.process.try_wait()? {
            Some(status) => Err(self.failure(&format!("ended by itself ({status})"))),
            None => Ok(()),
        }
    }

    /// Ends the process and waits for it.
    pub(crate) async fn end(mut self) -> anyhow::Result<()> {
        self.process
            .kill()
            .await
            .with_context(|| format!("cannot end {}", self.name))
    }

    fn failure(&self, what: &str) -> anyhow::Error {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n  ");
        anyhow::anyhow!("{} {what}; its last words:\n  {tail}", self.name)
    }
}

async fn answers(address: SocketAddr) -> anyhow::Result<bool> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(PROBE).await?;
    let mut head = [0; 12];
    stream.read_exact(&mut head).await?;
    Ok(head == *b"HTTP/1.1 200")
}

/// So many addresses on loopback that nothing listens on now.
pub(crate) fn free_addresses<const N: usize>() -> anyhow::Result<[SocketAddr; N]> {
    // All are held until all are known, so that no two are the same.
    let mut held = Vec::with_capacity(N);
    for _ in 0..N {
        held.push(std::net::TcpListener::bind("127.0.0.1:0").context("no free port on 127.0.0.1")?);
    }
    let addresses = held
        .iter()
        .map(std::net::TcpListener::local_addr)
        .collect::<Result<Vec<_>, _>>()?;
    match addresses.try_into() {
        Ok(addresses) => Ok(addresses),
        Err(_) => bail!("fewer addresses than asked for"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_addresses_differ() {
        let [a, b, c] = free_addresses::<3>().unwrap();
        assert!(a != b && b != c && a != c);
    }
}
