//! What is hashed of a request: `RouteAction.HashPolicy`.

use super::format::name as header_name;
use super::{matcher, Invalid, Notes};
use amesh_model::hash_policy::{HashCookie, HashMethod, HashPolicy, HashRewrite};
use envoy_types::pb::envoy::config::route::v3::route_action as pb;

/// The parts of a hash policy that can give a hash.
pub(super) fn hash_policy(
    list: &[pb::HashPolicy],
    field: &'static str,
    notes: &mut Notes,
) -> Result<Vec<HashPolicy>, Invalid> {
    Ok(notes.list(field, list, one)?.into_iter().flatten().collect())
}

fn one(p: &pb::HashPolicy, notes: &mut Notes) -> Result<Option<HashPolicy>, Invalid> {
    use pb::hash_policy::PolicySpecifier as P;
    let pb::HashPolicy { terminal, policy_specifier } = p;
    let method = match policy_specifier {
        None => return Err(notes.invalid("policy_specifier", "is not set")),
        Some(P::Header(h)) => notes.within("header", |n| header(h, n))?,
        Some(P::Cookie(c)) => HashMethod::Cookie(notes.within("cookie", |n| cookie(c, n))?),
        Some(P::ConnectionProperties(c)) if c.source_ip => HashMethod::SourceIp,
        Some(P::ConnectionProperties(_)) => return Ok(None),
        Some(P::QueryParameter(q)) if q.name.is_empty() => {
            return Err(notes.invalid("query_parameter.name", "is empty"));
        }
        Some(P::QueryParameter(q)) => HashMethod::QueryParameter(q.name.clone()),
        Some(P::FilterState(_)) => {
            notes.ignored("filter_state", "there is no filter state, so it gives no hash");
            return Ok(None);
        }
    };
    Ok(Some(HashPolicy { method, terminal: *terminal }))
}

fn header(h: &pb::hash_policy::Header, notes: &mut Notes) -> Result<HashMethod, Invalid> {
    let pb::hash_policy::Header { header_name: name, regex_rewrite } = h;
    let rewrite = regex_rewrite.as_ref().map(|r| notes.within("regex_rewrite", |n| matcher::substitution(r, n)));
    let rewrite = rewrite.transpose()?.map(|(pattern, substitution)| HashRewrite { pattern, substitution });
    Ok(HashMethod::Header { name: header_name(name, "header_name", notes)?, rewrite })
}

fn cookie(c: &pb::hash_policy::Cookie, notes: &mut Notes) -> Result<HashCookie, Invalid> {
    let pb::hash_policy::Cookie { name, ttl, path, attributes } = c;
    if name.is_empty() {
        return Err(notes.invalid("name", "is empty"));
    }
    let ttl = match ttl {
        None => None,
        Some(t) => Some(u64::try_from(t.seconds).map_err(|_| notes.invalid("ttl", "is below 0"))?),
    };
    let attributes: Vec<_> = attributes.iter().map(|a| (a.name.clone(), a.value.clone())).collect();
    let texts = attributes.iter().flat_map(|(n, v)| [n, v]).chain([name, path]);
    // They go into a header of the response.
    if texts.flat_map(|t| t.bytes()).any(|b| b.is_ascii_control()) {
        return Err(notes.invalid("", "a name, path or attribute has a control character in it"));
    }
    Ok(HashCookie { name: name.clone(), ttl, path: path.clone(), attributes })
}
