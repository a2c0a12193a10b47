//! The store and the zones behind it: what is applied is published at once.

use super::{Level, Log, Observer, PublishError, Publisher};
use crate::ads::{Apply, Rejected, Resource};
use crate::health::{Checked, Health, Vitals};
use crate::store::{Batch, Names, NamesChange, Saved, Store, Type};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Resources that are translated between two openings of the fork gate.
const AT_A_TIME: usize = 32;
/// Seconds between two attempts to publish what did not fit, at most.
const LONGEST_RETRY: u32 = 30;

/// Unix time in ms.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

/// A zone, and what did not fit in it.
struct Zone<P> {
    publisher: P,
    pending: Option<Batch>,
    error: Option<PublishError>,
    /// Ticks until it is tried again, and how many it was last time.
    retry: (u32, u32),
}

impl<P: Publisher> Zone<P> {
    fn new(publisher: P) -> Zone<P> {
        Zone { publisher, pending: None, error: None, retry: (0, 0) }
    }

    /// Publishes a batch after what is still pending.
    fn publish(&mut self, batch: Option<&Batch>, log: &impl Log) -> Result<(), PublishError> {
        let batch = match (self.pending.take(), batch) {
            (None, None) => return Ok(()),
            (None, Some(batch)) => Cow::Borrowed(batch),
            (Some(pending), None) => Cow::Owned(pending),
            (Some(pending), Some(batch)) => Cow::Owned(merge(pending, batch)),
        };
        match self.publisher.publish(&batch) {
            Ok(()) => {
                if self.error.take().is_some() {
                    log.log(Level::Notice, "what did not fit is published now");
                }
                self.retry = (0, 0);
                Ok(())
            }
            Err(e) => {
                self.pending = Some(batch.into_owned());
                if self.error.as_ref() != Some(&e) {
                    // The figures change with every attempt; the event is told once.
                    if self.error.is_none() {
                        log.log(Level::Error, &format!("{e}; last good serves"));
                    }
                    self.error = Some(e.clone());
                }
                Err(e)
            }
        }
    }

    fn tick(&mut self, log: &impl Log) {
        self.publisher.tick();
        if self.pending.is_some() {
            if self.retry.0 > 0 {
                self.retry.0 -= 1;
            } else {
                self.retry.1 = (self.retry.1 * 2).clamp(1, LONGEST_RETRY);
                self.retry.0 = self.retry.1;
                // It is kept, and told in the status.
                let _ = self.publish(None, log);
            }
        }
    }
}

fn vitals<P: Publisher>(zones: &[Zone<P>]) -> Vec<&dyn Vitals> {
    zones.iter().map(|z| &z.publisher as &dyn Vitals).collect()
}

/// What came later goes before what came first.
fn merge(mut first: Batch, later: &Batch) -> Batch {
    let put: BTreeSet<_> = later.put.iter().map(|i| (i.kind as u8, i.name.as_str())).collect();
    let gone: BTreeSet<_> = later.remove.iter().map(|(k, n)| (*k as u8, n.as_str())).collect();
    first.put.retain(|i| {
        let key = (i.kind as u8, i.name.as_str());
        !put.contains(&key) && !gone.contains(&key)
    });
    first.remove.retain(|(k, n)| {
        let key = (*k as u8, n.as_str());
        !put.contains(&key) && !gone.contains(&key)
    });
    first.put.extend(later.put.iter().cloned());
    // Make before break holds over both.
    first.put.sort_by_key(|i| amesh_model::Kind::ALL.iter().position(|k| *k == i.kind));
    first.remove.extend(later.remove.iter().cloned());
    first
}

/// The store, its zones, and what there is to say about them.
pub(super) struct World<P, L> {
    pub(super) store: Store,
    zones: Vec<Zone<P>>,
    pub(super) observers: Vec<Box<dyn Observer>>,
    pub(super) health: Health,
    pub(super) log: L,
    pub(super) gate: Box<dyn FnMut() + Send>,
    /// Counts what changed; who keeps a copy compares.
    pub(super) changes: u64,
    /// Something was published since the start.
    pub(super) published: bool,
    /// What is rejected now, so that it is told once.
    told: BTreeMap<(String, String), String>,
}

impl<P: Publisher, L: Log> World<P, L> {
    pub(super) fn new(publisher: P, log: L) -> World<P, L> {
        World {
            store: Store::new(),
            zones: vec![Zone::new(publisher)],
            observers: Vec::new(),
            health: Health::default(),
            log,
            gate: Box::new(|| {}),
            changes: 0,
            published: false,
            told: BTreeMap::new(),
        }
    }

    /// Publishes what is ready. The newest zone decides.
    pub(super) fn publish(&mut self) -> Result<(), PublishError> {
        let batch = self.store.take_batch();
        if batch.is_none() {
            return Ok(());
        }
        let mut result = Ok(());
        for zone in &mut self.zones {
            result = zone.publish(batch.as_ref(), &self.log);
        }
        self.published |= result.is_ok();
        if let Some(batch) = &batch {
            for observer in &mut self.observers {
                observer.publish(batch);
            }
            self.health.follow(batch, &vitals(&self.zones));
        }
        result
    }

    /// Adds a zone and fills it with all that is known.
    pub(super) fn add_zone(&mut self, publisher: P) -> Result<(), PublishError> {
        let mut zone = Zone::new(publisher);
        let result = zone.publish(self.store.everything(now()).as_ref(), &self.log);
        if let Some(newest) = self.zones.last() {
            self.health.carry_over(&newest.publisher, &zone.publisher);
        }
        self.zones.push(zone);
        result
    }

