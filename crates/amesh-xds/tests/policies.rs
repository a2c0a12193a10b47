//! Retries, time-outs, faults, CORS and copies: what routes say of them, and what they inherit.

#[path = "common/resources.rs"]
mod resources;

use amesh_model::filter::{FaultError, HttpFilter};
use amesh_model::internal_redirect::RedirectPredicate;
use amesh_model::listener::ChainAction;
use amesh_model::matcher::Fraction;
use amesh_model::retry::retry_on;
use amesh_model::route::{ForwardAction, Route, RouteAction, RouteTable};
use amesh_xds::translate::{self, Invalid, Notes};
use resources::read;

/// A table of one route; each part is what stands in its braces.
fn table(table: &str, host: &str, route: &str, action: &str, notes: &mut Notes) -> Result<RouteTable, Invalid> {
    let yaml = format!(
        "{{name: t, {table} virtual_hosts: [{{name: v, domains: ['*'], {host}
           routes: [{{match: {{prefix: /}}, {route} route: {{cluster: c, {action}}}}}]}}]}}"
    );
    translate::route_table(&read(translate::ROUTE_CONFIGURATION, &yaml), notes)
}

fn route(of_table: &str, of_host: &str, of_route: &str) -> Route {
    let mut table = table(of_table, of_host, of_route, "", &mut Notes::new()).unwrap();
    table.virtual_hosts[0].routes.remove(0)
}

fn action(host: &str, of_action: &str) -> ForwardAction {
    let mut table = table("", host, "", of_action, &mut Notes::new()).unwrap();
    match table.virtual_hosts[0].routes.remove(0).action {
        RouteAction::Route(action) => *action,
        other => panic!("{other:?}"),
    }
}

fn rejects(of_action: &str, field: &str, words: &str) {
    let e = table("", "", "", of_action, &mut Notes::new()).unwrap_err().to_string();
    let place = format!("virtual_hosts[0].routes[0].route.{field}: ");
    assert!(e.starts_with(&place) && e.contains(words), "{of_action}\n{e}");
}

#[test]
fn a_retry_policy_is_read_and_inherited() {
    let full =
        "retry_policy: {retry_on: '5xx, unavailable,retriable-status-codes', num_retries: 4, per_try_timeout: 2s,
        per_try_idle_timeout: 1s, retriable_status_codes: [418], retry_back_off: {base_interval: 0.1s},
        retriable_headers: [{name: X-A}], retriable_request_headers: [{name: x-b}],
        retry_host_predicate: [{name: envoy.retry_host_predicates.previous_hosts}]},";
    let r = action("", full).retry;
    assert_eq!(r.retry_on, retry_on::FIVE_XX | retry_on::GRPC_UNAVAILABLE | retry_on::RETRIABLE_STATUS_CODES);
    assert_eq!((r.num_retries, r.per_try_timeout, r.per_try_idle_timeout), (4, 2000, 1000));
    assert_eq!((r.base_interval, r.max_interval, r.retriable_status_codes.as_slice()), (100, 1000, [418].as_slice()));
    assert_eq!((r.retriable_headers[0].name.as_str(), r.retriable_request_headers[0].name.as_str()), ("x-a", "x-b"));
    assert!(r.previous_hosts);
    assert_eq!(action(full, "").retry, r, "the virtual host's");
    let own = action(full, "retry_policy: {retry_on: reset}").retry;
    assert_eq!((own.retry_on, own.num_retries, own.base_interval, own.max_interval), (retry_on::RESET, 1, 25, 250));
    assert_eq!(action("", "").retry.retry_on, 0);
}

#[test]
fn a_response_may_say_when_to_try_again() {
    let policy = |p: &str| format!("retry_policy: {{retry_on: 5xx, rate_limited_retry_back_off: {{{p}}}}}");
    let read = |p: &str| action("", &policy(p)).retry.rate_limited.unwrap();
    let limited = read("reset_headers: [{name: Retry-After}, {name: X-Reset, format: UNIX_TIMESTAMP}]");
    let headers: Vec<_> = limited.reset_headers.iter().map(|h| (h.name.as_str(), h.unix_timestamp)).collect();
    assert_eq!((headers, limited.max_interval), (vec![("retry-after", false), ("x-reset", true)], 300_000));
    assert_eq!(read("reset_headers: [{name: a}], max_interval: 2s").max_interval, 2000);
    let at = |field: &str| format!("retry_policy.rate_limited_retry_back_off.{field}");
    rejects(&policy(""), &at("reset_headers"), "is empty");
    rejects(&policy("reset_headers: [{name: 'a b'}]"), &at("reset_headers[0].name"), "no name of a header");
    rejects(&policy("reset_headers: [{name: a, format: 7}]"), &at("reset_headers[0].format"), "7 is no value");
    rejects(&policy("reset_headers: [{name: a}], max_interval: 0s"), &at("max_interval"), "");
}

