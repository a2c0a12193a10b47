//! Listeners and their route tables.

use super::{decode, move_user, same_name, Arrival, Good, Serving, Store, Type, Value};
use crate::translate::{self, Invalid, ListenerAddresses, Notes};
use amesh_model::{listener::Listener, route::RouteTable, Kind};
use envoy_types::pb::envoy::config::{listener::v3 as lds, route::v3 as rds};
use std::collections::BTreeSet;

/// A listener.
pub(super) struct ListenerRecord {
    pub(super) good: Good,
    /// Accepted, not yet warm.
    pub(super) next: Option<Next>,
    live: Option<Live>,
    /// What is published, where that is not the last good.
    serving: Option<Serving>,
}

pub(super) struct Next {
    listener: Box<Listener>,
    tables: BTreeSet<String>,
    deadline: Option<u64>,
}

/// What is published, as far as others depend on it.
struct Live {
    tables: BTreeSet<String>,
    addresses: ListenerAddresses,
}

/// A route table.
pub(super) struct TableRecord {
    pub(super) good: Good,
    /// Accepted, and no listener refers to it yet.
    waiting: Option<Box<RouteTable>>,
}

impl ListenerRecord {
    /// Version and bytes of what is published.
    pub(super) fn published(&self) -> Option<(&str, &[u8])> {
        let former = self.serving.as_ref().map(|s| (s.version.as_str(), s.bytes.as_slice()));
        self.live.as_ref().map(|_| former.unwrap_or((&self.good.version, &self.good.bytes)))
    }

    fn tables(&self) -> BTreeSet<String> {
        let next = self.next.iter().flat_map(|n| &n.tables);
        self.live.iter().flat_map(|l| &l.tables).chain(next).cloned().collect()
    }
}

impl Store {
    pub(super) fn put_listener(&mut self, a: Arrival<'_>) -> Result<(), Invalid> {
        let message: lds::Listener = decode(&a)?;
        same_name(&message.name, &a, "name")?;
        let mut notes = Notes::new();
        let t = translate::listener(&message, &mut notes)?;
        let name = a.name.to_owned();
        let for_ever = t.tables.values().any(|wait| *wait == 0);
        let longest = t.tables.values().max().filter(|_| !for_ever);
        let deadline = longest.map(|wait| a.now.saturating_add(*wait));
        let next = Next { listener: Box::new(t.listener), tables: t.tables.into_keys().collect(), deadline };
        let former = self.listeners.remove(&name);
        let tables = former.as_ref().map(ListenerRecord::tables).unwrap_or_default();
        let (mut good, live, waited, serving) = match former {
            None => (None, None, None, None),
            Some(f) => (Some(f.good), f.live, f.next, f.serving),
        };
        let serving = live.as_ref().and(serving.or_else(|| good.as_mut().map(Serving::from)));
        if let Some(at) = waited.and_then(|n| n.deadline) {
            self.deadlines.remove(&(at, Type::Listener, name.clone()));
        }
        if let Some(at) = deadline {
            self.deadlines.insert((at, Type::Listener, name.clone()));
        }
        let good = self.keep(Type::Listener, a, notes, good);
        self.listeners.insert(name.clone(), ListenerRecord { good, next: Some(next), live, serving });
        self.refer_to_tables(&name, &tables);
        self.promote_listener(&name, false);
        Ok(())
    }

    pub(super) fn remove_listener(&mut self, name: &str) -> bool {
        let Some(record) = self.listeners.remove(name) else { return false };
        self.ledger.remove(&record.good.notes);
        if let Some(at) = record.next.as_ref().and_then(|n| n.deadline) {
            self.deadlines.remove(&(at, Type::Listener, name.to_owned()));
        }
        if record.live.is_some() {
            self.unpublish(Kind::Listener, name);
            self.index_is_stale = true;
        }
        self.refer_to_tables(name, &record.tables());
        true
    }

