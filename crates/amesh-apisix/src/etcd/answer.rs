//! Answers that need no socket: ranges, the state of the member, and what watches are sent.

use super::errors::EtcdError;
use super::proto::{Event, KeyValue, RangeRequest, RangeResponse, ResponseHeader, StatusResponse, WatchResponse};
use super::watch::Step;
use crate::store::{KeyRange, Store};
use bytes::Bytes;
use std::cmp::Ordering;

/// The etcd that is spoken like. APISIX wants 3.4.0 or later.
pub const ETCD_VERSION: &str = "3.4.0";
/// There is one cluster with one member: numbers that say so, and nothing else.
const CLUSTER_ID: u64 = 0x616d_6573_6801;
/// See [`CLUSTER_ID`].
const MEMBER_ID: u64 = 0x616d_6573_6802;
/// See [`CLUSTER_ID`].
const RAFT_TERM: u64 = 2;

/// What every answer begins with.
pub fn header(revision: i64) -> ResponseHeader {
    ResponseHeader { cluster_id: CLUSTER_ID, member_id: MEMBER_ID, revision, raft_term: RAFT_TERM }
}

/// Answers a range.
///
/// # Errors
/// There is no key, or it asks for another revision than the one that is.
pub fn range(store: &Store, request: &RangeRequest) -> Result<RangeResponse, EtcdError> {
    if request.key.is_empty() {
        return Err(EtcdError::EmptyKey);
    }
    match request.revision {
        past if past > 0 && past < store.revision() => return Err(EtcdError::Compacted),
        future if future > store.revision() => return Err(EtcdError::FutureRevision),
        _ => {}
    }
    let keys = KeyRange::new(request.key.clone(), request.range_end.clone());
    let header = Some(header(store.revision()));
    if request.count_only {
        let count = store.range(&keys).count() as i64;
        return Ok(RangeResponse { header, count, ..RangeResponse::default() });
    }
    let mut count = 0;
    let counted = store.range(&keys).inspect(|_| count += 1);
    let mut kvs: Vec<KeyValue> = counted.filter(|kv| within(request, kv)).cloned().collect();
    sort(&mut kvs, request.sort_target, request.sort_order);
    let limit = usize::try_from(request.limit).ok().filter(|l| *l > 0).unwrap_or(usize::MAX);
    let more = kvs.len() > limit;
    kvs.truncate(limit);
    if request.keys_only {
        kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
    }
    Ok(RangeResponse { header, kvs, more, count })
}

fn within(request: &RangeRequest, kv: &KeyValue) -> bool {
    let between = |value: i64, min: i64, max: i64| (min == 0 || value >= min) && (max == 0 || value <= max);
    between(kv.mod_revision, request.min_mod_revision, request.max_mod_revision)
        && between(kv.create_revision, request.min_create_revision, request.max_create_revision)
}

/// They come in the ascending order of keys. Without an order, another target than the key means an ascending one.
fn sort(kvs: &mut [KeyValue], target: i32, order: i32) {
    let by: fn(&KeyValue, &KeyValue) -> Ordering = match target {
        1 => |a, b| a.version.cmp(&b.version),
        2 => |a, b| a.create_revision.cmp(&b.create_revision),
        3 => |a, b| a.mod_revision.cmp(&b.mod_revision),
        4 => |a, b| a.value.cmp(&b.value),
        _ => |a, b| a.key.cmp(&b.key),
    };
    match order {
        2 => kvs.sort_by(|a, b| by(b, a)),
        _ if target != 0 => kvs.sort_by(by),
        _ => {}
    }
}

/// The state of the one member.
pub fn status(store: &Store) -> StatusResponse {
    let size = store.size() as i64;
    StatusResponse {
        header: Some(header(store.revision())),
        version: ETCD_VERSION.to_owned(),
        db_size: size,
        leader: MEMBER_ID,
        raft_index: store.revision() as u64,
        raft_term: RAFT_TERM,
        raft_applied_index: store.revision() as u64,
        db_size_in_use: size,
    }
}

/// The first message of a watch.
pub fn created(watch_id: i64, revision: i64) -> WatchResponse {
    WatchResponse { header: Some(header(revision)), watch_id, created: true, ..WatchResponse::default() }
}

/// The only message of a watch that is not granted.
pub fn denied(revision: i64, why: &EtcdError) -> WatchResponse {
    WatchResponse { canceled: true, cancel_reason: why.cancel_reason(), ..created(-1, revision) }
}

/// Events of one revision. It stands in the header, so that every message has a larger one than the message before.
fn events(watch_id: i64, revision: i64, events: Vec<Event>) -> WatchResponse {
    WatchResponse { header: Some(header(revision)), watch_id, events, ..WatchResponse::default() }
}

/// What a watch is sent for a step; `None`: nothing.
pub fn message(watch_id: i64, step: Step) -> Option<WatchResponse> {
    match step {
        Step::Whole(batch) => {
            let plain = |e: &Event| Event { kind: e.kind, kv: e.kv.clone(), prev_kv: None };
            Some(events(watch_id, batch.revision, batch.events.iter().map(plain).collect()))
        }
        Step::Part(revision, some) => Some(events(watch_id, revision, some)),
        Step::Compacted(compact_revision) => Some(WatchResponse {
            // As etcd does: without a revision.
            header: Some(header(0)),
            watch_id,
            canceled: true,
            compact_revision,
            ..WatchResponse::default()
        }),
        Step::Wait => None,
    }
}
