//! `HttpConnectionManager`.

use super::notes::{ignored, Set};
use super::value::{bool_or, enumeration, millis, type_name};
use super::{filter, route, scope, Invalid, Notes};
use amesh_model::listener::{
    ChainAction, EscapedSlashes, HttpConnectionManager, RouteSpecifier, ServerHeader, Underscores,
};
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as pb;
use pb::http_connection_manager as hcm;
use std::collections::{BTreeMap, HashSet};

const UUID: &str = "envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig";
/// How long Envoy waits for a resource that it asked for, in ms (`ConfigSource.initial_fetch_timeout`).
pub(super) const INITIAL_FETCH_TIMEOUT: u64 = 15_000;

/// A connection manager; a chain that refuses where its routes cannot be known.
pub(super) fn manager(
    m: &pb::HttpConnectionManager,
    tables: &mut BTreeMap<String, u64>,
    notes: &mut Notes,
) -> Result<ChainAction, Invalid> {
    let pb::HttpConnectionManager {
        codec_type,
        stat_prefix,
        http_filters,
        add_user_agent,
        tracing,
        common_http_protocol_options,
        http1_safe_max_connection_duration,
        http_protocol_options,
        http2_protocol_options,
        http3_protocol_options,
        server_name,
        server_header_transformation,
        scheme_header_transformation,
        max_request_headers_kb,
        stream_idle_timeout,
        stream_flush_timeout,
        request_timeout,
        request_headers_timeout,
        drain_timeout,
        drain_timeout_jitter,
        delayed_close_timeout,
        access_log,
        access_log_flush_interval,
        flush_access_log_on_new_request,
        access_log_options,
        use_remote_address,
        xff_num_trusted_hops,
        original_ip_detection_extensions,
        early_header_mutation_extensions,
        internal_address_config,
        skip_xff_append,
        via,
        generate_request_id,
        preserve_external_request_id,
        always_set_request_id_in_response,
        forward_client_cert_details,
        set_current_client_cert_details,
        forward_client_cert_matcher,
        proxy_100_continue,
        represent_ipv4_remote_address_as_ipv4_mapped_ipv6,
        upgrade_configs,
        normalize_path,
        merge_slashes,
        path_with_escaped_slashes_action,
        request_id_extension,
        local_reply_config,
        strip_matching_host_port,
        stream_error_on_invalid_http_message,
        path_normalization_options,
        strip_trailing_host_dot,
        proxy_status_config,
        typed_header_validation_config,
        append_x_forwarded_port,
        append_local_overload,
        add_proxy_protocol_connection_state,
        forward_proto_config,
        route_specifier,
        strip_port_mode,
    } = m;
    let header = "this header is not added";
    ignored!(notes, header; add_user_agent, append_x_forwarded_port, append_local_overload, proxy_status_config);
    ignored!(notes, "there is no tracing"; tracing);
    ignored!(notes, "nginx's own limits and time-outs hold";
        http1_safe_max_connection_duration, http_protocol_options, http2_protocol_options, http3_protocol_options,
        max_request_headers_kb, stream_flush_timeout, drain_timeout, drain_timeout_jitter, delayed_close_timeout, stream_error_on_invalid_http_message, proxy_100_continue);
    let trailers = http_protocol_options.as_ref().is_some_and(|o| o.enable_trailers);
    if trailers {
        notes.ignored("http_protocol_options.enable_trailers", "nginx's proxy passes no trailers of requests on");
    }
    ignored!(notes, "client_header_timeout of nginx says how long headers may take"; request_headers_timeout);
    ignored!(notes, "nginx writes its own access logs";
        access_log, access_log_flush_interval, flush_access_log_on_new_request, access_log_options);
    ignored!(notes, "x-forwarded-client-cert is taken off: there is no client certificate";
        forward_client_cert_details, set_current_client_cert_details, forward_client_cert_matcher);
    ignored!(notes, "the client's address is that of the connection or of x-forwarded-for";
        original_ip_detection_extensions,
        represent_ipv4_remote_address_as_ipv4_mapped_ipv6, add_proxy_protocol_connection_state);
    ignored!(notes, "the scheme is that of the connection"; scheme_header_transformation, forward_proto_config);
    ignored!(notes, "local replies are Envoy's own"; local_reply_config);
    ignored!(notes, "headers are validated as nginx does"; typed_header_validation_config);
    ignored!(notes, "normalize_path and merge_slashes say what is done"; path_normalization_options);
    if let Some(any) = request_id_extension.as_ref().and_then(|e| e.typed_config.as_ref()) {
        if type_name(any) != UUID {
            notes.ignored("request_id_extension", "request ids are UUIDs");
        } else if any.value.is_set() {
            notes.ignored("request_id_extension.typed_config", "it says something of tracing");
        }
    }
    if stat_prefix.is_empty() {
        return Err(notes.invalid("stat_prefix", "is empty"));
    }
    enumeration::<hcm::CodecType>(*codec_type, "codec_type", notes)?;
    match hcm::CodecType::try_from(*codec_type) {
        Ok(hcm::CodecType::Auto) => {}
        _ => ignored!(notes, "the protocol is what the client speaks"; codec_type),
    }
    let filters = filter::http_filters(http_filters, notes)?;
    let mut refuse = filters.refuse;
    if early_header_mutation_extensions.is_set() {
        refuse = Some(notes.refused("early_header_mutation_extensions", "routes depend on headers that it changes"));
    }
    let (underscores, max_stream_duration) = match common_http_protocol_options {
        None => (Underscores::Allow, 0),
        Some(o) => notes.within("common_http_protocol_options", |n| protocol_options(o, n))?,
    };
    let routes = match routes(route_specifier, tables, notes)? {
        Ok(r) => r,
        Err(refused) => return Ok(ChainAction::Refuse(refused)),
    };
    let websocket = upgrades(upgrade_configs, notes)?;
    Ok(ChainAction::Http(Box::new(HttpConnectionManager {
        stat_prefix: stat_prefix.clone(),
        routes,
        server_name: if server_name.is_empty() { "envoy".to_owned() } else { server_name.clone() },
        server_header_transformation: match enumeration::<hcm::ServerHeaderTransformation>(
            *server_header_transformation,
            "server_header_transformation",
            notes,
        )? {
            hcm::ServerHeaderTransformation::Overwrite => ServerHeader::Overwrite,
            hcm::ServerHeaderTransformation::AppendIfAbsent => ServerHeader::AppendIfAbsent,
            hcm::ServerHeaderTransformation::PassThrough => ServerHeader::PassThrough,
        },
        use_remote_address: bool_or(use_remote_address, false),
        internal_addresses: match internal_address_config {
            None => vec![],
            Some(c) => notes.within("internal_address_config", |n| {
                let hcm::InternalAddressConfig { unix_sockets: _, cidr_ranges } = c;
                n.list("cidr_ranges", cidr_ranges, super::value::cidr)
            })?,
        },
        xff_num_trusted_hops: *xff_num_trusted_hops,
        skip_xff_append: *skip_xff_append,
        via: via.clone(),
        generate_request_id: bool_or(generate_request_id, true),
        preserve_external_request_id: *preserve_external_request_id,
        always_set_request_id_in_response: *always_set_request_id_in_response,
        normalize_path: bool_or(normalize_path, false),
        merge_slashes: *merge_slashes,
        path_with_escaped_slashes_action: match enumeration::<hcm::PathWithEscapedSlashesAction>(
            *path_with_escaped_slashes_action,
            "path_with_escaped_slashes_action",
            notes,
        )? {
            hcm::PathWithEscapedSlashesAction::ImplementationSpecificDefault
            | hcm::PathWithEscapedSlashesAction::KeepUnchanged => EscapedSlashes::KeepUnchanged,
            hcm::PathWithEscapedSlashesAction::RejectRequest => EscapedSlashes::RejectRequest,
            hcm::PathWithEscapedSlashesAction::UnescapeAndRedirect => EscapedSlashes::UnescapeAndRedirect,
            hcm::PathWithEscapedSlashesAction::UnescapeAndForward => EscapedSlashes::UnescapeAndForward,
        },
        strip_matching_host_port: *strip_matching_host_port,
        strip_any_host_port: matches!(strip_port_mode, Some(hcm::StripPortMode::StripAnyHostPort(true))),
        strip_trailing_host_dot: *strip_trailing_host_dot,
        headers_with_underscores_action: underscores,
        websocket,
        stream_idle_timeout: millis(stream_idle_timeout, "stream_idle_timeout", notes)?.unwrap_or(300_000),
        max_stream_duration,
        request_timeout: millis(request_timeout, "request_timeout", notes)?.unwrap_or(0),
        refuse,
        suppress_envoy_headers: filters.suppress_envoy_headers,
        respect_expected_rq_timeout: filters.respect_expected_rq_timeout,
        filters: filters.filters,
    })))
}

