//! Faults of control planes and of the way to them, over loopback.

use super::testing::{cutter, soon, ControlPlane, Pki};
use super::*;
use envoy_types::pb::envoy::service::discovery::v3::Resource;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

fn settings(servers: &[&str]) -> Settings {
    Settings {
        servers: servers.iter().map(|s| Server { target: s.parse().unwrap(), tls: None }).collect(),
        protocol: Protocol::Delta,
        token_file: None,
        cluster_id: None,
        mark: None,
        patience: Duration::from_millis(300),
    }
}

fn start(settings: Settings) -> Link {
    Link::start(settings, Resolver::new(None))
}

fn response(nonce: &str) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse { nonce: nonce.into(), ..Default::default() }
}

async fn next(link: &mut Link) -> Event {
    soon("an event", link.next()).await.unwrap()
}

/// The requests of the next connection; `Connecting`s on the way are passed over.
async fn connected(link: &mut Link) -> mpsc::UnboundedSender<DeltaDiscoveryRequest> {
    loop {
        match next(link).await {
            Event::Connecting(_) => {}
            Event::Connected(Requests::Delta(requests)) => {
                requests.send(DeltaDiscoveryRequest::default()).unwrap();
                return requests;
            }
            other => panic!("{other:?}"),
        }
    }
}

async fn nonce(link: &mut Link) -> String {
    match next(link).await {
        Event::Response(Response::Delta(r)) => r.nonce,
        other => panic!("{other:?}"),
    }
}

