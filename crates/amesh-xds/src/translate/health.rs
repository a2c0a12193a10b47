//! Active health checks, outlier detection and circuit breakers of a cluster.

use super::matcher;
use super::notes::ignored;
use super::value::{bool_or, enumeration, millis, port, positive_millis, u32_or};
use super::{Invalid, Notes};
use amesh_model::health::{
    CircuitBreakers, Consecutive, EndpointHealthCheck, FailurePercentage, HealthCheck, HealthCheckKind,
    HttpHealthCheck, OutlierDetection, RetryBudget, SuccessRate,
};
use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::endpoint::v3::endpoint as eds;
use envoy_types::pb::envoy::r#type::v3 as kind;
use envoy_types::pb::google::protobuf::{Duration, UInt32Value};

/// Bytes of a response that are looked at, by default.
const RESPONSE_BUFFER: u64 = 1024;
/// Bytes of a response that are looked at, at most.
const MAX_RESPONSE_BUFFER: u64 = 1 << 20;
/// While there is no traffic.
const NO_TRAFFIC_INTERVAL: u64 = 60_000;

/// The one health check of a cluster; what cannot be done is ignored, so that its endpoints stay in use.
pub(super) fn health_check(list: &[core::HealthCheck], notes: &mut Notes) -> Result<Option<Box<HealthCheck>>, Invalid> {
    match list {
        [] => Ok(None),
        [one] => Ok(notes.each("health_checks", 0, |n| check(one, n))?.map(Box::new)),
        more => Err(notes.invalid("health_checks", format!("are {}: a cluster has one at most", more.len()))),
    }
}

fn required(d: &Option<Duration>, field: &str, notes: &Notes) -> Result<u64, Invalid> {
    positive_millis(d, field, notes)?.ok_or_else(|| notes.invalid(field, "is not set"))
}

fn check(c: &core::HealthCheck, notes: &mut Notes) -> Result<Option<HealthCheck>, Invalid> {
    use core::health_check::HealthChecker as C;
    #[allow(deprecated)]
    let core::HealthCheck {
        timeout,
        interval,
        initial_jitter,
        interval_jitter,
        interval_jitter_percent,
        unhealthy_threshold,
        healthy_threshold,
        alt_port,
        reuse_connection,
        no_traffic_interval,
        no_traffic_healthy_interval,
        unhealthy_interval,
        unhealthy_edge_interval,
        healthy_edge_interval,
        event_log_path,
        event_logger,
        event_service,
        always_log_health_check_failures,
        always_log_health_check_success,
        tls_options,
        transport_socket_match_criteria,
        health_checker,
    } = c;
    ignored!(notes, "changes of health are logged by nginx's error log"; event_log_path, event_logger, event_service);
    ignored!(notes, "endpoints that want TLS are not checked"; tls_options, transport_socket_match_criteria);
    let threshold = |n: &Option<UInt32Value>, field, notes: &Notes| match n {
        None => Err(notes.invalid(field, "is not set")),
        Some(n) => Ok(n.value.max(1)),
    };
    let interval = required(interval, "interval", notes)?;
    let unhealthy_interval = positive_millis(unhealthy_interval, "unhealthy_interval", notes)?.unwrap_or(interval);
    let no_traffic = positive_millis(no_traffic_interval, "no_traffic_interval", notes)?.unwrap_or(NO_TRAFFIC_INTERVAL);
    let kind = match health_checker {
        None => return Err(notes.invalid("health_checker", "is not set")),
        Some(C::HttpHealthCheck(h)) => HealthCheckKind::Http(notes.within("http_health_check", |n| http(h, n))?),
        Some(C::TcpHealthCheck(t)) => notes.within("tcp_health_check", |n| tcp(t, n))?,
        Some(C::GrpcHealthCheck(g)) => HealthCheckKind::Grpc {
            service_name: g.service_name.clone(),
            authority: g.authority.clone(),
            metadata: notes.within("grpc_health_check", |n| headers(&g.initial_metadata, "initial_metadata", n))?,
        },
        Some(C::CustomHealthCheck(_)) => {
            notes.ignored("custom_health_check", "custom health checks are not done: endpoints stay in use");
            return Ok(None);
        }
    };
    Ok(Some(HealthCheck {
        timeout: required(timeout, "timeout", notes)?,
        interval,
        initial_jitter: millis(initial_jitter, "initial_jitter", notes)?.unwrap_or(0),
        interval_jitter: millis(interval_jitter, "interval_jitter", notes)?.unwrap_or(0),
        interval_jitter_percent: *interval_jitter_percent,
        unhealthy_threshold: threshold(unhealthy_threshold, "unhealthy_threshold", notes)?,
        healthy_threshold: threshold(healthy_threshold, "healthy_threshold", notes)?,
        no_traffic_interval: no_traffic,
        no_traffic_healthy_interval: positive_millis(
            no_traffic_healthy_interval,
            "no_traffic_healthy_interval",
            notes,
        )?
        .unwrap_or(no_traffic),
        unhealthy_interval,
        unhealthy_edge_interval: positive_millis(unhealthy_edge_interval, "unhealthy_edge_interval", notes)?
            .unwrap_or(unhealthy_interval),
        healthy_edge_interval: positive_millis(healthy_edge_interval, "healthy_edge_interval", notes)?
            .unwrap_or(interval),
        reuse_connection: bool_or(reuse_connection, true),
        alt_port: alt_port.as_ref().map_or(Ok(0), |p| port(p.value, "alt_port", notes))?,
        always_log_failures: *always_log_health_check_failures,
        always_log_success: *always_log_health_check_success,
        kind,
    }))
}

