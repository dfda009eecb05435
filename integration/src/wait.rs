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
    let end = Instant::now() + limit;
    let mut pause = Duration::from_millis(2);
    loop {
        match condition() {
            Ok(value) => return Ok(value),
            Err(last) if Instant::now() >= end => bail!("{what}: not within {limit:?}; last seen: {last}"),
            Err(_) => std::thread::sleep(pause),
        }
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// Like [`await_some`], for a condition that is true or false.
pub fn await_until(limit: Duration, what: &str, mut condition: impl FnMut() -> bool) -> Result<()> {
    await_some(limit, what, || condition().then_some(()).ok_or_else(|| "no".to_owned()))
}
