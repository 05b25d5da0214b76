//! A way for this machine's programs to what listens on loopback in a network of its own.

use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::thread::{self, JoinHandle};

use anyhow::{Context as _, Result};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

/// Passes connections on until it is dropped.
///
/// It is a thread that has moved into the other network: its listeners, made before, are still here, and the
/// connections that it makes are there.
pub(crate) struct Forwarder {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Forwarder {
    /// Each of these addresses leads to the same address in the network that the file stands for.
    pub(crate) fn start(addresses: &[SocketAddr], network: &Path) -> Result<Forwarder> {
        let mut listeners = Vec::new();
        for address in addresses {
            let listener = TcpListener::bind(address)
                .with_context(|| format!("cannot listen on {address}"))?;
            listener.set_nonblocking(true)?;
            listeners.push((*address, listener));
        }
        let network =
            File::open(network).with_context(|| format!("no network {}", network.display()))?;
        let (stop, stopped) = oneshot::channel();
        let (tell, told) = std::sync::mpsc::channel();
        let thread = thread::Builder::new().name("forwarder".to_owned());
        let thread = thread.spawn(move || {
            let ready = || -> Result<_> {
                move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))?;
                let runtime = tokio::runtime::Builder::new_current_thread();
                let runtime = { runtime }.enable_io().build()?;
                let enter = runtime.enter();
                let listeners = listeners
                    .into_iter()
                    .map(|(to, listener)| Ok((to, tokio::net::TcpListener::from_std(listener)?)))
                    .collect::<std::io::Result<Vec<_>>>()?;
                drop(enter);
                Ok((runtime, listeners))
            };
            match ready() {
                Ok((runtime, listeners)) => {
                    // Nobody listens only if the start was given up.
                    let _ = tell.send(Ok(()));
                    runtime.block_on(forward(listeners, stopped));
                }
                Err(error) => drop(tell.send(Err(error))),
            }
        })?;
        told.recv().context("the forwarder's thread panicked")??;
        Ok(Forwarder {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        drop(self.stop.take());
        if self
            .thread
            .take()
            .is_some_and(|thread| thread.join().is_err())
        {
            println!("the forwarder's thread panicked");
        }
    }
}

async fn forward(
    listeners: Vec<(SocketAddr, tokio::net::TcpListener)>,
    stopped: oneshot::Receiver<()>,
) {
    let mut accepting = JoinSet::new();
    for (to, listener) in listeners {
        accepting.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut caller, _)) = listener.accept().await {
                connections.spawn(async move {
                    if let Ok(mut server) = TcpStream::connect(to).await {
                        // How it ends, both ends see.
                        let _ = copy_bidirectional(&mut caller, &mut server).await;
                    }
                });
                while connections.try_join_next().is_some() {}
            }
        });
    }
    // Dropped or told, it is the same.
    let _ = stopped.await;
}
