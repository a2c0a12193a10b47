//! Route tables as `/routes`.

use crate::action::{self, Target};
use crate::cond::Cond;
use crate::hosts::{self, Hosts};
use crate::id;
use crate::listeners::{Served, Source};
use crate::look::Look;
use crate::matchers;
use crate::object::Refusal;
use crate::path::{place, Path};
use crate::plugins::PluginSet;
use amesh_model::header::HeaderEdits;
use amesh_model::route::{PathSpecifier, RequireTls, Route, RouteTable, VirtualHost};
use serde_json::{json, Map, Value};
use std::collections::BTreeMap;
use std::sync::Arc;

/// All route tables, by name.
pub(crate) type Tables = BTreeMap<String, Arc<RouteTable>>;

/// A route as APISIX has it: its id, and the rest of it.
pub(crate) type Made = (Arc<str>, Map<String, Value>);

/// A route of Envoy's, or one that stands for several.
#[derive(Clone)]
struct Entry {
    path: Path,
    cond: Cond,
    target: Target,
    /// What it is, within its virtual host; part of the id.
    mark: String,
    /// For people.
    label: String,
    /// `name`.
    name: String,
}

/// Makes routes of what is served in one unit.
pub(crate) struct Maker<'a, 'm> {
    /// The unit's name.
    pub unit: &'a str,
    /// All tables.
    pub tables: &'a Tables,
    /// Clusters.
    pub look: &'a mut Look<'m>,
    /// What cannot be said.
    pub refusals: &'a mut Vec<Refusal>,
    /// `plugin_config_id` of routes that forward, and the plugins there.
    pub plugins: Option<(&'a str, &'a PluginSet)>,
    /// A request that no virtual host takes must not go on to other routes.
    pub close: bool,
}

impl Maker<'_, '_> {
    /// The routes of what is served. Where two tables have a domain in common the first has it.
    pub fn routes(&mut self, all: &[&Served]) -> Vec<Made> {
        let mut out = Vec::new();
        let mut hosts = Hosts::default();
        // Routes without hosts: virtual hosts by the beginning of their domains, the longest first, then that for any.
        let mut begins: Vec<(usize, Vec<Entry>)> = Vec::new();
        let mut any: Vec<Entry> = Vec::new();
        let mut when = Cond::False;
        for served in all {
            when = Cond::any([when, served.when.clone()]);
            let (name, table) = match &served.source {
                Source::Table(name) => (name, self.tables.get(name).cloned()),
                Source::Inline(name, table) => (name, Some(table.clone())),
                Source::Refused(name, why) => {
                    any.push(self.refused(&format!("listener \"{name}\""), "listener", why));
                    continue;
                }
            };
            let what = format!("route table \"{name}\"");
            let Some(table) = table else {
                any.push(self.refused(&what, "table", "it has not come yet"));
                continue;
            };
            if !table.vhost_header.is_empty() {
                let why = format!("the header \"{}\" chooses its virtual host", table.vhost_header);
                any.push(self.refused(&what, "table", &why));
                continue;
            }
            let ignores_port = table.ignore_port_in_host_matching || served.strips_port;
            let domains = hosts.of(&table, ignores_port);
            self.refusals.extend(hosts.refused.drain(..).map(|domain| Refusal {
                what: what.clone(),
                reason: format!(
                    "another table has the domain \"{domain}\" already, and they are not told apart; left out"
                ),
            }));
            for (index, (host, domains)) in table.virtual_hosts.iter().zip(domains).enumerate() {
                if domains.is_empty() {
                    continue;
                }
                let occurrence = table.virtual_hosts.iter().take(index).filter(|h| h.name == host.name).count();
                let mark = format!("{name}\n{}\n{occurrence}", host.name);
                let entries = self.entries(&what, &mark, &table, host, served);
                for (ports, names) in domains.grouped() {
                    let cond = Cond::all([hosts::port_cond(ports), served.when.clone()]);
                    let mut entries = entries.clone();
                    entries.push(closing(&mark, &host.name));
                    out.extend(self.emit(&entries, &format!("{ports:?}"), Some(names), &cond));
                }
                for (length, cond) in domains.conditions(ignores_port) {
                    let mut entries = entries.clone();
                    entries.push(closing(&mark, &host.name));
                    begins.push((length, entries.into_iter().map(|entry| entry.under(&cond)).collect()));
                }
                if domains.any {
                    any.extend(entries);
                }
            }
        }
        begins.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
        let mut rest: Vec<Entry> = begins.into_iter().flat_map(|(_, entries)| entries).chain(any).collect();
        if self.close {
            rest.push(closing("", "no virtual host"));
        }
        out.extend(self.emit(&rest, "", None, &when));
        out
    }

    fn refused(&mut self, what: &str, mark: &str, why: &str) -> Entry {
        let target = Target::refused(why);
        self.note(what, &target);
        Entry {
            path: Path::Prefix("/".to_owned()),
            cond: Cond::True,
            target,
            mark: format!("{mark}\n{what}"),
            label: what.to_owned(),
            name: String::new(),
        }
    }

    fn note(&mut self, what: &str, target: &Target) {
        let notes = target.notes.iter();
        self.refusals.extend(notes.map(|reason| Refusal { what: what.to_owned(), reason: reason.clone() }));
    }

