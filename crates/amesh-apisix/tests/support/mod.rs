//! A face on a free port, and a client that sees every byte.
#![allow(dead_code)]

use amesh_apisix::etcd::{Address, Config, Credentials, Face, Listen};
use amesh_apisix::{Changes, Directory, Key, Object};
use base64::engine::general_purpose::STANDARD;
use base64::Engine;
use serde_json::{json, Value};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

pub const LONG: Duration = Duration::from_secs(60);

pub fn b64(text: &str) -> String {
    STANDARD.encode(text)
}

pub fn free_address() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

pub fn object(id: &str, json: &str) -> Object {
    Object { key: Key { directory: Directory::Routes, id: id.into() }, json: json.into() }
}

pub fn put(id: &str, json: &str) -> Changes {
    Changes { put: vec![object(id, json)], ..Changes::default() }
}

pub fn delete(id: &str) -> Changes {
    Changes { delete: vec![object(id, "").key], ..Changes::default() }
}

pub struct Served {
    pub face: Face,
    pub address: SocketAddr,
    pub messages: Arc<Mutex<Vec<String>>>,
}

pub fn new_face() -> (Face, Arc<Mutex<Vec<String>>>) {
    let messages = Arc::new(Mutex::new(Vec::new()));
    let log = messages.clone();
    let face = Face::new("/apisix", Arc::new(move |_, text| log.lock().unwrap().push(text.to_owned())));
    (face, messages)
}

pub fn config(address: Address, credentials: Option<Credentials>) -> Config {
    Config { prefix: "/apisix".to_owned(), listen: vec![Listen { address, credentials, tls: None }] }
}

/// A face that knows one route, `a`.
pub fn served(credentials: Option<Credentials>) -> Served {
    let (mut face, messages) = new_face();
    let address = free_address();
    face.configure(config(Address::Tcp(address), credentials));
    face.replace(&[object("a", "{}")], true);
    Served { face, address, messages }
}

/// One HTTP/1.1 connection.
pub struct Raw(BufReader<TcpStream>);

pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }
}

impl Raw {
    /// Connects as soon as somebody listens.
    pub async fn connect(address: SocketAddr) -> Raw {
        let connect = async {
            loop {
                match TcpStream::connect(address).await {
                    Ok(stream) => return Raw(BufReader::new(stream)),
                    Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
        };
        tokio::time::timeout(LONG, connect).await.unwrap()
    }

    pub async fn send(&mut self, method: &str, path: &str, headers: &str, body: &str) {
        let length = body.len();
        let request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n{headers}\r\n{body}");
        self.0.get_mut().write_all(request.as_bytes()).await.unwrap();
    }

    /// The head, in lower case.
    pub async fn head(&mut self) -> (u16, String) {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            let read = tokio::time::timeout(LONG, self.0.read_line(&mut head)).await.unwrap().unwrap();
            assert!(read > 0, "closed within {head:?}");
        }
        (head.split(' ').nth(1).unwrap().parse().unwrap(), head.to_lowercase())
    }

    pub async fn answer(&mut self) -> Answer {
        let (status, head) = self.head().await;
        let length = head.lines().find_map(|l| l.strip_prefix("content-length: ")).expect("a length");
        let mut body = vec![0; length.parse().unwrap()];
        self.0.read_exact(&mut body).await.unwrap();
        Answer { status, head, body: String::from_utf8(body).unwrap() }
    }

    pub async fn post(&mut self, path: &str, body: Value) -> Answer {
        self.send("POST", path, "", &body.to_string()).await;
        self.answer().await
    }

    /// A chunk; `None`: the last one.
    pub async fn chunk(&mut self) -> Option<String> {
        let mut size = String::new();
        tokio::time::timeout(LONG, self.0.read_line(&mut size)).await.expect("a chunk").unwrap();
        let mut chunk = vec![0; usize::from_str_radix(size.trim(), 16).unwrap() + 2];
        self.0.read_exact(&mut chunk).await.unwrap();
        chunk.truncate(chunk.len() - 2);
        (!chunk.is_empty()).then(|| String::from_utf8(chunk).unwrap())
    }

    /// A message of a watch: one chunk, one line.
    pub async fn message(&mut self) -> Value {
        let line = self.chunk().await.expect("a message");
        assert!(line.ends_with('\n') && line.matches('\n').count() == 1, "{line:?}");
        serde_json::from_str::<Value>(&line).unwrap()["result"].take()
    }

    /// That nothing comes.
    pub async fn silence(&mut self) {
        let mut byte = [0];
        let read = tokio::time::timeout(Duration::from_millis(100), self.0.read(&mut byte)).await;
        assert!(read.is_err(), "{read:?}");
    }

    /// Begins a watch of everything; with the revision at which it begins.
    pub async fn watch(&mut self, start: Value) -> i64 {
        let create = json!({"key": b64("/apisix/"), "range_end": b64("/apisix0"), "start_revision": start});
        self.send("POST", "/v3/watch", "", &json!({"create_request": create}).to_string()).await;
        let (status, head) = self.head().await;
        assert_eq!(status, 200);
        assert!(
            head.contains("transfer-encoding: chunked") && head.contains("content-type: application/json"),
            "{head}"
        );
        let created = self.message().await;
        assert_eq!(created["created"], true);
        number(&created["header"]["revision"])
    }

    pub async fn revision(&mut self) -> i64 {
        let answer = self.post("/v3/kv/range", json!({"key": b64("/apisix/")})).await;
        number(&answer.json()["header"]["revision"])
    }
}

/// A 64-bit integer is text.
pub fn number(value: &Value) -> i64 {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text")).parse().unwrap()
}

pub fn keys(answer: &Value) -> Vec<String> {
    let text = |v: &Value| String::from_utf8(STANDARD.decode(v["key"].as_str().unwrap()).unwrap()).unwrap();
    answer["kvs"].as_array().map(|kvs| kvs.iter().map(text).collect()).unwrap_or_default()
}

impl Raw {
    /// Whether the connection ends, with or without a last chunk.
    pub async fn chunk_or_end(&mut self) -> bool {
        let mut rest = Vec::new();
        // A reset is an end, too.
        let _ = self.0.read_to_end(&mut rest).await;
        true
    }
}
