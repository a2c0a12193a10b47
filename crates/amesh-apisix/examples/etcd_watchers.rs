//! Two sides of `benches/etcd`: `serve` is the etcd face with so many objects, which changes one of them for each line that it
//! reads; `watch` connects so many watchers, has changes made and says how long each took to come to the last of them.

use amesh_apisix::etcd::{Address, Config, Face, Listen};
use amesh_apisix::{Changes, Directory, Key, Object};
use base64::engine::general_purpose::STANDARD;
use base64::Engine;
use std::error::Error;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

type Outcome<T> = Result<T, Box<dyn Error>>;

fn json(i: usize, change: usize) -> String {
    let node = format!("{{\"host\":\"10.0.{}.{}\",\"port\":8080,\"weight\":{}}}", i / 250, i % 250, 1 + change % 100);
    format!(
        "{{\"id\":\"u{i}\",\"name\":\"outbound|8080||service-{i}.default.svc.cluster.local\",\"type\":\"roundrobin\",\
         \"nodes\":[{node},{node},{node}],\"timeout\":{{\"connect\":10,\"send\":60,\"read\":60}},\"scheme\":\"http\",\
         \"pass_host\":\"pass\",\"labels\":{{\"change\":\"{change}\"}}}}"
    )
}

fn object(i: usize, change: usize) -> Object {
    let key = Key { directory: Directory::Upstreams, id: format!("u{i}").into() };
    Object { key, json: json(i, change).into() }
}

async fn serve(address: SocketAddr, objects: usize) -> Outcome<()> {
    let mut face = Face::new("/apisix", Arc::new(|_, text| eprintln!("{text}")));
    let listen = vec![Listen { address: Address::Tcp(address), credentials: None, tls: None }];
    face.configure(Config { prefix: "/apisix".to_owned(), listen });
    let all: Vec<Object> = (0..objects).map(|i| object(i, 0)).collect();
    face.replace(&all, true);
    let (lines, mut read) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if lines.send(line).is_err() {
                return;
            }
        }
    });
    let mut change = 0;
    while let Some(line) = read.recv().await {
        change += 1;
        face.apply(&Changes { put: vec![object(line.parse()?, change)], ..Changes::default() });
    }
    Ok(())
}

/// Begins a watch, then says when each message came.
async fn watcher(address: SocketAddr, came: mpsc::UnboundedSender<Instant>) -> Outcome<()> {
    let mut stream = BufReader::new(TcpStream::connect(address).await?);
    let (key, end) = (STANDARD.encode("/apisix/"), STANDARD.encode("/apisix0"));
    let body = format!("{{\"create_request\":{{\"key\":\"{key}\",\"range_end\":\"{end}\"}}}}");
    let head = format!("POST /v3/watch HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.get_mut().write_all((head + &body).as_bytes()).await?;
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        stream.read_line(&mut line).await?;
    }
    let mut chunk = Vec::new();
    loop {
        line.clear();
        stream.read_line(&mut line).await?;
        chunk.resize(usize::from_str_radix(line.trim(), 16)? + 2, 0);
        stream.read_exact(&mut chunk).await?;
        came.send(Instant::now())?;
    }
}

async fn put(address: SocketAddr, i: usize, change: usize) -> Outcome<()> {
    let key = STANDARD.encode(format!("/apisix/upstreams/u{i}"));
    let body = format!("{{\"key\":\"{key}\",\"value\":\"{}\"}}", STANDARD.encode(json(i, change)));
    let head =
        format!("POST /v3/kv/put HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all((head + &body).as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    answer.starts_with("HTTP/1.1 200").then_some(()).ok_or_else(|| answer.into())
}

/// `put`: changes are made by requests; otherwise by a line on the standard output for each, which who started this hands on.
async fn watch(address: SocketAddr, watchers: usize, changes: usize, by_put: bool) -> Outcome<()> {
    let (came, mut times) = mpsc::unbounded_channel();
    for _ in 0..watchers {
        let came = came.clone();
        tokio::spawn(async move {
            if let Err(e) = watcher(address, came).await {
                eprintln!("{e}");
            }
        });
    }
    let mut last = async || {
        let mut last = None;
        for _ in 0..watchers {
            last = tokio::time::timeout(Duration::from_secs(20), times.recv()).await.ok().flatten().max(last);
        }
        last.ok_or("no message")
    };
    // All have begun.
    last().await?;
    println!("ready");
    for change in 1..=changes {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let begun = Instant::now();
        if by_put {
            tokio::spawn(async move { put(address, change, change).await.map_err(|e| eprintln!("{e}")) });
        } else {
            println!("change {change}");
            std::io::stdout().flush()?;
        }
        println!("took {}", last().await?.duration_since(begun).as_micros());
    }
    Ok(())
}

async fn fill(address: SocketAddr, objects: usize) -> Outcome<()> {
    for i in 0..objects {
        put(address, i, 0).await?;
    }
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome<()> {
    let words: Vec<String> = std::env::args().collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        [_, "serve", address, objects] => serve(address.parse()?, objects.parse()?).await,
        [_, "fill", address, objects] => fill(address.parse()?, objects.parse()?).await,
        [_, "watch", address, watchers, changes, how] => {
            watch(address.parse()?, watchers.parse()?, changes.parse()?, *how == "put").await
        }
        _ => Err("etcd_watchers serve|fill ADDRESS OBJECTS, or watch ADDRESS WATCHERS CHANGES put|line".into()),
    }
}
