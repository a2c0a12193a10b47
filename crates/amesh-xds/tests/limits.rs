//! Local rate limits and the buffer filter: what is read, inherited and refused.

#[path = "common/resources.rs"]
mod resources;

use amesh_model::batch::Value;
use amesh_model::bucket::TokenBucket;
use amesh_model::filter::{HttpFilter, LocalRateLimit};
use amesh_model::listener::{ChainAction, HttpConnectionManager};
use amesh_model::matcher::Fraction;
use amesh_model::route::{Route, RouteAction, RouteTable};
use amesh_xds::translate::{self, Invalid, Notes};
use resources::read;

const NAME: &str = "envoy.filters.http.local_ratelimit";
const LIMIT: &str = "'@type': type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit";
const BUFFER: &str = "envoy.extensions.filters.http.buffer.v3";

fn limit(text: &str) -> String {
    format!("typed_per_filter_config: {{{NAME}: {{{LIMIT}, {text}}}}},")
}

fn bucket(max: u32) -> String {
    limit(&format!("stat_prefix: s, token_bucket: {{max_tokens: {max}, fill_interval: 1s}}"))
}

/// A table of two routes; each part is what stands in its braces, the last that of the first route.
fn table(table: &str, host: &str, route: &str) -> Result<RouteTable, Invalid> {
    let yaml = format!(
        "{{name: t, {table} virtual_hosts: [{{name: v, domains: ['*'], {host} routes: [
           {{match: {{prefix: /a}}, {route} route: {{cluster: c}}}}, {{match: {{prefix: /}}, route: {{cluster: c}}}}]}}]}}"
    );
    translate::route_table(&read(translate::ROUTE_CONFIGURATION, &yaml), &mut Notes::new())
}

fn routes(of_table: &str, of_host: &str, of_route: &str) -> Vec<Route> {
    table(of_table, of_host, of_route).unwrap().virtual_hosts.remove(0).routes
}

fn manager(filters: &str) -> Result<Box<HttpConnectionManager>, Invalid> {
    let yaml = format!(
        "{{name: l, address: {{socket_address: {{address: 127.0.0.1, port_value: 80}}}}, filter_chains: [{{filters: [{{name: h,
         typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager,
         stat_prefix: s, route_config: {{name: r, virtual_hosts: [{{name: v, domains: ['*']}}]}}, http_filters: [{filters}
         {{name: r, typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}]}}}}]}}]}}"
    );
    let mut l = translate::listener(&read(translate::LISTENER, &yaml), &mut Notes::new())?.listener;
    match l.filter_chains.remove(0).action {
        ChainAction::Http(manager) => Ok(manager),
        other => panic!("{other:?}"),
    }
}

fn max(route: &Route) -> Option<u32> {
    route.rate_limit.as_ref()?.bucket.as_ref().map(|b| b.max_tokens)
}

#[test]
fn a_limit_is_read_with_envoys_defaults() {
    let of = |text: &str| *routes("", "", &limit(text)).remove(0).rate_limit.unwrap();
    let plain = of("stat_prefix: s, token_bucket: {max_tokens: 5, fill_interval: 0.05s}");
    let b = plain.bucket.unwrap();
    assert_eq!((b.max_tokens, b.tokens_per_fill, b.fill_interval, plain.status), (5, 1, 50, 429));
    assert_eq!((plain.enabled, plain.enforced), (Fraction::default(), Fraction::default()), "of nothing");
    assert!(!plain.per_connection && !plain.tell && !plain.resource_exhausted && !plain.retry_after);
    let full = of("stat_prefix: s, token_bucket: {max_tokens: 0, tokens_per_fill: 7, fill_interval: 60s}, status: {code: 503},
        filter_enabled: {default_value: {numerator: 3}}, filter_enforced: {default_value: {numerator: 4, denominator: MILLION}},
        request_headers_to_add_when_not_enforced: [{header: {key: X-A, value: a}}],
        response_headers_to_add: [{header: {key: X-B, value: b}}], local_rate_limit_per_downstream_connection: true,
        enable_x_ratelimit_headers: DRAFT_VERSION_03, rate_limited_as_resource_exhausted: true, enable_retry_after_header: true");
    assert_eq!((full.status, full.enabled.numerator, full.enforced.denominator), (503, 3, 1_000_000));
    assert_eq!((full.headers.request_add[0].key.as_str(), full.headers.response_add[0].key.as_str()), ("x-a", "x-b"));
    assert!(full.per_connection && full.tell && full.resource_exhausted && full.retry_after);
    assert_eq!(of("stat_prefix: s, status: {code: 200}, token_bucket: {fill_interval: 1s}").status, 429);
}

#[test]
fn the_nearest_limit_counts_and_a_bucket_is_shared_by_those_that_inherit_it() {
    let found = routes(&bucket(1), "", "");
    assert_eq!(found.iter().map(max).collect::<Vec<_>>(), [Some(1), Some(1)]);
    let found = routes(&bucket(1), &bucket(2), &bucket(3));
    assert_eq!(found.iter().map(max).collect::<Vec<_>>(), [Some(3), Some(2)]);
    let off = format!(
        "typed_per_filter_config: {{{NAME}: {{'@type': type.googleapis.com/envoy.config.route.v3.FilterConfig, disabled: true}}}},"
    );
    let found = routes("", &bucket(2), &off);
    assert_eq!(found.iter().map(max).collect::<Vec<_>>(), [None, Some(2)]);
    assert!(found[0].rate_limit.is_some(), "and not that of the filter either");

    let places = |host: &str, route: &str| {
        let mut value = Value::RouteTable(table("", host, route).unwrap());
        assert!(value.has_buckets());
        let mut places = Vec::new();
        let mut keep = |b: &mut TokenBucket| {
            places.push(b.place.clone());
            Ok::<_, ()>(())
        };
        value.buckets(&mut keep).unwrap();
        places
    };
    let shared = places(&bucket(2), "");
    assert_eq!((shared.len(), &shared[0]), (2, &shared[1]));
    let apart = places(&bucket(2), &bucket(2));
    assert!(apart.len() == 2 && apart[0] != apart[1], "{apart:?}");
    assert!(!Value::RouteTable(table("", "", "").unwrap()).has_buckets());
}

#[test]
fn a_limit_that_cannot_be_kept_refuses_its_place() {
    for (text, words) in [
        (
            "descriptors: [{entries: [{key: a, value: b}], token_bucket: {max_tokens: 1, fill_interval: 1s}}]",
            "descriptors:",
        ),
        ("local_cluster_rate_limit: {}", "local_cluster_rate_limit:"),
    ] {
        let text = format!("stat_prefix: s, token_bucket: {{max_tokens: 1, fill_interval: 1s}}, {text}");
        let found = routes("", "", &limit(&text));
        assert!(matches!(&found[0].action, RouteAction::Refuse(why) if why.contains(words)), "{:?}", found[0].action);
        assert!(matches!(found[1].action, RouteAction::Route(_)));
        let refused = manager(&format!("{{name: l, typed_config: {{{LIMIT}, {text}}}}},")).unwrap().refuse;
        assert!(refused.as_ref().is_some_and(|why| why.contains(words)), "{refused:?}");
    }
    let arm = format!(
        "{{name: t, virtual_hosts: [{{name: v, domains: ['*'], routes: [{{match: {{prefix: /}},
         route: {{weighted_clusters: {{clusters: [{{name: c, weight: 1, {}}}]}}}}}}]}}]}}",
        bucket(1)
    );
    let table = translate::route_table(&read(translate::ROUTE_CONFIGURATION, &arm), &mut Notes::new()).unwrap();
    let RouteAction::Refuse(why) = &table.virtual_hosts[0].routes[0].action else { panic!("an arm's own limit") };
    assert!(why.contains("clusters[0].typed_per_filter_config"), "{why}");
}

