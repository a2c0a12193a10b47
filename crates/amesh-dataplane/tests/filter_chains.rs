//! Which listener and which filter chain take a connection.

mod common;

use amesh_dataplane::listener::{
    filter_chain_at, find_filter_chain, find_listener, inspectors, ConnectionInfo, Direction, Transport,
    DEFAULT_FILTER_CHAIN,
};
use amesh_model::address::CidrRange;
use amesh_model::listener::{FilterChain, FilterChainMatch, Listener, ListenerIndex, PortPredicate, SourceType};
use common::{chain, listener, stored};
use proptest::prelude::*;
use std::net::{IpAddr, SocketAddr};

fn cidr(text: &str) -> CidrRange {
    let (ip, length) = text.split_once('/').unwrap();
    CidrRange { ip: ip.parse::<IpAddr>().unwrap().into(), prefix_len: length.parse().unwrap() }
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|n| (*n).to_owned()).collect()
}

fn to(destination: &str) -> ConnectionInfo<'static> {
    let source: SocketAddr = "198.18.0.6:40000".parse().unwrap();
    ConnectionInfo {
        destination: destination.parse().unwrap(),
        source,
        direct_source: source,
        server_name: None,
        transport_protocol: Transport::Raw,
        application_protocols: &[],
    }
}

/// The name of the chain that takes the connection; `-`: none.
fn taken(model: &Listener, connection: ConnectionInfo<'_>) -> String {
    let model = stored(model);
    let Some((index, chain)) = find_filter_chain(model, &connection) else { return "-".into() };
    assert_eq!(filter_chain_at(model, index).unwrap().name, chain.name);
    chain.name.to_string()
}

/// What Istio gives a sidecar for a port whose protocol is not declared, and for `virtualInbound`.
#[test]
fn protocols_that_are_found_by_sniffing_have_their_chains() {
    let http = |name: &str, transport: &str| {
        chain(
            name,
            FilterChainMatch {
                transport_protocol: transport.into(),
                application_protocols: names(&["http/1.1", "h2c"]),
                ..FilterChainMatch::default()
            },
        )
    };
    let model = Listener {
        default_filter_chain: Some(chain("tcp", FilterChainMatch::default())),
        ..listener(vec![http("http", "raw_buffer")])
    };
    assert_eq!(taken(&model, ConnectionInfo { application_protocols: &["http/1.1"], ..to("1.2.3.4:80") }), "http");
    assert_eq!(taken(&model, to("1.2.3.4:80")), "tcp");
    assert_eq!(taken(&model, ConnectionInfo { application_protocols: &["http/1.0"], ..to("1.2.3.4:80") }), "tcp");
    let tls =
        ConnectionInfo { transport_protocol: Transport::Tls, application_protocols: &["http/1.1"], ..to("1.2.3.4:80") };
    assert_eq!(taken(&model, tls), "tcp");
    assert_eq!(find_filter_chain(stored(&model), &tls).unwrap().0, DEFAULT_FILTER_CHAIN);
}

