//! HTTP and network filters: which are acted on, which may be left out, and which must not.

use super::notes::ignored;
use super::value::{type_name, unpack};
use super::{cors, fault, rate_limit, Invalid, Notes};
use amesh_model::filter::{Fault, HttpFilter, LocalRateLimit};
use envoy_types::pb::envoy::config::{rbac::v3 as rbac, route::v3 as route};
use envoy_types::pb::envoy::extensions::filters::http::{
    buffer::v3 as buffer, rbac::v3 as http_rbac, router::v3 as router,
};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use envoy_types::pb::envoy::extensions::filters::network::rbac::v3 as network_rbac;
use envoy_types::pb::google::protobuf::Any;
use std::collections::{BTreeMap, HashMap};

pub(super) const ROUTER: &str = "envoy.extensions.filters.http.router.v3.Router";
const HTTP_RBAC: &str = "envoy.extensions.filters.http.rbac.v3.RBAC";
const HTTP_RBAC_PER_ROUTE: &str = "envoy.extensions.filters.http.rbac.v3.RBACPerRoute";
const NETWORK_RBAC: &str = "envoy.extensions.filters.network.rbac.v3.RBAC";
const FILTER_CONFIG: &str = "envoy.config.route.v3.FilterConfig";

/// Types that may be left out, and what is missing then. Peer metadata, statistics and ALPN are Istio's own.
const COMFORT: [(&str, &str); 6] = [
    ("envoy.extensions.filters.http.grpc_stats.v3.FilterConfig", "statistics only"),
    ("istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig", "there is no upstream TLS whose ALPN it would set"),
    ("io.istio.http.peer_metadata.Config", "peer metadata are for statistics"),
    ("envoy.tcp.metadataexchange.config.MetadataExchange", "peer metadata are for statistics"),
    ("envoy.extensions.filters.network.metadata_exchange.v3.MetadataExchange", "peer metadata are for statistics"),
    ("stats.PluginConfig", "statistics only"),
];

/// Names that stand for those types where no configuration is given.
const COMFORT_NAMES: [&str; 4] =
    ["envoy.filters.http.grpc_stats", "istio.metadata_exchange", "istio.stats", "istio.alpn"];

const CORS: &str = "envoy.extensions.filters.http.cors.v3.Cors";
const CORS_POLICY: [&str; 2] = ["envoy.extensions.filters.http.cors.v3.CorsPolicy", "envoy.config.route.v3.CorsPolicy"];
const CORS_NAME: &str = "envoy.filters.http.cors";
const FAULT: &str = "envoy.extensions.filters.http.fault.v3.HTTPFault";
const FAULT_NAME: &str = "envoy.filters.http.fault";
const RATE_LIMIT: &str = "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit";
const RATE_LIMIT_NAME: &str = "envoy.filters.http.local_ratelimit";
const BUFFER: &str = "envoy.extensions.filters.http.buffer.v3.Buffer";
const BUFFER_PER_ROUTE: &str = "envoy.extensions.filters.http.buffer.v3.BufferPerRoute";
const BUFFER_NAME: &str = "envoy.filters.http.buffer";

/// Why a filter of this type may be left out; `None`: it must not.
fn comfort(any: &Any, kind: &str, notes: &Notes) -> Result<Option<&'static str>, Invalid> {
    let enforces = match kind {
        HTTP_RBAC => {
            let http_rbac::Rbac { rules, matcher, .. } = unpack(any, "typed_config", notes)?;
            matcher.is_some() || rules.as_ref().is_some_and(enforces)
        }
        HTTP_RBAC_PER_ROUTE => {
            let http_rbac::RbacPerRoute { rbac } = unpack(any, "typed_config", notes)?;
            rbac.is_some_and(|r| r.matcher.is_some() || r.rules.as_ref().is_some_and(enforces))
        }
        NETWORK_RBAC => {
            let network_rbac::Rbac { rules, matcher, .. } = unpack(any, "typed_config", notes)?;
            matcher.is_some() || rules.as_ref().is_some_and(enforces)
        }
        _ => return Ok(COMFORT.iter().find(|(k, _)| *k == kind).map(|(_, why)| *why)),
    };
    Ok((!enforces).then_some("these rules only watch, they deny nothing"))
}

/// Whether rules can deny anything.
fn enforces(rules: &rbac::Rbac) -> bool {
    match rbac::rbac::Action::try_from(rules.action) {
        Ok(rbac::rbac::Action::Log) => false,
        Ok(rbac::rbac::Action::Deny) => !rules.policies.is_empty(),
        Ok(rbac::rbac::Action::Allow) | Err(_) => true,
    }
}

