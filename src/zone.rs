//! The zone: one shared memory of nginx, written by the xDS thread, read by every worker.

use crate::conf::{self, MainConf};
use crate::nginx::{self, CONF_ERROR, CONF_OK, ERROR, OK};
use crate::{master, settings};
use amesh_dataplane::lb::{Cells, RuntimeHealth};
use amesh_dataplane::outlier::{self, Outcome, Rules};
use amesh_dataplane::regex::RegexCache;
use amesh_model::cluster::ArchivedCluster;
use amesh_model::endpoint::ArchivedEndpointSet;
use amesh_model::listener::{ArchivedListener, ArchivedListenerIndex};
use amesh_model::route::ArchivedRouteTable;
use amesh_model::vitals::{ClusterVitals, EndpointVitals, CHECKED, FAILED_ACTIVE_HC, PENDING_ACTIVE_HC};
use amesh_model::Kind;
use amesh_shm::{Reader, Region, WorkerSlot};
use ngx::ffi::{self, ngx_conf_t, ngx_cycle_t, ngx_int_t, ngx_shm_zone_t, ngx_uint_t};
use parking_lot::Mutex;
use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::ffi::c_void;
use std::hash::{Hash, Hasher};
use std::os::raw::c_char;
use std::ptr::NonNull;

pub use amesh_model::layout_hash;
pub use amesh_shm::{hash as hash_key, Held, Slot, Stats};

mod publisher;
pub use publisher::Publisher;

/// Directory hash of a resource's key.
pub fn hash(kind: Kind, name: &[u8]) -> u64 {
    hash_key(kind as u8, name)
}

/// The clock of ejections, of all processes of this host: monotonic, ms, wrapping.
pub fn clock() -> u32 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the clock exists, and there is room for the time; with an error it stays 0.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &mut now) };
    // It wraps.
    (now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000) as u32
}

/// The clock of token buckets, of all processes of this host: monotonic, ns.
pub fn clock_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: as in `clock`.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

const _: () = assert!(amesh_shm::WORDS == amesh_model::vitals::WORDS);

/// A zone as this process sees it. Made once a zone, never freed: old workers may still use it.
struct Mapped {
    /// nginx's mapping, at one address in every process that was forked since.
    region: Region,
}

/// The writer's own mapping of a zone: nginx unmaps its own as soon as a configuration drops the zone.
pub struct Alias {
    mapping: *mut c_void,
    size: usize,
    region: Region,
}

// SAFETY: a mapping belongs to the process, not to a thread; it is used by whoever owns this.
unsafe impl Send for Alias {}

impl Drop for Alias {
    fn drop(&mut self) {
        // SAFETY: mapped by map_again, and whatever used the region is gone with its owner.
        unsafe { libc::munmap(self.mapping, self.size) };
    }
}

/// Maps the memory of a zone a second time; `region` is the part of it that is ours.
unsafe fn map_again(start: *mut u8, size: usize, region: Region) -> Result<Alias, String> {
    // SAFETY: promised by the caller: a shared mapping of this size. With an old length of 0 it stays where it is and is
    // mapped once more.
    unsafe {
        let mapping = libc::mremap(start.cast(), 0, size, libc::MREMAP_MAYMOVE);
        if mapping == libc::MAP_FAILED {
            return Err(format!("cannot map it twice: {}", std::io::Error::last_os_error()));
        }
        let offset = region.base().as_ptr() as usize - start as usize;
        let base = NonNull::new(mapping.cast::<u8>().add(offset)).ok_or("cannot map it twice")?;
        Ok(Alias { mapping, size, region: Region::new(base, region.len()) })
    }
}

