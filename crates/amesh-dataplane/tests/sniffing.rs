//! What the inspectors see. The answers on HTTP are those that Envoy 1.40 gave.

use amesh_dataplane::inspect::{http, tls, HttpKind, Peek, TlsHello, MAX_PEEK};
use proptest::prelude::*;

/// A ClientHello of OpenSSL 3 for `Legacy.Example.com` that offers `h2` and `http/1.1`.
const HELLO: &[u8] = include_bytes!("fixtures/client-hello.bin");

fn hello() -> Peek<TlsHello> {
    Peek::Yes(TlsHello {
        server_name: Some("legacy.example.com".into()),
        application_protocols: vec!["h2".into(), "http/1.1".into()],
    })
}

/// The same handshake message in records of at most `size` bytes.
fn in_records(size: usize) -> Vec<u8> {
    let record = |part: &[u8]| {
        let mut bytes = HELLO[..3].to_vec();
        bytes.extend_from_slice(&(part.len() as u16).to_be_bytes());
        bytes.extend_from_slice(part);
        bytes
    };
    HELLO[5..].chunks(size).flat_map(record).collect()
}

/// A record with a ClientHello that has these extensions.
fn made(extensions: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let mut list = Vec::new();
    for (kind, data) in extensions {
        list.extend_from_slice(&kind.to_be_bytes());
        list.extend_from_slice(&(data.len() as u16).to_be_bytes());
        list.extend_from_slice(data);
    }
    let mut body = vec![3, 3];
    body.extend_from_slice(&[7; 32]);
    body.extend_from_slice(&[0, 0, 2, 0x13, 0x01, 1, 0]);
    body.extend_from_slice(&(list.len() as u16).to_be_bytes());
    body.extend_from_slice(&list);
    let mut bytes = vec![22, 3, 1];
    bytes.extend_from_slice(&(body.len() as u16 + 4).to_be_bytes());
    bytes.extend_from_slice(&[1, 0]);
    bytes.extend_from_slice(&(body.len() as u16).to_be_bytes());
    bytes.extend_from_slice(&body);
    bytes
}

fn sni(name: &[u8]) -> (u16, Vec<u8>) {
    let n = name.len() as u8;
    (0, [&[0, n + 3, 0, 0, n], name].concat())
}

fn alpn(names: &[&[u8]]) -> (u16, Vec<u8>) {
    let list: Vec<u8> = names.iter().flat_map(|n| [&[n.len() as u8], *n].concat()).collect();
    (16, [&(list.len() as u16).to_be_bytes(), list.as_slice()].concat())
}

#[test]
fn a_client_hello_says_where_it_wants_to_go() {
    assert_eq!(tls(HELLO), hello());
    assert_eq!(tls(&[HELLO, b"more"].concat()), hello(), "what follows does not matter");
    for size in [1, 4, 5, 100, 1000] {
        assert_eq!(tls(&in_records(size)), hello(), "records of {size} bytes");
    }
}

#[test]
fn a_client_hello_that_is_cut_off_waits() {
    for whole in [HELLO.to_vec(), in_records(1), in_records(100)] {
        for end in 0..whole.len() {
            assert_eq!(tls(&whole[..end]), Peek::NeedMore, "{end} bytes");
        }
    }
}

#[test]
fn a_client_hello_without_a_name_is_tls_all_the_same() {
    assert_eq!(tls(&made(&[])), Peek::Yes(TlsHello::default()));
    let named = TlsHello { server_name: Some("a.b".into()), ..TlsHello::default() };
    assert_eq!(tls(&made(&[(99, vec![1]), sni(b"A.b")])), Peek::Yes(named));
    let grease = TlsHello { application_protocols: vec!["h2".into()], ..TlsHello::default() };
    assert_eq!(tls(&made(&[alpn(&[b"\xfa\xfa", b"h2"])])), Peek::Yes(grease), "a name that is no text is left out");
}

#[test]
fn what_is_no_client_hello_is_not_tls() {
    let cases: [(&str, Vec<u8>); 12] = [
        ("text", b"hello".to_vec()),
        ("text that begins like a record", b"\x16hello".to_vec()),
        ("an alert", b"\x15\x03\x01\x00\x02\x01\x00".to_vec()),
        ("a server hello", b"\x16\x03\x01\x00\x04\x02".to_vec()),
        ("a record of no bytes", b"\x16\x03\x01\x00\x00".to_vec()),
        ("a record that is too long", b"\x16\x03\x01\xff\xff".to_vec()),
        ("a message that is too long", b"\x16\x03\x01\x20\x00\x01\x01\x00\x00".to_vec()),
        ("an empty name", made(&[sni(b"")])),
        ("a name with a NUL", made(&[sni(b"a\0b")])),
        ("a name that is cut off", made(&[(0, vec![0, 9, 0, 0, 9, b'a'])])),
        ("an empty protocol", made(&[alpn(&[b""])])),
        ("a list of no protocols", made(&[(16, vec![0, 0])])),
    ];
    for (name, bytes) in cases {
        assert_eq!(tls(&bytes), Peek::No, "{name}");
    }
    let mut endless = b"\x16\x03\x01\x40\x04\x01\x00\x40\x00".to_vec();
    endless.resize(MAX_PEEK - 1, 0);
    assert_eq!(tls(&endless), Peek::NeedMore);
    endless.push(0);
    assert_eq!(tls(&endless), Peek::No, "what was looked at in vain is not waited for");
}