#[test]
fn nonsense_of_a_limit_is_named() {
    for (text, field, words) in [
        ("token_bucket: {fill_interval: 1s}", "stat_prefix", "is empty"),
        ("stat_prefix: s", "token_bucket", "is not set"),
        ("stat_prefix: s, token_bucket: {max_tokens: 1}", "token_bucket.fill_interval", "is not set"),
        ("stat_prefix: s, token_bucket: {fill_interval: 0.049s}", "token_bucket.fill_interval", "shorter than 50 ms"),
        (
            "stat_prefix: s, token_bucket: {fill_interval: 1s, tokens_per_fill: 0}",
            "token_bucket.tokens_per_fill",
            "above 0",
        ),
        (
            "stat_prefix: s, token_bucket: {fill_interval: 1s}, filter_enabled: {}",
            "filter_enabled.default_value",
            "is not set",
        ),
        (
            "stat_prefix: s, token_bucket: {fill_interval: 1s}, enable_x_ratelimit_headers: 9",
            "enable_x_ratelimit_headers",
            "9 is no value",
        ),
    ] {
        let e = table("", "", &limit(text)).unwrap_err().to_string();
        assert!(e.contains(&format!("[\"{NAME}\"].{field}: ")) && e.contains(words), "{text}\n{e}");
    }
    let none = manager(&format!("{{name: l, typed_config: {{{LIMIT}, stat_prefix: s}}}},")).unwrap();
    assert!(matches!(&none.filters[..], [HttpFilter::LocalRateLimit(l)] if l.bucket.is_none()), "routes may have one");
    let off = manager(&format!(
        "{{name: l, disabled: true, typed_config: {{{LIMIT}, stat_prefix: s, token_bucket: {{fill_interval: 1s}}}}}},"
    ));
    assert_eq!(off.unwrap().filters, [HttpFilter::LocalRateLimit(LocalRateLimit::default())]);
}

#[test]
fn the_nearest_word_on_buffering_counts() {
    let filter = |text: &str| {
        manager(&format!("{{name: b, typed_config: {{'@type': type.googleapis.com/{BUFFER}.Buffer, {text}}}}},"))
    };
    assert_eq!(filter("max_request_bytes: 7").unwrap().filters, [HttpFilter::Buffer(7)]);
    let of = |text: &str| {
        format!("typed_per_filter_config: {{envoy.filters.http.buffer: {{'@type': type.googleapis.com/{BUFFER}.BufferPerRoute, {text}}}}},")
    };
    let own = of("buffer: {max_request_bytes: 9}");
    let found = routes("", &of("disabled: true"), &own);
    assert_eq!(found.iter().map(|r| r.max_request_bytes).collect::<Vec<_>>(), [Some(9), Some(0)]);
    assert_eq!(routes("", "", "")[0].max_request_bytes, None);
    for (text, words) in
        [("buffer: {}", "buffer.max_request_bytes: is not set"), ("disabled: false", "must be true"), ("", "override")]
    {
        let e = table("", "", &of(text)).unwrap_err().to_string();
        assert!(e.contains(words), "{text}\n{e}");
    }
    for (text, words) in [("", "is not set"), ("max_request_bytes: 0", "above 0")] {
        let e = filter(text).unwrap_err().to_string();
        assert!(e.contains(".max_request_bytes: ") && e.contains(words), "{e}");
    }
}
