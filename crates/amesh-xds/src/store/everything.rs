//! All that is published, once more: for a zone that is new.

use super::{Batch, Store, Type};
use envoy_types::pb::google::protobuf::Any;

impl Store {
    /// One batch with all that [`Store::take_batch`] has given so far, and what waited to be given. It costs as much as
    /// taking the whole world in.
    pub fn everything(&self, now: u64) -> Option<Batch> {
        let mut copy = Store { added: self.added.clone(), ..Store::default() };
        for t in Type::ALL {
            let all = self.published(t).into_iter().map(|(name, version, bytes)| {
                (name.to_owned(), version.to_owned(), Any { type_url: t.url().to_owned(), value: bytes.to_vec() })
            });
            copy.update(t.url(), all.collect(), Vec::new(), false, now);
        }
        for (host, family, answer) in self.dns_answers() {
            copy.dns_result(host, family, Some(answer.to_vec()), now);
        }
        // What was published because it waited too long waits there again.
        for (name, _, _) in self.published(Type::Cluster) {
            copy.promote_cluster(name, true);
        }
        for (name, _, _) in self.published(Type::Listener) {
            copy.promote_listener(name, true);
        }
        // Tables of listeners that still wait were published already, and will not be again.
        for name in self.table_users.keys() {
            copy.publish_waiting_table(name);
        }
        copy.take_batch()
    }

    /// Name, version and bytes of what is published of a type, or is only waiting for who refers to it.
    fn published(&self, t: Type) -> Vec<(&str, &str, &[u8])> {
        fn named<'a>(name: &'a str, (version, bytes): (&'a str, &'a [u8])) -> (&'a str, &'a str, &'a [u8]) {
            (name, version, bytes)
        }
        match t {
            Type::Cluster => self.clusters.iter().filter_map(|(n, r)| Some(named(n, r.published()?))).collect(),
            Type::Listener => self.listeners.iter().filter_map(|(n, r)| Some(named(n, r.published()?))).collect(),
            Type::ClusterLoadAssignment | Type::RouteConfiguration => {
                self.goods(t).into_iter().map(|(n, g)| (n, g.version.as_str(), g.bytes.as_slice())).collect()
            }
        }
    }
}
