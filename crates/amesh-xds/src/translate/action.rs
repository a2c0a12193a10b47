//! What a route does: `RouteAction`, `RedirectAction`, `DirectResponseAction`.

use super::format::{self, name as header_name};
use super::notes::{ignored, Set};
use super::route::Inherited;
use super::uri_template::Template;
use super::value::{enumeration, inline, millis, type_name, u32_or, unpack};
use super::{body, filter, hash_policy, internal_redirect, matcher, retry, subset, Invalid, Notes};
use amesh_model::header::Format;
use amesh_model::route::{
    ClusterSpecifier, DirectResponseAction, ForwardAction, HostRewrite, MaxStreamDuration, MirrorPolicy, PathRewrite,
    RedirectAction, RouteAction, WeightedCluster,
};
use amesh_model::subset::Criterion;
use envoy_types::pb::envoy::config::{core::v3 as core, route::v3 as pb};
use envoy_types::pb::envoy::extensions::path::rewrite::uri_template::v3::UriTemplateRewriteConfig;

const PATH_TEMPLATE_REWRITE: &str = "envoy.extensions.path.rewrite.uri_template.v3.UriTemplateRewriteConfig";
/// Why a CONNECT request is refused, whatever a configuration says.
pub(super) const CONNECT: &str = "nginx answers CONNECT itself, by 405: it opens no tunnels";
const NO_CLUSTER: &str = "is empty: the name of a cluster is needed";

pub(super) fn action(
    action: &Option<pb::route::Action>,
    inherited: &Inherited<'_>,
    template: Option<&Template>,
    notes: &mut Notes,
) -> Result<RouteAction, Invalid> {
    use pb::route::Action as A;
    match action {
        None => Err(notes.invalid("action", "is not set: route, redirect, direct_response or non_forwarding_action")),
        Some(A::Route(r)) => notes.within("route", |n| forward(r, inherited, template, n)),
        Some(A::Redirect(r)) => Ok(RouteAction::Redirect(Box::new(notes.within("redirect", |n| redirect(r, n))?))),
        Some(A::DirectResponse(d)) => notes
            .within("direct_response", |n| direct_response(d, inherited.max_body, n))
            .map(RouteAction::DirectResponse),
        Some(A::NonForwardingAction(_)) => Ok(RouteAction::NonForwarding),
        Some(A::FilterAction(_)) => Err(notes.invalid("filter_action", "is not supported")),
    }
}