#[test]
fn each_criterion_prefers_the_most_specific_chain() {
    let with = |f: &dyn Fn(&mut FilterChainMatch)| {
        let mut m = FilterChainMatch::default();
        f(&mut m);
        m
    };
    let all = || chain("all", FilterChainMatch::default());
    let one = |f: &dyn Fn(&mut FilterChainMatch)| listener(vec![all(), chain("one", with(f))]);
    let port = one(&|m| m.destination_port = Some(80));
    assert_eq!(taken(&port, to("1.2.3.4:80")), "one");
    assert_eq!(taken(&port, to("1.2.3.4:81")), "all");

    let ranges = listener(vec![
        chain("16", with(&|m| m.prefix_ranges = vec![cidr("10.1.0.0/16")])),
        all(),
        chain("24", with(&|m| m.prefix_ranges = vec![cidr("10.1.1.0/24"), cidr("fd00::/8")])),
        chain("0", with(&|m| m.prefix_ranges = vec![cidr("0.0.0.0/0")])),
    ]);
    assert_eq!(taken(&ranges, to("10.1.1.9:80")), "24");
    assert_eq!(taken(&ranges, to("10.1.2.9:80")), "16");
    assert_eq!(taken(&ranges, to("10.2.2.9:80")), "0");
    assert_eq!(taken(&ranges, to("[fd00::1]:80")), "24");
    assert_eq!(taken(&ranges, to("[fe00::1]:80")), "all");
    assert_eq!(taken(&ranges, to("[::ffff:10.1.1.9]:80")), "24", "a v4-mapped address is IPv4");

    let sni = listener(vec![
        chain("wide", with(&|m| m.server_names = names(&["*.example.com"]))),
        chain("narrow", with(&|m| m.server_names = names(&["*.b.example.com", "x.org"]))),
        chain("exact", with(&|m| m.server_names = names(&["a.b.example.com"]))),
    ]);
    let ask = |name| taken(&sni, ConnectionInfo { server_name: name, ..to("1.2.3.4:443") });
    assert_eq!(ask(Some("a.b.example.com")), "exact");
    assert_eq!(ask(Some("c.b.example.com")), "narrow");
    assert_eq!(ask(Some("b.example.com")), "wide");
    assert_eq!(ask(Some("x.org")), "narrow");
    assert_eq!(ask(Some("example.com")), "-");
    assert_eq!(ask(Some(".example.com")), "wide");
    assert_eq!(ask(Some("")), "-");
    assert_eq!(ask(None), "-");

    let transport = one(&|m| m.transport_protocol = "tls".into());
    assert_eq!(taken(&transport, to("1.2.3.4:80")), "all");
    assert_eq!(taken(&transport, ConnectionInfo { transport_protocol: Transport::Tls, ..to("1.2.3.4:80") }), "one");

    let alpn = listener(vec![
        chain("h1", with(&|m| m.application_protocols = names(&["http/1.1"]))),
        chain("h2", with(&|m| m.application_protocols = names(&["h2"]))),
    ]);
    let ask = |offered| taken(&alpn, ConnectionInfo { application_protocols: offered, ..to("1.2.3.4:443") });
    assert_eq!(ask(&["h2", "http/1.1"]), "h2", "the client's order counts");
    assert_eq!(ask(&["istio", "http/1.1", "h2"]), "h1");
    assert_eq!(ask(&["istio"]), "-");

    let direct = one(&|m| m.direct_source_prefix_ranges = vec![cidr("10.0.0.0/8")]);
    let proxied = ConnectionInfo { direct_source: "10.0.0.1:1".parse().unwrap(), ..to("1.2.3.4:80") };
    assert_eq!(taken(&direct, proxied), "one");
    assert_eq!(taken(&direct, ConnectionInfo { source: proxied.direct_source, ..to("1.2.3.4:80") }), "all");

    let source = one(&|m| m.source_prefix_ranges = vec![cidr("198.18.0.0/16")]);
    assert_eq!(taken(&source, to("1.2.3.4:80")), "one");
    assert_eq!(taken(&source, ConnectionInfo { source: "10.0.0.1:1".parse().unwrap(), ..to("1.2.3.4:80") }), "all");

    let ports = one(&|m| m.source_ports = vec![1, 40000]);
    assert_eq!(taken(&ports, to("1.2.3.4:80")), "one");
    assert_eq!(taken(&ports, ConnectionInfo { source: "198.18.0.6:2".parse().unwrap(), ..to("1.2.3.4:80") }), "all");
}

#[test]
fn a_local_client_is_told_from_an_external_one() {
    let of = |name: &str, source_type| chain(name, FilterChainMatch { source_type, ..FilterChainMatch::default() });
    let both = listener(vec![of("local", SourceType::SameIpOrLoopback), of("external", SourceType::External)]);
    let any = listener(vec![of("local", SourceType::SameIpOrLoopback), of("any", SourceType::Any)]);
    for (source, local) in [
        ("127.0.0.1:1", true),
        ("[::1]:1", true),
        ("[::ffff:127.0.0.1]:1", true),
        ("1.2.3.4:1", true),
        ("127.0.0.2:1", false),
        ("1.2.3.5:1", false),
    ] {
        let connection = ConnectionInfo { source: source.parse().unwrap(), ..to("1.2.3.4:80") };
        assert_eq!(taken(&both, connection) == "local", local, "{source}");
        assert_eq!(taken(&any, connection), if local { "local" } else { "any" }, "{source}");
    }
}

#[test]
fn there_is_no_way_back_from_a_more_specific_criterion() {
    let specific = FilterChainMatch {
        destination_port: Some(443),
        transport_protocol: "tls".into(),
        ..FilterChainMatch::default()
    };
    let mut model = listener(vec![chain("443", specific), chain("all", FilterChainMatch::default())]);
    assert_eq!(taken(&model, to("1.2.3.4:443")), "-", "plaintext to 443 does not reach the chain of all ports");
    assert_eq!(taken(&model, to("1.2.3.4:80")), "all");
    model.default_filter_chain = Some(chain("default", FilterChainMatch::default()));
    assert_eq!(taken(&model, to("1.2.3.4:443")), "default");
}

