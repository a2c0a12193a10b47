//! Load balancing policies.

use super::notes::{ignored, Set};
use super::value::{at_least, enumeration, type_name, unpack};
use super::{Invalid, Notes};
use amesh_model::cluster::LbPolicy;
use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::extensions::load_balancing_policies as ext;
use envoy_types::pb::google::protobuf::Any;
use pb::cluster::LbConfig;

/// How a cluster picks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Policy {
    pub policy: LbPolicy,
    pub locality_weighted: bool,
}

const NO_HASH: &str = "endpoints are not picked by a hash: it is picked at random";
const NO_SLOW_START: &str = "a new endpoint gets its whole share at once";
const ZONES: &str = "endpoints of all zones are alike";

pub(super) fn policy(c: &pb::Cluster, refuse: &mut Option<String>, notes: &mut Notes) -> Result<Policy, Invalid> {
    use pb::cluster::LbPolicy as P;
    if let Some(p) = &c.load_balancing_policy {
        return notes.within("load_balancing_policy", |n| extension(p, 0, n));
    }
    let random = |notes: &mut Notes| {
        notes.ignored("lb_policy", NO_HASH);
        LbPolicy::Random
    };
    let policy = match enumeration::<P>(c.lb_policy, "lb_policy", notes)? {
        P::RoundRobin => LbPolicy::RoundRobin,
        P::LeastRequest => LbPolicy::LeastRequest { choice_count: 2 },
        P::Random => LbPolicy::Random,
        P::RingHash | P::Maglev => random(notes),
        P::ClusterProvided => LbPolicy::ClusterProvided,
        P::LoadBalancingPolicyConfig => {
            return Err(notes.invalid("load_balancing_policy", "is not set, and lb_policy says that it is"));
        }
    };
    let policy = match (policy, &c.lb_config) {
        (LbPolicy::LeastRequest { .. }, Some(LbConfig::LeastRequestLbConfig(l))) => notes
            .within("least_request_lb_config", |notes| {
                let pb::cluster::LeastRequestLbConfig { choice_count, active_request_bias, slow_start_config } = l;
                ignored!(notes, "the weight of an endpoint is divided by its active requests"; active_request_bias);
                ignored!(notes, NO_SLOW_START; slow_start_config);
                at_least(choice_count, 2, 2, "choice_count", notes)
            })
            .map(|choice_count| LbPolicy::LeastRequest { choice_count })?,
        (p, Some(LbConfig::RoundRobinLbConfig(r))) => {
            if r.slow_start_config.is_some() {
                notes.ignored("round_robin_lb_config.slow_start_config", NO_SLOW_START);
            }
            p
        }
        (p, Some(LbConfig::RingHashLbConfig(_))) => {
            notes.ignored("ring_hash_lb_config", NO_HASH);
            p
        }
        (p, Some(LbConfig::MaglevLbConfig(_))) => {
            notes.ignored("maglev_lb_config", NO_HASH);
            p
        }
        (p, Some(LbConfig::OriginalDstLbConfig(o))) => {
            if o.use_http_header || o.upstream_port_override.is_some() || o.metadata_key.is_some() {
                let why = "a destination that is not that of the connection is not supported";
                *refuse = Some(notes.refused("original_dst_lb_config", why));
            }
            p
        }
        (p, _) => p,
    };
    Ok(Policy { policy, locality_weighted: false })
}

/// The first policy of the list that is known.
fn extension(list: &pb::LoadBalancingPolicy, depth: u32, notes: &mut Notes) -> Result<Policy, Invalid> {
    if depth > 4 {
        return Err(notes.invalid("", "policies are nested too deep"));
    }
    for (i, p) in list.policies.iter().enumerate() {
        let Some(any) = p.typed_extension_config.as_ref().and_then(|t| t.typed_config.as_ref()) else {
            continue;
        };
        let known =
            notes.each("policies", i, |n| n.within("typed_extension_config.typed_config", |n| one(any, depth, n)))?;
        if let Some(policy) = known {
            return Ok(policy);
        }
    }
    let kinds: Vec<_> =
        list.policies.iter().filter_map(|p| p.typed_extension_config.as_ref()).map(|t| &t.name).collect();
    Err(notes.invalid("policies", format!("none of {kinds:?} is known")))
}