fn forward(
    action: &pb::RouteAction,
    inherited: &Inherited<'_>,
    template: Option<&Template>,
    notes: &mut Notes,
) -> Result<RouteAction, Invalid> {
    use pb::route_action::ClusterNotFoundResponseCode as C;
    let pb::RouteAction {
        cluster_not_found_response_code,
        metadata_match,
        prefix_rewrite,
        regex_rewrite,
        path_rewrite_policy,
        path_rewrite,
        append_x_forwarded_host,
        timeout,
        idle_timeout,
        flush_timeout,
        early_data_policy,
        retry_policy,
        retry_policy_typed_config,
        request_mirror_policies,
        priority,
        rate_limits,
        include_vh_rate_limits,
        hash_policy,
        cors: _,
        max_grpc_timeout,
        grpc_timeout_offset,
        upgrade_configs,
        internal_redirect_policy,
        internal_redirect_action,
        max_internal_redirects,
        hedge_policy,
        max_stream_duration,
        cluster_specifier,
        host_rewrite_specifier,
    } = action;
    ignored!(notes, "nginx's own time-outs hold"; flush_timeout);
    ignored!(notes, "retry policies that are extensions are not supported"; retry_policy_typed_config);
    retry::hedging(hedge_policy, notes)?;
    ignored!(notes, "there is no rate limit filter"; rate_limits, include_vh_rate_limits);
    for (i, c) in upgrade_configs.iter().enumerate() {
        notes.each("upgrade_configs", i, |n| match c.connect_config {
            Some(_) => drop(n.refused("connect_config", CONNECT)),
            None => n.ignored("", "upgrades are as the connection manager says"),
        });
    }
    ignored!(notes, "early data is not used"; early_data_policy);
    ignored!(notes, "internal_redirect_policy says which redirects are followed";
        internal_redirect_action, max_internal_redirects);
    let path_rewrite = match (prefix_rewrite.is_set(), regex_rewrite, path_rewrite.is_set(), path_rewrite_policy) {
        (false, None, false, None) => PathRewrite::None,
        (true, None, false, None) => PathRewrite::Prefix(prefix_rewrite.clone()),
        (false, Some(r), false, None) => {
            let (pattern, substitution) = notes.within("regex_rewrite", |n| matcher::substitution(r, n))?;
            PathRewrite::Regex { pattern, substitution }
        }
        (false, None, true, None) => path_format(path_rewrite, notes)?,
        (false, None, false, Some(e)) => {
            notes.within("path_rewrite_policy", |n| path_template_rewrite(e, template, n))?
        }
        _ => {
            let reason = "more than one of prefix_rewrite, regex_rewrite, path_rewrite and path_rewrite_policy is set";
            return Err(notes.invalid("", reason));
        }
    };
    let retry = match retry_policy {
        Some(p) => notes.within("retry_policy", |n| retry::policy(p, n))?,
        None => inherited.retry.clone().unwrap_or_default(),
    };
    let metadata_match = subset::metadata_match(metadata_match);
    let (cluster, refuse) = cluster(cluster_specifier, &metadata_match, notes)?;
    let forward = ForwardAction {
        cluster,
        cluster_not_found_response_code: match enumeration::<C>(
            *cluster_not_found_response_code,
            "cluster_not_found_response_code",
            notes,
        )? {
            C::ServiceUnavailable => 503,
            C::NotFound => 404,
            C::InternalServerError => 500,
        },
        path_rewrite,
        host_rewrite: host_rewrite(host_rewrite_specifier, notes)?,
        append_x_forwarded_host: *append_x_forwarded_host,
        metadata_match,
        hash_policy: hash_policy::hash_policy(hash_policy, "hash_policy", notes)?,
        // With the newer form the older one does not count (`RouteEntry::usingNewTimeouts`).
        timeout: match millis(timeout, "timeout", notes)?.unwrap_or(15_000) {
            _ if max_stream_duration.is_some() => 0,
            ms => ms,
        },
        idle_timeout: millis(idle_timeout, "idle_timeout", notes)?,
        max_stream_duration: self::max_stream_duration(max_stream_duration, notes)?,
        max_grpc_timeout: millis(max_grpc_timeout, "max_grpc_timeout", notes)?
            .filter(|_| max_stream_duration.is_none()),
        grpc_timeout_offset: millis(grpc_timeout_offset, "grpc_timeout_offset", notes)?.unwrap_or(0),
        high_priority: enumeration::<core::RoutingPriority>(*priority, "priority", notes)?
            == core::RoutingPriority::High,
        retry,
        internal_redirect: internal_redirect_policy
            .as_ref()
            .map(|p| notes.within("internal_redirect_policy", |n| internal_redirect::policy(p, n)).map(Box::new))
            .transpose()?,
        mirrors: match request_mirror_policies.as_slice() {
            [] => inherited.mirrors.to_vec(),
            own => notes.list("request_mirror_policies", own, mirror)?,
        },
    };
    Ok(refuse.map_or_else(|| RouteAction::Route(Box::new(forward)), RouteAction::Refuse))
}

fn path_template_rewrite(
    e: &core::TypedExtensionConfig,
    template: Option<&Template>,
    notes: &mut Notes,
) -> Result<PathRewrite, Invalid> {
    let core::TypedExtensionConfig { name, typed_config } = e;
    let any = match typed_config {
        Some(any) if type_name(any) == PATH_TEMPLATE_REWRITE => any,
        _ => {
            let reason = format!("\"{name}\" is no rewrite of paths that is known: {PATH_TEMPLATE_REWRITE}");
            return Err(notes.invalid("", reason));
        }
    };
    let UriTemplateRewriteConfig { path_template_rewrite } = unpack(any, "typed_config", notes)?;
    let field = "typed_config.path_template_rewrite";
    let Some(template) = template else {
        return Err(notes.invalid(field, "needs a path_match_policy with a template in the route's match"));
    };
    let substitution = template.substitution(&path_template_rewrite).map_err(|reason| notes.invalid(field, reason))?;
    let pattern = notes.regex(field, &format!("^(?:{})$", template.regex.pattern))?;
    Ok(PathRewrite::Regex { pattern, substitution })
}

