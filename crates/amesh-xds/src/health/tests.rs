//! Checks of real sockets on loopback, and what they and the intervals of outlier detection do to a zone's words.

use super::machine::check_for_tests;
use super::*;
use crate::store::Item;
use crate::translate::{self, Notes, Sockets};
use amesh_model::endpoint::Locality;
use amesh_model::health::{EndpointHealthCheck, HealthCheckKind, HttpHealthCheck};
use amesh_model::vitals::{RuntimeHealth, Words};
use envoy_types::pb::envoy::config::{cluster::v3 as pb, endpoint::v3 as eds};
use prost::Message;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// A zone that is a map; endpoints are there once they are named.
#[derive(Default)]
struct Zone {
    cluster: Words,
    endpoints: BTreeMap<String, Words>,
    traffic: bool,
    clock: Cell<u32>,
}

impl Vitals for Zone {
    fn cluster(&self, _: &str) -> Option<ClusterVitals<'_>> {
        Some(ClusterVitals(&self.cluster))
    }
    fn endpoint(&self, _: &str, endpoint: &Address) -> Option<EndpointVitals<'_>> {
        self.endpoints.get(&endpoint.to_string()).map(EndpointVitals)
    }
    fn had_traffic(&self, _: &str) -> bool {
        self.traffic
    }
    fn clock(&self) -> u32 {
        self.clock.get()
    }
}

impl Zone {
    fn of(addresses: &[Address]) -> Zone {
        let endpoints = addresses.iter().map(|a| (a.to_string(), Words::default())).collect();
        Zone { endpoints, traffic: true, ..Zone::default() }
    }

    fn health(&self, endpoint: &Address) -> RuntimeHealth {
        self.endpoint("c", endpoint).unwrap().health()
    }
}

#[derive(Default)]
struct Lines(RefCell<Vec<String>>);

impl Log for Lines {
    fn log(&self, level: Level, text: &str) {
        self.0.borrow_mut().push(format!("{level:?}: {text}"));
    }
}

fn cluster(check: Option<HealthCheck>) -> Cluster {
    let plain = pb::Cluster { name: "c".into(), ..pb::Cluster::default() };
    let plain = translate::cluster(&plain, &mut Notes::new()).unwrap().cluster;
    Cluster { health_check: check.map(Box::new), ..plain }
}

fn endpoint(address: &Address) -> Endpoint {
    let to = address.socket_addr().unwrap();
    let yaml = format!(
        r#"{{"@type": {}, cluster_name: c, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address:
        {{address: "{}", port_value: {}}}}}}}}}]}}]}}"#,
        translate::CLUSTER_LOAD_ASSIGNMENT,
        to.ip(),
        to.port()
    );
    let any = crate::descriptor::from_yaml("", &yaml).unwrap().remove(0).any;
    let message = eds::ClusterLoadAssignment::decode(any.value.as_slice()).unwrap();
    let set = translate::endpoint_set("c", &Sockets::default(), &message, &mut Notes::new()).unwrap();
    set.localities[0].endpoints[0].clone()
}

fn set(endpoints: Vec<Endpoint>) -> EndpointSet {
    let place = String::new;
    let locality = Locality { region: place(), zone: place(), sub_zone: place(), priority: 0, weight: 0, endpoints };
    EndpointSet { cluster: "c".into(), localities: vec![locality], ..EndpointSet::default() }
}

fn batch(values: Vec<Value>) -> Batch {
    let item = |value: Value| Item { kind: value.kind(), name: "c".into(), version: String::new(), value };
    Batch { put: values.into_iter().map(item).collect(), remove: Vec::new() }
}

fn address(port: u16) -> Address {
    std::net::SocketAddr::from(([127, 0, 0, 1], port)).into()
}

fn check(kind: HealthCheckKind) -> HealthCheck {
    let quick = HealthCheck { timeout: 300, interval: 20, unhealthy_interval: 20, ..check_for_tests() };
    HealthCheck { unhealthy_edge_interval: 20, healthy_edge_interval: 20, kind, ..quick }
}

fn http() -> HttpHealthCheck {
    HttpHealthCheck {
        host: String::new(),
        path: "/healthz".into(),
        method: "GET".into(),
        http2: false,
        send: Vec::new(),
        receive: Vec::new(),
        response_buffer_size: 1024,
        request_headers_to_add: vec![("x-a".into(), "b".into())],
        request_headers_to_remove: Vec::new(),
        expected_statuses: vec![(200, 201)],
        retriable_statuses: vec![(429, 430)],
        service_name_matcher: None,
    }
}

