//! A rate limit with a burst, in one number: the generic cell rate algorithm (ITU-T I.371).

use std::time::{Duration, Instant};

/// A rate: one per `interval`, and up to `burst` at once after a silence.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rate {
    pub(super) interval: Duration,
    pub(super) burst: u32,
}

/// How much of a [`Rate`] is used up.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Used {
    /// When all of the burst is there again.
    whole_at: Option<Instant>,
}

impl Used {
    /// Since when one more is admitted: `now` or earlier, or else when it will be.
    pub(super) fn admits_at(self, rate: Rate, now: Instant) -> Instant {
        let tolerance = rate.interval * rate.burst.saturating_sub(1);
        self.whole_at.and_then(|whole_at| whole_at.checked_sub(tolerance)).map_or(now, |at| at.max(now))
    }

    /// Takes one.
    pub(super) fn take(&mut self, rate: Rate, now: Instant) {
        self.whole_at = Some(self.whole_at.map_or(now, |at| at.max(now)) + rate.interval);
    }

    /// Whether it is as if nothing had ever been taken.
    pub(super) fn is_whole(self, now: Instant) -> bool {
        self.whole_at.is_none_or(|at| at <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_one_per_interval_then_a_burst_again() {
        let rate = Rate { interval: Duration::from_secs(10), burst: 3 };
        let start = Instant::now();
        let mut used = Used::default();
        let mut admitted = |seconds| {
            let now = start + Duration::from_secs(seconds);
            let admits = used.admits_at(rate, now) <= now;
            if admits {
                used.take(rate, now);
            }
            admits
        };
        let seen: Vec<bool> = [0, 0, 0, 0, 9, 10, 11, 20, 1000, 1000, 1000, 1000].map(&mut admitted).into();
        let expected = [true, true, true, false, false, true, false, true, true, true, true, false];
        assert_eq!(seen, expected);
    }

    #[test]
    fn it_tells_when_to_come_again() {
        let rate = Rate { interval: Duration::from_secs(10), burst: 1 };
        let now = Instant::now();
        let mut used = Used::default();
        assert!(used.is_whole(now));
        used.take(rate, now);
        assert_eq!(used.admits_at(rate, now), now + rate.interval);
        assert!(used.is_whole(now + rate.interval));
    }
}