/// Adds the zone to the configuration.
pub fn add(cf: *mut ngx_conf_t, conf: &mut MainConf) -> *mut c_char {
    // SAFETY: cf is live; nginx copies nothing of the name, so it stands in the pool of the cycle.
    unsafe {
        let Some(mut name) = nginx::pool_str((*cf).pool, conf.settings.zone.as_bytes()) else { return CONF_ERROR };
        let zone = ffi::ngx_shared_memory_add(
            cf,
            &mut name,
            conf.settings.zone_size,
            (&raw mut crate::conf::ngx_amesh_module).cast(),
        );
        if zone.is_null() {
            return CONF_ERROR;
        }
        if !(*zone).data.is_null() {
            return nginx::conf_error(cf, format_args!("zone \"{}\" is in use already", conf.settings.zone));
        }
        (*zone).init = Some(init_zone);
        (*zone).data = std::ptr::from_mut(conf).cast();
        conf.shm_zone = zone;
        conf.cycle = (*cf).cycle;
    }
    CONF_OK
}

extern "C" fn init_zone(zone: *mut ngx_shm_zone_t, old: *mut c_void) -> ngx_int_t {
    crate::guard::guard("the zone", ERROR, || {
        // SAFETY: nginx hands in the zone that `add` made, mapped, and the data of the one it takes over.
        unsafe {
            let conf = &*(*zone).data.cast::<MainConf>();
            if !old.is_null() {
                // A reload with the same name and size: the thread goes on writing, workers go on reading.
                (*zone).data = old;
                return OK;
            }
            match map(zone) {
                Ok((mapped, alias)) => {
                    fill(conf, alias, (*zone).shm.log);
                    (*zone).data = Box::into_raw(Box::new(mapped)).cast();
                    OK
                }
                Err(reason) => {
                    nginx::log(
                        (*zone).shm.log,
                        ffi::NGX_LOG_EMERG as ngx_uint_t,
                        format_args!("amesh: zone \"{}\": {reason}", conf.settings.zone),
                    );
                    ERROR
                }
            }
        }
    })
}

/// Takes all of a new zone's memory from its slab pool, whose own header stays whole, and formats it.
unsafe fn map(zone: *mut ngx_shm_zone_t) -> Result<(Mapped, Alias), String> {
    // SAFETY: nginx has initialised the slab pool at the zone's start.
    unsafe {
        let start = (*zone).shm.addr;
        let size = (*zone).shm.size;
        let pool = start.cast::<ffi::ngx_slab_pool_t>();
        let len = (*pool).pfree * ffi::ngx_pagesize;
        let place = NonNull::new(ffi::ngx_slab_alloc(pool, len).cast::<u8>())
            .ok_or_else(|| format!("cannot take {len} bytes of it"))?;
        (*pool).data = place.as_ptr().cast();
        let region = Region::new(place, len);
        amesh_shm::format(region, settings::zone_options(), layout_hash()).map_err(|e| e.to_string())?;
        Ok((Mapped { region }, map_again(start, size, region)?))
    }
}

/// Fills a new zone before any worker sees it: from the thread, where there is one, else from file or snapshot.
fn fill(conf: &MainConf, alias: Alias, log: *mut ffi::ngx_log_t) {
    crate::listening::note(conf.cycle);
    let publisher = match Publisher::attach(alias) {
        Ok(publisher) => publisher,
        Err(e) => return nginx::log(log, ffi::NGX_LOG_ALERT as ngx_uint_t, format_args!("amesh: {e}")),
    };
    match master::fill(publisher) {
        Ok(()) => {}
        Err(master::NotFilled::NoThread(publisher)) => master::load(&conf.settings, *publisher, log),
        Err(master::NotFilled::Failed(e)) => nginx::log(
            log,
            ffi::NGX_LOG_ERR as ngx_uint_t,
            format_args!("amesh: zone \"{}\" is new and could not be filled: {e}", conf.settings.zone),
        ),
    }
}

/// How long a connection or request waits for the first resources, in seconds.
pub const READY_WAIT: libc::time_t = 5;
/// How often it looks, in ms.
pub const READY_POLL: ffi::ngx_msec_t = 50;

/// Whether to wait for the first resources: there are none yet, and the wait that began at `since` is not over.
pub fn wait_for_ready(since: libc::time_t) -> bool {
    let ready = with_worker(|worker| worker.pin().0.is_ready()).unwrap_or(true);
    !ready && ffi::ngx_time() - since < READY_WAIT
}