#[test]
fn nonsense_of_a_retry_policy_is_named() {
    rejects("retry_policy: {retriable_status_codes: [200, 70000]}", "retry_policy.retriable_status_codes[1]", "70000");
    rejects("retry_policy: {retry_back_off: {}}", "retry_policy.retry_back_off.base_interval", "not set");
    rejects(
        "retry_policy: {retry_back_off: {base_interval: 2s, max_interval: 1s}}",
        "retry_policy.retry_back_off.max_interval",
        "shorter than base_interval",
    );
    let mut notes = Notes::new();
    table("", "", "", "retry_policy: {retry_on: '5xx,moonshine'}", &mut notes).unwrap();
    let listed: Vec<_> = notes.iter().map(|(n, _)| (n.field.as_str(), n.why.as_ref())).collect();
    assert!(
        matches!(&listed[..], [(field, why)] if field.ends_with("retry_on") && why.contains("moonshine")),
        "{listed:?}"
    );
}

#[test]
fn redirects_are_followed_as_their_policy_says() {
    const KIND: &str = "type.googleapis.com/envoy.extensions.internal_redirect";
    let of = |p: &str| action("", &format!("internal_redirect_policy: {{{p}}}")).internal_redirect;
    assert!(action("", "").internal_redirect.is_none());
    let plain = of("").unwrap();
    assert_eq!((plain.max_internal_redirects, plain.redirect_response_codes.as_slice()), (1, [302].as_slice()));
    assert!(!plain.allow_cross_scheme_redirect && plain.predicates.is_empty());
    let full = of(&format!(
        "max_internal_redirects: 3, redirect_response_codes: [308, 200, 301], allow_cross_scheme_redirect: true,
         response_headers_to_copy: [X-A], predicates: [
         {{name: p, typed_config: {{'@type': {KIND}.previous_routes.v3.PreviousRoutesConfig}}}},
         {{name: a, typed_config: {{'@type': {KIND}.allow_listed_routes.v3.AllowListedRoutesConfig, allowed_route_names: [r]}}}},
         {{name: s, typed_config: {{'@type': {KIND}.safe_cross_scheme.v3.SafeCrossSchemeConfig}}}}]"
    ))
    .unwrap();
    assert_eq!((full.max_internal_redirects, full.redirect_response_codes.as_slice()), (3, [301, 308].as_slice()));
    assert_eq!(full.response_headers_to_copy, ["x-a"]);
    let listed = RedirectPredicate::AllowListedRoutes(vec!["r".into()]);
    assert_eq!(full.predicates, [RedirectPredicate::PreviousRoutes, listed, RedirectPredicate::SafeCrossScheme]);
    assert_eq!(of("max_internal_redirects: 100").unwrap().max_internal_redirects, 9, "as many as nginx follows");
    for (text, field, words) in [
        ("predicates: [{name: own}]", "predicates[0]", "\"own\" () is not supported"),
        ("redirect_response_codes: [1, 2, 3, 4, 5, 6]", "redirect_response_codes", "more than five"),
        ("response_headers_to_copy: ['a b']", "response_headers_to_copy[0]", "no name of a header"),
    ] {
        let field = format!("internal_redirect_policy.{field}");
        rejects(&format!("internal_redirect_policy: {{{text}}}"), &field, words);
    }
}

#[test]
fn times_are_kept_apart() {
    let a = action("", "timeout: 3s, idle_timeout: 4s, max_grpc_timeout: 5s, grpc_timeout_offset: 0.5s");
    assert_eq!((a.timeout, a.idle_timeout), (3000, Some(4000)));
    assert_eq!((a.max_grpc_timeout, a.grpc_timeout_offset), (Some(5000), 500));
    let a =
        action("", "max_grpc_timeout: 5s, max_stream_duration: {max_stream_duration: 9s, grpc_timeout_header_max: 0s}");
    let d = a.max_stream_duration;
    assert_eq!(
        (a.timeout, a.idle_timeout, d.max_stream_duration, d.grpc_timeout_header_max),
        (0, None, Some(9000), Some(0))
    );
}

#[test]
fn copies_are_inherited_as_a_whole() {
    let one = "request_mirror_policies: [{cluster: one}],";
    let two = "request_mirror_policies: [{cluster_header: X-To, disable_shadow_host_suffix_append: true,
        runtime_fraction: {default_value: {numerator: 5, denominator: MILLION}}}],";
    let names = |of_table, host, of_action| {
        let table = table(of_table, host, "", of_action, &mut Notes::new()).unwrap();
        let RouteAction::Route(action) = &table.virtual_hosts[0].routes[0].action else { panic!() };
        action.mirrors.iter().map(|m| format!("{}{}", m.cluster, m.cluster_header)).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(names(one, "", ""), "one");
    assert_eq!(names(one, two, ""), "x-to");
    assert_eq!(names(two, two, one), "one");
    let m = &action(two, "").mirrors[0];
    assert_eq!(m.runtime_fraction, Some(Fraction { numerator: 5, denominator: 1_000_000 }));
    assert!(m.disable_shadow_host_suffix_append);
    rejects("request_mirror_policies: [{}]", "request_mirror_policies[0].cluster", "exactly one");
}

