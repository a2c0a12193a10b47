//! The last good state on disk: what serves when nginx starts and no control plane answers.
//!
//! The file holds raw resources, not translated ones, so that any later version can read it:
//!
//! ```text
//! "AMESHXDS"  format u32  layout u64  written u64 (seconds since 1970)  count u32
//! count times: type_url, name, version (u32 length, UTF-8), value (u32 length, bytes)
//! xxh3-64 of everything before, u64
//! ```
//!
//! Numbers are little endian. The file is small against what is made of it, and read once at start, so it is read, not
//! mapped. It is replaced as a whole by a rename: a reader sees the old one or the new one.

use crate::store::Saved;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use xxhash_rust::xxh3::xxh3_64;

const MAGIC: &[u8; 8] = b"AMESHXDS";
const FORMAT: u32 = 1;
const HEADER: usize = 8 + 4 + 8 + 8 + 4;
const CHECKSUM: usize = 8;

/// What was on disk.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// When it was written, in whole seconds.
    pub written: SystemTime,
    /// All that was held, in the order in which it was written.
    pub resources: Vec<Saved>,
}

/// A snapshot that cannot be used, or not be written.
#[derive(Debug, thiserror::Error)]
#[error("snapshot {}: {reason}", path.display())]
pub struct PersistError {
    /// The file.
    pub path: PathBuf,
    /// Why, and the way out.
    pub reason: Reason,
}

/// What is wrong with a snapshot.
#[derive(Debug, thiserror::Error)]
pub enum Reason {
    /// The system refuses.
    #[error("{doing}: {error}; let the nginx master's user read and write it and its directory")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// The system's word.
        error: std::io::Error,
    },
    /// It is cut off, changed, or no snapshot at all.
    #[error("{0}; it is not used, remove it (a new one is written once a source has answered)")]
    Corrupt(&'static str),
    /// Another version of this module wrote it.
    #[error("{0}; it is not used, and replaced once a source has answered")]
    Foreign(&'static str),
    /// More than the format can hold.
    #[error("a field of resource {0} is longer than 4 GiB; it is not written")]
    TooLong(String),
}

/// Reads a snapshot; `None`: there is none. Nothing of a file that is not sound comes back.
pub fn read(path: &Path, layout: u64) -> Result<Option<Snapshot>, PersistError> {
    let fail = |reason| PersistError { path: path.to_owned(), reason };
    match std::fs::read(path) {
        Ok(bytes) => decode(&bytes, layout).map(Some).map_err(fail),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(fail(Reason::Io { doing: "cannot be read", error })),
    }
}

/// Replaces a snapshot. Secrets are left out, whoever hands them in.
pub fn write(path: &Path, layout: u64, resources: impl IntoIterator<Item = Saved>) -> Result<(), PersistError> {
    let fail = |reason| PersistError { path: path.to_owned(), reason };
    let io = |doing| move |error| fail(Reason::Io { doing, error });
    let bytes = encode(layout, SystemTime::now(), resources).map_err(fail)?;
    let directory = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    // Made with mode 0600.
    let mut file = tempfile::Builder::new()
        .prefix(".amesh-")
        .tempfile_in(directory)
        .map_err(io("no file can be made beside it"))?;
    file.write_all(&bytes).map_err(io("cannot be written"))?;
    file.as_file().sync_all().map_err(io("cannot be synced"))?;
    file.persist(path).map_err(|e| io("cannot be replaced")(e.error))?;
    // The rename should reach the disk as well. A file system that cannot sync a directory loses nothing that a crash
    // would not have lost.
    let _ = std::fs::File::open(directory).and_then(|d| d.sync_all());
    Ok(())
}

fn is_secret(type_url: &str) -> bool {
    type_url.contains("transport_sockets.tls.") && type_url.ends_with("Secret")
}

fn encode(layout: u64, written: SystemTime, resources: impl IntoIterator<Item = Saved>) -> Result<Vec<u8>, Reason> {
    let seconds = written.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut out = Vec::new();
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&FORMAT.to_le_bytes());
    out.extend_from_slice(&layout.to_le_bytes());
    out.extend_from_slice(&seconds.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    let mut count = 0u32;
    for r in resources.into_iter().filter(|r| !is_secret(&r.type_url)) {
        for field in [r.type_url.as_bytes(), r.name.as_bytes(), r.version.as_bytes(), &r.bytes] {
            let len = u32::try_from(field.len()).map_err(|_| Reason::TooLong(r.name.clone()))?;
            out.extend_from_slice(&len.to_le_bytes());
            out.extend_from_slice(field);
        }
        count += 1;
    }
    out[HEADER - 4..HEADER].copy_from_slice(&count.to_le_bytes());
    let checksum = xxh3_64(&out);
    out.extend_from_slice(&checksum.to_le_bytes());
    Ok(out)
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], Reason> {
        let (head, tail) = self.0.split_at_checked(len).ok_or(Reason::Corrupt("it is cut off"))?;
        self.0 = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Reason> {
        let (head, tail) = self.0.split_first_chunk().ok_or(Reason::Corrupt("it is cut off"))?;
        self.0 = tail;
        Ok(*head)
    }

    fn u32(&mut self) -> Result<u32, Reason> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, Reason> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn bytes(&mut self) -> Result<&'a [u8], Reason> {
        let len = self.u32()?;
        self.take(len as usize)
    }

    fn text(&mut self) -> Result<String, Reason> {
        let bytes = self.bytes()?;
        Ok(std::str::from_utf8(bytes).map_err(|_| Reason::Corrupt("a name in it is not UTF-8"))?.to_owned())
    }
}

