//! The whole decision on a request.

use super::cleaned::Cleaned;
use super::{body, matches, rewrite, virtual_host, RequestHead};
use crate::regex::RegexCache;
use amesh_model::route::{
    ArchivedClusterSpecifier, ArchivedForwardAction, ArchivedHostRewrite, ArchivedRequireTls, ArchivedRoute,
    ArchivedRouteAction, ArchivedRouteTable, ArchivedVirtualHost, ArchivedWeightedCluster,
};
use amesh_model::subset::ArchivedCriterion;
use std::borrow::Cow;

/// What happens to a request. Indexes are those of the virtual host in its table and of the route in its virtual host:
/// together the identity of a route.
pub enum Decision<'a> {
    /// It goes to a cluster.
    Forward(Forward<'a>),
    /// It is answered with a redirect and no body.
    Redirect {
        /// The virtual host.
        virtual_host: (usize, &'a ArchivedVirtualHost),
        /// The route, with its header edits; `None`: the virtual host requires TLS.
        route: Option<(usize, &'a ArchivedRoute)>,
        /// The status.
        status: u16,
        /// `location`.
        location: String,
    },
    /// It is answered at once.
    Direct {
        /// The virtual host.
        virtual_host: (usize, &'a ArchivedVirtualHost),
        /// The route, with its header edits.
        route: (usize, &'a ArchivedRoute),
        /// The status.
        status: u16,
        /// The body.
        body: Cow<'a, [u8]>,
        /// `content-type`, where there is a body.
        content_type: &'a str,
        /// `location`, with a status that has one (201 and 3xx): where the request is already. Envoy has it so.
        location: Option<String>,
    },
    /// No virtual host or no route takes it: 404, flag `NR`.
    NotFound,
    /// 500: going on would weaken security.
    Refuse {
        /// Why, for the log.
        reason: &'a str,
    },
    /// The route names no cluster (a header is missing, or it is not for forwarding): flag `NC`.
    ClusterNotFound {
        /// The virtual host.
        virtual_host: (usize, &'a ArchivedVirtualHost),
        /// The route.
        route: (usize, &'a ArchivedRoute),
        /// The status.
        code: u16,
    },
}

impl<'a> Decision<'a> {
    /// The virtual host that took the request.
    pub fn virtual_host(&self) -> Option<&'a ArchivedVirtualHost> {
        match self {
            Decision::Forward(forward) => Some(forward.virtual_host.1),
            Decision::Redirect { virtual_host, .. }
            | Decision::Direct { virtual_host, .. }
            | Decision::ClusterNotFound { virtual_host, .. } => Some(virtual_host.1),
            Decision::NotFound | Decision::Refuse { .. } => None,
        }
    }

    /// The route that took the request.
    pub fn route(&self) -> Option<&'a ArchivedRoute> {
        match self {
            Decision::Forward(forward) => Some(forward.route.1),
            Decision::Redirect { route, .. } => route.map(|(_, route)| route),
            Decision::Direct { route, .. } | Decision::ClusterNotFound { route, .. } => Some(route.1),
            Decision::NotFound | Decision::Refuse { .. } => None,
        }
    }
}

/// A request that goes to a cluster. When that cluster does not exist the answer is
/// `action.cluster_not_found_response_code`.
pub struct Forward<'a> {
    /// The virtual host.
    pub virtual_host: (usize, &'a ArchivedVirtualHost),
    /// The route.
    pub route: (usize, &'a ArchivedRoute),
    /// The route's action.
    pub action: &'a ArchivedForwardAction,
    /// The cluster's name.
    pub cluster: Cow<'a, str>,
    /// Which of several clusters was chosen, with its header edits.
    pub arm: Option<&'a ArchivedWeightedCluster>,
    /// The new path with query, `None`: unchanged. With one, the old goes into `x-envoy-original-path`.
    /// Header edits are made before this, they see the old path.
    pub path: Option<String>,
    /// What the route's rewrite of the host gives, where that depends on the request as it came; see [`Forward::new_host`].
    host: Option<String>,
    /// The host is to be that of the endpoint, if it has a name (`auto_host_rewrite`).
    pub auto_host: bool,
}

/// A host that is rewritten.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewHost {
    /// The new one.
    pub host: String,
    /// The one before the route's own rewrite. It goes into `x-envoy-original-host`, and where the action says so
    /// (`append_x_forwarded_host`) into `x-forwarded-host`. `None` where only an arm of a weighted cluster has rewritten
    /// it; where both have, it is the arm's. (Found by asking Envoy 1.40.)
    pub old: Option<String>,
}

impl NewHost {
    /// `x-forwarded-host` for a request that has `others` there already, joined by commas; `None`: as it is, since the
    /// old host is its last one (`Http::Utility::updateAuthority`).
    pub fn forwarded(&self, others: &str) -> Option<String> {
        let old = self.old.as_deref()?;
        match others {
            "" => Some(old.to_owned()),
            others if others.rsplit(',').next().map(str::trim) == Some(old) => None,
            others => Some([others, ",", old].concat()),
        }
    }
}

impl<'a> Forward<'a> {
    /// The new host of a request whose header edits are made, `None`: it stays. `now` is its host, `header` gives the
    /// first value of a header. The route's own rewrite comes after the arm's, and so wins
    /// (`WeightedClusterEntry::finalizeRequestHeaders`).
    pub fn new_host(&self, now: &str, header: impl FnOnce(&str) -> Option<String>) -> Option<NewHost> {
        let of_arm = self.arm.map(|arm| arm.host_rewrite_literal.as_str()).filter(|host| !host.is_empty());
        let of_route = match &self.action.host_rewrite {
            ArchivedHostRewrite::Header(name) => header(name).filter(|host| !host.is_empty()),
            _ => self.host.clone(),
        };
        match of_route {
            Some(host) => Some(NewHost { host, old: Some(of_arm.unwrap_or(now).to_owned()) }),
            None => of_arm.map(|host| NewHost { host: host.to_owned(), old: None }),
        }
    }

    /// Which subset of a cluster with subsets takes the request.
    pub fn metadata_match(&self) -> &'a [ArchivedCriterion] {
        self.arm.map_or(&self.action.metadata_match, |arm| &arm.metadata_match)
    }
}

/// Decides on a request. One from outside has no headers that only the mesh may set; see [`crate::header::Levels`].
pub fn decide<'a>(table: &'a ArchivedRouteTable, head: &impl RequestHead, regexes: &mut RegexCache) -> Decision<'a> {
    match table.internal_only_headers.as_slice() {
        [_, ..] if !head.is_internal() => {
            decide_cleaned(table, &Cleaned { head, without: &table.internal_only_headers }, regexes)
        }
        _ => decide_cleaned(table, head, regexes),
    }
}

fn decide_cleaned<'a>(
    table: &'a ArchivedRouteTable,
    head: &impl RequestHead,
    regexes: &mut RegexCache,
) -> Decision<'a> {
    let host = match table.vhost_header.as_str() {
        "" => Some(head.host()),
        name => head.first_value(name).and_then(|value| std::str::from_utf8(value).ok()),
    };
    let Some(vh) = host.and_then(|host| virtual_host(table, host)) else { return Decision::NotFound };
    if let Some(reason) = vh.1.refuse.as_ref() {
        return Decision::Refuse { reason };
    }
    let wants_tls = match vh.1.require_tls {
        ArchivedRequireTls::None => false,
        ArchivedRequireTls::ExternalOnly => !head.is_internal(),
        ArchivedRequireTls::All => true,
    };
    if wants_tls && head.scheme() != "https" {
        let location = rewrite::https_location(head);
        return Decision::Redirect { virtual_host: vh, route: None, status: 301, location };
    }
    let Some(route) = matches::route(vh.1, head, regexes) else { return Decision::NotFound };
    match &route.1.action {
        ArchivedRouteAction::Route(action) => forward(vh, route, action, head, regexes),
        ArchivedRouteAction::Redirect(redirect) => Decision::Redirect {
            virtual_host: vh,
            route: Some(route),
            status: redirect.status.to_native(),
            location: rewrite::location(redirect, &route.1.matches, head, regexes),
        },
        ArchivedRouteAction::DirectResponse(direct) => {
            let status = direct.status.to_native();
            let (body, content_type) = match direct.body_format.as_ref() {
                Some(format) => (Cow::Owned(body::body(format, head)), format.content_type.as_str()),
                None => (Cow::Borrowed(direct.body.as_slice()), "text/plain"),
            };
            let location = matches!(status, 201 | 300..=399).then(|| rewrite::here(head));
            Decision::Direct { virtual_host: vh, route, status, body, content_type, location }
        }
        // A route without a cluster, as Envoy sees it.
        ArchivedRouteAction::NonForwarding => Decision::ClusterNotFound { virtual_host: vh, route, code: 503 },
        ArchivedRouteAction::Refuse(reason) => Decision::Refuse { reason },
    }
}

