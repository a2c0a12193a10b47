//! Load balancing policies.

use super::value::{at_least, bool_or, enumeration, millis, type_name, unpack};
use super::{hash_policy, subset, Invalid, Notes};
use amesh_model::cluster::{HashFunction, Hashing, LbPolicy, SlowStart};
use amesh_model::subset::Subsets;
use envoy_types::pb::envoy::config::{cluster::v3 as pb, core::v3 as core};
use envoy_types::pb::envoy::extensions::load_balancing_policies as ext;
use envoy_types::pb::google::protobuf::{Any, UInt32Value, UInt64Value};
use pb::cluster::LbConfig;

/// How a cluster picks.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Policy {
    pub policy: LbPolicy,
    pub locality_weighted: bool,
    pub fail_traffic_on_panic: bool,
    pub hashing: Hashing,
    pub slow_start: Option<SlowStart>,
    pub subsets: Option<Subsets>,
}

/// The largest ring, and its default.
const RING_SIZE: u64 = 8 << 20;
/// The largest Maglev table.
const TABLE_SIZE: u64 = 5_000_011;
/// Without a local cluster Envoy does not look at zones either.
pub(super) const ZONES: &str = "there is no local cluster to compare with: endpoints of all zones are alike";

pub(super) fn policy(c: &pb::Cluster, refuse: &mut Option<String>, notes: &mut Notes) -> Result<Policy, Invalid> {
    use pb::cluster::LbPolicy as P;
    if let Some(p) = &c.load_balancing_policy {
        return notes.within("load_balancing_policy", |n| extension(p, 0, n));
    }
    let policy = match enumeration::<P>(c.lb_policy, "lb_policy", notes)? {
        P::RoundRobin => LbPolicy::RoundRobin,
        P::LeastRequest => LbPolicy::LEAST_REQUEST,
        P::Random => LbPolicy::Random,
        P::RingHash => {
            let config = match &c.lb_config {
                Some(LbConfig::RingHashLbConfig(r)) => *r,
                _ => pb::cluster::RingHashLbConfig::default(),
            };
            notes.within("ring_hash_lb_config", |n| legacy_ring(&config, n))?
        }
        P::Maglev => {
            let size = match &c.lb_config {
                Some(LbConfig::MaglevLbConfig(m)) => m.table_size,
                _ => None,
            };
            notes.within("maglev_lb_config", |n| maglev(&size, n))?
        }
        P::ClusterProvided => LbPolicy::ClusterProvided,
        P::LoadBalancingPolicyConfig => {
            return Err(notes.invalid("load_balancing_policy", "is not set, and lb_policy says that it is"));
        }
    };
    let mut slow_start = None;
    let policy = match (policy, &c.lb_config) {
        (LbPolicy::LeastRequest { .. }, Some(LbConfig::LeastRequestLbConfig(l))) => {
            notes.within("least_request_lb_config", |notes| {
                let pb::cluster::LeastRequestLbConfig { choice_count, active_request_bias, slow_start_config } = l;
                slow_start = legacy_slow_start(slow_start_config, notes)?;
                Ok(LbPolicy::LeastRequest {
                    choice_count: at_least(choice_count, 2, 2, "choice_count", notes)?,
                    full_scan: false,
                    active_request_bias: bias(active_request_bias),
                })
            })?
        }
        (p @ LbPolicy::RoundRobin, Some(LbConfig::RoundRobinLbConfig(r))) => {
            slow_start = notes.within("round_robin_lb_config", |n| legacy_slow_start(&r.slow_start_config, n))?;
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
    let hashing = match c.common_lb_config.as_ref().and_then(|l| l.consistent_hashing_lb_config.as_ref()) {
        None => Hashing::default(),
        Some(h) => notes.within("common_lb_config", |n| {
            n.within("consistent_hashing_lb_config", |n| {
                let pb::cluster::common_lb_config::ConsistentHashingLbConfig {
                    use_hostname_for_hashing,
                    hash_balance_factor,
                } = h;
                let balance_factor = balance_factor(hash_balance_factor, n)?;
                let use_hostname_for_hashing = *use_hostname_for_hashing;
                let by_dns = c.cluster_discovery_type
                    == Some(pb::cluster::ClusterDiscoveryType::Type(pb::cluster::DiscoveryType::StrictDns.into()));
                if use_hostname_for_hashing && !by_dns {
                    return Err(n.invalid("use_hostname_for_hashing", "needs a cluster of type STRICT_DNS"));
                }
                Ok(Hashing { use_hostname_for_hashing, balance_factor, policy: Vec::new() })
            })
        })?,
    };
    let subsets = c.lb_subset_config.as_ref().map(|s| notes.within("lb_subset_config", |n| legacy_subsets(s, n)));
    Ok(Policy {
        policy,
        locality_weighted: false,
        fail_traffic_on_panic: false,
        hashing,
        slow_start,
        subsets: subsets.transpose()?.flatten(),
    })
}

/// The newer form of the same fields.
fn legacy_subsets(s: &pb::cluster::LbSubsetConfig, notes: &mut Notes) -> Result<Option<Subsets>, Invalid> {
    let pb::cluster::LbSubsetConfig {
        fallback_policy,
        default_subset,
        subset_selectors,
        locality_weight_aware,
        scale_locality_weight,
        panic_mode_any,
        list_as_any,
        metadata_fallback_policy,
    } = s.clone();
    let selector = |s: pb::cluster::lb_subset_config::LbSubsetSelector| ext::subset::v3::subset::LbSubsetSelector {
        keys: s.keys,
        single_host_per_subset: s.single_host_per_subset,
        fallback_policy: s.fallback_policy,
        fallback_keys_subset: s.fallback_keys_subset,
    };
    let newer = ext::subset::v3::Subset {
        fallback_policy,
        default_subset,
        subset_selectors: subset_selectors.into_iter().map(selector).collect(),
        allow_redundant_keys: false,
        locality_weight_aware,
        scale_locality_weight,
        panic_mode_any,
        list_as_any,
        metadata_fallback_policy,
        subset_lb_policy: None,
    };
    subset::subsets(&newer, notes)
}

fn legacy_ring(r: &pb::cluster::RingHashLbConfig, notes: &mut Notes) -> Result<LbPolicy, Invalid> {
    use pb::cluster::ring_hash_lb_config::HashFunction as F;
    let pb::cluster::RingHashLbConfig { minimum_ring_size, hash_function, maximum_ring_size } = r;
    let function = match enumeration::<F>(*hash_function, "hash_function", notes)? {
        F::XxHash => HashFunction::XxHash,
        F::MurmurHash2 => HashFunction::MurmurHash2,
    };
    ring(minimum_ring_size, maximum_ring_size, function, notes)
}

fn ring(
    minimum: &Option<UInt64Value>,
    maximum: &Option<UInt64Value>,
    function: HashFunction,
    notes: &Notes,
) -> Result<LbPolicy, Invalid> {
    let size = |v: &Option<UInt64Value>, default, field| match v.as_ref().map_or(default, |v| v.value) {
        n if n > RING_SIZE => Err(notes.invalid(field, format!("{n} is above {RING_SIZE}"))),
        n => Ok(n),
    };
    let minimum_ring_size = size(minimum, 1024, "minimum_ring_size")?;
    let maximum_ring_size = size(maximum, RING_SIZE, "maximum_ring_size")?;
    if minimum_ring_size > maximum_ring_size {
        let reason = format!("{minimum_ring_size} is above maximum_ring_size, {maximum_ring_size}");
        return Err(notes.invalid("minimum_ring_size", reason));
    }
    Ok(LbPolicy::RingHash { minimum_ring_size, maximum_ring_size, function })
}

fn maglev(size: &Option<UInt64Value>, notes: &Notes) -> Result<LbPolicy, Invalid> {
    let table_size = size.as_ref().map_or(65_537, |s| s.value);
    let is_prime = |n: u64| n > 1 && (2..).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d));
    if table_size > TABLE_SIZE || !is_prime(table_size) {
        let reason = format!("{table_size} is not a prime number up to {TABLE_SIZE}");
        return Err(notes.invalid("table_size", reason));
    }
    Ok(LbPolicy::Maglev { table_size })
}

