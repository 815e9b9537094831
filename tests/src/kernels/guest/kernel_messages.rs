//! What the kernel has logged since it booted.

use std::{
    fs::OpenOptions,
    io::{ErrorKind, Read},
    os::unix::fs::OpenOptionsExt,
};

use anyhow::{Context, Result, bail};
use nix::fcntl::OFlag;

/// How a kernel begins to say that something is wrong with itself.
const SIGNS: [&str; 7] =
    ["WARNING: ", "BUG: ", "Oops", "general protection fault", "Call Trace:", "rcu: INFO", "INFO: task "];
/// Longer than any record of /dev/kmsg.
const RECORD: usize = 16 << 10;

/// Looks for warnings.
pub fn no_warnings() -> Result<String> {
    let all = read()?;
    let is_sign = |line: &&String| SIGNS.iter().any(|sign| line.contains(sign));
    match all.iter().find(is_sign) {
        None => Ok(format!("{} lines", all.len())),
        Some(line) => bail!("{line}"),
    }
}

/// One record per read: `priority,number,time,flags;text`.
fn read() -> Result<Vec<String>> {
    let mut kmsg =
        OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open("/dev/kmsg").context("/dev/kmsg")?;
    let mut records = Vec::new();
    let mut record = vec![0; RECORD];
    loop {
        match kmsg.read(&mut record) {
            Ok(0) => return Ok(records),
            Ok(length) => {
                let text = String::from_utf8_lossy(&record[..length]);
                records.push(text.split_once(';').map_or_else(String::new, |(_, text)| text.trim_end().to_owned()));
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(records),
            // Overwritten before it was read: the next read goes on with the oldest.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
            Err(error) => return Err(error).context("/dev/kmsg"),
        }
    }
}