/// A server that answers each request with what `answer` makes of it, on connections that it keeps.
async fn server(answer: impl Fn(&str) -> String + Send + Sync + Clone + 'static) -> (Address, Arc<AtomicU32>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().into();
    let connections = Arc::new(AtomicU32::new(0));
    let count = connections.clone();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::Relaxed);
            let answer = answer.clone();
            tokio::spawn(async move {
                let mut request = Vec::new();
                while client.read_buf(&mut request).await.is_ok_and(|n| n > 0) {
                    let text = String::from_utf8_lossy(&request).into_owned();
                    if text.ends_with("\r\n\r\n") || !text.starts_with("GET") {
                        request.clear();
                        if client.write_all(answer(&text).as_bytes()).await.is_err() {
                            return;
                        }
                    }
                }
            });
        }
    });
    (address, connections)
}

fn response(status: u16, more: &str, body: &str) -> String {
    format!("HTTP/1.1 {status} x\r\n{more}content-length: {}\r\n\r\n{body}", body.len())
}

async fn probe(check: HealthCheck, address: &Address) -> Checked {
    let hostname = String::new();
    let probe = Probe {
        check: Arc::new(check),
        address: address.clone(),
        hostname,
        cluster: "a|b".into(),
        bind: vec![],
        proxy_protocol: None,
        mark: None,
    };
    probe.run(None).await.0
}

const WELL: Checked = Checked::Success { degraded: false };

fn why(checked: Checked) -> (bool, String) {
    match checked {
        Checked::Failure { at_once, why } => (at_once, why),
        Checked::Success { .. } => panic!("it succeeded"),
    }
}

#[tokio::test]
async fn an_http_check_asks_as_envoy_does_and_judges_the_status() {
    let (at, _) = server(|request| match request {
        r if !r.starts_with("GET /healthz HTTP/1.1\r\nhost: a|b\r\nuser-agent: Envoy/HC\r\n") => response(500, "", r),
        r if !r.contains("x-a: b\r\n") => response(501, "", r),
        _ => response(200, "", "all is well"),
    })
    .await;
    let kind = |h: HttpHealthCheck| check(HealthCheckKind::Http(h));
    assert_eq!(probe(kind(http()), &at).await, WELL);
    let pieces = |list: &[&str]| list.iter().map(|p| p.as_bytes().to_vec()).collect::<Vec<_>>();
    let receive = |list: &[&str]| kind(HttpHealthCheck { receive: pieces(list), ..http() });
    assert_eq!(probe(receive(&["all", "well"]), &at).await, WELL);
    assert!(why(probe(receive(&["well", "all"]), &at).await).0);
    let host = HttpHealthCheck { host: "other".into(), ..http() };
    assert_eq!(why(probe(kind(host), &at).await), (true, "status 500".into()));

    let status = |n: u16, more: &'static str| async move { server(move |_| response(n, more, "")).await.0 };
    assert_eq!(why(probe(kind(http()), &status(503, "").await).await), (true, "status 503".into()));
    assert_eq!(why(probe(kind(http()), &status(429, "").await).await), (false, "status 429".into()));
    let degraded = status(200, "x-envoy-degraded: 1\r\n").await;
    assert_eq!(probe(kind(http()), &degraded).await, Checked::Success { degraded: true });
}

#[tokio::test]
async fn a_check_that_gets_no_answer_fails_by_the_network() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = Address::from(listener.local_addr().unwrap());
    let (at_once, text) = why(probe(check(HealthCheckKind::Http(http())), &silent).await);
    assert!(!at_once && text == "no answer within 300 ms", "{text}");
    drop(listener);
    let (at_once, text) = why(probe(check(HealthCheckKind::Http(http())), &silent).await);
    assert!(!at_once && text.contains("refused"), "{text}");
}

