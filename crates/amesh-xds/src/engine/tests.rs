//! The engine as a whole: files, snapshot, a control plane in this process, zones that are full.

use super::testing::*;
use super::*;
use crate::transport::testing::{soon, ControlPlane};
use crossbeam_channel::unbounded;
use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryResponse;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicI32, Ordering::Relaxed};
use std::sync::Arc;
use std::time::Duration;

#[test]
fn files_are_published_before_there_is_a_runtime_and_mistakes_are_told_with_their_file() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.yaml"), cluster("a", 80)).unwrap();
    std::fs::write(dir.path().join("bad.yaml"), "name: [").unwrap();
    std::fs::write(dir.path().join("wrong.yaml"), bad_cluster("w")).unwrap();
    let mut b = bench(files(dir.path()));
    assert!(b.engine.load().unwrap().to_string().starts_with("2 resources from "));
    assert!(b.engine.is_ready());
    let lines = b.zone.lines();
    assert!(lines[0].starts_with("put EndpointSet a@") && lines[1].starts_with("put Cluster a@"), "{lines:?}");
    assert_eq!(lines.len(), 2);
    assert_eq!((b.log.with("bad.yaml"), b.log.with("wrong.yaml: w: lb_policy")), (1, 1));
    let status: serde_json::Value = serde_json::from_str(&b.zone.0.lock().unwrap().status).unwrap();
    assert_eq!(status["rejected"][0]["name"], "w");
    assert_eq!(status["sources"][0]["files"], 3);
    assert!(status["sources"][0]["file_errors"][0].as_str().unwrap().contains("bad.yaml"));
}

#[test]
fn a_configuration_without_a_source_or_with_a_mixture_is_refused() {
    let e = bench(Config::default()).engine.load().unwrap_err();
    assert!(e.to_string().contains("name a server or a file"));
    let mut config = server("127.0.0.1:1");
    config.sources.push(Source::File("/x".into()));
    assert!(bench(config).engine.load().unwrap_err().to_string().contains("stands alone"));
}

#[tokio::test]
async fn an_edit_is_published_while_it_runs() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.yaml");
    std::fs::write(&path, cluster("a", 80)).unwrap();
    let mut b = bench(files(dir.path()));
    b.engine.load().unwrap();
    run(&mut b, async |zone, log, _| {
        zone.lines();
        std::fs::write(&path, cluster("b", 80)).unwrap();
        eventually("b instead of a", || zone.0.lock().unwrap().lines.iter().any(|l| l == "remove Cluster a")).await;
        let lines = zone.lines();
        assert!(lines.iter().any(|l| l.starts_with("put Cluster b@")), "{lines:?}");
        std::fs::write(&path, "oops: [").unwrap();
        eventually("a complaint", || log.with("a.yaml") == 1).await;
        assert_eq!(zone.lines(), [""; 0]);
    })
    .await;
}

#[tokio::test]
async fn endpoints_in_a_file_serve_a_cluster_that_goes_and_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cds.yaml");
    std::fs::write(dir.path().join("eds.yaml"), assignment("a", 81)).unwrap();
    let mut b = bench(files(dir.path()));
    b.engine.load().unwrap();
    run(&mut b, async |zone, _, _| {
        for _ in 0..2 {
            std::fs::write(&path, eds_cluster("a")).unwrap();
            eventually("a", || zone.0.lock().unwrap().lines.iter().any(|l| l.starts_with("put Cluster a@"))).await;
            assert_eq!(zone.endpoints("a"), ["127.0.0.1:81"]);
            std::fs::remove_file(&path).unwrap();
            zone.sees("remove Cluster a").await;
            zone.lines();
        }
    })
    .await;
}

#[tokio::test]
async fn names_are_resolved_and_what_has_no_address_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let dns = |name: &str, host: &str| {
        cluster(name, 80).replace("STATIC", "STRICT_DNS").replace("address: 127.0.0.1", &format!("address: {host}"))
    };
    let text = format!("{}---\n{}", dns("good", "localhost"), dns("bad", "no-such-host.invalid"));
    std::fs::write(dir.path().join("a.yaml"), text.replace("STRICT_DNS", "STRICT_DNS\ndns_lookup_family: V4_ONLY"))
        .unwrap();
    let mut b = bench(files(dir.path()));
    b.engine.load().unwrap();
    assert_eq!(b.zone.lines(), [""; 0], "they wait for their addresses");
    run(&mut b, async |zone, log, _| {
        eventually("good", || zone.0.lock().unwrap().lines.iter().any(|l| l.starts_with("put Cluster good@"))).await;
        assert_eq!(zone.endpoints("good"), ["127.0.0.1:80"]);
        let said = || zone.0.lock().unwrap().status.contains("\"unresolved\":{\"no-such-host.invalid\"");
        eventually("bad", || log.with("no-such-host.invalid") == 1).await;
        eventually("a status", said).await;
    })
    .await;
}

