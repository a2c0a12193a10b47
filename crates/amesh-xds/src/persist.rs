//! The last good state on disk: what serves when nginx starts and no control plane answers.
//!
//! The file holds raw resources, not translated ones, so that any later version can read it:
//!
//! ```text
//! "AMESHXDS"  format u32  layout u64  written u64 (seconds since 1970)
//! count times: type_url, name, version (u32 length, UTF-8), value (u32 length, bytes)
//! count u32
//! xxh3-64 of everything before, u64
//! ```
//!
//! Numbers are little endian. It is replaced as a whole by a rename: a reader sees the old one or the new one.
//!
//! It is read and written in one pass, a piece at a time, not mapped: every byte is looked at once and copied into the
//! store, which is as fast from a buffer as from a map (100 MB: 70 ms either way), needs no more memory than the store
//! itself, and a file that somebody truncates is an error, not a SIGBUS in the nginx master. A private copy in a sealed
//! memfd would be safe to map, and takes as long and as much memory as reading all of it at once (130 ms, twice the
//! file).

use crate::store::Saved;
use std::io::{BufReader, BufWriter, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use xxhash_rust::xxh3::Xxh3;

const MAGIC: &[u8; 8] = b"AMESHXDS";
const FORMAT: u32 = 2;
/// Bytes of count and checksum.
const FOOTER: u64 = 4 + 8;
/// Bytes that are read or written at a time.
const PIECE: usize = 64 << 10;
const CUT_OFF: &str = "it is cut off";

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
    let opened = std::fs::File::open(path).and_then(|f| f.metadata().map(|m| (f, m.len())));
    match opened {
        Ok((file, size)) => decode(BufReader::with_capacity(PIECE, file), size, layout).map(Some).map_err(fail),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(fail(Reason::Io { doing: "cannot be read", error })),
    }
}

