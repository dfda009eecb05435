//! BGP peers: what became of their sessions since they were looked at last. Pure.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use sheave_bgp::PeerStatus;
use sheave_bgp::session::State;

use super::notice::{Kind, Notice};

/// How long a peer may be without a session, after the start or its being configured, before that is told.
const PATIENCE: Duration = Duration::from_secs(60);

/// The peers as they were last.
#[derive(Debug, Default)]
pub(super) struct Peers {
    /// By name.
    known: BTreeMap<String, Known>,
}

#[derive(Debug)]
struct Known {
    asn: u32,
    /// The interface that it is behind: its name, where it is found there and is not for the moment.
    interface: Option<String>,
    established: bool,
    /// There was a session once.
    had_session: bool,
    /// How often the session became Established.
    times: u64,
    first_seen: Instant,
    told_missing: bool,
}

/// A peer that is configured, and that there is nothing to be had of as yet.
#[derive(Clone, Copy, Debug)]
pub struct Absent<'a> {
    /// Its name; as long as it has not been found, the interface or the default gateway that it is to be found by.
    pub name: &'a str,
    /// Its ASN; 0 where that is the peer's to tell.
    pub asn: u32,
    /// Why.
    pub why: &'a str,
}

/// A peer now.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub(super) name: String,
    pub(super) interface: Option<String>,
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
            name: status.name(),
            interface: status.interface.clone(),
            asn: status.asn,
            dynamic: status.range.is_some(),
            established: status.state == State::Established,
            times: status.counters.established,
            last_error: status.last_error.as_ref().map(|error| error.reason.to_string()),
        }
    }
}

impl From<Absent<'_>> for Peer {
    fn from(Absent { name, asn, why }: Absent<'_>) -> Self {
        Self {
            name: name.to_owned(),
            interface: None,
            asn,
            dynamic: false,
            established: false,
            times: 0,
            last_error: Some(why.to_owned()),
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
        let peers: BTreeMap<String, Peer> = peers.into_iter().map(|peer| (peer.name.clone(), peer)).collect();
        // One that is not configured any more is not down; one that is not to be found any more is.
        let gone: Vec<String> =
            self.known.keys().filter(|name| !peers.contains_key(*name)).cloned().collect();
        for name in gone {
            let Some(known) = self.known.remove(&name) else { continue };
            let Some(lost) = known.interface.and_then(|interface| peers.get(&interface)) else { continue };
            let why = lost.last_error.as_deref().unwrap_or_default();
            if known.established {
                let message = format!("BGP peer {name} (AS {}): the session ended: {why}", known.asn);
                notices.push(Notice::of_node(node, Kind::Warning, "PeerDown", "Peer", message));
            }
            let lost = self.known.entry(lost.name.clone()).or_insert_with(|| Known::since(now));
            lost.had_session |= known.had_session;
        }
        for peer in peers.into_values() {
            let known = self.known.entry(peer.name.clone()).or_insert_with(|| Known::since(now));
            let came = peer.times > known.times || (peer.established && !known.established);
            let name = format!("BGP peer {} (AS {})", peer.name, peer.asn);
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
            known.had_session |= peer.times > 0;
            if !known.had_session && !known.told_missing && now >= known.first_seen + PATIENCE {
                let since = if peer.dynamic { "first connected" } else { "was configured" };
                tell(
                    Kind::Warning,
                    "PeerDown",
                    format!("{name}: there has been no session since it {since}{}", why()),
                );
                known.told_missing = true;
            }
            known.asn = peer.asn;
            known.interface = peer.interface;
            known.established = peer.established;
            known.times = peer.times;
        }
        notices
    }
}

impl Known {
    /// Nothing is known of it before `now`.
    fn since(now: Instant) -> Self {
        Self {
            asn: 0,
            interface: None,
            established: false,
            had_session: false,
            times: 0,
            first_seen: now,
            told_missing: false,
        }
    }
}
