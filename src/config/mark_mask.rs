//! `services.markMask`.

use serde::Deserialize;
use serde::de::{Deserializer, Error as _};

/// The bits of the packet mark that the dataplane may use, contiguous: the highest tells that they are in use, the
/// others number endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MarkMask(u32);

impl MarkMask {
    /// Takes a mask of at least two contiguous bits; `None` for any other.
    pub fn new(mask: u32) -> Option<Self> {
        let shifted = mask.checked_shr(mask.trailing_zeros())?;
        (mask.count_ones() >= 2 && shifted.wrapping_add(1) & shifted == 0).then_some(Self(mask))
    }

    /// All bits.
    pub fn mask(self) -> u32 {
        self.0
    }

    /// The reserved bit: the highest one.
    pub fn bit(self) -> u32 {
        1 << (31 - self.0.leading_zeros())
    }

    /// How many endpoints can be numbered. Number 0 is for what no map knows.
    pub fn capacity(self) -> u32 {
        (1 << (self.0.count_ones() - 1)) - 1
    }

    /// The mark of an endpoint's number.
    pub fn mark(self, number: u32) -> u32 {
        self.bit() | number << self.0.trailing_zeros()
    }

    /// The number within a mark, where it is one of ours.
    pub fn number(self, mark: u32) -> Option<u32> {
        (mark & !self.0 == 0 && mark & self.bit() != 0)
            .then(|| (mark & !self.bit()) >> self.0.trailing_zeros())
    }
}

impl Default for MarkMask {
    /// Free of kube-proxy's 0xc000, Calico's 0xffff0000 and Tailscale's 0xff0000.
    fn default() -> Self {
        Self(0x3fff)
    }
}

impl<'de> Deserialize<'de> for MarkMask {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let mask = u32::deserialize(d)?;
        Self::new(mask).ok_or_else(|| {
            D::Error::custom(format_args!(
                "{mask:#x} is not a mask of at least two bits in a row, such as 0x3fff"
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks() {
        let mask = MarkMask::new(0x3fff).unwrap();
        assert_eq!((mask.bit(), mask.capacity(), mask.mark(5)), (0x2000, 0x1fff, 0x2005));
        let high = MarkMask::new(0x0ff0_0000).unwrap();
        assert_eq!((high.bit(), high.capacity(), high.mark(5)), (0x0800_0000, 127, 0x0850_0000));
        assert_eq!(
            (high.number(0x0850_0000), high.number(0x0050_0000), high.number(1)),
            (Some(5), None, None)
        );
        for wrong in [0, 1, 0x8000_0000, 0x5, 0xf0f0] {
            assert_eq!(MarkMask::new(wrong), None, "{wrong:#x}");
        }
        assert_eq!(MarkMask::new(u32::MAX).map(MarkMask::bit), Some(0x8000_0000));
    }
}
