//! The etcd face on the xDS thread: the directive `etcd`, and what follows the engine for it.

use crate::master::ThreadLog;
use amesh_apisix::etcd::{acceptor, Address, Config, Credentials, Face, Listen, Severity};
use amesh_apisix::plugins::PluginDirectory;
use amesh_apisix::{Changes, Destination, Options, Translator};
use amesh_model::batch::Batch;
use amesh_xds::engine::{self, Level, Log};
use amesh_xds::settings::Settings;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::PathBuf;
use std::sync::Arc;

/// What APISIX's own configuration has.
const PREFIX: &str = "/apisix";

/// One `etcd` directive.
#[derive(Clone, Debug, PartialEq)]
pub struct Etcd {
    address: Address,
    prefix: String,
    user: Option<String>,
    password_file: Option<PathBuf>,
    ssl_certificate: Option<PathBuf>,
    ssl_certificate_key: Option<PathBuf>,
    ssl_client_certificate: Option<PathBuf>,
    destination: Destination,
    inbound: bool,
    plugins: Option<PathBuf>,
}

impl Etcd {
    /// From the words of a directive; `path` makes a path whole.
    ///
    /// # Errors
    /// A word that makes no sense.
    pub fn parse(words: &[&str], path: impl Fn(&str) -> Result<String, String>) -> Result<Etcd, String> {
        let [first, parameters @ ..] = words else { return Err("\"etcd\" has no address".to_owned()) };
        let address = match first.strip_prefix("unix:") {
            Some(file) if !file.is_empty() => Address::Unix(path(file)?.into()),
            _ => Address::Tcp(socket_address(first).ok_or_else(|| {
                format!("invalid address \"{first}\" in \"etcd\": give address:port, [IPv6]:port, *:port, port or unix:/path")
            })?),
        };
        let mut etcd = Etcd {
            address,
            prefix: PREFIX.to_owned(),
            user: None,
            password_file: None,
            ssl_certificate: None,
            ssl_certificate_key: None,
            ssl_client_certificate: None,
            destination: Destination::default(),
            inbound: false,
            plugins: None,
        };
        let mut seen = BTreeSet::new();
        for word in parameters {
            let (name, value) = word
                .split_once('=')
                .filter(|(_, value)| !value.is_empty())
                .ok_or_else(|| format!("invalid parameter \"{word}\" in \"etcd\": it is name=value"))?;
            if !seen.insert(name) {
                return Err(format!("\"{name}\" is given twice in \"etcd\""));
            }
            match name {
                "prefix" => etcd.prefix = prefix(value)?,
                "user" => etcd.user = Some(value.to_owned()),
                "password_file" => etcd.password_file = Some(path(value)?.into()),
                "ssl_certificate" => etcd.ssl_certificate = Some(path(value)?.into()),
                "ssl_certificate_key" => etcd.ssl_certificate_key = Some(path(value)?.into()),
                "ssl_client_certificate" => etcd.ssl_client_certificate = Some(path(value)?.into()),
                "plugins" => etcd.plugins = Some(path(value)?.into()),
                "destination" => {
                    etcd.destination = match value {
                        "original" => Destination::Original,
                        "server" => Destination::Server,
                        "ignored" => Destination::Ignored,
                        _ => return Err(format!("invalid \"{word}\": it is original, server or ignored")),
                    }
                }
                "inbound" => {
                    etcd.inbound = match value {
                        "on" => true,
                        "off" => false,
                        _ => return Err(format!("invalid \"{word}\": it is on or off")),
                    }
                }
                _ => return Err(format!("unknown parameter \"{name}\" in \"etcd\"")),
            }
        }
        Ok(etcd)
    }

    /// Where it listens.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Whether others than this host can read it without being asked who they are.
    pub fn is_open_to_all(&self) -> bool {
        let far = matches!(self.address, Address::Tcp(a) if !a.ip().is_loopback());
        far && self.user.is_none() && self.ssl_client_certificate.is_none()
    }

    fn listen(&self) -> Result<Listen, String> {
        let credentials = match (&self.user, &self.password_file) {
            (None, None) => None,
            (Some(user), Some(file)) => {
                let text = std::fs::read_to_string(file).map_err(|e| format!("{}: {e}", file.display()))?;
                let password = text.lines().next().unwrap_or_default().to_owned();
                if password.is_empty() {
                    return Err(format!("{}: its first line is to be the password, and is empty", file.display()));
                }
                Some(Credentials { user: user.clone(), password })
            }
            _ => return Err("\"user\" and \"password_file\" of \"etcd\" go together".to_owned()),
        };
        let tls = match (&self.ssl_certificate, &self.ssl_certificate_key) {
            (None, None) if self.ssl_client_certificate.is_some() => {
                return Err("\"ssl_client_certificate\" of \"etcd\" wants \"ssl_certificate\", too".to_owned())
            }
            (None, None) => None,
            (Some(certificate), Some(key)) => {
                let tls = acceptor(certificate, key, self.ssl_client_certificate.as_deref());
                Some(tls.map_err(|e| e.to_string())?)
            }
            _ => return Err("\"ssl_certificate\" and \"ssl_certificate_key\" of \"etcd\" go together".to_owned()),
        };
        Ok(Listen { address: self.address.clone(), credentials, tls })
    }
}

/// As nginx's `listen` has it, without names.
fn socket_address(text: &str) -> Option<SocketAddr> {
    let address = match text.rsplit_once(':') {
        None => SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), text.parse().ok()?),
        Some(("*", port)) => SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port.parse().ok()?),
        Some(("localhost", port)) => SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port.parse().ok()?),
        Some(_) => text.parse().ok()?,
    };
    (address.port() > 0).then_some(address)
}

