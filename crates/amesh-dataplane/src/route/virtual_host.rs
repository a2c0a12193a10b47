//! The virtual host of a host name (`RouteMatcher::findVirtualHost`), and the virtual cluster of a request.

use super::{matches, RequestHead};
use crate::path::port_start;
use crate::regex::RegexCache;
use amesh_model::route::{ArchivedDomains, ArchivedRouteTable, ArchivedVirtualHost};

/// Longest host that is lower-cased without an allocation; no DNS name is longer.
const STACK: usize = 256;

/// The virtual host that takes `host`, with its index: exact before the longest suffix, that before the longest prefix,
/// that before `*`. Case does not matter; a port does, unless the table says otherwise.
pub fn virtual_host<'a>(table: &'a ArchivedRouteTable, host: &str) -> Option<(usize, &'a ArchivedVirtualHost)> {
    let host = match port_start(host) {
        Some(colon) if table.ignore_port_in_host_matching => &host[..colon],
        _ => host,
    };
    let index = if !host.bytes().any(|b| b.is_ascii_uppercase()) {
        find(&table.domains, host)
    } else if let Some(buffer) = [0u8; STACK].get_mut(..host.len()) {
        buffer.copy_from_slice(host.as_bytes());
        buffer.make_ascii_lowercase();
        find(&table.domains, std::str::from_utf8(buffer).ok()?)
    } else {
        find(&table.domains, &host.to_ascii_lowercase())
    }?;
    let index = usize::try_from(index).ok()?;
    table.virtual_hosts.get(index).map(|vh| (index, vh))
}

/// The name of the group that a request is part of (`VirtualHostImpl::virtualClusterFromEntries`): the first that
/// matches; `None`: it is part of none. To be asked before the request is changed.
pub fn virtual_cluster<'a>(
    host: &'a ArchivedVirtualHost,
    head: &impl RequestHead,
    regexes: &mut RegexCache,
) -> Option<&'a str> {
    let mut groups = host.virtual_clusters.iter();
    let found = groups.find(|c| c.headers.iter().all(|m| matches::header_matches(m, head, regexes)));
    found.map(|group| group.name.as_str())
}

fn find(domains: &ArchivedDomains, host: &str) -> Option<u32> {
    if let Some(index) = domains.exact.get(host) {
        return Some(index.to_native());
    }
    // What stands for the star is never empty: `*.example.com` does not take `.example.com`.
    let shorter = |length: &usize| *length < host.len();
    for length in domains.suffix_lengths.iter().map(|l| l.to_native() as usize).filter(shorter) {
        let from = host.len() - length;
        if let Some(index) = host.get(from..).and_then(|suffix| domains.suffix.get(suffix)) {
            return Some(index.to_native());
        }
    }
    for length in domains.prefix_lengths.iter().map(|l| l.to_native() as usize).filter(shorter) {
        if let Some(index) = host.get(..length).and_then(|prefix| domains.prefix.get(prefix)) {
            return Some(index.to_native());
        }
    }
    domains.any.as_ref().map(|index| index.to_native())
}