#[test]
fn a_request_line_is_http() {
    for line in [
        "GET / HTTP/1.1\r\n",
        "GET / HTTP/1.1\n",
        "FOO / HTTP/1.1\r\n",
        "foo / HTTP/1.1\r\n",
        "GET  / HTTP/1.1\r\n",
        "GET / HTTP/1.1 \r\n",
        "GET /  HTTP/1.1\r\n",
        "GET / \tHTTP/1.1\r\n",
        "GET\t/ HTTP/1.1\r\n",
        "GET / HTTP/1.1\r\r\n",
        "GET / HTTP/1.1\0\r\n",
        "GET /\0 HTTP/1.1\r\n",
        "GET /\u{1} HTTP/1.1\r\n",
        "GET * HTTP/1.1\r\n",
        "GET *x HTTP/1.1\r\n",
        "GET //x HTTP/1.1\r\n",
        "GET /{}\"?# HTTP/1.1\r\n",
        "GET http://a/ HTTP/1.1\r\n",
        "GET http:// HTTP/1.1\r\n",
        "GET h1ttp://a?x HTTP/1.1\r\n",
        "CONNECT a:1 HTTP/1.1\r\n",
        "CONNECT [::1]:1 HTTP/1.1\r\n",
        "CONNECT / HTTP/1.1\r\n",
        "PRI * HTTP/1.1\r\n",
        "GET / HTTP/1.1\r\nfoo bar\r\n\r\n",
    ] {
        assert_eq!(http(line.as_bytes()), Peek::Yes(HttpKind::Http11), "{line:?}");
    }
    for line in [
        "GET / HTTP/1.0\r\n",
        "GET / HTTP/0.9\r\n",
        "GET / HTTP/2.0\r\n",
        "GET / HTTP/1.2\r\n",
        "GET /\r\n",
        "PRI * HTTP/2.0\r\n\r\nXX",
    ] {
        assert_eq!(http(line.as_bytes()), Peek::Yes(HttpKind::Http10), "{line:?}");
    }
}

#[test]
fn other_bytes_are_not_http() {
    for bytes in [
        &b"hello\r\n"[..],
        b"\0\x01hello",
        b"\x01hello",
        b"\r\nGET / HTTP/1.1\r\n",
        b"\nhello",
        b" GET / HTTP/1.1\r\n",
        b"\thello",
        b"hello\0",
        b"hello\x80",
        b"hello\x7f",
        b"hello\x1f",
        b"hel{lo",
        b"hello(",
        b"hello:",
        b"hello/",
        b"hello@",
        b"{\"a\":1}",
        b"SSH-2.0-OpenSSH_9\r\n",
        b"*3\r\n$3\r\nSET\r\n",
        b"EHLO x\r\n",
        b"hello world\n",
        b"hello \r\n",
        b"GET \r\n",
        b"GET   \r\n",
        b"GET/ HTTP/1.1\r\n",
        b"GET / x HTTP/1.1\r\n",
        b"GET / HTTP/1.1 x\r\n",
        b"GET x HTTP/1.1\r\n",
        b"GET ? HTTP/1.1\r\n",
        b"GET a:/b HTTP/1.1\r\n",
        b"GET ://a/ HTTP/1.1\r\n",
        b"GET http://a b\r\n",
        b"GET /\x80 HTTP/1.1\r\n",
        b"GET /\x7f HTTP/1.1\r\n",
        b"GET /a\rb HTTP/1.1\r\n",
        b"GET / HTTQ/1.1\r\n",
        b"GET / http/1.1\r\n",
        b"GET / HTTP/11\r\n",
        b"GET / HTTP/1\r\n",
        b"GET / HTTP/\r\n",
        b"GET / HTTP/a.1\r\n",
        b"GET / HTTP/1.10\r\n",
    ] {
        assert_eq!(http(bytes), Peek::No, "{:?}", String::from_utf8_lossy(bytes));
    }
    assert_eq!(http(&[b'A'; MAX_PEEK]), Peek::No, "a line without an end");
}

#[test]
fn what_could_become_a_request_waits() {
    for bytes in [
        &b""[..],
        b"hello",
        b"hello world",
        b"hello world foo bar",
        b"hello\t",
        b"hello\rx",
        b"hello w{",
        b"hello \x80",
        b"GET",
        b"GET ",
        b"GET / HTTP/1.1\r",
        b"P",
        b"PO",
        b"PRI * HTTP/2.0\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r",
    ] {
        assert_eq!(http(bytes), Peek::NeedMore, "{:?}", String::from_utf8_lossy(bytes));
    }
}

#[test]
fn the_preface_is_http2() {
    assert_eq!(http(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), Peek::Yes(HttpKind::H2c));
    assert_eq!(http(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nxx"), Peek::Yes(HttpKind::H2c));
    assert_eq!(HttpKind::H2c.alpn(), "h2c");
}

proptest! {
    #[test]
    fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = http(&bytes);
        let _ = tls(&bytes);
        let _ = tls(&[&[22, 3, 1], bytes.as_slice()].concat());
    }

    #[test]
    fn a_damaged_client_hello_is_answered(at in 0..HELLO.len(), byte in any::<u8>(), size in 1usize..300) {
        let mut bytes = in_records(size);
        let at = at % bytes.len();
        bytes[at] = byte;
        let _ = tls(&bytes);
    }

    #[test]
    fn an_answer_stays_when_more_bytes_come(line in "[a-zA-Z/ :{\r\n]{0,30}", end in 0usize..30) {
        let bytes = line.as_bytes();
        let early = http(&bytes[..end.min(bytes.len())]);
        prop_assert!(early == Peek::NeedMore || early == http(bytes));
    }
}
