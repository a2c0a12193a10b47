//! The life of the xDS thread in the nginx master.
//!
//! nginx never calls `init_master`, and `init_module` runs before `daemon()` forks. The thread therefore starts in a
//! `pthread_atfork` parent handler: when the real master has spawned its first worker. It lives as long as the master,
//! over reloads. Rules that bind it: all signals blocked (nginx's handlers belong to the main thread), a descriptor
//! table of its own (workers must not inherit its sockets), and a gate that is shut while a process is forked, so that
//! no worker is born while the thread holds a lock.

use crate::conf::{MainConf, Settings};
use crate::guard::guard;
use crate::nginx::{self, OK};
use crate::{etcd, listening, settings, zone};
use amesh_xds::engine::{self, Command, Engine};
use ngx::ffi::{self, ngx_cycle_t, ngx_int_t, ngx_uint_t};
use parking_lot::Mutex;
use std::cell::UnsafeCell;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// `NGX_PROCESS_SINGLE` and `NGX_PROCESS_MASTER` of ngx_process_cycle.h.
const PROCESS_SINGLE: ngx_uint_t = 0;
/// See [`PROCESS_SINGLE`].
const PROCESS_MASTER: ngx_uint_t = 1;
/// How long a fork waits for the thread to come to rest.
const GATE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a reload waits for the thread to fill a new zone.
const FILL_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the end of the master waits for the thread.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// What the master's main thread knows of the xDS thread.
#[derive(Default)]
struct Master {
    /// What the configuration in force says; `None` without an `amesh` block.
    settings: Option<Settings>,
    /// Loaded before the first fork, handed to the thread when it starts.
    engine: Option<ZoneEngine>,
    thread: Option<Thread>,
}

/// The engine over our zones, writing to nginx's log.
pub type ZoneEngine = Engine<zone::Publisher, ThreadLog>;

struct Thread {
    commands: crossbeam_channel::Sender<Command<zone::Publisher>>,
    /// An eventfd; the thread has its own descriptor of it.
    wake: OwnedFd,
    ended: crossbeam_channel::Receiver<()>,
}

static MASTER: Mutex<Master> = Mutex::new(Master { settings: None, engine: None, thread: None });
static GATE: Gate = Gate(UnsafeCell::new(libc::PTHREAD_MUTEX_INITIALIZER));
/// The process that the thread runs in; 0: none.
static THREAD_PID: AtomicI32 = AtomicI32::new(0);
/// The fork that is under way holds the gate.
static GATE_HELD: AtomicBool = AtomicBool::new(false);
/// A fork waits for the gate.
static FORK_WAITS: AtomicBool = AtomicBool::new(false);
static ATFORK: AtomicBool = AtomicBool::new(false);

/// Shut while the thread runs, open while it waits. A pthread mutex, because a child may unlock what its parent locked.
struct Gate(UnsafeCell<libc::pthread_mutex_t>);
// SAFETY: a pthread mutex is made for many threads.
unsafe impl Sync for Gate {}

impl Gate {
    fn lock(&self) {
        // SAFETY: statically initialised, never destroyed.
        unsafe { libc::pthread_mutex_lock(self.0.get()) };
    }

    fn unlock(&self) {
        // SAFETY: as above; callers hold it.
        unsafe { libc::pthread_mutex_unlock(self.0.get()) };
    }

    fn lock_within(&self, limit: Duration) -> bool {
        // SAFETY: all zeroes is a time; then filled by the kernel.
        unsafe {
            let mut until: libc::timespec = std::mem::zeroed();
            libc::clock_gettime(libc::CLOCK_REALTIME, &mut until);
            until.tv_sec += limit.as_secs() as libc::time_t;
            libc::pthread_mutex_timedlock(self.0.get(), &until) == 0
        }
    }
}

extern "C" fn before_fork() {
    guard("before a fork", (), || {
        if THREAD_PID.load(Ordering::Relaxed) == std::process::id() as i32 {
            FORK_WAITS.store(true, Ordering::Relaxed);
            GATE_HELD.store(GATE.lock_within(GATE_TIMEOUT), Ordering::Relaxed);
            FORK_WAITS.store(false, Ordering::Relaxed);
        }
    });
}

extern "C" fn after_fork_in_parent() {
    guard("after a fork", (), || {
        if GATE_HELD.swap(false, Ordering::Relaxed) {
            GATE.unlock();
        }
        if is_master() {
            start();
        }
    });
}

