//! Numbers that differ from agent to agent.

use std::hash::{BuildHasher, RandomState};

/// A source of numbers from 0 to 1; nothing that has to be secret.
#[derive(Debug)]
pub(super) struct Chance {
    keys: RandomState,
    count: u64,
}

impl Chance {
    pub(super) fn new() -> Self {
        Self { keys: RandomState::new(), count: 0 }
    }

    /// The next number.
    pub(super) fn next(&mut self) -> f64 {
        self.count += 1;
        let bits = u32::try_from(self.keys.hash_one(self.count) >> 32).unwrap_or(u32::MAX);
        f64::from(bits) / f64::from(u32::MAX)
    }
}