fn http(h: &core::health_check::HttpHealthCheck, notes: &mut Notes) -> Result<HttpHealthCheck, Invalid> {
    use kind::CodecClientType as T;
    let core::health_check::HttpHealthCheck {
        host,
        path,
        send,
        receive,
        response_buffer_size,
        request_headers_to_add,
        request_headers_to_remove,
        expected_statuses,
        retriable_statuses,
        codec_client_type,
        service_name_matcher,
        method,
    } = h;
    if !path.starts_with('/') || path.bytes().any(|b| b <= b' ' || b == 0x7f) {
        return Err(notes.invalid("path", format!("\"{path}\" is no path: it begins with \"/\"")));
    }
    let receive = payloads(receive, notes)?;
    let size = response_buffer_size.as_ref().map_or(RESPONSE_BUFFER, |n| n.value);
    let method = match enumeration::<core::RequestMethod>(*method, "method", notes)? {
        core::RequestMethod::MethodUnspecified => "GET",
        core::RequestMethod::Connect => return Err(notes.invalid("method", "CONNECT is no health check")),
        other => other.as_str_name(),
    };
    let http2 = match enumeration::<T>(*codec_client_type, "codec_client_type", notes)? {
        T::Http1 => false,
        T::Http2 => true,
        T::Http3 => return Err(notes.invalid("codec_client_type", "HTTP/3 is not supported")),
    };
    let expected = statuses(expected_statuses, "expected_statuses", notes)?;
    let service = service_name_matcher.as_ref();
    Ok(HttpHealthCheck {
        host: host.clone(),
        path: path.clone(),
        method: method.to_owned(),
        http2,
        send: send.as_ref().map_or(Ok(Vec::new()), |p| notes.within("send", |n| payload(p, n)))?,
        receive,
        // 0: all of it.
        response_buffer_size: if size == 0 { MAX_RESPONSE_BUFFER } else { size.min(MAX_RESPONSE_BUFFER) },
        request_headers_to_add: headers(request_headers_to_add, "request_headers_to_add", notes)?,
        request_headers_to_remove: request_headers_to_remove.iter().map(|n| n.to_ascii_lowercase()).collect(),
        expected_statuses: if expected.is_empty() { vec![(200, 201)] } else { expected },
        retriable_statuses: statuses(retriable_statuses, "retriable_statuses", notes)?,
        service_name_matcher: service
            .map(|m| notes.within("service_name_matcher", |n| matcher::string(m, n)))
            .transpose()?,
    })
}

fn tcp(t: &core::health_check::TcpHealthCheck, notes: &mut Notes) -> Result<HealthCheckKind, Invalid> {
    let core::health_check::TcpHealthCheck { send, receive, proxy_protocol_config } = t;
    if proxy_protocol_config.is_some() {
        return Err(notes.invalid("proxy_protocol_config", "is not supported"));
    }
    let send = send.as_ref().map_or(Ok(Vec::new()), |p| notes.within("send", |n| payload(p, n)))?;
    Ok(HealthCheckKind::Tcp { send, receive: payloads(receive, notes)? })
}

fn payloads(list: &[core::health_check::Payload], notes: &mut Notes) -> Result<Vec<Vec<u8>>, Invalid> {
    notes.list("receive", list, payload)
}

/// Text is hexadecimal, as in Envoy.
fn payload(p: &core::health_check::Payload, notes: &mut Notes) -> Result<Vec<u8>, Invalid> {
    use core::health_check::payload::Payload as P;
    match &p.payload {
        None => Err(notes.invalid("payload", "is not set")),
        Some(P::Binary(bytes)) => Ok(bytes.clone()),
        Some(P::Text(hex)) => {
            let digits: Option<Vec<u32>> = hex.chars().map(|c| c.to_digit(16)).collect();
            match digits {
                // Two digits fit in a byte.
                Some(d) if d.len() % 2 == 0 => {
                    Ok(d.chunks(2).map(|c| c.iter().fold(0, |n, d| n << 4 | *d as u8)).collect())
                }
                _ => Err(notes.invalid("text", format!("invalid hex string \"{hex}\""))),
            }
        }
    }
}

