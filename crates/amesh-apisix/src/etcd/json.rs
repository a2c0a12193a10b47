//! How etcd's gateway writes and reads single values: the JSON mapping of protocol buffers.

use super::proto::EventType;
use base64::display::Base64Display;
use base64::engine::general_purpose::STANDARD;
use base64::Engine;
use bytes::Bytes;
use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serializer};
use std::fmt::{self, Display};

/// Bytes as base64.
pub(super) fn bytes<S: Serializer>(value: &Bytes, s: S) -> Result<S::Ok, S::Error> {
    s.collect_str(&Base64Display::new(value, &STANDARD))
}

/// A 64-bit integer as text.
pub(super) fn text<T: Display, S: Serializer>(value: &T, s: S) -> Result<S::Ok, S::Error> {
    s.collect_str(value)
}

/// The name of an [`EventType`].
pub(super) fn event_type<S: Serializer>(value: &i32, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(if *value == EventType::Delete as i32 { "DELETE" } else { "PUT" })
}

/// Bytes from base64; `null` is the default, as everywhere in this mapping.
pub(super) fn from_base64<'de, D: Deserializer<'de>>(d: D) -> Result<Bytes, D::Error> {
    let text = Option::<std::borrow::Cow<'de, str>>::deserialize(d)?.unwrap_or_default();
    STANDARD
        .decode(text.as_bytes())
        .map(Bytes::from)
        .map_err(|e| de::Error::custom(format_args!("illegal base64: {e}")))
}

/// A number, text that is a number, or (for enumerations) a name.
struct Number<'a> {
    names: &'a [&'a str],
}

impl Visitor<'_> for Number<'_> {
    type Value = i64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.names {
            [] => f.write_str("a 64-bit integer, as a number or as text"),
            names => write!(f, "one of {}", names.join(", ")),
        }
    }

    fn visit_unit<E: de::Error>(self) -> Result<i64, E> {
        Ok(0)
    }

    fn visit_i64<E: de::Error>(self, v: i64) -> Result<i64, E> {
        Ok(v)
    }

    fn visit_u64<E: de::Error>(self, v: u64) -> Result<i64, E> {
        i64::try_from(v).map_err(|_| E::invalid_value(de::Unexpected::Unsigned(v), &self))
    }

    // Clients without integers write large ones with an exponent.
    fn visit_f64<E: de::Error>(self, v: f64) -> Result<i64, E> {
        if v.fract() == 0.0 && v.abs() < (1u64 << 63) as f64 {
            Ok(v as i64)
        } else {
            Err(E::invalid_value(de::Unexpected::Float(v), &self))
        }
    }

    fn visit_str<E: de::Error>(self, v: &str) -> Result<i64, E> {
        if let Some(i) = self.names.iter().position(|n| *n == v) {
            return Ok(i as i64);
        }
        v.parse().map_err(|_| E::invalid_value(de::Unexpected::Str(v), &self))
    }
}

/// A 64-bit integer.
pub(super) fn integer<'de, D: Deserializer<'de>>(d: D) -> Result<i64, D::Error> {
    d.deserialize_any(Number { names: &[] })
}

fn named<'de, D: Deserializer<'de>>(names: &[&str], d: D) -> Result<i32, D::Error> {
    let number = d.deserialize_any(Number { names })?;
    i32::try_from(number).map_err(|_| de::Error::custom(format_args!("one of {}", names.join(", "))))
}

/// `RangeRequest.SortOrder`
pub(super) fn sort_order<'de, D: Deserializer<'de>>(d: D) -> Result<i32, D::Error> {
    named(&["NONE", "ASCEND", "DESCEND"], d)
}

/// `RangeRequest.SortTarget`
pub(super) fn sort_target<'de, D: Deserializer<'de>>(d: D) -> Result<i32, D::Error> {
    named(&["KEY", "VERSION", "CREATE", "MOD", "VALUE"], d)
}

/// `WatchCreateRequest.FilterType`, any number of them.
pub(super) fn filters<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<i32>, D::Error> {
    struct Filter(i32);
    impl<'de> Deserialize<'de> for Filter {
        fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Filter, D::Error> {
            named(&["NOPUT", "NODELETE"], d).map(Filter)
        }
    }
    Ok(Vec::<Filter>::deserialize(d)?.into_iter().map(|f| f.0).collect())
}
