//! The engine: load, then run.

use super::feed::{Ads, Feed, FeedEvent, FileFeed, Grpc};
use super::status::{BoundStatus, EngineStatus, ErrorStatus, SnapshotStatus, SourceStatus};
use super::world::{now, World};
use super::{Command, Config, ConfigError, Level, Log, Observer, PublishError, Publisher, Source};
use crate::ads::{short_name, Apply, Rejected, Resource, TYPES};
use crate::dns::{Answered, Refresher, Resolver};
use crate::health::Schedule;
use crate::persist;
use crate::source::{Changes, FileError, Files, Watch};
use crate::transport::{Event, Link};
use crossbeam_channel::{Receiver, TryRecvError};
use std::collections::{BTreeMap, HashMap};
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::Instant;

/// Between two ticks.
const TICK: Duration = Duration::from_secs(1);
/// A snapshot is written so long after the last change ...
const SNAPSHOT_QUIET: Duration = Duration::from_secs(1);
/// ... and so long after the first one at the latest.
const SNAPSHOT_LATEST: Duration = Duration::from_secs(10);
/// Writing a snapshot takes one part of this many of the thread's time at most: a large mesh changes all the time.
const SNAPSHOT_SHARE: u32 = 50;

/// What [`Engine::load`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Loaded {
    /// A file source with this many resources.
    File(PathBuf, usize),
    /// A snapshot with this many resources, of this age.
    Snapshot(PathBuf, usize, Duration),
    /// There is neither: nothing is published before a control plane answers.
    Nothing,
}

impl std::fmt::Display for Loaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Loaded::File(path, n) => write!(f, "{n} resources from {}", path.display()),
            Loaded::Snapshot(path, n, age) => {
                write!(f, "{n} resources from snapshot {}, {} s old", path.display(), age.as_secs())
            }
            Loaded::Nothing => f.write_str("no snapshot; waiting for a control plane"),
        }
    }
}

/// Why [`Engine::load`] has published nothing, or not all.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The zone.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// The snapshot.
    #[error(transparent)]
    Snapshot(#[from] persist::PersistError),
}

/// Why [`Engine::run`] has ended without being told to.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The descriptor that wakes it.
    #[error("the descriptor that says that there are commands cannot be watched: {0}")]
    Wake(std::io::Error),
}

/// See [the module](super).
pub struct Engine<P, L> {
    config: Config,
    world: World<P, L>,
    /// Read by `load`, taken over by `run`.
    files: Option<Files>,
    sources: Vec<SourceStatus>,
    snapshot: Option<SnapshotStatus>,
    unresolved: BTreeMap<String, String>,
    dirty: bool,
    /// No snapshot is written before.
    rest: Instant,
    /// An outage is told once, until it is over.
    outage: Option<(Instant, HashMap<usize, String>)>,
}

/// What exists only while it runs.
struct Running {
    feed: Feed,
    resolver: Resolver,
    dns: Refresher,
    answers: UnboundedReceiver<Answered>,
    dns_generation: u64,
    checks: Schedule,
    next_tick: Instant,
    /// When the snapshot is due, and when it is at the latest.
    save: Option<(Instant, Instant)>,
    seen_changes: u64,
}

impl<P: Publisher, L: Log> Engine<P, L> {
    /// An engine that has done nothing yet.
    pub fn new(config: Config, publisher: P, log: L) -> Engine<P, L> {
        let mut engine = Engine {
            config,
            world: World::new(publisher, log),
            files: None,
            sources: Vec::new(),
            snapshot: None,
            unresolved: BTreeMap::new(),
            dirty: true,
            rest: Instant::now(),
            outage: None,
        };
        engine.describe();
        engine
    }

    /// A function that is called between the pieces of long work: it may open the gate that a fork waits at.
    pub fn on_pause(&mut self, gate: impl FnMut() + Send + 'static) {
        self.world.gate = Box::new(gate);
    }

    /// Somebody who follows from the next [`Engine::run`] on.
    pub fn observe(&mut self, observer: Box<dyn Observer>) {
        self.world.observers.push(observer);
    }

    /// Whether anything was published.
    pub fn is_ready(&self) -> bool {
        self.world.published
    }

    /// What the configuration says of the sources, before anything happened.
    fn describe(&mut self) {
        let one = |s: &Source| match s {
            Source::File(path) => SourceStatus {
                kind: "file",
                target: path.display().to_string(),
                state: "idle",
                since: now(),
                ..SourceStatus::default()
            },
            Source::Grpc(server) => SourceStatus {
                kind: "grpc",
                target: server.target.to_string(),
                state: "idle",
                since: now(),
                protocol: Some(self.config.protocol),
                ..SourceStatus::default()
            },
        };
        self.sources = self.config.sources.iter().map(one).collect();
        self.snapshot = self
            .config
            .snapshot()
            .map(|path| SnapshotStatus { path: path.display().to_string(), ..SnapshotStatus::default() });
        self.dirty = true;
    }

