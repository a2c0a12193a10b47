//! What APISIX relies on, asked over sockets as it asks.

mod support;

use amesh_apisix::etcd::{Address, Credentials};
use amesh_apisix::Changes;
use serde_json::json;
use support::*;

fn user() -> Option<Credentials> {
    Some(Credentials { user: "root".to_owned(), password: "pw".to_owned() })
}

#[tokio::test]
async fn the_version_is_one_that_apisix_takes() {
    let s = served(None);
    let mut client = Raw::connect(s.address).await;
    client.send("GET", "/version", "", "").await;
    assert_eq!(client.answer().await.json()["etcdserver"], "3.4.0");
    client.send("GET", "/health", "", "").await;
    assert_eq!(client.answer().await.body, r#"{"health":"true"}"#);
    client.send("GET", "/v3/kv/range", "", "").await;
    assert_eq!(client.answer().await.status, 405);
    for path in ["/v3/nothing", "/nothing", "/v3/kv/nothing"] {
        client.send("POST", path, "", "{}").await;
        assert_eq!(client.answer().await.status, 404, "{path}");
    }
}

#[tokio::test]
async fn one_range_has_every_marker_before_its_objects() {
    let s = served(None);
    let mut client = Raw::connect(s.address).await;
    // As it stands in the recordings.
    let answer = client
        .post(
            "/v3/kv/range",
            json!({"range_end": b64("/apisiy"), "limit": 0, "sort_order": 0, "sort_target": 0, "serializable": false,
                "keys_only": false, "count_only": false, "min_mod_revision": 0, "max_mod_revision": 0,
                "min_create_revision": 0, "max_create_revision": 0, "revision": 0, "key": b64("/apisix")}),
        )
        .await;
    assert!(answer.head.contains("content-type: application/json"));
    let answer = answer.json();
    let keys = keys(&answer);
    assert_eq!(number(&answer["count"]), 14);
    assert!(keys.is_sorted());
    let marker = keys.iter().position(|k| k == "/apisix/routes/").unwrap();
    assert_eq!(keys[marker + 1], "/apisix/routes/a");
    let route = &answer["kvs"][marker + 1];
    assert_eq!(route["value"], b64("{}"));
    assert_eq!(route["version"], "1");
    assert!(number(&route["mod_revision"]) <= number(&answer["header"]["revision"]));
    assert_eq!(route["create_revision"], route["mod_revision"]);
    assert_eq!(answer["kvs"][marker]["value"], b64("init_dir"));
}

#[tokio::test]
async fn an_answer_without_hits_has_a_revision_and_nothing_else() {
    let s = served(None);
    let mut client = Raw::connect(s.address).await;
    let answer = client.post("/v3/kv/range", json!({"key": b64("/apisix/phantomkey")})).await.json();
    assert!(number(&answer["header"]["revision"]) > 0);
    assert_eq!(answer.as_object().unwrap().len(), 1, "{answer}");
}

#[tokio::test]
async fn the_fields_of_a_range_mean_what_they_mean_in_etcd() {
    let mut s = served(None);
    s.face.apply(&put("b", "{\"b\":1}"));
    let mut client = Raw::connect(s.address).await;
    let now = client.revision().await;
    let mut ask = async |more: serde_json::Value| {
        let mut body = json!({"key": b64("/apisix/routes/"), "range_end": b64("/apisix/routes0")});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        client.post("/v3/kv/range", body).await
    };
    let limited = ask(json!({"limit": "1", "sort_order": "DESCEND"})).await.json();
    assert_eq!(
        (keys(&limited), &limited["more"], &limited["count"]),
        (vec!["/apisix/routes/b".into()], &true.into(), &"3".into())
    );
    let counted = ask(json!({"countOnly": true})).await.json();
    assert_eq!((counted["count"].as_str(), counted.get("kvs")), (Some("3"), None));
    let bare = ask(json!({"keys_only": true})).await.json();
    assert!(bare["kvs"].as_array().unwrap().iter().all(|kv| kv.get("value").is_none()));
    let by_time = ask(json!({"sort_target": "MOD", "sort_order": 2})).await.json();
    assert_eq!(keys(&by_time)[0], "/apisix/routes/b");
    let new = ask(json!({"min_mod_revision": now.to_string()})).await.json();
    assert_eq!(keys(&new), ["/apisix/routes/b"]);
    assert_eq!(ask(json!({"revision": now})).await.status, 200);
    let past = ask(json!({"revision": now - 1})).await;
    assert_eq!(
        (past.status, past.json()["error"].as_str()),
        (400, Some("etcdserver: mvcc: required revision has been compacted"))
    );
    let future = ask(json!({"revision": now + 1})).await;
    assert_eq!(future.json()["error"], "etcdserver: mvcc: required revision is a future revision");
    assert_eq!(future.json()["code"], 11);
}

#[tokio::test]
async fn what_is_no_request_is_told_so() {
    let s = served(None);
    let mut client = Raw::connect(s.address).await;
    for (body, words) in [
        ("{}", "etcdserver: key is not provided"),
        ("", "unexpected EOF"),
        ("{\"key\":", "EOF while parsing"),
        ("{\"key\":\"!!\"}", "illegal base64"),
        ("{\"key\":\"YQ==\",\"limit\":1.5}", "invalid value"),
    ] {
        client.send("POST", "/v3/kv/range", "", body).await;
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.json()["code"].as_i64()), (400, Some(3)), "{body}");
        assert!(answer.json()["error"].as_str().unwrap().contains(words), "{}", answer.body);
    }
    client.send("POST", "/v3/kv/range", "", &" ".repeat(2 << 20)).await;
    assert_eq!(client.answer().await.json()["error"], "etcdserver: request is too large");
}

