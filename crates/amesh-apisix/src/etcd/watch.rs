//! One watch: where it stands, and what it is to be sent next. It holds nothing but that: a watcher that is slow costs no
//! memory, and once the history has gone past it, it is told to read anew.

use super::proto::{Event, EventType, KeyValue, WatchCreateRequest};
use crate::store::{Batch, KeyRange, Store};
use std::sync::Arc;

/// See [the module](self).
#[derive(Clone, Debug)]
pub struct Watch {
    range: KeyRange,
    next: i64,
    puts: bool,
    deletes: bool,
    prev_kv: bool,
}

/// What a watcher is told next.
#[derive(Clone, Debug)]
pub enum Step {
    /// All of a batch, as it is.
    Whole(Arc<Batch>),
    /// What concerns it of what happened at a revision.
    Part(i64, Vec<Event>),
    /// What it asks for is forgotten, or was never: it has to read anew, and may watch from this revision on.
    Compacted(i64),
    /// Nothing yet.
    Wait,
}

impl Watch {
    /// A watch as it was asked for. One that starts after the next revision has seen another store: it is sent to the
    /// revision that this one is at.
    pub fn new(store: &Store, request: &WatchCreateRequest) -> Watch {
        let next = match request.start_revision {
            ..=0 => store.revision() + 1,
            start if start > store.revision() + 1 => 0,
            start => start,
        };
        // As etcd does: an empty key stands for the first one there may be.
        let key = if request.key.is_empty() { bytes::Bytes::from_static(&[0]) } else { request.key.clone() };
        Watch {
            range: KeyRange::new(key, request.range_end.clone()),
            next,
            puts: !request.filters.contains(&0),
            deletes: !request.filters.contains(&1),
            prev_kv: request.prev_kv,
        }
    }

    /// What comes next. What it returns counts as sent. Batches come one at a time and in order: each with a larger
    /// revision than the one before, never empty.
    pub fn step(&mut self, store: &Store) -> Step {
        if self.next < store.oldest() {
            return Step::Compacted(store.revision());
        }
        while let Some(batch) = store.batch_from(self.next) {
            self.next = batch.revision + 1;
            if !self.prev_kv && batch.events.iter().all(|e| self.wants(e)) {
                return Step::Whole(batch.clone());
            }
            let events: Vec<Event> = batch.events.iter().filter(|e| self.wants(e)).map(|e| self.dress(e)).collect();
            if !events.is_empty() {
                return Step::Part(batch.revision, events);
            }
        }
        self.next = self.next.max(store.revision() + 1);
        Step::Wait
    }

    fn wants(&self, event: &Event) -> bool {
        let kind = if event.kind == EventType::Delete as i32 { self.deletes } else { self.puts };
        kind && event.kv.as_ref().is_some_and(|kv| self.range.contains(&kv.key))
    }

    fn dress(&self, event: &Event) -> Event {
        let prev_kv: Option<KeyValue> = event.prev_kv.clone().filter(|_| self.prev_kv);
        Event { kind: event.kind, kv: event.kv.clone(), prev_kv }
    }
}
