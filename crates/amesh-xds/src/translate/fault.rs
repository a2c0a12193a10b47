//! `HTTPFault`.

use super::matcher;
use super::notes::ignored;
use super::value::millis;
use super::{Invalid, Notes};
use amesh_model::filter::{Fault, FaultAbort, FaultDelay, FaultError};
use amesh_model::matcher::Fraction;
use envoy_types::pb::envoy::extensions::filters::common::fault::v3 as common;
use envoy_types::pb::envoy::extensions::filters::http::fault::v3 as pb;
use envoy_types::pb::envoy::r#type::v3::FractionalPercent;

pub(super) fn fault(fault: &pb::HttpFault, notes: &mut Notes) -> Result<Fault, Invalid> {
    let pb::HttpFault {
        delay,
        abort,
        upstream_cluster,
        headers,
        downstream_nodes,
        max_active_faults,
        response_rate_limit,
        delay_percent_runtime: _,
        abort_percent_runtime: _,
        delay_duration_runtime: _,
        abort_http_status_runtime: _,
        max_active_faults_runtime: _,
        response_rate_limit_percent_runtime: _,
        abort_grpc_status_runtime: _,
        disable_downstream_cluster_stats: _,
        filter_metadata: _,
    } = fault;
    ignored!(notes, "faults at one time are not counted"; max_active_faults);
    ignored!(notes, "bodies are not slowed down"; response_rate_limit);
    Ok(Fault {
        delay: delay.as_ref().map(|d| notes.within("delay", |n| self::delay(d, n))).transpose()?,
        abort: abort.as_ref().map(|a| notes.within("abort", |n| self::abort(a, n))).transpose()?,
        upstream_cluster: upstream_cluster.clone(),
        headers: notes.list("headers", headers, matcher::header)?,
        downstream_nodes: downstream_nodes.clone(),
    })
}

fn delay(d: &common::FaultDelay, notes: &mut Notes) -> Result<FaultDelay, Invalid> {
    use common::fault_delay::FaultDelaySecifier as S;
    let common::FaultDelay { percentage, fault_delay_secifier } = d;
    let fixed = match fault_delay_secifier {
        None => return Err(notes.invalid("", "has no delay: fixed_delay or header_delay")),
        Some(S::FixedDelay(d)) => match millis(&Some(*d), "fixed_delay", notes)? {
            Some(0) | None => return Err(notes.invalid("fixed_delay", "must be above 0")),
            Some(ms) => Some(ms),
        },
        Some(S::HeaderDelay(_)) => None,
    };
    Ok(FaultDelay { fixed, percentage: share(percentage, notes)? })
}

fn abort(a: &pb::FaultAbort, notes: &mut Notes) -> Result<FaultAbort, Invalid> {
    use pb::fault_abort::ErrorType as E;
    let pb::FaultAbort { percentage, response_body, error_type } = a;
    let error = match error_type {
        None => return Err(notes.invalid("", "has no error: http_status, grpc_status or header_abort")),
        Some(E::HttpStatus(status @ 200..=599)) => FaultError::Http(*status as u16),
        Some(E::HttpStatus(status)) => {
            return Err(notes.invalid("http_status", format!("{status} is not within 200 to 599")))
        }
        Some(E::GrpcStatus(status)) => FaultError::Grpc(*status),
        Some(E::HeaderAbort(_)) => FaultError::Header,
    };
    let body = if response_body.is_empty() { "fault filter abort" } else { response_body };
    Ok(FaultAbort { error, percentage: share(percentage, notes)?, body: body.to_owned() })
}

/// Of nothing, when it is not set.
fn share(percentage: &Option<FractionalPercent>, notes: &Notes) -> Result<Fraction, Invalid> {
    match percentage {
        None => Ok(Fraction::default()),
        Some(p) => matcher::fractional_percent(p, "percentage", notes),
    }
}