/// What is done with underscores, and how long a stream may last (0: for ever).
fn protocol_options(o: &core::HttpProtocolOptions, notes: &mut Notes) -> Result<(Underscores, u64), Invalid> {
    use core::http_protocol_options::HeadersWithUnderscoresAction as U;
    let core::HttpProtocolOptions {
        idle_timeout,
        max_connection_duration,
        max_connection_duration_jitter,
        max_headers_count,
        max_response_headers_kb: _,
        max_stream_duration,
        headers_with_underscores_action,
        max_requests_per_connection,
    } = o;
    ignored!(notes, "nginx's own limits and time-outs hold";
        idle_timeout, max_connection_duration, max_connection_duration_jitter, max_headers_count,
        max_requests_per_connection);
    let underscores =
        match enumeration::<U>(*headers_with_underscores_action, "headers_with_underscores_action", notes)? {
            U::Allow => Underscores::Allow,
            U::RejectRequest => Underscores::RejectRequest,
            U::DropHeader => Underscores::DropHeader,
        };
    Ok((underscores, millis(max_stream_duration, "max_stream_duration", notes)?.unwrap_or(0)))
}

/// Where the routes are, or why the chain must be refused.
fn routes(
    specifier: &Option<hcm::RouteSpecifier>,
    tables: &mut BTreeMap<String, u64>,
    notes: &mut Notes,
) -> Result<Result<RouteSpecifier, String>, Invalid> {
    match specifier {
        None => Err(notes.invalid("route_specifier", "is not set: rds or route_config")),
        Some(hcm::RouteSpecifier::Rds(pb::Rds { config_source, route_config_name })) => {
            if route_config_name.is_empty() {
                return Err(notes.invalid("rds.route_config_name", "is empty"));
            }
            let Some(source) = config_source else {
                return Err(notes.invalid("rds.config_source", "is not set"));
            };
            let field = "rds.config_source.initial_fetch_timeout";
            let wait = millis(&source.initial_fetch_timeout, field, notes)?.unwrap_or(INITIAL_FETCH_TIMEOUT);
            tables.insert(route_config_name.clone(), wait);
            Ok(Ok(RouteSpecifier::Rds(route_config_name.clone())))
        }
        Some(hcm::RouteSpecifier::RouteConfig(table)) => {
            let table = notes.within("route_config", |n| route::route_table(table, n))?;
            Ok(Ok(RouteSpecifier::Inline(Box::new(table))))
        }
        Some(hcm::RouteSpecifier::ScopedRoutes(s)) => notes
            .within("scoped_routes", |n| scope::scoped_routes(s, tables, n))
            .map(|scoped| scoped.map(|s| RouteSpecifier::Scoped(Box::new(s)))),
    }
}

/// Whether web sockets are let through.
fn upgrades(configs: &[hcm::UpgradeConfig], notes: &mut Notes) -> Result<bool, Invalid> {
    let mut seen = HashSet::new();
    let mut websocket = false;
    for (i, c) in configs.iter().enumerate() {
        notes.each("upgrade_configs", i, |notes| {
            let hcm::UpgradeConfig { upgrade_type, filters, enabled } = c;
            let kind = upgrade_type.to_ascii_lowercase();
            if !seen.insert(kind.clone()) {
                return Err(notes.invalid("upgrade_type", format!("\"{upgrade_type}\" is there twice")));
            }
            if matches!(kind.as_str(), "connect" | "connect-udp") {
                notes.refused("upgrade_type", super::action::CONNECT);
            } else if kind != "websocket" {
                let why = "is not supported: its requests are answered by 403";
                notes.refused("upgrade_type", format!("\"{upgrade_type}\" {why}"));
            } else if filters.is_set() {
                notes.ignored("filters", "filters of an upgrade are not supported: there is no upgrade");
            } else {
                websocket = bool_or(enabled, true);
            }
            Ok(())
        })?;
    }
    Ok(websocket)
}