    /// Reads the file source or the snapshot and publishes it, without a runtime. What is wrong with single resources
    /// or files is logged; the others are published.
    ///
    /// # Errors
    /// Nothing or not all of it is published.
    pub fn load(&mut self) -> Result<Loaded, LoadError> {
        self.config.validate()?;
        if let Some(path) = self.config.file().cloned() {
            let mut files = Files::new(&path);
            let changes = files.scan();
            let count = changes.added.len();
            self.take_files(&files, changes);
            self.files = Some(files);
            let error = self.world.publish_error().cloned();
            self.tell_status();
            return error.map_or(Ok(Loaded::File(path, count)), |e| Err(e.into()));
        }
        let Some(path) = self.config.snapshot().cloned() else { return Ok(Loaded::Nothing) };
        let read = persist::read(&path, self.config.layout);
        let Some(status) = &mut self.snapshot else { return Ok(Loaded::Nothing) };
        let snapshot = match read {
            Ok(Some(snapshot)) => snapshot,
            Ok(None) => return Ok(Loaded::Nothing),
            Err(e) => {
                status.error = Some(e.to_string());
                return Err(e.into());
            }
        };
        let age = snapshot.written.elapsed().unwrap_or_default();
        status.loaded_age = Some(age.as_millis() as u64);
        status.written = Some(now().saturating_sub(age.as_millis() as u64));
        let count = snapshot.resources.len();
        for r in self.world.restore(snapshot.resources) {
            self.world.log.log(Level::Warn, &format!("in the snapshot, left out: {r}"));
        }
        self.world.publish()?;
        self.tell_status();
        Ok(Loaded::Snapshot(path, count, age))
    }

    /// Keeps the world up to date until [`Command::Stop`] comes or nobody can send commands any more. `wake` becomes
    /// readable when commands were sent (an eventfd, best; of this thread's descriptors). Nothing is read from it: every
    /// write to it is heard, and a full one is looked at within a second. May be called again after an error.
    ///
    /// # Errors
    /// The configuration or the descriptor cannot be used.
    pub async fn run(&mut self, commands: &Receiver<Command<P>>, wake: BorrowedFd<'_>) -> Result<(), EngineError> {
        self.config.validate()?;
        let wake = crate::readiness::readable(wake).map_err(EngineError::Wake)?;
        let mut running = self.start();
        self.world.attend(true, self.config.file().is_some());
        loop {
            if self.obey(commands, &mut running) {
                return Ok(());
            }
            self.settle(&mut running);
            let due = self.next_timer(&running);
            tokio::select! {
                // What it holds is not read: every write to it is an event of its own.
                ready = wake.readable() => match ready {
                    Ok(mut ready) => ready.clear_ready(),
                    Err(e) => return Err(EngineError::Wake(e)),
                },
                event = running.feed.next() => self.on_event(event, &mut running).await,
                Some(answered) = running.answers.recv() => self.on_answer(answered),
                (id, result) = running.checks.next() => {
                    if let Some(after) = self.world.on_checked(id, &result) {
                        running.checks.again(id, after);
                    }
                }
                () = tokio::time::sleep_until(due) => self.on_timer(&mut running),
            }
            (self.world.gate)();
        }
    }

    fn start(&mut self) -> Running {
        let resolver = Resolver::new(self.config.mark);
        let (dns, answers) = Refresher::new(resolver.clone());
        let feed = self.feed(&resolver);
        let next_tick = Instant::now() + TICK;
        // What was restored needs no saving; what comes from now on does.
        let seen_changes = self.world.changes;
        self.world.health.set_mark(self.config.mark);
        // What an earlier run was doing is gone with it.
        self.world.health.restart_all();
        let checks = Schedule::default();
        Running { feed, resolver, dns, answers, dns_generation: 0, checks, next_tick, save: None, seen_changes }
    }