/// What a worker decides with, apart from what it reads.
pub struct Tools {
    regexes: RegexCache,
    random: fastrand::Rng,
    /// Host name of the endpoint that was picked last; empty: it has none.
    pub hostname: String,
}

impl Tools {
    /// A random number.
    pub fn random(&mut self) -> u64 {
        self.random.u64(..)
    }

    /// Compiled regular expressions.
    pub fn regexes(&mut self) -> &mut RegexCache {
        &mut self.regexes
    }
}

/// A worker's door to the zone.
pub struct Worker {
    slot: WorkerSlot,
    /// Something was published once: looked for until it is found.
    ready: Cell<bool>,
    tools: Tools,
}

/// Resources that stay as they are while this lives: for the match and the pick of one request, never over a turn of
/// the event loop.
pub struct Pin<'a> {
    pin: amesh_shm::Pin<'a>,
    slot: &'a WorkerSlot,
    ready: &'a Cell<bool>,
}

/// The zone that this process reads, for threads of it that are not nginx's.
static OPENED: Mutex<Opened> = Mutex::new(Opened::NotYet);

/// What a process has to do with the zone.
#[derive(Clone, Copy)]
enum Opened {
    /// nginx has not come to this module's `init_process`.
    NotYet,
    /// It reads it.
    Open(Region),
    /// It ends.
    Closed,
}

thread_local! {
    static WORKER: RefCell<Option<Worker>> = const { RefCell::new(None) };
    static COMPLAINTS: RefCell<HashSet<u64>> = RefCell::default();
}

/// Runs `f` with this worker's door; `None` where there is none, or where it is in use further up the stack.
pub fn with_worker<T>(f: impl FnOnce(&mut Worker) -> T) -> Option<T> {
    WORKER.with(|worker| worker.try_borrow_mut().ok()?.as_mut().map(f))
}

/// As [`with_worker`], in any thread of a process that reads a zone: one that is not nginx's takes a place of its own,
/// and gives it back when it ends.
pub fn with_thread<T>(f: impl FnOnce(&mut Worker) -> T) -> Option<T> {
    WORKER.with(|worker| {
        let mut worker = worker.try_borrow_mut().ok()?;
        if worker.is_none() {
            let opened = *OPENED.lock();
            *worker = match opened {
                Opened::Open(region) => Worker::open(region).ok(),
                Opened::NotYet => open_early(),
                Opened::Closed => None,
            };
        }
        worker.as_mut().map(f)
    })
}

/// Opens the zone for another module's `init_process`, which nginx calls before this one's (`init_worker_by_lua`).
fn open_early() -> Option<Worker> {
    // SAFETY: plain numbers of nginx; in its main thread, the cycle is there as long as it runs.
    unsafe {
        let reads = !matches!(ffi::ngx_process as u32, ffi::NGX_PROCESS_MASTER | ffi::NGX_PROCESS_SIGNALLER);
        if !reads || libc::gettid() != libc::getpid() || ffi::ngx_cycle.is_null() {
            return None;
        }
        let region = region(conf::main_conf(ffi::ngx_cycle)?)?;
        let worker = Worker::open(region).ok()?;
        *OPENED.lock() = Opened::Open(region);
        Some(worker)
    }
}

/// The zone of a configuration, initialised by init_zone.
unsafe fn region(conf: &MainConf) -> Option<Region> {
    // SAFETY: promised by the caller.
    unsafe { conf.shm_zone.as_ref()?.data.cast::<Mapped>().as_ref().map(|mapped| mapped.region) }
}

/// Opens the zone for this process (`init_process`).
pub fn open_worker(_: *mut ngx_cycle_t, conf: &MainConf) -> ngx_int_t {
    if WORKER.with_borrow(|worker| worker.is_some()) {
        return OK;
    }
    // SAFETY: the zone of this cycle, initialised by init_zone.
    let Some(region) = (unsafe { region(conf) }) else { return OK };
    let opened = Worker::open(region).inspect(|_| *OPENED.lock() = Opened::Open(region));
    match opened {
        Ok(worker) => {
            WORKER.set(Some(worker));
            OK
        }
        Err(e) => {
            // SAFETY: nginx has a cycle as long as it runs.
            let log = unsafe { (*ffi::ngx_cycle).log };
            nginx::log(
                log,
                ffi::NGX_LOG_ALERT as ngx_uint_t,
                format_args!("amesh: this worker cannot read the zone: {e}"),
            );
            ERROR
        }
    }
}

