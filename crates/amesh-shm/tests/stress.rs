//! Real processes: readers that are killed at any moment while the writer publishes as fast as it can.
//!
//! Freed memory is overwritten in builds with debug assertions, and every payload carries its key, its number and a
//! checksum, so a torn read and a read after free are seen.

mod common;

use amesh_shm::{hash, Batch, Error, Held, Options, Pin, Reader, Region, Slot, WorkerSlot, Writer};
use common::{Memory, LAYOUT};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};
use xxhash_rust::xxh3::xxh3_64;

/// What children report, in memory that they share with the test.
#[repr(C)]
struct Report {
    stop: AtomicU64,
    reads: AtomicU64,
    /// Line of the first check that failed.
    failed: AtomicU64,
}

fn report() -> &'static Report {
    // SAFETY: a new mapping that is never unmapped; zero is a valid report.
    unsafe {
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        let at = libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
        assert_ne!(at, libc::MAP_FAILED);
        &*at.cast::<Report>()
    }
}

macro_rules! check {
    ($report:expr, $holds:expr) => {
        if !$holds {
            let _ = $report.failed.compare_exchange(0, line!().into(), Relaxed, Relaxed);
            // SAFETY: ends this child at once.
            unsafe { libc::_exit(1) }
        }
    };
}

/// Forks a child that runs `f`, and dies with the test.
fn child(f: impl FnOnce()) -> i32 {
    // SAFETY: the child takes no lock that another thread of the test may hold, and ends without unwinding.
    unsafe {
        let pid = libc::fork();
        assert!(pid >= 0);
        if pid == 0 {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            f();
            libc::_exit(0);
        }
        pid
    }
}

fn signal(pid: i32, signal: i32) {
    // SAFETY: our own child, not waited for yet.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
}

/// Waits for the end of a child: its exit code, or minus the signal.
fn wait(pid: i32) -> i32 {
    let mut status = 0;
    // SAFETY: our own child.
    assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
    match libc::WIFSIGNALED(status) {
        true => -libc::WTERMSIG(status),
        false => libc::WEXITSTATUS(status),
    }
}

fn payload(key: u64, number: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; 24 + len];
    bytes[8..16].copy_from_slice(&key.to_le_bytes());
    bytes[16..24].copy_from_slice(&number.to_le_bytes());
    bytes[24..].fill((key ^ number) as u8);
    let sum = xxh3_64(&bytes[8..]);
    bytes[..8].copy_from_slice(&sum.to_le_bytes());
    bytes
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// Whether a slot is whole, and that of the key.
fn is_whole(slot: &Slot, key: u64) -> bool {
    slot.bytes.len() >= 24
        && (slot.bytes.as_ptr() as usize).is_multiple_of(16)
        && word(slot.bytes, 0) == xxh3_64(&slot.bytes[8..])
        && word(slot.bytes, 8) == key
        && word(slot.bytes, 16) == slot.version
}

const KEYS: u64 = 64;
/// Keys below this are never removed.
const STAY: u64 = 16;
const CELLS: u32 = 8;

fn read(report: &Report, region: Region) {
    let mut random = fastrand::Rng::with_seed(std::process::id().into());
    let worker = Reader::attach(region, LAYOUT).unwrap().register();
    check!(report, worker.is_ok());
    let Ok(worker) = worker else { return };
    let mut newest = [0; KEYS as usize];
    let mut held: Vec<Held> = Vec::new();
    while report.stop.load(Relaxed) == 0 {
        let pin = worker.pin();
        let slots: Vec<(u64, Slot)> = (0..8).filter_map(|_| look_up(report, &pin, random.u64(..KEYS))).collect();
        for (key, slot) in &slots {
            check!(report, slot.version >= newest[*key as usize]);
            newest[*key as usize] = slot.version;
            if let Some(again) = pin.by_id(slot.id, hash(1, &key.to_le_bytes())) {
                check!(report, is_whole(&again, *key) && again.version >= slot.version);
            }
        }
        count(report, &worker, &mut held, &mut random);
        // What was found first is still the same at the end of the pin.
        check!(report, slots.iter().all(|(key, slot)| is_whole(slot, *key)));
        report.reads.fetch_add(slots.len() as u64, Relaxed);
    }
}

