//! The messages of etcd's API that are spoken here, by the numbers of its `rpc.proto`, `kv.proto`; as JSON by the rules of
//! its gateway: names as in the proto, bytes in base64, 64-bit integers as text, nothing that has its default.

use super::json;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// `mvccpb.KeyValue`
#[derive(Clone, PartialEq, prost::Message, Serialize)]
pub struct KeyValue {
    /// The key.
    #[prost(bytes = "bytes", tag = "1")]
    #[serde(serialize_with = "json::bytes", skip_serializing_if = "Bytes::is_empty")]
    pub key: Bytes,
    /// When the key was put that was not there before.
    #[prost(int64, tag = "2")]
    #[serde(serialize_with = "json::text", skip_serializing_if = "is_default")]
    pub create_revision: i64,
    /// When it was last put or deleted.
    #[prost(int64, tag = "3")]
    #[serde(serialize_with = "json::text", skip_serializing_if = "is_default")]
    pub mod_revision: i64,
    /// How often it was put since it was created; 0: deleted.
    #[prost(int64, tag = "4")]
    #[serde(serialize_with = "json::text", skip_serializing_if = "is_default")]
    pub version: i64,
    /// The value.
    #[prost(bytes = "bytes", tag = "5")]
    #[serde(serialize_with = "json::bytes", skip_serializing_if = "Bytes::is_empty")]
    pub value: Bytes,
}

/// `mvccpb.Event.EventType`
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum EventType {
    /// A key was put.
    Put = 0,
    /// A key was deleted.
    Delete = 1,
}

/// `mvccpb.Event`
#[derive(Clone, PartialEq, prost::Message, Serialize)]
pub struct Event {
    /// What happened: an [`EventType`].
    #[prost(enumeration = "EventType", tag = "1")]
    #[serde(rename = "type", serialize_with = "json::event_type", skip_serializing_if = "is_default")]
    pub kind: i32,
    /// The key, as it is from then on; of one that is deleted its name and revision.
    #[prost(message, optional, tag = "2")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kv: Option<KeyValue>,
    /// What it was before, where that was asked for.
    #[prost(message, optional, tag = "3")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prev_kv: Option<KeyValue>,
}

/// `etcdserverpb.ResponseHeader`
#[derive(Clone, Copy, PartialEq, prost::Message, Serialize)]
pub struct ResponseHeader {
    /// Which cluster.
    #[prost(uint64, tag = "1")]
    #[serde(serialize_with = "json::text")]
    pub cluster_id: u64,
    /// Which member of it.
    #[prost(uint64, tag = "2")]
    #[serde(serialize_with = "json::text")]
    pub member_id: u64,
    /// The store's revision.
    #[prost(int64, tag = "3")]
    #[serde(serialize_with = "json::text", skip_serializing_if = "is_default")]
    pub revision: i64,
    /// Raft's term.
    #[prost(uint64, tag = "4")]
    #[serde(serialize_with = "json::text")]
    pub raft_term: u64,
}

