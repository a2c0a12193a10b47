//! What a user of a zone sees.

mod common;

use amesh_shm::{format, hash, Batch, Error, Held, Options, Reader, Region, Writer};
use common::{Memory, LAYOUT};
use std::ptr::NonNull;
use std::sync::atomic::Ordering::Relaxed;

const SMALL: Options = Options { max_workers: 4, ledger_entries: 8, max_cells: 16, max_slots: 64 };

fn put(writer: &mut Writer, key: &str, version: u64, payload: &[u8]) -> Result<u64, Error> {
    let mut batch = Batch::new();
    batch.put(1, key.as_bytes(), version, payload);
    writer.commit(&batch).map(|c| c.version)
}

#[test]
fn a_slot_is_read_as_it_was_put() {
    let memory = Memory::new(1 << 20, Options::default());
    let mut writer = memory.writer();
    let worker = memory.worker();
    let before = worker.version();
    for len in [0, 1, 15, 16, 17, 1000] {
        let payload: Vec<u8> = (0..len).map(|i| i as u8).collect();
        put(&mut writer, "a", len as u64 + 7, &payload).unwrap();
        let pin = worker.pin();
        let slot = pin.get(1, b"a").unwrap();
        assert_eq!((slot.version, slot.bytes), (len as u64 + 7, &payload[..]));
        assert_eq!(slot.bytes.as_ptr() as usize % 16, 0);
        assert_eq!(pin.by_id(slot.id, hash(1, b"a")), Some(slot));
        assert_eq!(pin.by_id(slot.id, hash(1, b"b")), None);
        assert_eq!(pin.by_id(u32::MAX, hash(1, b"a")), None);
        assert_eq!(pin.get(2, b"a"), None, "another kind");
        assert_eq!(pin.get(1, b""), None);
    }
    assert_eq!(worker.version(), before + 6, "one version a commit");
}

#[test]
fn unchanged_bytes_keep_slot_and_version() {
    let memory = Memory::new(1 << 20, Options::default());
    let mut writer = memory.writer();
    put(&mut writer, "a", 1, b"x").unwrap();
    let zone = writer.version();
    let mut batch = Batch::new();
    batch.put(1, b"a", 2, b"x");
    let commit = writer.commit(&batch).unwrap();
    assert_eq!((commit.unchanged, commit.written, commit.bytes, commit.version), (1, 0, 0, zone));
    assert_eq!(memory.worker().pin().get(1, b"a").unwrap().version, 1);
    // The last word on a key counts, also when it is the old one.
    let mut batch = Batch::new();
    batch.put(1, b"a", 3, b"y");
    batch.remove(1, b"a");
    batch.put(1, b"a", 4, b"x");
    assert_eq!(writer.commit(&batch).unwrap().written, 0);
    assert_eq!(memory.worker().pin().get(1, b"a").unwrap().bytes, b"x");
}

#[test]
fn a_pin_keeps_what_it_found_and_no_more() {
    let memory = Memory::new(1 << 20, Options::default());
    let mut writer = memory.writer();
    put(&mut writer, "a", 1, &[1; 4096]).unwrap();
    let level = writer.stats();
    let worker = memory.worker();
    let outer = worker.pin();
    let old = outer.get(1, b"a").unwrap();
    drop(worker.pin());
    put(&mut writer, "a", 2, &[2; 4096]).unwrap();
    let mut batch = Batch::new();
    batch.remove(1, b"a");
    writer.commit(&batch).unwrap();
    assert_eq!(old.bytes, [1; 4096], "a dropped inner pin does not end the outer one");
    assert_eq!(outer.get(1, b"a"), None);
    let held = writer.stats();
    assert!(held.retired >= 8192, "{held:?}");
    assert_eq!(writer.holders().iter().map(|h| (h.pid, h.stopped)).collect::<Vec<_>>(), [(std::process::id(), false)]);
    drop(outer);
    writer.reclaim();
    let end = writer.stats();
    assert_eq!((end.retired, end.used, end.free), (0, 0, level.free + level.used));
    assert_eq!(writer.holders(), []);
}

