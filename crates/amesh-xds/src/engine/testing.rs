//! A zone and a log that remember, and what else the tests of the engine share.

use super::*;
use crate::ads::{short_name, Resource};
use crate::source;
use crate::store::Value;
use crate::transport::testing::{soon, ControlPlane, Delta};
use amesh_model::Kind;
use crossbeam_channel::{unbounded, Receiver, Sender};
use envoy_types::pb::envoy::service::discovery::v3::{self as xds, DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

#[derive(Default)]
pub(super) struct Seen {
    /// `put Cluster a@v1`, `remove Cluster a`.
    pub(super) lines: Vec<String>,
    pub(super) batches: Vec<Batch>,
    pub(super) status: String,
    pub(super) full: Option<(u64, u64)>,
    pub(super) unread: bool,
    pub(super) dropped: bool,
}

/// A zone that remembers.
#[derive(Clone, Default)]
pub(super) struct Zone(pub(super) Arc<Mutex<Seen>>);

impl Zone {
    pub(super) fn lines(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap().lines)
    }

    pub(super) fn full(&self, figures: Option<(u64, u64)>) {
        self.0.lock().unwrap().full = figures;
    }

    /// Waits for a line.
    pub(super) async fn sees(&self, line: &str) {
        let seen = async {
            while !self.0.lock().unwrap().lines.iter().any(|l| l == line) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if tokio::time::timeout(Duration::from_secs(10), seen).await.is_err() {
            // Not within the panic: the lock would be poisoned for whoever drops the zone.
            let lines = self.0.lock().unwrap().lines.clone();
            panic!("no \"{line}\" in {lines:#?}");
        }
    }

    pub(super) fn endpoints(&self, cluster: &str) -> Vec<String> {
        let seen = self.0.lock().unwrap();
        let items = seen.batches.iter().flat_map(|b| &b.put).filter(|i| i.name == cluster);
        let mut sets = items.filter_map(|i| if let Value::EndpointSet(set) = &i.value { Some(set) } else { None });
        let last = sets.next_back().expect("endpoints");
        last.localities.iter().flat_map(|l| &l.endpoints).map(|e| e.address.to_string()).collect()
    }
}

pub(super) struct Handle(pub(super) Zone);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0 .0.lock().unwrap().dropped = true;
    }
}

impl Vitals for Handle {}

impl Publisher for Handle {
    fn publish(&mut self, batch: &Batch) -> Result<(), PublishError> {
        let mut seen = self.0 .0.lock().unwrap();
        if let Some((needed, available)) = seen.full {
            return Err(PublishError::Full { needed, available });
        }
        for i in batch.put.iter().filter(|i| i.kind != Kind::ListenerIndex) {
            seen.lines.push(format!("put {:?} {}@{}", i.kind, i.name, i.version));
        }
        for (kind, name) in &batch.remove {
            seen.lines.push(format!("remove {kind:?} {name}"));
        }
        seen.batches.push(batch.clone());
        Ok(())
    }

    fn status(&mut self, json: &str) {
        json.clone_into(&mut self.0 .0.lock().unwrap().status);
    }

    fn is_read(&mut self) -> bool {
        !self.0 .0.lock().unwrap().unread
    }
}

/// An observer that remembers, and knows nothing when it is new or when it is told to forget.
#[derive(Clone, Default)]
pub(super) struct Follower(pub(super) Arc<Mutex<Followed>>);

#[derive(Default)]
pub(super) struct Followed {
    pub(super) knows: bool,
    /// `attend`, `fresh`, `everything 2 complete`, `put a`, `remove a`.
    pub(super) lines: Vec<String>,
}

impl Follower {
    pub(super) fn lines(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap().lines)
    }
}

impl Observer for Follower {
    fn attend(&mut self, fresh: bool) -> bool {
        let mut seen = self.0.lock().unwrap();
        seen.lines.push(if fresh { "fresh" } else { "attend" }.to_owned());
        !seen.knows
    }

    fn everything(&mut self, batch: Option<&Batch>, complete: bool) {
        let mut seen = self.0.lock().unwrap();
        seen.knows = true;
        let clusters = batch.map_or(0, |b| b.put.iter().filter(|i| i.kind == Kind::Cluster).count());
        seen.lines.push(format!("everything {clusters}{}", if complete { " complete" } else { "" }));
    }

    fn publish(&mut self, batch: &Batch) {
        let mut seen = self.0.lock().unwrap();
        let put = batch.put.iter().filter(|i| i.kind == Kind::Cluster).map(|i| format!("put {}", i.name));
        let gone = batch.remove.iter().filter(|(k, _)| *k == Kind::Cluster).map(|(_, n)| format!("remove {n}"));
        seen.lines.extend(put.chain(gone));
    }
}

#[derive(Clone, Default)]
pub(super) struct Lines(Arc<Mutex<Vec<String>>>);

