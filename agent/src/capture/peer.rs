//! The proxy as capture has it: the socket where it comes, and the connection
//! with it.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::Path;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, bind, listen, sendmsg, socket_with,
};
use tracing::error;
use weir_resilience::Time;

use super::pod::Gifts;
use super::wire::MAX_FDS;

/// Listens where the proxy connects. `proxy`: the only user that may.
pub(super) fn listen_at(path: &Path, proxy: Option<u32>) -> io::Result<OwnedFd> {
    if std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket()) {
        // Of one that ended: its name outlives it.
        std::fs::remove_file(path)?;
    }
    let listener = socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    bind(&listener, &SocketAddrUnix::new(path)?)?;
    let mut mode = 0o600;
    if let Some(user) = proxy
        && std::os::unix::fs::chown(path, Some(user), None).is_err()
    {
        // Without CAP_CHOWN. Who connects is asked of the kernel.
        mode = 0o666;
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    listen(&listener, 4)?;
    Ok(listener)
}

/// A proxy that is connected.
pub(super) struct Proxy {
    pub(super) socket: OwnedFd,
    /// Its last beat. It is not watched before the first.
    pub(super) beaten: Option<Time>,
    pub(super) hangs: bool,
    /// The answer that it has not made room for. There is at most one:
    /// nothing further is read until it is sent.
    pub(super) unsent: Option<Unsent>,
}

/// An answer that waits for room.
pub(super) struct Unsent {
    pub(super) bytes: Vec<u8>,
    pub(super) gifts: Gifts,
    pub(super) since: Time,
}

impl Proxy {
    pub(super) fn new(socket: OwnedFd) -> Proxy {
        Proxy {
            socket,
            beaten: None,
            hangs: false,
            unsent: None,
        }
    }

    /// Sends an answer and what comes with it, now or when there is room.
    pub(super) fn send(
        &mut self,
        bytes: Vec<u8>,
        gifts: Gifts,
        since: Time,
    ) -> Result<(), &'static str> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut beside = SendAncillaryBuffer::new(&mut space);
        let descriptors: Vec<_> = gifts.iter().map(|(_, gift)| gift.as_fd()).collect();
        if !descriptors.is_empty() {
            beside.push(SendAncillaryMessage::ScmRights(&descriptors));
        }
        let parts = [IoSlice::new(&bytes)];
        match sendmsg(
            &self.socket,
            &parts,
            &mut beside,
            SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
        ) {
            Ok(_) => {}
            Err(Errno::AGAIN | Errno::INTR) => {
                self.unsent = Some(Unsent {
                    bytes,
                    gifts,
                    since,
                });
            }
            Err(Errno::PIPE | Errno::CONNRESET) => return Err("it has ended"),
            Err(reason) => {
                error!(%reason, "cannot answer the proxy");
                return Err("it cannot be answered");
            }
        }
        Ok(())
    }
}
