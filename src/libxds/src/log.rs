//! Messages in the form of nginx's error log. nginx has its log on standard error, and its own functions are not for threads.

use amesh_xds::engine::{self, Level};
use std::io::Write;

/// The log; messages below `level` are dropped.
#[derive(Clone, Copy, Debug)]
pub struct Log {
    /// The least that is told.
    pub level: Level,
}

impl engine::Log for Log {
    fn log(&self, level: Level, text: &str) {
        // What matters most comes first.
        if level > self.level {
            return;
        }
        let name = match level {
            Level::Error => "error",
            Level::Warn => "warn",
            Level::Notice => "notice",
            Level::Info => "info",
        };
        // SAFETY: plain calls on plain data.
        let (tid, stamp) = unsafe {
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
            (libc::gettid(), stamp)
        };
        let line =
            format!("{stamp} [{name}] {}#{tid}: amesh: libxds: {}\n", std::process::id(), text.replace('\n', " "));
        // If standard error is closed there is nobody left to tell it to.
        let _ = std::io::stderr().write_all(line.as_bytes());
    }
}