#[tokio::test]
async fn a_tcp_check_connects_and_waits_for_bytes() {
    let (at, _) = server(|request| request.replace("PING", "-- PO NG --")).await;
    let tcp = |send: &str, receive: &[&str]| {
        let receive = receive.iter().map(|r| r.as_bytes().to_vec()).collect();
        check(HealthCheckKind::Tcp { send: send.into(), receive })
    };
    assert_eq!(probe(tcp("", &[]), &at).await, WELL);
    assert_eq!(probe(tcp("PING", &["PO", "NG"]), &at).await, WELL);
    assert!(why(probe(tcp("PING", &["NG", "PO"]), &at).await).1.contains("no answer"));
}

/// A gRPC server that answers every health check with this serving status and `grpc-status`.
async fn grpc_server(serving: u8, status: &'static str) -> Address {
    use http_body_util::{BodyExt, Full};
    use hyper_util::rt::{TokioExecutor, TokioIo};
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().into();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let answer = move |request: http::Request<hyper::body::Incoming>| async move {
                assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                assert_eq!(
                    (&request.headers()["te"], &request.headers()["x-a"]),
                    (&"trailers".parse().unwrap(), &"b".parse().unwrap())
                );
                let asked = request.into_body().collect().await.unwrap().to_bytes();
                // Field 1 of the request is the service, field 1 of the answer a number.
                let (serving, status) =
                    if asked[..] == *b"\0\0\0\0\x03\x0a\x01s" { (serving, status) } else { (0, "5") };
                let body = bytes::Bytes::from(vec![0, 0, 0, 0, 2, 8, serving]);
                let trailers = async move {
                    Some(Ok([("grpc-status".parse().unwrap(), status.parse().unwrap())].into_iter().collect()))
                };
                Ok::<_, std::convert::Infallible>(http::Response::new(Full::new(body).with_trailers(trailers)))
            };
            let service = hyper::service::service_fn(answer);
            tokio::spawn(async move {
                let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                let _ = server.serve_connection(TokioIo::new(client), service).await;
            });
        }
    });
    address
}

#[tokio::test]
async fn a_grpc_check_asks_the_service_for_its_health() {
    let grpc = |service: &str| {
        let metadata = vec![("x-a".to_owned(), "b".to_owned())];
        check(HealthCheckKind::Grpc { service_name: service.into(), authority: String::new(), metadata })
    };
    assert_eq!(probe(grpc("s"), &grpc_server(1, "0").await).await, WELL);
    assert_eq!(why(probe(grpc("s"), &grpc_server(2, "0").await).await), (true, "serving status 2".into()));
    assert_eq!(why(probe(grpc("s"), &grpc_server(1, "14").await).await), (true, "grpc-status 14".into()));
    assert_eq!(why(probe(grpc(""), &grpc_server(1, "0").await).await), (true, "grpc-status 5".into()));
    let (http1, _) = server(|_| response(200, "", "")).await;
    assert!(!why(probe(grpc("s"), &http1).await).0);
}

/// What becomes of an endpoint's words while its checks run.
struct Bench {
    health: Health,
    zone: Zone,
    log: Lines,
    schedule: Schedule,
}

impl Bench {
    fn new(zone: Zone) -> Bench {
        Bench { health: Health::default(), zone, log: Lines::default(), schedule: Schedule::default() }
    }

    fn publish(&mut self, values: Vec<Value>) {
        self.health.follow(&batch(values), &[&self.zone]);
        self.schedule.apply(self.health.take_changes());
    }

    /// The next result is taken in.
    async fn step(&mut self) -> Checked {
        let next = tokio::time::timeout(Duration::from_secs(5), self.schedule.next());
        let (id, result) = next.await.expect("a result");
        if let Some(after) = self.health.on_result(id, &result, &[&self.zone], &self.log) {
            self.schedule.again(id, after);
        }
        result
    }

    async fn until(&mut self, endpoint: &Address, health: RuntimeHealth) {
        for _ in 0..100 {
            if self.zone.health(endpoint) == health {
                return;
            }
            self.step().await;
        }
        panic!("{endpoint} is never {health:?}");
    }
}

/// Where results have no place.
struct Nowhere;

impl Vitals for Nowhere {
    fn are_kept(&self) -> bool {
        false
    }
}

#[test]
fn nothing_is_checked_where_nobody_would_learn_of_it() {
    let published = batch(vec![
        Value::EndpointSet(set(vec![endpoint(&address(1))])),
        Value::Cluster(cluster(Some(check(HealthCheckKind::Http(http()))))),
    ]);
    let mut health = Health::default();
    health.follow(&published, &[&Nowhere]);
    assert!(health.take_changes().is_empty());
    health.follow(&published, &[&Nowhere, &Zone::default()]);
    assert_eq!(health.take_changes().len(), 1);
}

