//! One test: the decision on its request, and what differs from what it expects.

use super::cases::{Case, Expected, HeaderValue, RouteMetadata, Validate};
use super::request::{Facts, Known, Lines, Request, Response};
use super::{Error, Table};
use amesh_dataplane::header::{HeaderMap, Levels};
use amesh_dataplane::regex::RegexCache;
use amesh_dataplane::route::{self, Decision, RequestHead};
use amesh_model::matcher::{HeaderMatch, HeaderMatcher, StringPattern};
use amesh_model::route::{ArchivedClusterSpecifier, ArchivedRoute, ArchivedRouteTable, ArchivedVirtualHost};
use rkyv::rancor;

/// What a test has to say.
#[derive(Debug, Default)]
pub struct Outcome {
    /// What is not as it is expected, a line each; empty: the test has passed.
    pub failures: Vec<String>,
    /// The route that took the request.
    pub place: Option<Place>,
    /// The fields of that route that were as expected.
    pub met: Vec<Field>,
}

/// The identity of a route in its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Index of the virtual host.
    pub host: usize,
    /// Index of the route.
    pub route: usize,
    /// Index of the weighted cluster that was chosen; 0 without.
    pub arm: usize,
}

/// A field that counts for coverage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Field {
    /// `cluster_name`.
    Cluster,
    /// `virtual_cluster_name`.
    VirtualCluster,
    /// `virtual_host_name`.
    VirtualHost,
    /// `path_rewrite`.
    PathRewrite,
    /// `host_rewrite`.
    HostRewrite,
    /// `path_redirect` or `code_redirect`.
    PathRedirect,
}

/// What became of a request.
#[derive(Default)]
struct Seen {
    place: Option<Place>,
    /// Of a request that is forwarded.
    forwarded: Option<Forwarded>,
    /// Of a request that is answered: location and status.
    answered: Option<(String, u16)>,
    refused: Option<String>,
    response: Lines,
}

#[derive(Default)]
struct Forwarded {
    cluster: String,
    virtual_cluster: String,
    virtual_host: String,
    path: String,
    host: String,
    timeout: u64,
}

/// Runs a test.
///
/// # Errors
/// [`Error::Archive`].
pub fn check(table: &Table, case: &Case, regexes: &mut RegexCache) -> Result<Outcome, Error> {
    let mut request = Request::new(&case.input);
    let seen = see(table.routes()?, case, &mut request, regexes);
    let mut outcome = Outcome { place: seen.place, ..Outcome::default() };
    if let Some(reason) = &seen.refused {
        outcome.failures.push(format!("refused with 500: {reason}"));
    }
    outcome.fields(&case.validate, &seen);
    for RouteMetadata { namespace, key, value } in &case.validate.route_metadata {
        let actual = seen.place.and_then(|place| table.route_metadata(place, namespace, key)).unwrap_or_default();
        let place = format!("route_metadata.{namespace}.{key}");
        outcome.compare(&Some(value.clone()), &actual, &place, None);
    }
    let Validate { request_header_fields, response_header_fields, .. } = &case.validate;
    outcome.values("request_header_fields", request_header_fields, |name| {
        HeaderMap::get(&request, name).map(|value| String::from_utf8_lossy(&value).into_owned())
    });
    outcome.values("response_header_fields", response_header_fields, |name| text(seen.response.first(name)));
    outcome.matches("request_header_matches", &case.validate.request_header_matches, &request, regexes)?;
    let response = Response(&seen.response);
    outcome.matches("response_header_matches", &case.validate.response_header_matches, &response, regexes)?;
    Ok(outcome)
}

fn text(value: Option<&[u8]>) -> Option<String> {
    value.map(|value| String::from_utf8_lossy(value).into_owned())
}