#[tokio::test]
async fn a_control_plane_is_followed_and_warming_holds() {
    let mut plane = ControlPlane::start().await;
    let mut b = bench(server(&plane.address));
    assert_eq!(b.engine.load().unwrap(), Loaded::Nothing);
    assert!(!b.engine.is_ready());
    run(&mut b, async |zone, _, _| {
        let mut stream = open(&mut plane).await;
        stream.say(response(&format!("{}---\n{}", eds_cluster("a"), cluster("s", 80)), "v1", "1")).await;
        assert_eq!(asks(&mut stream).await.0, "cds 1");
        assert_eq!(asks(&mut stream).await.0, "eds a");
        // The cluster without endpoints is not published.
        assert_eq!(zone.lines(), ["put EndpointSet s@v1", "put Cluster s@v1"]);
        stream.say(response(&assignment("a", 81), "v1", "2")).await;
        assert_eq!(asks(&mut stream).await.0, "eds 2");
        assert_eq!(zone.lines(), ["put EndpointSet a@v1", "put Cluster a@v1"]);
    })
    .await;
    assert!(b.engine.is_ready());
}

#[tokio::test]
async fn a_rejected_resource_is_nacked_told_once_and_healed() {
    let mut plane = ControlPlane::start().await;
    let mut b = bench(server(&plane.address));
    run(&mut b, async |zone, log, remote| {
        let mut stream = open(&mut plane).await;
        stream.say(response(&format!("{}---\n{}", bad_cluster("bad"), cluster("s", 80)), "v1", "1")).await;
        let (_, nack) = asks(&mut stream).await;
        assert!(nack.error_detail.unwrap().message.starts_with("bad: lb_policy: "));
        assert_eq!(zone.lines(), ["put EndpointSet s@v1", "put Cluster s@v1"]);
        stream.say(response(&bad_cluster("bad"), "v2", "2")).await;
        assert!(asks(&mut stream).await.1.error_detail.is_some());
        assert_eq!(log.with("cds rejected, last good stays: bad: lb_policy"), 1);
        let (reply, answer) = unbounded();
        remote.send(Command::Status(reply));
        eventually("the status", || !answer.is_empty()).await;
        let status: serde_json::Value = serde_json::from_str(&answer.recv().unwrap()).unwrap();
        assert_eq!(status["sources"][0]["state"], "connected");
        assert_eq!(status["sources"][0]["types"]["cds"]["nacks"], 2);
        assert_eq!(status["rejected"][0]["name"], "bad");
        stream.say(response(&cluster("bad", 90), "v3", "3")).await;
        assert!(asks(&mut stream).await.1.error_detail.is_none());
        assert_eq!(log.with("bad: accepted again"), 1);
    })
    .await;
}

#[tokio::test]
async fn a_full_zone_is_nacked_told_once_and_filled_when_there_is_room() {
    let mut plane = ControlPlane::start().await;
    let mut b = bench(server(&plane.address));
    run(&mut b, async |zone, log, _| {
        let mut stream = open(&mut plane).await;
        stream.say(response(&cluster("a", 80), "v1", "1")).await;
        assert!(asks(&mut stream).await.1.error_detail.is_none());
        zone.lines();
        zone.full(Some((500, 20)));
        for (n, version) in [("2", "v2"), ("3", "v3")] {
            stream.say(response(&cluster("a", n.parse().unwrap()), version, n)).await;
            let nack = asks(&mut stream).await.1.error_detail.unwrap().message;
            assert_eq!(nack, "a: zone is full: needs 500 bytes, has 20; make the zone larger");
        }
        assert_eq!((log.with("zone is full"), zone.lines().len()), (1, 0));
        eventually("a status", || zone.0.lock().unwrap().status.contains("\"publish_error\":\"zone is full")).await;
        zone.full(None);
        // Room comes back by itself when readers move on; nobody has to send anything.
        zone.sees("put Cluster a@v3").await;
        assert_eq!(zone.lines(), ["put EndpointSet a@v3", "put Cluster a@v3"]);
        assert_eq!(log.with("what did not fit is published now"), 1);
    })
    .await;
}