/// Filters that speak another protocol with one side, and what nginx cannot do.
const BRIDGES: [(&str, &str); 6] = [
    ("envoy.extensions.filters.http.grpc_web.v3.GrpcWeb", "gRPC-Web has its trailers in the body"),
    ("envoy.extensions.filters.http.grpc_http1_bridge.v3.Config", "calls of gRPC cannot be made of plain requests"),
    (
        "envoy.extensions.filters.http.grpc_http1_reverse_bridge.v3.FilterConfig",
        "calls of gRPC cannot be turned into plain requests",
    ),
    ("envoy.extensions.filters.http.connect_grpc_bridge.v3.FilterConfig", "calls of Connect are not those of gRPC"),
    ("envoy.extensions.filters.http.grpc_json_transcoder.v3.GrpcJsonTranscoder", "JSON is not turned into gRPC"),
    (
        "envoy.extensions.filters.http.grpc_json_reverse_transcoder.v3.GrpcJsonReverseTranscoder",
        "gRPC is not turned into JSON",
    ),
];

fn must_not(name: &str, kind: &str) -> String {
    if let Some((_, why)) = BRIDGES.iter().find(|(bridge, _)| *bridge == kind) {
        return format!("\"{name}\" ({kind}) is not supported: {why}");
    }
    format!("\"{name}\" ({kind}) is not supported, and leaving it out would weaken security")
}

/// What becomes of a filter that is not acted on: a note, or the reason for which its place is refused.
/// `field` is where it stands.
pub(super) fn left_out(
    name: &str,
    any: &Any,
    optional: bool,
    field: &str,
    notes: &mut Notes,
) -> Result<Option<String>, Invalid> {
    let kind = type_name(any);
    match comfort(any, &kind, notes)? {
        Some(why) => notes.ignored(field, format!("\"{name}\": {why}")),
        None if optional => notes.ignored(field, format!("\"{name}\" ({kind}) is not supported, and is optional")),
        None => return Ok(Some(notes.refused(field, must_not(name, &kind)))),
    }
    Ok(None)
}

/// What a place (route, virtual host, table) says to filters.
#[derive(Debug, Default)]
pub(super) struct PerRoute {
    /// Why the place must be refused.
    pub refuse: Option<String>,
    /// Its faults.
    pub fault: Option<Fault>,
    /// Its part of the CORS policy.
    pub cors: Option<cors::Level>,
    /// Its rate limit.
    pub rate_limit: Option<LocalRateLimit>,
    /// Longest body in bytes; 0: it is not held.
    pub max_request_bytes: Option<u32>,
}

impl PerRoute {
    /// Fills up with what the place around this one says; a refusal stays where it is.
    pub(super) fn within(mut self, outer: &PerRoute) -> PerRoute {
        self.fault = self.fault.or_else(|| outer.fault.clone());
        self.cors = match (self.cors, &outer.cors) {
            (Some(inner), Some(outer)) => Some(inner.or(outer)),
            (inner, outer) => inner.or_else(|| outer.clone()),
        };
        self.rate_limit = self.rate_limit.or_else(|| outer.rate_limit.clone());
        self.max_request_bytes = self.max_request_bytes.or(outer.max_request_bytes);
        self
    }
}

/// `typed_per_filter_config`.
pub(super) fn per_route(configs: &HashMap<String, Any>, notes: &mut Notes) -> Result<PerRoute, Invalid> {
    let mut out = PerRoute::default();
    for (name, any) in configs.iter().collect::<BTreeMap<_, _>>() {
        let why = notes.entry("typed_per_filter_config", name, |notes| {
            if type_name(any) != FILTER_CONFIG {
                return filter_of_route(name, any, false, "", &mut out, notes);
            }
            let route::FilterConfig { config, is_optional, disabled } = unpack(any, "", notes)?;
            let kind = config.as_ref().map(type_name).unwrap_or_default();
            match config {
                _ if disabled && (kind == FAULT || name == FAULT_NAME) => out.fault = Some(Fault::default()),
                _ if disabled && (CORS_POLICY.contains(&kind.as_str()) || name == CORS_NAME) => {
                    out.cors = Some(cors::Level::disabled());
                }
                _ if disabled && (kind == RATE_LIMIT || name == RATE_LIMIT_NAME) => {
                    out.rate_limit = Some(LocalRateLimit::default());
                }
                _ if disabled && (kind == BUFFER_PER_ROUTE || name == BUFFER_NAME) => out.max_request_bytes = Some(0),
                _ if disabled => {
                    notes.ignored("disabled", "a filter that is not supported stays refused where it is enabled");
                }
                Some(config) => return filter_of_route(name, &config, is_optional, "config", &mut out, notes),
                None if [FAULT_NAME, CORS_NAME, RATE_LIMIT_NAME, BUFFER_NAME].contains(&name.as_str()) => {}
                None if is_optional || COMFORT_NAMES.contains(&name.as_str()) => {
                    notes.ignored("", "the filter is not supported");
                }
                None => return Ok(Some(notes.refused("", must_not(name, "enabled here")))),
            }
            Ok(None)
        })?;
        out.refuse = out.refuse.or(why);
    }
    Ok(out)
}