    /// The routes of a virtual host, in their order.
    fn entries(&mut self, table: &str, mark: &str, of: &RouteTable, host: &VirtualHost, served: &Served) -> Vec<Entry> {
        let what = format!("{table}, virtual host \"{}\"", host.name);
        let whole = match (&host.refuse, host.require_tls) {
            (Some(why), _) => Some(why.as_str()),
            _ if host.ignore_path_parameters => Some("parameters of its paths are not looked at"),
            (None, RequireTls::ExternalOnly) if served.has_internal => Some("TLS is required of external clients only"),
            _ => None,
        };
        if let Some(why) = whole {
            return vec![self.refused(&what, mark, why)];
        }
        let mut out = Vec::new();
        if host.require_tls != RequireTls::None {
            let mut target = Target::default();
            let conf = json!({"uri": "https://$http_host$real_request_uri", "ret_code": 301});
            target.plugin("redirect", conf);
            out.push(Entry {
                path: Path::Prefix("/".to_owned()),
                cond: Cond::is("scheme", "https").not(),
                target,
                mark: format!("{mark}\ntls"),
                label: format!("{what}, require_tls"),
                name: String::new(),
            });
        }
        for (index, route) in host.routes.iter().enumerate() {
            let mut label = format!("{what}, route {index}");
            if !route.name.is_empty() {
                label = format!("{label} \"{}\"", route.name);
            }
            out.extend(self.entry(label, format!("{mark}\n{index}"), of, host, route, served));
        }
        out
    }

    fn entry(
        &mut self,
        label: String,
        mark: String,
        table: &RouteTable,
        host: &VirtualHost,
        route: &Route,
        served: &Served,
    ) -> Option<Entry> {
        if route.matches.path == PathSpecifier::Connect {
            let reason = "nginx answers CONNECT requests itself; left out".to_owned();
            self.refusals.push(Refusal { what: label, reason });
            return None;
        }
        let (path, raw, unsaid) = match Path::of(&route.matches.path, route.matches.case_sensitive) {
            Ok(None) => return None,
            Ok(Some((path, cond))) => (path, cond, None),
            Err(why) => (Path::Prefix("/".to_owned()), Cond::True, Some(why)),
        };
        let (cond, unsaid_of_rest) = matchers::conditions(&route.matches);
        let hidden = |name: &String| route.matches.headers.iter().any(|matcher| matcher.name == *name);
        let unsaid = unsaid.or(unsaid_of_rest).or_else(|| {
            let hidden = table.internal_only_headers.iter().find(|name| hidden(name))?;
            Some(format!("it asks for the header \"{hidden}\", which requests from outside do not bring along"))
        });
        let internal_only =
            HeaderEdits { request_remove: table.internal_only_headers.clone(), ..HeaderEdits::default() };
        let mut levels = vec![&route.headers, &host.headers, &table.headers];
        if table.most_specific_header_mutations_wins {
            levels.reverse();
        }
        levels.insert(0, &internal_only);
        let target = match unsaid {
            Some(why) => Err(why),
            None => action::target(route, &levels, &served.manager, self.look),
        };
        let target = target.unwrap_or_else(|why| Target::refused(&why));
        self.note(&label, &target);
        if let Some((_, plugins)) = self.plugins.filter(|_| target.fields.contains_key("upstream_id")) {
            let own = target.fields.get("plugins").and_then(Value::as_object);
            for name in own.into_iter().flat_map(Map::keys).filter(|name| plugins.has(name)) {
                let reason =
                    format!("it has the plugin \"{name}\" of its own; that from the mesh's documents has no effect");
                self.refusals.push(Refusal { what: label.clone(), reason });
            }
        }
        Some(Entry { path, cond: Cond::all([raw, cond]), target, mark, label, name: route.name.clone() })
    }

    /// Entries in their order as objects, for these hosts or for any, under a condition of all of them.
    fn emit(&self, entries: &[Entry], group: &str, hosts: Option<&[String]>, under: &Cond) -> Vec<Made> {
        if *under == Cond::False {
            return Vec::new();
        }
        let routes: Vec<(Path, Cond)> = entries.iter().map(|e| (e.path.clone(), e.cond.clone())).collect();
        let made = place(&routes).into_iter().filter_map(|placed| {
            let entry = entries.get(placed.index)?;
            let mut json = entry.target.fields.clone();
            let id = id::id("r", &[self.unit, group, &entry.mark]);
            json.extend(id::name(&entry.name).map(|name| ("name".to_owned(), json!(name))));
            let notes: String = entry.target.notes.iter().map(|note| format!("{note}; ")).collect();
            json.insert("desc".into(), json!(id::desc(&format!("{notes}{}", entry.label))));
            if let Some(hosts) = hosts {
                json.insert("hosts".into(), json!(hosts));
            }
            match placed.uris.as_slice() {
                [only] => json.insert("uri".into(), json!(only)),
                uris => json.insert("uris".into(), json!(uris)),
            };
            json.insert("priority".into(), json!(entries.len() - placed.index));
            if let Some(vars) = Cond::all([placed.cond, under.clone()]).vars() {
                json.insert("vars".into(), vars);
            }
            if let Some((plugins, _)) = self.plugins.filter(|_| json.contains_key("upstream_id")) {
                json.insert("plugin_config_id".into(), json!(plugins));
            }
            Some((id, json))
        });
        made.collect()
    }
}

impl Entry {
    /// The same under one more condition.
    fn under(mut self, cond: &Cond) -> Entry {
        self.cond = Cond::all([self.cond, cond.clone()]);
        self.mark = format!("{}\n{cond:?}", self.mark);
        self
    }
}

/// What no route of a virtual host takes is not found: it must not go on to another.
fn closing(mark: &str, host: &str) -> Entry {
    Entry {
        path: Path::Prefix("/".to_owned()),
        cond: Cond::True,
        target: Target::answers(404),
        mark: format!("{mark}\nclosing"),
        label: format!("not found in {host}"),
        name: String::new(),
    }
}