#[tokio::test]
async fn a_new_zone_gets_all_and_the_old_one_goes_when_nobody_reads_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.yaml");
    std::fs::write(&path, cluster("a", 80)).unwrap();
    let mut b = bench(files(dir.path()));
    b.engine.load().unwrap();
    run(&mut b, async |old, _, remote| {
        let new = Zone::default();
        let (reply, answer) = unbounded();
        remote.send(Command::Publish { publisher: Handle(new.clone()), reply });
        eventually("the reply", || !answer.is_empty()).await;
        assert_eq!(answer.recv().unwrap(), Ok(()));
        assert_eq!(new.lines(), old.lines());
        let small = Zone::default();
        small.full(Some((9, 1)));
        let (reply, answer) = unbounded();
        remote.send(Command::Publish { publisher: Handle(small.clone()), reply });
        eventually("the reply", || !answer.is_empty()).await;
        assert_eq!(answer.recv().unwrap(), Err(PublishError::Full { needed: 9, available: 1 }));
        small.full(None);
        std::fs::write(&path, cluster("b", 80)).unwrap();
        for zone in [old, &new, &small] {
            zone.sees("remove Cluster a").await;
        }
        old.0.lock().unwrap().unread = true;
        eventually("the old zone's end", || old.0.lock().unwrap().dropped).await;
        assert!(!new.0.lock().unwrap().dropped);
    })
    .await;
}

#[tokio::test]
async fn an_observer_is_told_all_that_is_known_and_then_every_change() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.yaml"), cluster("a", 80)).unwrap();
    let mut b = bench(files(dir.path()));
    let follower = Follower::default();
    b.engine.observe(Box::new(follower.clone()));
    b.engine.load().unwrap();
    // What is loaded before it runs is told when it does.
    follower.lines();
    for run_again in [false, true] {
        run(&mut b, async |zone, _, remote| {
            let all = if run_again { ["fresh", "everything 2 complete"] } else { ["fresh", "everything 1 complete"] };
            assert_eq!(follower.lines(), all);
            // A zone without room holds nothing up.
            zone.full(Some((9, 1)));
            std::fs::write(dir.path().join("b.yaml"), cluster("b", if run_again { 81 } else { 80 })).unwrap();
            eventually("the change", || !follower.0.lock().unwrap().lines.is_empty()).await;
            assert_eq!(follower.lines(), ["put b"]);
            zone.full(None);
            remote.send(Command::Attend);
            eventually("attention", || !follower.0.lock().unwrap().lines.is_empty()).await;
            assert_eq!(follower.lines(), ["attend"]);
            follower.0.lock().unwrap().knows = false;
            remote.send(Command::Attend);
            eventually("all", || follower.0.lock().unwrap().lines.len() == 2).await;
            assert_eq!(follower.lines(), ["attend", "everything 2 complete"]);
            follower.0.lock().unwrap().knows = false;
        })
        .await;
    }
}

#[tokio::test]
async fn last_good_is_on_disk_and_serves_without_a_control_plane() {
    let dir = tempfile::tempdir().unwrap();
    let snapshot = dir.path().join("last-good");
    let mut plane = ControlPlane::start().await;
    let config = Config { snapshot: Some(snapshot.clone()), layout: 5, ..server(&plane.address) };
    let mut b = bench(config.clone());
    run(&mut b, async |_, _, _| {
        let mut stream = open(&mut plane).await;
        stream.say(response(&eds_cluster("a"), "v1", "1")).await;
        stream.say(response(&assignment("a", 81), "v7", "2")).await;
        while asks(&mut stream).await.0 != "eds 2" {}
        eventually("a snapshot", || snapshot.exists()).await;
    })
    .await;

    let mut later = bench(config.clone());
    let loaded = later.engine.load().unwrap();
    assert!(loaded.to_string().starts_with("2 resources from snapshot "), "{loaded}");
    assert_eq!(later.zone.lines(), ["put EndpointSet a@v7", "put Cluster a@v1"]);
    assert_eq!(later.zone.endpoints("a"), ["127.0.0.1:81"]);
    // The control plane hears what we have, and takes away what is gone.
    run(&mut later, async |zone, _, _| {
        let mut stream = plane.delta().await;
        let (asked, request) = asks(&mut stream).await;
        assert_eq!((asked.as_str(), request.initial_resource_versions["a"].as_str()), ("cds ", "v1"));
        let (asked, request) = asks(&mut stream).await;
        assert_eq!((asked.as_str(), request.initial_resource_versions["a"].as_str()), ("eds a", "v7"));
        stream
            .say(DeltaDiscoveryResponse {
                removed_resources: vec!["a".into()],
                ..response(&cluster("n", 1), "v2", "1")
            })
            .await;
        zone.sees("remove Cluster a").await;
    })
    .await;

    // Another layout, or a damaged file: said with the way out, and not used.
    let mut other = bench(Config { layout: 6, ..config.clone() });
    assert!(other.engine.load().unwrap_err().to_string().contains("another version"));
    std::fs::write(&snapshot, b"AMESHXDS and nonsense").unwrap();
    let mut damaged = bench(config);
    let e = damaged.engine.load().unwrap_err().to_string();
    assert!(e.contains("last-good") && e.contains("remove it"), "{e}");
    assert!(!damaged.engine.is_ready());
}

