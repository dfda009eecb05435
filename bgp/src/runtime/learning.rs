//! What the speaker's owner says of routes of peers, and learns of them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use ipnet::IpNet;
use tokio::sync::watch;

use super::Speaker;
use super::shared::Shared;
use crate::Family;
use crate::rib::{FamilyCounts, ImportPolicy, LearntChange, Links};

/// What is learnt, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LearntStatus {
    /// Prefixes that there is a route to (Loc-RIB).
    pub routes: usize,
    /// Every peer with an import policy has told all it has.
    pub complete: bool,
    /// Prefixes whose next hops changed, and that have yet to be taken.
    pub pending: usize,
    /// Peers of which something is imported or passed on, and what each announces.
    pub peers: BTreeMap<IpAddr, Vec<(Family, FamilyCounts)>>,
}

/// What a speaker learns, for whoever has the kernel follow it: on another thread than the speaker's owner, if need be. Once the speaker
/// is shut down there is no news any more, but that of its sessions' end.
#[derive(Clone, Debug)]
pub struct LearntRoutes {
    shared: Arc<Shared>,
}

impl LearntRoutes {
    /// Takes up to `limit` of the prefixes whose next hops changed since they were taken.
    pub fn take(&self, limit: usize) -> Vec<LearntChange> {
        self.shared.learnt().take_changes(limit)
    }

    /// Changes when there may be something to take.
    pub fn news(&self) -> watch::Receiver<()> {
        self.shared.news.subscribe()
    }

    /// Sets by which links next hops can be reached: routes by others are not used. Before the first call all are.
    pub fn set_links(&self, links: Links) {
        self.shared.learn(|learnt| learnt.set_links(links));
        self.shared.news.send_replace(());
    }

    /// What is learnt of whom.
    pub fn status(&self) -> LearntStatus {
        let learnt = self.shared.learnt();
        let counts = |peer| {
            let of = |family| Some((family, learnt.counts(peer, family)?));
            Family::ALL.into_iter().filter_map(of).collect()
        };
        LearntStatus {
            routes: learnt.len(),
            complete: learnt.is_complete(),
            pending: learnt.pending(),
            peers: learnt.peers().map(|peer| (peer, counts(peer))).collect(),
        }
    }
}

impl Speaker {
    /// What is learnt of peers.
    pub fn learnt_routes(&self) -> LearntRoutes {
        LearntRoutes { shared: Arc::clone(&self.shared) }
    }

    /// Makes these the import policies of peers; of others nothing is imported. No session is reset: what is known is judged
    /// again, and a peer that had none is asked for its routes. Peers that a limit keeps down are tried again if it changed.
    pub fn set_imports(&self, policies: &BTreeMap<IpAddr, ImportPolicy>) {
        let forgets = self.shared.learn(|learnt| {
            let before: Vec<IpAddr> = learnt.peers().collect();
            learnt.set_policies(policies);
            before.into_iter().any(|peer| !learnt.keeps(peer))
        });
        if forgets {
            // What was kept of them is not there to be told any more.
            self.shared.monitor.ask();
        }
        self.shared.changed.send_replace(());
        self.shared.news.send_replace(());
    }

    /// Makes this speaker a route reflector (RFC 4456) with that CLUSTER_ID, or none: what a client announces is passed on to all
    /// other iBGP peers, what another iBGP peer announces to clients, whatever is imported. No session is reset; peers are asked
    /// for what was not kept. Nothing is passed on to or from eBGP peers.
    pub fn set_reflector(&self, cluster_id: Option<Ipv4Addr>) {
        self.shared.learn(|learnt| learnt.set_reflector(cluster_id));
        self.shared.changed.send_replace(());
    }

    /// Changes the nets that are this node's own: no route to, around or within one is used, unless a peer's policy names
    /// exactly its prefix.
    pub fn reserve(&self, add: &[IpNet], remove: &[IpNet]) {
        self.shared.learn(|learnt| learnt.reserve(add, remove));
        self.shared.news.send_replace(());
    }

    /// What is learnt of whom.
    pub fn learnt(&self) -> LearntStatus {
        self.learnt_routes().status()
    }
}
