//! Faults and CORS.

use crate::cond::Cond;
use crate::headers::plain;
use crate::matchers;
use crate::pcre;
use amesh_model::filter::{Cors, Fault, FaultError};
use amesh_model::matcher::{Fraction, StringMatcher, StringPattern};
use serde_json::{json, Map, Value};

/// An origin that no browser has (RFC 2606): where only expressions say which origins are allowed.
const NO_ORIGIN: &str = "https://origin.invalid";

/// A share in per cent: `fault-injection` takes whole ones.
fn per_cent(share: Fraction) -> Result<u64, String> {
    let (numerator, denominator) = (u64::from(share.numerator) * 100, u64::from(share.denominator.max(1)));
    match numerator % denominator {
        0 => Ok((numerator / denominator).min(100)),
        _ => Err(format!(
            "a share of {} in {} is no whole number per cent, as fault-injection wants",
            share.numerator, share.denominator
        )),
    }
}

/// `fault-injection`; `None`: nothing is to be done. `cluster` is where the route goes, if that is one.
pub(crate) fn fault(fault: &Fault, cluster: Option<&str>) -> Result<Option<Value>, String> {
    let mut conf = Map::new();
    let delay = fault.delay.as_ref().filter(|delay| delay.percentage.numerator > 0);
    let abort = fault.abort.as_ref().filter(|abort| abort.percentage.numerator > 0);
    if delay.is_none() && abort.is_none() {
        return Ok(None);
    }
    match (fault.upstream_cluster.as_str(), cluster) {
        ("", _) => {}
        (wanted, Some(cluster)) if wanted == cluster => {}
        (_, Some(_)) => return Ok(None),
        (_, None) => return Err("its faults are for one of its clusters".to_owned()),
    }
    let mut conds = Vec::new();
    for header in &fault.headers {
        conds.push(matchers::header(header)?);
    }
    if !fault.downstream_nodes.is_empty() {
        conds.push(Cond::one_of("http_x_envoy_downstream_service_node", &fault.downstream_nodes));
    }
    let cond = Cond::all(conds);
    if cond == Cond::False {
        return Ok(None);
    }
    // A list of lists, of which one must hold.
    let vars = cond.vars().map(|vars| json!([vars]));
    if let Some(delay) = delay {
        let Some(ms) = delay.fixed else { return Err("a header says how long its faults take".to_owned()) };
        let mut delay = json!({"duration": crate::upstream::seconds(ms), "percentage": per_cent(delay.percentage)?});
        if let Some(vars) = &vars {
            delay["vars"] = vars.clone();
        }
        conf.insert("delay".into(), delay);
    }
    if let Some(abort) = abort {
        let FaultError::Http(status @ 200..) = abort.error else {
            return Err("its faults are of gRPC, or as a header says".to_owned());
        };
        let mut conf_abort = json!({"http_status": status, "percentage": per_cent(abort.percentage)?});
        if !abort.body.is_empty() {
            conf_abort["body"] = json!(plain(&abort.body)?);
        }
        if let Some(vars) = vars {
            conf_abort["vars"] = vars;
        }
        conf.insert("abort".into(), conf_abort);
    }
    Ok(Some(Value::Object(conf)))
}

/// `cors`; `None`: it is switched off.
pub(crate) fn cors(cors: &Cors, notes: &mut Vec<String>) -> Result<Option<Value>, String> {
    match cors.enabled {
        Fraction { numerator: 0, .. } => return Ok(None),
        share if share.numerator < share.denominator => return Err("CORS is for a share of requests only".to_owned()),
        _ => {}
    }
    if cors.allow_private_network {
        notes.push("CORS says nothing of private networks".to_owned());
    }
    let any = |m: &StringMatcher| match &m.pattern {
        StringPattern::Exact(text) => text == "*",
        StringPattern::Prefix(text) | StringPattern::Suffix(text) | StringPattern::Contains(text) => text.is_empty(),
        StringPattern::SafeRegex(_) => false,
    };
    let mut conf = Map::new();
    let mut put = |name: &str, value: Value| drop(conf.insert(name.to_owned(), value));
    if cors.allow_origin.iter().any(any) {
        put("allow_origins", json!("**"));
    } else {
        let mut exact = Vec::new();
        let mut patterns = Vec::new();
        for origin in &cors.allow_origin {
            match origin_text(origin) {
                Some(text) => exact.push(text.to_owned()),
                None => patterns.push(expression(origin)?),
            }
        }
        exact.dedup();
        put("allow_origins", json!(if exact.is_empty() { NO_ORIGIN.to_owned() } else { exact.join(",") }));
        patterns.sort();
        patterns.dedup();
        if !patterns.is_empty() {
            put("allow_origins_by_regex", json!(patterns));
        }
    }
    // With credentials "*" is the name of a header or method; "**" is what Envoy means.
    let list = |text: &str| json!(if text == "*" && cors.allow_credentials { "**" } else { text });
    put("allow_methods", list(&cors.allow_methods));
    put("allow_headers", list(&cors.allow_headers));
    put("expose_headers", list(&cors.expose_headers));
    put("allow_credential", json!(cors.allow_credentials));
    if let Ok(seconds) = cors.max_age.parse::<i64>() {
        put("max_age", json!(seconds));
    }
    Ok(Some(Value::Object(conf)))
}

/// An origin in the form that the schema takes.
fn origin_text(origin: &StringMatcher) -> Option<&str> {
    let StringPattern::Exact(text) = &origin.pattern else { return None };
    let (scheme, rest) = text.split_once("://")?;
    let good = !scheme.is_empty()
        && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        && !rest.is_empty()
        && !rest.contains([',', '\n'])
        && !origin.ignore_case;
    good.then_some(text)
}

fn expression(origin: &StringMatcher) -> Result<String, String> {
    let case = if origin.ignore_case { "(?i)" } else { "" };
    Ok(match &origin.pattern {
        StringPattern::Exact(text) => format!("{case}\\A{}\\z", pcre::quote(text)),
        StringPattern::Prefix(text) => format!("{case}\\A{}", pcre::quote(text)),
        StringPattern::Suffix(text) => format!("{case}{}\\z", pcre::quote(text)),
        StringPattern::Contains(text) => format!("{case}{}", pcre::quote(text)),
        StringPattern::SafeRegex(regex) => pcre::whole(&regex.pattern)?,
    })
}
