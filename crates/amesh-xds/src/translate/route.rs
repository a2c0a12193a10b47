//! `config.route.v3.RouteConfiguration` → [`RouteTable`].

use super::filter::PerRoute;
use super::notes::{ignored, unsupported};
use super::uri_template::Template;
use super::value::{bool_or, enumeration, u32_or};
use super::value::{type_name, unpack};
use super::{action, filter, format, matcher, metadata, retry, Invalid, Notes};
use amesh_model::matcher::TlsContextMatch;
use amesh_model::retry::RetryPolicy;
use amesh_model::route::{
    Domains, MirrorPolicy, PathSpecifier, RequireTls, Route, RouteAction, RouteMatch, RouteTable, VirtualCluster,
    VirtualHost,
};
use amesh_model::route_index::RouteIndex;
use envoy_types::pb::envoy::config::{core::v3 as core, route::v3 as pb};
use envoy_types::pb::envoy::extensions::path::r#match::uri_template::v3::UriTemplateMatchConfig;
use std::collections::{BTreeSet, HashSet};

const PATH_TEMPLATE: &str = "envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig";

/// What the routes of a table inherit.
pub(super) struct Inherited<'a> {
    /// Longest body of a direct response in bytes.
    pub max_body: usize,
    /// Retry policy of the virtual host.
    pub retry: Option<RetryPolicy>,
    /// What virtual host and table say to filters.
    pub filters: &'a PerRoute,
    /// Copies that virtual host or table want.
    pub mirrors: &'a [MirrorPolicy],
}

/// A route table.
///
/// # Errors
/// [`Invalid`] names the field that makes no sense or is refused by name.
pub fn route_table(table: &pb::RouteConfiguration, notes: &mut Notes) -> Result<RouteTable, Invalid> {
    let pb::RouteConfiguration {
        name,
        virtual_hosts,
        vhds,
        internal_only_headers,
        response_headers_to_add,
        response_headers_to_remove,
        request_headers_to_add,
        request_headers_to_remove,
        most_specific_header_mutations_wins,
        validate_clusters,
        max_direct_response_body_size_bytes,
        cluster_specifier_plugins,
        request_mirror_policies,
        ignore_port_in_host_matching,
        vhost_header,
        ignore_path_parameters_in_path_matching,
        typed_per_filter_config,
        metadata: _,
        route_specifiers,
    } = table;
    unsupported!(notes; vhds, route_specifiers);
    if bool_or(validate_clusters, false) {
        notes.ignored("validate_clusters", "a cluster that is missing is a 503 when it is asked for");
    }
    let needed = cluster_specifier_plugins.iter().enumerate().find(|(_, p)| !p.is_optional);
    if let Some((i, p)) = needed {
        let name = p.extension.as_ref().map_or("", |e| e.name.as_str());
        let reason = format!("\"{name}\": cluster specifier plugins are not supported");
        return Err(notes.invalid(&format!("cluster_specifier_plugins[{i}]"), reason));
    }
    let headers = format::edits(
        request_headers_to_add,
        request_headers_to_remove,
        response_headers_to_add,
        response_headers_to_remove,
        notes,
    )?;
    let filters = filter::per_route(typed_per_filter_config, notes)?;
    let mirrors = notes.list("request_mirror_policies", request_mirror_policies, action::mirror)?;
    let refuse = filters.refuse.clone();
    let max_body = u32_or(max_direct_response_body_size_bytes, 4096) as usize;
    let inherited = Inherited { max_body, retry: None, filters: &filters, mirrors: &mirrors };
    let mut hosts = notes.list("virtual_hosts", virtual_hosts, |h, n| virtual_host(h, &inherited, n))?;
    for host in &mut hosts {
        host.refuse = host.refuse.take().or_else(|| refuse.clone());
        host.ignore_path_parameters = *ignore_path_parameters_in_path_matching;
    }
    Ok(RouteTable {
        name: name.clone(),
        virtual_hosts: hosts,
        domains: domains(virtual_hosts, notes)?,
        ignore_port_in_host_matching: *ignore_port_in_host_matching,
        headers,
        most_specific_header_mutations_wins: *most_specific_header_mutations_wins,
        vhost_header: match vhost_header.as_str() {
            "" => String::new(),
            header => format::name(header, "vhost_header", notes)?,
        },
        internal_only_headers: notes
            .list("internal_only_headers", internal_only_headers, |h, n| format::name(h, "", n))?,
    })
}

