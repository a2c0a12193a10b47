//! The same request goes to the same endpoint as in Envoy: its answers are in `fixtures/hashing.json`, recorded by
//! `fixtures/record_hashing.py`. Another recording goes before it when `AMESH_HASHING` names one.

use amesh_dataplane::hash::{request_hash, Ends};
use amesh_dataplane::lb::{pick, Cells, PickContext};
use amesh_dataplane::regex::RegexCache;
use amesh_dataplane::route::RequestHead;
use amesh_model::route::RouteAction;
use amesh_model::{plan, route::RouteTable};
use amesh_xds::descriptor;
use amesh_xds::translate::{self, Notes, Source};
use prost::Message;
use rkyv::rancor::Error;
use serde::Deserialize;
use serde_json::{json, Value};
use std::collections::HashMap;

#[derive(Deserialize)]
struct Case {
    name: String,
    /// Its `load_assignment` may be the name of another case, which has the same.
    cluster: Value,
    hash_policy: Value,
    /// What the route asks of the metadata of endpoints.
    #[serde(default)]
    subset: Value,
    #[serde(default)]
    keys: usize,
    #[serde(default)]
    requests: Vec<(String, Vec<(String, String)>)>,
    answers: Vec<i64>,
}

struct Request<'a> {
    path: &'a str,
    headers: &'a [(String, String)],
}

impl RequestHead for Request<'_> {
    fn method(&self) -> &str {
        "GET"
    }
    fn path(&self) -> &str {
        self.path
    }
    fn host(&self) -> &str {
        self.headers.iter().find(|h| h.0 == "host").map_or("x", |h| &h.1)
    }
    fn scheme(&self) -> &str {
        "http"
    }
    fn header_values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> + 'a {
        self.headers.iter().filter(move |h| h.0.eq_ignore_ascii_case(name)).map(|h| h.1.as_bytes())
    }
    fn random(&self) -> u64 {
        0
    }
}

struct Idle;

impl Cells for Idle {
    fn cursor(&self, _: u32) -> u32 {
        panic!("a hash needs no cursor")
    }
    fn active(&self, _: u32) -> u32 {
        0
    }
}

fn message<M: Message + Default>(url: &str, mut value: Value) -> M {
    value["@type"] = json!(url);
    let resources = descriptor::from_json("test", &value.to_string()).unwrap();
    M::decode(resources[0].any.value.as_slice()).unwrap()
}

fn table(hash_policy: &Value, subset: &Value) -> RouteTable {
    let mut route = json!({"match": {"prefix": "/"}, "route": {"cluster": "c", "hash_policy": hash_policy}});
    if !subset.is_null() {
        route["route"]["metadata_match"] = json!({"filter_metadata": {"envoy.lb": subset}});
    }
    let table = json!({"name": "t", "virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [route]}]});
    translate::route_table(&message(translate::ROUTE_CONFIGURATION, table), &mut Notes::new()).unwrap()
}

/// The cells of the endpoints that take the requests of a case; -1: nobody.
fn answers(case: &Case) -> Vec<i64> {
    let mut json = case.cluster.clone();
    json["name"] = json!("c");
    json["load_assignment"]["cluster_name"] = json!("c");
    let translated = translate::cluster(&message(translate::CLUSTER, json), &mut Notes::new()).unwrap();
    let mut set = match translated.source {
        Source::Inline(set) => set,
        Source::Dns(dns) => translate::dns_assignment("c", &dns, |_| &[]),
        other => panic!("{other:?}"),
    };
    set.localities.iter_mut().flat_map(|l| &mut l.endpoints).zip(0..).for_each(|(e, n)| e.cell = n);
    plan::build(&mut set, &translated.cluster);
    let cluster = rkyv::to_bytes::<Error>(&translated.cluster).unwrap();
    let cluster = rkyv::access::<amesh_model::cluster::ArchivedCluster, Error>(&cluster).unwrap();
    let set = rkyv::to_bytes::<Error>(&set).unwrap();
    let set = rkyv::access::<amesh_model::endpoint::ArchivedEndpointSet, Error>(&set).unwrap();

    let table = table(&case.hash_policy, &case.subset);
    let RouteAction::Route(action) = &table.virtual_hosts[0].routes[0].action else { panic!("{table:?}") };
    let subset = rkyv::to_bytes::<Error>(&action.metadata_match).unwrap();
    let subset =
        rkyv::access::<rkyv::vec::ArchivedVec<amesh_model::subset::ArchivedCriterion>, Error>(&subset).unwrap();
    let policy = rkyv::to_bytes::<Error>(&action.hash_policy).unwrap();
    let policy =
        rkyv::access::<rkyv::vec::ArchivedVec<amesh_model::hash_policy::ArchivedHashPolicy>, Error>(&policy).unwrap();
    let policy = if cluster.hashing.policy.is_empty() { policy } else { &cluster.hashing.policy };

    let ends = Ends { remote: Some("127.0.0.1:40000".parse().unwrap()), local: None };
    let mut regexes = RegexCache::new();
    let mut one = |path: &str, headers: &[(String, String)]| {
        let hash = request_hash(policy, &Request { path, headers }, ends, &mut regexes).hash;
        assert!(hash.is_some() || !case.requests.is_empty(), "{}: no hash", case.name);
        let mut random = || unreachable!("{}: {path} {headers:?} has no hash", case.name);
        let mut context = PickContext { hash, metadata_match: subset, ..PickContext::new(&mut random) };
        pick(cluster, set, &Idle, &mut context).map_or(-1, |e| i64::from(e.cell.to_native()))
    };
    let keys = (0..case.keys).map(|n| ("/".to_owned(), vec![("x-key".to_owned(), format!("user-{n}"))]));
    let requests: Vec<_> = if case.requests.is_empty() { keys.collect() } else { case.requests.clone() };
    requests.iter().map(|(path, headers)| one(path, headers)).collect()
}

#[test]
fn the_same_request_goes_to_the_same_endpoint_as_in_envoy() {
    let recorded = match std::env::var("AMESH_HASHING") {
        Ok(file) => std::fs::read_to_string(file).unwrap(),
        Err(_) => include_str!("fixtures/hashing.json").to_owned(),
    };
    let mut cases: Vec<Case> = serde_json::from_str(&recorded).unwrap();
    let named: HashMap<String, Value> =
        cases.iter().map(|c| (c.name.clone(), c.cluster["load_assignment"].clone())).collect();
    for case in &mut cases {
        if let Value::String(name) = &case.cluster["load_assignment"] {
            case.cluster["load_assignment"] = named[name].clone();
        }
    }
    assert!(cases.len() > 40);
    let mut wrong = Vec::new();
    for case in &cases {
        let found = answers(case);
        assert_eq!(found.len(), case.answers.len(), "{}", case.name);
        let differ: Vec<usize> = (0..found.len()).filter(|n| found[*n] != case.answers[*n]).collect();
        if let Some(n) = differ.first().copied() {
            let (of, here, there) = (found.len(), found[n], case.answers[n]);
            wrong.push(format!("{}: {} of {of} differ; the {n}th: {here}, Envoy: {there}", case.name, differ.len()));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}
