//! Health checks, outlier detection and circuit breakers: what a cluster says becomes the model, or is refused by name.

use amesh_model::cluster::Cluster;
use amesh_model::health::{CircuitBreakers, EndpointHealthCheck, HealthCheckKind, RetryBudget};
use amesh_xds::descriptor;
use amesh_xds::translate::{self, Invalid, Notes, Source};
use envoy_types::pb::envoy::config::cluster::v3 as cds;
use prost::Message;

fn translated(fields: &str, endpoint: &str) -> Result<(Cluster, Option<EndpointHealthCheck>, Vec<String>), Invalid> {
    let yaml = format!(
        r#"{{"@type": type.googleapis.com/envoy.config.cluster.v3.Cluster, name: c, type: STATIC, {fields}
        load_assignment: {{cluster_name: c, endpoints: [{{lb_endpoints: [{{endpoint: {{ {endpoint}
        address: {{socket_address: {{address: 127.0.0.1, port_value: 80}}}}}}}}]}}]}}}}"#
    );
    let any = descriptor::from_yaml("", &yaml).unwrap_or_else(|e| panic!("{e}\n{yaml}")).remove(0).any;
    let mut notes = Notes::new();
    let t = translate::cluster(&cds::Cluster::decode(any.value.as_slice()).unwrap(), &mut notes)?;
    let Source::Inline(set) = t.source else { panic!() };
    let check = set.localities[0].endpoints[0].health_check.clone();
    Ok((t.cluster, check.map(|b| *b), notes.iter().map(|(n, _)| n.field.clone()).collect()))
}

fn cluster(fields: &str) -> Cluster {
    translated(fields, "").unwrap().0
}

fn refused(fields: &str) -> (String, String) {
    let e = translated(fields, "").unwrap_err();
    (e.field, e.reason)
}

const CHECK: &str = "health_checks: [{timeout: 1s, interval: 5s, unhealthy_threshold: 3, healthy_threshold: 2, ";

#[test]
fn a_health_check_has_envoys_defaults() {
    let c = *cluster(&format!("{CHECK} http_health_check: {{path: /healthz}}}}],")).health_check.unwrap();
    assert_eq!((c.timeout, c.interval, c.unhealthy_threshold, c.healthy_threshold), (1000, 5000, 3, 2));
    assert_eq!((c.unhealthy_interval, c.unhealthy_edge_interval, c.healthy_edge_interval), (5000, 5000, 5000));
    assert_eq!((c.no_traffic_interval, c.no_traffic_healthy_interval), (60_000, 60_000));
    assert!(c.reuse_connection && c.alt_port == 0 && !c.always_log_failures);
    let HealthCheckKind::Http(h) = c.kind else { panic!() };
    assert_eq!((h.path.as_str(), h.method.as_str(), h.host.as_str(), h.http2), ("/healthz", "GET", "", false));
    assert_eq!((h.expected_statuses, h.retriable_statuses, h.response_buffer_size), (vec![(200, 201)], vec![], 1024));
}

#[test]
fn every_field_of_a_health_check_is_taken_over() {
    let c = *cluster(&format!(
        "{CHECK} initial_jitter: 0.1s, interval_jitter: 0.2s, interval_jitter_percent: 7, alt_port: 81,
        reuse_connection: false, no_traffic_interval: 9s, unhealthy_interval: 2s, healthy_edge_interval: 3s,
        always_log_health_check_failures: true, always_log_health_check_success: true,
        http_health_check: {{host: h, path: /, method: HEAD, codec_client_type: HTTP2, send: {{text: '00fF'}},
          receive: [{{binary: 'b2s='}}], expected_statuses: [{{start: 200, end: 300}}],
          retriable_statuses: [{{start: 429, end: 430}}], request_headers_to_remove: [X-B],
          request_headers_to_add: [{{header: {{key: X-A, value: b}}}}, {{header: {{key: X-C, value: '%HOSTNAME%'}}}}],
          service_name_matcher: {{prefix: s}}}}}}],"
    ))
    .health_check
    .unwrap();
    assert_eq!((c.initial_jitter, c.interval_jitter, c.interval_jitter_percent, c.alt_port), (100, 200, 7, 81));
    assert_eq!((c.no_traffic_interval, c.no_traffic_healthy_interval), (9000, 9000));
    assert_eq!((c.unhealthy_interval, c.unhealthy_edge_interval, c.healthy_edge_interval), (2000, 2000, 3000));
    assert!(!c.reuse_connection && c.always_log_failures && c.always_log_success);
    let HealthCheckKind::Http(h) = c.kind else { panic!() };
    assert_eq!((h.host.as_str(), h.method.as_str(), h.http2, h.send), ("h", "HEAD", true, vec![0, 255]));
    assert_eq!((h.receive, h.expected_statuses), (vec![b"ok".to_vec()], vec![(200, 300)]));
    assert_eq!(h.retriable_statuses, [(429, 430)]);
    assert_eq!(h.request_headers_to_add, [("x-a".to_owned(), "b".to_owned())]);
    assert_eq!(h.request_headers_to_remove, ["x-b"]);
    assert!(h.service_name_matcher.is_some());

    let tcp = cluster(&format!("{CHECK} tcp_health_check: {{send: {{text: '50'}}, receive: [{{text: '51'}}]}}}}],"));
    let HealthCheckKind::Tcp { send, receive } = tcp.health_check.unwrap().kind else { panic!() };
    assert_eq!((send, receive), (vec![0x50], vec![vec![0x51]]));
    let grpc = cluster(&format!("{CHECK} grpc_health_check: {{service_name: s, authority: a}}}}],"));
    let HealthCheckKind::Grpc { service_name, authority, .. } = grpc.health_check.unwrap().kind else { panic!() };
    assert_eq!((service_name.as_str(), authority.as_str()), ("s", "a"));

    let at = |e: &str| translated(&format!("{CHECK} tcp_health_check: {{}}}}],"), e).unwrap().1;
    assert_eq!(at("health_check_config: {},"), None);
    let config = at("health_check_config: {port_value: 9, hostname: n, disable_active_health_check: true},").unwrap();
    assert_eq!((config.port, config.hostname.as_str(), config.disabled, config.address), (9, "n", true, None));
}

