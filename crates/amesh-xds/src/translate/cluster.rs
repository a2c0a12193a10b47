//! `config.cluster.v3.Cluster` → [`Cluster`], and where its endpoints come from.

use super::endpoint::{dns_target_localities, endpoint_set, DnsLocality};
use super::hcm::INITIAL_FETCH_TIMEOUT;
use super::notes::ignored;
use super::value::{enumeration, millis, percent, positive_millis, type_name, unpack};
use super::{connection, filter, health, lb, socket, Invalid, Notes, Sockets};
use amesh_model::cluster::{Cluster, Discovery, LbPolicy};
use amesh_model::endpoint::EndpointSet;
use amesh_model::health::HighPriority;
use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::extensions::clusters::dns::v3 as dns;
use envoy_types::pb::google::protobuf::Duration;
use std::sync::Arc;

/// A cluster, where its endpoints come from, and which of them must not be spoken to.
#[derive(Clone, Debug)]
pub struct TranslatedCluster {
    /// The cluster.
    pub cluster: Cluster,
    /// Where its endpoints come from.
    pub source: Source,
    /// Its transport sockets.
    pub sockets: Arc<Sockets>,
}

/// Where the endpoints of a cluster come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// It has none: `ORIGINAL_DST`.
    None,
    /// They stand in the cluster.
    Inline(EndpointSet),
    /// A `ClusterLoadAssignment` of this name.
    Eds {
        /// `eds_cluster_config.service_name`, or the name of the cluster.
        service: String,
        /// How long to wait for it, in ms (`initial_fetch_timeout`); 0: for ever.
        wait: u64,
    },
    /// Names that must be resolved.
    Dns(Arc<DnsCluster>),
}

/// Which addresses of a name are taken (`DnsLookupFamily`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DnsFamily {
    /// `AUTO`: IPv6, and IPv4 when there is none.
    Auto,
    /// `V4_ONLY`.
    V4Only,
    /// `V6_ONLY`.
    V6Only,
    /// `V4_PREFERRED`: IPv4, and IPv6 when there is none.
    V4Preferred,
    /// `ALL`.
    All,
}

/// A cluster whose endpoints are names (`STRICT_DNS`, `LOGICAL_DNS`).
#[derive(Clone, Debug, PartialEq)]
pub struct DnsCluster {
    /// Its places.
    pub(super) localities: Vec<DnsLocality>,
    /// Overprovisioning factor in per cent.
    pub(super) overprovisioning_factor: u32,
    /// Only the first address of a name is taken (`LOGICAL_DNS`).
    pub first_only: bool,
    /// Which addresses are taken.
    pub family: DnsFamily,
    /// When names are resolved again.
    pub refresh: DnsRefresh,
}

/// When a name is resolved again. All times are in ms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DnsRefresh {
    /// After an answer (`dns_refresh_rate`); 5 s by default.
    pub rate: u64,
    /// The time to live of the answer goes before that.
    pub respect_ttl: bool,
    /// But it is no shorter than this (`dns_min_refresh_rate`).
    pub least: u64,
    /// A random time below this is added (`dns_jitter`).
    pub jitter: u64,
    /// After failures in a row: a random time below the first, then below its double, up to the second
    /// (`dns_failure_refresh_rate`); `None`: as after an answer.
    pub failure: Option<(u64, u64)>,
}

impl DnsRefresh {
    /// What suits two clusters that want one name: the shorter of each.
    #[must_use]
    pub fn and(self, other: DnsRefresh) -> DnsRefresh {
        DnsRefresh {
            rate: self.rate.min(other.rate),
            respect_ttl: self.respect_ttl || other.respect_ttl,
            least: self.least.min(other.least),
            jitter: self.jitter.min(other.jitter),
            failure: self.failure.into_iter().chain(other.failure).min(),
        }
    }
}

