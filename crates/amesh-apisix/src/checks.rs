//! Health checks and outlier detection as `checks`.

use amesh_model::cluster::Cluster;
use amesh_model::health::{HealthCheck, HealthCheckKind, HttpHealthCheck, OutlierDetection};
use serde_json::{json, Map, Value};

/// Largest count in a row that the schema takes.
const MOST: u32 = 254;

/// `checks`; `None`: none. `note` hears of what is not done.
pub(crate) fn checks(cluster: &Cluster, mut note: impl FnMut(String)) -> Option<Value> {
    let active = cluster.health_check.as_ref().and_then(|check| match active(check) {
        Ok(active) => Some(active),
        Err(why) => {
            note(format!("{why}; its endpoints are not checked"));
            None
        }
    });
    let passive = cluster.outlier_detection.as_ref().and_then(|outlier| passive(outlier));
    match (active, passive) {
        (Some(active), Some(passive)) => Some(json!({"active": active, "passive": passive})),
        (Some(active), None) => Some(json!({"active": active})),
        (None, Some(_)) => {
            note("APISIX ejects endpoints only where it checks them actively; outliers stay in use".to_owned());
            None
        }
        (None, None) => None,
    }
}

/// Whole seconds, rounded up.
fn interval(ms: u64) -> u64 {
    ms.div_ceil(1000).max(1)
}

fn active(check: &HealthCheck) -> Result<Value, String> {
    let mut out = Map::new();
    out.insert("timeout".into(), crate::upstream::seconds(check.timeout));
    if check.alt_port > 0 {
        out.insert("port".into(), json!(check.alt_port));
    }
    let failures = check.unhealthy_threshold.clamp(1, MOST);
    let unhealthy_interval = if check.unhealthy_interval > 0 { check.unhealthy_interval } else { check.interval };
    let mut healthy =
        json!({"interval": interval(check.interval), "successes": check.healthy_threshold.clamp(1, MOST)});
    let mut unhealthy = json!({"interval": interval(unhealthy_interval), "timeouts": failures});
    match &check.kind {
        HealthCheckKind::Tcp { send, receive } if send.is_empty() && receive.is_empty() => {
            out.insert("type".into(), json!("tcp"));
            unhealthy["tcp_failures"] = json!(failures);
        }
        HealthCheckKind::Tcp { .. } => return Err("its health check talks over TCP".to_owned()),
        HealthCheckKind::Grpc { .. } => return Err("its health check is of gRPC".to_owned()),
        HealthCheckKind::Http(http) => {
            plain(http)?;
            out.insert("type".into(), json!("http"));
            out.insert("http_path".into(), json!(http.path));
            if !http.host.is_empty() {
                out.insert("host".into(), json!(http.host));
            }
            let headers: Vec<String> =
                http.request_headers_to_add.iter().map(|(name, value)| format!("{name}: {value}")).collect();
            if !headers.is_empty() {
                out.insert("req_headers".into(), json!(headers));
            }
            let expected = |status: &u16| {
                let ranges = &http.expected_statuses;
                (ranges.is_empty() && *status == 200)
                    || ranges.iter().any(|(start, end)| (start..end).contains(&status))
            };
            let (good, bad): (Vec<u16>, Vec<u16>) = (200..600).partition(expected);
            if good.is_empty() || bad.is_empty() {
                return Err("its health check expects all statuses, or none".to_owned());
            }
            healthy["http_statuses"] = json!(good);
            unhealthy["http_statuses"] = json!(bad);
            unhealthy["http_failures"] = json!(failures);
            unhealthy["tcp_failures"] = json!(failures);
        }
    }
    out.insert("healthy".into(), healthy);
    out.insert("unhealthy".into(), unhealthy);
    Ok(Value::Object(out))
}

/// A request that APISIX can send: a GET without a body, of which the status is looked at.
fn plain(http: &HttpHealthCheck) -> Result<(), String> {
    let host =
        http.host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'[' | b']' | b':'));
    match () {
        () if http.http2 => Err("its health check is of HTTP/2".to_owned()),
        () if http.method != "GET" => Err(format!("its health check is a {} request", http.method)),
        () if !http.send.is_empty() || !http.receive.is_empty() => Err("its health check looks at a body".to_owned()),
        () if http.service_name_matcher.is_some() => {
            Err("its health check asks for the name of the service".to_owned())
        }
        () if !host => Err(format!("its health check asks for the host \"{}\"", http.host)),
        () => Ok(()),
    }
}

/// Failures in a row; rates have no counterpart.
fn passive(outlier: &OutlierDetection) -> Option<Value> {
    let all = &outlier.consecutive_5xx;
    let gateway = &outlier.consecutive_gateway_failure;
    let (statuses, threshold): (Vec<u16>, u32) = if all.enforcing > 0 && all.threshold > 0 {
        ((500..600).collect(), all.threshold)
    } else if gateway.enforcing > 0 && gateway.threshold > 0 {
        (vec![502, 503, 504], gateway.threshold)
    } else {
        return None;
    };
    let failures = threshold.clamp(1, MOST);
    Some(json!({"type": "http", "unhealthy": {
        "http_statuses": statuses, "http_failures": failures, "tcp_failures": failures, "timeouts": failures,
    }}))
}