/// A new path with substitution commands.
fn path_format(text: &str, notes: &mut Notes) -> Result<PathRewrite, Invalid> {
    let mut parts = expanded(text, "path_rewrite", notes)?;
    Ok(match parts.as_mut_slice() {
        [] => PathRewrite::None,
        [Format::Text(text)] => PathRewrite::Full(std::mem::take(text)),
        _ => PathRewrite::Format(parts),
    })
}

/// A text whose substitution commands must all be known: where requests go depends on it.
fn expanded(text: &str, field: &str, notes: &mut Notes) -> Result<Vec<Format>, Invalid> {
    let parts = format::parse(text, field, None, notes)?;
    parts.ok_or_else(|| notes.invalid(field, "has a substitution command that is not expanded here"))
}

fn host_rewrite(
    specifier: &Option<pb::route_action::HostRewriteSpecifier>,
    notes: &mut Notes,
) -> Result<HostRewrite, Invalid> {
    use pb::route_action::HostRewriteSpecifier as H;
    Ok(match specifier {
        None => HostRewrite::None,
        Some(H::HostRewriteLiteral(h)) if h.is_empty() => HostRewrite::None,
        Some(H::HostRewriteLiteral(h)) => HostRewrite::Literal(header_value(h, "host_rewrite_literal", notes)?),
        Some(H::AutoHostRewrite(b)) if b.value => HostRewrite::Auto,
        Some(H::AutoHostRewrite(_)) => HostRewrite::None,
        Some(H::HostRewriteHeader(h)) => HostRewrite::Header(header_name(h, "host_rewrite_header", notes)?),
        Some(H::HostRewritePathRegex(r)) => {
            let (pattern, substitution) = notes.within("host_rewrite_path_regex", |n| matcher::substitution(r, n))?;
            HostRewrite::PathRegex { pattern, substitution }
        }
        Some(H::HostRewrite(h)) => {
            let mut parts = expanded(h, "host_rewrite", notes)?;
            match parts.as_mut_slice() {
                [] => HostRewrite::None,
                [Format::Text(text)] => HostRewrite::Literal(std::mem::take(text)),
                _ => HostRewrite::Format(parts),
            }
        }
    })
}

/// A text that goes into a header as it is.
fn header_value(text: &str, field: &str, notes: &Notes) -> Result<String, Invalid> {
    match text.bytes().any(|b| matches!(b, 0 | b'\r' | b'\n')) {
        true => Err(notes.invalid(field, "has a line break or a NUL in it")),
        false => Ok(text.to_owned()),
    }
}

/// The older CORS policy of a route.
pub(super) fn deprecated_cors(action: &Option<pb::route::Action>) -> Option<&pb::CorsPolicy> {
    match action {
        Some(pb::route::Action::Route(route)) => route.cors.as_ref(),
        _ => None,
    }
}

/// A copy of requests for another cluster.
pub(super) fn mirror(
    policy: &pb::route_action::RequestMirrorPolicy,
    notes: &mut Notes,
) -> Result<MirrorPolicy, Invalid> {
    let pb::route_action::RequestMirrorPolicy {
        cluster,
        cluster_header,
        runtime_fraction,
        trace_sampled: _,
        disable_shadow_host_suffix_append,
        request_headers_mutations,
        host_rewrite_literal,
    } = policy;
    ignored!(notes, "the copy has the headers of the request"; request_headers_mutations);
    if cluster.is_empty() == cluster_header.is_empty() {
        return Err(notes.invalid("cluster", "exactly one of cluster and cluster_header must be set"));
    }
    Ok(MirrorPolicy {
        cluster: cluster.clone(),
        cluster_header: match cluster_header.as_str() {
            "" => String::new(),
            h => header_name(h, "cluster_header", notes)?,
        },
        runtime_fraction: runtime_fraction
            .as_ref()
            .map(|f| notes.within("runtime_fraction", |n| matcher::fraction(f, n)))
            .transpose()?,
        disable_shadow_host_suffix_append: *disable_shadow_host_suffix_append,
        host_rewrite_literal: header_value(host_rewrite_literal, "host_rewrite_literal", notes)?,
    })
}