#[tokio::test]
async fn another_configuration_takes_over_and_last_good_serves_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    for (path, name) in [(&one, "a"), (&two, "b")] {
        std::fs::create_dir(path).unwrap();
        std::fs::write(path.join("x.yaml"), cluster(name, 80)).unwrap();
    }
    let mut plane = ControlPlane::start().await;
    let mut b = bench(files(&one));
    b.engine.load().unwrap();
    run(&mut b, async |zone, log, remote| {
        zone.lines();
        remote.send(Command::Configure(files(&two)));
        zone.sees("remove Cluster a").await;
        zone.lines();
        // Another place that is not there takes nothing away, until it is.
        let three = dir.path().join("three");
        remote.send(Command::Configure(files(&three)));
        eventually("a complaint", || log.with("three: No such file") == 1).await;
        assert_eq!(zone.lines(), [""; 0]);
        std::fs::create_dir(&three).unwrap();
        zone.sees("remove Cluster b").await;
        remote.send(Command::Configure(files(&two)));
        zone.sees("remove EndpointSet b").await;
        eventually("b again", || zone.0.lock().unwrap().lines.iter().any(|l| l.starts_with("put Cluster b@"))).await;
        zone.lines();
        // A control plane: what the files said serves until it has spoken.
        remote.send(Command::Configure(server(&plane.address)));
        let mut stream = plane.delta().await;
        let (_, request) = asks(&mut stream).await;
        assert!(request.initial_resource_versions.contains_key("b"));
        assert_eq!(zone.lines(), [""; 0]);
        stream.say(response(&cluster("c", 80), "v1", "1")).await;
        zone.sees("put Cluster c@v1").await;
        remote.send(Command::Configure(Config::default()));
        eventually("a complaint", || log.with("the former configuration stays") == 1).await;
        remote.send(Command::Configure(files(&one)));
        zone.sees("remove Cluster c").await;
    })
    .await;
}

#[tokio::test]
async fn an_outage_is_told_once_and_so_is_its_end() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let mut b = bench(server(&address.to_string()));
    run(&mut b, async |_, log, _| {
        // Several attempts, one line.
        tokio::time::sleep(Duration::from_millis(1500)).await;
        assert_eq!(log.with("cannot connect"), 1);
        let mut plane = ControlPlane::on(tokio::net::TcpListener::bind(address).await.unwrap());
        let stream = open(&mut plane).await;
        stream.say(response(&cluster("a", 80), "v1", "1")).await;
        eventually("the end of the outage", || log.with("responses again after") == 1).await;
    })
    .await;
}

#[tokio::test]
async fn the_engine_ends_when_nobody_can_command_it_any_more() {
    let mut b = bench(server("127.0.0.1:1"));
    let (remote, commands, woken) = remote();
    drop(remote);
    soon("the end", b.engine.run(&commands, woken.as_fd())).await.unwrap();
}

#[test]
fn the_gate_opens_while_the_thread_waits_and_between_pieces_of_work() {
    let parks = Arc::new(AtomicI32::new(0));
    let (down, up) = (parks.clone(), parks.clone());
    let runtime = runtime(
        move || {
            down.fetch_add(1, Relaxed);
        },
        move || {
            up.fetch_add(1 << 16, Relaxed);
        },
    )
    .unwrap();
    runtime.block_on(async { tokio::time::sleep(Duration::from_millis(20)).await });
    let n = parks.load(Relaxed);
    assert!(n & 0xffff > 0 && n >> 16 == n & 0xffff, "{n:x}");

    let dir = tempfile::tempdir().unwrap();
    let many: String = (0..200).map(|i| format!("---\n{}", cluster(&format!("c{i}"), 80))).collect();
    std::fs::write(dir.path().join("a.yaml"), many).unwrap();
    let mut b = bench(files(dir.path()));
    let opened = Arc::new(AtomicI32::new(0));
    let count = opened.clone();
    b.engine.on_pause(move || {
        count.fetch_add(1, Relaxed);
    });
    b.engine.load().unwrap();
    assert!(opened.load(Relaxed) >= 5);
    assert_eq!(b.zone.0.lock().unwrap().batches.len(), 1, "published at once all the same");
}
