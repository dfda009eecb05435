//! What every Prometheus client tells of its process, read from `/proc`.

use std::fs;

use super::exposition::Families;

/// Adds the `process_*` families, as far as `/proc` tells.
pub fn add_to(families: &mut Families) {
    let none = &[][..];
    let mut gauge = |name: &str, help: &str, value: Option<f64>| {
        families.gauge(name, help, value.map(|value| (none, value)));
    };
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key))?;
        line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok().map(|kib| kib * 1024.0)
    };
    gauge("process_resident_memory_bytes", "Resident memory size in bytes", kib("VmRSS:"));
    gauge("process_virtual_memory_bytes", "Virtual memory size in bytes", kib("VmSize:"));
    gauge("process_open_fds", "Number of open file descriptors", open_files());
    gauge("process_max_fds", "Maximum number of open file descriptors", max_files());
    let stat = fs::read_to_string("/proc/self/stat").ok();
    let times = stat.as_deref().and_then(Times::parse);
    let started = times.as_ref().and_then(|times| Some(boot_time()? + times.start));
    gauge("process_start_time_seconds", "Start time of the process since unix epoch in seconds", started);
    families.counter(
        "process_cpu_seconds_total",
        "Total user and system CPU time spent in seconds",
        times.map(|times| (none, times.cpu)),
    );
}

/// Of `/proc/self/stat`, in seconds.
#[derive(Debug, PartialEq)]
struct Times {
    /// User and system time.
    cpu: f64,
    /// Since the boot.
    start: f64,
}

impl Times {
    /// Fields are counted from behind the name, which may hold anything but its closing parenthesis (proc_pid_stat(5)).
    fn parse(stat: &str) -> Option<Self> {
        let (_, fields) = stat.rsplit_once(')')?;
        let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
        // The kernel shows times in USER_HZ, which is 100 on all architectures but Alpha.
        let seconds = |number: usize| fields.get(number - 3)?.parse::<f64>().ok().map(|ticks| ticks / 100.0);
        Some(Self { cpu: seconds(14)? + seconds(15)?, start: seconds(22)? })
    }
}

fn boot_time() -> Option<f64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

fn open_files() -> Option<f64> {
    let count = fs::read_dir("/proc/self/fd").ok()?.count();
    // The directory itself is open while it is read.
    u32::try_from(count.saturating_sub(1)).ok().map(f64::from)
}

fn max_files() -> Option<f64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_whatever_the_program_is_called() {
        let stat = "12 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20 0 3 0 1234 0 0";
        assert_eq!(Times::parse(stat), Some(Times { cpu: 3.0, start: 12.34 }));
        assert_eq!(Times::parse("12 (a) S 1"), None);
        assert_eq!(Times::parse(""), None);
    }

    #[test]
    fn this_process_is_alive() {
        let mut families = Families::default();
        add_to(&mut families);
        let families = families.into_inner();
        assert_eq!(families.len(), 6, "{families:?}");
        let start = families.iter().find(|family| family.name() == "process_start_time_seconds").unwrap();
        let started = start.get_metric()[0].get_gauge().get_value();
        let now = super::super::seconds(std::time::SystemTime::now());
        assert!((now - 3600.0 * 24.0..now + 5.0).contains(&started), "{started}");
    }
}