fn one(any: &Any, depth: u32, notes: &mut Notes) -> Result<Option<Policy>, Invalid> {
    let kind = type_name(any);
    let Some(name) = kind.strip_prefix("envoy.extensions.load_balancing_policies.") else { return Ok(None) };
    let mut weighted = false;
    let policy = match name {
        "round_robin.v3.RoundRobin" => {
            let ext::round_robin::v3::RoundRobin { slow_start_config, locality_lb_config } = unpack(any, "", notes)?;
            let slow_start_config = &slow_start_config;
            ignored!(notes, NO_SLOW_START; slow_start_config);
            weighted = locality(&locality_lb_config, notes);
            LbPolicy::RoundRobin
        }
        "least_request.v3.LeastRequest" => {
            let l: ext::least_request::v3::LeastRequest = unpack(any, "", notes)?;
            weighted = locality(&l.locality_lb_config, notes);
            least_request(&l, notes)?
        }
        "random.v3.Random" => {
            let ext::random::v3::Random { locality_lb_config } = unpack(any, "", notes)?;
            weighted = locality(&locality_lb_config, notes);
            LbPolicy::Random
        }
        "ring_hash.v3.RingHash" => {
            let r: ext::ring_hash::v3::RingHash = unpack(any, "", notes)?;
            weighted = r.locality_weighted_lb_config.is_some();
            notes.ignored("", NO_HASH);
            LbPolicy::Random
        }
        "maglev.v3.Maglev" => {
            let m: ext::maglev::v3::Maglev = unpack(any, "", notes)?;
            weighted = m.locality_weighted_lb_config.is_some();
            notes.ignored("", NO_HASH);
            LbPolicy::Random
        }
        "cluster_provided.v3.ClusterProvided" => LbPolicy::ClusterProvided,
        "wrr_locality.v3.WrrLocality" => {
            let w: ext::wrr_locality::v3::WrrLocality = unpack(any, "", notes)?;
            let Some(inner) = w.endpoint_picking_policy else {
                return Err(notes.invalid("endpoint_picking_policy", "is not set"));
            };
            let inner = notes.within("endpoint_picking_policy", |n| extension(&inner, depth + 1, n))?;
            return Ok(Some(Policy { locality_weighted: true, ..inner }));
        }
        _ => return Ok(None),
    };
    Ok(Some(Policy { policy, locality_weighted: weighted }))
}

fn least_request(l: &ext::least_request::v3::LeastRequest, notes: &mut Notes) -> Result<LbPolicy, Invalid> {
    let ext::least_request::v3::LeastRequest {
        choice_count,
        active_request_bias,
        slow_start_config,
        locality_lb_config: _,
        enable_full_scan,
        selection_method,
    } = l;
    ignored!(notes, "the weight of an endpoint is divided by its active requests"; active_request_bias);
    ignored!(notes, NO_SLOW_START; slow_start_config);
    ignored!(notes, "of some random endpoints one is picked"; enable_full_scan);
    if selection_method.is_set() {
        notes.ignored("selection_method", "of some random endpoints one is picked");
    }
    Ok(LbPolicy::LeastRequest { choice_count: at_least(choice_count, 2, 2, "choice_count", notes)? })
}

/// Whether localities have weights.
fn locality(l: &Option<ext::common::v3::LocalityLbConfig>, notes: &mut Notes) -> bool {
    use ext::common::v3::locality_lb_config::LocalityConfigSpecifier as S;
    match l.as_ref().and_then(|l| l.locality_config_specifier.as_ref()) {
        None => false,
        Some(S::LocalityWeightedLbConfig(_)) => true,
        Some(S::ZoneAwareLbConfig(_)) => {
            notes.ignored("locality_lb_config.zone_aware_lb_config", ZONES);
            false
        }
    }
}