fn fault(text: &str) -> String {
    format!(
        "typed_per_filter_config: {{envoy.filters.http.fault:
           {{'@type': type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault, {text}}}}},"
    )
}

#[test]
fn the_nearest_fault_counts() {
    let abort = |status: u16| fault(&format!("abort: {{http_status: {status}, percentage: {{numerator: 100}}}}"));
    let status = |r: Route| match r.fault.and_then(|f| f.abort).map(|a| a.error) {
        Some(FaultError::Http(status)) => status,
        _ => 0,
    };
    assert_eq!(status(route(&abort(501), "", "")), 501);
    assert_eq!(status(route(&abort(501), &abort(502), "")), 502);
    assert_eq!(status(route(&abort(501), &abort(502), &abort(503))), 503);
    let off = "typed_per_filter_config: {envoy.filters.http.fault:
        {'@type': type.googleapis.com/envoy.config.route.v3.FilterConfig, disabled: true}},";
    assert_eq!(status(route(&abort(501), "", off)), 0, "switched off at the route");
    assert!(route("", "", "").fault.is_none());
    let delay =
        route("", "", &fault("delay: {fixed_delay: 1s, percentage: {numerator: 1, denominator: TEN_THOUSAND}}"));
    let delay = delay.fault.unwrap().delay.unwrap();
    assert_eq!((delay.fixed, delay.percentage), (Some(1000), Fraction { numerator: 1, denominator: 10_000 }));
}

#[test]
fn nonsense_of_a_fault_is_named() {
    for (text, field, words) in [
        ("abort: {http_status: 600}", "abort.http_status", "600"),
        ("abort: {}", "abort", "has no error"),
        ("delay: {fixed_delay: 0s}", "delay.fixed_delay", "above 0"),
        ("delay: {}", "delay", "has no delay"),
    ] {
        let e = table("", "", &fault(text), "", &mut Notes::new()).unwrap_err().to_string();
        let place = format!("routes[0].typed_per_filter_config[\"envoy.filters.http.fault\"].{field}: ");
        assert!(e.contains(&place) && e.contains(words), "{text}\n{e}");
    }
}

#[test]
fn a_cors_policy_is_joined_field_by_field() {
    let cors = |text: &str| {
        format!(
            "typed_per_filter_config: {{envoy.filters.http.cors:
               {{'@type': type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy, {text}}}}},"
        )
    };
    let outer =
        cors("allow_origin_string_match: [{exact: a}], max_age: '1', allow_methods: GET, allow_credentials: true");
    let inner = cors("max_age: '2', allow_credentials: false, filter_enabled: {default_value: {numerator: 50}}");
    let c = route("", &outer, &inner).cors.unwrap();
    assert_eq!((c.max_age.as_str(), c.allow_methods.as_str(), c.allow_credentials), ("2", "GET", false));
    assert_eq!((c.allow_origin.len(), c.enabled.numerator, c.forward_not_matching_preflights), (1, 50, true));
    let old = table("", "cors: {max_age: '3'},", "", "cors: {allow_methods: PUT}", &mut Notes::new()).unwrap();
    let c = old.virtual_hosts[0].routes[0].cors.clone().unwrap();
    assert_eq!((c.max_age.as_str(), c.allow_methods.as_str()), ("3", "PUT"), "the older fields");
}

#[test]
fn filters_keep_their_order() {
    let yaml = "{name: l, address: {socket_address: {address: 127.0.0.1, port_value: 80}}, filter_chains: [{filters: [{name: h,
      typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager,
      stat_prefix: s, route_config: {name: r, virtual_hosts: [{name: v, domains: ['*']}]},
      common_http_protocol_options: {max_stream_duration: 7s}, http_filters: [
      {name: c, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors}},
      {name: f, disabled: true, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault,
        abort: {http_status: 500, percentage: {numerator: 100}}}},
      {name: r, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]}}]}]}";
    let l = translate::listener(&read(translate::LISTENER, yaml), &mut Notes::new()).unwrap().listener;
    let ChainAction::Http(h) = &l.filter_chains[0].action else { panic!() };
    assert!(matches!(&h.filters[..], [HttpFilter::Cors, HttpFilter::Fault(f)] if f.abort.is_none()), "{:?}", h.filters);
    assert_eq!(h.max_stream_duration, 7000);
}
