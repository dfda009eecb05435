//! Memory and CPU time of another process, as the kernel counts them.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

/// In KiB.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// The most there was (`VmHWM`).
    pub peak: u64,
    /// What there is (`VmRSS`).
    pub resident: u64,
    /// Of either, the pages of program and libraries that were used (`RssFile`): how many is up to the linker, the kernel drops
    /// them where memory is scarce, and processes of one program share them.
    pub file: u64,
}

impl Memory {
    /// Of a process.
    ///
    /// # Errors
    /// When it is not there.
    pub fn of(pid: u32) -> Result<Self> {
        let path = format!("/proc/{pid}/status");
        let text = fs::read_to_string(&path).with_context(|| path.clone())?;
        let field = |name: &str| -> Result<u64> {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let value = line.and_then(|line| line.split_whitespace().next());
            value.with_context(|| format!("no {name} in {path}"))?.parse().context("a number")
        };
        Ok(Self { peak: field("VmHWM:")?, resident: field("VmRSS:")?, file: field("RssFile:")? })
    }
}

/// Makes the present size of a process its peak (proc(5), `clear_refs`).
///
/// # Errors
/// When it is not there.
pub fn reset_peak(pid: u32) -> Result<()> {
    let path = format!("/proc/{pid}/clear_refs");
    fs::write(&path, "5").with_context(|| path)
}

/// CPU time of another process: of all its threads (schedstat, to the nanosecond), as long as none of them ends.
///
/// # Errors
/// When it is not there.
pub fn cpu_time(pid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/task");
    let mut sum = 0;
    for thread in fs::read_dir(&path).with_context(|| path.clone())? {
        // One that has ended meanwhile had little to do.
        let Ok(text) = fs::read_to_string(thread?.path().join("schedstat")) else { continue };
        sum += text.split_whitespace().next().context("schedstat")?.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(sum))
}
