//! Peers that are not listed one by one: whoever connects from a range.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use super::config::PeerConfig;

/// A range that peers may connect from. Each gets a session of its own when it does, which this side never begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DynamicPeers {
    /// Where they connect from. A peer that is configured by its address is not one of them; of several ranges the
    /// smallest counts.
    pub prefix: IpNet,
    /// How many there may be. When there are as many, the one that has been down the longest gives way to a new one;
    /// if none is down the new one is refused.
    pub limit: usize,
    /// How long one that is down is still known, for what it was like to be seen, and so that errors keep it held down.
    pub linger: Duration,
    /// What their sessions are like, but for the address. They are passive whatever this says, and have BFD from the first session on.
    pub template: PeerConfig,
}

/// A range at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DynamicPeersStatus {
    /// Where they connect from.
    pub prefix: IpNet,
    /// How many there may be.
    pub limit: usize,
    /// How many there are, those included that are down and still known.
    pub peers: usize,
    /// Connections refused because there were as many as there may be.
    pub refused: u64,
}

/// A range in force.
#[derive(Debug)]
pub(super) struct Range {
    pub(super) config: DynamicPeers,
    pub(super) refused: u64,
}

impl DynamicPeers {
    /// What the session with the one at `address` is like.
    pub(super) fn peer(&self, address: IpAddr) -> PeerConfig {
        PeerConfig { address, passive: true, ..self.template.clone() }
    }
}

impl Range {
    /// Whom the listeners are to expect.
    pub(super) fn expected(&self) -> (IpNet, &PeerConfig) {
        (self.config.prefix, &self.config.template)
    }
}
