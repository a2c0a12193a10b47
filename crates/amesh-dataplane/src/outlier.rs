//! What a try counts for outlier detection, and who is ejected for failures in a row. What an interval adds up to is
//! judged by the thread.

use amesh_model::health::{ArchivedConsecutive, ArchivedOutlierDetection, Consecutive};
use amesh_model::vitals::{ClusterVitals, EjectionLimits, EndpointVitals, Origin, Run};

/// How a try ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A response with this status; of gRPC that which stands for its `grpc-status`.
    Status(u16),
    /// A TCP connection is there, which is all that can be said of it.
    Connected,
    /// There was no connection.
    ConnectFailure,
    /// The connection broke before there was a response.
    Reset,
    /// There was no connection, or no response, in time.
    Timeout {
        /// There was a connection.
        connected: bool,
    },
    /// It says nothing of the endpoint: the client went away, or it was never asked.
    Unknown,
}

impl Outcome {
    /// A `grpc-status`, as the status of HTTP that stands for it (`Grpc::Utility::grpcToHttpStatus`).
    pub fn grpc(status: u32) -> Outcome {
        Outcome::Status(match status {
            0 => 200,
            1 => 499,
            3 | 9 | 11 => 400,
            4 => 504,
            5 => 404,
            6 | 10 => 409,
            7 => 403,
            8 => 429,
            12 => 501,
            14 => 503,
            16 => 401,
            _ => 500,
        })
    }

    /// Whether it counts as failed in the statistics.
    pub fn failed(self) -> bool {
        match self {
            Outcome::Status(status) => status >= 500,
            Outcome::ConnectFailure | Outcome::Reset | Outcome::Timeout { .. } => true,
            Outcome::Connected | Outcome::Unknown => false,
        }
    }

    /// Whether there was a connection.
    pub fn connected(self) -> bool {
        match self {
            Outcome::Status(_) | Outcome::Connected | Outcome::Reset | Outcome::Timeout { connected: true } => true,
            Outcome::ConnectFailure | Outcome::Timeout { connected: false } | Outcome::Unknown => false,
        }
    }

    /// The status that it counts as where our side's failures are not split off (`resultToHttpCode`).
    fn status(self) -> Option<u16> {
        match self {
            Outcome::Status(status) => Some(status),
            Outcome::Connected => Some(200),
            Outcome::ConnectFailure | Outcome::Reset => Some(503),
            Outcome::Timeout { .. } => Some(504),
            Outcome::Unknown => None,
        }
    }
}

/// What of a cluster's outlier detection a try needs, apart from the zone: a try lasts longer than a pin.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    five_xx: Consecutive,
    gateway: Consecutive,
    local: Consecutive,
    split: bool,
    limits: EjectionLimits,
}

impl From<&ArchivedOutlierDetection> for Rules {
    fn from(o: &ArchivedOutlierDetection) -> Rules {
        let plain = |c: &ArchivedConsecutive| Consecutive {
            threshold: c.threshold.to_native(),
            enforcing: c.enforcing.to_native(),
        };
        Rules {
            five_xx: plain(&o.consecutive_5xx),
            gateway: plain(&o.consecutive_gateway_failure),
            local: plain(&o.consecutive_local_origin_failure),
            split: o.split_external_local_origin_errors,
            limits: EjectionLimits::from(o),
        }
    }
}

/// Counts a try, and ejects its endpoint where that makes too many failures in a row (`DetectorHostMonitorImpl`).
/// `now` is the clock of ejections, ms that wrap. Whether it was ejected.
pub fn record(
    rules: &Rules,
    endpoint: EndpointVitals<'_>,
    cluster: ClusterVitals<'_>,
    outcome: Outcome,
    now: u32,
    random: &mut dyn FnMut() -> u64,
) -> bool {
    let mut eject = |run: Run, limit: Consecutive| {
        if endpoint.failed(run) != limit.threshold {
            return false;
        }
        let out = random() % 100 < u64::from(limit.enforcing) && endpoint.eject(cluster, &rules.limits, now);
        // The next failures in a row are another row.
        endpoint.reset(run);
        out
    };
    let mut out = false;
    let mut external = None;
    if rules.split {
        if outcome.connected() {
            endpoint.count(Origin::Local, true);
            endpoint.reset(Run::Local);
        }
        match outcome {
            Outcome::Status(status) => external = Some(status),
            Outcome::ConnectFailure | Outcome::Reset | Outcome::Timeout { .. } => {
                endpoint.count(Origin::Local, false);
                out |= eject(Run::Local, rules.local);
            }
            Outcome::Connected | Outcome::Unknown => {}
        }
    } else {
        external = outcome.status();
    }
    let Some(status) = external else { return out };
    endpoint.count(Origin::External, status < 500);
    if status < 500 {
        endpoint.reset(Run::FiveXx);
        endpoint.reset(Run::Gateway);
        return out;
    }
    if matches!(status, 502..=504) {
        out |= eject(Run::Gateway, rules.gateway);
    } else {
        endpoint.reset(Run::Gateway);
    }
    out | eject(Run::FiveXx, rules.five_xx)
}