#[test]
fn health_checks_that_make_no_sense() {
    let field = |fields: &str| refused(fields).0;
    let http = |more: &str| format!("{CHECK} http_health_check: {{path: /, {more}}}}}],");
    assert_eq!(
        field("health_checks: [{timeout: 1s, interval: 1s, tcp_health_check: {}}],"),
        "health_checks[0].unhealthy_threshold"
    );
    let no_timeout =
        "health_checks: [{interval: 1s, unhealthy_threshold: 1, healthy_threshold: 1, tcp_health_check: {}}],";
    assert_eq!(field(no_timeout), "health_checks[0].timeout");
    assert_eq!(field(&format!("{CHECK}}}],")), "health_checks[0].health_checker");
    let two = format!("{CHECK} tcp_health_check: {{}}}}, {{}}],");
    assert_eq!(refused(&two), ("health_checks".into(), "are 2: a cluster has one at most".into()));
    for (more, at) in [
        ("path: x", "path"),
        ("send: {text: 'a'}", "send.text"),
        ("expected_statuses: [{start: 99, end: 200}]", "expected_statuses[0]"),
        ("retriable_statuses: [{start: 300, end: 300}]", "retriable_statuses[0]"),
        ("codec_client_type: HTTP3", "codec_client_type"),
        ("method: CONNECT", "method"),
        ("request_headers_to_add: [{header: {key: 'a b'}}]", "request_headers_to_add[0].header"),
    ] {
        assert_eq!(
            field(&http(more).replace("path: /, path", "path")),
            format!("health_checks[0].http_health_check.{at}")
        );
    }
    let custom = translated(&format!("{CHECK} custom_health_check: {{name: redis}}}}],"), "").unwrap();
    assert!(custom.0.health_check.is_none());
    assert_eq!(custom.2, ["health_checks[].custom_health_check"]);
}

#[test]
fn outlier_detection_has_envoys_defaults_and_bounds() {
    assert!(cluster("").outlier_detection.is_none());
    let o = *cluster("outlier_detection: {},").outlier_detection.unwrap();
    assert_eq!((o.interval, o.base_ejection_time, o.max_ejection_time), (10_000, 30_000, 300_000));
    assert_eq!((o.max_ejection_percent, o.always_eject_one_host), (10, false));
    assert_eq!((o.consecutive_5xx.threshold, o.consecutive_5xx.enforcing), (5, 100));
    assert_eq!((o.consecutive_gateway_failure.threshold, o.consecutive_gateway_failure.enforcing), (5, 0));
    assert_eq!((o.success_rate.request_volume, o.success_rate.stdev_factor), (100, 1900));
    assert_eq!((o.failure_percentage.threshold, o.failure_percentage.enforcing), (85, 0));
    assert!(o.successful_active_health_check_uneject_host);
    let o = *cluster("outlier_detection: {base_ejection_time: 400s},").outlier_detection.unwrap();
    assert_eq!(o.max_ejection_time, 400_000);
    for (fields, at) in [
        ("base_ejection_time: 40s, max_ejection_time: 30s", "max_ejection_time"),
        ("max_ejection_percent: 101", "max_ejection_percent"),
        ("interval: 0s", "interval"),
        ("enforcing_success_rate: 101", "enforcing_success_rate"),
    ] {
        assert_eq!(refused(&format!("outlier_detection: {{{fields}}},")).0, format!("outlier_detection.{at}"));
    }
}

#[test]
fn circuit_breakers_are_of_a_priority() {
    assert_eq!(cluster("").circuit_breakers, CircuitBreakers::default());
    let both = "circuit_breakers: {thresholds: [{priority: HIGH, max_requests: 1}, {max_requests: 2, max_retries: 0},
        {max_requests: 3}]},";
    let (c, _, notes) = translated(both, "").unwrap();
    assert_eq!(c.circuit_breakers, CircuitBreakers { max_requests: 2, max_retries: 0, ..CircuitBreakers::default() });
    assert_eq!(c.high_priority.unwrap().circuit_breakers, CircuitBreakers { max_requests: 1, ..Default::default() });
    assert_eq!((notes.len(), cluster("").high_priority), (0, None));
    let budget = "circuit_breakers: {thresholds: [{retry_budget: {budget_percent: {value: 25}}}]},";
    let wanted = RetryBudget { percent: 25.0, min_retry_concurrency: 3 };
    assert_eq!(cluster(budget).circuit_breakers.retry_budget, Some(wanted));
    let bad = budget.replace("25", "101");
    assert_eq!(refused(&bad).0, "circuit_breakers.thresholds[0].retry_budget.budget_percent");
}