fn look_up<'p>(report: &Report, pin: &'p Pin, key: u64) -> Option<(u64, Slot<'p>)> {
    let slot = pin.get(1, &key.to_le_bytes());
    check!(report, slot.is_some() || key >= STAY);
    check!(report, slot.is_none_or(|slot| is_whole(&slot, key)));
    Some((key, slot?))
}

fn count(report: &Report, worker: &WorkerSlot, held: &mut Vec<Held>, random: &mut fastrand::Rng) {
    for _ in 0..4 {
        if held.len() < 20 && random.bool() {
            let cell = random.u32(..CELLS);
            let got = if random.bool() { worker.acquire(cell) } else { worker.acquire_connection(cell) };
            check!(report, got.is_some());
            held.extend(got);
        } else if let Some(one) = held.pop() {
            worker.release(one);
        }
    }
}

fn zone() -> (Memory, Writer) {
    let options = Options { max_workers: 16, ledger_entries: 32, max_cells: 16, max_slots: 128 };
    let memory = Memory::new(2 << 20, options);
    let mut writer = memory.writer();
    for cell in 0..CELLS {
        assert_eq!(writer.cell(&cell.to_le_bytes()), Ok(cell));
    }
    (memory, writer)
}

fn gauges(memory: &Memory) -> Vec<(u32, u32)> {
    let reader = Reader::attach(memory.region, LAYOUT).unwrap();
    let cells = (0..CELLS).map(|cell| reader.cell(cell).unwrap());
    cells.map(|cell| (cell.rq_active.load(Relaxed), cell.cx_active.load(Relaxed))).collect()
}

#[test]
fn readers_killed_at_random_see_no_torn_and_no_freed_bytes() {
    let (memory, mut writer) = zone();
    let report = report();
    let mut random = fastrand::Rng::with_seed(7);
    let mut number = 0;
    let mut next = |key: u64, random: &mut fastrand::Rng| {
        number += 1;
        (number, payload(key, number, random.usize(..3000)))
    };
    let mut batch = Batch::new();
    for key in 0..KEYS {
        let (number, bytes) = next(key, &mut random);
        batch.put(1, &key.to_le_bytes(), number, &bytes);
    }
    writer.commit(&batch).unwrap();

    let start = || child(|| read(report, memory.region));
    let mut readers: Vec<i32> = (0..4).map(|_| start()).collect();
    let mut zombies = Vec::new();
    let (mut killed, mut reaped, mut full) = (0, 0, 0);
    let end = Instant::now() + Duration::from_secs(20);
    let mut kill_at = Instant::now();
    while killed < 300 && Instant::now() < end && report.failed.load(Relaxed) == 0 {
        let mut batch = Batch::new();
        for _ in 0..random.usize(1..12) {
            let key = random.u64(..KEYS);
            if key >= STAY && random.u8(..4) == 0 {
                batch.remove(1, &key.to_le_bytes());
            } else {
                let (number, bytes) = next(key, &mut random);
                batch.put(1, &key.to_le_bytes(), number, &bytes);
            }
        }
        match writer.commit(&batch) {
            Ok(_) => {}
            // A reader that the kernel does not run holds memory back: the zone is as it was.
            Err(Error::Full { .. }) => full += 1,
            Err(e) => panic!("{e}"),
        }
        if Instant::now() >= kill_at {
            kill_at = Instant::now() + Duration::from_millis(random.u64(1..8));
            let reader = readers.swap_remove(random.usize(..readers.len()));
            signal(reader, libc::SIGKILL);
            killed += 1;
            // nginx waits for its dead children now and then: a zombie is dead too.
            zombies.push(reader);
            if zombies.len() > 3 {
                zombies.drain(..).for_each(|pid| assert_eq!(wait(pid), -libc::SIGKILL));
                reaped += writer.reap().len();
            }
            readers.push(start());
        }
        // A writer that starts again in the middle of all this goes on.
        if random.u16(..2000) == 0 {
            writer = memory.writer();
        }
    }
    report.stop.store(1, Relaxed);
    let ends: Vec<i32> = readers.drain(..).map(wait).collect();
    assert_eq!(report.failed.load(Relaxed), 0, "line of this file whose check failed in a reader");
    assert_eq!(ends, [0; 4]);
    zombies.drain(..).for_each(|pid| assert_eq!(wait(pid), -libc::SIGKILL));
    reaped += writer.reap().len();
    writer.reclaim();
    let stats = writer.stats();
    let reads = report.reads.load(Relaxed);
    println!("{killed} killed, {reaped} reaped, {reads} reads, {number} puts, {full} times full, {stats:?}");
    assert!(killed == 300 && reads > 10_000, "{killed} killed, {reads} reads: too slow to say anything");
    assert_eq!(gauges(&memory), [(0, 0); CELLS as usize], "what the dead held was given back");
    assert_eq!((stats.workers, stats.retired, stats.used + stats.free), (0, 0, stats.capacity));

    let mut batch = Batch::new();
    (0..KEYS).for_each(|key| batch.remove(1, &key.to_le_bytes()));
    writer.commit(&batch).unwrap();
    let stats = writer.stats();
    assert_eq!((stats.used, stats.largest_free), (0, stats.capacity), "all of the memory is there, in one piece");
}

