//! Where a worker can be killed, for models.

use std::cell::Cell;
use std::panic::{catch_unwind, resume_unwind, AssertUnwindSafe};

loom::thread_local! {
    static LEFT: Cell<Option<u32>> = Cell::new(None);
}

struct Killed;

/// Runs `f`, which is killed at the crash point after `steps` others. `false` if it was.
pub fn killed_after(steps: u32, f: impl FnOnce()) -> bool {
    LEFT.with(|left| left.set(Some(steps)));
    let ended = catch_unwind(AssertUnwindSafe(f));
    LEFT.with(|left| left.set(None));
    match ended {
        Ok(()) => true,
        Err(reason) if reason.is::<Killed>() => false,
        Err(reason) => resume_unwind(reason),
    }
}

/// See [`crate::sync`].
pub(crate) fn crash_point() {
    LEFT.with(|left| match left.get() {
        Some(0) => resume_unwind(Box::new(Killed)),
        Some(n) => left.set(Some(n - 1)),
        None => {}
    });
}
