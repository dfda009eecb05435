//! `services.conntrack`: how much connection tracking remembers, and how long; kube-proxy's fields of that name.

use std::time::Duration;

use serde::Deserialize;

use super::peer::duration;

/// `services.conntrack`. What the kernel has more of stays; zero leaves a setting alone.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Conntrack {
    /// Entries for each CPU.
    pub max_per_core: u32,
    /// Entries at least, however few the CPUs; counts where `max_per_core` is not zero.
    pub min: u32,
    /// How long an idle TCP connection is remembered.
    #[serde(deserialize_with = "duration")]
    pub tcp_established_timeout: Duration,
    /// How long one that one side has closed is.
    #[serde(deserialize_with = "duration")]
    pub tcp_close_wait_timeout: Duration,
}

impl Default for Conntrack {
    fn default() -> Self {
        Self {
            max_per_core: 32 * 1024,
            min: 128 * 1024,
            tcp_established_timeout: Duration::from_secs(24 * 60 * 60),
            tcp_close_wait_timeout: Duration::from_secs(60 * 60),
        }
    }
}

impl Conntrack {
    /// Entries that a machine with so many CPUs is to have room for; `None`: as it is.
    pub fn max(&self, cpus: u32) -> Option<u32> {
        (self.max_per_core != 0).then(|| self.max_per_core.saturating_mul(cpus).max(self.min))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_that_of_kube_proxy() {
        let of = |max_per_core, min| Conntrack { max_per_core, min, ..Conntrack::default() };
        for (name, conntrack, cpus, expected) in [
            ("few CPUs", Conntrack::default(), 2, Some(131_072)),
            ("many CPUs", Conntrack::default(), 64, Some(2_097_152)),
            ("no minimum", of(1000, 0), 3, Some(3000)),
            ("left alone, whatever the minimum", of(0, 131_072), 4, None),
            ("more than there are numbers", of(u32::MAX, 0), 4, Some(u32::MAX)),
        ] {
            assert_eq!(conntrack.max(cpus), expected, "{name}");
        }
    }
}