/// The index of domains, and Envoy's rules for them.
fn domains(hosts: &[pb::VirtualHost], notes: &mut Notes) -> Result<Domains, Invalid> {
    let mut out = Domains::default();
    let mut names = HashSet::new();
    let (mut suffix_lengths, mut prefix_lengths) = (BTreeSet::new(), BTreeSet::new());
    for (i, host) in hosts.iter().enumerate() {
        notes.each("virtual_hosts", i, |notes| {
            if !names.insert(host.name.as_str()) {
                return Err(notes.invalid("name", format!("\"{}\" is the name of two virtual hosts", host.name)));
            }
            // A slice of 4 billion hosts does not come over the wire.
            let index = i as u32;
            for (d, domain) in host.domains.iter().enumerate() {
                let domain = domain.to_ascii_lowercase();
                let bad = |reason: String| Err(notes.invalid(&format!("domains[{d}]"), reason));
                let former = if domain == "*" {
                    out.any.replace(index)
                } else if let Some(s) = domain.strip_prefix('*') {
                    suffix_lengths.insert(s.len() as u32);
                    out.suffix.insert(s.to_owned(), index)
                } else if let Some(p) = domain.strip_suffix('*') {
                    prefix_lengths.insert(p.len() as u32);
                    out.prefix.insert(p.to_owned(), index)
                } else {
                    out.exact.insert(domain.clone(), index)
                };
                let inner = domain.strip_prefix('*').or_else(|| domain.strip_suffix('*')).unwrap_or(&domain);
                if domain.is_empty() {
                    return bad("is empty".into());
                }
                if inner.contains('*') || domain.bytes().any(|b| b.is_ascii_control()) {
                    return bad(format!("\"{}\": `*` may stand at the beginning or at the end", domain.escape_debug()));
                }
                if former.is_some() {
                    return bad(format!("\"{domain}\" is there twice in this table"));
                }
            }
            Ok(())
        })?;
    }
    out.suffix_lengths = suffix_lengths.into_iter().rev().collect();
    out.prefix_lengths = prefix_lengths.into_iter().rev().collect();
    Ok(out)
}