    /// Lets observers look for their orders; those that know nothing yet are told what there is. What files say is whole.
    pub(super) fn attend(&mut self, fresh: bool, files: bool) {
        let complete = files || self.published;
        let mut everything = None;
        for observer in &mut self.observers {
            if observer.attend(fresh) {
                let all = everything.get_or_insert_with(|| self.store.everything(now()));
                observer.everything(all.as_ref(), complete);
            }
        }
    }

    pub(super) fn tick(&mut self) {
        self.observers.iter_mut().for_each(|observer| observer.tick());
        for zone in &mut self.zones {
            zone.tick(&self.log);
        }
        let newest = self.zones.len().saturating_sub(1);
        let mut i = 0;
        self.zones.retain_mut(|zone| {
            i += 1;
            i - 1 == newest || zone.publisher.is_read()
        });
        self.health.tick(&vitals(&self.zones), &self.log);
    }

    /// Takes the result of a health check in; when the next one is due.
    pub(super) fn on_checked(&mut self, id: u64, result: &Checked) -> Option<Duration> {
        self.health.on_result(id, result, &vitals(&self.zones), &self.log)
    }

    /// Ends the intervals of outlier detection that are over.
    pub(super) fn end_intervals(&mut self) {
        self.health.intervals(&vitals(&self.zones));
    }

    pub(super) fn tell_status(&mut self, json: &str) {
        for zone in &mut self.zones {
            zone.publisher.status(json);
        }
    }

    /// Why the newest zone does not hold all that is known.
    pub(super) fn publish_error(&self) -> Option<&PublishError> {
        self.zones.last().and_then(|z| z.error.as_ref())
    }

    /// Puts a snapshot in; what is not accepted any more is left out.
    pub(super) fn restore(&mut self, saved: Vec<Saved>) -> Vec<Rejected> {
        self.store.restore(saved, now()).rejected
    }

    fn update(&mut self, type_url: &str, added: Vec<Resource>, removed: Vec<String>) -> Vec<Rejected> {
        let added = added.into_iter().map(|r| (r.name, r.version, r.body)).collect();
        let out = self.store.update(type_url, added, removed, false, now());
        self.changes += out.changed as u64;
        out.rejected
    }

    /// Tells what is rejected and was not told in these words.
    fn tell(&mut self, type_url: &str, names: &[String], rejected: &[Rejected], place: &dyn Fn(&Rejected) -> String) {
        for name in names.iter().filter(|n| rejected.iter().all(|r| r.name != **n)) {
            if self.told.remove(&(type_url.to_owned(), name.clone())).is_some() {
                let kind = crate::ads::short_name(type_url);
                self.log.log(Level::Notice, &format!("{kind} {name}: accepted again"));
            }
        }
        for r in rejected {
            let text = r.to_string();
            let before = self.told.insert((type_url.to_owned(), r.name.clone()), text.clone());
            if before.as_ref() != Some(&text) {
                let kind = crate::ads::short_name(type_url);
                self.log.log(Level::Error, &format!("{kind} rejected, last good stays: {}{text}", place(r)));
            }
        }
    }

    /// As [`Apply::apply`]; `place` says where a rejected resource came from.
    pub(super) fn apply_from(
        &mut self,
        type_url: &str,
        mut added: Vec<Resource>,
        mut removed: Vec<String>,
        whole: bool,
        place: &dyn Fn(&Rejected) -> String,
    ) -> Vec<Rejected> {
        let names: Vec<String> = added.iter().map(|r| r.name.clone()).collect();
        let mut rejected = Vec::new();
        while !added.is_empty() {
            let rest = added.split_off(added.len().min(AT_A_TIME));
            rejected.extend(self.update(type_url, added, Vec::new()));
            added = rest;
            (self.gate)();
        }
        if whole {
            let there: BTreeSet<&str> = names.iter().map(String::as_str).collect();
            let held = Type::from_url(type_url).map(|t| self.store.versions(t)).unwrap_or_default();
            let known = held.into_keys().chain(self.told.keys().filter(|k| k.0 == type_url).map(|k| k.1.clone()));
            removed.extend(known.filter(|n| !there.contains(n.as_str())));
        }
        // After what was added: what both refer to is never let go in between.
        for name in &removed {
            self.told.remove(&(type_url.to_owned(), name.clone()));
        }
        if !removed.is_empty() {
            rejected.extend(self.update(type_url, Vec::new(), removed));
        }
        self.tell(type_url, &names, &rejected, place);
        if let Err(e) = self.publish() {
            // Told by the zone already.
            let full = |name: &String| Rejected { name: name.clone(), field: String::new(), reason: e.to_string() };
            let bad: BTreeSet<String> = rejected.iter().map(|r| r.name.clone()).collect();
            rejected.extend(names.iter().filter(|n| !bad.contains(*n)).map(full));
        }
        rejected
    }
}

impl<P: Publisher, L: Log> Apply for World<P, L> {
    fn apply(&mut self, type_url: &str, added: Vec<Resource>, removed: Vec<String>, whole: bool) -> Vec<Rejected> {
        self.apply_from(type_url, added, removed, whole, &|_| String::new())
    }

    fn wanted(&self) -> Names {
        self.store.names_needed()
    }

    fn take_change(&mut self) -> NamesChange {
        self.store.take_names_change()
    }

    fn held(&self, type_url: &str) -> Vec<(String, String)> {
        Type::from_url(type_url).map(|t| self.store.versions(t)).unwrap_or_default().into_iter().collect()
    }
}