fn decode(bytes: &[u8], layout: u64) -> Result<Snapshot, Reason> {
    if bytes.len() < HEADER + CHECKSUM {
        return Err(Reason::Corrupt("it is cut off"));
    }
    let (body, checksum) = bytes.split_at(bytes.len() - CHECKSUM);
    let mut input = Input(body);
    if input.array::<8>()? != *MAGIC {
        return Err(Reason::Corrupt("it is no snapshot of this module"));
    }
    if Input(checksum).u64()? != xxh3_64(body) {
        return Err(Reason::Corrupt("its checksum is wrong"));
    }
    if input.u32()? != FORMAT {
        return Err(Reason::Foreign("another version of this module wrote it, in another format"));
    }
    if input.u64()? != layout {
        return Err(Reason::Foreign("another version of this module wrote it"));
    }
    let written = SystemTime::UNIX_EPOCH
        .checked_add(Duration::from_secs(input.u64()?))
        .ok_or(Reason::Corrupt("its date is impossible"))?;
    let count = input.u32()?;
    let mut resources = Vec::new();
    for _ in 0..count {
        let (type_url, name, version) = (input.text()?, input.text()?, input.text()?);
        resources.push(Saved { type_url, name, version, bytes: input.bytes()?.to_vec() });
    }
    if !input.0.is_empty() {
        return Err(Reason::Corrupt("there is more in it than it says"));
    }
    Ok(Snapshot { written, resources })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::translate;
    use proptest::prelude::*;
    use std::os::unix::fs::PermissionsExt;

    fn resource(type_url: &str, name: &str, bytes: &[u8]) -> Saved {
        Saved { type_url: type_url.into(), name: name.into(), version: "v1".into(), bytes: bytes.to_vec() }
    }

    fn some() -> Vec<Saved> {
        vec![resource(translate::CLUSTER, "a", b"bytes"), resource(translate::LISTENER, "", &[0xff; 300])]
    }

    #[test]
    fn what_is_written_is_read_again_and_only_by_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("last-good");
        assert!(read(&path, 7).unwrap().is_none());
        write(&path, 7, some()).unwrap();
        write(&path, 7, some()).unwrap();
        let snapshot = read(&path, 7).unwrap().unwrap();
        assert_eq!(snapshot.resources, some());
        assert!(snapshot.written.elapsed().unwrap() < Duration::from_secs(60));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn secrets_are_never_written() {
        let secret = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
        let bytes = encode(1, SystemTime::now(), [resource(secret, "default", b"PRIVATE KEY")]).unwrap();
        assert!(decode(&bytes, 1).unwrap().resources.is_empty());
        assert!(!bytes.windows(7).any(|w| w == b"PRIVATE"));
    }

    #[test]
    fn another_layout_is_refused_with_the_path_and_the_way_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("last-good");
        write(&path, 7, some()).unwrap();
        let e = read(&path, 8).unwrap_err().to_string();
        assert!(e.contains("last-good") && e.contains("another version") && e.contains("replaced once"), "{e}");
        let e = write(&dir.path().join("no/such/dir"), 7, some()).unwrap_err().to_string();
        assert!(e.contains("no/such/dir") && e.contains("no file can be made beside it"), "{e}");
    }

    #[test]
    fn a_count_beyond_the_file_is_refused_even_with_a_sound_checksum() {
        let mut bytes = encode(1, SystemTime::now(), some()).unwrap();
        bytes.truncate(bytes.len() - CHECKSUM);
        bytes[HEADER - 4..HEADER].copy_from_slice(&u32::MAX.to_le_bytes());
        bytes.extend_from_slice(&xxh3_64(&bytes).to_le_bytes());
        assert!(matches!(decode(&bytes, 1), Err(Reason::Corrupt("it is cut off"))));
    }

    proptest! {
        #[test]
        fn any_resources_survive(all in proptest::collection::vec((".*", ".*", proptest::collection::vec(any::<u8>(), 0..50)), 0..8)) {
            let all: Vec<Saved> = all.iter().map(|(t, n, v)| resource(&format!("x/{t}"), n, v)).filter(|r| !is_secret(&r.type_url)).collect();
            let bytes = encode(3, SystemTime::now(), all.clone()).unwrap();
            prop_assert_eq!(decode(&bytes, 3).unwrap().resources, all);
        }

        #[test]
        fn a_flipped_byte_is_refused(at in any::<prop::sample::Index>(), bits in 1u8..) {
            let mut bytes = encode(3, SystemTime::now(), some()).unwrap();
            let at = at.index(bytes.len());
            bytes[at] ^= bits;
            prop_assert!(decode(&bytes, 3).is_err());
        }

        #[test]
        fn a_truncated_or_lengthened_file_is_refused(at in any::<prop::sample::Index>(), more in 1usize..20) {
            let mut bytes = encode(3, SystemTime::now(), some()).unwrap();
            prop_assert!(decode(&bytes[..at.index(bytes.len())], 3).is_err());
            bytes.extend(std::iter::repeat_n(0, more));
            prop_assert!(decode(&bytes, 3).is_err());
        }

        #[test]
        fn noise_is_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            prop_assert!(decode(&bytes, 3).is_err());
        }
    }
}
