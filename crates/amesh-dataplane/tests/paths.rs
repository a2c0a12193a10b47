//! Paths and hosts before routing. The answers are those that Envoy 1.40 gave.

mod common;

use amesh_dataplane::path::{normalize, normalize_host, PathError};
use amesh_model::listener::{EscapedSlashes, HttpConnectionManager};
use common::{hcm, stored};
use proptest::prelude::*;

fn ask(model: &HttpConnectionManager, path: &str) -> String {
    match normalize(path, stored(model)) {
        Ok(path) => path.into_owned(),
        Err(PathError::Reject400) => "400".into(),
        Err(PathError::Redirect307(path)) => format!("307 {path}"),
    }
}

fn slashes(action: EscapedSlashes) -> HttpConnectionManager {
    HttpConnectionManager { path_with_escaped_slashes_action: action, ..hcm() }
}

fn merging(model: HttpConnectionManager) -> HttpConnectionManager {
    HttpConnectionManager { merge_slashes: true, ..model }
}

#[test]
fn dot_segments_are_resolved() {
    for (path, want) in [
        ("/", "/"),
        ("/a/../b", "/b"),
        ("/../a", "/a"),
        ("/a/./b", "/a/b"),
        ("/a/..", "/"),
        ("/a/.", "/a/"),
        ("/a/b/..", "/a/"),
        ("/a/b/../", "/a/"),
        ("/a/.../b", "/a/.../b"),
        ("/a/..b", "/a/..b"),
        ("/a/b..", "/a/b.."),
        ("/.a", "/.a"),
        ("/.", "/"),
        ("/..", "/"),
        ("/...", "/..."),
        ("/a/../../b", "/b"),
        ("//a", "//a"),
        ("/a//../b", "/a/b"),
        ("/a/%2e%2e/b", "/b"),
        ("/a/.%2E/b", "/b"),
        ("/a/%2e/b", "/a/b"),
        ("/a%2e/b", "/a./b"),
        ("/a/%2E%2E", "/"),
        ("/a\\b", "/a/b"),
        ("/a\\..\\b", "/b"),
        ("/a;b=c/../d", "/d"),
        ("/a/..;x=1/b", "/b"),
        ("/a/.;x/b", "/a/b"),
        ("/a/b/..;", "/a/"),
        ("/a..;/b", "/a..;/b"),
        ("/a/%2e%2e;x/b", "/a/..;x/b"),
        ("/a?b/../c", "/a?b/../c"),
    ] {
        assert_eq!(ask(&hcm(), path), want, "{path}");
    }
    let off = HttpConnectionManager { normalize_path: false, ..hcm() };
    assert_eq!(ask(&off, "/a/../b%41\\"), "/a/../b%41\\");
}

#[test]
fn unreserved_characters_are_decoded_and_some_others_encoded() {
    for byte in 0..=255u8 {
        let escaped = format!("/a%{byte:02X}b");
        let want = match byte {
            0 => "400".into(),
            b if b.is_ascii_alphanumeric() || b"-._~".contains(&b) => format!("/a{}b", char::from(b)),
            _ => escaped.clone(),
        };
        assert_eq!(ask(&hcm(), &escaped), want);
        let plain = format!("/a{}b", char::from(byte));
        let want = match byte {
            b'#' | 0..=0x20 | 0x7f.. => "400".into(),
            b'\\' => "/a/b".into(),
            b'"' | b'<' | b'>' | b'^' | b'`' | b'{' | b'|' | b'}' => escaped,
            _ => plain.clone(),
        };
        assert_eq!(ask(&hcm(), &plain), want);
    }
    for path in
        ["/a%2fb", "/a%2F..%2Fb", "/a%5C..", "/a%5cb", "/a%e9b", "/a%zzb", "/a%", "/a%4", "/a?b%41", "/a/..%2fb"]
    {
        assert_eq!(ask(&hcm(), path), path);
    }
}

#[test]
fn fragments_and_odd_targets_are_refused() {
    for path in ["/a#frag", "/a?x#f", "/a#f?x", "/a b", "/%00", "*", "", "a", "http://x/a"] {
        assert_eq!(ask(&hcm(), path), "400", "{path}");
    }
    let off = HttpConnectionManager { normalize_path: false, ..hcm() };
    assert_eq!(ask(&off, "/a#frag"), "400");
    assert_eq!(ask(&off, "/a\"b"), "/a\"b");
}

#[test]
fn slashes_are_merged_where_asked() {
    for (path, want) in [
        ("//", "//"),
        ("//a//b//", "/a/b/"),
        ("/a//../b", "/a/b"),
        ("/a///b?c//d", "/a/b?c//d"),
        ("/a/..//b", "/b"),
        ("/%2e%2e//", "//"),
        ("/a//%2e%2e//b", "/a/b"),
    ] {
        assert_eq!(ask(&merging(hcm()), path), want, "{path}");
    }
}