/// Replaces a snapshot. Secrets are left out, whoever hands them in.
pub fn write(path: &Path, layout: u64, resources: impl IntoIterator<Item = Saved>) -> Result<(), PersistError> {
    let fail = |reason| PersistError { path: path.to_owned(), reason };
    let io = |doing| move |error| fail(Reason::Io { doing, error });
    let directory = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    // Made with mode 0600.
    let file = tempfile::Builder::new()
        .prefix(".amesh-")
        .tempfile_in(directory)
        .map_err(io("no file can be made beside it"))?;
    let mut out = BufWriter::with_capacity(PIECE, file);
    encode(&mut out, layout, SystemTime::now(), resources).map_err(fail)?;
    let file = out.into_inner().map_err(|e| io("cannot be written")(e.into_error()))?;
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

/// Passes bytes on and sums them up.
struct Output<W> {
    inner: W,
    hash: Xxh3,
}

impl<W: Write> Output<W> {
    fn put(&mut self, bytes: &[u8]) -> Result<(), Reason> {
        self.hash.update(bytes);
        self.inner.write_all(bytes).map_err(cannot_write)
    }

    fn field(&mut self, name: &str, bytes: &[u8]) -> Result<(), Reason> {
        let len = u32::try_from(bytes.len()).map_err(|_| Reason::TooLong(name.to_owned()))?;
        self.put(&len.to_le_bytes())?;
        self.put(bytes)
    }
}

fn cannot_write(error: std::io::Error) -> Reason {
    Reason::Io { doing: "cannot be written", error }
}

fn encode(
    to: impl Write,
    layout: u64,
    written: SystemTime,
    resources: impl IntoIterator<Item = Saved>,
) -> Result<(), Reason> {
    let seconds = written.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut out = Output { inner: to, hash: Xxh3::new() };
    out.put(MAGIC)?;
    out.put(&FORMAT.to_le_bytes())?;
    out.put(&layout.to_le_bytes())?;
    out.put(&seconds.to_le_bytes())?;
    let mut count = 0u32;
    for r in resources.into_iter().filter(|r| !is_secret(&r.type_url)) {
        for field in [r.type_url.as_bytes(), r.name.as_bytes(), r.version.as_bytes(), &r.bytes] {
            out.field(&r.name, field)?;
        }
        count += 1;
    }
    out.put(&count.to_le_bytes())?;
    let checksum = out.hash.digest();
    out.inner.write_all(&checksum.to_le_bytes()).map_err(cannot_write)
}

/// Hands bytes out and sums them up.
struct Input<R> {
    inner: R,
    hash: Xxh3,
    /// Bytes before the count.
    left: u64,
}

impl<R: Read> Input<R> {
    fn fill(&mut self, to: &mut [u8]) -> Result<(), Reason> {
        self.inner.read_exact(to).map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => Reason::Corrupt(CUT_OFF),
            _ => Reason::Io { doing: "cannot be read", error },
        })?;
        self.hash.update(to);
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Reason> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    /// Bytes of the part before the count.
    fn inside<const N: usize>(&mut self) -> Result<[u8; N], Reason> {
        self.left = self.left.checked_sub(N as u64).ok_or(Reason::Corrupt(CUT_OFF))?;
        self.array()
    }

    fn u32(&mut self) -> Result<u32, Reason> {
        Ok(u32::from_le_bytes(self.inside()?))
    }

    fn u64(&mut self) -> Result<u64, Reason> {
        Ok(u64::from_le_bytes(self.inside()?))
    }

    fn bytes(&mut self) -> Result<Vec<u8>, Reason> {
        let len = self.u32()?;
        // No more memory than there are bytes in the file, whatever it says.
        self.left = self.left.checked_sub(len.into()).ok_or(Reason::Corrupt(CUT_OFF))?;
        let mut bytes = vec![0; len as usize];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn text(&mut self) -> Result<String, Reason> {
        String::from_utf8(self.bytes()?).map_err(|_| Reason::Corrupt("a name in it is not UTF-8"))
    }
}

fn decode(from: impl Read, size: u64, layout: u64) -> Result<Snapshot, Reason> {
    let left = size.checked_sub(FOOTER).ok_or(Reason::Corrupt(CUT_OFF))?;
    let mut input = Input { inner: from, hash: Xxh3::new(), left };
    if input.inside::<8>()? != *MAGIC {
        return Err(Reason::Corrupt("it is no snapshot of this module"));
    }
    if input.u32()? != FORMAT {
        return Err(Reason::Foreign("another version of this module wrote it, in another format"));
    }
    if input.u64()? != layout {
        return Err(Reason::Foreign("another version of this module wrote it"));
    }
    let seconds = input.u64()?;
    let mut resources = Vec::new();
    while input.left > 0 {
        let (type_url, name, version) = (input.text()?, input.text()?, input.text()?);
        resources.push(Saved { type_url, name, version, bytes: input.bytes()? });
    }
    let count = u32::from_le_bytes(input.array()?);
    let checksum = input.hash.digest();
    if u64::from_le_bytes(input.array()?) != checksum {
        return Err(Reason::Corrupt("its checksum is wrong"));
    }
    if count as usize != resources.len() {
        return Err(Reason::Corrupt("it holds another number of resources than it says"));
    }
    let written = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
    Ok(Snapshot { written: written.ok_or(Reason::Corrupt("its date is impossible"))?, resources })
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

    fn encoded(layout: u64, resources: impl IntoIterator<Item = Saved>) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode(&mut bytes, layout, SystemTime::now(), resources).unwrap();
        bytes
    }

    fn decoded(bytes: &[u8], layout: u64) -> Result<Snapshot, Reason> {
        decode(bytes, bytes.len() as u64, layout)
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
        let bytes = encoded(1, [resource(secret, "default", b"PRIVATE KEY")]);
        assert!(decoded(&bytes, 1).unwrap().resources.is_empty());
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
    fn lengths_and_counts_that_lie_are_refused_even_with_a_sound_checksum() {
        let sound = |mut bytes: Vec<u8>| {
            bytes.truncate(bytes.len() - 8);
            let mut hash = Xxh3::new();
            hash.update(&bytes);
            bytes.extend_from_slice(&hash.digest().to_le_bytes());
            bytes
        };
        let bytes = encoded(1, some());
        assert!(decoded(&sound(bytes.clone()), 1).is_ok());
        let mut count = bytes.clone();
        let at = count.len() - FOOTER as usize;
        count[at] += 1;
        assert!(matches!(decoded(&sound(count), 1), Err(Reason::Corrupt(why)) if why.contains("another number")));
        let mut length = bytes.clone();
        length[28..32].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(decoded(&sound(length), 1), Err(Reason::Corrupt(CUT_OFF))));
        // The file is truncated while it is read.
        assert!(matches!(decode(&bytes[..40], bytes.len() as u64, 1), Err(Reason::Corrupt(CUT_OFF))));
    }

    proptest! {
        #[test]
        fn any_resources_survive(all in proptest::collection::vec((".*", ".*", proptest::collection::vec(any::<u8>(), 0..50)), 0..8)) {
            let all: Vec<Saved> = all.iter().map(|(t, n, v)| resource(&format!("x/{t}"), n, v)).filter(|r| !is_secret(&r.type_url)).collect();
            let bytes = encoded(3, all.clone());
            prop_assert_eq!(decoded(&bytes, 3).unwrap().resources, all);
        }

        #[test]
        fn a_flipped_byte_is_refused(at in any::<prop::sample::Index>(), bits in 1u8..) {
            let mut bytes = encoded(3, some());
            let at = at.index(bytes.len());
            bytes[at] ^= bits;
            prop_assert!(decoded(&bytes, 3).is_err());
        }

        #[test]
        fn a_truncated_or_lengthened_file_is_refused(at in any::<prop::sample::Index>(), more in 1usize..20) {
            let mut bytes = encoded(3, some());
            prop_assert!(decoded(&bytes[..at.index(bytes.len())], 3).is_err());
            bytes.extend(std::iter::repeat_n(0, more));
            prop_assert!(decoded(&bytes, 3).is_err());
        }

        #[test]
        fn noise_is_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            prop_assert!(decoded(&bytes, 3).is_err());
        }
    }
}