    /// The source that the configuration names.
    fn feed(&mut self, resolver: &Resolver) -> Feed {
        self.outage = None;
        match self.config.file() {
            Some(path) => {
                // Before the first look, so that nothing is missed in between.
                let watch = Watch::new(path);
                let mut files = self.files.take().filter(|f| f.path() == path).unwrap_or_else(|| Files::new(path));
                let changes = files.scan();
                self.take_files(&files, changes);
                let alone = self.drop_others(&files);
                let state = if watch.error().is_some() { "polling" } else { "watching" };
                self.set_state(0, state);
                // A path that cannot be read was told of already.
                if let Some(e) = watch.error().filter(|_| alone) {
                    self.world.log.log(Level::Warn, &format!("{e}; it is looked at once a second instead"));
                }
                Feed::Files(Box::new(FileFeed { files, watch, alone }))
            }
            None => {
                let settings = self.config.link();
                let ads = Ads::new(settings.protocol, self.config.node.to_proto());
                let link = Link::start(settings.clone(), resolver.clone());
                Feed::Grpc(Box::new(Grpc { settings, link, ads }))
            }
        }
    }

    fn obey(&mut self, commands: &Receiver<Command<P>>, running: &mut Running) -> bool {
        loop {
            match commands.try_recv() {
                Ok(Command::Stop) | Err(TryRecvError::Disconnected) => return true,
                Err(TryRecvError::Empty) => return false,
                Ok(Command::Configure(config)) => self.configure(config, running),
                Ok(Command::Publish { publisher, reply }) => {
                    let result = self.world.add_zone(publisher);
                    self.dirty = true;
                    // Who asked may have given up waiting.
                    let _ = reply.send(result);
                }
                Ok(Command::Attend) => self.world.attend(false, self.config.file().is_some()),
                Ok(Command::Status(reply)) => {
                    let _ = reply.send(self.status_json());
                }
            }
        }
    }

    fn configure(&mut self, config: Config, running: &mut Running) {
        if let Err(e) = config.validate() {
            self.world.log.log(Level::Error, &format!("{e}; the former configuration stays"));
            return;
        }
        let before = std::mem::replace(&mut self.config, config);
        let config = &self.config;
        if before.mark != config.mark {
            running.resolver = Resolver::new(config.mark);
            (running.dns, running.answers) = Refresher::new(running.resolver.clone());
            running.dns_generation = 0;
            self.world.health.set_mark(config.mark);
        }
        if before.snapshot() != config.snapshot() {
            // The new place has nothing yet.
            running.save = Some((Instant::now(), Instant::now()));
        }
        let same_feed =
            before.sources == config.sources && before.node == config.node && before.link() == config.link();
        if !same_feed {
            self.describe();
            let resolver = running.resolver.clone();
            // The old stream ends when its feed is dropped; what it brought serves until the new one says otherwise.
            running.feed = self.feed(&resolver);
        } else if before.snapshot() != config.snapshot() {
            let sources = std::mem::take(&mut self.sources);
            self.describe();
            self.sources = sources;
        }
    }

    /// After whatever happened: names to ask for, names to resolve, what to publish, what to save.
    fn settle(&mut self, running: &mut Running) {
        if self.world.store.warm_deadline().is_some_and(|at| at <= now()) {
            self.world.store.expire(now());
        }
        // A failure is kept, told by the zone, and stands in the status.
        let _ = self.world.publish();
        match &mut running.feed {
            Feed::Grpc(g) => g.ads.names_changed(&mut self.world),
            Feed::Files(f) => resend(&mut self.world, &f.files),
        }
        if running.dns_generation != self.world.store.dns_generation() {
            running.dns_generation = self.world.store.dns_generation();
            let names = self.world.store.dns_names();
            self.unresolved.retain(|host, _| names.iter().any(|n| n.host == *host));
            running.dns.set(names);
        }
        running.checks.apply(self.world.health.take_changes());
        if running.seen_changes != self.world.changes {
            running.seen_changes = self.world.changes;
            self.dirty = true;
            if self.config.snapshot().is_some() {
                let now = Instant::now();
                let latest = running.save.map_or(now + SNAPSHOT_LATEST, |(_, latest)| latest);
                running.save = Some((now + SNAPSHOT_QUIET, latest));
            }
        }
    }

    fn next_timer(&self, running: &Running) -> Instant {
        let warm =
            self.world.store.warm_deadline().map(|at| Instant::now() + Duration::from_millis(at.saturating_sub(now())));
        let save = running.save.map(|(due, latest)| due.min(latest).max(self.rest));
        [warm, save, self.world.health.next_interval()].into_iter().flatten().fold(running.next_tick, Instant::min)
    }

    fn on_timer(&mut self, running: &mut Running) {
        let at = Instant::now();
        if running.save.is_some_and(|(due, latest)| due.min(latest).max(self.rest) <= at) {
            running.save = None;
            self.save();
        }
        self.world.end_intervals();
        if running.next_tick <= at {
            running.next_tick = at + TICK;
            self.world.tick();
            if self.dirty {
                self.tell_status();
            }
        }
    }

