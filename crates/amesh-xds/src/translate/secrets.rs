//! Resources for the disk: as they came, without what must never be written there.
//!
//! What is secret stands in Envoy's own protos (`udpa.annotations.sensitive`: private keys, passwords, session ticket
//! keys, users of basic auth). The bytes are walked as they are: most resources hold no secret and are copied.

use crate::descriptor;
use envoy_types::pb::envoy::config::core::v3::{data_source::Specifier, DataSource};
use envoy_types::pb::google::protobuf::Any;
use prost::encoding::{decode_key, decode_varint, encode_key, encode_varint, skip_field, DecodeContext, WireType};
use prost::Message;
use prost_reflect::{DescriptorPool, FieldDescriptor, Kind, MessageDescriptor};
use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::OnceLock;

const ANY: &str = "google.protobuf.Any";
const DATA_SOURCE: &str = "envoy.config.core.v3.DataSource";
/// Within one, what cannot be looked into goes: it may be a key. Elsewhere it stays: filters of others, and what Istio
/// writes for itself, would else come anew with every restart.
const TRANSPORT_SOCKET: &str = "envoy.config.core.v3.TransportSocket";
/// Structures in place of messages: no descriptor says what is in them.
const OPAQUE: [&str; 2] = ["udpa.type.v1.TypedStruct", "xds.type.v3.TypedStruct"];
/// Messages in messages: more than a real resource has.
const DEPTH: u32 = 100;
/// Secrets, or what can hold them, that the protos do not mark.
const UNMARKED: [&str; 5] = [
    "envoy.config.core.v3.GrpcService.initial_metadata",
    "envoy.config.core.v3.GrpcService.GoogleGrpc.CallCredentials.access_token",
    "envoy.config.core.v3.GrpcService.GoogleGrpc.CallCredentials.google_refresh_token",
    "envoy.config.core.v3.GrpcService.GoogleGrpc.CallCredentials.ServiceAccountJWTAccessCredentials.json_key",
    "envoy.config.core.v3.GrpcService.GoogleGrpc.CallCredentials.GoogleIAMCredentials.authorization_token",
];

/// Which fields hold secrets, and in which messages any can be.
struct Knowledge {
    pool: DescriptorPool,
    fields: HashSet<String>,
    messages: HashSet<String>,
}

fn knowledge() -> Option<&'static Knowledge> {
    static KNOWLEDGE: OnceLock<Option<Knowledge>> = OnceLock::new();
    KNOWLEDGE.get_or_init(|| descriptor::pool().ok().map(Knowledge::new)).as_ref()
}

/// Where in a resource.
#[derive(Clone, Copy)]
struct Place {
    /// How much deeper it may go.
    depth: u32,
    /// Whether only what is known stays.
    strict: bool,
}

impl Place {
    fn inside(self, message: &MessageDescriptor) -> Option<Place> {
        let strict = self.strict || message.full_name() == TRANSPORT_SOCKET;
        Some(Place { depth: self.depth.checked_sub(1)?, strict })
    }
}

impl Knowledge {
    fn new(pool: DescriptorPool) -> Knowledge {
        let marked = include_str!(concat!(env!("OUT_DIR"), "/sensitive.txt")).lines();
        let fields: HashSet<String> = marked.chain(UNMARKED).map(str::to_owned).collect();
        // Who has a field of a message's type, by that type.
        let mut users: HashMap<String, Vec<MessageDescriptor>> = HashMap::new();
        let mut found = Vec::new();
        for message in pool.all_messages() {
            if message.full_name() == ANY || message.fields().any(|f| fields.contains(f.full_name())) {
                found.push(message.clone());
            }
            for field in message.fields() {
                if let Kind::Message(inner) = field.kind() {
                    users.entry(inner.full_name().to_owned()).or_default().push(message.clone());
                }
            }
        }
        let mut messages = HashSet::new();
        while let Some(message) = found.pop() {
            if messages.insert(message.full_name().to_owned()) {
                found.extend(users.get(message.full_name()).into_iter().flatten().cloned());
            }
        }
        Knowledge { pool, fields, messages }
    }