async fn ended(link: &mut Link) -> (String, bool, Duration) {
    loop {
        match next(link).await {
            Event::Connecting(_) => {}
            Event::Ended { error, ordinary, pause } => return (error.to_string(), ordinary, pause),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn targets_are_read_and_written() {
    for good in ["istiod.istio-system.svc:15012", "10.0.0.1:1", "[::1]:15010", "unix:/run/xds.sock"] {
        assert_eq!(good.parse::<Target>().unwrap().to_string(), good);
    }
    for bad in ["istiod", "istiod:", "istiod:0", "istiod:70000", "::1:80", "[::1]", "[x]:1", "unix:rel", ":1", "a/b:1"]
    {
        let e = bad.parse::<Target>().unwrap_err().to_string();
        assert!(e.contains(bad) && e.contains("host:port"), "{e}");
    }
}

#[tokio::test]
async fn responses_come_in_order_and_requests_arrive() {
    let mut server = ControlPlane::start().await;
    let mut link = start(settings(&[&server.address]));
    let requests = connected(&mut link).await;
    let mut stream = server.delta().await;
    stream.request().await;
    requests.send(DeltaDiscoveryRequest { response_nonce: "ack".into(), ..Default::default() }).unwrap();
    assert_eq!(stream.request().await.response_nonce, "ack");
    for n in ["1", "2", "3", "4", "5"] {
        stream.say(response(n)).await;
    }
    for n in ["1", "2", "3", "4", "5"] {
        assert_eq!(nonce(&mut link).await, n);
    }
    assert!(stream.headers.get("authorization").is_none());
}

#[tokio::test]
async fn a_stream_of_the_other_protocol() {
    let mut server = ControlPlane::start().await;
    let mut link = start(Settings { protocol: Protocol::Sotw, ..settings(&[&server.address]) });
    assert!(matches!(next(&mut link).await, Event::Connecting(0)));
    let Event::Connected(Requests::Sotw(requests)) = next(&mut link).await else { panic!() };
    requests.send(DiscoveryRequest::default()).unwrap();
    let stream = server.sotw().await;
    stream.say(DiscoveryResponse { nonce: "1".into(), ..Default::default() }).await;
    let Event::Response(Response::Sotw(r)) = next(&mut link).await else { panic!() };
    assert_eq!(r.nonce, "1");
}

#[tokio::test]
async fn a_large_response_passes() {
    let mut server = ControlPlane::start().await;
    let mut link = start(settings(&[&server.address]));
    connected(&mut link).await;
    let stream = server.delta().await;
    // More than tonic's default of 4 MiB.
    let resources = (0..6000).map(|i| Resource { name: format!("{i}-{}", "x".repeat(1000)), ..Default::default() });
    stream.say(DeltaDiscoveryResponse { resources: resources.collect(), ..response("large") }).await;
    assert_eq!(nonce(&mut link).await, "large");
}

#[tokio::test]
async fn a_stream_that_ends_after_a_response_is_opened_again_at_once() {
    let mut server = ControlPlane::start().await;
    let mut link = start(settings(&[&server.address]));
    connected(&mut link).await;
    let stream = server.delta().await;
    stream.say(response("1")).await;
    assert_eq!(nonce(&mut link).await, "1");
    drop(stream);
    let (_, ordinary, pause) = ended(&mut link).await;
    assert!(ordinary && pause.is_zero());
    // A second one soon after is no ordinary end, and waits.
    connected(&mut link).await;
    let stream = server.delta().await;
    stream.say(response("2")).await;
    assert_eq!(nonce(&mut link).await, "2");
    drop(stream);
    let (_, ordinary, pause) = ended(&mut link).await;
    assert!(!ordinary && !pause.is_zero());
    connected(&mut link).await;
}

#[tokio::test]
async fn after_goaway_the_stream_is_opened_again_at_once_elsewhere() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut old = ControlPlane::on(listener);
    let mut link = start(settings(&[&address.to_string()]));
    connected(&mut link).await;
    let stream = old.delta().await;
    stream.say(response("1")).await;
    assert_eq!(nonce(&mut link).await, "1");
    old.go_away();
    // The server would let the stream go on for as long as it likes.
    let (error, ordinary, pause) = ended(&mut link).await;
    assert!(ordinary && pause.is_zero() && error.contains("GOAWAY"), "{error}");
    drop((stream, old));
    // Whoever listens there now is spoken to, after refusals if need be.
    let mut new = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break ControlPlane::on(listener),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    let found = async {
        loop {
            if let Event::Connected(Requests::Delta(requests)) = next(&mut link).await {
                requests.send(DeltaDiscoveryRequest::default()).unwrap();
                return requests;
            }
        }
    };
    let _requests = soon("the new server", found).await;
    new.delta().await.say(response("3")).await;
    assert_eq!(nonce(&mut link).await, "3");
}

#[tokio::test]
async fn a_connection_that_is_cut_within_a_message_is_made_again() {
    let mut server = ControlPlane::start().await;
    let address = cutter(server.address.clone(), 200_000).await;
    let mut link = start(settings(&[&address.to_string()]));
    connected(&mut link).await;
    let stream = server.delta().await;
    stream.say(response("1")).await;
    assert_eq!(nonce(&mut link).await, "1");
    let resources = (0..1000).map(|i| Resource { name: format!("{i}-{}", "x".repeat(1000)), ..Default::default() });
    stream.say(DeltaDiscoveryResponse { resources: resources.collect(), ..response("cut") }).await;
    let (error, _, pause) = ended(&mut link).await;
    assert!(error.contains("broke off") && pause.is_zero(), "{error}");
    connected(&mut link).await;
    server.delta().await.say(response("2")).await;
    assert_eq!(nonce(&mut link).await, "2");
}

#[tokio::test]
async fn a_server_that_talks_nonsense_is_tried_again_later() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let _ = socket.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
            let _ = socket.read(&mut [0; 64]).await;
        }
    });
    let mut link = start(settings(&[&address]));
    let mut pauses = Vec::new();
    for _ in 0..3 {
        let pause = loop {
            match next(&mut link).await {
                Event::Ended { ordinary, pause, .. } => {
                    assert!(!ordinary);
                    break pause;
                }
                Event::Connecting(_) | Event::Connected(_) => {}
                other => panic!("{other:?}"),
            }
        };
        pauses.push(pause);
    }
    assert!(pauses[0] >= FIRST_PAUSE && pauses[2] > pauses[0], "{pauses:?}");
}

#[tokio::test]
async fn a_refusal_says_why_and_waits() {
    let mut server = ControlPlane::start().await;
    let mut link = start(settings(&[&server.address]));
    connected(&mut link).await;
    server.delta().await.fail(Status::unauthenticated("no token")).await;
    let (error, ordinary, pause) = ended(&mut link).await;
    assert!(error.contains("Unauthenticated: no token") && !ordinary && pause >= FIRST_PAUSE, "{error}");
}

#[tokio::test]
async fn a_server_that_never_answers_is_told_of_and_another_one_is_tried() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let mut link = start(settings(&[&address]));
    let requests = connected(&mut link).await;
    assert!(matches!(next(&mut link).await, Event::Silent(_)));
    drop((link, requests));

    let mut server = ControlPlane::start().await;
    let mut link = start(settings(&[&address, &server.address]));
    let requests = connected(&mut link).await;
    let (error, _, pause) = ended(&mut link).await;
    assert!(error.contains("no response within") && pause.is_zero(), "{error}");
    drop(requests);
    assert!(matches!(next(&mut link).await, Event::Connecting(1)));
    connected(&mut link).await;
    server.delta().await.say(response("1")).await;
    assert_eq!(nonce(&mut link).await, "1");
}