#[tokio::test]
async fn a_batch_is_one_line_with_a_larger_revision() {
    let mut s = served(None);
    let mut client = Raw::connect(s.address).await;
    let before = client.revision().await;
    let begun = client.watch((before + 1).into()).await;
    assert_eq!(begun, before);
    client.silence().await;
    let mut changes = put("b", "{\"b\":1}");
    changes.put.push(object("c", "{}"));
    changes.delete = delete("a").delete;
    s.face.apply(&changes);
    let message = client.message().await;
    let revision = number(&message["header"]["revision"]);
    assert!(revision > begun);
    let events = message["events"].as_array().unwrap();
    assert_eq!(events.len(), 3);
    assert_eq!(events[0].get("type"), None);
    assert_eq!(events[0]["kv"]["key"], b64("/apisix/routes/b"));
    assert_eq!(number(&events[0]["kv"]["mod_revision"]), revision);
    // A delete has no value.
    assert_eq!(
        events[2],
        json!({"type": "DELETE", "kv": {"key": b64("/apisix/routes/a"), "mod_revision": revision.to_string()}})
    );
    // What changes nothing is nothing, and there are no messages without events.
    s.face.apply(&put("b", "{\"b\":1}"));
    s.face.apply(&Changes::default());
    client.silence().await;
    s.face.apply(&delete("b"));
    assert!(number(&client.message().await["header"]["revision"]) > revision);
}

#[tokio::test]
async fn what_is_past_is_replayed_a_line_a_revision() {
    let mut s = served(None);
    let mut client = Raw::connect(s.address).await;
    let before = client.revision().await;
    for i in 0..3 {
        s.face.apply(&put("b", &format!("{{\"b\":{i}}}")));
    }
    // A number, text, and what a library without integers makes of it.
    for start in [json!(before + 1), json!((before + 1).to_string()), json!((before + 1) as f64)] {
        let mut client = Raw::connect(s.address).await;
        client.watch(start).await;
        for i in 1..=3 {
            let message = client.message().await;
            assert_eq!(number(&message["header"]["revision"]), before + i);
            assert_eq!(message["events"].as_array().unwrap().len(), 1);
        }
        client.silence().await;
    }
}

#[tokio::test]
async fn what_is_forgotten_is_compacted_and_the_stream_ends() {
    let mut s = served(None);
    for future in [false, true] {
        let mut client = Raw::connect(s.address).await;
        let now = client.revision().await;
        client.watch(json!(if future { now + 1000 } else { 5 })).await;
        let message = client.message().await;
        assert_eq!(message["canceled"], true);
        assert_eq!(number(&message["compact_revision"]), now);
        assert_eq!(message["header"].get("revision"), None);
        assert_eq!(client.chunk().await, None);
        // The same connection goes on, from there.
        client.watch(json!(now + 1)).await;
        client.silence().await;
        s.face.apply(&put("b", &format!("{{\"b\":{future}}}")));
        assert!(client.message().await["events"].is_array());
    }
}

#[tokio::test]
async fn a_watch_of_some_keys_sees_those() {
    let mut s = served(None);
    let mut client = Raw::connect(s.address).await;
    let create = json!({"key": b64("/apisix/routes/b"), "prev_kv": true, "filters": ["NODELETE"]});
    client.send("POST", "/v3/watch", "", &json!({"createRequest": create}).to_string()).await;
    client.head().await;
    assert_eq!(client.message().await["created"], true);
    s.face.apply(&put("c", "{}"));
    s.face.apply(&put("b", "1"));
    s.face.apply(&delete("b"));
    s.face.apply(&put("b", "2"));
    s.face.apply(&put("b", "3"));
    assert_eq!(client.message().await["events"][0]["kv"]["value"], b64("1"));
    assert_eq!(client.message().await["events"][0]["kv"]["value"], b64("2"));
    assert_eq!(client.message().await["events"][0]["prev_kv"]["value"], b64("2"));
}

