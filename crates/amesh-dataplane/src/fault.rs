//! Which requests wait, and which are answered with an error (`FaultFilter`).

use crate::regex::RegexCache;
use crate::route::{all_headers_match, RequestHead};
use amesh_model::filter::{ArchivedFault, ArchivedFaultAbort, ArchivedFaultError};
use amesh_model::matcher::ArchivedFraction;

/// How a request is aborted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abort<'a> {
    /// The status of HTTP; 200 where there is one of gRPC.
    pub status: u16,
    /// The status of gRPC.
    pub grpc_status: Option<u32>,
    /// The body, or the message of gRPC.
    pub body: &'a str,
}

/// Whether the faults are for this request, which goes to `cluster` (`None`: to none).
pub fn applies(
    fault: &ArchivedFault,
    cluster: Option<&str>,
    head: &impl RequestHead,
    regexes: &mut RegexCache,
) -> bool {
    let nodes = &fault.downstream_nodes;
    let wanted = fault.upstream_cluster.as_str();
    (wanted.is_empty() || cluster == Some(wanted))
        && (nodes.is_empty()
            || head
                .first_value("x-envoy-downstream-service-node")
                .is_some_and(|node| nodes.iter().any(|n| n.as_bytes() == node)))
        && all_headers_match(&fault.headers, head, regexes)
}

/// How long a request waits, in ms; 0: not at all.
pub fn delay(fault: &ArchivedFault, head: &impl RequestHead, random: u64) -> u64 {
    let Some(delay) = fault.delay.as_ref() else { return 0 };
    let (ms, limit) = match delay.fixed.as_ref() {
        Some(ms) => (ms.to_native(), None),
        None => (
            number(head, "x-envoy-fault-delay-request").unwrap_or(0),
            number(head, "x-envoy-fault-delay-request-percentage"),
        ),
    };
    if draws(&delay.percentage, limit, random) {
        ms
    } else {
        0
    }
}

/// Whether, and how, a request is aborted.
pub fn abort<'a>(fault: &'a ArchivedFault, head: &impl RequestHead, random: u64) -> Option<Abort<'a>> {
    let abort: &ArchivedFaultAbort = fault.abort.as_ref()?;
    let limit = || number(head, "x-envoy-fault-abort-request-percentage");
    let (status, grpc_status, limit) = match &abort.error {
        ArchivedFaultError::Http(status) => (status.to_native(), None, None),
        ArchivedFaultError::Grpc(status) => (200, Some(status.to_native()), None),
        ArchivedFaultError::Header => match number(head, "x-envoy-fault-abort-request") {
            Some(status @ 200..=599) => (status as u16, None, limit()),
            _ => {
                let status = number(head, "x-envoy-fault-abort-grpc-request")?;
                (200, Some(u32::try_from(status).ok()?), limit())
            }
        },
    };
    draws(&abort.percentage, limit, random).then_some(Abort { status, grpc_status, body: &abort.body })
}

/// Whether a request is among the share; a header may make it smaller.
fn draws(share: &ArchivedFraction, limit: Option<u64>, random: u64) -> bool {
    let numerator = u64::from(share.numerator.to_native());
    let numerator = limit.map_or(numerator, |limit| limit.min(numerator));
    random % u64::from(share.denominator.to_native().max(1)) < numerator
}

fn number(head: &impl RequestHead, name: &str) -> Option<u64> {
    std::str::from_utf8(head.first_value(name)?).ok()?.trim().parse().ok()
}
