//! The randomness of timers, passed in so that a run can be repeated.

use std::time::Duration;

/// A small pseudo-random sequence (SplitMix64).
#[derive(Clone, Debug)]
pub struct Jitter(u64);

impl Jitter {
    /// Equal seeds give equal sequences.
    pub fn seeded(seed: u64) -> Jitter {
        Jitter(seed)
    }

    /// Between three quarters of `interval` and all of it (RFC 4271 §10).
    pub(crate) fn shorten(&mut self, interval: Duration) -> Duration {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let random = u16::try_from((z ^ (z >> 31)) >> 48).unwrap_or(u16::MAX);
        interval - interval / 4 * u32::from(random) / u32::from(u16::MAX)
    }
}