#[test]
fn a_writer_killed_at_random_leaves_whole_slots_and_the_next_one_goes_on() {
    let (memory, writer) = zone();
    drop(writer);
    let report = report();
    let mut random = fastrand::Rng::with_seed(13);
    for round in 1..=60u64 {
        let pid = child(|| {
            let mut random = fastrand::Rng::with_seed(round);
            let mut writer = memory.writer();
            for number in round << 32.. {
                let mut batch = Batch::new();
                for key in 0..KEYS {
                    // The keys that stay are in each batch; the others come and go.
                    if key < STAY || random.bool() {
                        batch.put(1, &key.to_le_bytes(), number, &payload(key, number, random.usize(..300)));
                    } else {
                        batch.remove(1, &key.to_le_bytes());
                    }
                }
                check!(report, writer.commit(&batch).is_ok());
                report.reads.store(round, Relaxed);
            }
        });
        while report.reads.load(Relaxed) < round && report.failed.load(Relaxed) == 0 {
            std::thread::yield_now();
        }
        std::thread::sleep(Duration::from_micros(random.u64(..2000)));
        signal(pid, libc::SIGKILL);
        assert_eq!(wait(pid), -libc::SIGKILL, "line {}", report.failed.load(Relaxed));

        let writer = memory.writer();
        let stats = writer.stats();
        assert_eq!((stats.retired, stats.used + stats.free), (0, stats.capacity));
        let worker = memory.worker();
        let pin = worker.pin();
        let found: Vec<_> = (0..KEYS).filter_map(|key| look_up(report, &pin, key)).collect();
        assert!((0..STAY).all(|key| found.iter().any(|(k, slot)| *k == key && slot.version >> 32 == round)));
        assert_eq!((pin.iter(1).count() as u64, found.len() as u64), (stats.slots, stats.slots));
    }
}

#[test]
fn gauges_are_right_however_often_those_who_count_are_killed() {
    let (memory, mut writer) = zone();
    let report = report();
    let mut random = fastrand::Rng::with_seed(11);
    let hammer = || {
        child(|| {
            let worker = Reader::attach(memory.region, LAYOUT).unwrap().register().unwrap();
            report.reads.fetch_add(1, Relaxed);
            // One cell for all, so that they confirm each other's changes.
            while let Some(held) = worker.acquire(0) {
                worker.release(held);
            }
        })
    };
    // What one holds who lives: a dead worker that gives back too much takes it from here.
    let alive = memory.worker();
    let _held: Vec<Held> = (0..30).filter_map(|_| alive.acquire(0)).collect();
    for round in 1..=100 {
        let children: Vec<i32> = (0..3).map(|_| hammer()).collect();
        while report.reads.load(Relaxed) < round * 3 {
            std::thread::yield_now();
        }
        std::thread::sleep(Duration::from_micros(random.u64(..3000)));
        for pid in children {
            signal(pid, libc::SIGKILL);
            // While the others still count.
            assert_eq!(wait(pid), -libc::SIGKILL);
            assert_eq!(writer.reap(), [pid as u32]);
        }
        assert_eq!(gauges(&memory)[0], (30, 0), "round {round}");
    }
    assert_eq!((writer.stats().reaped, writer.stats().unledgered), (300, 0));
}