/// A cluster.
///
/// # Errors
/// [`Invalid`] names the field that makes no sense or is refused by name.
pub fn cluster(c: &pb::Cluster, notes: &mut Notes) -> Result<TranslatedCluster, Invalid> {
    let pb::Cluster {
        transport_socket_matches,
        transport_socket_matcher,
        name,
        alt_stat_name,
        stats_matcher: _,
        eds_cluster_config,
        connect_timeout,
        per_connection_buffer_limit_bytes,
        per_connection_buffer_high_watermark_timeout,
        lb_policy: _,
        load_assignment,
        health_checks,
        max_requests_per_connection: _,
        circuit_breakers,
        upstream_http_protocol_options,
        common_http_protocol_options: _,
        http_protocol_options,
        http2_protocol_options: _,
        typed_extension_protocol_options,
        dns_refresh_rate: _,
        dns_jitter: _,
        dns_failure_refresh_rate: _,
        respect_dns_ttl: _,
        dns_lookup_family: _,
        dns_resolvers,
        use_tcp_for_dns_lookups,
        dns_resolution_config,
        typed_dns_resolver_config,
        wait_for_warm_on_init,
        outlier_detection,
        cleanup_interval,
        upstream_bind_config,
        lb_subset_config: _,
        common_lb_config,
        transport_socket,
        metadata: _,
        protocol_selection: _,
        upstream_connection_options,
        close_connections_on_host_health_failure,
        ignore_health_on_host_removal,
        filters,
        load_balancing_policy: _,
        lrs_server,
        lrs_report_endpoint_metrics: _,
        track_timeout_budgets: _,
        upstream_config,
        track_cluster_stats: _,
        preconnect_policy,
        connection_pool_per_downstream_connection,
        queuing_policies,
        cluster_discovery_type,
        lb_config: _,
    } = c;
    if name.is_empty() {
        return Err(notes.invalid("name", "is empty"));
    }
    ignored!(notes, "nginx's own buffers hold";
        per_connection_buffer_limit_bytes, per_connection_buffer_high_watermark_timeout);
    ignored!(notes, "an endpoint is gone when the control plane says so"; ignore_health_on_host_removal);
    ignored!(notes, "requests under way are not cut off"; close_connections_on_host_health_failure);
    ignored!(notes, "requests do not queue for a connection"; queuing_policies);
    ignored!(notes, "TLS is not spoken to endpoints"; upstream_http_protocol_options);
    ignored!(notes, "nginx's own limits hold"; http_protocol_options);
    ignored!(notes, "the system's resolver is asked";
        dns_resolvers, use_tcp_for_dns_lookups, dns_resolution_config,
        typed_dns_resolver_config);
    ignored!(notes, "connections are kept as the cluster's idle time-out says";
        cleanup_interval, preconnect_policy, connection_pool_per_downstream_connection);
    ignored!(notes, "load is not reported"; lrs_server);
    ignored!(notes, "every cluster waits for its endpoints"; wait_for_warm_on_init);

    let mut refuse = None;
    let policy = lb::policy(c, &mut refuse, notes)?;
    let (discovery, dns) = discovery(c, cluster_discovery_type, policy.policy, &mut refuse, notes)?;
    if upstream_config.is_some() {
        refuse = Some(notes.refused("upstream_config", "upstreams that are extensions are not supported"));
    }
    for (i, f) in filters.iter().enumerate() {
        let why = notes.each("filters", i, |n| match &f.typed_config {
            Some(any) => filter::left_out(&f.name, any, false, "", n),
            None => Ok(Some(n.refused("", format!("\"{}\" is not supported", f.name)))),
        })?;
        refuse = refuse.or(why);
    }
    let mut proxy_protocol = None;
    let default = match transport_socket {
        None => None,
        Some(s) => match notes.within("transport_socket", |n| socket::transport(s, n))? {
            Ok(proxied) => {
                proxy_protocol = proxied.map(Box::new);
                None
            }
            Err(reason) => Some(notes.refused("transport_socket", reason)),
        },
    };
    let default = match transport_socket_matcher {
        None => default,
        Some(_) => Some(notes.refused("transport_socket_matcher", "is not supported")),
    };
    for (i, m) in transport_socket_matches.iter().enumerate() {
        if let Some(why) = m.transport_socket.as_ref().and_then(socket::refusal) {
            notes.each("transport_socket_matches", i, |n| n.refused("transport_socket", why));
        }
    }
    let matches = if transport_socket_matcher.is_some() { &[][..] } else { transport_socket_matches };
    let sockets = Sockets::new(matches, default);
    if discovery == Discovery::OriginalDst {
        // Its endpoints are made on the way and have no metadata.
        refuse = refuse.or_else(|| sockets.refusal(None, None).map(str::to_owned));
    }
    let source = source(c, discovery, dns, &sockets, eds_cluster_config, load_assignment, notes)?;
    let http = connection::http_options(c, typed_extension_protocol_options, &mut refuse, notes)?;
    let panic = common_lb_config.as_ref().map(|l| notes.within("common_lb_config", |n| common_lb(l, n))).transpose()?;
    let (healthy_panic_threshold, weighted, fails) = panic.unwrap_or((50, false, false));
    let (breakers, high) = health::circuit_breakers(circuit_breakers, notes)?;
    let cluster = Cluster {
        name: name.clone(),
        alt_stat_name: alt_stat_name.clone(),
        discovery,
        lb_policy: policy.policy,
        connect_timeout: positive_millis(connect_timeout, "connect_timeout", notes)?.unwrap_or(5000),
        protocol: http.protocol,
        healthy_panic_threshold,
        fail_traffic_on_panic: if c.load_balancing_policy.is_some() { policy.fail_traffic_on_panic } else { fails },
        // A policy in the newer form brings its own.
        locality_weighted: if c.load_balancing_policy.is_some() { policy.locality_weighted } else { weighted },
        subsets: policy.subsets,
        slow_start: policy.slow_start,
        hashing: policy.hashing,
        idle_timeout: http.kept.idle_timeout,
        max_requests_per_connection: http.kept.max_requests,
        max_connection_duration: http.kept.max_duration,
        max_connection_duration_jitter: http.kept.jitter,
        tcp_keepalive: upstream_connection_options
            .as_ref()
            .and_then(|o| notes.within("upstream_connection_options", |n| connection::keepalive(o, n))),
        bind: upstream_bind_config
            .as_ref()
            .map_or(Ok(Vec::new()), |b| notes.within("upstream_bind_config", |n| connection::bind(b, n)))?,
        proxy_protocol,
        health_check: health::health_check(health_checks, notes)?,
        outlier_detection: outlier_detection
            .as_ref()
            .map(|o| notes.within("outlier_detection", |n| health::outlier_detection(o, n)))
            .transpose()?,
        circuit_breakers: breakers,
        high_priority: high.map(|circuit_breakers| Box::new(HighPriority { circuit_breakers, cell: 0 })),
        refuse,
        cell: 0,
    };
    Ok(TranslatedCluster { cluster, source, sockets: Arc::new(sockets) })
}