/// `etcdserverpb.RangeRequest`
#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default)]
pub struct RangeRequest {
    /// The key, or the first of a range.
    #[prost(bytes = "bytes", tag = "1")]
    #[serde(deserialize_with = "json::from_base64")]
    pub key: Bytes,
    /// Where the range ends; empty: one key, one zero byte: never.
    #[prost(bytes = "bytes", tag = "2")]
    #[serde(alias = "rangeEnd", deserialize_with = "json::from_base64")]
    pub range_end: Bytes,
    /// At most so many; 0: all.
    #[prost(int64, tag = "3")]
    #[serde(deserialize_with = "json::integer")]
    pub limit: i64,
    /// As it was then; 0: now.
    #[prost(int64, tag = "4")]
    #[serde(deserialize_with = "json::integer")]
    pub revision: i64,
    /// 0: none, 1: ascending, 2: descending.
    #[prost(int32, tag = "5")]
    #[serde(alias = "sortOrder", deserialize_with = "json::sort_order")]
    pub sort_order: i32,
    /// 0: by key, 1: by version, 2: by creation, 3: by modification, 4: by value.
    #[prost(int32, tag = "6")]
    #[serde(alias = "sortTarget", deserialize_with = "json::sort_target")]
    pub sort_target: i32,
    /// There is one server only: every answer is.
    #[prost(bool, tag = "7")]
    pub serializable: bool,
    /// No values.
    #[prost(bool, tag = "8")]
    #[serde(alias = "keysOnly")]
    pub keys_only: bool,
    /// Only how many there are.
    #[prost(bool, tag = "9")]
    #[serde(alias = "countOnly")]
    pub count_only: bool,
    /// None that was modified before; 0: no bound, here and below.
    #[prost(int64, tag = "10")]
    #[serde(alias = "minModRevision", deserialize_with = "json::integer")]
    pub min_mod_revision: i64,
    /// None that was modified after.
    #[prost(int64, tag = "11")]
    #[serde(alias = "maxModRevision", deserialize_with = "json::integer")]
    pub max_mod_revision: i64,
    /// None that was created before.
    #[prost(int64, tag = "12")]
    #[serde(alias = "minCreateRevision", deserialize_with = "json::integer")]
    pub min_create_revision: i64,
    /// None that was created after.
    #[prost(int64, tag = "13")]
    #[serde(alias = "maxCreateRevision", deserialize_with = "json::integer")]
    pub max_create_revision: i64,
}

/// `etcdserverpb.RangeResponse`
#[derive(Clone, PartialEq, prost::Message, Serialize)]
pub struct RangeResponse {
    /// Always there.
    #[prost(message, optional, tag = "1")]
    pub header: Option<ResponseHeader>,
    /// What was found.
    #[prost(message, repeated, tag = "2")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kvs: Vec<KeyValue>,
    /// There are more than the limit.
    #[prost(bool, tag = "3")]
    #[serde(skip_serializing_if = "is_default")]
    pub more: bool,
    /// How many there are in the range.
    #[prost(int64, tag = "4")]
    #[serde(serialize_with = "json::text", skip_serializing_if = "is_default")]
    pub count: i64,
}

/// `etcdserverpb.WatchCreateRequest`. Progress is never notified unasked and messages are never split, whatever is said of it.
#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default)]
pub struct WatchCreateRequest {
    /// As in a range.
    #[prost(bytes = "bytes", tag = "1")]
    #[serde(deserialize_with = "json::from_base64")]
    pub key: Bytes,
    /// As in a range.
    #[prost(bytes = "bytes", tag = "2")]
    #[serde(alias = "rangeEnd", deserialize_with = "json::from_base64")]
    pub range_end: Bytes,
    /// From then on; 0: from now on.
    #[prost(int64, tag = "3")]
    #[serde(alias = "startRevision", deserialize_with = "json::integer")]
    pub start_revision: i64,
    /// 0: no puts, 1: no deletes.
    #[prost(int32, repeated, tag = "5")]
    #[serde(deserialize_with = "json::filters")]
    pub filters: Vec<i32>,
    /// With what was before.
    #[prost(bool, tag = "6")]
    #[serde(alias = "prevKv")]
    pub prev_kv: bool,
    /// What the watch is called; 0: the server finds a name.
    #[prost(int64, tag = "7")]
    #[serde(alias = "watchId", deserialize_with = "json::integer")]
    pub watch_id: i64,
}

/// `etcdserverpb.WatchCancelRequest`
#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default)]
pub struct WatchCancelRequest {
    /// Which watch.
    #[prost(int64, tag = "1")]
    #[serde(alias = "watchId", deserialize_with = "json::integer")]
    pub watch_id: i64,
}

/// `etcdserverpb.WatchProgressRequest`
#[derive(Clone, Copy, PartialEq, prost::Message, Deserialize)]
pub struct WatchProgressRequest {}

/// `etcdserverpb.WatchRequest`
#[derive(Clone, PartialEq, prost::Message)]
pub struct WatchRequest {
    /// What is wanted.
    #[prost(oneof = "WatchUnion", tags = "1, 2, 3")]
    pub request_union: Option<WatchUnion>,
}

