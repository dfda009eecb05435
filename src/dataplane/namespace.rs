//! For tests: a network namespace of one's own.

use std::process::Command;
use std::thread;

use nix::sched::{CloneFlags, unshare};

/// Does `work` on a thread of its own, in a network namespace of its own. `None`, and it says so, where that takes more rights
/// than there are.
pub fn in_namespace<T: Send>(work: impl FnOnce() -> T + Send) -> Option<T> {
    let test = || unshare(CloneFlags::CLONE_NEWNET).is_ok().then(work);
    let done = thread::scope(|scope| scope.spawn(test).join())
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    if done.is_none() {
        println!("skipped: no network namespace");
    }
    done
}

/// Runs `ip`, which has to succeed.
pub fn ip(arguments: &str) {
    let done = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(done.success(), "ip {arguments}");
}