    /// The message in `bytes` without its secrets; `None`: it is none.
    fn clean(&self, message: &MessageDescriptor, mut bytes: &[u8], place: Place) -> Option<Vec<u8>> {
        let place = place.inside(message)?;
        let mut out = Vec::with_capacity(bytes.len());
        while !bytes.is_empty() {
            let start = bytes;
            let (tag, wire) = decode_key(&mut bytes).ok()?;
            let field = message.get_field(tag);
            if wire != WireType::LengthDelimited {
                skip_field(wire, tag, &mut bytes, DecodeContext::default()).ok()?;
                let raw = start.get(..start.len() - bytes.len())?;
                let kept = match field {
                    Some(field) => !self.fields.contains(field.full_name()),
                    None => !place.strict,
                };
                if kept {
                    out.extend_from_slice(raw);
                }
                continue;
            }
            let len = usize::try_from(decode_varint(&mut bytes).ok()?).ok()?;
            let (value, rest) = bytes.split_at_checked(len)?;
            bytes = rest;
            let kept = match field {
                Some(field) => self.field(&field, value, place)?,
                None => (!place.strict).then_some(value.into()),
            };
            if let Some(kept) = kept {
                encode_key(tag, wire, &mut out);
                encode_varint(kept.len() as u64, &mut out);
                out.extend_from_slice(&kept);
            }
        }
        Some(out)
    }

    /// What stays of a field; `Some(None)`: not even that it was there.
    fn field<'a>(&self, field: &FieldDescriptor, value: &'a [u8], place: Place) -> Option<Option<Cow<'a, [u8]>>> {
        let message = match field.kind() {
            Kind::Message(message) => Some(message),
            _ => None,
        };
        let kept = match message {
            message if self.fields.contains(field.full_name()) => match message.as_ref().map(|m| m.full_name()) {
                Some(DATA_SOURCE) => data_source(value)?.into(),
                Some(ANY) => Any { value: Vec::new(), ..Any::decode(value).ok()? }.encode_to_vec().into(),
                _ if field.is_list() || field.is_map() => return Some(None),
                // That one of several was chosen is no secret.
                _ => Cow::Borrowed(&[][..]),
            },
            Some(message) if message.full_name() == ANY => self.any(value, place)?.into(),
            Some(message) if self.messages.contains(message.full_name()) => self.clean(&message, value, place)?.into(),
            _ => value.into(),
        };
        Some(Some(kept))
    }

    /// A message of any type.
    fn any(&self, bytes: &[u8], place: Place) -> Option<Vec<u8>> {
        let Any { type_url, value } = Any::decode(bytes).ok()?;
        let known = self.pool.get_message_by_name(type_url.rsplit('/').next()?);
        let value = match known {
            Some(message) if self.messages.contains(message.full_name()) => self.clean(&message, &value, place)?,
            Some(message) if !place.strict || !OPAQUE.contains(&message.full_name()) => value,
            None if !place.strict => value,
            Some(_) | None => Vec::new(),
        };
        Some(Any { type_url, value }.encode_to_vec())
    }
}

/// A source of a secret: where it can be read stays, and what stood in it goes.
fn data_source(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut source = DataSource::decode(bytes).ok()?;
    match source.specifier.as_mut() {
        Some(Specifier::InlineBytes(secret)) => secret.clear(),
        Some(Specifier::InlineString(secret)) => secret.clear(),
        Some(Specifier::Filename(_) | Specifier::EnvironmentVariable(_)) | None => {}
    }
    Some(source.encode_to_vec())
}

/// The bytes of a resource without secrets; `None`: what is in them cannot be told. What holds none comes back as it
/// is. A transport socket says the same as before: files, names of secrets, certificates and trust stay.
pub fn without_secrets(type_url: &str, bytes: &[u8]) -> Option<Vec<u8>> {
    let knowledge = knowledge()?;
    let message = knowledge.pool.get_message_by_name(type_url.rsplit('/').next()?)?;
    knowledge.clean(&message, bytes, Place { depth: DEPTH, strict: false })
}