/// Gives the worker's place in the zone back (`exit_process`).
pub fn close_worker() {
    *OPENED.lock() = Opened::Closed;
    WORKER.set(None);
}

impl Worker {
    /// Takes a place in a zone.
    fn open(region: Region) -> Result<Worker, amesh_shm::Error> {
        let slot = Reader::attach(region, layout_hash())?.register()?;
        let tools = Tools { regexes: RegexCache::default(), random: fastrand::Rng::new(), hostname: String::new() };
        Ok(Worker { slot, ready: Cell::new(false), tools })
    }

    /// The version of the zone: one load, without a pin.
    pub fn zone_version(&self) -> u64 {
        self.slot.version()
    }

    /// Pins the zone.
    pub fn pin(&mut self) -> (Pin<'_>, &mut Tools) {
        (Pin { pin: self.slot.pin(), slot: &self.slot, ready: &self.ready }, &mut self.tools)
    }

    /// The cell of an index, `None` when it is out of range.
    pub fn cell(&self, index: u32) -> Option<&amesh_shm::Cell> {
        self.slot.cell(index)
    }

    /// Counts a try for outlier detection; its endpoint may be ejected.
    pub fn record(&mut self, rules: &Rules, endpoint: u32, cluster: u32, outcome: Outcome) {
        let Worker { slot, tools, .. } = self;
        if let (Some(endpoint), Some(cluster)) = (slot.cell(endpoint), slot.cell(cluster)) {
            let (endpoint, cluster) = (EndpointVitals(&endpoint.words), ClusterVitals(&cluster.words));
            outlier::record(rules, endpoint, cluster, outcome, clock(), &mut || tools.random());
        }
    }

    /// Takes an endpoint out of use until an active check finds it healthy. Both cells are held.
    pub fn fail_health_check(&mut self, endpoint: u32, cluster: u32) {
        if let (Some(endpoint), Some(cluster)) = (self.slot.cell(endpoint), self.slot.cell(cluster)) {
            let cluster = ClusterVitals(&cluster.words);
            EndpointVitals(&endpoint.words).change(cluster, FAILED_ACTIVE_HC | CHECKED, PENDING_ACTIVE_HC);
        }
    }

    /// Gives back what [`Pin::acquire`] and its like gave.
    pub fn release(&mut self, held: Held) {
        self.slot.release(held);
    }
}