/// Decides on a request and makes it, and the response to it, what the decision says.
fn see(table: &ArchivedRouteTable, case: &Case, request: &mut Request<'_>, regexes: &mut RegexCache) -> Seen {
    let received = request.clone();
    let mut seen = Seen::default();
    for header in &case.input.additional_response_headers {
        seen.response.append(&header.key.to_ascii_lowercase(), header.value.as_bytes());
    }
    let decision = route::decide(table, &received, regexes);
    let host = decision.virtual_host();
    let virtual_cluster = host.and_then(|host| route::virtual_cluster(host, &received, regexes)).unwrap_or_default();
    let internal_only = if received.is_internal() { &[][..] } else { &table.internal_only_headers };
    let levels = |route| Levels { internal_only, ..levels(table, host, route) };
    let place = |host: (usize, &_), route: (usize, &_)| Place { host: host.0, route: route.0, arm: 0 };
    match decision {
        Decision::NotFound => {}
        Decision::Refuse { reason } => seen.refused = Some(reason.to_owned()),
        Decision::Redirect { virtual_host, route, status, location } => {
            seen.place = route.map(|route| place(virtual_host, route));
            seen.response.set("location", location.as_bytes());
            let route = route.map(|route| route.1);
            let known = Known { route: route.map_or("", |r| &r.name), virtual_cluster, ..Known::default() };
            levels(route).edit_response(&mut seen.response, &Facts { request: &received, known });
            seen.answered = Some((location, status));
        }
        Decision::Direct { virtual_host, route, status, body, content_type, location } => {
            seen.place = Some(place(virtual_host, route));
            if !body.is_empty() {
                seen.response.set("content-length", body.len().to_string().as_bytes());
                seen.response.set("content-type", content_type.as_bytes());
            }
            if let Some(location) = location {
                seen.response.set("location", location.as_bytes());
            }
            let known = Known { route: &route.1.name, virtual_cluster, ..Known::default() };
            levels(Some(route.1)).edit_response(&mut seen.response, &Facts { request: &received, known });
            // To Envoy it is a redirect to where the request is already.
            let here = [received.scheme(), "://", received.host(), received.path()].concat();
            seen.answered = Some((here, status));
        }
        Decision::ClusterNotFound { virtual_host, route, .. } => {
            seen.place = Some(place(virtual_host, route));
            let known = Known { route: &route.1.name, virtual_cluster, ..Known::default() };
            let levels = levels(Some(route.1));
            levels.edit_request(request, &Facts { request: &received, known });
            levels.edit_response(&mut seen.response, &Facts { request: &request.clone(), known });
            seen.forwarded = Some(Forwarded::new(request, known, virtual_host.1));
        }
        Decision::Forward(forward) => {
            let arm = match (&forward.action.cluster, forward.arm) {
                (ArchivedClusterSpecifier::Weighted { clusters, .. }, Some(arm)) => {
                    clusters.iter().position(|c| std::ptr::eq(c, arm)).unwrap_or(0)
                }
                _ => 0,
            };
            seen.place = Some(Place { arm, ..place(forward.virtual_host, forward.route) });
            let weighted_cluster = forward.arm.map(|arm| &arm.headers);
            let levels = Levels { weighted_cluster, ..levels(Some(forward.route.1)) };
            let known = Known { route: &forward.route.1.name, cluster: &forward.cluster, virtual_cluster };
            levels.edit_request(request, &Facts { request: &received, known });
            let header = |name: &str| request.get(name).map(|value| String::from_utf8_lossy(&value).into_owned());
            if let Some(new) = forward.new_host(&request.host, header) {
                if let Some(old) = &new.old {
                    request.set("x-envoy-original-host", old.as_bytes());
                }
                if forward.action.append_x_forwarded_host {
                    let others = request.get("x-forwarded-host").unwrap_or_default().into_owned();
                    if let Some(all) = new.forwarded(&String::from_utf8_lossy(&others)) {
                        request.set("x-forwarded-host", all.as_bytes());
                    }
                }
                request.host = new.host;
            }
            if let Some(path) = &forward.path {
                request.set("x-envoy-original-path", received.path.as_bytes());
                request.path.clone_from(path);
            }
            // A response sees the request that went upstream.
            levels.edit_response(&mut seen.response, &Facts { request: &request.clone(), known });
            let timeout = forward.action.timeout.to_native();
            seen.forwarded = Some(Forwarded { timeout, ..Forwarded::new(request, known, forward.virtual_host.1) });
        }
    }
    seen
}

impl Forwarded {
    fn new(request: &Request<'_>, known: Known<'_>, host: &ArchivedVirtualHost) -> Forwarded {
        Forwarded {
            cluster: known.cluster.to_owned(),
            // To Envoy's statistics, which its tool looks at, what is part of no group has a name too.
            virtual_cluster: match known.virtual_cluster {
                "" if !host.virtual_clusters.is_empty() => "other".to_owned(),
                name => name.to_owned(),
            },
            virtual_host: host.name.as_str().to_owned(),
            path: request.path.clone(),
            host: request.host.clone(),
            timeout: 0,
        }
    }
}

fn levels<'a>(
    table: &'a ArchivedRouteTable,
    host: Option<&'a ArchivedVirtualHost>,
    route: Option<&'a ArchivedRoute>,
) -> Levels<'a> {
    Levels {
        internal_only: &[],
        weighted_cluster: None,
        route: route.map(|route| &route.headers),
        virtual_host: host.map(|host| &host.headers),
        table: Some(&table.headers),
        most_specific_wins: table.most_specific_header_mutations_wins,
    }
}