extern "C" fn after_fork_in_child() {
    guard("after a fork", (), || {
        if GATE_HELD.swap(false, Ordering::Relaxed) {
            GATE.unlock();
        }
    });
}

/// Whether this process is the master that stays: not the one that `daemon()` leaves behind.
fn is_master() -> bool {
    // SAFETY: plain variables of nginx, read by the thread that writes them.
    unsafe {
        if ffi::ngx_process != PROCESS_MASTER {
            return false;
        }
        let core: *mut ffi::ngx_core_conf_t =
            (*(*ffi::ngx_cycle).conf_ctx.add((&raw const ffi::ngx_core_module).read().index)).cast();
        (*core).daemon == 0 || ffi::ngx_daemonized != 0
    }
}

/// Lets a waiting fork through between two pieces of long work. The mutex is not fair: who waits is waited for.
fn open_gate_for_fork() {
    if FORK_WAITS.load(Ordering::Relaxed) {
        GATE.unlock();
        while FORK_WAITS.load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
        GATE.lock();
    }
}

fn new_engine(settings: &Settings, publisher: zone::Publisher) -> Result<ZoneEngine, String> {
    let mut engine = Engine::new(settings::engine_config(settings)?, publisher, ThreadLog::new());
    engine.on_pause(open_gate_for_fork);
    engine.observe(Box::<etcd::Observer>::default());
    Ok(engine)
}

/// Makes an engine and has it load the file source or the snapshot into a zone, before any process is forked.
pub fn load(settings: &Settings, publisher: zone::Publisher, log: *mut ffi::ngx_log_t) {
    let mut engine = match new_engine(settings, publisher) {
        Ok(engine) => engine,
        Err(e) => return nginx::log(log, ffi::NGX_LOG_ERR as ngx_uint_t, format_args!("amesh: {e}")),
    };
    let started = Instant::now();
    match engine.load() {
        Ok(loaded) => nginx::log(
            log,
            ffi::NGX_LOG_NOTICE as ngx_uint_t,
            format_args!("amesh: {loaded} in {} ms", started.elapsed().as_millis()),
        ),
        Err(e) => nginx::log(log, ffi::NGX_LOG_ERR as ngx_uint_t, format_args!("amesh: {e}")),
    }
    MASTER.lock().engine = Some(engine);
}

/// Why a zone was not filled by the thread.
pub enum NotFilled {
    /// There is none; the writer is given back.
    NoThread(Box<zone::Publisher>),
    /// It could not.
    Failed(String),
}

/// Has the thread write all that it knows into another zone too, and waits for it.
///
/// # Errors
/// [`NotFilled`].
pub fn fill(publisher: zone::Publisher) -> Result<(), NotFilled> {
    let (reply, answer) = crossbeam_channel::bounded(1);
    {
        let master = MASTER.lock();
        let Some(thread) = &master.thread else { return Err(NotFilled::NoThread(Box::new(publisher))) };
        if thread.commands.send(Command::Publish { publisher, reply }).is_err() {
            return Err(NotFilled::Failed("the xDS thread has ended".to_owned()));
        }
        thread.wake();
    }
    match answer.recv_timeout(FILL_TIMEOUT) {
        Ok(result) => result.map_err(|e| NotFilled::Failed(e.to_string())),
        Err(_) => Err(NotFilled::Failed(format!("the xDS thread did not answer within {FILL_TIMEOUT:?}"))),
    }
}