    fn save(&mut self) {
        let Some(path) = self.config.snapshot().cloned() else { return };
        let begun = Instant::now();
        let written = persist::write(&path, self.config.layout, self.world.store.snapshot());
        self.rest = Instant::now() + begun.elapsed() * SNAPSHOT_SHARE;
        self.dirty = true;
        let Some(status) = &mut self.snapshot else { return };
        match written {
            Ok(()) => (status.written, status.error) = (Some(now()), None),
            Err(e) => {
                let text = e.to_string();
                if status.error.as_ref() != Some(&text) {
                    self.world.log.log(Level::Error, &text);
                }
                status.error = Some(text);
            }
        }
    }

    fn on_answer(&mut self, answered: Answered) {
        let Answered { host, family, result } = answered;
        match result {
            Ok(addresses) => {
                let none = addresses.is_empty();
                self.world.store.dns_result(&host, family, Some(addresses), now());
                if !none {
                    self.dirty |= self.unresolved.remove(&host).is_some();
                } else if self.unresolved.insert(host.clone(), "it has no address".to_owned()).is_none() {
                    self.dirty = true;
                    self.world.log.log(Level::Warn, &format!("\"{host}\" has no address of the family that is wanted"));
                }
            }
            Err(reason) => {
                self.world.store.dns_result(&host, family, None, now());
                if self.unresolved.insert(host, reason.clone()).is_none() {
                    self.dirty = true;
                    self.world.log.log(Level::Warn, &format!("{reason}; its last known addresses stay"));
                }
            }
        }
    }

    fn set_state(&mut self, i: usize, state: &'static str) {
        if let Some(s) = self.sources.get_mut(i).filter(|s| s.state != state) {
            (s.state, s.since) = (state, now());
            self.dirty = true;
        }
    }

    async fn on_event(&mut self, event: FeedEvent, running: &mut Running) {
        match (event, &mut running.feed) {
            (FeedEvent::Link(event), Feed::Grpc(g)) => self.on_link(event, g),
            (FeedEvent::Files, Feed::Files(f)) => {
                let FileFeed { files, watch, alone } = &mut **f;
                let changes = files.scan();
                let state = if watch.error().is_some() { "polling" } else { "watching" };
                self.take_files(files, changes);
                *alone = *alone || self.drop_others(files);
                self.set_state(0, state);
            }
            // A task that died (it panicked) is started again, slowly.
            (FeedEvent::Dead, Feed::Grpc(_)) => {
                self.world.log.log(Level::Error, "the stream's task has died, it is started again");
                tokio::time::sleep(TICK).await;
                let resolver = running.resolver.clone();
                running.feed = self.feed(&resolver);
            }
            (FeedEvent::Files | FeedEvent::Dead, _) | (FeedEvent::Link(_), Feed::Files(_)) => {}
        }
    }

    fn on_link(&mut self, event: Event, g: &mut Grpc) {
        let current =
            self.sources.iter().position(|s| matches!(s.state, "connecting" | "connected")).unwrap_or_default();
        let target = |i: usize| g.settings.servers.get(i).map(|s| s.target.to_string()).unwrap_or_default();
        match event {
            Event::Connecting(i) => {
                for other in (0..self.sources.len()).filter(|o| *o != i) {
                    self.set_state(other, "idle");
                }
                self.set_state(i, "connecting");
            }
            Event::Connected(requests) => {
                self.set_state(current, "connected");
                g.ads.connected(requests, &mut self.world);
            }
            Event::Silent(after) => {
                let text = format!("{}: connected, but no response within {} s", target(current), after.as_secs());
                self.world.log.log(Level::Warn, &text);
                self.error(current, text);
            }
            Event::Response(response) => {
                if let Some((since, _)) = self.outage.take() {
                    let text = format!("{}: responses again after {} s", target(current), since.elapsed().as_secs());
                    self.world.log.log(Level::Notice, &text);
                }
                let Some(received) = g.ads.received(response, &mut self.world) else { return };
                if let Some(why) = &received.ignored {
                    self.world.log.log(Level::Warn, &format!("{}: ignored: {why}", target(current)));
                }
                let Some(status) = self.sources.get_mut(current) else { return };
                status.control_plane = received.control_plane;
                let one = status.types.entry(short_name(&received.type_url).to_owned()).or_default();
                one.responses += 1;
                one.nacks += u64::from(!received.rejected.is_empty());
                (one.at, one.version) = (now(), received.version);
                self.dirty = true;
            }
            Event::Ended { error, ordinary, pause } => {
                g.ads.ended();
                self.set_state(current, "waiting");
                let text = format!("{}: {error}", target(current));
                if ordinary {
                    self.world.log.log(Level::Info, &format!("{text}; connecting again"));
                } else {
                    let outage = self.outage.get_or_insert_with(|| (Instant::now(), HashMap::new()));
                    // The same words from the same server are told once an outage.
                    if outage.1.insert(current, text.clone()).as_ref() != Some(&text) {
                        let (level, serves) =
                            if self.world.published { (Level::Warn, ", last good serves") } else { (Level::Error, "") };
                        let again = format!("{text}; trying again in {} ms{serves}", pause.as_millis());
                        self.world.log.log(level, &again);
                    }
                    self.error(current, error.to_string());
                }
            }
        }
    }