/// How long a stream may last.
fn max_stream_duration(
    d: &Option<pb::route_action::MaxStreamDuration>,
    notes: &mut Notes,
) -> Result<MaxStreamDuration, Invalid> {
    let Some(d) = d else { return Ok(MaxStreamDuration::default()) };
    notes.within("max_stream_duration", |notes| {
        let pb::route_action::MaxStreamDuration {
            max_stream_duration,
            grpc_timeout_header_max,
            grpc_timeout_header_offset,
        } = d;
        Ok(MaxStreamDuration {
            max_stream_duration: millis(max_stream_duration, "max_stream_duration", notes)?,
            grpc_timeout_header_max: millis(grpc_timeout_header_max, "grpc_timeout_header_max", notes)?,
            grpc_timeout_header_offset: millis(grpc_timeout_header_offset, "grpc_timeout_header_offset", notes)?
                .unwrap_or(0),
        })
    })
}

/// Where requests go, and why they must not.
fn cluster(
    specifier: &Option<pb::route_action::ClusterSpecifier>,
    subset: &[Criterion],
    notes: &mut Notes,
) -> Result<(ClusterSpecifier, Option<String>), Invalid> {
    use pb::route_action::ClusterSpecifier as S;
    match specifier {
        None => Err(notes.invalid("cluster_specifier", "is not set: cluster, cluster_header or weighted_clusters")),
        Some(S::Cluster(c)) if c.is_empty() => Err(notes.invalid("cluster", NO_CLUSTER)),
        Some(S::Cluster(c)) => Ok((ClusterSpecifier::Cluster(c.clone()), None)),
        Some(S::ClusterHeader(h)) => {
            Ok((ClusterSpecifier::ClusterHeader(header_name(h, "cluster_header", notes)?), None))
        }
        Some(S::WeightedClusters(w)) => notes.within("weighted_clusters", |n| weighted(w, subset, n)),
        Some(S::ClusterSpecifierPlugin(_)) => {
            Err(notes.invalid("cluster_specifier_plugin", "cluster specifier plugins are not supported"))
        }
        Some(S::InlineClusterSpecifierPlugin(_)) => {
            Err(notes.invalid("inline_cluster_specifier_plugin", "cluster specifier plugins are not supported"))
        }
    }
}

fn weighted(
    w: &pb::WeightedCluster,
    subset: &[Criterion],
    notes: &mut Notes,
) -> Result<(ClusterSpecifier, Option<String>), Invalid> {
    // The sum of the weights counts; `total_weight` is deprecated and not looked at by Envoy either.
    let pb::WeightedCluster { clusters, total_weight: _, runtime_key_prefix: _, random_value_specifier } = w;
    use pb::weighted_cluster::RandomValueSpecifier as R;
    let random_header = match random_value_specifier {
        None => String::new(),
        Some(R::HeaderName(header)) => header_name(header, "header_name", notes)?,
        Some(R::UseHashPolicy(b)) => {
            if b.value {
                notes.ignored("use_hash_policy", "an arm is picked by chance for every request");
            }
            String::new()
        }
    };
    if clusters.is_empty() {
        return Err(notes.invalid("clusters", "is empty"));
    }
    let mut refuse = None;
    let arms = notes.list("clusters", clusters, |c, n| {
        let (arm, refused) = arm(c, subset, n)?;
        refuse = refuse.take().or(refused);
        Ok(arm)
    })?;
    let total: u64 = arms.iter().map(|c| u64::from(c.weight)).sum();
    match u32::try_from(total) {
        Ok(0) => Err(notes.invalid("clusters", "the sum of the weights is 0")),
        Ok(total_weight) => Ok((ClusterSpecifier::Weighted { clusters: arms, total_weight, random_header }, refuse)),
        Err(_) => {
            Err(notes.invalid("clusters", format!("the sum of the weights is {total}, the limit is {}", u32::MAX)))
        }
    }
}