fn prefix(text: &str) -> Result<String, String> {
    let fine = text.starts_with('/') && !text.ends_with('/') && !text.contains("//");
    fine.then(|| text.to_owned())
        .ok_or_else(|| format!("invalid prefix \"{text}\" in \"etcd\": it begins with a slash and ends without one"))
}

/// What the thread is to do.
#[derive(Clone, Default)]
pub struct Orders {
    face: Config,
    options: Options,
    plugins: Option<PathBuf>,
}

/// Of all `etcd` directives, for the workload that the settings describe. Passwords and certificates are read.
///
/// # Errors
/// A file that cannot be used, or directives that do not go together.
pub fn orders(all: &[Etcd], mesh: &Settings) -> Result<Orders, String> {
    let Some(first) = all.first() else { return Ok(Orders::default()) };
    let shared = |e: &Etcd| (e.prefix.clone(), e.destination, e.inbound, e.plugins.clone());
    if all.iter().any(|e| shared(e) != shared(first)) {
        return Err(
            "all \"etcd\" have one \"prefix\", \"destination\", \"inbound\" and \"plugins\": give them the same"
                .to_owned(),
        );
    }
    let addresses: BTreeSet<&Address> = all.iter().map(|e| &e.address).collect();
    if addresses.len() < all.len() {
        return Err("two \"etcd\" have one address: remove one".to_owned());
    }
    let listen = all.iter().map(Etcd::listen).collect::<Result<_, _>>()?;
    let labels = match &first.plugins {
        Some(_) => mesh.labels().map_err(|e| e.to_string())?,
        None => BTreeMap::new(),
    };
    let options = Options { destination: first.destination, inbound: first.inbound, stream_routes: true, labels };
    Ok(Orders { face: Config { prefix: first.prefix.clone(), listen }, options, plugins: first.plugins.clone() })
}

/// Those that the thread has not seen yet.
static ORDERS: Mutex<Option<Orders>> = Mutex::new(None);

/// Leaves them for the thread.
pub fn order(orders: Orders) {
    *ORDERS.lock() = Some(orders);
}

/// Follows the engine.
#[derive(Default)]
pub struct Observer {
    orders: Orders,
    face: Option<Face>,
    translator: Option<Translator>,
    /// Watched since the translator is there.
    plugins: Option<PluginDirectory>,
}

impl Observer {
    /// Nothing that goes wrong in here is to stop the mesh of nginx itself: what is served stays as it is, until the thread
    /// is told all anew.
    fn translate(&mut self, change: impl FnOnce(&mut Translator) -> Changes) -> Option<Changes> {
        let translator = self.translator.as_mut()?;
        match catch_unwind(AssertUnwindSafe(|| change(translator))) {
            Ok(changes) => {
                for refusal in &changes.refused {
                    let text = format!("APISIX cannot serve {}: {}", refusal.what, refusal.reason);
                    ThreadLog::new().log(Level::Warn, &text);
                }
                Some(changes)
            }
            Err(payload) => {
                self.translator = None;
                let text = crate::guard::message(&payload);
                let text = format!("etcd: the translation panicked: {text}; last good is served until the next reload");
                ThreadLog::new().log(Level::Error, &text);
                None
            }
        }
    }
}

impl Observer {
    /// Puts the plugins of files that have changed on the routes; the changes of that.
    fn look_at_plugins(&mut self) -> Option<Changes> {
        let found = self.plugins.as_mut()?.look();
        for e in &found.errors {
            ThreadLog::new().log(Level::Error, e);
        }
        let plugins = found.plugins?;
        self.translate(|translator| translator.set_plugins(plugins))
    }
}

impl engine::Observer for Observer {
    fn attend(&mut self, fresh: bool) -> bool {
        let news = ORDERS.lock().take();
        if fresh {
            self.translator = None;
            self.face.iter_mut().for_each(Face::forget_runtime);
        } else if news.is_none() {
            return false;
        }
        if let Some(orders) = news {
            if orders.options != self.orders.options || orders.plugins != self.orders.plugins {
                self.translator = None;
            }
            self.orders = orders;
        }
        let config = self.orders.face.clone();
        if config.listen.is_empty() {
            (self.face, self.translator) = (None, None);
            return false;
        }
        let face = self.face.get_or_insert_with(|| {
            let log = |severity: Severity, text: &str| {
                let level = if severity == Severity::Error { Level::Error } else { Level::Notice };
                ThreadLog::new().log(level, text);
            };
            Face::new(&config.prefix, Arc::new(log))
        });
        face.configure(config);
        self.translator.is_none()
    }

    fn everything(&mut self, batch: Option<&Batch>, complete: bool) {
        let Orders { options, plugins, .. } = self.orders.clone();
        self.plugins = plugins.map(|path| PluginDirectory::new(path, options.labels.clone()));
        self.translator = Some(Translator::new(options));
        // There are no routes to put them on yet: nothing changes.
        self.look_at_plugins();
        let changes = match batch {
            Some(batch) => self.translate(|translator| translator.apply(batch)),
            None => Some(Changes::default()),
        };
        if let (Some(face), Some(translator), Some(_)) = (&mut self.face, &self.translator, changes) {
            let objects: Vec<_> = translator.objects().cloned().collect();
            face.replace(&objects, complete);
        }
    }

    fn publish(&mut self, batch: &Batch) {
        if let (Some(changes), Some(face)) = (self.translate(|translator| translator.apply(batch)), &mut self.face) {
            face.apply(&changes);
        }
    }

    fn tick(&mut self) {
        if let (Some(changes), Some(face)) = (self.look_at_plugins(), &mut self.face) {
            face.apply(&changes);
        }
    }
}
