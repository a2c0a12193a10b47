//! The etcd face as the client crate `etcd-client` sees it, over gRPC.

#![cfg(test)]
#![forbid(unsafe_code)]

use amesh_apisix::etcd::{Address, Config, Credentials, Face, Listen};
use amesh_apisix::{Changes, Directory, Key, Object};
use etcd_client::{Client, ConnectOptions, Error, EventType, GetOptions, SortOrder, SortTarget, WatchOptions};
use std::sync::Arc;
use std::time::Duration;

fn object(id: &str, json: &str) -> Object {
    Object { key: Key { directory: Directory::Routes, id: id.into() }, json: json.into() }
}

fn put(id: &str, json: &str) -> Changes {
    Changes { put: vec![object(id, json)], ..Changes::default() }
}

/// A face that knows the routes `a` and `b`, and where it is.
fn served(credentials: Option<Credentials>) -> (Face, String) {
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut face = Face::new("/apisix", Arc::new(|_, text| eprintln!("{text}")));
    let listen = vec![Listen { address: Address::Tcp(address), credentials, tls: None }];
    face.configure(Config { prefix: "/apisix".to_owned(), listen });
    face.replace(&[object("a", "1"), object("b", "2")], true);
    (face, address.to_string())
}

async fn connect(address: &str, options: Option<ConnectOptions>) -> Client {
    while tokio::net::TcpStream::connect(address).await.is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Client::connect([address], options).await.unwrap()
}

fn refusal<T>(result: Result<T, Error>) -> (i32, String) {
    match result.err().expect("a refusal") {
        Error::GRpcStatus(status) => (status.code() as i32, status.message().to_owned()),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn ranges() {
    let (_face, address) = served(None);
    let mut client = connect(&address, None).await;
    let found = client.get("/apisix/routes/a", None).await.unwrap();
    let (revision, kv) = (found.header().unwrap().revision(), &found.kvs()[0]);
    assert_eq!((kv.key_str().unwrap(), kv.value_str().unwrap(), kv.version()), ("/apisix/routes/a", "1", 1));
    assert!(kv.mod_revision() <= revision && kv.create_revision() == kv.mod_revision());
    let all = client.get("/apisix/", Some(GetOptions::new().with_prefix())).await.unwrap();
    assert_eq!((all.count(), all.kvs().len(), all.more()), (15, 15, false));
    let last = GetOptions::new().with_prefix().with_limit(1).with_sort(SortTarget::Key, SortOrder::Descend);
    let last = client.get("/apisix/routes", Some(last)).await.unwrap();
    assert_eq!((last.kvs()[0].key_str().unwrap(), last.more()), ("/apisix/routes/b", true));
    let past = client.get("/x", Some(GetOptions::new().with_revision(revision - 1))).await;
    assert_eq!(refusal(past), (11, "etcdserver: mvcc: required revision has been compacted".to_owned()));
    assert_eq!(client.status().await.unwrap().version(), "3.4.0");
}

#[tokio::test]
async fn watches() {
    let (mut face, address) = served(None);
    let mut client = connect(&address, None).await;
    let options = WatchOptions::new().with_prefix().with_prev_key();
    let mut stream = client.watch("/apisix/routes/", Some(options)).await.unwrap();
    let created = stream.message().await.unwrap().unwrap();
    assert!(created.created());
    let id = created.watch_id();
    face.apply(&put("a", "3"));
    let message = stream.message().await.unwrap().unwrap();
    assert_eq!(message.watch_id(), id);
    let event = &message.events()[0];
    assert_eq!(event.event_type(), EventType::Put);
    assert_eq!((event.kv().unwrap().value(), event.prev_kv().unwrap().value()), (&b"3"[..], &b"1"[..]));
    let revision = message.header().unwrap().revision();
    face.apply(&Changes { delete: vec![object("a", "").key], ..Changes::default() });
    let message = stream.message().await.unwrap().unwrap();
    assert_eq!(message.events()[0].event_type(), EventType::Delete);
    assert!(message.header().unwrap().revision() > revision);
    // Another one on the same stream, for what was before.
    stream.watch("/apisix/routes/a", Some(WatchOptions::new().with_start_revision(revision))).await.unwrap();
    let created = stream.message().await.unwrap().unwrap();
    assert!(created.created() && created.watch_id() != id);
    for kind in [EventType::Put, EventType::Delete] {
        let message = stream.message().await.unwrap().unwrap();
        assert_eq!((message.watch_id(), message.events()[0].event_type()), (created.watch_id(), kind));
    }
    stream.request_progress().await.unwrap();
    let progress = stream.message().await.unwrap().unwrap();
    assert!(progress.events().is_empty() && progress.header().unwrap().revision() > revision);
    stream.cancel(id).await.unwrap();
    let canceled = stream.message().await.unwrap().unwrap();
    assert!(canceled.canceled() && canceled.watch_id() == id);
    // What is forgotten.
    stream.watch("/apisix/routes/a", Some(WatchOptions::new().with_start_revision(1))).await.unwrap();
    assert!(stream.message().await.unwrap().unwrap().created());
    let compacted = stream.message().await.unwrap().unwrap();
    assert!(compacted.canceled() && compacted.compact_revision() > revision);
}

#[tokio::test]
async fn writes_are_refused() {
    let (_face, address) = served(None);
    let mut client = connect(&address, None).await;
    let denied = (7, "etcdserver: permission denied".to_owned());
    assert_eq!(refusal(client.put("/apisix/routes/a", "x", None).await), denied);
    assert_eq!(refusal(client.delete("/apisix/routes/a", None).await), denied);
    assert_eq!(refusal(client.txn(etcd_client::Txn::new()).await), denied);
    assert_eq!(refusal(client.lease_grant(10, None).await), denied);
    assert_eq!(refusal(client.compact(1, None).await), denied);
    assert_eq!(refusal(client.member_list().await), denied);
    assert_eq!(refusal(client.lock("x", None).await).0, 12);
}

#[tokio::test]
async fn users() {
    let credentials = Some(Credentials { user: "u".to_owned(), password: "p".to_owned() });
    let (_face, address) = served(credentials);
    let mut nobody = connect(&address, None).await;
    assert_eq!(refusal(nobody.get("/x", None).await), (3, "etcdserver: user name is empty".to_owned()));
    let wrong = Client::connect([&address], Some(ConnectOptions::new().with_user("u", "x"))).await;
    let failed = "etcdserver: authentication failed, invalid user ID or password";
    assert_eq!(refusal(wrong), (3, failed.to_owned()));
    let mut user = connect(&address, Some(ConnectOptions::new().with_user("u", "p"))).await;
    assert_eq!(user.get("/apisix/routes/a", None).await.unwrap().count(), 1);
}
