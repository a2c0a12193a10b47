//! What routes ask of a request besides path, headers and query, and what becomes of it.

mod common;

use amesh_dataplane::header::Command;
use amesh_dataplane::regex::RegexCache;
use amesh_dataplane::route::{self, Certificate, Decision, MetadataValue, RequestHead};
use amesh_model::header::Format;
use amesh_model::matcher::{CookieMatcher, Fraction, HeaderMatch, RuntimeFraction, TlsContextMatch};
use amesh_model::metadata::{FilterStateMatcher, MetadataMatcher, ValueMatcher};
use amesh_model::route::{BodyFormat, BodyPart, DirectResponseAction, PathSpecifier, RouteAction, RouteMatch};
use common::{exact, header, matching, prefix, route as route_of, stored, table, to, virtual_host, Request};
use std::borrow::Cow;

/// A request of which more is known.
struct Known {
    request: Request,
    certificate: Certificate,
    metadata: Option<MetadataValue<'static>>,
    state: Option<&'static [u8]>,
    runtime: Option<(u32, u32)>,
}

fn known(request: Request) -> Known {
    Known { request, certificate: Certificate::default(), metadata: None, state: None, runtime: None }
}

impl RequestHead for Known {
    fn method(&self) -> &str {
        self.request.method()
    }
    fn path(&self) -> &str {
        self.request.path()
    }
    fn host(&self) -> &str {
        self.request.host()
    }
    fn scheme(&self) -> &str {
        self.request.scheme()
    }
    fn header_values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> + 'a {
        self.request.header_values(name)
    }
    fn random(&self) -> u64 {
        self.request.random()
    }
    fn client_certificate(&self) -> Certificate {
        self.certificate
    }
    fn dynamic_metadata(&self, filter: &str, path: &[&str]) -> Option<MetadataValue<'_>> {
        self.metadata.clone().filter(|_| filter == "f" && path == ["a", "b"])
    }
    fn filter_state(&self, key: &str) -> Option<Cow<'_, [u8]>> {
        self.state.filter(|_| key == "k").map(Cow::Borrowed)
    }
    fn runtime_fraction(&self, key: &str) -> Option<(u32, u32)> {
        self.runtime.filter(|_| key == "key")
    }
    fn write(&self, command: Command, out: &mut Vec<u8>) {
        if command == Command::Protocol {
            out.extend_from_slice(b"HTTP/1.1");
        }
    }
}

/// Whether a route takes the request.
fn takes(matches: RouteMatch, head: &impl RequestHead) -> bool {
    let host = virtual_host("v", vec![route_of("r", matches, to("c"))]);
    let table = stored(&table(vec![(&["*"], host)]));
    matches!(route::decide(table, head, &mut RegexCache::new()), Decision::Forward(_))
}

#[test]
fn the_clients_certificate_is_asked_for() {
    let with = |presented, validated| {
        let mut m = prefix("/");
        m.tls_context = Some(TlsContextMatch { presented, validated });
        m
    };
    let none = known(Request::get("h", "/"));
    let shown =
        Known { certificate: Certificate { presented: true, validated: false }, ..known(Request::get("h", "/")) };
    assert!(takes(with(None, None), &none));
    assert!(takes(with(Some(false), Some(false)), &none));
    assert!(!takes(with(Some(true), None), &none));
    assert!(takes(with(Some(true), None), &shown));
    assert!(takes(with(Some(true), Some(false)), &shown));
    assert!(!takes(with(Some(true), Some(true)), &shown));
}

#[test]
fn a_cookie_is_looked_for_in_every_line_and_the_first_of_a_name_counts() {
    let with = |value: &str, invert_match| {
        let mut m = prefix("/");
        m.cookies = vec![CookieMatcher { name: "s".into(), value: exact(value), invert_match }];
        m
    };
    let get = || Request::get("h", "/");
    assert!(takes(with("1", false), &get().with("cookie", "t=0; s=1")));
    assert!(takes(with("1", false), &get().with("cookie", "t=0").with("cookie", "s=1")));
    assert!(takes(with("1", false), &get().with("cookie", "s=\"1\"")));
    assert!(takes(with("a=b", false), &get().with("cookie", "s=a=b")));
    assert!(!takes(with("1", false), &get().with("cookie", "s=2; s=1")));
    assert!(!takes(with("1", false), &get().with("cookie", "S=1")));
    assert!(!takes(with("1", false), &get().with("cookie", "s = 1")));
    assert!(!takes(with("1", false), &get().with("cookie", "s")));
    assert!(!takes(with("", false), &get()), "one that is not there is not empty");
    assert!(takes(with("1", true), &get()));
    assert!(!takes(with("1", true), &get().with("cookie", "s=1")));
}