fn statuses(list: &[kind::Int64Range], field: &'static str, notes: &mut Notes) -> Result<Vec<(u16, u16)>, Invalid> {
    notes.list(field, list, |r, notes| match (u16::try_from(r.start), u16::try_from(r.end)) {
        (Ok(start @ 100..), Ok(end @ ..=600)) if start < end => Ok((start, end)),
        _ => Err(notes.invalid("", format!("[{}, {}) is no range of statuses within [100, 600)", r.start, r.end))),
    })
}

/// Headers whose values are plain text.
fn headers(
    list: &[core::HeaderValueOption],
    field: &'static str,
    notes: &mut Notes,
) -> Result<Vec<(String, String)>, Invalid> {
    let all = notes.list(field, list, |h, notes| {
        let Some(header) = &h.header else { return Err(notes.invalid("header", "is not set")) };
        if header.value.contains('%') {
            notes.ignored("header.value", "a header with a substitution command is not sent by health checks");
            return Ok(None);
        }
        let name: Result<http::HeaderName, _> = header.key.parse();
        match (name, http::HeaderValue::from_str(&header.value)) {
            (Ok(name), Ok(_)) => Ok(Some((name.as_str().to_owned(), header.value.clone()))),
            _ => Err(notes.invalid("header", format!("\"{}\" is no header of HTTP", header.key))),
        }
    })?;
    Ok(all.into_iter().flatten().collect())
}

/// Where one endpoint is checked.
pub(super) fn endpoint(c: &eds::HealthCheckConfig, notes: &mut Notes) -> Result<EndpointHealthCheck, Invalid> {
    let eds::HealthCheckConfig { port_value, hostname, address, disable_active_health_check } = c;
    let address = match address {
        None => None,
        a => match super::value::address(a, notes)? {
            super::value::Place::Known(a) => Some(a),
            super::value::Place::Name(name, _) => {
                return Err(notes.invalid("address", format!("malformed IP address: \"{name}\"")));
            }
            super::value::Place::Other(what, why) => {
                return Err(notes.invalid("address", format!("{what}: {why}")));
            }
        },
    };
    let port = match *port_value {
        0 => 0,
        p => port(p, "port_value", notes)?,
    };
    Ok(EndpointHealthCheck { address, port, hostname: hostname.clone(), disabled: *disable_active_health_check })
}

/// Outlier detection.
pub(super) fn outlier_detection(o: &pb::OutlierDetection, notes: &mut Notes) -> Result<Box<OutlierDetection>, Invalid> {
    let pb::OutlierDetection {
        consecutive_5xx,
        interval,
        base_ejection_time,
        max_ejection_percent,
        enforcing_consecutive_5xx,
        enforcing_success_rate,
        success_rate_minimum_hosts,
        success_rate_request_volume,
        success_rate_stdev_factor,
        consecutive_gateway_failure,
        enforcing_consecutive_gateway_failure,
        split_external_local_origin_errors,
        consecutive_local_origin_failure,
        enforcing_consecutive_local_origin_failure,
        enforcing_local_origin_success_rate,
        failure_percentage_threshold,
        enforcing_failure_percentage,
        enforcing_failure_percentage_local_origin,
        failure_percentage_minimum_hosts,
        failure_percentage_request_volume,
        max_ejection_time,
        max_ejection_time_jitter,
        successful_active_health_check_uneject_host,
        monitors,
        always_eject_one_host,
        detect_degraded_hosts,
    } = o;
    ignored!(notes, "a response does not make an endpoint degraded"; detect_degraded_hosts);
    ignored!(notes, "extensions of outlier detection are not known"; monitors);
    let percent = |n: &Option<UInt32Value>, default, field: &str, notes: &Notes| match u32_or(n, default) {
        n @ 0..=100 => Ok(n),
        n => Err(notes.invalid(field, format!("{n} is above 100"))),
    };
    let base = positive_millis(base_ejection_time, "base_ejection_time", notes)?.unwrap_or(30_000);
    let longest = positive_millis(max_ejection_time, "max_ejection_time", notes)?;
    if longest.is_some_and(|most| most < base) {
        return Err(notes.invalid("max_ejection_time", "is shorter than base_ejection_time"));
    }
    Ok(Box::new(OutlierDetection {
        interval: positive_millis(interval, "interval", notes)?.unwrap_or(10_000),
        base_ejection_time: base,
        max_ejection_time: longest.unwrap_or(base.max(300_000)),
        max_ejection_time_jitter: millis(max_ejection_time_jitter, "max_ejection_time_jitter", notes)?.unwrap_or(0),
        max_ejection_percent: percent(max_ejection_percent, 10, "max_ejection_percent", notes)?,
        always_eject_one_host: bool_or(always_eject_one_host, false),
        split_external_local_origin_errors: *split_external_local_origin_errors,
        successful_active_health_check_uneject_host: bool_or(successful_active_health_check_uneject_host, true),
        consecutive_5xx: Consecutive {
            threshold: u32_or(consecutive_5xx, 5),
            enforcing: percent(enforcing_consecutive_5xx, 100, "enforcing_consecutive_5xx", notes)?,
        },
        consecutive_gateway_failure: Consecutive {
            threshold: u32_or(consecutive_gateway_failure, 5),
            enforcing: percent(
                enforcing_consecutive_gateway_failure,
                0,
                "enforcing_consecutive_gateway_failure",
                notes,
            )?,
        },
        consecutive_local_origin_failure: Consecutive {
            threshold: u32_or(consecutive_local_origin_failure, 5),
            enforcing: percent(
                enforcing_consecutive_local_origin_failure,
                100,
                "enforcing_consecutive_local_origin_failure",
                notes,
            )?,
        },
        success_rate: SuccessRate {
            minimum_hosts: u32_or(success_rate_minimum_hosts, 5),
            request_volume: u32_or(success_rate_request_volume, 100),
            stdev_factor: u32_or(success_rate_stdev_factor, 1900),
            enforcing: percent(enforcing_success_rate, 100, "enforcing_success_rate", notes)?,
            enforcing_local_origin: percent(
                enforcing_local_origin_success_rate,
                100,
                "enforcing_local_origin_success_rate",
                notes,
            )?,
        },
        failure_percentage: FailurePercentage {
            threshold: percent(failure_percentage_threshold, 85, "failure_percentage_threshold", notes)?,
            minimum_hosts: u32_or(failure_percentage_minimum_hosts, 5),
            request_volume: u32_or(failure_percentage_request_volume, 50),
            enforcing: percent(enforcing_failure_percentage, 0, "enforcing_failure_percentage", notes)?,
            enforcing_local_origin: percent(
                enforcing_failure_percentage_local_origin,
                0,
                "enforcing_failure_percentage_local_origin",
                notes,
            )?,
        },
    }))
}

