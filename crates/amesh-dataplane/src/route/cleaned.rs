//! A request from outside without the headers that only the mesh may set (`ConnectionManagerUtility::cleanInternalHeaders`).

use super::{Certificate, MetadataValue, RequestHead};
use crate::header::Command;
use rkyv::string::ArchivedString;
use std::borrow::Cow;

/// A head in which some headers are not there.
pub(super) struct Cleaned<'h, H> {
    /// The head as it came.
    pub head: &'h H,
    /// `internal_only_headers`.
    pub without: &'h [ArchivedString],
}

impl<H: RequestHead> RequestHead for Cleaned<'_, H> {
    fn header_values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> + 'a {
        let hidden = self.without.iter().any(|hidden| hidden.as_str() == name);
        self.head.header_values(name).filter(move |_| !hidden)
    }

    fn method(&self) -> &str {
        self.head.method()
    }

    fn path(&self) -> &str {
        self.head.path()
    }

    fn host(&self) -> &str {
        self.head.host()
    }

    fn scheme(&self) -> &str {
        self.head.scheme()
    }

    fn random(&self) -> u64 {
        self.head.random()
    }

    fn is_internal(&self) -> bool {
        self.head.is_internal()
    }

    fn runtime_fraction(&self, key: &str) -> Option<(u32, u32)> {
        self.head.runtime_fraction(key)
    }

    fn client_certificate(&self) -> Certificate {
        self.head.client_certificate()
    }

    fn dynamic_metadata(&self, filter: &str, path: &[&str]) -> Option<MetadataValue<'_>> {
        self.head.dynamic_metadata(filter, path)
    }

    fn filter_state(&self, key: &str) -> Option<Cow<'_, [u8]>> {
        self.head.filter_state(key)
    }

    fn write(&self, command: Command, out: &mut Vec<u8>) {
        self.head.write(command, out);
    }
}
