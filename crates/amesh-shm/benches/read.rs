//! What a read costs, and what a slot takes besides its payload. One line a figure: `name value unit`.

#[path = "../tests/common/mod.rs"]
mod common;

use amesh_shm::{hash, Batch, Options};
use common::Memory;
use std::hint::black_box;
use std::time::Instant;

const SLOTS: usize = 20_000;
const ROUNDS: usize = 1_000_000;

/// Nanoseconds a call, the best of five runs.
fn measure(name: &str, mut call: impl FnMut(usize)) {
    let run = |call: &mut dyn FnMut(usize)| {
        let start = Instant::now();
        (0..ROUNDS).for_each(call);
        start.elapsed().as_nanos() as f64 / ROUNDS as f64
    };
    let best = (0..5).map(|_| run(&mut call)).fold(f64::MAX, f64::min);
    println!("{name} {best:.1} ns");
}

fn main() {
    let memory = Memory::new(64 << 20, Options::default());
    let mut writer = memory.writer();
    let keys: Vec<String> = (0..SLOTS).map(|i| format!("outbound|80||service-{i}.default.svc.cluster.local")).collect();
    let hashes: Vec<u64> = keys.iter().map(|k| hash(1, k.as_bytes())).collect();
    let (mut key_bytes, mut payload_bytes) = (0, 0);
    let start = Instant::now();
    let mut batch = Batch::new();
    for key in &keys {
        let payload = [7u8; 512];
        key_bytes += key.len();
        payload_bytes += payload.len();
        batch.put(1, key.as_bytes(), 1, &payload);
    }
    writer.commit(&batch).expect("room");
    println!("publish_batch {:.0} ns_per_slot", start.elapsed().as_nanos() as f64 / SLOTS as f64);
    let stats = writer.stats();
    let per_slot = |bytes: usize| bytes as f64 / SLOTS as f64;
    println!(
        "overhead_block {:.1} bytes_per_slot_without_key",
        per_slot(stats.used as usize - payload_bytes - key_bytes)
    );
    println!("overhead_with_key {:.1} bytes_per_slot", per_slot(stats.used as usize - payload_bytes));
    println!("tables {:.1} percent_of_zone", (stats.size - stats.capacity) as f64 * 100.0 / stats.size as f64);

    let worker = memory.worker();
    measure("pin_unpin", |_| drop(black_box(worker.pin())));
    measure("pin_get_unpin_hot", |_| {
        let pin = worker.pin();
        black_box(pin.get(1, keys[1].as_bytes()));
    });
    measure("pin_get_hashed_unpin_hot", |_| {
        let pin = worker.pin();
        black_box(pin.get_hashed(1, hashes[1], keys[1].as_bytes()));
    });
    measure("pin_get_unpin_any_of_20000", |i| {
        let pin = worker.pin();
        black_box(pin.get(1, keys[i * 7919 % SLOTS].as_bytes()));
    });
    let pin = worker.pin();
    measure("get_hashed_in_a_pin_hot", |_| {
        black_box(pin.get_hashed(1, hashes[1], keys[1].as_bytes()));
    });
    drop(pin);
    let cell = writer.cell(b"bench").expect("room");
    measure("acquire_release", |_| {
        if let Some(held) = worker.acquire(black_box(cell)) {
            worker.release(held);
        }
    });
    let mut version = 1u64;
    let start = Instant::now();
    for round in 0..20_000usize {
        version += 1;
        let mut payload = [7u8; 512];
        payload[..8].copy_from_slice(&version.to_le_bytes());
        let mut batch = Batch::new();
        batch.put(1, keys[round * 7919 % SLOTS].as_bytes(), version, &payload);
        writer.commit(&batch).expect("room");
    }
    println!("commit_of_one_among_20000 {:.0} ns", start.elapsed().as_nanos() as f64 / 20_000.0);
}