#[test]
fn a_listener_with_many_chains_finds_the_last() {
    for n in [63u16, 64, 65, 255, 256, 257, 1000] {
        let by_port = |p: u16| {
            chain(&p.to_string(), FilterChainMatch { destination_port: Some(p), ..FilterChainMatch::default() })
        };
        let model = listener((1..=n).map(by_port).collect());
        assert_eq!(taken(&model, to(&format!("1.2.3.4:{n}"))), n.to_string());
        assert_eq!(taken(&model, to(&format!("1.2.3.4:{}", n + 1))), "-");
    }
}

#[test]
fn the_listener_is_that_of_the_original_destination() {
    let mut index = ListenerIndex {
        by_address: [("10.0.0.1:80", "exact"), ("0.0.0.0:80", "any4"), ("[::]:81", "any6"), ("[fd00::1]:80", "exact6")]
            .map(|(a, n)| (a.to_owned(), n.to_owned()))
            .into(),
        inbound_by_address: [("10.0.0.1:80", "inbound"), ("[::]:81", "inbound6")]
            .map(|(a, n)| (a.to_owned(), n.to_owned()))
            .into(),
        virtual_outbound: "virtualOutbound".into(),
        virtual_inbound: "virtualInbound".into(),
    };
    let outbound = [
        ("10.0.0.1:80", "exact"),
        ("10.0.0.2:80", "any4"),
        ("[::ffff:10.0.0.1]:80", "exact"),
        ("10.0.0.2:81", "virtualOutbound"),
        ("[fd00::1]:80", "exact6"),
        ("[fd00::2]:80", "virtualOutbound"),
        ("[fd00::2]:81", "any6"),
        ("[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535", "virtualOutbound"),
    ];
    for (destination, want) in outbound {
        let destination = destination.parse().unwrap();
        assert_eq!(find_listener(stored(&index), Direction::Outbound, destination), Some(want), "{destination}");
    }
    let inbound = [
        ("10.0.0.1:80", "inbound"),
        ("[::ffff:10.0.0.1]:80", "inbound"),
        ("10.0.0.2:80", "virtualInbound"),
        ("[fd00::1]:80", "virtualInbound"),
        ("[fd00::1]:81", "inbound6"),
        ("10.0.0.2:81", "virtualInbound"),
    ];
    for (destination, want) in inbound {
        let destination = destination.parse().unwrap();
        assert_eq!(find_listener(stored(&index), Direction::Inbound, destination), Some(want), "{destination}");
    }
    index.virtual_outbound = String::new();
    let destination = "10.0.0.2:81".parse().unwrap();
    assert_eq!(find_listener(stored(&index), Direction::Outbound, destination), None);
}

#[test]
fn inspectors_are_switched_off_by_port() {
    let mut model = listener(vec![]);
    let off = |disabled: &[(u16, u16)]| Some(PortPredicate { disabled: disabled.to_vec() });
    model.tls_inspector = off(&[]);
    model.http_inspector = off(&[(80, 81), (9000, 9003)]);
    let ask = |port| {
        let runs = inspectors(stored(&model), port);
        (runs.tls, runs.http)
    };
    assert_eq!(
        [79, 80, 81, 9000, 9002, 9003].map(ask),
        [(true, true), (true, false), (true, true), (true, false), (true, false), (true, true)]
    );
    let none = inspectors(stored(&listener(vec![])), 1);
    assert!(!none.tls && !none.http);
}