/// A configuration is in force from now on (`init_module`).
pub fn commit(cycle: *mut ngx_cycle_t, conf: Option<&mut MainConf>) -> ngx_int_t {
    // SAFETY: the cycle is complete when modules are initialised.
    let log_path = unsafe { error_log(cycle) };
    LOG_PATH.lock().clone_from(&log_path);
    // SAFETY: as above.
    LOG_LEVEL.store(unsafe { (*(*cycle).log).log_level } as u32, Ordering::Relaxed);
    match conf.filter(|c| c.present) {
        None => stop(),
        Some(conf) => {
            let config = settings::engine_config(&conf.settings);
            let (config, orders) =
                match config.and_then(|c| Ok((c, etcd::orders(&conf.settings.etcd, &conf.settings.mesh)?))) {
                    Ok(both) => both,
                    Err(e) => {
                        // SAFETY: as above.
                        let log = unsafe { (*cycle).log };
                        nginx::log(log, ffi::NGX_LOG_EMERG as ngx_uint_t, format_args!("amesh: {e}"));
                        return nginx::ERROR;
                    }
                };
            listening::note(cycle);
            let mut master = MASTER.lock();
            // Also where nothing changed but what is in the files that it names.
            etcd::order(orders);
            if let Some(thread) = &master.thread {
                // As below.
                let _ = thread.commands.send(Command::Attend);
                thread.wake();
            }
            if master.settings.as_ref() != Some(&conf.settings) {
                master.settings = Some(conf.settings.clone());
                if let Some(thread) = &master.thread {
                    // The channel is unbounded; it fails only where the thread has ended, and then there is nobody to tell.
                    let _ = thread.commands.send(Command::Configure(config));
                    thread.wake();
                }
            }
            if !ATFORK.swap(true, Ordering::Relaxed) {
                // SAFETY: the handlers are never unloaded: the module is linked with -z nodelete.
                let rc = unsafe {
                    libc::pthread_atfork(Some(before_fork), Some(after_fork_in_parent), Some(after_fork_in_child))
                };
                if rc != 0 {
                    return nginx::ERROR;
                }
            }
        }
    }
    OK
}

/// `master_process off`: there is no fork, the one process runs the thread.
pub fn start_in_single_process(_: *mut ngx_cycle_t) {
    // SAFETY: a plain variable of nginx.
    if unsafe { ffi::ngx_process } == PROCESS_SINGLE {
        start();
    }
}

/// Starts the thread, if there is none and a configuration wants one.
fn start() {
    let mut master = MASTER.lock();
    if master.thread.is_some() || master.settings.is_none() {
        return;
    }
    let Some(engine) = master.engine.take() else { return };
    // SAFETY: eventfd has no preconditions.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if fd < 0 {
        ThreadLog::new().write("alert", "eventfd() failed: the mesh stays at its last good state");
        return;
    }
    // SAFETY: just made, owned by nobody else.
    let wake = unsafe { OwnedFd::from_raw_fd(fd) };
    let wake_fd = wake.as_raw_fd();
    let (commands, receiver) = crossbeam_channel::unbounded();
    let (end, ended) = crossbeam_channel::bounded(1);
    let body = move || {
        own_descriptors(wake_fd);
        GATE.lock();
        run(engine, &receiver, wake_fd);
        GATE.unlock();
        // Whoever waits for the end may have given up.
        let _ = end.send(());
    };
    match with_signals_blocked(|| std::thread::Builder::new().name("amesh-xds".to_owned()).spawn(body)) {
        Ok(_) => {
            THREAD_PID.store(std::process::id() as i32, Ordering::Relaxed);
            master.thread = Some(Thread { commands, wake, ended });
        }
        Err(e) => ThreadLog::new().write("alert", &format!("cannot start the xDS thread: {e}")),
    }
}

/// A new thread inherits the mask: without this nginx's handlers would run on the wrong one, and a dead worker be missed.
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

/// A descriptor table of the thread's own, with the standard streams and `keep` in it: what the thread opens is not
/// inherited by workers, and what nginx has open is not held open here.
fn own_descriptors(keep: RawFd) {
    const UNSHARE: libc::c_uint = 2; // CLOSE_RANGE_UNSHARE of linux/close_range.h
    let keep = keep as libc::c_uint;
    // SAFETY: closes descriptors of a table that is this thread's alone.
    unsafe {
        libc::syscall(libc::SYS_close_range, 3 as libc::c_uint, keep - 1, UNSHARE);
        libc::syscall(libc::SYS_close_range, keep + 1, libc::c_uint::MAX, UNSHARE);
    }
}

/// Runs the engine; a panic freezes the data at last good, is logged, and the engine goes on after a pause. It is the
/// same engine: it alone knows what is published, and so what is to be removed.
fn run(mut engine: ZoneEngine, commands: &crossbeam_channel::Receiver<Command<zone::Publisher>>, wake: RawFd) {
    // SAFETY: this thread's own copy of the descriptor; nothing closes it.
    let wake = unsafe { BorrowedFd::borrow_raw(wake) };
    let mut pause = Duration::from_secs(1);
    loop {
        let ended = catch_unwind(AssertUnwindSafe(|| {
            let runtime = engine::runtime(|| GATE.unlock(), || GATE.lock());
            match runtime {
                Ok(runtime) => runtime.block_on(engine.run(commands, wake)).map_err(|e| e.to_string()),
                Err(e) => Err(format!("cannot make a runtime: {e}")),
            }
        }));
        let reason = match ended {
            Ok(Ok(())) => return,
            Ok(Err(reason)) => reason,
            Err(payload) => format!("panicked: {}", crate::guard::message(&payload)),
        };
        ThreadLog::new()
            .write("crit", &format!("the xDS thread {reason}; last good serves, it goes on in {} s", pause.as_secs()));
        GATE.unlock();
        std::thread::sleep(pause);
        GATE.lock();
        pause = (pause * 2).min(Duration::from_secs(60));
    }
}

