//! Who is alive: a process is known by pid and start time, since pids are used again.

use std::fs;

/// A process: pid in the upper half, start time in clock ticks since boot (`/proc/PID/stat` field 22, lower 32 bits; 0
/// when unknown) in the lower half. One word, so that a place is taken by one exchange. Never 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Identity(pub u64);

/// What is known of a process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Life {
    /// Runs or sleeps.
    Alive,
    /// Stopped by a signal or a debugger: it moves on when someone lets it.
    Stopped,
    /// Gone, or a zombie, or its pid is another process's now.
    Dead,
}

/// Fields of `/proc/PID/stat`.
struct Stat {
    state: u8,
    threads: u64,
    start: u64,
}

fn stat(pid: &str) -> Option<Stat> {
    let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
    // The command in field 2 may hold blanks and parentheses: the last one ends it.
    let rest = &text[text.iter().rposition(|&c| c == b')')? + 1..];
    let mut fields = std::str::from_utf8(rest).ok()?.split_ascii_whitespace();
    let state = *fields.next()?.as_bytes().first()?;
    let threads = fields.nth(16)?.parse().ok()?;
    let start = fields.nth(1)?.parse().ok()?;
    Some(Stat { state, threads, start })
}

impl Identity {
    /// This process.
    pub(crate) fn own() -> Identity {
        let start = stat("self").map_or(0, |s| s.start);
        Identity(u64::from(std::process::id()) << 32 | u64::from(start as u32))
    }

    /// The pid.
    pub(crate) fn pid(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Whether the process still runs. When in doubt (no `/proc`, no right to look) it does.
    pub(crate) fn life(self) -> Life {
        let start = self.0 as u32;
        match stat(&self.pid().to_string()) {
            Some(stat) if start != 0 && stat.start as u32 != start => Life::Dead,
            // A zombie with threads left is a leader that ended before the others.
            Some(Stat { state: b'Z' | b'X' | b'x', threads: 0 | 1, .. }) => Life::Dead,
            Some(Stat { state: b'T' | b't', .. }) => Life::Stopped,
            Some(_) => Life::Alive,
            None => {
                // SAFETY: signal 0 only asks.
                let gone = unsafe { libc::kill(self.pid() as libc::pid_t, 0) } == -1
                    && std::io::Error::last_os_error().raw_os_error() == Some(libc::ESRCH);
                if gone {
                    Life::Dead
                } else {
                    Life::Alive
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_process_is_known_by_pid_and_start_time() {
        let own = Identity::own();
        assert_eq!(own.pid(), std::process::id());
        assert_ne!(own.0 as u32, 0, "start time is read");
        assert_eq!(own.life(), Life::Alive);
        assert_eq!(Identity(own.0 + 1).life(), Life::Dead, "same pid, other start time");
        assert_eq!(Identity(own.0 & !0xffff_ffff).life(), Life::Alive, "start time unknown");
    }

    #[test]
    fn a_zombie_is_dead_and_a_stopped_process_is_not() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id();
        let identity = Identity(u64::from(pid) << 32 | u64::from(stat(&pid.to_string()).unwrap().start as u32));
        let until = |life: Life| {
            for _ in 0..1000 {
                if identity.life() == life {
                    return;
                }
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            panic!("{:?}, not {life:?}", identity.life());
        };
        until(Life::Alive);
        // SAFETY: our own child, not waited for yet.
        unsafe { libc::kill(pid as i32, libc::SIGSTOP) };
        until(Life::Stopped);
        child.kill().unwrap();
        until(Life::Dead);
        child.wait().unwrap();
        assert_eq!(identity.life(), Life::Dead);
    }
}