#[test]
fn a_full_zone_refuses_the_whole_batch_and_says_why() {
    let memory = Memory::new(64 << 10, SMALL);
    let mut writer = memory.writer();
    put(&mut writer, "a", 1, b"first").unwrap();
    let before = writer.stats();
    let worker = memory.worker();
    let mut batch = Batch::new();
    let cell = writer.cell(b"new").unwrap();
    batch.put(1, b"a", 2, b"second");
    batch.put_with_cells(1, b"big", 2, &[7; 40 << 10], &[cell]);
    batch.put(1, b"bigger", 2, &[7; 40 << 10]);
    let error = writer.commit(&batch).unwrap_err();
    let Error::Full { needed, available, .. } = error else { panic!("{error}") };
    assert!(needed > 80 << 10 && available as u64 == before.free, "{error}");
    assert_eq!(error.to_string(), std::format!("zone is full: needs {needed} bytes, has {available}"));
    writer.release_cell(cell);
    writer.reclaim();
    let after = writer.stats();
    assert_eq!(after.full_rejections, 1);
    assert_eq!(
        (after.free, after.used, after.slots, after.cells, after.version),
        (before.free, before.used, 1, 0, before.version)
    );
    assert_eq!(worker.pin().get(1, b"a").unwrap().bytes, b"first");

    // Full because a reader holds the old bytes: it is named.
    let pin = worker.pin();
    let error = (0..100u8).find_map(|i| put(&mut writer, "a", 3, &[i; 8000]).err()).unwrap();
    assert!(error.to_string().contains(&std::format!("workers, pid {}", std::process::id())), "{error}");
    drop(pin);
    put(&mut writer, "a", 4, &[200; 8000]).unwrap();
}

#[test]
fn what_a_later_change_overrules_takes_no_room() {
    let memory = Memory::new(64 << 10, SMALL);
    let mut writer = memory.writer();
    let mut batch = Batch::new();
    batch.put(1, b"big", 1, &[7; 1 << 20]);
    batch.put(1, b"small", 1, b"x");
    batch.remove(1, b"big");
    let done = writer.commit(&batch).unwrap();
    assert_eq!((done.written, done.removed), (1, 0));
}

#[test]
fn a_full_directory_is_a_full_zone() {
    let memory = Memory::new(256 << 10, SMALL);
    let mut writer = memory.writer();
    for i in 0..64 {
        put(&mut writer, &i.to_string(), 1, b"x").unwrap();
    }
    let error = put(&mut writer, "one more", 1, b"x").unwrap_err();
    assert_eq!(error, Error::SlotsFull { needed: 1, available: 0 });
    assert!(error.to_string().starts_with("zone is full: needs 1 more slots, has 0"));
    assert_eq!(writer.stats().full_rejections, 1);
    put(&mut writer, "3", 2, b"y").unwrap();
    let mut batch = Batch::new();
    batch.remove(1, b"5");
    writer.commit(&batch).unwrap();
    put(&mut writer, "one more", 1, b"x").unwrap();
    let worker = memory.worker();
    let pin = worker.pin();
    let mut keys: Vec<_> = pin.iter(1).map(|(key, _)| String::from_utf8(key.to_vec()).unwrap()).collect();
    keys.sort();
    let mut expected: Vec<_> = (0..64).filter(|&i| i != 5).map(|i| i.to_string()).collect();
    expected.push("one more".into());
    expected.sort();
    assert_eq!(keys, expected);
    assert_eq!(pin.iter(2).count(), 0);
}

#[test]
fn what_cannot_be_a_zone_is_refused() {
    let memory = Memory::raw(64 << 10);
    let region = memory.region;
    let few = Options { max_workers: 1024, ..SMALL };
    assert_eq!(Writer::attach(region, LAYOUT).err(), Some(Error::NotFormatted));
    assert_eq!(Reader::attach(region, LAYOUT).err(), Some(Error::NotFormatted));
    assert_eq!(format(region, few, LAYOUT), Err(Error::Option { what: "workers", given: 1024, most: 1023 }));
    let Err(Error::TooSmall { needed, available }) = format(region, Options { max_cells: 1 << 20, ..SMALL }, 1) else {
        panic!("not too small")
    };
    assert!(needed > 64 << 20 && available == 64 << 10);
    // SAFETY: inside the mapping.
    let odd = unsafe { Region::new(NonNull::new(region.base().as_ptr().add(8)).unwrap(), 32 << 10) };
    assert_eq!(format(odd, SMALL, LAYOUT), Err(Error::Misaligned));
    format(region, SMALL, LAYOUT).unwrap();
    assert_eq!(Writer::attach(region, 1).err(), Some(Error::Layout { expected: 1, found: LAYOUT }));
    // SAFETY: inside the mapping.
    let shorter = unsafe { Region::new(region.base(), 32 << 10) };
    assert_eq!(Reader::attach(shorter, LAYOUT).err(), Some(Error::NotFormatted));
}