fn balance_factor(f: &Option<UInt32Value>, notes: &Notes) -> Result<u32, Invalid> {
    match f.as_ref().map(|f| f.value) {
        None => Ok(0),
        Some(n @ ..100) => Err(notes.invalid("hash_balance_factor", format!("{n} is below 100"))),
        Some(n) => Ok(n),
    }
}

/// How the policies of the newer form hash.
fn hashing(c: &ext::common::v3::ConsistentHashingLbConfig, notes: &mut Notes) -> Result<Hashing, Invalid> {
    notes.within("consistent_hashing_lb_config", |n| {
        let ext::common::v3::ConsistentHashingLbConfig { use_hostname_for_hashing, hash_balance_factor, hash_policy } =
            c;
        Ok(Hashing {
            use_hostname_for_hashing: *use_hostname_for_hashing,
            balance_factor: balance_factor(hash_balance_factor, n)?,
            policy: hash_policy::hash_policy(hash_policy, "hash_policy", n)?,
        })
    })
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
    // Without reports of load it is what it begins with in Envoy: round robin.
    let reported = |any: &Any| type_name(any).ends_with(".ClientSideWeightedRoundRobin");
    let by_report = list.policies.iter().filter_map(|p| p.typed_extension_config.as_ref()?.typed_config.as_ref());
    if by_report.into_iter().any(reported) {
        notes.ignored("policies", "endpoints do not report their load: it is round robin");
        return Ok(Policy {
            policy: LbPolicy::RoundRobin,
            locality_weighted: false,
            fail_traffic_on_panic: false,
            hashing: Hashing::default(),
            slow_start: None,
            subsets: None,
        });
    }
    let kinds: Vec<_> =
        list.policies.iter().filter_map(|p| p.typed_extension_config.as_ref()).map(|t| &t.name).collect();
    Err(notes.invalid("policies", format!("none of {kinds:?} is known")))
}