fn virtual_host(host: &pb::VirtualHost, table: &Inherited<'_>, notes: &mut Notes) -> Result<VirtualHost, Invalid> {
    use pb::virtual_host::TlsRequirementType as T;
    let pb::VirtualHost {
        name,
        domains,
        routes,
        matcher,
        require_tls,
        virtual_clusters,
        rate_limits,
        request_headers_to_add,
        request_headers_to_remove,
        response_headers_to_add,
        response_headers_to_remove,
        cors,
        typed_per_filter_config,
        include_request_attempt_count,
        include_attempt_count_in_response,
        retry_policy,
        retry_policy_typed_config,
        hedge_policy,
        include_is_timeout_retry_header,
        per_request_buffer_limit_bytes,
        request_body_buffer_limit,
        request_mirror_policies,
        metadata: _,
        route_specifiers,
    } = host;
    if name.is_empty() {
        return Err(notes.invalid("name", "is empty"));
    }
    if domains.is_empty() {
        return Err(notes.invalid("domains", "is empty"));
    }
    unsupported!(notes; matcher, route_specifiers);
    ignored!(notes, "there is no rate limit filter"; rate_limits);
    ignored!(notes, "retry policies that are extensions are not supported"; retry_policy_typed_config);
    retry::hedging(hedge_policy, notes)?;
    ignored!(notes, "nginx buffers as its own directives say"; per_request_buffer_limit_bytes, request_body_buffer_limit);
    let headers = format::edits(
        request_headers_to_add,
        request_headers_to_remove,
        response_headers_to_add,
        response_headers_to_remove,
        notes,
    )?;
    let mut filters = filter::per_route(typed_per_filter_config, notes)?;
    if let (Some(old), None) = (cors, &filters.cors) {
        filters.cors = Some(notes.within("cors", |n| super::cors::deprecated(old, n))?);
    }
    let refuse = filters.refuse.take();
    let filters = filters.within(table.filters);
    let mirrors = match request_mirror_policies.as_slice() {
        [] => table.mirrors.to_vec(),
        own => notes.list("request_mirror_policies", own, action::mirror)?,
    };
    let retry = retry_policy.as_ref().map(|p| notes.within("retry_policy", |n| retry::policy(p, n))).transpose()?;
    let inherited = Inherited { max_body: table.max_body, retry, filters: &filters, mirrors: &mirrors };
    let routes = notes.list("routes", routes, |r, n| route(r, &inherited, n))?;
    let index = RouteIndex::new(&routes).map(Box::new);
    if index.as_ref().is_some_and(|index| index.in_turn > 0) {
        let why = "too many or too large to be matched together: they are tried one after the other";
        notes.ignored("routes[].match.safe_regex", why);
    }
    Ok(VirtualHost {
        name: name.clone(),
        index,
        routes,
        ignore_path_parameters: false,
        require_tls: match enumeration::<T>(*require_tls, "require_tls", notes)? {
            T::None => RequireTls::None,
            T::ExternalOnly => RequireTls::ExternalOnly,
            T::All => RequireTls::All,
        },
        include_request_attempt_count: *include_request_attempt_count,
        include_attempt_count_in_response: *include_attempt_count_in_response,
        include_is_timeout_retry_header: *include_is_timeout_retry_header,
        headers,
        virtual_clusters: notes.list("virtual_clusters", virtual_clusters, virtual_cluster)?,
        refuse,
    })
}

fn virtual_cluster(cluster: &pb::VirtualCluster, notes: &mut Notes) -> Result<VirtualCluster, Invalid> {
    let pb::VirtualCluster { headers, name } = cluster;
    if name.is_empty() {
        return Err(notes.invalid("name", "is empty"));
    }
    if headers.is_empty() {
        return Err(notes.invalid("headers", "is empty: it would be the name of every request"));
    }
    Ok(VirtualCluster { name: name.clone(), headers: notes.list("headers", headers, matcher::header)? })
}

fn route(route: &pb::Route, inherited: &Inherited<'_>, notes: &mut Notes) -> Result<Route, Invalid> {
    let pb::Route {
        name,
        r#match,
        metadata: _,
        decorator,
        typed_per_filter_config,
        request_headers_to_add,
        request_headers_to_remove,
        response_headers_to_add,
        response_headers_to_remove,
        tracing,
        per_request_buffer_limit_bytes,
        stat_prefix: _,
        request_body_buffer_limit,
        route_specifiers,
        action,
    } = route;
    unsupported!(notes; route_specifiers);
    ignored!(notes, "there is no tracing"; decorator, tracing);
    ignored!(notes, "nginx buffers as its own directives say"; per_request_buffer_limit_bytes, request_body_buffer_limit);
    let Some(m) = r#match else { return Err(notes.invalid("match", "is not set")) };
    let (matches, template) = notes.within("match", |n| route_match(m, n))?;
    let headers = format::edits(
        request_headers_to_add,
        request_headers_to_remove,
        response_headers_to_add,
        response_headers_to_remove,
        notes,
    )?;
    let mut filters = filter::per_route(typed_per_filter_config, notes)?;
    if let (Some(old), None) = (action::deprecated_cors(action), &filters.cors) {
        filters.cors = Some(notes.within("route", |n| n.within("cors", |n| super::cors::deprecated(old, n)))?);
    }
    let refuse = filters.refuse.take();
    let filters = filters.within(inherited.filters);
    let action = action::action(action, inherited, template.as_ref(), notes)?;
    let action = refuse.map_or(action, RouteAction::Refuse);
    Ok(Route {
        name: name.clone(),
        matches,
        action,
        headers,
        fault: filters.fault.map(Box::new),
        cors: filters.cors.map(|c| Box::new(c.finish())),
        rate_limit: filters.rate_limit.map(Box::new),
        max_request_bytes: filters.max_request_bytes,
    })
}

