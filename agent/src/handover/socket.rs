//! Unix sockets in a directory that all agents of a node see: one a process,
//! under a name of its own. What is sent is framed by its length.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::process::geteuid;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};

use super::message::MAX_BYTES;

/// How the sockets' names end.
const ENDING: &str = "sock";
/// Names in the directory that are looked at.
const MAX_NAMES: usize = 256;

/// Makes a directory for the sockets of agents that run as `user`, and gives it
/// to them: to the user where that is allowed, else to the group of the same
/// number, of which this process has to be a member.
///
/// # Errors
/// When it cannot be made or given away.
pub fn prepare(directory: &Path, user: Option<u32>) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)?;
    let Some(user) = user else { return Ok(()) };
    let mut mode = 0o700;
    if chown(directory, Some(user), None).is_err() {
        // Without CAP_CHOWN.
        chown(directory, None, Some(user))?;
        mode = 0o770;
    }
    // Of an owner that has been given away only root may, and of one's own anybody.
    fs::set_permissions(directory, fs::Permissions::from_mode(mode))
}

/// Where this process listens; the name goes with the value.
pub(super) struct Listener {
    listener: UnixListener,
    path: PathBuf,
}

impl Listener {
    /// Under a name that no other has.
    pub(super) fn bind(directory: &Path) -> io::Result<Listener> {
        let name = format!("{:016x}", fastrand::u64(..));
        let (fresh, path) = (
            directory.join(&name).with_extension("new"),
            directory.join(&name).with_extension(ENDING),
        );
        // Others take a name that nobody listens at for one of the dead: it gets its
        // name once somebody does.
        let listener = UnixListener::bind(&fresh)?;
        let named = fs::set_permissions(&fresh, fs::Permissions::from_mode(0o600))
            .and_then(|()| fs::rename(&fresh, &path));
        if let Err(error) = named {
            let _ = fs::remove_file(&fresh);
            return Err(error);
        }
        Ok(Listener { listener, path })
    }

    /// The next of the same user.
    pub(super) async fn accept(&self) -> io::Result<UnixStream> {
        loop {
            let (stream, _) = self.listener.accept().await?;
            if is_of_this_user(&stream) {
                return Ok(stream);
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Connects to up to `most` others, the newest first. Names of processes that
/// have ended are removed.
pub(super) async fn others(directory: &Path, most: usize) -> Vec<UnixStream> {
    let mut connected = Vec::new();
    for path in names(directory) {
        if connected.len() == most {
            break;
        }
        match UnixStream::connect(&path).await {
            Ok(stream) if is_of_this_user(&stream) => connected.push(stream),
            Ok(_) => tracing::warn!(path = %path.display(), "not of this agent's user: not asked"),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                let _ = fs::remove_file(&path);
            }
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "another agent cannot be asked");
            }
        }
    }
    connected
}

/// The sockets in a directory, the newest first.
fn names(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else {
        // It may not be there yet: then there is nobody to ask.
        return Vec::new();
    };
    let mut names: Vec<(SystemTime, PathBuf)> = entries
        .take(MAX_NAMES)
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let metadata = fs::symlink_metadata(&path).ok()?;
            let is_ours = metadata.file_type().is_socket() && path.extension()? == ENDING;
            is_ours.then(|| Some((metadata.modified().ok()?, path)))?
        })
        .collect();
    names.sort();
    names.into_iter().rev().map(|(_, path)| path).collect()
}

fn is_of_this_user(stream: &UnixStream) -> bool {
    let user = geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == user)
}

/// One frame.
pub(super) async fn read(stream: &mut UnixStream) -> io::Result<Vec<u8>> {
    let length = stream.read_u32().await?;
    if length as usize > MAX_BYTES {
        let error = format!("a message of {length} bytes is larger than {MAX_BYTES}");
        return Err(io::Error::new(io::ErrorKind::InvalidData, error));
    }
    let mut frame = Vec::new();
    let read = stream.take(length.into()).read_to_end(&mut frame).await?;
    if read < length as usize {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(frame)
}

/// The same on the other side.
pub(super) async fn write(stream: &mut UnixStream, frame: &[u8]) -> io::Result<()> {
    // A frame is no longer than MAX_BYTES.
    let length = u32::try_from(frame.len()).map_err(io::Error::other)?;
    stream.write_u32(length).await?;
    stream.write_all(frame).await
}
