//! Says when a directory or a file may have changed.

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};
use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::time::{timeout_at, Instant};

/// Writers come in bursts: an editor writes, renames and removes; a pod's volume swaps a link.
const QUIET: Duration = Duration::from_millis(50);
/// A burst that does not end is looked at after so long.
const IMPATIENT: Duration = Duration::from_millis(500);
/// A path that is not there, or cannot be watched, is looked at as often.
const POLL: Duration = Duration::from_secs(1);

/// Watches a path: the directory that it is, or the one that it is in, and that one's entry for it, so that a swapped
/// link is seen.
pub struct Watch {
    path: PathBuf,
    inotify: Option<AsyncFd<Inotify>>,
    watched: HashMap<PathBuf, WatchDescriptor>,
    /// Something happened, and it was not said yet: when it is quiet, and when it is said at the latest.
    burst: Option<(Instant, Instant)>,
    /// When a path that is not watched is looked at.
    poll: Option<Instant>,
    /// Why the path is polled instead.
    error: Option<String>,
}

impl Watch {
    /// Starts to watch. Must be called in a runtime. A path that cannot be watched is polled.
    pub fn new(path: &Path) -> Watch {
        let mut watch = Watch {
            path: path.to_owned(),
            inotify: None,
            watched: HashMap::new(),
            burst: None,
            poll: None,
            error: None,
        };
        match Inotify::init().and_then(crate::readiness::readable) {
            Ok(inotify) => watch.inotify = Some(inotify),
            Err(e) => watch.error = Some(format!("inotify: {e}")),
        }
        watch.rearm();
        watch
    }

    /// Why the path is polled, once a second, and not watched.
    pub fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }

    /// What must be watched now: links may have been swapped, directories made anew.
    fn rearm(&mut self) {
        let Some(inotify) = &self.inotify else { return };
        let mut watches = inotify.get_ref().watches();
        let all = WatchMask::CLOSE_WRITE
            | WatchMask::CREATE
            | WatchMask::DELETE
            | WatchMask::MOVE
            | WatchMask::ATTRIB
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF;
        let entries = WatchMask::CREATE | WatchMask::DELETE | WatchMask::MOVE | WatchMask::ONLYDIR;
        self.error = None;
        let parent = match self.path.parent() {
            Some(p) if !p.as_os_str().is_empty() => p.to_owned(),
            _ => PathBuf::from("."),
        };
        for (path, mask) in [(self.path.clone(), all), (parent, entries)] {
            match watches.add(&path, mask) {
                Ok(now) => {
                    let before = self.watched.insert(path, now.clone());
                    if let Some(before) = before.filter(|b| *b != now) {
                        // It fails where the directory is gone, and then the watch is gone with it.
                        let _ = watches.remove(before);
                    }
                }
                Err(e) => self.error = Some(format!("{}: {e}", path.display())),
            }
        }
    }

    /// Returns when something may have changed and writers have been quiet for a moment. Cancel safe: who calls it
    /// again goes on where it was, however often it is interrupted.
    pub async fn changed(&mut self) {
        loop {
            let Some((quiet, latest)) = self.burst else {
                if self.something().await {
                    let now = Instant::now();
                    self.burst = Some((now + QUIET, now + IMPATIENT));
                }
                continue;
            };
            let due = quiet.min(latest);
            let more = match &mut self.inotify {
                Some(inotify) if Instant::now() < due => timeout_at(due, drain(inotify)).await.is_ok(),
                _ => false,
            };
            if more {
                self.burst = Some((Instant::now() + QUIET, latest));
            } else {
                (self.burst, self.poll) = (None, None);
                self.rearm();
                return;
            }
        }
    }

    /// Waits for a first event, or for the time to look without one.
    async fn something(&mut self) -> bool {
        if self.error.is_none() {
            if let Some(inotify) = &mut self.inotify {
                return drain(inotify).await;
            }
        }
        let at = *self.poll.get_or_insert_with(|| Instant::now() + POLL);
        match &mut self.inotify {
            // Whichever is first: a directory above may be watched.
            Some(inotify) => timeout_at(at, drain(inotify)).await.unwrap_or(true),
            None => {
                tokio::time::sleep_until(at).await;
                true
            }
        }
    }
}

/// Waits for events and takes them; whether there was one that counts.
async fn drain(inotify: &mut AsyncFd<Inotify>) -> bool {
    let Ok(mut ready) = inotify.readable_mut().await else { return true };
    let mut buffer = [0; 4096];
    let mut any = false;
    loop {
        match ready.get_inner_mut().read_events(&mut buffer) {
            Ok(events) => {
                for event in events {
                    // Our own removal of a watch is no change.
                    any |= !event.mask.contains(EventMask::IGNORED);
                }
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                ready.clear_ready();
                return any;
            }
            // An event that does not fit, or an overrun: something happened.
            Err(_) => {
                ready.clear_ready();
                return true;
            }
        }
    }
}