#[tokio::test]
async fn an_endpoint_is_left_when_it_fails_and_taken_again_over_one_connection() {
    let status = Arc::new(AtomicU32::new(200));
    let now = status.clone();
    let (at, connections) = server(move |_| response(now.load(Ordering::Relaxed) as u16, "", "")).await;
    let mut bench = Bench::new(Zone::of(std::slice::from_ref(&at)));
    let published = vec![
        Value::EndpointSet(set(vec![endpoint(&at)])),
        Value::Cluster(cluster(Some(check(HealthCheckKind::Http(http()))))),
    ];
    bench.publish(published.clone());
    assert_eq!(bench.zone.health(&at), RuntimeHealth::Healthy, "until its first result");
    bench.step().await;
    assert_eq!(bench.zone.health(&at), RuntimeHealth::Healthy);
    status.store(503, Ordering::Relaxed);
    bench.until(&at, RuntimeHealth::Unhealthy).await;
    assert_eq!(ClusterVitals(&bench.zone.cluster).unhealthy(), 1);
    // The same once more changes nothing, and starts no second check.
    bench.publish(published);
    assert_eq!(bench.zone.health(&at), RuntimeHealth::Unhealthy);
    status.store(200, Ordering::Relaxed);
    assert_eq!(bench.step().await, WELL);
    assert_eq!(bench.zone.health(&at), RuntimeHealth::Unhealthy, "once is not enough");
    bench.until(&at, RuntimeHealth::Healthy).await;
    assert_eq!(ClusterVitals(&bench.zone.cluster).unhealthy(), 0);
    assert_eq!(connections.load(Ordering::Relaxed), 1);
    let log = bench.log.0.borrow();
    let wanted = ["failed its health check: status 503 (1 of 1 not healthy)", "passed its health check (0 of 1"];
    assert_eq!(log.len(), 2, "{log:?}");
    assert!(log.iter().zip(wanted).all(|(line, part)| line.contains(part)), "{log:?}");
}

#[tokio::test]
async fn a_new_endpoint_waits_for_its_first_result_and_one_that_goes_leaves_nothing() {
    let (at, _) = server(|_| response(200, "", "")).await;
    let (later, refused) = (address(1), address(2));
    let mut bench = Bench::new(Zone::of(&[at.clone(), later.clone(), refused.clone()]));
    let c = || Value::Cluster(cluster(Some(check(HealthCheckKind::Http(http())))));
    bench.publish(vec![Value::EndpointSet(set(vec![endpoint(&at)])), c()]);
    let elsewhere = EndpointHealthCheck { address: Some(at.clone()), ..EndpointHealthCheck::default() };
    let new = Endpoint { health_check: Some(Box::new(elsewhere)), ..endpoint(&later) };
    let never = Endpoint { refuse: Some("TLS".into()), ..endpoint(&refused) };
    bench.publish(vec![Value::EndpointSet(set(vec![endpoint(&at), new.clone(), new, never]))]);
    assert_eq!(bench.zone.health(&later), RuntimeHealth::Unhealthy);
    assert_eq!(bench.zone.health(&refused), RuntimeHealth::Healthy, "it is not checked");
    assert_eq!(ClusterVitals(&bench.zone.cluster).unhealthy(), 1);
    bench.until(&later, RuntimeHealth::Healthy).await;

    bench.publish(vec![Value::EndpointSet(set(vec![endpoint(&later)]))]);
    bench.until(&later, RuntimeHealth::Unhealthy).await;
    bench.publish(vec![Value::EndpointSet(set(vec![endpoint(&at)]))]);
    assert_eq!(bench.zone.health(&later), RuntimeHealth::Healthy, "nobody looks after it");
    assert_eq!(ClusterVitals(&bench.zone.cluster).unhealthy(), 1, "the other one came back as a new one");
    bench.until(&at, RuntimeHealth::Healthy).await;
    bench.publish(vec![Value::Cluster(cluster(None))]);
    assert!(tokio::time::timeout(Duration::from_millis(100), bench.schedule.next()).await.is_err(), "no more checks");
}

