//! How long to wait before the next attempt.

use std::time::Duration;

/// No server is left alone for longer, whatever it asks for.
const LONGEST_ASKED: Duration = Duration::from_secs(300);

/// Pauses that double with every failure in a row, up to a limit, each shortened by chance down to its half: agents
/// that failed together do not come back together.
#[derive(Debug)]
pub(super) struct Pauses {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Pauses {
    pub(super) fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, next: first }
    }

    /// After a failure. `chance` is from 0 to 1. What a server asks for is honoured, and lengthened by chance.
    pub(super) fn after_failure(&mut self, asked: Option<Duration>, chance: f64) -> Duration {
        let own = self.next.mul_f64(0.5 + chance / 2.0);
        self.next = (self.next * 2).min(self.longest);
        match asked {
            Some(asked) => own.max(asked.min(LONGEST_ASKED).mul_f64(1.0 + chance / 4.0)),
            None => own,
        }
    }

    /// After something worked.
    pub(super) fn reset(&mut self) {
        self.next = self.first;
    }
}
