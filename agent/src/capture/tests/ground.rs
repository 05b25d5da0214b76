//! What the tests stand on: a node and a pod as network namespaces with a cable
//! between them, and capture on the node.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use socket2::SockRef;
use tempfile::TempDir;
use tokio::time::Instant;

use super::proxy::Proxy;
use crate::capture::{Config, Error, run};

/// Longer than anything here takes.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// The pod's addresses; the node's; and what stands for a service, on the node.
pub(super) const POD: [&str; 2] = ["10.91.0.2", "fd91::2"];
pub(super) const NODE: [&str; 2] = ["10.91.0.1", "fd91::1"];
pub(super) const SERVICE: [&str; 2] = ["10.91.0.80", "fd91::80"];

/// A network namespace with a name, gone when this is dropped.
pub(super) struct Namespace {
    pub(super) name: String,
}

impl Namespace {
    fn make() -> io::Result<Namespace> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let number = MADE.fetch_add(1, Relaxed);
        let name = format!("weir-capture-{}-{number}", std::process::id());
        ip(&format!("netns add {name}"))?;
        let namespace = Namespace { name };
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    pub(super) fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    pub(super) fn ip(&self, arguments: &str) -> io::Result<()> {
        ip(&format!("-n {} {arguments}", self.name))
    }

    /// Does something on a thread that is in the namespace.
    pub(super) fn inside<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let file = File::open(self.path()).unwrap();
        std::thread::spawn(move || {
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            work()
        })
    }

    pub(super) fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let stream = self
            .inside(move || TcpStream::connect_timeout(&to, PATIENCE))
            .join()
            .unwrap()?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(stream)
    }

    pub(super) fn listen(&self, at: SocketAddr) -> Server {
        let listener = self
            .inside(move || TcpListener::bind(at).unwrap())
            .join()
            .unwrap();
        Server { listener }
    }

    /// What a command says there.
    pub(super) fn says(&self, command: &str) -> String {
        let mut words = command.split(' ');
        let output = Command::new("ip")
            .args(["netns", "exec", &self.name])
            .args(words.by_ref())
            .output()
            .unwrap();
        format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        )
    }

    pub(super) fn rules(&self) -> String {
        self.says("nft list ruleset")
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = ip(&format!("netns delete {}", self.name));
    }
}

fn ip(arguments: &str) -> io::Result<()> {
    let ended = Command::new("ip").args(arguments.split(' ')).output()?;
    if ended.status.success() {
        return Ok(());
    }
    let error = String::from_utf8_lossy(&ended.stderr);
    Err(io::Error::other(format!("ip {arguments}: {error}")))
}

/// A server of the test's: sockets made elsewhere are accepted here.
pub(super) struct Server {
    pub(super) listener: TcpListener,
}

impl Server {
    /// The next connection and where it comes from.
    pub(super) fn accept(&self) -> (TcpStream, SocketAddr) {
        self.listener.set_nonblocking(true).unwrap();
        let (stream, from) = eventually("a connection", || self.listener.accept().ok());
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        (stream, from)
    }

    /// Whether nobody is waiting to be accepted.
    pub(super) fn is_quiet(&self) -> bool {
        self.listener.set_nonblocking(true).unwrap();
        self.listener.accept().is_err()
    }
}

impl From<OwnedFd> for Server {
    fn from(listener: OwnedFd) -> Server {
        Server {
            listener: listener.into(),
        }
    }
}

/// The destination of a connection before it was redirected.
pub(super) fn original(stream: &TcpStream) -> SocketAddr {
    let socket = SockRef::from(stream);
    let original = if stream.local_addr().unwrap().is_ipv4() {
        socket.original_dst_v4()
    } else {
        socket.original_dst_v6()
    };
    original.unwrap().as_socket().unwrap()
}

/// Bytes go from one end to the other, and back.
pub(super) fn talk(mut one: &TcpStream, mut other: &TcpStream) {
    let mut heard = [0; 4];
    one.write_all(b"ping").unwrap();
    other.read_exact(&mut heard).unwrap();
    other.write_all(b"pong").unwrap();
    one.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"pong");
}

/// Asks again and again until there is something.
#[allow(clippy::disallowed_methods)] // no runtime here that it could block
pub(super) fn eventually<T>(what: &str, mut there: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(there) = there() {
            return there;
        }
        assert!(Instant::now() < until, "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub(super) fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse::<IpAddr>().unwrap(), port)
}

/// A node and a pod.
pub(super) struct Ground {
    pub(super) node: Namespace,
    pub(super) pod: Namespace,
    /// Where capture looks for namespaces, and its socket.
    pub(super) directory: TempDir,
}

impl Ground {
    /// None without the rights, unless this is CI: then it has been said.
    pub(super) fn make() -> Option<Ground> {
        let node = match Namespace::make() {
            Ok(node) => node,
            Err(error) if std::env::var_os("CI").is_some() => {
                panic!("no network namespace: {error}; run as root")
            }
            Err(error) => {
                println!("NOT RUN: no network namespace: {error}; run as root");
                return None;
            }
        };
        let ground = Ground {
            pod: Namespace::make().unwrap(),
            node,
            directory: tempfile::tempdir().unwrap(),
        };
        ground.show(&ground.node);
        ground.show(&ground.pod);
        let pod = &ground.pod.name;
        ground
            .node
            .ip(&format!(
                "link add eth0 type veth peer name eth0 netns {pod}"
            ))
            .unwrap();
        for (namespace, addresses) in [
            (&ground.node, vec![NODE, SERVICE]),
            (&ground.pod, vec![POD]),
        ] {
            for [v4, v6] in addresses {
                namespace.ip(&format!("addr add {v4}/24 dev eth0")).unwrap();
                namespace
                    .ip(&format!("addr add {v6}/64 dev eth0 nodad"))
                    .unwrap();
            }
            namespace.ip("link set eth0 up").unwrap();
        }
        Some(ground)
    }

    /// Another pod, without a cable, at an address.
    pub(super) fn another_pod(&self, address: &str) -> Namespace {
        let pod = Namespace::make().unwrap();
        pod.ip("link add eth0 type veth peer name other").unwrap();
        pod.ip(&format!("addr add {address}/24 dev eth0")).unwrap();
        self.show(&pod);
        pod
    }

    /// Lets capture find it.
    fn show(&self, namespace: &Namespace) {
        let link = self.directory.path().join(&namespace.name);
        std::os::unix::fs::symlink(namespace.path(), link).unwrap();
    }

    pub(super) fn config(&self) -> Config {
        Config {
            socket: self.directory.path().join("capture.sock"),
            proxy_uid: None,
            namespaces: vec![self.directory.path().to_owned()],
            instance: "test".to_owned(),
            beat_timeout: Duration::from_millis(300),
        }
    }

    /// Runs capture on the node.
    pub(super) fn capture(&self) -> Running {
        self.capture_as(self.config())
    }

    pub(super) fn capture_as(&self, config: Config) -> Running {
        let (stop, stopped) = UnixStream::pair().unwrap();
        let socket = config.socket.clone();
        let thread = self.node.inside(move || run(config, stopped));
        Running {
            stop: Some(stop),
            thread: Some(thread),
            socket,
        }
    }
}

/// Capture on a thread of the test's.
pub(super) struct Running {
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<Result<(), Error>>>,
    socket: PathBuf,
}

impl Running {
    pub(super) fn proxy(&self) -> Proxy {
        Proxy::connect(&self.socket)
    }

    /// Stops it when the proxy has ended.
    pub(super) fn stop(mut self) {
        self.stop = None;
        self.thread.take().unwrap().join().unwrap().unwrap();
    }
}