impl Outcome {
    fn compare(&mut self, expected: &Option<String>, actual: &str, name: &str, field: Option<Field>) {
        match expected {
            None => {}
            Some(expected) if expected == actual => self.met.extend(field),
            Some(expected) => self.fail(expected, actual, name),
        }
    }

    fn fail(&mut self, expected: &str, actual: &str, test: &str) {
        self.failures.push(format!("expected: [{expected}], actual: [{actual}], test type: {test}"));
    }

    fn fields(&mut self, expected: &Validate, seen: &Seen) {
        let none = Forwarded::default();
        let forwarded = seen.forwarded.as_ref();
        // Only what the route itself does counts as covered: that a redirect has no cluster says nothing.
        let if_forwarded = |field| forwarded.map(|_| field);
        let it = forwarded.unwrap_or(&none);
        self.compare(&expected.cluster_name, &it.cluster, "cluster_name", if_forwarded(Field::Cluster));
        self.compare(
            &expected.virtual_cluster_name,
            &it.virtual_cluster,
            "virtual_cluster_name",
            if_forwarded(Field::VirtualCluster),
        );
        self.compare(
            &expected.virtual_host_name,
            &it.virtual_host,
            "virtual_host_name",
            if_forwarded(Field::VirtualHost),
        );
        self.compare(&expected.path_rewrite, &it.path, "path_rewrite", if_forwarded(Field::PathRewrite));
        self.compare(&expected.host_rewrite, &it.host, "host_rewrite", if_forwarded(Field::HostRewrite));
        let (location, status) = seen.answered.as_ref().map_or(("", 0), |(location, status)| (location, *status));
        let if_answered = seen.answered.as_ref().map(|_| Field::PathRedirect);
        self.compare(&expected.path_redirect, location, "path_redirect", if_answered);
        let code = expected.code_redirect.map(|code| code.to_string());
        self.compare(&code, &status.to_string(), "code_redirect", if_answered);
        let timeout = forwarded.map_or_else(String::new, |it| seconds(it.timeout));
        self.compare(&expected.timeout, &timeout, "timeout", None);
    }

    fn values(&mut self, test: &str, expected: &[HeaderValue], actual: impl Fn(&str) -> Option<String>) {
        for HeaderValue { key, value } in expected {
            let actual = actual(&key.to_ascii_lowercase()).unwrap_or_default();
            self.compare(&Some(value.clone()), &actual, test, None);
        }
    }

    fn matches(
        &mut self,
        test: &str,
        expected: &[Expected],
        head: &impl RequestHead,
        regexes: &mut RegexCache,
    ) -> Result<(), Error> {
        for matcher in expected.iter().filter_map(|expected| expected.matcher.as_ref()) {
            let archive = |e: rancor::Error| Error::Archive(e.to_string());
            let bytes = rkyv::to_bytes(matcher).map_err(archive)?;
            let archived = rkyv::access::<<HeaderMatcher as rkyv::Archive>::Archived, _>(&bytes).map_err(archive)?;
            if !route::header_matches(archived, head, regexes) {
                self.failures.push(mismatch(test, matcher, text(head.first_value(&matcher.name)).as_deref()));
            }
        }
        Ok(())
    }
}

/// How a header differs from what its matcher wants.
fn mismatch(test: &str, matcher: &HeaderMatcher, actual: Option<&str>) -> String {
    let HeaderMatcher { name, value, invert_match, .. } = matcher;
    let actual = actual.unwrap_or("NULL");
    let (kind, exact) = match value {
        HeaderMatch::Present(present) => {
            let wanted = present != invert_match;
            return format!(
                "expected: [has({name}):{wanted}], actual: [has({name}):{}], test type: {test}.present_match",
                !wanted
            );
        }
        HeaderMatch::Range { .. } => ("range_match", None),
        HeaderMatch::String(string) => match &string.pattern {
            StringPattern::Exact(text) => ("string_match.exact", Some(text)),
            StringPattern::Prefix(_) => ("string_match.prefix", None),
            StringPattern::Suffix(_) => ("string_match.suffix", None),
            StringPattern::Contains(_) => ("string_match.contains", None),
            StringPattern::SafeRegex(_) => ("string_match.safe_regex", None),
        },
    };
    match exact {
        Some(text) => {
            let not = if *invert_match { "NOT " } else { "" };
            format!("expected: [{name}: {text}], actual: {not}[{name}: {actual}], test type: {test}.{kind}")
        }
        None => format!("actual: [{name}: {actual}], test type: {test}.{kind}"),
    }
}

/// A time in ms as protobuf's JSON writes it.
fn seconds(millis: u64) -> String {
    match millis % 1000 {
        0 => format!("{}s", millis / 1000),
        rest => format!("{}.{rest:03}s", millis / 1000),
    }
}