    fn error(&mut self, i: usize, text: String) {
        if let Some(s) = self.sources.get_mut(i) {
            s.last_error = Some(ErrorStatus { at: now(), text });
            self.dirty = true;
        }
    }

    /// Applies what a scan of files found.
    fn take_files(&mut self, files: &Files, changes: Changes) {
        for e in &changes.errors {
            self.world.log.log(Level::Error, &e.to_string());
        }
        if changes.mended > 0 {
            self.world.log.log(Level::Notice, &format!("{}: {} mended", files.path().display(), changes.mended));
        }
        let mut added: BTreeMap<String, Vec<Resource>> = BTreeMap::new();
        for r in changes.added {
            added.entry(r.body.type_url.clone()).or_default().push(r);
        }
        let mut removed: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (type_url, name) in changes.removed {
            removed.entry(type_url).or_default().push(name);
        }
        // Make before break: additions in the order of dependence, removals in the opposite one.
        for t in TYPES {
            if let Some(added) = added.remove(t) {
                self.apply_files(files, t, added, Vec::new());
            }
        }
        for t in TYPES.into_iter().rev() {
            if let Some(removed) = removed.remove(t) {
                self.apply_files(files, t, Vec::new(), removed);
            }
        }
        // Types that are not translated: the store says so.
        for (t, added) in added {
            self.apply_files(files, &t, added, removed.remove(&t).unwrap_or_default());
        }
        if let Some(s) = self.sources.first_mut() {
            s.files = Some(files.count());
            s.file_errors = files.errors().iter().map(ToString::to_string).collect();
        }
        self.dirty = true;
    }

    fn apply_files(&mut self, files: &Files, type_url: &str, added: Vec<Resource>, removed: Vec<String>) {
        let place = |r: &Rejected| files.place(type_url, r).map(|p| format!("{}: ", p.display())).unwrap_or_default();
        self.world.apply_from(type_url, added, removed, false, &place);
    }

    /// A file source is the whole world: what another source left is gone, once the files could be read.
    fn drop_others(&mut self, files: &Files) -> bool {
        if files.errors().iter().any(|e| matches!(e, FileError::Path { .. })) {
            return false;
        }
        for t in TYPES.into_iter().rev() {
            let held = self.world.held(t).into_iter().map(|(name, _)| name);
            let gone: Vec<String> = held.filter(|name| files.get(t, name).is_none()).collect();
            self.apply_files(files, t, Vec::new(), gone);
        }
        true
    }

    /// The state of the engine: sources, rejected resources with their reasons, ignored fields, what waits, snapshot.
    pub fn status_json(&self) -> String {
        let bound = |b: &crate::translate::BoundListener| BoundStatus {
            name: b.name.clone(),
            addresses: b.addresses.iter().map(ToString::to_string).collect(),
            inbound: b.inbound,
        };
        let status = EngineStatus {
            ready: self.world.published,
            node: &self.config.node.id,
            sources: &self.sources,
            publish_error: self.world.publish_error().map(ToString::to_string),
            snapshot: self.snapshot.as_ref(),
            unresolved: &self.unresolved,
            bound_listeners: self.world.store.bound_listeners().iter().map(bound).collect(),
            store: self.world.store.status(),
        };
        // Plain data with text keys: it always can be written.
        serde_json::to_string(&status).unwrap_or_default()
    }

    fn tell_status(&mut self) {
        self.dirty = false;
        let json = self.status_json();
        self.world.tell_status(&json);
    }
}

/// The store drops endpoints and route tables that nothing refers to; what refers to them now finds them in the files.
fn resend<P: Publisher, L: Log>(world: &mut World<P, L>, files: &Files) {
    let change = world.take_change();
    for (t, names) in [(TYPES[1], change.add.eds), (TYPES[3], change.add.rds)] {
        let found: Vec<Resource> = names.iter().filter_map(|n| files.get(t, n)).cloned().collect();
        if !found.is_empty() {
            world.apply(t, found, Vec::new(), false);
        }
    }
}
