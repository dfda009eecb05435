//! Numbers that follow from a seed.

use std::ops::Range;
use std::time::Duration;

/// A SplitMix64 generator.
#[derive(Clone, Debug)]
pub struct Chance(u64);

impl Chance {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// A generator of its own.
    pub fn fork(&mut self) -> Self {
        Self(self.next())
    }

    pub fn number(&mut self, range: Range<u64>) -> u64 {
        range.start + self.next() % (range.end - range.start)
    }

    /// True one time in so many.
    pub fn one_in(&mut self, times: u64) -> bool {
        self.number(0..times) == 0
    }

    pub fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::try_from(self.number(0..choices.len() as u64)).unwrap()]
    }

    /// A time: as often a millisecond as a minute.
    pub fn time(&mut self) -> Duration {
        Duration::from_millis(self.of(&[0, 1, 10, 300, 2_000, 15_000, 70_000]))
    }
}
