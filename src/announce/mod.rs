//! Plan → BGP: which prefixes, with which attributes, and when: a VIP only while the dataplane holds it.
//!
//! ```text
//! NodePlan.announcements ──┐
//!                          ├─► [Announcer] ──RouteChanges──► Speaker ──► peers
//! Dataplane::holds ────────┘
//! ```

pub mod journal;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use sheave_bgp::{
    Attributes, Community, Families, GracefulRestart, LargeCommunity, PeerConfig, RouteChanges, Shutdown,
    Speaker, SpeakerConfig, SpeakerStatus,
};
use tokio::runtime::Handle;
use tracing::{info, warn};

use crate::config::{AddressFamily, Config, NextHop, Peer, Router};
use crate::plan::{Announcement, AnnouncementKind, NodePlan};

/// How long a removal waits for peers to be told of the withdrawal. One that does not read must not hold up
/// the others.
const WITHDRAW_LIMIT: Duration = Duration::from_secs(1);

/// Why nothing can be announced.
#[derive(Debug, thiserror::Error)]
pub enum AnnounceError {
    /// A BGP identifier is needed, and there is no IPv4 address to take.
    #[error(
        "router.routerId: auto takes the Node's primary IPv4 address, and Node {0} has none: \
         write an identifier such as 10.0.0.1 into the config, or the address into the Node"
    )]
    NoRouterId(String),
    /// The speaker.
    #[error("BGP: {0}")]
    Speaker(#[from] sheave_bgp::StartError),
    /// The runtime of the speaker is gone.
    #[error("BGP: the speaker's task ended")]
    Gone,
}

/// The BGP side of this node.
pub struct Announcer {
    /// `None`: there is no peer to tell.
    speaker: Option<Speaker>,
    /// The speaker's runtime: sessions go on while the dataplane works.
    runtime: Handle,
    graceful_restart: bool,
    announced: BTreeMap<IpNet, Attributes>,
}

impl Announcer {
    /// Starts the speaker where the config has peers. `restarting`: the kernel forwarded for this node all along.
    ///
    /// # Errors
    /// [`AnnounceError`].
    pub async fn start(
        config: &Config,
        node: &str,
        addresses: &[IpAddr],
        restarting: bool,
        runtime: Handle,
    ) -> Result<Self, AnnounceError> {
        let Router { asn, router_id, listen, graceful_restart, peers, dynamic_peers: _ } = &config.router;
        let none =
            |runtime| Self { speaker: None, runtime, graceful_restart: false, announced: BTreeMap::new() };
        let (Some(asn), false) = (*asn, peers.is_empty()) else { return Ok(none(runtime)) };
        let router_id = router_id_of(*router_id, node, addresses)?;
        let config = SpeakerConfig {
            asn,
            router_id,
            listen: (listen.port != 0).then(|| {
                [IpAddr::from([0; 4]), IpAddr::from([0u16; 8])]
                    .map(|address| SocketAddr::new(address, listen.port))
                    .into()
            }),
            graceful_restart: graceful_restart
                .map(|graceful| GracefulRestart { restart_time: graceful.restart_time }),
            restarting,
        };
        // Never without the password that was asked for.
        let peers = peers.iter().filter(|peer| peer.password_source().is_none());
        let peers = peers.map(|peer| peer_config(peer, addresses)).collect();
        let graceful_restart = config.graceful_restart.is_some();
        let speaker = runtime.spawn(Speaker::start(config)).await.map_err(|_| AnnounceError::Gone)??;
        speaker.set_peers(peers);
        Ok(Self { speaker: Some(speaker), runtime, graceful_restart, announced: BTreeMap::new() })
    }

    /// Withdraws those of `prefixes` that the plan has no more, and waits until peers have been told: the kernel
    /// may forget them then.
    pub async fn withdraw(&mut self, plan: &NodePlan, prefixes: &BTreeSet<IpNet>) {
        let withdraw: Vec<IpNet> = prefixes
            .iter()
            .filter(|prefix| !plan.announcements.contains_key(prefix))
            .filter(|prefix| self.announced.remove(prefix).is_some())
            .copied()
            .collect();
        let Some(speaker) = &self.speaker else { return };
        if withdraw.is_empty() {
            return;
        }
        info!(prefixes = withdraw.len(), first = %withdraw[0], "withdraw");
        speaker.update(RouteChanges { announce: Vec::new(), withdraw });
        if !speaker.flushed(WITHDRAW_LIMIT).await {
            warn!(limit = ?WITHDRAW_LIMIT, "some peer has not read the withdrawal yet; going on");
        }
    }

