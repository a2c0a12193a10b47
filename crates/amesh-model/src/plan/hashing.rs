//! Rings and Maglev tables, as Envoy builds them: in a mixed mesh the same key goes to the same endpoint.

use super::{ArchivedOwners, ArchivedTable, Owners, Table};
use crate::cluster::HashFunction;
use xxhash_rust::xxh64::xxh64;

/// An endpoint to be hashed.
pub(super) struct Weighted {
    /// Its number.
    pub(super) number: u32,
    /// What is hashed for it.
    pub(super) key: String,
    /// Its weight: all together weigh 1.
    pub(super) part: f64,
}

/// A ring (`RingHashLoadBalancer::Ring::Ring`).
pub(super) fn ring(hosts: &[Weighted], minimum: u64, maximum: u64, function: HashFunction) -> Table {
    if hosts.is_empty() {
        return Table::None;
    }
    // So many hashes in all that the lightest endpoint gets a whole number of them.
    let least = hosts.iter().map(|h| h.part).fold(1.0, f64::min);
    let scale = ((least * minimum as f64).ceil() / least).min(maximum as f64);
    let mut entries: Vec<(u64, u32)> = Vec::with_capacity(scale as usize);
    let mut key = Vec::new();
    // Running sums, as in Envoy: where parts are not whole numbers they decide who gets one more.
    let (mut current, mut target) = (0.0, 0.0);
    for (owner, host) in (0..).zip(hosts) {
        target += scale * host.part;
        let mut i = 0u64;
        while current < target {
            key.clear();
            key.extend_from_slice(host.key.as_bytes());
            key.push(b'_');
            key.extend_from_slice(i.to_string().as_bytes());
            let hash = match function {
                HashFunction::XxHash => xxh64(&key, 0),
                HashFunction::MurmurHash2 => murmur_hash_2(&key),
            };
            entries.push((hash, owner));
            i += 1;
            current += 1.0;
        }
    }
    entries.sort_by_key(|e| e.0);
    let owners = Owners::new(hosts.len(), entries.iter().map(|e| e.1));
    Table::Ring { hashes: entries.into_iter().map(|e| e.0).collect(), owners }
}

/// A Maglev table (`MaglevTable`); `size` is a prime.
pub(super) fn maglev(hosts: &[Weighted], size: u64) -> Table {
    struct Entry {
        owner: u32,
        part: f64,
        target: f64,
        /// Its next place: the permutation goes on by `skip`.
        next: u64,
        skip: u64,
    }
    if hosts.is_empty() || size < 2 {
        return Table::None;
    }
    let mut sorted: Vec<(u32, &Weighted)> = (0..).zip(hosts).collect();
    sorted.sort_by(|a, b| a.1.key.as_bytes().cmp(b.1.key.as_bytes()));
    let entry = |(owner, host): (u32, &Weighted)| Entry {
        owner,
        part: host.part,
        target: 0.0,
        next: xxh64(host.key.as_bytes(), 0) % size,
        skip: xxh64(host.key.as_bytes(), 1) % (size - 1) + 1,
    };
    let mut entries: Vec<Entry> = sorted.into_iter().map(entry).collect();
    let most = hosts.iter().map(|h| h.part).fold(0.0, f64::max);
    let mut table: Vec<Option<u32>> = vec![None; size as usize];
    let mut open = size;
    let mut round = 0.0;
    while open > 0 {
        round += 1.0;
        for e in &mut entries {
            // Who weighs half of the heaviest has a turn every other round.
            if open == 0 || round * e.part < e.target {
                continue;
            }
            e.target += most;
            while let Some(place) = table.get_mut(e.next as usize) {
                e.next = (e.next + e.skip) % size;
                if place.is_none() {
                    *place = Some(e.owner);
                    open -= 1;
                    break;
                }
            }
        }
    }
    Table::Maglev(Owners::new(hosts.len(), table.into_iter().flatten()))
}

/// `MurmurHash2` of 64 bits with the seed of libstdc++'s `std::hash`.
fn murmur_hash_2(key: &[u8]) -> u64 {
    const MUL: u64 = 0xc6a4_a793_5bd1_e995;
    const SEED: u64 = 0xc70f_6907;
    let mix = |v: u64| v ^ (v >> 47);
    let mut hash = SEED ^ (key.len() as u64).wrapping_mul(MUL);
    let mut words = key.chunks_exact(8);
    for word in &mut words {
        let word = word.iter().rev().fold(0u64, |w, b| w << 8 | u64::from(*b));
        let data = mix(word.wrapping_mul(MUL)).wrapping_mul(MUL);
        hash = (hash ^ data).wrapping_mul(MUL);
    }
    let rest = words.remainder();
    if !rest.is_empty() {
        let data = rest.iter().rev().fold(0u64, |w, b| w << 8 | u64::from(*b));
        hash = (hash ^ data).wrapping_mul(MUL);
    }
    mix(mix(hash).wrapping_mul(MUL))
}

impl Owners {
    fn new(members: usize, owners: impl Iterator<Item = u32>) -> Owners {
        match members {
            ..=0x100 => Owners::U8(owners.map(|o| o as u8).collect()),
            0x101..=0x1_0000 => Owners::U16(owners.map(|o| o as u16).collect()),
            _ => Owners::U32(owners.collect()),
        }
    }
}

impl ArchivedOwners {
    fn get(&self, at: usize) -> Option<usize> {
        match self {
            ArchivedOwners::U8(list) => list.get(at).map(|o| usize::from(*o)),
            ArchivedOwners::U16(list) => list.get(at).map(|o| usize::from(o.to_native())),
            ArchivedOwners::U32(list) => list.get(at).map(|o| o.to_native() as usize),
        }
    }
}

impl ArchivedTable {
    /// The member that takes a hash, at the `attempt`th choice of one try (from 0): `None` when there is nobody.
    /// Further choices go on along the ring, or elsewhere in the table, and may meet the same member again.
    pub fn find(&self, hash: u64, attempt: u32) -> Option<usize> {
        match self {
            ArchivedTable::None => None,
            ArchivedTable::Ring { hashes, owners } => {
                let at = hashes.partition_point(|h| h.to_native() < hash);
                let at = if at == hashes.len() { 0 } else { at };
                owners.get((at + attempt as usize).checked_rem(hashes.len())?)
            }
            ArchivedTable::Maglev(owners) => {
                let size = match owners {
                    ArchivedOwners::U8(list) => list.len(),
                    ArchivedOwners::U16(list) => list.len(),
                    ArchivedOwners::U32(list) => list.len(),
                };
                let hash = if attempt == 0 { hash } else { hash ^ u64::from(attempt).wrapping_neg() };
                owners.get(hash.checked_rem(size as u64)? as usize)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn murmur_hash_2_is_that_of_libstdcxx() {
        // What `std::hash<std::string>` says.
        for (key, hash) in [
            ("", 6142509188972423790),
            ("a", 4993892634952068459),
            ("1234567", 7888703982793837558),
            ("12345678", 10113836418918046885),
            ("10.0.0.1:80_17", 4437040220721654695),
            ("service-with-a-longer-name:8080_1023", 15865749314139769331),
        ] {
            assert_eq!(murmur_hash_2(key.as_bytes()), hash, "{key}");
        }
    }
}