#[test]
fn escaped_slashes_are_treated_as_configured() {
    let reject = slashes(EscapedSlashes::RejectRequest);
    assert_eq!(ask(&reject, "/a%2fb"), "400");
    assert_eq!(ask(&reject, "/a%5cb"), "400");
    assert_eq!(ask(&reject, "/a?b%2fc"), "/a?b%2fc");
    assert_eq!(ask(&reject, "/a%252f"), "/a%252f");
    let redirect = slashes(EscapedSlashes::UnescapeAndRedirect);
    assert_eq!(ask(&redirect, "/a%2fb"), "307 /a/b");
    assert_eq!(ask(&redirect, "/a%5cb?x=%2f"), "307 /a/b?x=%2f");
    assert_eq!(ask(&redirect, "/a%2F..%2fb"), "307 /b");
    assert_eq!(ask(&redirect, "/a%2f%2fb"), "307 /a//b");
    assert_eq!(ask(&redirect, "/a/../b"), "/b");
    let forward = merging(slashes(EscapedSlashes::UnescapeAndForward));
    assert_eq!(ask(&forward, "/a%2fb"), "/a/b");
    assert_eq!(ask(&forward, "/a%5cb?x=%2f"), "/a/b?x=%2f");
    assert_eq!(ask(&forward, "/a%2F..%2fb"), "/b");
    assert_eq!(ask(&forward, "/a%252fb"), "/a%252fb");
    assert_eq!(ask(&forward, "/a%2f%2fb"), "/a/b");
}

#[test]
fn a_path_that_is_normal_already_is_not_copied() {
    let path = "/a/b-c_d~e.f/%2F?x=%41";
    let stays = |model: &HttpConnectionManager, path| {
        matches!(normalize(path, stored(model)), Ok(std::borrow::Cow::Borrowed(_)))
    };
    assert!(stays(&merging(hcm()), "/reviews/7?x=%41"));
    assert!(!stays(&hcm(), "/a/./b"));
    assert_eq!(ask(&hcm(), path), path);
}

#[test]
fn a_host_loses_its_port_and_dot_where_asked() {
    let any = HttpConnectionManager { strip_any_host_port: true, strip_trailing_host_dot: true, ..hcm() };
    for (host, want) in [
        ("a", "a"),
        ("a:80", "a"),
        ("a.", "a"),
        ("a.:80", "a"),
        ("a:x", "a:x"),
        ("a:", "a:"),
        ("[::1]:80", "[::1]"),
        ("[::1]", "[::1]"),
        ("a:b:80", "a:b"),
        ("a..", "a."),
        ("A.B:1", "A.B"),
        ("a:99999", "a"),
        ("a:070", "a"),
        ("", ""),
    ] {
        assert_eq!(normalize_host(host, stored(&any), 1), want, "{host}");
    }
    let matching = HttpConnectionManager { strip_matching_host_port: true, ..hcm() };
    for (host, want) in [
        ("a:80", "a"),
        ("a:81", "a:81"),
        ("a", "a"),
        ("[::1]:80", "[::1]"),
        ("a:x", "a:x"),
        ("a:080", "a"),
        ("a.:80", "a."),
    ] {
        assert_eq!(normalize_host(host, stored(&matching), 80), want, "{host}");
    }
    assert_eq!(normalize_host("a.:80", stored(&hcm()), 80), "a.:80");
}

fn any_hcm() -> impl Strategy<Value = HttpConnectionManager> {
    let actions = prop_oneof![
        Just(EscapedSlashes::KeepUnchanged),
        Just(EscapedSlashes::RejectRequest),
        Just(EscapedSlashes::UnescapeAndRedirect),
        Just(EscapedSlashes::UnescapeAndForward),
    ];
    (any::<[bool; 5]>(), actions).prop_map(|([normalize, merge, dot, matching, all], action)| HttpConnectionManager {
        normalize_path: normalize,
        merge_slashes: merge,
        strip_trailing_host_dot: dot,
        strip_matching_host_port: matching,
        strip_any_host_port: all,
        ..slashes(action)
    })
}

proptest! {
    #[test]
    fn any_text_is_answered(text in ".{0,60}", model in any_hcm()) {
        let _ = normalize(&text, stored(&model));
        let _ = normalize(&["/", &text].concat(), stored(&model));
        let _ = normalize_host(&text, stored(&model), 80);
    }

    // Without `;` and broken escapes, of which Envoy decodes no more than one layer.
    #[test]
    fn a_normal_path_stays_as_it_is(path in "(/|\\.|\\.\\.|%2e|%2F|%41|%25|\\\\|[a-z\"]|\\?){0,12}", model in any_hcm()) {
        let model = stored(&model);
        if let Ok(once) = normalize(&["/", &path].concat(), model) {
            prop_assert_eq!(normalize(&once, model).unwrap(), once.as_ref());
        }
    }

    #[test]
    fn no_dot_segment_is_left(path in "(/|\\.|%2e|%2E|\\\\|a|;){0,12}") {
        let path = ask(&hcm(), &["/", &path].concat());
        prop_assert!(!path.split('/').any(|s| s == "." || s == ".."), "{}", path);
    }
}
