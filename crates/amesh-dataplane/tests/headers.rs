//! Header edits of requests and responses.

mod common;

use amesh_dataplane::header::{Command, FormatContext, HeaderMap, Levels};
use amesh_model::header::{AppendAction, Format, HeaderEdits, HeaderValueOption, PathSource};
use common::stored;
use std::borrow::Cow;

#[derive(Default)]
struct Headers(Vec<(String, String)>);

impl Headers {
    fn of(lines: &[(&str, &str)]) -> Self {
        Headers(lines.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect())
    }

    fn lines(&self) -> Vec<String> {
        self.0.iter().map(|(n, v)| format!("{n}: {v}")).collect()
    }
}

impl HeaderMap for Headers {
    fn get(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_bytes().into())
    }
    fn set(&mut self, name: &str, value: &[u8]) {
        self.remove(name);
        self.append(name, value);
    }
    fn append(&mut self, name: &str, value: &[u8]) {
        self.0.push((name.into(), String::from_utf8(value.to_vec()).unwrap()));
    }
    fn remove(&mut self, name: &str) {
        self.0.retain(|(n, _)| n != name);
    }
}

struct Context;

impl FormatContext for Context {
    fn request_header(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        (name == ":path").then_some(b"/of/request".into())
    }
    fn write(&self, command: Command, out: &mut Vec<u8>) {
        match command {
            Command::Protocol => out.extend_from_slice(b"HTTP/1.1"),
            Command::UpstreamHost => {}
            other => out.extend_from_slice(format!("{other:?}").as_bytes()),
        }
    }
}

fn option(key: &str, append_action: AppendAction, value: Vec<Format>) -> HeaderValueOption {
    HeaderValueOption { key: key.into(), value, append_action, keep_empty_value: false }
}

fn text(text: &str) -> Vec<Format> {
    vec![Format::Text(text.into())]
}

fn req(name: &str, alternative: &str, max: u32) -> Format {
    Format::Req { name: name.into(), alternative: alternative.into(), max }
}

fn request(add: Vec<HeaderValueOption>, remove: &[&str]) -> HeaderEdits {
    HeaderEdits {
        request_add: add,
        request_remove: remove.iter().map(|n| (*n).to_owned()).collect(),
        ..HeaderEdits::default()
    }
}

fn edited(edits: &HeaderEdits, lines: &[(&str, &str)]) -> Vec<String> {
    let mut headers = Headers::of(lines);
    Levels { route: Some(stored(edits)), ..Levels::default() }.edit_request(&mut headers, &Context);
    headers.lines()
}

#[test]
fn headers_are_added_set_and_removed() {
    use AppendAction::*;
    let add = |action| request(vec![option("x", action, text("n"))], &[]);
    for (action, absent, present) in [
        (AppendIfExistsOrAdd, &["x: n"][..], &["x: o", "x: n"][..]),
        (AddIfAbsent, &["x: n"], &["x: o"]),
        (OverwriteIfExistsOrAdd, &["x: n"], &["x: n"]),
        (OverwriteIfExists, &[], &["x: n"]),
    ] {
        assert_eq!(edited(&add(action), &[]), absent, "{action:?}");
        assert_eq!(edited(&add(action), &[("x", "o")]), present, "{action:?}");
    }
    let both = request(vec![option("x", AppendIfExistsOrAdd, text("n"))], &["x", "y"]);
    assert_eq!(edited(&both, &[("x", "o"), ("y", "1"), ("z", "2")]), ["z: 2", "x: n"], "removals come first");
}

#[test]
fn values_are_formed_before_any_is_written() {
    use AppendAction::*;
    let edits = request(
        vec![
            option("a", AppendIfExistsOrAdd, text("new")),
            option("b", AppendIfExistsOrAdd, vec![Format::Text("was ".into()), req("a", "", 0)]),
            option("a", OverwriteIfExistsOrAdd, text("set")),
            option("c", AddIfAbsent, text("1")),
            option("c", AddIfAbsent, text("2")),
        ],
        &[],
    );
    assert_eq!(edited(&edits, &[("a", "old")]), ["a: set", "a: new", "b: was old", "c: 1", "c: 2"]);
}