/// The limits of the default priority, and those of the high one where it has any.
pub(super) fn circuit_breakers(
    c: &Option<pb::CircuitBreakers>,
    notes: &mut Notes,
) -> Result<(CircuitBreakers, Option<CircuitBreakers>), Invalid> {
    let defaults = CircuitBreakers::default();
    let Some(pb::CircuitBreakers { thresholds, per_host_thresholds }) = c else { return Ok((defaults, None)) };
    notes.within("circuit_breakers", |notes| {
        ignored!(notes, "connections to one endpoint have no limit"; per_host_thresholds);
        let (mut out, mut high) = (None, None);
        for (i, t) in thresholds.iter().enumerate() {
            notes.each("thresholds", i, |notes| {
                let pb::circuit_breakers::Thresholds {
                    priority,
                    max_connections,
                    max_pending_requests,
                    max_requests,
                    max_retries,
                    retry_budget,
                    track_remaining: _,
                    max_connection_pools,
                } = t;
                ignored!(notes, "there is one pool a cluster and address"; max_connection_pools);
                let of_priority = match enumeration::<core::RoutingPriority>(*priority, "priority", notes)? {
                    core::RoutingPriority::Default => &mut out,
                    core::RoutingPriority::High => &mut high,
                };
                // The first one of a priority counts.
                of_priority.get_or_insert(CircuitBreakers {
                    max_connections: u32_or(max_connections, defaults.max_connections),
                    max_pending_requests: u32_or(max_pending_requests, defaults.max_pending_requests),
                    max_requests: u32_or(max_requests, defaults.max_requests),
                    max_retries: u32_or(max_retries, defaults.max_retries),
                    retry_budget: retry_budget.as_ref().map(|b| budget(b, notes)).transpose()?,
                });
                Ok(())
            })?;
        }
        Ok((out.unwrap_or(defaults), high))
    })
}

fn budget(b: &pb::circuit_breakers::thresholds::RetryBudget, notes: &mut Notes) -> Result<RetryBudget, Invalid> {
    notes.within("retry_budget", |notes| {
        let pb::circuit_breakers::thresholds::RetryBudget { budget_percent, budget_interval, min_retry_concurrency } =
            b;
        ignored!(notes, "the budget is of the requests that are active"; budget_interval);
        let percent = budget_percent.as_ref().map_or(20.0, |p| p.value);
        if !(0.0..=100.0).contains(&percent) {
            return Err(notes.invalid("budget_percent", format!("{percent} is not within 0 to 100")));
        }
        Ok(RetryBudget { percent, min_retry_concurrency: u32_or(min_retry_concurrency, 3) })
    })
}