impl Log for Lines {
    fn log(&self, level: Level, text: &str) {
        self.0.lock().unwrap().push(format!("{level:?}: {text}"));
    }
}

impl Lines {
    pub(super) fn with(&self, part: &str) -> usize {
        self.0.lock().unwrap().iter().filter(|l| l.contains(part)).count()
    }
}

/// An engine, its zone and its log.
pub(super) struct Bench {
    pub(super) engine: Engine<Handle, Lines>,
    pub(super) zone: Zone,
    pub(super) log: Lines,
}

pub(super) fn bench(config: Config) -> Bench {
    let (zone, log) = (Zone::default(), Lines::default());
    Bench { engine: Engine::new(config, Handle(zone.clone()), log.clone()), zone, log }
}

pub(super) struct Remote {
    pub(super) commands: Sender<Command<Handle>>,
    pub(super) wake: UnixStream,
}

impl Remote {
    pub(super) fn send(&mut self, command: Command<Handle>) {
        self.commands.send(command).unwrap();
        self.wake.write_all(&[1]).unwrap();
    }
}

pub(super) fn remote() -> (Remote, Receiver<Command<Handle>>, UnixStream) {
    let (commands, receiver) = unbounded();
    let (wake, woken) = UnixStream::pair().unwrap();
    woken.set_nonblocking(true).unwrap();
    (Remote { commands, wake }, receiver, woken)
}

/// Runs the engine beside a test, and ends it after.
pub(super) async fn run<T>(bench: &mut Bench, test: impl AsyncFnOnce(&Zone, &Lines, &mut Remote) -> T) -> T {
    let (mut remote, commands, woken) = remote();
    let (zone, log) = (bench.zone.clone(), bench.log.clone());
    let driver = async {
        let out = test(&zone, &log, &mut remote).await;
        remote.send(Command::Stop);
        out
    };
    // Longer than what the test waits for, which knows better what is missing.
    let limit = Duration::from_secs(60);
    let (ran, out) = tokio::join!(tokio::time::timeout(limit, bench.engine.run(&commands, woken.as_fd())), driver);
    ran.expect("the engine ends").unwrap();
    out
}

pub(super) fn cluster(name: &str, port: u16) -> String {
    format!(
        "\"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster
name: {name}
type: STATIC
load_assignment:
  cluster_name: {name}
  endpoints:
  - lb_endpoints:
    - endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}
"
    )
}

pub(super) fn eds_cluster(name: &str) -> String {
    format!(
        "\"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster
name: {name}
type: EDS
eds_cluster_config: {{eds_config: {{ads: {{}}, initial_fetch_timeout: 0s}}}}
"
    )
}

pub(super) fn assignment(name: &str, port: u16) -> String {
    format!(
        "\"@type\": type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment
cluster_name: {name}
endpoints:
- lb_endpoints:
  - endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}
"
    )
}

/// What is not accepted by any translation.
pub(super) fn bad_cluster(name: &str) -> String {
    format!(
        "\"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster\nname: {name}\nlb_policy: CLUSTER_PROVIDED\n"
    )
}

pub(super) fn files(path: &Path) -> Config {
    Config { sources: vec![Source::File(path.to_owned())], ..Config::default() }
}

pub(super) fn server(address: &str) -> Config {
    let server = Server { target: address.parse().unwrap(), tls: None };
    Config { sources: vec![Source::Grpc(server)], ..Config::default() }
}

pub(super) fn resources(yaml: &str, version: &str) -> Vec<xds::Resource> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.yaml"), yaml).unwrap();
    let loaded = source::read_all(dir.path());
    assert_eq!(loaded.errors, []);
    let one = |r: Resource| xds::Resource {
        name: r.name,
        version: version.into(),
        resource: Some(r.body),
        ..Default::default()
    };
    loaded.resources.into_iter().map(one).collect()
}

pub(super) fn response(yaml: &str, version: &str, nonce: &str) -> DeltaDiscoveryResponse {
    let resources = resources(yaml, version);
    let type_url = resources[0].resource.as_ref().unwrap().type_url.clone();
    DeltaDiscoveryResponse { type_url, resources, nonce: nonce.into(), ..Default::default() }
}

/// The next request, and what it says in short.
pub(super) async fn asks(stream: &mut Delta) -> (String, DeltaDiscoveryRequest) {
    let r = stream.request().await;
    let names = r.resource_names_subscribe.join(",");
    (format!("{} {}{names}", short_name(&r.type_url), r.response_nonce), r)
}

/// A stream whose wildcards were asked for.
pub(super) async fn open(plane: &mut ControlPlane) -> Delta {
    let mut stream = plane.delta().await;
    assert_eq!(asks(&mut stream).await.0, "cds ");
    assert_eq!(asks(&mut stream).await.0, "lds ");
    stream
}

pub(super) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon(what, wait).await;
}
