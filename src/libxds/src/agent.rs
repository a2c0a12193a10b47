//! The life of the thread in APISIX's privileged agent.
//!
//! It begins in `initial` and ends with the process, or when a younger privileged agent has taken the dictionaries over:
//! at a reload both run for a while. All signals are blocked: nginx's handlers belong to the main thread.

use crate::bridge::{Bridge, Slots as _, SlotsError};
use crate::log::Log;
use crate::mesh::Mesh;
use crate::mirror::{Mirror, Origin};
use crate::objects::Objects;
use crate::settings::{Settings, SettingsError};
use crate::shdict::Zone;
use crate::slots::{Module, OtherBuild};
use crate::store::Store;
use crate::version::{StoreError, Version};
use amesh_apisix::plugins::PluginDirectory;
use amesh_apisix::Options;
use amesh_model::batch::Batch;
use amesh_xds::engine::{self, Command, Engine, Level, Log as _, Publisher, Source};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Snapshots hold resources as they came, in no layout of this library's.
const LAYOUT: u64 = 1;
/// How often the module's zone is looked at: one load, while nothing changes.
const BRIDGE_PAUSE: Duration = Duration::from_millis(5);
/// nginx may call this library before the module has its zone.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often files are looked at.
const TICK: Duration = Duration::from_secs(1);

/// Why nothing is written.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The dictionaries.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The settings. APISIX has its version all the same: it serves what the dictionary holds.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// What they say of the mesh.
    #[error(transparent)]
    Mesh(#[from] amesh_xds::settings::SettingsError),
    /// The module.
    #[error(transparent)]
    Module(#[from] OtherBuild),
    /// The thread.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
}

static STARTED: AtomicBool = AtomicBool::new(false);

/// Takes the dictionaries over and starts the thread.
///
/// # Errors
/// [`StartError`].
pub fn start(config: Zone, version: Zone) -> Result<(), StartError> {
    if STARTED.swap(true, Ordering::Relaxed) {
        return Ok(());
    }
    // No two processes have a pid at one time.
    let since = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos());
    let version = Arc::new(Version::take(version, format!("{}-{since}", std::process::id()), true)?);
    let started = begin(config, &version);
    if started.is_err() {
        // APISIX waits for it, and would wait for ever.
        version.release()?;
    }
    started
}

fn begin(config: Zone, version: &Arc<Version<Zone>>) -> Result<(), StartError> {
    let store = Store::open(config, version.clone())?;
    let settings = Settings::read(|n| std::env::var(n).ok())?;
    if settings.mesh.servers.is_empty() {
        // The module opens its zone early for who asks in nginx's own thread. Its turn in `init_process` may come after
        // Lua's, which waits for the version. The thread asks again, and tells what is wrong.
        if let Ok(Some(module)) = Module::find() {
            let _ = module.version();
        }
    }
    let thread = Thread { store, version: version.clone(), settings };
    with_signals_blocked(|| std::thread::Builder::new().name("amesh-xds".to_owned()).spawn(move || thread.run()))
        .map_err(StartError::Thread)?;
    Ok(())
}

/// What the thread begins with.
struct Thread {
    store: Store<Zone>,
    version: Arc<Version<Zone>>,
    settings: Settings,
}

impl Thread {
    fn run(self) {
        let log = Log { level: self.settings.log_level };
        let version = self.version.clone();
        let reason = match catch_unwind(AssertUnwindSafe(|| self.serve(log))) {
            Ok(Ok(())) => None,
            Ok(Err(e)) => Some(e.to_string()),
            Err(payload) => Some(format!("the thread panicked: {}", crate::message(&payload))),
        };
        if let Some(reason) = reason {
            log.log(Level::Error, &format!("{reason}; last good serves"));
        }
        // However it ended, nobody shall wait for it.
        if let Err(e) = version.release() {
            log.log(Level::Error, &e.to_string());
        }
    }

