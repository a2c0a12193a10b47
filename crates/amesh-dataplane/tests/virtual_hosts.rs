//! Which virtual host takes a host name. The answers of the table are those that Envoy 1.40 gave.

mod common;

use amesh_dataplane::route::virtual_host;
use amesh_model::route::RouteTable;
use common::{stored, table};
use proptest::prelude::*;

#[test]
fn the_longest_domain_wins_and_a_port_counts_unless_it_is_ignored() {
    let host = |name: &str| common::virtual_host(name, vec![]);
    let mut model = table(vec![
        (&["www.example.com"], host("exact")),
        (&["www.example.com:80"], host("port")),
        (&["*.example.com"], host("suffix")),
        (&["*-bar.example.com"], host("longer")),
        (&["www.*"], host("prefix")),
        (&["[::1]"], host("v6")),
    ]);
    let find = |model: &RouteTable, host: &str| {
        virtual_host(stored(model), host).map_or("-".into(), |(_, vh)| vh.name.to_string())
    };
    for (name, want, ignoring) in [
        ("www.example.com", "exact", "exact"),
        ("WWW.Example.com", "exact", "exact"),
        ("www.example.com:80", "port", "exact"),
        ("www.example.com:81", "prefix", "exact"),
        ("a.example.com", "suffix", "suffix"),
        (".example.com", "-", "-"),
        ("x-bar.example.com", "longer", "longer"),
        ("-bar.example.com", "suffix", "suffix"),
        ("www.foo", "prefix", "prefix"),
        ("www.", "-", "-"),
        ("zzz", "-", "-"),
        ("a.example.com:80", "-", "suffix"),
        ("[::1]:80", "-", "v6"),
        ("[::1]", "v6", "v6"),
        ("www.example.com:x", "prefix", "exact"),
        ("www.example.com.", "prefix", "prefix"),
        ("", "-", "-"),
        ("é", "-", "-"),
    ] {
        model.ignore_port_in_host_matching = false;
        assert_eq!(find(&model, name), want, "{name}");
        model.ignore_port_in_host_matching = true;
        assert_eq!(find(&model, name), ignoring, "{name}, port ignored");
    }
    let long = format!("{}.EXAMPLE.com", "a".repeat(400));
    assert_eq!(find(&model, &long), "suffix", "a host longer than any DNS name");
    assert_eq!(find(&table(vec![(&["*"], host("any"))]), ""), "any", "an empty host");
}

/// Every domain is looked at, the best one wins: exact, then the longest suffix, then the longest prefix, then `*`.
fn naive<'a>(domains: &'a [String], host: &str) -> Option<&'a String> {
    let rank = |domain: &String| match (domain.strip_prefix('*'), domain.strip_suffix('*')) {
        (Some(""), _) => Some((0, 0)),
        (Some(suffix), _) => (host.len() > suffix.len() && host.ends_with(suffix)).then_some((2, suffix.len())),
        (_, Some(prefix)) => (host.len() > prefix.len() && host.starts_with(prefix)).then_some((1, prefix.len())),
        _ => (domain == host).then_some((3, 0)),
    };
    domains.iter().filter(|d| rank(d).is_some()).max_by_key(|d| rank(d))
}

proptest! {
    #[test]
    fn the_virtual_host_is_the_one_that_looking_at_all_domains_would_give(
        domains in proptest::collection::btree_set("(\\*|[ab]|\\*[ab.]{1,4}|[ab.]{1,4}\\*|[ab.]{1,5})", 1..12),
        host in "[abAB.]{0,7}",
    ) {
        let domains: Vec<String> = domains.into_iter().collect();
        let hosts = domains.iter().map(|d| vec![d.as_str()]).collect::<Vec<_>>();
        let hosts = domains.iter().zip(&hosts).map(|(d, n)| (n.as_slice(), common::virtual_host(d, vec![])));
        let model = table(hosts.collect());
        let got = virtual_host(stored(&model), &host).map(|(_, vh)| vh.name.to_string());
        let want = naive(&domains, &host.to_lowercase());
        prop_assert_eq!(got.as_ref(), want);
    }
}