/// Envoy's own way: a map for each criterion, entered with the most specific key that is there.
fn reference(chains: &[FilterChain], c: &ConnectionInfo<'_>) -> Option<usize> {
    type Keys = Vec<String>;
    let or_empty = |keys: Keys| if keys.is_empty() { vec![String::new()] } else { keys };
    let ranges =
        |r: &[CidrRange]| or_empty(r.iter().map(|r| format!("{}/{}", IpAddr::from(r.ip), r.prefix_len)).collect());
    // Criterion by criterion: the keys of a chain, and those that the connection asks for, best first.
    let keys_of = |m: &FilterChainMatch| -> Vec<Keys> {
        vec![
            or_empty(m.destination_port.iter().map(|p| p.to_string()).collect()),
            ranges(&m.prefix_ranges),
            or_empty(m.server_names.clone()),
            vec![m.transport_protocol.clone()],
            or_empty(m.application_protocols.clone()),
            vec![format!("{:?}", m.source_type)],
            ranges(&m.source_prefix_ranges),
            or_empty(m.source_ports.iter().map(|p| p.to_string()).collect()),
        ]
    };
    let nets = |ip: IpAddr| -> Keys {
        let IpAddr::V4(ip) = ip else { return vec![String::new()] };
        let net = |n: u32| {
            IpAddr::from(
                (u32::from(ip).checked_shr(32 - n).unwrap_or(0).checked_shl(32 - n).unwrap_or(0)).to_be_bytes(),
            )
        };
        (0..=32u32).rev().map(|n| format!("{}/{n}", net(n))).chain([String::new()]).collect()
    };
    let sni = c.server_name.unwrap_or("");
    let parents = sni.match_indices('.').map(|(at, _)| format!("*{}", &sni[at..]));
    let local = c.source.ip() == c.destination.ip() || c.source.ip().to_string() == "127.0.0.1";
    let asked: Vec<Keys> = vec![
        vec![c.destination.port().to_string(), String::new()],
        nets(c.destination.ip()),
        [sni.to_owned()].into_iter().chain(parents).chain([String::new()]).collect(),
        vec![c.transport_protocol.as_str().into(), String::new()],
        c.application_protocols.iter().map(|p| (*p).to_owned()).chain([String::new()]).collect(),
        vec![if local { "SameIpOrLoopback" } else { "External" }.into(), "Any".into()],
        nets(c.source.ip()),
        vec![c.source.port().to_string(), String::new()],
    ];
    let mut left: Vec<usize> = (0..chains.len()).collect();
    for (criterion, keys) in asked.iter().enumerate() {
        let has = |i: usize, key: &String| keys_of(&chains[i].filter_chain_match)[criterion].contains(key);
        let key = keys.iter().find(|key| left.iter().any(|i| has(*i, key)))?;
        left.retain(|i| has(*i, key));
    }
    left.first().copied()
}

fn some_of(values: &'static [&'static str]) -> impl Strategy<Value = Vec<String>> {
    proptest::collection::vec(proptest::sample::select(values).prop_map(str::to_owned), 0..3)
}

fn any_chain() -> impl Strategy<Value = FilterChain> {
    let ranges = || {
        some_of(&["10.0.0.0/8", "10.1.0.0/16", "10.1.1.1/32", "0.0.0.0/0"])
            .prop_map(|v| v.iter().map(|r| cidr(r)).collect())
    };
    (
        proptest::option::of(80u16..82),
        ranges(),
        some_of(&["a.b.c", "*.b.c", "*.c", "b.c"]),
        proptest::sample::select(vec!["", "tls", "raw_buffer"]),
        some_of(&["h2", "http/1.1"]),
        proptest::sample::select(vec![SourceType::Any, SourceType::SameIpOrLoopback, SourceType::External]),
        ranges(),
        proptest::collection::vec(1u16..3, 0..2),
    )
        .prop_map(
            |(
                destination_port,
                prefix_ranges,
                server_names,
                transport,
                protocols,
                source_type,
                sources,
                source_ports,
            )| {
                chain(
                    "c",
                    FilterChainMatch {
                        destination_port,
                        prefix_ranges,
                        server_names,
                        transport_protocol: transport.into(),
                        application_protocols: protocols,
                        source_type,
                        source_prefix_ranges: sources,
                        source_ports,
                        ..FilterChainMatch::default()
                    },
                )
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn the_chain_is_the_one_that_nested_maps_would_give(
        chains in proptest::collection::vec(any_chain(), 0..8),
        port in 79u16..83,
        ip in proptest::sample::select(vec!["10.1.1.1", "10.1.2.1", "10.2.0.1", "11.0.0.1"]),
        source in proptest::sample::select(vec!["10.1.1.1", "127.0.0.1", "10.9.9.9", "12.0.0.1"]),
        source_port in 1u16..4,
        server_name in proptest::option::of(proptest::sample::select(vec!["a.b.c", "x.b.c", "b.c", "c"])),
        tls in any::<bool>(),
        offered in proptest::collection::vec(proptest::sample::select(vec!["h2", "http/1.1", "x"]), 0..3),
    ) {
        let source = SocketAddr::new(source.parse().unwrap(), source_port);
        let connection = ConnectionInfo {
            destination: SocketAddr::new(ip.parse().unwrap(), port),
            source,
            direct_source: source,
            server_name,
            transport_protocol: if tls { Transport::Tls } else { Transport::Raw },
            application_protocols: &offered,
        };
        let want = reference(&chains, &connection);
        let got = find_filter_chain(stored(&listener(chains)), &connection).map(|(index, _)| index);
        prop_assert_eq!(got, want);
    }
}