    fn serve(self, log: Log) -> Result<(), StartError> {
        let labels = self.settings.mesh.labels().map_err(amesh_xds::settings::SettingsError::from)?;
        // APISIX's stream subsystem does not read the dictionaries.
        let options = Options {
            destination: self.settings.destination,
            inbound: self.settings.inbound,
            stream_routes: false,
            labels: labels.clone(),
        };
        let plugins = self.settings.plugins.map(|path| PluginDirectory::new(path, labels));
        let (commands, receiver) = crossbeam_channel::unbounded();
        // Nobody listens any more where the thread has ended already.
        let on_lost = Box::new(move || drop(commands.send(Command::Stop)));
        let objects = self.settings.objects.map(Objects::new);
        if self.settings.mesh.servers.is_empty() {
            if let Some(module) = Module::find()? {
                let mirror = Mirror::open(self.store, objects, Origin::ControlPlane, log, on_lost)?;
                return bridge(module, Mesh::new(mirror, plugins, options, log), &self.version, log);
            }
            let mut mirror = Mirror::open(self.store, objects, Origin::Nowhere, log, on_lost)?;
            self.version.release()?;
            while !mirror.is_lost() {
                std::thread::sleep(TICK);
                mirror.look();
            }
            return Ok(());
        }
        let config = self.settings.mesh.config(LAYOUT)?;
        let origin =
            if matches!(config.sources.as_slice(), [Source::File(_)]) { Origin::Files } else { Origin::ControlPlane };
        if origin == Origin::ControlPlane && config.snapshot.is_none() {
            // Its answer may take long, or never come.
            self.version.release()?;
        }
        let mirror = Mirror::open(self.store, objects, origin, log, on_lost)?;
        let mut engine = Engine::new(config, Mesh::new(mirror, plugins, options, log), log);
        match engine.load() {
            Ok(loaded) => log.log(Level::Notice, &loaded.to_string()),
            Err(e) => log.log(Level::Error, &e.to_string()),
        }
        self.version.release()?;
        follow(engine, &receiver, log).map_err(StartError::Thread)
    }
}

/// Writes what the module's zone holds, until another process writes.
fn bridge(module: Module, mut mesh: Mesh<Zone, Log>, version: &Version<Zone>, log: Log) -> Result<(), StartError> {
    let mut bridge = Bridge::new(module);
    let start = Instant::now();
    let mut tick = start + TICK;
    // What is wrong now, told once.
    let mut told: Option<String> = None;
    while !mesh.is_lost() {
        let ticks = Instant::now() >= tick;
        let looked = match bridge.look() {
            Err(SlotsError::NoZone) if start.elapsed() < PATIENCE => Ok(None),
            looked => looked,
        };
        let result = match looked {
            Ok(Some(batch)) => Some(mesh.apply(&batch).map_err(|e| format!("{e}; last good serves"))),
            // What did not fit is tried again now and then.
            Ok(None) if told.is_some() && ticks => {
                Some(mesh.apply(&Batch::default()).map_err(|e| format!("{e}; last good serves")))
            }
            Ok(None) => None,
            Err(e) => Some(Err(e.to_string())),
        };
        // After the first look: of a zone that is there already all of it is written by then.
        version.release()?;
        match result {
            Some(Err(e)) if told.as_ref() != Some(&e) => {
                log.log(Level::Error, &e);
                told = Some(e);
            }
            Some(Ok(())) => told = None,
            _ => {}
        }
        if ticks {
            mesh.tick();
            tick = Instant::now() + TICK;
        }
        std::thread::sleep(BRIDGE_PAUSE);
    }
    Ok(())
}

/// Runs the engine until it is told to stop. After a panic it goes on with a growing pause: the same one, since it alone
/// knows what is written.
fn follow(
    mut engine: Engine<Mesh<Zone, Log>, Log>,
    commands: &crossbeam_channel::Receiver<Command<Mesh<Zone, Log>>>,
    log: Log,
) -> std::io::Result<()> {
    // Nobody writes to it: commands come from this very thread.
    // SAFETY: eventfd has no preconditions.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if fd < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: just made, owned by nobody else.
    let wake = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut pause = Duration::from_secs(1);
    loop {
        let ended = catch_unwind(AssertUnwindSafe(|| {
            let runtime = engine::runtime(|| (), || ())?;
            runtime.block_on(engine.run(commands, wake.as_fd())).map_err(std::io::Error::other)
        }));
        let reason = match ended {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(e)) => e.to_string(),
            Err(payload) => format!("panicked: {}", crate::message(&payload)),
        };
        log.log(Level::Error, &format!("the thread {reason}; last good serves, it goes on in {} s", pause.as_secs()));
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_secs(60));
    }
}

/// A new thread inherits the mask.
fn with_signals_blocked<T>(f: impl FnOnce() -> T) -> T {
    // SAFETY: sets are plain data, filled before use.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        let mut before: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_BLOCK, &all, &mut before);
        let result = f();
        libc::pthread_sigmask(libc::SIG_SETMASK, &before, std::ptr::null_mut());
        result
    }
}