/// One entry of `typed_per_filter_config`, at `field`.
fn filter_of_route(
    name: &str,
    any: &Any,
    optional: bool,
    field: &'static str,
    out: &mut PerRoute,
    notes: &mut Notes,
) -> Result<Option<String>, Invalid> {
    match type_name(any).as_str() {
        FAULT => out.fault = Some(fault::fault(&unpack(any, field, notes)?, notes)?),
        kind if kind == CORS_POLICY[0] => out.cors = Some(cors::policy(&unpack(any, field, notes)?, notes)?),
        kind if kind == CORS_POLICY[1] => out.cors = Some(cors::deprecated(&unpack(any, field, notes)?, notes)?),
        RATE_LIMIT => {
            let limit = unpack(any, field, notes)?;
            let read = |n: &mut Notes| rate_limit::local(&limit, true, n);
            match if field.is_empty() { read(notes) } else { notes.within(field, read) }? {
                Ok(limit) => out.rate_limit = Some(limit),
                Err(refused) => return Ok(Some(refused)),
            }
        }
        BUFFER_PER_ROUTE => {
            use buffer::buffer_per_route::Override as O;
            let buffer::BufferPerRoute { r#override } = unpack(any, field, notes)?;
            out.max_request_bytes = match r#override {
                Some(O::Disabled(true)) => Some(0),
                Some(O::Buffer(b)) => Some(notes.within("buffer", |n| max_request_bytes(&b, n))?),
                Some(O::Disabled(false)) => return Err(notes.invalid("disabled", "must be true")),
                None => return Err(notes.invalid("override", "is not set: disabled or buffer")),
            };
        }
        _ => return left_out(name, any, optional, field, notes),
    }
    Ok(None)
}

fn max_request_bytes(b: &buffer::Buffer, notes: &Notes) -> Result<u32, Invalid> {
    let buffer::Buffer { max_request_bytes } = b;
    match max_request_bytes.as_ref().map(|n| n.value) {
        None => Err(notes.invalid("max_request_bytes", "is not set")),
        Some(0) => Err(notes.invalid("max_request_bytes", "must be above 0")),
        Some(n) => Ok(n),
    }
}

/// What the HTTP filters of a connection manager come to.
#[derive(Debug, Default)]
pub(super) struct HttpFilters {
    /// Why requests must be refused.
    pub refuse: Option<String>,
    /// `Router.suppress_envoy_headers`.
    pub suppress_envoy_headers: bool,
    /// `Router.respect_expected_rq_timeout`.
    pub respect_expected_rq_timeout: bool,
    /// Those that are carried out, in their order.
    pub filters: Vec<HttpFilter>,
}