/// `etcdserverpb.WatchRequest.request_union`
#[derive(Clone, PartialEq, prost::Oneof, Deserialize)]
pub enum WatchUnion {
    /// A watch begins.
    #[prost(message, tag = "1")]
    #[serde(rename = "create_request", alias = "createRequest")]
    Create(WatchCreateRequest),
    /// A watch ends.
    #[prost(message, tag = "2")]
    #[serde(rename = "cancel_request", alias = "cancelRequest")]
    Cancel(WatchCancelRequest),
    /// Where it stands.
    #[prost(message, tag = "3")]
    #[serde(rename = "progress_request", alias = "progressRequest")]
    Progress(WatchProgressRequest),
}

/// `etcdserverpb.WatchResponse`
#[derive(Clone, PartialEq, prost::Message, Serialize)]
pub struct WatchResponse {
    /// Always there.
    #[prost(message, optional, tag = "1")]
    pub header: Option<ResponseHeader>,
    /// Which watch.
    #[prost(int64, tag = "2")]
    #[serde(serialize_with = "json::text", skip_serializing_if = "is_default")]
    pub watch_id: i64,
    /// It has begun.
    #[prost(bool, tag = "3")]
    #[serde(skip_serializing_if = "is_default")]
    pub created: bool,
    /// It has ended.
    #[prost(bool, tag = "4")]
    #[serde(skip_serializing_if = "is_default")]
    pub canceled: bool,
    /// Because what it asks for is forgotten: this is where one can begin.
    #[prost(int64, tag = "5")]
    #[serde(serialize_with = "json::text", skip_serializing_if = "is_default")]
    pub compact_revision: i64,
    /// Why it has ended.
    #[prost(string, tag = "6")]
    #[serde(skip_serializing_if = "is_default")]
    pub cancel_reason: String,
    /// What happened, all of one revision.
    #[prost(message, repeated, tag = "11")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub events: Vec<Event>,
}

/// `etcdserverpb.AuthenticateRequest`
#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default)]
pub struct AuthenticateRequest {
    /// The user.
    #[prost(string, tag = "1")]
    pub name: String,
    /// The password.
    #[prost(string, tag = "2")]
    pub password: String,
}

/// `etcdserverpb.AuthenticateResponse`
#[derive(Clone, PartialEq, prost::Message, Serialize)]
pub struct AuthenticateResponse {
    /// Always there.
    #[prost(message, optional, tag = "1")]
    pub header: Option<ResponseHeader>,
    /// What to send with requests.
    #[prost(string, tag = "2")]
    pub token: String,
}

/// `etcdserverpb.StatusRequest`
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct StatusRequest {}

/// `etcdserverpb.StatusResponse`
#[derive(Clone, PartialEq, prost::Message, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StatusResponse {
    /// Always there.
    #[prost(message, optional, tag = "1")]
    pub header: Option<ResponseHeader>,
    /// Which etcd this speaks like.
    #[prost(string, tag = "2")]
    pub version: String,
    /// Bytes of keys and values.
    #[prost(int64, tag = "3")]
    #[serde(serialize_with = "json::text")]
    pub db_size: i64,
    /// This member.
    #[prost(uint64, tag = "4")]
    #[serde(serialize_with = "json::text")]
    pub leader: u64,
    /// The revision, where etcd has the number of log entries.
    #[prost(uint64, tag = "5")]
    #[serde(serialize_with = "json::text")]
    pub raft_index: u64,
    /// As in the header.
    #[prost(uint64, tag = "6")]
    #[serde(serialize_with = "json::text")]
    pub raft_term: u64,
    /// As `raft_index`.
    #[prost(uint64, tag = "7")]
    #[serde(serialize_with = "json::text")]
    pub raft_applied_index: u64,
    /// As `db_size`.
    #[prost(int64, tag = "9")]
    #[serde(serialize_with = "json::text")]
    pub db_size_in_use: i64,
}