#[tokio::test]
async fn writes_are_refused_in_etcds_words() {
    let s = served(None);
    let mut client = Raw::connect(s.address).await;
    for path in
        ["kv/put", "kv/deleterange", "kv/txn", "kv/compaction", "lease/grant", "auth/enable", "cluster/member/add"]
    {
        let answer =
            client.post(&format!("/v3/{path}"), json!({"key": b64("/apisix/routes/x"), "value": "eA=="})).await;
        let refused =
            json!({"error": "etcdserver: permission denied", "message": "etcdserver: permission denied", "code": 7});
        assert_eq!((answer.status, answer.json()), (403, refused), "{path}");
    }
    let answer = client.post("/v3/kv/range", json!({"key": b64("/apisix/routes/x")})).await;
    assert_eq!(answer.json().get("kvs"), None);
}

#[tokio::test]
async fn a_user_is_asked_for_where_there_is_one() {
    let s = served(user());
    let mut client = Raw::connect(s.address).await;
    let range = json!({"key": b64("/apisix/routes/a")});
    let answer = client.post("/v3/kv/range", range.clone()).await;
    assert_eq!((answer.status, answer.json()["error"].as_str()), (400, Some("etcdserver: user name is empty")));
    for who in [json!({"name": "root", "password": "x"}), json!({"name": "x", "password": "pw"}), json!({})] {
        let answer = client.post("/v3/auth/authenticate", who).await;
        assert_eq!(answer.json()["error"], "etcdserver: authentication failed, invalid user ID or password");
    }
    let answer = client.post("/v3/auth/authenticate", json!({"name": "root", "password": "pw"})).await.json();
    let token = format!("Authorization: {}\r\n", answer["token"].as_str().unwrap());
    client.send("POST", "/v3/kv/range", &token, &range.to_string()).await;
    assert_eq!(client.answer().await.json()["count"], "1");
    client.send("POST", "/v3/kv/range", "Authorization: x\r\n", &range.to_string()).await;
    let answer = client.answer().await;
    assert_eq!((answer.status, answer.json()["error"].as_str()), (401, Some("etcdserver: invalid auth token")));
    let create = json!({"create_request": {"key": b64("/apisix/"), "range_end": b64("/apisix0")}}).to_string();
    client.send("POST", "/v3/watch", "", &create).await;
    let denied = client.answer().await.json();
    assert_eq!(denied["result"]["canceled"], true);
    let reason = "rpc error: code = InvalidArgument desc = etcdserver: user name is empty";
    assert_eq!(denied["result"]["cancel_reason"], reason);
    client.send("POST", "/v3/watch", &token, &create).await;
    client.head().await;
    assert_eq!(client.message().await["created"], true);
    // And where there is none.
    let open = served(None);
    let answer = Raw::connect(open.address).await.post("/v3/auth/authenticate", json!({"name": "root"})).await;
    assert_eq!(
        (answer.status, answer.json()["error"].as_str()),
        (412, Some("etcdserver: authentication is not enabled"))
    );
}

#[tokio::test]
async fn nobody_is_told_that_the_mesh_is_empty_before_it_is_known() {
    let (mut face, _) = new_face();
    let address = free_address();
    face.configure(config(Address::Tcp(address), None));
    let mut client = Raw::connect(address).await;
    client.send("GET", "/version", "", "").await;
    assert_eq!(client.answer().await.status, 200);
    let watch = json!({"create_request": {"key": b64("/apisix/")}});
    for (path, body) in [("/v3/kv/range", json!({"key": b64("/apisix/")})), ("/v3/watch", watch)] {
        let answer = client.post(path, body).await;
        assert_eq!((answer.status, answer.json()["error"].as_str()), (503, Some("etcdserver: no leader")));
    }
    client.send("GET", "/health", "", "").await;
    assert_eq!(client.answer().await.status, 503);
    // A route makes it known.
    face.apply(&put("a", "{}"));
    assert!(client.revision().await > 0);
    // Nothing of what led there is replayed.
    let now = client.revision().await;
    client.watch(json!(now)).await;
    client.silence().await;
}