impl Thread {
    fn wake(&self) {
        let one = 1u64.to_ne_bytes();
        // SAFETY: an eventfd takes eight bytes; when its counter is full the thread is awake anyway.
        unsafe { libc::write(self.wake.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }
}

/// Ends the thread and waits for it, bounded.
pub fn stop() {
    let mut master = MASTER.lock();
    master.settings = None;
    master.engine = None;
    if let Some(thread) = master.thread.take() {
        // The thread may have ended by itself.
        let _ = thread.commands.send(Command::Stop);
        thread.wake();
        let _ = thread.ended.recv_timeout(STOP_TIMEOUT);
        THREAD_PID.store(0, Ordering::Relaxed);
    }
}

static LOG_PATH: Mutex<Option<Arc<PathBuf>>> = Mutex::new(None);
static LOG_LEVEL: AtomicU32 = AtomicU32::new(ffi::NGX_LOG_ERR);

/// The file of a cycle's error log, `None` when it goes to stderr.
unsafe fn error_log(cycle: *mut ngx_cycle_t) -> Option<Arc<PathBuf>> {
    // SAFETY: promised by the caller.
    unsafe {
        let file = (*(*cycle).log).file;
        if file.is_null() || (*file).name.len == 0 {
            return None;
        }
        Some(Arc::new(PathBuf::from(nginx::text((*file).name))))
    }
}

/// nginx's error log as the thread may write it: by a descriptor of its own. Lines are rare, so each opens the file
/// anew and a rotated log is never held.
#[derive(Clone, Default)]
pub struct ThreadLog(());

impl ThreadLog {
    /// A log.
    pub fn new() -> ThreadLog {
        ThreadLog(())
    }

    fn write(&self, level: &str, message: &str) {
        // SAFETY: plain calls on plain data.
        let (pid, stamp) = unsafe {
            let now = libc::time(std::ptr::null_mut());
            let mut tm: libc::tm = std::mem::zeroed();
            libc::localtime_r(&now, &mut tm);
            let stamp = format!(
                "{:04}/{:02}/{:02} {:02}:{:02}:{:02}",
                tm.tm_year + 1900,
                tm.tm_mon + 1,
                tm.tm_mday,
                tm.tm_hour,
                tm.tm_min,
                tm.tm_sec
            );
            (libc::getpid(), stamp)
        };
        let line = format!("{stamp} [{level}] {pid}#{}: amesh: {}\n", gettid(), message.replace('\n', " "));
        let path = LOG_PATH.lock().clone();
        let written = path.and_then(|p| {
            let mut file = OpenOptions::new().append(true).create(true).open(p.as_path()).ok()?;
            file.write_all(line.as_bytes()).ok()
        });
        if written.is_none() {
            // stderr is the last resort; if it is closed nothing is left to tell it to.
            let _ = std::io::stderr().write_all(line.as_bytes());
        }
    }
}

fn gettid() -> libc::pid_t {
    // SAFETY: has no preconditions.
    unsafe { libc::gettid() }
}

/// Warns as the thread does.
pub fn warn(text: &str) {
    engine::Log::log(&ThreadLog::new(), engine::Level::Warn, text);
}

impl engine::Log for ThreadLog {
    fn log(&self, level: engine::Level, text: &str) {
        let (number, name) = match level {
            engine::Level::Error => (ffi::NGX_LOG_ERR, "error"),
            engine::Level::Warn => (ffi::NGX_LOG_WARN, "warn"),
            engine::Level::Notice => (ffi::NGX_LOG_NOTICE, "notice"),
            engine::Level::Info => (ffi::NGX_LOG_INFO, "info"),
        };
        if number <= LOG_LEVEL.load(Ordering::Relaxed) {
            self.write(name, text);
        }
    }
}
