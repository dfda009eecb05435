//! Waiting for a condition, with a limit.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Asks `condition` again and again until it gives a value; after `limit` fails with `what` was awaited and the last
/// answer it had (`Err` text of the condition).
pub fn await_some<T>(
    limit: Duration,
    what: &str,
    mut condition: impl FnMut() -> Result<T, String>,
) -> Result<T> {
    let (start, end) = (Instant::now(), Instant::now() + limit);
    let mut pause = Duration::from_millis(2);
    loop {
        match condition() {
            Ok(value) => return Ok(value),
            Err(last) if Instant::now() >= end => bail!("{what}: not within {limit:?}; last seen: {last}"),
            Err(_) => std::thread::sleep(pause),
        }
        // To ask may take as much of a CPU as what is awaited: more seldom the longer it takes.
        let [often, seldom] = [50, 250].map(Duration::from_millis);
        pause = (pause * 2).min((start.elapsed() / 10).clamp(often, seldom));
    }
}

/// Like [`await_some`], for a condition that is true or false.
pub fn await_until(limit: Duration, what: &str, mut condition: impl FnMut() -> bool) -> Result<()> {
    await_some(limit, what, || condition().then_some(()).ok_or_else(|| "no".to_owned()))
}
