//! Domains of virtual hosts, as `hosts` and as conditions.

use crate::cond::Cond;
use crate::pcre;
use amesh_model::route::RouteTable;
use std::collections::{BTreeMap, BTreeSet};

/// Which ports a host may come with; `None`: without one. Empty: with any.
pub(crate) type Ports = BTreeSet<Option<u16>>;

/// Domains that are given away already.
#[derive(Default)]
pub(crate) struct Hosts {
    taken: BTreeSet<String>,
    /// Domains that were asked for once more.
    pub refused: Vec<String>,
}

impl Hosts {
    fn take(&mut self, domain: String) -> bool {
        let free = !self.taken.contains(&domain);
        match free {
            true => drop(self.taken.insert(domain)),
            false => self.refused.push(domain),
        }
        free
    }
}

/// The domains of one virtual host.
#[derive(Default, Debug)]
pub(crate) struct OfHost {
    /// As `hosts` wants them, by the ports that they come with.
    named: BTreeMap<Ports, Vec<String>>,
    /// Beginnings (`www.*`), and domains that `hosts` does not take.
    others: Vec<Other>,
    /// `*`.
    pub any: bool,
}

#[derive(Debug)]
enum Other {
    Begins(String),
    Is(String),
}

impl Hosts {
    /// The domains of each virtual host that no table before has. The table's own rule is that the most specific domain
    /// wins, as APISIX has it.
    pub fn of(&mut self, table: &RouteTable, ignores_port: bool) -> Vec<OfHost> {
        let mut named: Vec<BTreeMap<String, Ports>> = table.virtual_hosts.iter().map(|_| BTreeMap::new()).collect();
        let mut out: Vec<OfHost> = table.virtual_hosts.iter().map(|_| OfHost::default()).collect();
        let domains = &table.domains;
        let exact = domains.exact.iter().map(|(domain, index)| (domain.clone(), *index));
        let suffix = domains.suffix.iter().map(|(domain, index)| (format!("*{domain}"), *index));
        let all: BTreeMap<String, u32> = exact.chain(suffix).collect();
        for (domain, index) in all {
            if !self.take(domain.clone()) {
                continue;
            }
            let (host, port) = parted(&domain);
            let Ok(at) = usize::try_from(index) else { continue };
            match (named.get_mut(at), out.get_mut(at)) {
                // A port that is cut off a request's host is in no host.
                _ if ignores_port && port.is_some() => {}
                (Some(named), _) if is_host(host) => {
                    // nginx cuts off a dot at the end.
                    let ports = named.entry(host.trim_end_matches('.').to_owned()).or_default();
                    ports.extend((!ignores_port).then_some(port));
                }
                (_, Some(out)) => out.others.push(Other::Is(domain)),
                _ => {}
            }
        }
        let prefixes: BTreeMap<&String, &u32> = domains.prefix.iter().collect();
        for (domain, index) in prefixes {
            if self.take(format!("{domain}*")) {
                let host = usize::try_from(*index).ok().and_then(|at| out.get_mut(at));
                host.into_iter().for_each(|host| host.others.push(Other::Begins(domain.clone())));
            }
        }
        if let Some(host) = domains.any.and_then(|index| usize::try_from(index).ok()).and_then(|at| out.get_mut(at)) {
            host.any = self.take("*".to_owned());
        }
        for (out, named) in out.iter_mut().zip(named) {
            for (host, ports) in named {
                out.named.entry(ports).or_default().push(host);
            }
        }
        out
    }
}

impl OfHost {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.named.is_empty() && self.others.is_empty() && !self.any
    }

    /// Hosts, by the ports that they come with.
    pub fn grouped(&self) -> impl Iterator<Item = (&Ports, &[String])> {
        self.named.iter().map(|(ports, hosts)| (ports, hosts.as_slice()))
    }

    /// The other domains as conditions, each with its rank: the largest goes first.
    pub fn conditions(&self, ignores_port: bool) -> impl Iterator<Item = (usize, Cond)> + '_ {
        let var = if ignores_port { "host" } else { "http_host" };
        self.others.iter().map(move |other| match other {
            Other::Begins(text) => (text.len(), Cond::finds(var, &format!("(?is)\\A{}.", pcre::quote(text)))),
            Other::Is(text) => match text.strip_prefix('*') {
                Some(end) => (usize::MAX / 2 + end.len(), Cond::finds(var, &format!("(?is).{}\\z", pcre::quote(end)))),
                None => (usize::MAX, Cond::finds(var, &format!("(?i)\\A{}\\z", pcre::quote(text)))),
            },
        })
    }
}

/// The condition that a request's host has one of these ports.
pub(crate) fn port_cond(ports: &Ports) -> Cond {
    Cond::any(ports.iter().map(|port| match port {
        Some(port) => Cond::finds("http_host", &format!(":{port}\\z")),
        None => Cond::finds("http_host", ":[0-9]*\\z").not(),
    }))
    .or_true(ports.is_empty())
}

impl Cond {
    fn or_true(self, always: bool) -> Cond {
        if always {
            Cond::True
        } else {
            self
        }
    }
}

/// A domain without its port, and the port.
fn parted(domain: &str) -> (&str, Option<u16>) {
    match domain.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => match port.parse() {
            Ok(port) => (host, Some(port)),
            Err(_) => (domain, None),
        },
        _ => (domain, None),
    }
}

/// Whether `hosts` takes it (`host_def`).
fn is_host(host: &str) -> bool {
    let name = host.strip_prefix('*').unwrap_or(host);
    !name.is_empty()
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'[' | b']' | b':'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_what_follows_the_host() {
        assert_eq!(parted("web:80"), ("web", Some(80)));
        assert_eq!(parted("*.web:80"), ("*.web", Some(80)));
        assert_eq!(parted("[::1]:80"), ("[::1]", Some(80)));
        assert_eq!(parted("[::1]"), ("[::1]", None));
        assert_eq!(parted("::1"), ("::1", None));
        assert_eq!(parted("web:x"), ("web:x", None));
    }

    #[test]
    fn ports_are_conditions_on_the_host_header() {
        assert_eq!(port_cond(&Ports::new()), Cond::True);
        let both = port_cond(&[None, Some(80)].into()).vars().unwrap().to_string();
        assert_eq!(both, r#"[["OR",["http_host","!","~~",":[0-9]*\\z"],["http_host","~~",":80\\z"]]]"#);
    }
}