#[tokio::test(start_paused = true)]
async fn ejections_end_at_the_interval_or_by_a_good_check() {
    let (a, b) = (address(1), address(2));
    let mut bench = Bench::new(Zone::of(&[a.clone(), b.clone()]));
    let mut c = cluster(None);
    let consecutive = amesh_model::health::Consecutive { threshold: 1, enforcing: 100 };
    let outlier = OutlierDetection {
        interval: 10_000,
        base_ejection_time: 15_000,
        max_ejection_time: 300_000,
        max_ejection_time_jitter: 0,
        max_ejection_percent: 50,
        always_eject_one_host: false,
        split_external_local_origin_errors: false,
        successful_active_health_check_uneject_host: true,
        consecutive_5xx: consecutive,
        consecutive_gateway_failure: consecutive,
        consecutive_local_origin_failure: consecutive,
        success_rate: amesh_model::health::SuccessRate {
            minimum_hosts: 5,
            request_volume: 100,
            stdev_factor: 1900,
            enforcing: 100,
            enforcing_local_origin: 100,
        },
        failure_percentage: amesh_model::health::FailurePercentage {
            threshold: 85,
            minimum_hosts: 5,
            request_volume: 50,
            enforcing: 0,
            enforcing_local_origin: 0,
        },
    };
    let limits = amesh_model::vitals::EjectionLimits::from(&outlier);
    c.outlier_detection = Some(Box::new(outlier));
    bench.publish(vec![Value::EndpointSet(set(vec![endpoint(&a), endpoint(&b)])), Value::Cluster(c.clone())]);
    let started = Instant::now();
    let after = |bench: &Bench| bench.health.next_interval().unwrap() - started;
    assert_eq!(after(&bench), Duration::from_secs(10));
    let eject = |zone: &Zone, at: &Address| {
        zone.endpoint("c", at).unwrap().eject(ClusterVitals(&zone.cluster), &limits, zone.clock())
    };
    assert!(eject(&bench.zone, &a) && !eject(&bench.zone, &b));
    bench.health.tick(&[&bench.zone], &bench.log);
    for (seconds, health) in [(10, RuntimeHealth::Unhealthy), (20, RuntimeHealth::Healthy)] {
        tokio::time::advance(Duration::from_secs(10)).await;
        bench.zone.clock.set(seconds * 1000);
        bench.health.intervals(&[&bench.zone]);
        assert_eq!(bench.zone.health(&a), health, "after {seconds} s");
    }
    assert_eq!(after(&bench), Duration::from_secs(30));
    bench.health.tick(&[&bench.zone], &bench.log);
    let log = bench.log.0.borrow().join("\n");
    assert!(
        log.contains("127.0.0.1:1 is ejected (1 of 2 ejected)") && log.contains("127.0.0.1:1 is back (0 of"),
        "{log}"
    );

    // A good check ends it before its time; one of a cluster without outlier detection has none.
    c.health_check = Some(Box::new(check_for_tests()));
    bench.health.follow(&batch(vec![Value::Cluster(c.clone())]), &[&bench.zone]);
    assert!(eject(&bench.zone, &b));
    let id = bench.health.clusters["c"].members[1].id.unwrap();
    bench.health.on_result(id, &WELL, &[&bench.zone], &bench.log);
    assert_eq!(bench.zone.health(&b), RuntimeHealth::Healthy);
    assert!(eject(&bench.zone, &b));
    bench.health.follow(&batch(vec![Value::Cluster(cluster(None))]), &[&bench.zone]);
    assert_eq!((bench.zone.health(&b), ClusterVitals(&bench.zone.cluster).ejected()), (RuntimeHealth::Healthy, 0));
    assert!(bench.health.next_interval().is_none());
}

#[tokio::test]
async fn a_new_zone_knows_what_the_old_one_knew() {
    let a = address(1);
    let mut bench = Bench::new(Zone::of(std::slice::from_ref(&a)));
    let c = Value::Cluster(cluster(Some(check_for_tests())));
    bench.publish(vec![Value::EndpointSet(set(vec![endpoint(&a)])), c]);
    assert_eq!(bench.step().await, probe(check_for_tests(), &a).await);
    let new = Zone::of(std::slice::from_ref(&a));
    bench.health.carry_over(&bench.zone, &new);
    assert_eq!((new.health(&a), ClusterVitals(&new.cluster).unhealthy()), (RuntimeHealth::Unhealthy, 1));
}