#[tokio::test]
async fn a_reload_leaves_watches_alone() {
    let mut s = served(None);
    let mut client = Raw::connect(s.address).await;
    client.watch(json!(0)).await;
    let mut more = config(Address::Tcp(s.address), None);
    let other = free_address();
    more.listen.extend(config(Address::Tcp(other), None).listen);
    s.face.configure(more.clone());
    s.face.apply(&put("b", "1"));
    client.message().await;
    // On the other address it is the same store; once that is gone nobody is there.
    let mut second = Raw::connect(other).await;
    second.watch(json!(0)).await;
    more.listen.pop();
    s.face.configure(more.clone());
    let gone = tokio::time::timeout(LONG, second.chunk_or_end()).await.unwrap();
    assert!(gone, "the connection has ended");
    assert!(tokio::net::TcpStream::connect(other).await.is_err());
    // A user from now on, for the next request.
    more.listen[0].credentials = user();
    s.face.configure(more.clone());
    s.face.apply(&put("b", "2"));
    client.message().await;
    let mut late = Raw::connect(s.address).await;
    assert_eq!(late.post("/v3/kv/range", json!({"key": b64("/apisix/")})).await.status, 400);
    // Another prefix is another store.
    more.listen[0].credentials = None;
    more.prefix = "/other".to_owned();
    s.face.configure(more);
    assert_eq!(client.message().await["canceled"], true);
    let found =
        late.post("/v3/kv/range", json!({"key": b64("/other/routes/"), "range_end": b64("/other/routes0")})).await;
    assert_eq!(keys(&found.json()), ["/other/routes/", "/other/routes/a", "/other/routes/b"]);
}

#[tokio::test]
async fn a_taken_port_is_told_once_and_tried_again() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let (mut face, messages) = new_face();
    face.configure(config(Address::Tcp(address), None));
    face.replace(&[], true);
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    assert_eq!(messages.lock().unwrap().len(), 1);
    let first = messages.lock().unwrap()[0].clone();
    assert!(first.contains(&format!("cannot listen on {address}: Address already in use")), "{first}");
    assert!(first.contains("give \"etcd\" another address"), "{first}");
    drop(taken);
    assert!(Raw::connect(address).await.revision().await > 0);
    assert_eq!(messages.lock().unwrap()[1], format!("etcd: listening on {address} now"));
}

#[tokio::test]
async fn a_unix_socket_that_was_left_is_taken_over() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("etcd.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let (mut face, messages) = new_face();
    face.configure(config(Address::Unix(path.clone()), None));
    let ask = async {
        loop {
            if let Ok(stream) = tokio::net::UnixStream::connect(&path).await {
                return stream;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    let mut stream = tokio::time::timeout(LONG, ask).await.unwrap();
    stream.write_all(b"GET /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.ends_with("\"etcdserver\":\"3.4.0\"}"), "{answer}");
    assert!(messages.lock().unwrap().is_empty());
    drop(face);
    while path.exists() {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn who_does_not_read_is_sent_to_read_anew_and_costs_no_memory() {
    let mut s = served(None);
    let mut slow = Raw::connect(s.address).await;
    slow.watch(json!(0)).await;
    let mut quick = Raw::connect(s.address).await;
    quick.watch(json!(0)).await;
    // More than sockets, the server's buffers and the history hold together.
    let large = "x".repeat(1 << 20);
    for i in 0..40 {
        s.face.apply(&put("b", &format!("{i}{large}")));
        assert!(quick.message().await["events"].is_array());
    }
    let mut seen = 0;
    let cancelled = loop {
        let message = slow.message().await;
        if message["canceled"] == true {
            break message;
        }
        seen += 1;
    };
    assert!(seen < 39, "{seen}");
    assert!(number(&cancelled["compact_revision"]) > 0);
}

#[tokio::test]
async fn hundreds_watch() {
    let mut s = served(None);
    let mut clients = Vec::new();
    for _ in 0..300 {
        let mut client = Raw::connect(s.address).await;
        client.watch(json!(0)).await;
        clients.push(client);
    }
    s.face.apply(&put("b", "1"));
    for client in &mut clients {
        assert_eq!(client.message().await["events"][0]["kv"]["value"], b64("1"));
    }
}

#[tokio::test]
async fn a_large_answer_is_shared_and_never_old() {
    let mut s = served(None);
    let large = "x".repeat(1 << 17);
    let mut client = Raw::connect(s.address).await;
    let routes = json!({"key": b64("/apisix/routes"), "range_end": b64("/apisix/routet")});
    for i in 0..3 {
        s.face.apply(&put("b", &format!("{i}{large}")));
        let first = client.post("/v3/kv/range", routes.clone()).await;
        let again = Raw::connect(s.address).await.post("/v3/kv/range", routes.clone()).await;
        assert_eq!(first.body, again.body);
        assert_eq!(first.json()["kvs"][2]["value"], b64(&format!("{i}{large}")));
        // Another question has another answer.
        let one = client
            .post("/v3/kv/range", json!({"key": b64("/apisix/routes"), "range_end": b64("/apisix/routet"), "limit": 1}))
            .await;
        assert_eq!(keys(&one.json()), ["/apisix/routes/"]);
    }
}
