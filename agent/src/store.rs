//! The last good configuration on disk, so that an agent that starts enforces
//! it before its first request, control plane or not.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use prost::Message;
use weir_proto::v1alpha1 as proto;

/// The largest file that is read back.
const MAX_BYTES: u64 = 256 * 1024 * 1024;

/// A directory of the agent's own, readable by nobody else.
pub(crate) struct Store {
    file: PathBuf,
}

impl Store {
    /// Uses `directory`, made if it is not there.
    pub(crate) fn open(directory: &Path) -> io::Result<Store> {
        fs::create_dir_all(directory)?;
        fs::set_permissions(directory, fs::Permissions::from_mode(0o700))?;
        Ok(Store {
            file: directory.join("last-good.pb"),
        })
    }

    /// What was in force when it was last saved; nothing where there is no
    /// file.
    pub(crate) fn load(&self) -> io::Result<Vec<proto::Resource>> {
        let file = match fs::File::open(&self.file) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut data = Vec::new();
        file.take(MAX_BYTES).read_to_end(&mut data)?;
        let saved = proto::DiscoverResponse::decode(data.as_slice()).map_err(io::Error::other)?;
        Ok(saved.resources)
    }

    /// Replaces what is saved, at once and whole.
    pub(crate) fn save<'r>(
        &self,
        resources: impl Iterator<Item = &'r proto::Resource>,
    ) -> io::Result<()> {
        let saved = proto::DiscoverResponse {
            resources: resources.cloned().collect(),
            ..Default::default()
        };
        let fresh = self.file.with_extension("pb.new");
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&fresh)?;
        file.write_all(&saved.encode_to_vec())?;
        file.sync_data()?;
        fs::rename(&fresh, &self.file)
    }
}