    /// Brings what is announced of `prefixes` (`None`: of all) in line with the plan and what the dataplane holds.
    pub fn update(
        &mut self,
        plan: &NodePlan,
        holds: impl Fn(IpAddr) -> bool,
        prefixes: Option<&BTreeSet<IpNet>>,
    ) {
        let all: BTreeSet<IpNet>;
        let prefixes = match prefixes {
            Some(prefixes) => prefixes,
            None => {
                all = plan.announcements.keys().chain(self.announced.keys()).copied().collect();
                &all
            }
        };
        let mut changes = RouteChanges::default();
        for prefix in prefixes {
            let wanted = plan
                .announcements
                .get(prefix)
                .filter(|announcement| {
                    announcement.kind == AnnouncementKind::PodCIDR || holds(announcement.prefix.addr())
                })
                .map(attributes);
            match wanted {
                Some(wanted) if self.announced.get(prefix) != Some(&wanted) => {
                    changes.announce.push((*prefix, wanted.clone()));
                    self.announced.insert(*prefix, wanted);
                }
                None if self.announced.remove(prefix).is_some() => changes.withdraw.push(*prefix),
                _ => {}
            }
        }
        let Some(speaker) = &self.speaker else { return };
        if changes != RouteChanges::default() {
            info!(
                announce = changes.announce.len(),
                withdraw = changes.withdraw.len(),
                "announcements change"
            );
            speaker.update(changes);
        }
    }

    /// Everything the dataplane holds at the start has been announced: peers may drop what is left of an earlier life.
    pub fn complete(&self) {
        if let Some(speaker) = &self.speaker {
            speaker.initial_routes_complete();
        }
    }

    /// Whether a prefix is announced now, as far as there is anyone to tell.
    pub fn announces(&self, prefix: &IpNet) -> bool {
        self.speaker.is_some() && self.announced.contains_key(prefix)
    }

    /// How many prefixes are announced now, as far as there is anyone to tell.
    pub fn announced(&self) -> usize {
        if self.speaker.is_some() { self.announced.len() } else { 0 }
    }

    /// The speaker's sessions.
    pub fn status(&self) -> Option<SpeakerStatus> {
        self.speaker.as_ref().map(Speaker::status)
    }

    /// Ends the sessions: so that peers keep the routes, where graceful restart is configured.
    pub async fn stop(self) {
        let how = if self.graceful_restart { Shutdown::GracefulRestart } else { Shutdown::Cease };
        if let Some(speaker) = self.speaker {
            // The task only ends early with its runtime, and then there is no session left to end.
            let _ = self.runtime.spawn(speaker.shutdown(how)).await;
        }
    }
}

/// Whether the config has what a start takes.
///
/// # Errors
/// [`AnnounceError`] that [`Announcer::start`] would end with.
pub fn check(config: &Config, node: &str, addresses: &[IpAddr]) -> Result<(), AnnounceError> {
    if config.router.peers.is_empty() {
        return Ok(());
    }
    router_id_of(config.router.router_id, node, addresses).map(drop)
}

fn router_id_of(
    configured: Option<Ipv4Addr>,
    node: &str,
    addresses: &[IpAddr],
) -> Result<Ipv4Addr, AnnounceError> {
    configured.or_else(|| first_ipv4(addresses)).ok_or_else(|| AnnounceError::NoRouterId(node.to_owned()))
}

fn attributes(announcement: &Announcement) -> Attributes {
    let large = |&(global, data1, data2): &(u32, u32, u32)| LargeCommunity { global, data1, data2 };
    Attributes {
        communities: announcement.communities.iter().map(|value| Community(*value)).collect(),
        large_communities: announcement.large_communities.iter().map(large).collect(),
        local_pref: announcement.local_pref,
        med: announcement.med,
        as_path_prepend: announcement.as_path_prepend,
    }
}

fn peer_config(peer: &Peer, addresses: &[IpAddr]) -> PeerConfig {
    let Peer { address, asn, port, local_address, multihop, hold_time, next_hop, families, .. } = peer;
    let fixed = match next_hop {
        NextHop::Address(address) => Some(*address),
        NextHop::Own => None,
    };
    // On a session of the other family there is no local address to take: the node's own it is.
    let next_hop = |v4: bool| {
        fixed.filter(|fixed| fixed.is_ipv4() == v4).or_else(|| {
            let own = || addresses.iter().find(|own| own.is_ipv4() == v4).copied();
            (address.is_ipv4() != v4).then(own).flatten()
        })
    };
    PeerConfig {
        port: *port,
        local_address: *local_address,
        multihop: *multihop,
        hold_time: *hold_time,
        families: Families {
            ipv4_unicast: families.contains(&AddressFamily::Ipv4),
            ipv6_unicast: families.contains(&AddressFamily::Ipv6),
        },
        next_hop_v4: match next_hop(true) {
            Some(IpAddr::V4(address)) => Some(address),
            _ => None,
        },
        next_hop_v6: match next_hop(false) {
            Some(IpAddr::V6(address)) => Some(address),
            _ => None,
        },
        password: peer.password.clone(),
        ..PeerConfig::new(*address, *asn)
    }
}

fn first_ipv4(addresses: &[IpAddr]) -> Option<Ipv4Addr> {
    addresses.iter().find_map(|address| match address {
        IpAddr::V4(address) => Some(*address),
        IpAddr::V6(_) => None,
    })
}