fn arm(
    c: &pb::weighted_cluster::ClusterWeight,
    subset: &[Criterion],
    notes: &mut Notes,
) -> Result<(WeightedCluster, Option<String>), Invalid> {
    use pb::weighted_cluster::cluster_weight::HostRewriteSpecifier as H;
    let pb::weighted_cluster::ClusterWeight {
        name,
        cluster_header,
        weight,
        metadata_match,
        request_headers_to_add,
        request_headers_to_remove,
        response_headers_to_add,
        response_headers_to_remove,
        typed_per_filter_config,
        host_rewrite_specifier,
    } = c;
    if name.is_empty() == cluster_header.is_empty() {
        return Err(notes.invalid("name", "exactly one of name and cluster_header must be set"));
    }
    let cluster_header = match cluster_header.as_str() {
        "" => String::new(),
        h => header_name(h, "cluster_header", notes)?,
    };
    let arm = WeightedCluster {
        name: name.clone(),
        cluster_header,
        weight: u32_or(weight, 0),
        metadata_match: subset::merged(metadata_match, subset),
        headers: format::edits(
            request_headers_to_add,
            request_headers_to_remove,
            response_headers_to_add,
            response_headers_to_remove,
            notes,
        )?,
        host_rewrite_literal: match host_rewrite_specifier {
            None => String::new(),
            Some(H::HostRewriteLiteral(h)) => header_value(h, "host_rewrite_literal", notes)?,
        },
    };
    let filters = filter::per_route(typed_per_filter_config, notes)?;
    if filters.fault.is_some() || filters.cors.is_some() {
        notes.ignored("typed_per_filter_config", "faults and CORS are those of the route, not of one of its clusters");
    }
    let mut refuse = filters.refuse;
    if filters.rate_limit.is_some() || filters.max_request_bytes.is_some() {
        let why = "limits are those of the route, and one of a single cluster would not be kept";
        refuse = Some(notes.refused("typed_per_filter_config", why));
    }
    // One arm that must not be used refuses the route: which arm a request takes is chance.
    Ok((arm, refuse))
}

fn redirect(r: &pb::RedirectAction, notes: &mut Notes) -> Result<RedirectAction, Invalid> {
    use pb::redirect_action::{PathRewriteSpecifier as P, RedirectResponseCode as C, SchemeRewriteSpecifier as S};
    let pb::RedirectAction {
        host_redirect,
        port_redirect,
        response_code,
        strip_query,
        scheme_rewrite_specifier,
        path_rewrite_specifier,
    } = r;
    let path = match path_rewrite_specifier {
        None => PathRewrite::None,
        // istiod sets an empty one to say nothing.
        Some(P::PathRedirect(p) | P::PrefixRewrite(p) | P::PathRewrite(p)) if p.is_empty() => PathRewrite::None,
        Some(P::PathRedirect(p)) => PathRewrite::Full(header_value(p, "path_redirect", notes)?),
        Some(P::PrefixRewrite(p)) => PathRewrite::Prefix(header_value(p, "prefix_rewrite", notes)?),
        Some(P::RegexRewrite(r)) => {
            let (pattern, substitution) = notes.within("regex_rewrite", |n| matcher::substitution(r, n))?;
            PathRewrite::Regex { pattern, substitution }
        }
        Some(P::PathRewrite(p)) => path_format(p, notes)?,
    };
    let (https_redirect, scheme) = match scheme_rewrite_specifier {
        None => (false, ""),
        Some(S::HttpsRedirect(b)) => (*b, ""),
        Some(S::SchemeRedirect(s)) => (false, s.as_str()),
    };
    Ok(RedirectAction {
        https_redirect,
        scheme: header_value(scheme, "scheme_redirect", notes)?,
        host: header_value(host_redirect, "host_redirect", notes)?,
        port: u16::try_from(*port_redirect)
            .map_err(|_| notes.invalid("port_redirect", format!("{port_redirect} is no port: 0 to 65535")))?,
        path,
        status: match enumeration::<C>(*response_code, "response_code", notes)? {
            C::MovedPermanently => 301,
            C::Found => 302,
            C::SeeOther => 303,
            C::TemporaryRedirect => 307,
            C::PermanentRedirect => 308,
        },
        strip_query: *strip_query,
    })
}

fn direct_response(
    d: &pb::DirectResponseAction,
    max_body: usize,
    notes: &mut Notes,
) -> Result<DirectResponseAction, Invalid> {
    let pb::DirectResponseAction { status, body, body_format } = d;
    let status = match u16::try_from(*status) {
        Ok(s @ 200..=599) => s,
        _ => return Err(notes.invalid("status", format!("{status} is not within 200 to 599"))),
    };
    let body = match body {
        None => Vec::new(),
        Some(b) => notes.within("body", |n| inline(b, n))?,
    };
    if body.len() > max_body {
        return Err(notes.invalid("body", format!("is {} bytes long, the limit is {max_body}", body.len())));
    }
    let body_format = match body_format {
        None => None,
        Some(f) => notes.within("body_format", |n| body::format(f, &body, n))?,
    };
    Ok(DirectResponseAction { status, body, body_format })
}