    /// Brings the index of who refers to which table up to date, and publishes or drops tables accordingly.
    fn refer_to_tables(&mut self, name: &str, before: &BTreeSet<String>) {
        let after = self.listeners.get(name).map(ListenerRecord::tables).unwrap_or_default();
        let (first, last) = move_user(&mut self.table_users, name, before, &after);
        for table in first {
            self.need(Type::RouteConfiguration, &table, true);
            self.publish_waiting_table(&table);
        }
        for table in last {
            self.need(Type::RouteConfiguration, &table, false);
            self.rejections.remove(&(Type::RouteConfiguration, table.clone()));
            self.drop_table(&table);
        }
    }

    /// Publishes a table that came before a listener referred to it.
    pub(super) fn publish_waiting_table(&mut self, name: &str) {
        let waiting = self.tables.get_mut(name).and_then(|r| Some((r.waiting.take()?, r.good.version.clone())));
        if let Some((value, version)) = waiting {
            self.publish(name, &version, Value::RouteTable(*value));
        }
    }

    /// Publishes a listener that waits, if it is warm, or at any rate when `force` says so.
    pub(super) fn promote_listener(&mut self, name: &str, force: bool) {
        let Some(record) = self.listeners.get_mut(name) else { return };
        let warm = |n: &Next| n.tables.iter().all(|t| self.tables.contains_key(t));
        if !record.next.as_ref().is_some_and(|n| force || warm(n)) {
            return;
        }
        let tables = record.tables();
        let version = record.good.version.clone();
        let Some(next) = record.next.take() else { return };
        record.live = Some(Live { tables: next.tables, addresses: (&*next.listener).into() });
        record.serving = None;
        if let Some(at) = next.deadline {
            self.deadlines.remove(&(at, Type::Listener, name.to_owned()));
        }
        self.publish(name, &version, Value::Listener(*next.listener));
        self.index_is_stale = true;
        self.refer_to_tables(name, &tables);
    }

    pub(super) fn live_listeners(&self) -> impl Iterator<Item = &ListenerAddresses> {
        self.listeners.values().filter_map(|r| r.live.as_ref()).map(|l| &l.addresses)
    }

    pub(super) fn put_table(&mut self, a: Arrival<'_>) -> Result<(), Invalid> {
        let message: rds::RouteConfiguration = decode(&a)?;
        same_name(&message.name, &a, "name")?;
        let mut notes = Notes::new();
        let table = Box::new(translate::route_table(&message, &mut notes)?);
        let (name, version) = (a.name.to_owned(), a.version.clone());
        let former = self.tables.remove(&name).map(|r| r.good);
        let good = self.keep(Type::RouteConfiguration, a, notes, former);
        let users = self.table_users.get(&name).cloned();
        let waiting = match &users {
            None => Some(table),
            Some(_) => {
                self.publish(&name, &version, Value::RouteTable(*table));
                None
            }
        };
        self.tables.insert(name, TableRecord { good, waiting });
        for listener in users.unwrap_or_default() {
            self.promote_listener(&listener, false);
        }
        Ok(())
    }

    /// A removal while a listener refers to it is left alone, as in Envoy.
    pub(super) fn remove_table(&mut self, name: &str) -> bool {
        !self.table_users.contains_key(name) && self.drop_table(name)
    }

    fn drop_table(&mut self, name: &str) -> bool {
        let Some(record) = self.tables.remove(name) else { return false };
        self.ledger.remove(&record.good.notes);
        if record.waiting.is_none() {
            self.unpublish(Kind::RouteTable, name);
        }
        true
    }

    /// What a listener that is not warm waits for.
    pub(super) fn listener_waits_for(&self, record: &ListenerRecord) -> Vec<String> {
        let tables = record.next.iter().flat_map(|n| &n.tables);
        let open = tables.filter(|t| !self.tables.contains_key(*t));
        open.map(|t| format!("RouteConfiguration \"{t}\"")).collect()
    }
}