impl Pin<'_> {
    /// The version of the zone.
    pub fn zone_version(&self) -> u64 {
        self.slot.version()
    }

    /// Whether any resource was published yet: before that nothing can be said of any request.
    pub fn is_ready(&self) -> bool {
        if !self.ready.get() {
            let any = || Kind::ALL.into_iter().any(|kind| self.pin.iter(kind as u8).next().is_some());
            self.ready.set(self.listener_index().is_some() || any());
        }
        self.ready.get()
    }

    fn get<T: rkyv::Portable>(&self, kind: Kind, hash: u64, name: &str) -> Option<&T> {
        let slot = self.pin.get_hashed(kind as u8, hash, name.as_bytes())?;
        // SAFETY: a slot of this kind holds what Publisher archived as this type, with the same layout hash; its bytes
        // do not change, and stay as long as the pin.
        Some(unsafe { rkyv::access_unchecked::<T>(slot.bytes) })
    }

    /// A listener by name.
    pub fn listener(&self, name: &str) -> Option<&ArchivedListener> {
        self.get(Kind::Listener, hash(Kind::Listener, name.as_bytes()), name)
    }

    /// Which listener takes which address.
    pub fn listener_index(&self) -> Option<&ArchivedListenerIndex> {
        self.get(Kind::ListenerIndex, hash(Kind::ListenerIndex, b""), "")
    }

    /// A route table by name.
    pub fn route_table(&self, name: &str) -> Option<&ArchivedRouteTable> {
        self.get(Kind::RouteTable, hash(Kind::RouteTable, name.as_bytes()), name)
    }

    /// A cluster by name and the hash of its key.
    pub fn cluster(&self, hash: u64, name: &str) -> Option<&ArchivedCluster> {
        self.get(Kind::Cluster, hash, name)
    }

    /// The endpoints of a cluster.
    pub fn endpoint_set(&self, cluster: &str) -> Option<&ArchivedEndpointSet> {
        self.get(Kind::EndpointSet, hash(Kind::EndpointSet, cluster.as_bytes()), cluster)
    }

    /// Counts an active request on a cell that was read under this pin.
    pub fn acquire(&self, cell: u32) -> Option<Held> {
        self.slot.acquire(cell)
    }

    /// Counts an open connection on a cell that was read under this pin.
    pub fn acquire_connection(&self, cell: u32) -> Option<Held> {
        self.slot.acquire_connection(cell)
    }

    /// Counts a retry on a cell that was read under this pin.
    pub fn acquire_retry(&self, cell: u32) -> Option<Held> {
        self.slot.acquire_retry(cell)
    }

    /// Calls `f` with the name and version of every resource of a kind, in the order of names.
    pub fn for_each(&self, kind: Kind, mut f: impl FnMut(&str, u64)) {
        for (name, slot) in self.list(kind) {
            f(name, slot.version);
        }
    }

    /// The slots of a kind with their names, in the order of names.
    pub fn list(&self, kind: Kind) -> Vec<(&str, Slot<'_>)> {
        let named = |(key, slot)| Some((std::str::from_utf8(key).ok()?, slot));
        let mut all: Vec<_> = self.pin.iter(kind as u8).filter_map(named).collect();
        all.sort_unstable_by_key(|(name, _)| *name);
        all
    }

    /// The slot of a resource, as it was archived.
    pub fn slot(&self, kind: Kind, name: &str) -> Option<Slot<'_>> {
        self.pin.get(kind as u8, name.as_bytes())
    }

    /// What the thread says of itself, as JSON.
    pub fn status(&self) -> Option<&str> {
        std::str::from_utf8(self.pin.get(publisher::STATUS_KIND, b"")?.bytes).ok()
    }

    /// Sizes and counts of the zone.
    pub fn stats(&self) -> Stats {
        self.pin.stats()
    }

    /// The cell of an index, `None` when it is out of range.
    pub fn cell(&self, index: u32) -> Option<&amesh_shm::Cell> {
        self.slot.cell(index)
    }
}

impl Cells for Pin<'_> {
    fn cursor(&self, cell: u32) -> u32 {
        self.slot.cell(cell).map_or(0, |c| c.cursor.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
    }

    fn active(&self, cell: u32) -> u32 {
        self.slot.cell(cell).map_or(0, |c| c.rq_active.load(std::sync::atomic::Ordering::Relaxed))
    }

    fn unhealthy(&self, cluster: u32) -> u32 {
        self.slot.cell(cluster).map_or(0, |c| ClusterVitals(&c.words).unhealthy())
    }

    fn health(&self, endpoint: u32) -> RuntimeHealth {
        self.slot.cell(endpoint).map_or(RuntimeHealth::Healthy, |c| EndpointVitals(&c.words).health())
    }
}

/// Logs why something of the mesh is refused: once a worker for each reason, not once a request.
pub fn complain(what: &str, reason: &str) {
    let mut hasher = std::hash::DefaultHasher::new();
    (what, reason).hash(&mut hasher);
    if COMPLAINTS.with_borrow_mut(|said| said.len() < 10_000 && said.insert(hasher.finish())) {
        // SAFETY: nginx has a cycle as long as it runs.
        let log = unsafe { (*ffi::ngx_cycle).log };
        nginx::log(log, ffi::NGX_LOG_ERR as ngx_uint_t, format_args!("amesh: \"{what}\" is refused: {reason}"));
    }
}
