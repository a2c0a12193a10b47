//! A model of how APISIX finds the route of a request (`radixtree_host_uri`, lua-resty-radixtree, lua-resty-expr).

use amesh_apisix::{Directory, Object};
use fancy_regex::Regex;
use serde_json::Value;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};

/// A request as APISIX sees it.
#[derive(Clone, Debug, Default)]
pub struct Request {
    pub method: String,
    /// With its query, as it came.
    pub uri: String,
    /// The header.
    pub host: String,
    pub scheme: String,
    pub headers: Vec<(String, String)>,
    /// `connection_original_dst`.
    pub destination: String,
}

impl Request {
    /// The path as nginx has it: decoded.
    pub fn path(&self) -> String {
        let path = self.uri.split('?').next().unwrap();
        let mut out = Vec::new();
        let mut bytes = path.bytes();
        while let Some(byte) = bytes.next() {
            if byte == b'%' {
                let hex: String = bytes.by_ref().take(2).map(char::from).collect();
                out.push(u8::from_str_radix(&hex, 16).unwrap());
            } else {
                out.push(byte);
            }
        }
        String::from_utf8(out).unwrap()
    }

    /// Without its port, in lower case.
    fn plain_host(&self) -> String {
        self.host.split(':').next().unwrap().to_lowercase()
    }

    fn var(&self, name: &str) -> Option<String> {
        let args = self.uri.split_once('?').map(|(_, args)| args.to_owned());
        match name {
            "uri" => Some(self.path()),
            "args" => args,
            "request_uri" => Some(self.path() + &args.map(|args| format!("?{args}")).unwrap_or_default()),
            "real_request_uri" => Some(self.uri.clone()),
            "request_method" => Some(self.method.clone()),
            "scheme" => Some(self.scheme.clone()),
            "host" => Some(self.plain_host()),
            "http_host" => Some(self.host.clone()),
            "connection_original_dst" => Some(self.destination.clone()).filter(|text| !text.is_empty()),
            name => {
                let header = name.strip_prefix("http_").unwrap_or_else(|| panic!("no variable is called {name}"));
                let found = self.headers.iter().find(|(name, _)| name.replace('-', "_") == header);
                found.map(|(_, value)| value.clone())
            }
        }
    }
}

/// An expression, and whether it is found in texts that it was asked for.
type Answers = (Regex, HashMap<String, bool>);

/// Whether an expression is found. Answers are kept: unoptimised, matching is slow, and texts repeat.
pub fn finds(pattern: &str, text: &str) -> bool {
    thread_local! {
        static COMPILED: RefCell<HashMap<String, Answers>> = RefCell::default();
    }
    COMPILED.with_borrow_mut(|all| {
        if !all.contains_key(pattern) {
            let regex = Regex::new(pattern).unwrap_or_else(|e| panic!("{pattern}: {e}"));
            all.insert(pattern.to_owned(), (regex, HashMap::new()));
        }
        let (regex, answers) = all.get_mut(pattern).unwrap();
        match answers.get(text) {
            Some(answer) => *answer,
            None => {
                let answer = regex.is_match(text).unwrap();
                answers.insert(text.to_owned(), answer);
                answer
            }
        }
    })
}

/// Whether an expression can be compiled.
pub fn compiles(pattern: &str) -> bool {
    thread_local! {
        static TRIED: RefCell<HashMap<String, bool>> = RefCell::default();
    }
    TRIED.with_borrow_mut(|all| *all.entry(pattern.to_owned()).or_insert_with(|| Regex::new(pattern).is_ok()))
}

/// The value of `vars`.
pub fn holds(rules: &Value, request: &Request) -> bool {
    let rules = rules.as_array().unwrap();
    match &rules[0] {
        Value::Array(_) => rules.iter().all(|rule| holds(rule, request)),
        Value::String(op) if op == "AND" => rules[1..].iter().all(|rule| holds(rule, request)),
        Value::String(op) if op == "OR" => rules[1..].iter().any(|rule| holds(rule, request)),
        Value::String(name) => {
            let turned = rules.len() == 4;
            let (op, wanted) = (rules[rules.len() - 2].as_str().unwrap(), &rules[rules.len() - 1]);
            let value = request.var(name);
            let number = || value.as_deref().and_then(|value| value.trim().parse::<f64>().ok());
            let found = match op {
                "==" => value.as_deref() == wanted.as_str(),
                "~~" => value.as_deref().is_some_and(|value| finds(wanted.as_str().unwrap(), value)),
                "in" => wanted.as_array().unwrap().iter().any(|one| value.as_deref() == one.as_str()),
                ">" => number().is_some_and(|number| number > wanted.as_f64().unwrap()),
                "<" => number().is_some_and(|number| number < wanted.as_f64().unwrap()),
                op => panic!("no operator is called {op}"),
            };
            found != turned
        }
        other => panic!("{other} is no rule"),
    }
}

