//! BGP peers: what became of their sessions since they were looked at last. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use sheave_bgp::PeerStatus;
use sheave_bgp::session::State;

use super::notice::{Kind, Notice};

/// How long a peer may be without a session, after the start or its being configured, before that is told.
const PATIENCE: Duration = Duration::from_secs(60);

/// The peers as they were last.
#[derive(Debug, Default)]
pub(super) struct Peers {
    known: BTreeMap<IpAddr, Known>,
}

#[derive(Debug)]
struct Known {
    established: bool,
    /// How often the session became Established.
    times: u64,
    first_seen: Instant,
    told_missing: bool,
}

/// A peer now.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub(super) address: IpAddr,
    pub(super) asn: u32,
    /// It is not configured by its address.
    pub(super) dynamic: bool,
    pub(super) established: bool,
    pub(super) times: u64,
    pub(super) last_error: Option<String>,
}

impl From<&PeerStatus> for Peer {
    fn from(status: &PeerStatus) -> Self {
        Self {
            address: status.address,
            asn: status.asn,
            dynamic: status.range.is_some(),
            established: status.state == State::Established,
            times: status.counters.established,
            last_error: status.last_error.as_ref().map(|error| error.reason.to_string()),
        }
    }
}

impl Peers {
    /// What is to be told of the peers of `node`.
    pub(super) fn look(
        &mut self,
        node: &str,
        peers: impl IntoIterator<Item = Peer>,
        now: Instant,
    ) -> Vec<Notice> {
        let mut notices = Vec::new();
        let mut seen = BTreeSet::new();
        for peer in peers {
            seen.insert(peer.address);
            let known = self.known.entry(peer.address).or_insert(Known {
                established: false,
                times: 0,
                first_seen: now,
                told_missing: false,
            });
            let came = peer.times > known.times || (peer.established && !known.established);
            let name = format!("BGP peer {} (AS {})", peer.address, peer.asn);
            let why = || peer.last_error.as_deref().map(|error| format!(": {error}")).unwrap_or_default();
            let mut tell = |kind, reason, message| {
                notices.push(Notice::of_node(node, kind, reason, "Peer", message));
            };
            if known.established && (came || !peer.established) {
                tell(Kind::Warning, "PeerDown", format!("{name}: the session ended{}", why()));
            }
            if came {
                tell(Kind::Normal, "PeerUp", format!("{name}: the session is established"));
            }
            if came && !peer.established {
                tell(Kind::Warning, "PeerDown", format!("{name}: the session ended{}", why()));
            }
            if peer.times == 0 && !known.told_missing && now >= known.first_seen + PATIENCE {
                let since = if peer.dynamic { "first connected" } else { "was configured" };
                tell(
                    Kind::Warning,
                    "PeerDown",
                    format!("{name}: there has been no session since it {since}{}", why()),
                );
                known.told_missing = true;
            }
            known.established = peer.established;
            known.times = peer.times;
        }
        // One that is not configured any more is not down.
        self.known.retain(|address, _| seen.contains(address));
        notices
    }
}