#[test]
fn memory_is_back_at_its_first_level_after_1000_full_replacements() {
    let (memory, mut writer) = zone();
    let report = report();
    let replace = |writer: &mut Writer, number: u64, len: &dyn Fn(u64) -> usize| loop {
        let mut batch = Batch::new();
        for key in 0..KEYS {
            batch.put(1, &key.to_le_bytes(), number, &payload(key, number, len(key)));
        }
        match writer.commit(&batch) {
            Ok(done) => break assert_eq!(done.written, KEYS as usize),
            // A reader is just not running.
            Err(Error::Full { holders, .. }) if !holders.is_empty() => std::thread::yield_now(),
            Err(e) => panic!("{e}"),
        }
    };
    let first = |key: u64| 100 + key as usize * 16;
    replace(&mut writer, 1, &first);
    let level = writer.stats();
    let readers: Vec<i32> = (0..2).map(|_| child(|| read(report, memory.region))).collect();
    for number in 2..1001 {
        replace(&mut writer, number, &|key| ((key * 7919 + number * 104_729) % 3000) as usize);
    }
    replace(&mut writer, 1001, &first);
    report.stop.store(1, Relaxed);
    assert!(readers.into_iter().all(|pid| wait(pid) == 0), "line {}", report.failed.load(Relaxed));
    writer.reclaim();
    let end = writer.stats();
    assert_eq!((end.used, end.free, end.retired), (level.used, level.capacity - level.used, 0));
    assert_eq!(end.slots, level.slots);
}

#[test]
fn a_reader_stopped_while_pinned_is_named_and_its_death_frees_the_zone() {
    let (memory, mut writer) = zone();
    let report = report();
    let update = |writer: &mut Writer, number| {
        let mut batch = Batch::new();
        batch.put(1, b"key", number, &payload(0, number, 20_000));
        writer.commit(&batch)
    };
    update(&mut writer, 1).unwrap();
    let pid = child(|| {
        let worker = Reader::attach(memory.region, LAYOUT).unwrap().register().unwrap();
        let pin = worker.pin();
        let slot = pin.get(1, b"key").unwrap();
        // SAFETY: stops this child.
        unsafe { libc::raise(libc::SIGSTOP) };
        check!(report, is_whole(&slot, 0) && slot.version == 1);
        // SAFETY: as above.
        unsafe { libc::raise(libc::SIGSTOP) };
    });
    let stopped = || {
        let mut status = 0;
        // SAFETY: our own child.
        assert_eq!(unsafe { libc::waitpid(pid, &mut status, libc::WUNTRACED) }, pid);
        assert!(libc::WIFSTOPPED(status), "{status:x}, line {}", report.failed.load(Relaxed));
    };
    stopped();
    let error = (2..1000).find_map(|number| update(&mut writer, number).err()).unwrap();
    let Error::Full { holders, retired, .. } = &error else { panic!("{error}") };
    assert_eq!(holders, &[pid as u32]);
    assert!(*retired > 1 << 20);
    assert!(error.to_string().ends_with(&format!("held back by stopped or slow workers, pid {pid}")), "{error}");
    assert!(writer.holders().iter().all(|h| h.stopped && h.pid == pid as u32));
    assert!(writer.stats().full_rejections == 1);
    // It reads on as if nothing had happened.
    signal(pid, libc::SIGCONT);
    stopped();
    update(&mut writer, 1000).unwrap_err();
    // Dead, and not waited for.
    signal(pid, libc::SIGKILL);
    let freed = (0..1000).any(|_| {
        std::thread::sleep(Duration::from_millis(1));
        update(&mut writer, 1001).is_ok()
    });
    assert!(freed, "a commit finds the dead by itself");
    assert_eq!((writer.stats().retired, writer.stats().reaped), (0, 1));
    assert_eq!(wait(pid), -libc::SIGKILL);
}