#[derive(Default)]
struct Tree {
    exact: HashMap<String, Vec<usize>>,
    prefix: HashMap<String, Vec<usize>>,
}

/// Routes, in the trees that APISIX makes of them.
#[derive(Default)]
pub struct Router {
    routes: Vec<Value>,
    hosts: HashMap<String, Tree>,
    /// Ends of hosts, under what follows the star.
    wild: HashMap<String, Tree>,
    none: Tree,
    upstreams: BTreeMap<String, Value>,
}

impl Router {
    pub fn new<'a>(objects: impl IntoIterator<Item = &'a Object>) -> Router {
        let mut out = Router::default();
        for object in objects {
            let json: Value = serde_json::from_str(&object.json).unwrap();
            match object.key.directory {
                Directory::Routes => out.routes.push(json),
                Directory::Upstreams => drop(out.upstreams.insert(object.key.id.to_string(), json)),
                _ => {}
            }
        }
        // At one place the larger priority goes first; those alike stay as they came.
        out.routes.sort_by_key(|route| std::cmp::Reverse(route["priority"].as_i64().unwrap_or(0)));
        for (index, route) in out.routes.iter().enumerate() {
            let uris = texts(&route["uris"]).chain(route["uri"].as_str());
            for uri in uris {
                let add = |tree: &mut Tree| match uri.split_once('*') {
                    None => tree.exact.entry(uri.to_owned()).or_default().push(index),
                    Some((prefix, _)) => tree.prefix.entry(prefix.to_owned()).or_default().push(index),
                };
                match route.get("hosts") {
                    None => add(&mut out.none),
                    Some(hosts) => texts(hosts).for_each(|host| match host.strip_prefix('*') {
                        None => add(out.hosts.entry(host.to_owned()).or_default()),
                        Some(end) => add(out.wild.entry(end.to_owned()).or_default()),
                    }),
                }
            }
        }
        out
    }

    /// The route of a request.
    pub fn route(&self, request: &Request) -> Option<&Value> {
        let host = request.plain_host();
        let ends = host.char_indices().map(|(at, _)| &host[at..]);
        let wild = ends.filter_map(|end| self.wild.get(end));
        let mut trees = self.hosts.get(&host).into_iter().chain(wild).chain([&self.none]);
        trees.find_map(|tree| self.within(tree, request))
    }

    fn within(&self, tree: &Tree, request: &Request) -> Option<&Value> {
        let path = request.path();
        let starts = (0..=path.len()).rev().filter_map(|at| path.get(..at));
        let prefixes = starts.filter_map(|start| tree.prefix.get(start).map(|all| (format!("{start}*"), all)));
        let mut places = tree.exact.get(&path).map(|all| (path.clone(), all)).into_iter().chain(prefixes);
        places.find_map(|(place, all)| {
            let mut routes = all.iter().map(|index| &self.routes[*index]);
            routes.find(|route| {
                parameters_match(&place, &path) && route.get("vars").is_none_or(|vars| holds(vars, request))
            })
        })
    }

    /// The name of an upstream, and how many nodes it has.
    pub fn upstream(&self, id: &Value) -> (&str, usize) {
        let upstream = &self.upstreams[id.as_str().unwrap()];
        (upstream["name"].as_str().unwrap(), upstream["nodes"].as_array().unwrap().len())
    }
}

fn texts(list: &Value) -> impl Iterator<Item = &str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str)
}

/// A path with parameters is a regular expression to APISIX, and what is between them is not quoted.
fn parameters_match(place: &str, path: &str) -> bool {
    let is_parameter = |part: &&str| part.starts_with(':') || part.starts_with('*');
    if !place.split('/').any(|part| is_parameter(&part)) {
        return true;
    }
    let parts: Vec<&str> = place
        .split('/')
        .map(|part| match part.as_bytes().first() {
            Some(b':') => "([^\\/]+)",
            Some(b'*') => "((.|\\n)*)",
            _ => part,
        })
        .collect();
    finds(&format!("\\A{}\\z", parts.join("\\/")), path)
}
