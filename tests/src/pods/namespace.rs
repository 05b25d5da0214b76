//! One network namespace: made, entered, and gone with its value.

use std::fs::{self, File};
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::thread;

use anyhow::{Context as _, Result, bail};
use rustix::mount::{UnmountFlags, mount_bind, unmount};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};
use tempfile::TempDir;

/// A network namespace with a name in the file system, as container runtimes
/// make them: whoever opens [`Namespace::path`] can enter it.
///
/// Dropping the value takes the name away. The namespace itself ends with the
/// last process, thread and open socket in it.
#[derive(Debug)]
pub struct Namespace {
    path: PathBuf,
    /// The directory above outlives every name in it.
    _home: Arc<TempDir>,
}

impl Namespace {
    /// Makes one, with loopback up, and `sysctls` (below /proc/sys/net) set.
    pub(super) fn new(
        path: PathBuf,
        home: &Arc<TempDir>,
        sysctls: &[(&str, &str)],
    ) -> Result<Namespace> {
        File::create_new(&path).with_context(|| path.display().to_string())?;
        let namespace = Namespace {
            path,
            _home: home.clone(),
        };
        on_a_thread(|| -> Result<()> {
            // Deprecated because it is unsound for file descriptors; it is not for networks.
            #[allow(deprecated)]
            rustix::thread::unshare(UnshareFlags::NEWNET).context("no new network namespace")?;
            mount_bind("/proc/thread-self/ns/net", &namespace.path)?;
            for (name, value) in sysctls {
                let name = Path::new("/proc/sys/net").join(name);
                fs::write(&name, value).with_context(|| name.display().to_string())?;
            }
            Ok(())
        })?;
        Ok(namespace)
    }

    /// Its name in the file system.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `work` in it, on a thread that ends with `work`. The threads and
    /// processes that it starts and the sockets that it makes stay in the
    /// namespace.
    ///
    /// # Errors
    /// When the namespace cannot be entered, and what `work` says.
    ///
    /// # Panics
    /// When `work` does.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let namespace = File::open(&self.path).with_context(|| self.path.display().to_string())?;
        on_a_thread(move || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            work()
        })
    }

    /// Listens in it: a socket keeps its namespace wherever it is used.
    ///
    /// # Errors
    /// When the address is not free.
    pub fn listen(&self, address: SocketAddr) -> Result<TcpListener> {
        self.enter(|| TcpListener::bind(address).with_context(|| format!("bind {address}")))
    }

    /// Connects from it; the error says why not, as the caller would see it.
    ///
    /// # Errors
    /// When the namespace cannot be entered; why there is no connection is the inner error.
    pub fn connect(&self, address: SocketAddr) -> Result<io::Result<TcpStream>> {
        self.enter(|| Ok(TcpStream::connect(address)))
    }

    /// Starts a program in it.
    ///
    /// # Errors
    /// When there is no such program.
    pub fn spawn(&self, command: &mut Command) -> Result<Child> {
        self.enter(|| {
            let program = command.get_program().to_owned();
            command
                .spawn()
                .with_context(|| format!("cannot run {}", program.display()))
        })
    }

    /// Runs a program in it to its end, with `input`. Its standard output.
    ///
    /// # Errors
    /// When there is no such program, and when it fails: with what it wrote.
    pub fn run(&self, program: &str, arguments: &[&str], input: &str) -> Result<String> {
        self.start(program, arguments, input)?.answer()
    }

    fn start(&self, program: &str, arguments: &[&str], input: &str) -> Result<Running> {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = self.spawn(&mut command)?;
        if let Some(mut stdin) = child.stdin.take() {
            // A program that fails early does not read all of it.
            let _ = io::Write::write_all(&mut stdin, input.as_bytes());
        }
        Ok(Running {
            child,
            what: format!("{program} {}\n{input}", arguments.join(" ")),
        })
    }

    /// Lines for `ip`, such as `addr add 10.0.0.1/32 dev eth0`.
    ///
    /// # Errors
    /// When one of them fails.
    pub fn ip(&self, lines: &str) -> Result<()> {
        self.run("ip", &["-batch", "-"], lines).map(drop)
    }

    /// A script for `nft`: all of it or nothing.
    ///
    /// # Errors
    /// When nft refuses it.
    pub fn nft(&self, script: &str) -> Result<()> {
        self.run("nft", &["-f", "-"], script).map(drop)
    }

    /// Calls `url` with curl, on a connection of its own. The body.
    ///
    /// # Errors
    /// When there is no answer, or one of 400 or above.
    pub fn curl(&self, url: &str) -> Result<String> {
        self.start_curl(url)?.answer()
    }

    /// The same, without waiting for the answer.
    ///
    /// # Errors
    /// When there is no curl.
    pub fn start_curl(&self, url: &str) -> Result<Running> {
        let quiet = ["--silent", "--show-error", "--fail", "--noproxy", "*"];
        let patience = ["--max-time", "20"];
        let curl = std::env::var("WEIR_CURL");
        let curl = curl.as_deref().unwrap_or("curl");
        self.start(curl, &[&quiet[..], &patience, &[url]].concat(), "")
    }
}

/// A program that runs in a namespace.
pub struct Running {
    child: Child,
    what: String,
}

impl Running {
    /// Waits for its end. Its standard output.
    ///
    /// # Errors
    /// When it fails: with what it wrote.
    pub fn answer(self) -> Result<String> {
        let Output {
            status,
            stdout,
            stderr,
        } = self.child.wait_with_output()?;
        if !status.success() {
            let why = String::from_utf8_lossy(&stderr);
            bail!("{}: {status}: {why}", self.what.trim());
        }
        Ok(String::from_utf8(stdout)?)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

/// Takes a name away. Lazily: somebody may be looking at it.
pub(super) fn remove(path: &Path) {
    let _ = unmount(path, UnmountFlags::DETACH);
    let _ = fs::remove_file(path);
}

/// A namespace belongs to a thread; this one must not be anybody else's.
fn on_a_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let ended = thread::scope(|scope| scope.spawn(work).join());
    ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