#[test]
fn a_second_writer_goes_on_and_the_first_is_superseded() {
    let memory = Memory::new(1 << 20, SMALL);
    let mut first = memory.writer();
    put(&mut first, "a", 1, b"x").unwrap();
    put(&mut first, "b", 1, &[0; 3000]).unwrap();
    let before = first.stats();
    let version = first.version();
    let worker = memory.worker();
    let pin = worker.pin();
    let mut second = memory.writer();
    assert_eq!(put(&mut first, "a", 2, b"y"), Err(Error::Superseded));
    assert_eq!(first.cell(b"c"), Err(Error::Superseded));
    assert!(second.version() > version, "whoever kept the version looks again");
    assert_eq!(second.stats().retired, before.free, "a reader may still look at anything that the first one freed");
    assert_eq!(pin.get(1, b"a").unwrap().bytes, b"x");
    drop(pin);
    second.reclaim();
    let after = second.stats();
    assert_eq!((after.used, after.free, after.slots), (before.used, before.free, before.slots));
    put(&mut second, "a", 2, b"y").unwrap();
    assert_eq!(worker.pin().get(1, b"a").unwrap().bytes, b"y");
}

#[test]
fn cells_live_as_long_as_a_slot_refers_to_them() {
    let memory = Memory::new(1 << 20, SMALL);
    let mut writer = memory.writer();
    let worker = memory.worker();
    let mut batch = Batch::new();
    let (a, b) = (writer.cell(b"a").unwrap(), writer.cell(b"b").unwrap());
    batch.put_with_cells(1, b"set", 1, b"a b", &[a, b]);
    writer.commit(&batch).unwrap();
    worker.cell(a).unwrap().rq_error.fetch_add(5, Relaxed);
    let held = worker.acquire(b).unwrap();
    assert_eq!(worker.cell(b).unwrap().rq_active.load(Relaxed), 1);

    // The update keeps a, and drops b, on which a request is active.
    let mut batch = Batch::new();
    assert_eq!(writer.cell(b"a").unwrap(), a);
    batch.put_with_cells(1, b"set", 2, b"a", &[a]);
    writer.commit(&batch).unwrap();
    writer.reclaim();
    assert_eq!(worker.cell(a).unwrap().rq_error.load(Relaxed), 5);
    assert_eq!(writer.stats().cells, 2, "b is still counted on");
    worker.release(held);
    let pin = worker.pin();
    let mut batch = Batch::new();
    batch.remove(1, b"set");
    writer.commit(&batch).unwrap();
    writer.reclaim();
    assert_eq!(writer.stats().cells, 1, "the pin holds a");
    drop(pin);
    writer.reclaim();
    assert_eq!(writer.stats().cells, 0);

    // Used again, from zero; one more than there are is refused.
    let first = writer.cell(b"other").unwrap();
    assert!(first == a || first == b);
    let cell = worker.cell(first).unwrap();
    assert_eq!((cell.rq_total.load(Relaxed), cell.rq_error.load(Relaxed)), (0, 0));
    for i in 1..16 {
        writer.cell(std::format!("{i}").as_bytes()).unwrap();
    }
    assert_eq!(writer.cell(b"17th"), Err(Error::CellsFull { cells: 16 }));
    writer.release_cell(first);
    writer.reclaim();
    assert_eq!(writer.cell(b"17th"), Ok(first));
    assert!(worker.cell(16).is_none());
    assert!(worker.acquire(16).is_none());
    let mut batch = Batch::new();
    batch.put_with_cells(1, b"set", 1, b"", &[99]);
    assert_eq!(writer.commit(&batch), Err(Error::NoSuchCell(99)));
}