#[test]
fn metadata_are_matched_by_their_kind() {
    let ask = |value: &ValueMatcher, metadata: Option<MetadataValue<'static>>, invert| {
        let mut m = prefix("/");
        let path = vec!["a".into(), "b".into()];
        m.dynamic_metadata = vec![MetadataMatcher { filter: "f".into(), path, value: value.clone(), invert }];
        takes(m, &Known { metadata, ..known(Request::get("h", "/")) })
    };
    let text = |text| Some(MetadataValue::String(text));
    let number = |n| Some(MetadataValue::Number(n));
    assert!(ask(&ValueMatcher::String(exact("x")), text("x"), false));
    assert!(!ask(&ValueMatcher::String(exact("1")), number(1.0), false));
    assert!(ask(&ValueMatcher::Exact(1.0), number(1.0), false));
    assert!(ask(&ValueMatcher::Range(1.0, 2.0), number(1.0), false));
    assert!(!ask(&ValueMatcher::Range(1.0, 2.0), number(2.0), false));
    assert!(ask(&ValueMatcher::Null, Some(MetadataValue::Null), false));
    assert!(!ask(&ValueMatcher::Null, None, false), "nothing is not a null");
    assert!(ask(&ValueMatcher::Bool(false), Some(MetadataValue::Bool(false)), false));
    assert!(ask(&ValueMatcher::Present(true), number(0.0), false));
    assert!(!ask(&ValueMatcher::Present(true), Some(MetadataValue::Struct), false));
    assert!(!ask(&ValueMatcher::Present(false), None, false), "as in Envoy");
    let list = || Some(MetadataValue::List(vec![MetadataValue::String("l"), MetadataValue::String("m")]));
    let one_of = ValueMatcher::OneOf(Box::new(ValueMatcher::String(exact("m"))));
    assert!(ask(&one_of, list(), false));
    assert!(!ask(&one_of, text("m"), false));
    assert!(ask(&ValueMatcher::Or(vec![ValueMatcher::Null, one_of]), list(), false));
    assert!(!ask(&ValueMatcher::String(exact("x")), text("x"), true));
    assert!(ask(&ValueMatcher::String(exact("x")), None, true), "and inverted it holds where there is nothing");
}

#[test]
fn filter_state_and_runtime_are_asked() {
    let mut m = prefix("/");
    m.filter_state = vec![FilterStateMatcher { key: "k".into(), value: exact("v") }];
    assert!(!takes(m.clone(), &known(Request::get("h", "/"))));
    assert!(takes(m, &Known { state: Some(b"v"), ..known(Request::get("h", "/")) }));

    let mut m = prefix("/");
    let default = Fraction { numerator: 0, denominator: 100 };
    m.runtime_fraction = Some(RuntimeFraction { default, runtime_key: "key".into() });
    assert!(!takes(m.clone(), &known(Request::get("h", "/"))));
    assert!(takes(m, &Known { runtime: Some((1, 1)), ..known(Request::get("h", "/")) }));
}

#[test]
fn connect_is_a_path_of_its_own() {
    let mut request = Request::get("h", "/");
    assert!(!takes(matching(PathSpecifier::Connect), &request));
    request.method = "CONNECT".into();
    assert!(takes(matching(PathSpecifier::Connect), &request));
}

#[test]
fn headers_of_the_mesh_are_not_there_when_the_request_is_from_outside() {
    let m = RouteMatch { headers: vec![header("x-mesh", HeaderMatch::Present(true))], ..prefix("/") };
    let host = virtual_host("v", vec![route_of("r", m, to("c"))]);
    let mut table = table(vec![(&["*"], host)]);
    table.internal_only_headers = vec!["x-mesh".into()];
    let table = stored(&table);
    let ask = |request: &Request| matches!(route::decide(table, request, &mut RegexCache::new()), Decision::Forward(_));
    let outside = Request::get("h", "/").with("x-mesh", "1");
    assert!(!ask(&outside));
    assert!(ask(&outside.with("x-envoy-internal", "true")), "the requests of these tests say where they are from");
}

#[test]
fn a_body_is_made_for_the_request() {
    let ask = |parts: Vec<BodyPart>, omit_empty_values| {
        let format = BodyFormat { parts, omit_empty_values, content_type: "a/b".into() };
        let action = DirectResponseAction { status: 200, body: b"unused".to_vec(), body_format: Some(format) };
        let host = virtual_host("v", vec![route_of("r", prefix("/"), RouteAction::DirectResponse(action))]);
        let table = stored(&table(vec![(&["*"], host)]));
        match route::decide(table, &known(Request::get("h", "/x?q=a%22b")), &mut RegexCache::new()) {
            Decision::Direct { body, content_type: "a/b", location: None, .. } => {
                String::from_utf8(body.into_owned()).unwrap()
            }
            _ => panic!(),
        }
    };
    let none = || Format::Req { name: "x-none".into(), alternative: String::new(), max: 0 };
    let text = |text: &str| Format::Text(text.into());
    let query = || Format::QueryParam { name: "q".into(), max: 0 };
    assert_eq!(
        ask(vec![BodyPart::Text(vec![text("<"), none(), Format::Protocol, text(">\n")])], false),
        "<-HTTP/1.1>\n"
    );
    assert_eq!(ask(vec![BodyPart::Text(vec![text("<"), none(), Format::Protocol, text(">\n")])], true), "<HTTP/1.1>\n");
    assert_eq!(ask(vec![BodyPart::Json(vec![query()])], false), r#""a\"b""#);
    assert_eq!(ask(vec![BodyPart::Json(vec![none()])], false), "null");
    assert_eq!(ask(vec![BodyPart::Json(vec![text("x"), none()])], false), r#""x-""#);
    assert_eq!(ask(vec![BodyPart::Json(vec![Format::ResponseCode])], false), "0");
    assert_eq!(ask(vec![BodyPart::Json(vec![])], false), r#""""#);
}