#[test]
fn commands_stand_for_what_is_known() {
    let value = |parts: Vec<Format>| {
        let edits = request(vec![option("v", AppendAction::AppendIfExistsOrAdd, parts)], &[]);
        edited(&edits, &[(":path", "/headers"), ("x", "abc")]).get(2).cloned().unwrap_or_default()
    };
    assert_eq!(value(vec![Format::Text("a".into()), req(":path", "", 0)]), "v: a/headers");
    assert_eq!(value(vec![req("x", "", 2)]), "v: ab");
    assert_eq!(value(vec![req("x", "", 9)]), "v: abc");
    assert_eq!(value(vec![req("none", "x", 0)]), "v: abc");
    assert_eq!(value(vec![Format::Text("a".into()), req("none", "", 0), Format::Text("b".into())]), "v: ab");
    assert_eq!(value(vec![Format::Protocol, Format::Text(" ".into()), Format::RouteName]), "v: HTTP/1.1 RouteName");
    assert_eq!(value(vec![req("none", "", 0)]), "", "what comes out empty is not added");
    assert_eq!(value(vec![Format::UpstreamHost]), "");
    assert_eq!(value(vec![Format::Resp { name: "x".into(), alternative: String::new(), max: 0 }]), "");
    let mut keep = option("v", AppendAction::AppendIfExistsOrAdd, vec![req("none", "", 0)]);
    keep.keep_empty_value = true;
    assert_eq!(edited(&request(vec![keep], &[]), &[]), ["v: "]);
}

#[test]
fn a_response_sees_its_own_headers_and_those_of_the_request() {
    let resp = Format::Resp { name: "x".into(), alternative: String::new(), max: 0 };
    let edits = HeaderEdits {
        response_add: vec![
            option("a", AppendAction::AppendIfExistsOrAdd, vec![resp, req(":path", "", 0), req("x", "", 0)]),
            option("server", AppendAction::OverwriteIfExistsOrAdd, text("mesh")),
        ],
        response_remove: vec!["gone".into()],
        request_add: vec![option("never", AppendAction::AppendIfExistsOrAdd, text("1"))],
        ..HeaderEdits::default()
    };
    let mut headers = Headers::of(&[("x", "1"), ("gone", "2"), ("server", "up")]);
    Levels { table: Some(stored(&edits)), ..Levels::default() }.edit_response(&mut headers, &Context);
    assert_eq!(headers.lines(), ["x: 1", "server: mesh", "a: 1/of/request"]);
}

#[test]
fn levels_follow_one_another_in_envoys_order() {
    let level = |name: &str| {
        stored(&request(
            vec![
                option("trail", AppendAction::AppendIfExistsOrAdd, text(name)),
                option("last", AppendAction::OverwriteIfExistsOrAdd, text(name)),
            ],
            &[],
        ))
    };
    for (most_specific_wins, want) in [
        (false, ["arm", "route", "host", "table", "last: table"]),
        (true, ["arm", "table", "host", "route", "last: route"]),
    ] {
        let levels = Levels {
            internal_only: &[],
            weighted_cluster: Some(level("arm")),
            route: Some(level("route")),
            virtual_host: Some(level("host")),
            table: Some(level("table")),
            most_specific_wins,
        };
        let mut headers = Headers::default();
        levels.edit_request(&mut headers, &Context);
        let trail: Vec<_> = headers.0.iter().filter(|(n, _)| n == "trail").map(|(_, v)| v.as_str()).collect();
        assert_eq!(trail, want[..4]);
        assert!(headers.lines().contains(&want[4].to_owned()));
    }
}

#[test]
fn a_path_is_the_old_or_the_new_one_with_its_query_or_without() {
    let format = |query, source, max| Format::Path { query, source, max };
    let param = |name: &str, max| Format::QueryParam { name: name.into(), max };
    let cases = [
        (format(true, PathSource::Path, 0), "/new/x?a=1%202&b%5b=3&b[=4&c"),
        (format(false, PathSource::Path, 0), "/new/x"),
        (format(true, PathSource::Original, 0), "/old?q"),
        (format(false, PathSource::OriginalOrPath, 3), "/ol"),
        (param("a", 0), "1 2"),
        (param("a", 1), "1"),
        (param("b[", 0), "3"),
        (param("c", 0), ""),
        (param("d", 0), ""),
    ];
    for (part, want) in cases {
        let mut headers =
            Headers::of(&[(":path", "/new/x?a=1%202&b%5b=3&b[=4&c"), ("x-envoy-original-path", "/old?q")]);
        let edits = stored(&HeaderEdits {
            request_add: vec![HeaderValueOption {
                keep_empty_value: true,
                ..option("out", AppendAction::OverwriteIfExistsOrAdd, vec![part.clone()])
            }],
            ..HeaderEdits::default()
        });
        Levels { route: Some(edits), ..Levels::default() }.edit_request(&mut headers, &Context);
        assert_eq!(headers.get("out").unwrap(), want.as_bytes(), "{part:?}");
    }
}

#[test]
fn what_only_the_mesh_may_say_is_removed_first() {
    let names = stored(&vec!["x-mesh".to_owned()]);
    let add = option("x-mesh", AppendAction::AddIfAbsent, text("ours"));
    let edits = stored(&HeaderEdits { request_add: vec![add], ..HeaderEdits::default() });
    let mut headers = Headers::of(&[("x-mesh", "theirs")]);
    Levels { internal_only: names, route: Some(edits), ..Levels::default() }.edit_request(&mut headers, &Context);
    assert_eq!(headers.lines(), ["x-mesh: ours"]);
}