#[test]
fn a_new_writer_knows_the_cells() {
    let memory = Memory::new(1 << 20, SMALL);
    let mut writer = memory.writer();
    let given = writer.cell(b"given").unwrap();
    let mut batch = Batch::new();
    let referred = writer.cell(b"referred").unwrap();
    batch.put_with_cells(1, b"set", 1, b"", &[referred]);
    writer.commit(&batch).unwrap();
    drop(writer);
    let mut writer = memory.writer();
    assert_eq!(writer.stats().cells, 2);
    assert_eq!((writer.cell(b"given"), writer.cell(b"referred")), (Ok(given), Ok(referred)));
    let mut batch = Batch::new();
    batch.remove(1, b"set");
    writer.commit(&batch).unwrap();
    writer.reclaim();
    assert_eq!(writer.stats().cells, 1);
    assert_eq!(writer.cell(b"given"), Ok(given));
}

#[test]
fn words_are_found_by_key_and_are_0_for_the_next_key() {
    let memory = Memory::new(1 << 20, SMALL);
    let mut writer = memory.writer();
    assert!(writer.find_cell(b"c").is_none());
    let given = writer.cell(b"c").unwrap();
    writer.find_cell(b"c").unwrap().words.iter().for_each(|w| w.store(7, Relaxed));
    let worker = memory.worker();
    assert!(worker.cell(given).unwrap().words.iter().all(|w| w.load(Relaxed) == 7));
    writer.release_cell(given);
    let mut batch = Batch::new();
    batch.put(1, b"later", 1, b"x");
    writer.commit(&batch).unwrap();
    writer.reclaim();
    assert!(writer.find_cell(b"c").is_none());
    assert_eq!(writer.cell(b"d"), Ok(given));
    assert!(writer.find_cell(b"d").unwrap().words.iter().all(|w| w.load(Relaxed) == 0));
}

#[test]
fn gauges_go_up_and_down_with_and_without_room_in_the_ledger() {
    let memory = Memory::new(1 << 20, SMALL);
    let mut writer = memory.writer();
    let cell = writer.cell(b"c").unwrap();
    let worker = memory.worker();
    let active = |n, connections| {
        let cell = worker.cell(cell).unwrap();
        assert_eq!((cell.rq_active.load(Relaxed), cell.cx_active.load(Relaxed)), (n, connections));
    };
    let mut held: Vec<Held> = (0..10).map(|_| worker.acquire(cell).unwrap()).collect();
    active(10, 0);
    assert_eq!(writer.stats().unledgered, 2, "the ledger has 8 entries");
    let ninth = held.pop().unwrap();
    worker.release(ninth);
    worker.release(held.pop().unwrap());
    let first = held.swap_remove(0);
    worker.release(first);
    worker.release(first);
    active(7, 0);
    let connection = worker.acquire_connection(cell).unwrap();
    assert_eq!(connection, first, "a free entry is used again");
    active(7, 1);
    assert_eq!(writer.stats().unledgered, 2);
    worker.release(connection);
    active(7, 0);
    let retry = worker.acquire_retry(cell).unwrap();
    assert_eq!(worker.cell(cell).unwrap().rq_retry_active.load(Relaxed), 1);
    active(7, 0);
    worker.release(retry);
    assert_eq!(worker.cell(cell).unwrap().rq_retry_active.load(Relaxed), 0);
    worker.acquire_retry(cell).unwrap();
    drop(worker);
    let worker = memory.worker();
    assert_eq!(worker.cell(cell).unwrap().rq_retry_active.load(Relaxed), 0);
    assert_eq!(worker.cell(cell).unwrap().rq_active.load(Relaxed), 0, "the end of a worker gives back all it held");
}

#[test]
fn places_of_workers_are_given_back() {
    let memory = Memory::new(1 << 20, SMALL);
    let reader = Reader::attach(memory.region, LAYOUT).unwrap();
    let mut workers: Vec<_> = (0..4).map(|_| reader.register().unwrap()).collect();
    assert_eq!(reader.register().err(), Some(Error::WorkersFull(4)));
    assert_eq!(memory.writer().stats().workers, 4);
    workers.remove(1);
    workers.push(reader.register().unwrap());
    assert!(reader.register().is_err());
}
