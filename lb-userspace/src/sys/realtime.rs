//! For a thread that must not be late: a real-time priority, and memory that is never paged in from
//! disk.

use std::io;

/// Low among the real-time priorities: above all ordinary threads, below the kernel's own.
const PRIORITY: libc::c_int = 20;

/// Gives the calling thread a real-time priority (SCHED_RR). Its children do not inherit it.
pub fn schedule() -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: PRIORITY };
    let policy = libc::SCHED_RR | libc::SCHED_RESET_ON_FORK;
    // SAFETY: the pointer is to a sched_param that lives through the call; thread 0 is the calling
    // one.
    let result = unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Keeps the process in memory: current mappings at once, later ones from their first use on.
pub fn lock_memory() -> io::Result<()> {
    // SAFETY: mlockall takes flags only (mlockall(2)).
    let result = unsafe {
        match libc::mlockall(libc::MCL_CURRENT) {
            0 => libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT),
            failed => failed,
        }
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
