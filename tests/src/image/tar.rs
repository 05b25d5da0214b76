//! Tar archives (POSIX.1-1988, ustar) in which nothing is but names, modes and contents.

use anyhow::{Result, bail};

use super::Entry;

/// An archive, in memory.
#[derive(Default)]
pub(super) struct Tar(Vec<u8>);

/// All that is in a tar archive is filled up to a multiple of this.
const BLOCK: usize = 512;

impl Tar {
    pub(super) fn add(&mut self, path: &str, entry: &Entry) -> Result<()> {
        let (kind, mode, target, content) = match entry {
            Entry::File { mode, content } => (b'0', *mode, "", &content[..]),
            Entry::Link { target } => (b'2', 0o777, &target[..], &[][..]),
            Entry::Directory { mode } => (b'5', *mode, "", &[][..]),
        };
        let mut header = [0; BLOCK];
        let mut put = |at: usize, field: &str| {
            header[at..at + field.len()].copy_from_slice(field.as_bytes());
        };
        for (at, name) in [(0, path), (157, target)] {
            if name.len() > 100 {
                bail!("{name}: a path in an image has at most 100 bytes here");
            }
            put(at, name);
        }
        if content.len() >= 1 << 33 {
            bail!("{path}: a file in an image has less than 8 GiB here");
        }
        put(100, &format!("{mode:07o}\0"));
        // User and group 0, no time.
        for at in [108, 116] {
            put(at, "0000000\0");
        }
        put(124, &format!("{:011o}\0", content.len()));
        put(136, "00000000000\0");
        put(257, "ustar\x0000");
        header[156] = kind;
        // The sum counts its own field as blanks.
        header[148..156].fill(b' ');
        let sum = header.iter().map(|byte| u32::from(*byte)).sum::<u32>();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend(header);
        self.0.extend(content);
        self.0.resize(self.0.len().next_multiple_of(BLOCK), 0);
        Ok(())
    }

    /// The end of an archive is two blocks of nothing.
    pub(super) fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 2 * BLOCK, 0);
        self.0
    }
}