fn discovery(
    c: &pb::Cluster,
    kind: &Option<pb::cluster::ClusterDiscoveryType>,
    policy: LbPolicy,
    refuse: &mut Option<String>,
    notes: &mut Notes,
) -> Result<(Discovery, Option<DnsCluster>), Invalid> {
    use pb::cluster::{ClusterDiscoveryType as K, DiscoveryType as T, DnsLookupFamily as F};
    let dns = |first_only, family, refresh| DnsCluster {
        localities: Vec::new(),
        overprovisioning_factor: 140,
        first_only,
        family,
        refresh,
    };
    let kind = match kind {
        None => T::Static,
        Some(K::Type(t)) => enumeration::<T>(*t, "type", notes)?,
        Some(K::ClusterType(t)) => {
            let Some(any) =
                t.typed_config.as_ref().filter(|a| type_name(a) == "envoy.extensions.clusters.dns.v3.DnsCluster")
            else {
                *refuse = Some(notes.refused("cluster_type", format!("\"{}\" is not supported", t.name)));
                return Ok((Discovery::Static, None));
            };
            let d: dns::DnsCluster = unpack(any, "cluster_type.typed_config", notes)?;
            return notes.within("cluster_type.typed_config", |n| dns_cluster(&d, dns, n));
        }
    };
    let provided = policy == LbPolicy::ClusterProvided;
    if kind == T::OriginalDst && !provided {
        return Err(notes.invalid("lb_policy", "a cluster of type ORIGINAL_DST needs lb_policy CLUSTER_PROVIDED"));
    }
    if kind != T::OriginalDst && provided {
        return Err(notes.invalid("lb_policy", "CLUSTER_PROVIDED goes with type ORIGINAL_DST alone"));
    }
    Ok(match kind {
        T::Static => (Discovery::Static, None),
        T::Eds => (Discovery::Eds, None),
        T::OriginalDst => (Discovery::OriginalDst, None),
        T::StrictDns | T::LogicalDns => {
            let family = match enumeration::<F>(c.dns_lookup_family, "dns_lookup_family", notes)? {
                F::Auto => DnsFamily::Auto,
                F::V4Only => DnsFamily::V4Only,
                F::V6Only => DnsFamily::V6Only,
                F::V4Preferred => DnsFamily::V4Preferred,
                F::All => DnsFamily::All,
            };
            let refresh = DnsRefresh {
                rate: positive_millis(&c.dns_refresh_rate, "dns_refresh_rate", notes)?.unwrap_or(5000),
                respect_ttl: c.respect_dns_ttl,
                least: 0,
                jitter: millis(&c.dns_jitter, "dns_jitter", notes)?.unwrap_or(0),
                failure: c
                    .dns_failure_refresh_rate
                    .as_ref()
                    .map(|r| failure_rate(&r.base_interval, &r.max_interval, notes))
                    .transpose()?,
            };
            let first_only = kind == T::LogicalDns;
            let discovery = if first_only { Discovery::LogicalDns } else { Discovery::StrictDns };
            (discovery, Some(dns(first_only, family, refresh)))
        }
    })
}

