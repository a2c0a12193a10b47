//! Which processes are alive. A pid alone does not tell: it may be another's by now.

/// Start time of a process in clock ticks since boot (`/proc/PID/stat`, field 22); `None` when there is no such
/// process, or only what is left of it until its parent has waited.
pub(crate) fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold anything, blanks and parentheses included; it ends with the last one.
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    // `state` is field 3; 18 fields lie between it and field 22.
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_process_has_a_start_time_and_a_free_pid_has_none() {
        let own = super::start_time(std::process::id());
        assert!(own.is_some_and(|t| t > 0));
        assert_eq!(own, super::start_time(std::process::id()));
        assert_eq!(super::start_time(u32::MAX), None);
    }
}