pub(super) fn http_filters(filters: &[hcm::HttpFilter], notes: &mut Notes) -> Result<HttpFilters, Invalid> {
    use hcm::http_filter::ConfigType;
    let mut out = HttpFilters::default();
    let mut routed = false;
    for (i, f) in filters.iter().enumerate() {
        let hcm::HttpFilter { name, is_optional, disabled, config_type } = f;
        let why = notes.each("http_filters", i, |notes| {
            if name.is_empty() {
                return Err(notes.invalid("name", "is empty"));
            }
            if routed {
                return Err(notes.invalid("", "comes after the router, which must be the last filter"));
            }
            match config_type {
                Some(ConfigType::TypedConfig(any)) if type_name(any) == ROUTER => {
                    if *disabled {
                        return Err(notes.invalid("disabled", "the router cannot be disabled"));
                    }
                    routed = true;
                    let router = unpack(any, "typed_config", notes)?;
                    notes.within("typed_config", |n| Ok(self::router(&router, &mut out, n)))
                }
                // Without a word of its own: what a route says enables it.
                Some(ConfigType::TypedConfig(any)) if type_name(any) == FAULT => {
                    let fault = fault::fault(&unpack(any, "typed_config", notes)?, notes)?;
                    out.filters.push(HttpFilter::Fault(if *disabled { Fault::default() } else { fault }));
                    Ok(None)
                }
                Some(ConfigType::TypedConfig(any)) if type_name(any) == CORS => {
                    out.filters.push(HttpFilter::Cors);
                    Ok(None)
                }
                Some(ConfigType::TypedConfig(any)) if type_name(any) == RATE_LIMIT => {
                    let limit = unpack(any, "typed_config", notes)?;
                    match notes.within("typed_config", |n| rate_limit::local(&limit, false, n))? {
                        Ok(_) if *disabled => {
                            out.filters.push(HttpFilter::LocalRateLimit(LocalRateLimit::default()));
                            Ok(None)
                        }
                        Ok(limit) => {
                            out.filters.push(HttpFilter::LocalRateLimit(limit));
                            Ok(None)
                        }
                        Err(refused) => Ok(Some(refused)),
                    }
                }
                Some(ConfigType::TypedConfig(any)) if type_name(any) == BUFFER => {
                    let buffer = unpack(any, "typed_config", notes)?;
                    let max = notes.within("typed_config", |n| max_request_bytes(&buffer, n))?;
                    out.filters.push(HttpFilter::Buffer(if *disabled { 0 } else { max }));
                    Ok(None)
                }
                None if name == FAULT_NAME => {
                    out.filters.push(HttpFilter::Fault(Fault::default()));
                    Ok(None)
                }
                None if name == CORS_NAME => {
                    out.filters.push(HttpFilter::Cors);
                    Ok(None)
                }
                Some(_) if *disabled => {
                    notes.ignored("disabled", "a route that enables the filter is refused, unless it may be left out");
                    Ok(None)
                }
                Some(ConfigType::TypedConfig(any)) => left_out(name, any, *is_optional, "", notes),
                Some(ConfigType::ConfigDiscovery(_)) if *is_optional => {
                    notes.ignored("config_discovery", format!("\"{name}\": filters are not discovered"));
                    Ok(None)
                }
                Some(ConfigType::ConfigDiscovery(_)) => {
                    Ok(Some(notes.refused("config_discovery", must_not(name, "discovered by name"))))
                }
                None if *is_optional || COMFORT_NAMES.contains(&name.as_str()) => Ok(None),
                None => Err(notes.invalid("typed_config", format!("\"{name}\" has no configuration"))),
            }
        })?;
        out.refuse = out.refuse.take().or(why);
    }
    if !routed && out.refuse.is_none() {
        out.refuse = Some(notes.refused("http_filters", "has no router at its end, so nothing would answer"));
    }
    Ok(out)
}

fn router(router: &router::Router, out: &mut HttpFilters, notes: &mut Notes) -> Option<String> {
    let router::Router {
        dynamic_stats: _,
        start_child_span,
        upstream_log,
        upstream_log_options,
        suppress_envoy_headers,
        strict_check_headers,
        respect_expected_rq_timeout,
        suppress_grpc_request_failure_code_stats: _,
        upstream_http_filters,
        reject_connect_request_early_data,
    } = router;
    ignored!(notes, "there is no tracing"; start_child_span);
    ignored!(notes, "nginx writes its own access logs"; upstream_log, upstream_log_options);
    ignored!(notes, "x-envoy-* request headers that make no sense are passed over"; strict_check_headers);
    ignored!(notes, "CONNECT is not supported"; reject_connect_request_early_data);
    out.suppress_envoy_headers = *suppress_envoy_headers;
    out.respect_expected_rq_timeout = *respect_expected_rq_timeout;
    upstream_filters(upstream_http_filters, "upstream_http_filters", notes)
}

/// HTTP filters on the way to an endpoint: only the codec, which is what happens anyway.
pub(super) fn upstream_filters(filters: &[hcm::HttpFilter], field: &'static str, notes: &mut Notes) -> Option<String> {
    use hcm::http_filter::ConfigType;
    filters.iter().enumerate().find_map(|(i, f)| {
        notes.each(field, i, |notes| match &f.config_type {
            Some(ConfigType::TypedConfig(any))
                if type_name(any) == "envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec" =>
            {
                None
            }
            Some(ConfigType::TypedConfig(any)) if f.is_optional || f.disabled => {
                notes.ignored("", format!("\"{}\" ({}) is not supported", f.name, type_name(any)));
                None
            }
            _ => Some(notes.refused("", must_not(&f.name, "a filter on the way to the endpoint"))),
        })
    })
}