/// The extension that stands for `STRICT_DNS` and `LOGICAL_DNS` in newer configurations.
fn dns_cluster(
    d: &dns::DnsCluster,
    make: impl Fn(bool, DnsFamily, DnsRefresh) -> DnsCluster,
    notes: &mut Notes,
) -> Result<(Discovery, Option<DnsCluster>), Invalid> {
    use envoy_types::pb::envoy::extensions::clusters::common::dns::v3::DnsLookupFamily as F;
    let dns::DnsCluster {
        dns_refresh_rate,
        dns_failure_refresh_rate,
        respect_dns_ttl,
        dns_jitter,
        typed_dns_resolver_config,
        dns_lookup_family,
        all_addresses_in_single_endpoint,
        dns_min_refresh_rate,
    } = d;
    ignored!(notes, "the system's resolver is asked"; typed_dns_resolver_config);
    let family = match enumeration::<F>(*dns_lookup_family, "dns_lookup_family", notes)? {
        F::Unspecified | F::Auto => DnsFamily::Auto,
        F::V4Only => DnsFamily::V4Only,
        F::V6Only => DnsFamily::V6Only,
        F::V4Preferred => DnsFamily::V4Preferred,
        F::All => DnsFamily::All,
    };
    let refresh = DnsRefresh {
        rate: positive_millis(dns_refresh_rate, "dns_refresh_rate", notes)?.unwrap_or(5000),
        respect_ttl: *respect_dns_ttl,
        least: positive_millis(dns_min_refresh_rate, "dns_min_refresh_rate", notes)?.unwrap_or(0),
        jitter: millis(dns_jitter, "dns_jitter", notes)?.unwrap_or(0),
        failure: dns_failure_refresh_rate
            .as_ref()
            .map(|r| failure_rate(&r.base_interval, &r.max_interval, notes))
            .transpose()?,
    };
    let first = *all_addresses_in_single_endpoint;
    let discovery = if first { Discovery::LogicalDns } else { Discovery::StrictDns };
    Ok((discovery, Some(make(first, family, refresh))))
}

/// Base and longest interval after failures.
fn failure_rate(base: &Option<Duration>, longest: &Option<Duration>, notes: &mut Notes) -> Result<(u64, u64), Invalid> {
    notes.within("dns_failure_refresh_rate", |notes| {
        let Some(base) = positive_millis(base, "base_interval", notes)? else {
            return Err(notes.invalid("base_interval", "is not set"));
        };
        match positive_millis(longest, "max_interval", notes)?.unwrap_or(base.saturating_mul(10)) {
            max if max < base => Err(notes.invalid("max_interval", "is shorter than base_interval")),
            max => Ok((base, max)),
        }
    })
}