#[tokio::test]
async fn every_server_gets_its_turn_before_there_is_a_pause() {
    let closed = async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap().to_string()
    };
    let (a, b) = (closed.await, "unix:/nonexistent/xds.sock");
    let mut link = start(settings(&[&a, b]));
    let (error, _, pause) = ended(&mut link).await;
    assert!(error.contains("cannot connect") && pause.is_zero(), "{error}");
    assert!(matches!(next(&mut link).await, Event::Connecting(1)));
    let (_, _, pause) = ended(&mut link).await;
    assert!(pause >= FIRST_PAUSE);
    assert!(matches!(next(&mut link).await, Event::Connecting(0)));
}

#[tokio::test]
async fn a_token_is_read_for_every_stream_and_not_sent_in_plaintext() {
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("token");
    std::fs::write(&token, "one\n").unwrap();
    let with_token = |server: &str| Settings {
        token_file: Some(token.clone()),
        cluster_id: Some("east".into()),
        ..settings(&[server])
    };
    let mut server = ControlPlane::on_unix(&dir.path().join("xds.sock"));
    let mut link = start(with_token(&server.address));
    for expected in ["one", "two"] {
        connected(&mut link).await;
        let stream = server.delta().await;
        assert_eq!(stream.headers.get("authorization").unwrap(), &format!("Bearer {expected}"));
        assert_eq!(stream.headers.get("clusterid").unwrap(), "east");
        std::fs::write(&token, "two").unwrap();
        stream.say(response("1")).await;
        nonce(&mut link).await;
        drop(stream);
        ended(&mut link).await;
    }
    let mut plain = ControlPlane::start().await;
    let mut link = start(with_token(&plain.address));
    connected(&mut link).await;
    assert!(plain.delta().await.headers.get("authorization").is_none());
    // Without the file there is no stream, and the file is named.
    std::fs::remove_file(&token).unwrap();
    let mut link = start(with_token(&server.address));
    let (error, ..) = ended(&mut link).await;
    assert!(error.contains("token: No such file"), "{error}");
}

#[tokio::test]
async fn a_name_of_the_hosts_file_is_resolved() {
    let mut server = ControlPlane::start().await;
    let port = server.address.rsplit_once(':').unwrap().1.to_owned();
    let mut link = start(settings(&[&format!("localhost:{port}")]));
    connected(&mut link).await;
    server.delta().await.say(response("1")).await;
    assert_eq!(nonce(&mut link).await, "1");
}

#[tokio::test]
async fn tls_is_spoken_with_the_right_roots_and_the_right_name_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (pki, other) = (Pki::new("istiod.example"), Pki::new("istiod.example"));
    let (roots, other_roots, token) = (dir.path().join("roots"), dir.path().join("others"), dir.path().join("token"));
    std::fs::write(&roots, &pki.root).unwrap();
    std::fs::write(&other_roots, &other.root).unwrap();
    std::fs::write(&token, "secret").unwrap();
    let mut server = ControlPlane::start().await;
    let address = pki.terminate(server.address.clone()).await.to_string();
    let with = |roots: &std::path::Path, name: Option<&str>| {
        let tls = Tls { roots: roots.to_owned(), server_name: name.map(str::to_owned), client: None };
        let target = address.parse().unwrap();
        let servers = vec![Server { target, tls: Some(tls) }];
        Settings { servers, token_file: Some(token.clone()), ..settings(&[]) }
    };
    let mut link = start(with(&roots, Some("istiod.example")));
    connected(&mut link).await;
    let stream = server.delta().await;
    assert_eq!(stream.headers.get("authorization").unwrap(), "Bearer secret");
    stream.say(response("1")).await;
    assert_eq!(nonce(&mut link).await, "1");
    // The address is no name of the certificate, and the other root did not sign it.
    for (roots, name, expected) in
        [(&roots, None, "not valid for name"), (&other_roots, Some("istiod.example"), "invalid peer certificate")]
    {
        let (error, ..) = ended(&mut start(with(roots, name))).await;
        assert!(error.contains("TLS: handshake") && error.contains(expected), "{error}");
    }
}