fn forward<'a>(
    virtual_host: (usize, &'a ArchivedVirtualHost),
    route: (usize, &'a ArchivedRoute),
    action: &'a ArchivedForwardAction,
    head: &impl RequestHead,
    regexes: &mut RegexCache,
) -> Decision<'a> {
    let by_header = |name: &'a str| {
        let value = head.first_value(name).map(|value| String::from_utf8_lossy(value).into_owned());
        value.filter(|cluster| !cluster.is_empty()).map(Cow::Owned)
    };
    let mut arm = None;
    let cluster = match &action.cluster {
        ArchivedClusterSpecifier::Cluster(name) => Some(Cow::Borrowed(name.as_str())),
        ArchivedClusterSpecifier::ClusterHeader(name) => by_header(name),
        ArchivedClusterSpecifier::Weighted { clusters, random_header, .. } => {
            let weights = clusters.iter().map(|c| c.weight.to_native());
            arm = crate::lb::weighted_pick(weights, number(head, random_header).unwrap_or_else(|| head.random()))
                .and_then(|at| clusters.get(at));
            arm.and_then(|arm| match arm.cluster_header.as_str() {
                "" => Some(Cow::Borrowed(arm.name.as_str())),
                name => by_header(name),
            })
        }
    };
    let Some(cluster) = cluster else {
        let code = action.cluster_not_found_response_code.to_native();
        return Decision::ClusterNotFound { virtual_host, route, code };
    };
    Decision::Forward(Forward {
        virtual_host,
        route,
        action,
        cluster,
        arm,
        path: rewrite::path(&action.path_rewrite, &route.1.matches, head, regexes),
        host: rewrite::host(&action.host_rewrite, head, regexes),
        auto_host: matches!(action.host_rewrite, ArchivedHostRewrite::Auto),
    })
}

/// The number in a header that is there once (`absl::SimpleAtoi`).
fn number(head: &impl RequestHead, header: &str) -> Option<u64> {
    if header.is_empty() {
        return None;
    }
    let mut values = head.header_values(header);
    let number = std::str::from_utf8(values.next()?.trim_ascii()).ok()?.parse().ok();
    number.filter(|_| values.next().is_none())
}