fn source(
    c: &pb::Cluster,
    discovery: Discovery,
    dns: Option<DnsCluster>,
    sockets: &Sockets,
    eds: &Option<pb::cluster::EdsClusterConfig>,
    load_assignment: &Option<envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment>,
    notes: &mut Notes,
) -> Result<Source, Invalid> {
    if discovery == Discovery::Eds {
        ignored!(notes, "the endpoints come by EDS"; load_assignment);
        let Some(config) = eds.as_ref().and_then(|e| e.eds_config.as_ref()) else {
            return Err(notes.invalid("eds_cluster_config.eds_config", "is not set: a cluster of type EDS needs it"));
        };
        let field = "eds_cluster_config.eds_config.initial_fetch_timeout";
        let wait = millis(&config.initial_fetch_timeout, field, notes)?.unwrap_or(INITIAL_FETCH_TIMEOUT);
        let service = eds.as_ref().map(|e| e.service_name.as_str()).filter(|s| !s.is_empty());
        return Ok(Source::Eds { service: service.unwrap_or(&c.name).to_owned(), wait });
    }
    if eds.is_some() {
        return Err(notes.invalid("eds_cluster_config", "is set, and the type is not EDS"));
    }
    match (discovery, load_assignment) {
        (Discovery::OriginalDst, None) => Ok(Source::None),
        (Discovery::OriginalDst, Some(_)) => {
            Err(notes.invalid("load_assignment", "a cluster of type ORIGINAL_DST has no endpoints of its own"))
        }
        (Discovery::StrictDns | Discovery::LogicalDns, assignment) => {
            let mut dns = dns.ok_or_else(|| notes.invalid("type", "says nothing of how names are resolved"))?;
            if let Some(a) = assignment {
                let named = notes.within("load_assignment", |n| dns_target_localities(sockets, a, n))?;
                (dns.localities, dns.overprovisioning_factor) = named;
            }
            let names: usize = dns.localities.iter().map(DnsLocality::len).sum();
            if dns.first_only && (dns.localities.len(), names) != (1, 1) {
                let reason = "a LOGICAL_DNS cluster must have a single locality with a single endpoint";
                return Err(notes.invalid("load_assignment", reason));
            }
            Ok(Source::Dns(Arc::new(dns)))
        }
        (_, None) => Ok(Source::Inline(EndpointSet::empty(&c.name))),
        (_, Some(a)) => notes.within("load_assignment", |n| endpoint_set(&c.name, sockets, a, n)).map(Source::Inline),
    }
}

/// Panic threshold, whether localities have weights, and whether panic fails requests.
fn common_lb(l: &pb::cluster::CommonLbConfig, notes: &mut Notes) -> Result<(u8, bool, bool), Invalid> {
    use pb::cluster::common_lb_config::LocalityConfigSpecifier as S;
    let pb::cluster::CommonLbConfig {
        healthy_panic_threshold,
        update_merge_window: _,
        ignore_new_hosts_until_first_hc,
        close_connections_on_host_set_change,
        consistent_hashing_lb_config: _,
        override_host_status,
        locality_config_specifier,
    } = l;
    ignored!(notes, "an endpoint that waits for its first check is one like any other that is unhealthy"; ignore_new_hosts_until_first_hc, override_host_status);
    ignored!(notes, "connections are kept"; close_connections_on_host_set_change);
    let (weighted, fails) = match locality_config_specifier {
        None => (false, false),
        Some(S::LocalityWeightedLbConfig(_)) => (true, false),
        Some(S::ZoneAwareLbConfig(z)) => {
            notes.ignored("zone_aware_lb_config", lb::ZONES);
            (false, z.fail_traffic_on_panic)
        }
    };
    Ok((percent(healthy_panic_threshold, 50, "healthy_panic_threshold", notes)?, weighted, fails))
}
