//! When which check is due, and those that are under way.

use super::machine::Checked;
use super::probe::{Kept, Probe};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::time::Duration;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

/// A change of what is checked.
pub(crate) enum Change {
    /// Check it: first after this time, then as often as [`Schedule::again`] says.
    Start(u64, Probe, Duration),
    /// No longer.
    Stop(u64),
}

struct Entry {
    probe: Probe,
    kept: Option<Kept>,
    running: Option<AbortHandle>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        if let Some(running) = &self.running {
            running.abort();
        }
    }
}

/// All checks of the node. Lives in a runtime.
#[derive(Default)]
pub(crate) struct Schedule {
    entries: HashMap<u64, Entry>,
    due: BinaryHeap<Reverse<(Instant, u64)>>,
    running: JoinSet<(u64, Checked, Option<Kept>)>,
}

impl Schedule {
    /// Takes changes over.
    pub(crate) fn apply(&mut self, changes: Vec<Change>) {
        for change in changes {
            match change {
                Change::Start(id, probe, after) => {
                    self.entries.insert(id, Entry { probe, kept: None, running: None });
                    self.due.push(Reverse((Instant::now() + after, id)));
                }
                Change::Stop(id) => {
                    self.entries.remove(&id);
                }
            }
        }
    }

    /// The next check of one whose result came.
    pub(crate) fn again(&mut self, id: u64, after: Duration) {
        if self.entries.contains_key(&id) {
            self.due.push(Reverse((Instant::now() + after, id)));
        }
    }

    /// The next result. Cancel safe.
    pub(crate) async fn next(&mut self) -> (u64, Checked) {
        loop {
            let due = self.due.peek().map(|Reverse((at, _))| *at);
            let sleep = async {
                match due {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some(done) = self.running.join_next() => {
                    // One that was stopped, or that panicked, which it does not: without a result there is no next one.
                    let Ok((id, checked, kept)) = done else { continue };
                    if let Some(entry) = self.entries.get_mut(&id) {
                        (entry.kept, entry.running) = (kept, None);
                        return (id, checked);
                    }
                }
                () = sleep => self.begin(),
            }
        }
    }

    /// Begins what is due.
    fn begin(&mut self) {
        let now = Instant::now();
        while let Some(Reverse((at, id))) = self.due.peek().copied() {
            if at > now {
                return;
            }
            self.due.pop();
            let Some(entry) = self.entries.get_mut(&id) else { continue };
            let (probe, kept) = (entry.probe.clone(), entry.kept.take());
            entry.running = Some(self.running.spawn(async move {
                let (checked, kept) = probe.run(kept).await;
                (id, checked, kept)
            }));
        }
    }
}