fn one(any: &Any, depth: u32, notes: &mut Notes) -> Result<Option<Policy>, Invalid> {
    let kind = type_name(any);
    let Some(name) = kind.strip_prefix("envoy.extensions.load_balancing_policies.") else { return Ok(None) };
    let mut weighted = false;
    let mut fails = false;
    let mut hashes = Hashing::default();
    let mut slow_start = None;
    let policy = match name {
        "round_robin.v3.RoundRobin" => {
            let ext::round_robin::v3::RoundRobin { slow_start_config, locality_lb_config } = unpack(any, "", notes)?;
            slow_start = self::slow_start(&slow_start_config, notes)?;
            (weighted, fails) = locality(&locality_lb_config, notes);
            LbPolicy::RoundRobin
        }
        "least_request.v3.LeastRequest" => {
            let l: ext::least_request::v3::LeastRequest = unpack(any, "", notes)?;
            (weighted, fails) = locality(&l.locality_lb_config, notes);
            slow_start = self::slow_start(&l.slow_start_config, notes)?;
            least_request(&l, notes)?
        }
        "random.v3.Random" => {
            let ext::random::v3::Random { locality_lb_config } = unpack(any, "", notes)?;
            (weighted, fails) = locality(&locality_lb_config, notes);
            LbPolicy::Random
        }
        "ring_hash.v3.RingHash" => {
            use ext::ring_hash::v3::ring_hash::HashFunction as F;
            let ext::ring_hash::v3::RingHash {
                hash_function,
                minimum_ring_size,
                maximum_ring_size,
                use_hostname_for_hashing,
                hash_balance_factor,
                consistent_hashing_lb_config,
                locality_weighted_lb_config,
            } = unpack(any, "", notes)?;
            weighted = locality_weighted_lb_config.is_some();
            hashes = match consistent_hashing_lb_config {
                Some(c) => hashing(&c, notes)?,
                None => Hashing {
                    use_hostname_for_hashing,
                    balance_factor: balance_factor(&hash_balance_factor, notes)?,
                    policy: Vec::new(),
                },
            };
            let function = match enumeration::<F>(hash_function, "hash_function", notes)? {
                F::DefaultHash | F::XxHash => HashFunction::XxHash,
                F::MurmurHash2 => HashFunction::MurmurHash2,
            };
            ring(&minimum_ring_size, &maximum_ring_size, function, notes)?
        }
        "maglev.v3.Maglev" => {
            let ext::maglev::v3::Maglev { table_size, consistent_hashing_lb_config, locality_weighted_lb_config } =
                unpack(any, "", notes)?;
            weighted = locality_weighted_lb_config.is_some();
            hashes = consistent_hashing_lb_config.map(|c| hashing(&c, notes)).transpose()?.unwrap_or_default();
            maglev(&table_size, notes)?
        }
        "cluster_provided.v3.ClusterProvided" => LbPolicy::ClusterProvided,
        "subset.v3.Subset" => {
            let s: ext::subset::v3::Subset = unpack(any, "", notes)?;
            let subsets = subset::subsets(&s, notes)?;
            let Some(inner) = s.subset_lb_policy else {
                return Err(notes.invalid("subset_lb_policy", "is not set"));
            };
            let inner = notes.within("subset_lb_policy", |n| extension(&inner, depth + 1, n))?;
            return Ok(Some(Policy { subsets, ..inner }));
        }
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
    Ok(Some(Policy {
        policy,
        locality_weighted: weighted,
        fail_traffic_on_panic: fails,
        hashing: hashes,
        slow_start,
        subsets: None,
    }))
}

fn least_request(l: &ext::least_request::v3::LeastRequest, notes: &mut Notes) -> Result<LbPolicy, Invalid> {
    use ext::least_request::v3::least_request::SelectionMethod as S;
    let ext::least_request::v3::LeastRequest {
        choice_count,
        active_request_bias,
        slow_start_config: _,
        locality_lb_config: _,
        enable_full_scan,
        selection_method,
    } = l;
    let method = enumeration::<S>(*selection_method, "selection_method", notes)?;
    Ok(LbPolicy::LeastRequest {
        choice_count: at_least(choice_count, 2, 2, "choice_count", notes)?,
        full_scan: bool_or(enable_full_scan, false) || method == S::FullScan,
        active_request_bias: bias(active_request_bias),
    })
}

/// There is no runtime here that could say otherwise, so the default is what counts; nonsense is 1, as in Envoy.
fn bias(bias: &Option<core::RuntimeDouble>) -> f64 {
    bias.as_ref().map(|b| b.default_value).filter(|b| *b >= 0.0).unwrap_or(1.0)
}

fn legacy_slow_start(
    s: &Option<pb::cluster::SlowStartConfig>,
    notes: &mut Notes,
) -> Result<Option<SlowStart>, Invalid> {
    let config = s.as_ref().map(|s| {
        let pb::cluster::SlowStartConfig { slow_start_window, aggression, min_weight_percent } = s.clone();
        ext::common::v3::SlowStartConfig { slow_start_window, aggression, min_weight_percent }
    });
    slow_start(&config, notes)
}

fn slow_start(s: &Option<ext::common::v3::SlowStartConfig>, notes: &mut Notes) -> Result<Option<SlowStart>, Invalid> {
    let Some(s) = s else { return Ok(None) };
    notes.within("slow_start_config", |n| {
        let ext::common::v3::SlowStartConfig { slow_start_window, aggression, min_weight_percent } = s;
        let window = millis(slow_start_window, "slow_start_window", n)?.unwrap_or(0);
        let least = match min_weight_percent.as_ref().map_or(10.0, |p| p.value) {
            p if (0.0..=100.0).contains(&p) => p / 100.0,
            p => return Err(n.invalid("min_weight_percent", format!("{p} is not within 0 to 100"))),
        };
        let aggression = aggression.as_ref().map(|a| a.default_value).filter(|a| *a > 0.0).unwrap_or(1.0);
        Ok((window > 0).then_some(SlowStart { window, aggression, least }))
    })
}

/// Whether localities have weights, and whether panic fails requests.
fn locality(l: &Option<ext::common::v3::LocalityLbConfig>, notes: &mut Notes) -> (bool, bool) {
    use ext::common::v3::locality_lb_config::LocalityConfigSpecifier as S;
    match l.as_ref().and_then(|l| l.locality_config_specifier.as_ref()) {
        None => (false, false),
        Some(S::LocalityWeightedLbConfig(_)) => (true, false),
        Some(S::ZoneAwareLbConfig(z)) => {
            notes.ignored("locality_lb_config.zone_aware_lb_config", ZONES);
            (false, z.fail_traffic_on_panic)
        }
    }
}