fn path_template(e: &core::TypedExtensionConfig, notes: &mut Notes) -> Result<Template, Invalid> {
    let core::TypedExtensionConfig { name, typed_config } = e;
    match typed_config {
        Some(any) if type_name(any) == PATH_TEMPLATE => {
            let UriTemplateMatchConfig { path_template } = unpack(any, "typed_config", notes)?;
            Template::new(&path_template).map_err(|reason| notes.invalid("typed_config.path_template", reason))
        }
        _ => Err(notes.invalid("", format!("\"{name}\" is no matcher of paths that is known: {PATH_TEMPLATE}"))),
    }
}

/// What a route matches, with its template if it has one.
fn route_match(m: &pb::RouteMatch, notes: &mut Notes) -> Result<(RouteMatch, Option<Template>), Invalid> {
    use pb::route_match::PathSpecifier as P;
    let pb::RouteMatch {
        case_sensitive,
        runtime_fraction,
        headers,
        query_parameters,
        cookies,
        grpc,
        tls_context,
        dynamic_metadata,
        filter_state,
        path_specifier,
    } = m;
    let case_sensitive = bool_or(case_sensitive, true);
    let text = |t: &str| if case_sensitive { t.to_owned() } else { t.to_ascii_lowercase() };
    let mut template = None;
    let path = match path_specifier {
        None => {
            return Err(notes.invalid("path_specifier", "is not set: prefix, path, safe_regex or path_separated_prefix"))
        }
        Some(P::Prefix(p)) => PathSpecifier::Prefix(text(p)),
        Some(P::Path(p)) => PathSpecifier::Path(text(p)),
        Some(P::SafeRegex(r)) => PathSpecifier::SafeRegex(notes.within("safe_regex", |n| matcher::regex(r, n))?),
        Some(P::PathSeparatedPrefix(p)) => {
            if p.len() < 2 || p.ends_with('/') || p.contains(['?', '#']) {
                let reason =
                    format!("\"{p}\" ends in a slash, has a query or fragment, or is shorter than 2 characters");
                return Err(notes.invalid("path_separated_prefix", reason));
            }
            PathSpecifier::PathSeparatedPrefix(text(p))
        }
        Some(P::ConnectMatcher(pb::route_match::ConnectMatcher {})) => {
            notes.refused("connect_matcher", action::CONNECT);
            PathSpecifier::Connect
        }
        Some(P::PathMatchPolicy(e)) => {
            let t = notes.within("path_match_policy", |n| path_template(e, n))?;
            let regex = t.regex.clone();
            template = Some(t);
            PathSpecifier::SafeRegex(regex)
        }
    };
    let fraction = runtime_fraction.as_ref();
    let matches = RouteMatch {
        path,
        case_sensitive,
        headers: notes.list("headers", headers, matcher::header)?,
        query_parameters: notes.list("query_parameters", query_parameters, matcher::query)?,
        grpc: grpc.is_some(),
        runtime_fraction: fraction
            .map(|f| notes.within("runtime_fraction", |n| matcher::runtime_fraction(f, n)))
            .transpose()?,
        cookies: notes.list("cookies", cookies, matcher::cookie)?,
        tls_context: tls_context.as_ref().map(|t| {
            let pb::route_match::TlsContextMatchOptions { presented, validated } = t;
            TlsContextMatch {
                presented: presented.as_ref().map(|b| b.value),
                validated: validated.as_ref().map(|b| b.value),
            }
        }),
        dynamic_metadata: notes.list("dynamic_metadata", dynamic_metadata, metadata::metadata)?,
        filter_state: notes.list("filter_state", filter_state, metadata::filter_state)?,
    };
    Ok((matches, template))
}
