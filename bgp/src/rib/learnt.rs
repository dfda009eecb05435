//! What peers announce: from an UPDATE to the routes that are used.
//!
//! ```text
//!   UPDATE ──► Adj-RIB-In of the peer ──import policy──► candidates of the prefix ──decision──► Loc-RIB
//!              (if it has a policy)      loops, own nets                                           │ next hops changed
//!   session lost, Established, End-of-RIB, time ──► stale, or gone                                 ▼
//!              (all internal peers, on a reflector) ──► offered ──decision──► Reflections  taken by the owner
//!   links come and go ──► candidates or not (RFC 4271 §9.1.2.1)
//! ```
//!
//! A change costs what its prefixes cost: each of them has the routes to it, of all peers, in one place ([`loc_rib`]). Routes that
//! share attributes share memory. The peer's graceful restart is helped ([`stale`]).

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;

use super::adj_in::{AdjRibIn, Held, Nearness, supernets, within};
use super::import::{ImportPolicy, LimitAction, MaxPrefixes, is_routable};
use super::interned::Interned;
use super::next_hop::{Links, NextHop, is_link_local};
use super::path::{Identity, Path, Source};
use crate::session::Negotiated;
use crate::wire::{MpReach, Nlri, PathAttributes, Update};
use crate::{Community, Family};

mod loc_rib;
mod monitoring;
mod reflection;
mod stale;
#[cfg(test)]
pub(super) mod tests;

use loc_rib::{LocRib, Route};
pub use monitoring::{Changes, Received};
use reflection::Reflecting;
pub use reflection::Reflections;

/// How long a peer that is back may take to tell its routes, at most (RFC 4724 §4.2 asks for a bound).
const STALE_LIMIT: Duration = Duration::from_secs(300);

/// How many paths to one prefix are kept of a peer that names several (RFC 7911): what a change of one costs grows with them.
const PATHS: usize = 4096;

/// How much a peer may announce that is only there to be reflected.
const REFLECTED: MaxPrefixes = MaxPrefixes {
    limit: 1_000_000,
    warn_at: 750_000,
    action: LimitAction::Restart(Duration::from_secs(300)),
};

/// Routes of peers.
#[derive(Debug)]
pub struct Learnt {
    own: Identity,
    /// Nets that no route may be to, around or within, unless the peer's policy names its prefix.
    reserved: BTreeSet<IpNet>,
    /// By which next hops can be reached; `None`: not known, and any will do.
    links: Option<Links>,
    peers: BTreeMap<IpAddr, AdjRibIn>,
    /// Every path in use, once.
    paths: Interned<Path>,
    loc_rib: LocRib,
    /// Prefixes whose next hops changed since they were taken.
    changed: BTreeSet<IpNet>,
    /// What became different, while somebody monitors it.
    noted: Option<Changes>,
    reflecting: Reflecting,
}

/// What is used for a prefix from now on: next hops of equal worth, or none.
pub type LearntChange = (IpNet, Option<Arc<[NextHop]>>);

/// What a peer announces of a family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FamilyCounts {
    /// Prefixes it announces; where it names several paths to one (RFC 7911), each of them.
    pub received: usize,
    /// Those of them that the import policy accepts.
    pub accepted: usize,
    /// It has told all that it had when the session came up, or was asked.
    pub end_of_rib: bool,
    /// Those that are kept as a last resort, as it has been away for long (RFC 9494).
    pub long_lived: usize,
}

/// A peer announces more than it may, and the session is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitExceeded {
    /// More than that many.
    pub limit: MaxPrefixes,
    /// Of that family.
    pub family: Family,
    /// When the session may be tried again; `None`: not before the configuration changes.
    pub retry_after: Option<Duration>,
}

impl Learnt {
    /// Nothing, learnt by this speaker.
    pub fn new(own: Identity) -> Learnt {
        Learnt {
            own,
            reserved: BTreeSet::new(),
            links: None,
            peers: BTreeMap::new(),
            paths: Interned::default(),
            loc_rib: LocRib::default(),
            changed: BTreeSet::new(),
            noted: None,
            reflecting: Reflecting::default(),
        }
    }

    /// How many prefixes there are routes to.
    pub fn len(&self) -> usize {
        self.loc_rib.len()
    }

    /// Whether there is no route.
    pub fn is_empty(&self) -> bool {
        self.loc_rib.len() == 0
    }

    /// How many changes there are to take.
    pub fn pending(&self) -> usize {
        self.changed.len()
    }

    /// Takes up to `limit` changes.
    pub fn take_changes(&mut self, limit: usize) -> Vec<LearntChange> {
        let mut changes = Vec::new();
        while changes.len() < limit
            && let Some(prefix) = self.changed.pop_first()
        {
            changes.push((prefix, self.loc_rib.next_hops(&prefix).cloned()));
        }
        changes
    }

    /// Whether every peer with a policy has told all it has, as far as it says so.
    pub fn is_complete(&self) -> bool {
        self.peers.values().filter(|peer| peer.policy.is_some()).all(|peer| {
            let told = |family| {
                let family = peer.family(family);
                !family.negotiated || family.end_of_rib
            };
            peer.up && Family::ALL.into_iter().all(told)
        })
    }

    /// What a peer announces; `None` where nothing of it is kept.
    pub fn counts(&self, peer: IpAddr, family: Family) -> Option<FamilyCounts> {
        let family = self.peers.get(&peer)?.family(family);
        Some(FamilyCounts {
            received: family.routes.len(),
            accepted: family.accepted,
            end_of_rib: family.end_of_rib,
            long_lived: match family.long_lived_until {
                Some(_) => family.routes.values().filter(|held| held.long_lived).count(),
                None => 0,
            },
        })
    }

    /// Changes the nets that are this node's own business: no route to, around or within one is accepted, unless the peer's
    /// policy names exactly its prefix.
    pub fn reserve(&mut self, add: &[IpNet], remove: &[IpNet]) {
        let mut touched = Vec::new();
        for (nets, here) in [(remove, false), (add, true)] {
            for net in nets.iter().map(IpNet::trunc) {
                let changes = if here { self.reserved.insert(net) } else { self.reserved.remove(&net) };
                if changes {
                    let of_peer = |(peer, held): (&IpAddr, &AdjRibIn)| {
                        let peer = *peer;
                        held.overlapping(&net).into_iter().map(move |nlri| (peer, nlri)).collect::<Vec<_>>()
                    };
                    touched.extend(self.peers.iter().flat_map(of_peer));
                }
            }
        }
        touched.into_iter().for_each(|(peer, nlri)| self.judge(peer, nlri));
    }

    /// Sets by which links next hops can be reached: a route whose next hop cannot (RFC 4271 §9.1.2.1) is not used, and gives
    /// way to a worse one whose next hop can. What a change costs is what it concerns, and a look at each path.
    pub fn set_links(&mut self, links: Links) {
        let before = self.links.replace(links);
        let Some(now) = &self.links else { return };
        let concerned: HashSet<&NextHop> = self
            .paths
            .iter()
            .map(|path| &path.next_hop)
            .filter(|hop| before.as_ref().is_none_or(|before| before.reach(hop)) != now.reach(hop))
            .collect();
        if concerned.is_empty() {
            return;
        }
        let by_them = |known: &AdjRibIn| -> Vec<IpNet> {
            let routes = known.ipv4.routes.iter().chain(&known.ipv6.routes);
            let routes = routes.filter(|(_, held)| held.accepted && concerned.contains(&held.path.next_hop));
            routes.map(|(nlri, _)| nlri.prefix).collect()
        };
        let prefixes: BTreeSet<IpNet> = self.peers.values().flat_map(by_them).collect();
        prefixes.into_iter().for_each(|prefix| self.decide(prefix));
    }

    /// Peers of which something is kept: those with a policy, and those that are reflected.
    pub fn peers(&self) -> impl Iterator<Item = IpAddr> {
        self.peers.keys().copied()
    }

    /// How much a peer may announce.
    pub fn limit(&self, peer: IpAddr) -> Option<MaxPrefixes> {
        limit(self.peers.get(&peer).and_then(|known| known.policy.as_ref()))
    }

    /// Sets what is taken of peers: of those without a policy nothing is, and nothing is kept.
    pub fn set_policies(&mut self, policies: &BTreeMap<IpAddr, ImportPolicy>) {
        let with_policy = self.peers.iter().filter(|(_, known)| known.policy.is_some());
        let gone: Vec<IpAddr> =
            with_policy.map(|(peer, _)| *peer).filter(|peer| !policies.contains_key(peer)).collect();
        gone.into_iter().for_each(|peer| self.set_policy(peer, None));
        for (peer, policy) in policies {
            if self.peers.get(peer).is_none_or(|known| known.policy.as_ref() != Some(policy)) {
                self.set_policy(*peer, Some(policy.clone()));
            }
        }
    }

    /// What is kept already is judged again.
    fn set_policy(&mut self, peer: IpAddr, policy: Option<ImportPolicy>) {
        let Some(known) = self.peers.get_mut(&peer) else {
            self.peers.insert(peer, AdjRibIn::new(policy));
            return;
        };
        known.policy = policy;
        if known.policy.is_none() && !known.source.as_ref().is_some_and(|source| self.reflecting.of(source)) {
            return self.drop_peer(peer);
        }
        self.judge_all(peer);
    }

    /// All that is kept of a peer is judged again.
    fn judge_all(&mut self, peer: IpAddr) {
        let announced = self.peers.get(&peer).map(AdjRibIn::announced).unwrap_or_default();
        announced.into_iter().for_each(|nlri| self.judge(peer, nlri));
    }

    /// Nothing of a peer is kept any more.
    fn drop_peer(&mut self, peer: IpAddr) {
        self.flush_all(peer);
        self.peers.remove(&peer);
    }

    /// A session is Established.
    pub fn peer_up(&mut self, source: Source, negotiated: &Negotiated, now: Instant) {
        let peer = source.peer;
        if self.reflecting.of(&source) {
            self.peers.entry(peer).or_insert_with(|| AdjRibIn::new(None));
        } else if self.peers.get(&peer).is_some_and(|known| known.policy.is_none()) {
            // What is left of when it was internal.
            self.drop_peer(peer);
        }
        let Some(known) = self.peers.get_mut(&peer) else { return };
        known.says_end = negotiated.graceful_restart.as_ref().is_some_and(|graceful| !graceful.restarting);
        let other = known.source.as_deref() != Some(&source);
        if other {
            known.source = Some(Arc::new(source));
        }
        known.up = true;
        for family in Family::ALL {
            let state = known.family_mut(family);
            state.negotiated = negotiated.families.contains(family);
            state.end_of_rib = false;
            state.refreshing = false;
            state.nearness = Nearness::Far;
            state.crowded = false;
        }
        // What was not kept by the peer is gone (RFC 4724 §4.2, RFC 9494 §4.2), and so is what it will not tell again.
        for family in Family::ALL {
            let again = negotiated.families.contains(family);
            let short = again && negotiated.keeps(family).is_some_and(|forwarding| forwarding);
            let long = again && negotiated.long_lived(family).is_some_and(|offer| offer.forwarding);
            self.flush(peer, family, |held| held.stale && !if held.long_lived { long } else { short });
            let Some(known) = self.peers.get_mut(&peer) else { return };
            let state = known.family_mut(family);
            state.stale_until = (state.stale > 0).then(|| now + STALE_LIMIT);
        }
        let Some(known) = self.peers.get(&peer) else { return };
        if let Some(noted) = &mut self.noted {
            // What is still held belongs to this session now.
            let held = known.announced();
            noted.received.extend(held.iter().map(|nlri| (peer, *nlri)));
            noted.accepted.extend(held.iter().map(|nlri| (peer, *nlri)));
        }
        if other {
            self.judge_all(peer);
        }
    }

    /// Whether something of an Established peer is to be kept, and its session is not known here: it was there before.
    pub fn awaits_session(&self, peer: IpAddr, ibgp: bool) -> bool {
        self.peers.get(&peer).map_or(ibgp && self.reflecting.is_on(), |known| !known.up)
    }

    /// The session is over. `restarting`: what was agreed on, where the peer may be restarting and this side helps: its routes
    /// stay.
    pub fn peer_down(&mut self, peer: IpAddr, restarting: Option<&Negotiated>, now: Instant) {
        let Some(known) = self.peers.get_mut(&peer).filter(|known| known.up) else { return };
        known.up = false;
        for family in Family::ALL {
            self.lose(peer, family, restarting, now);
        }
        self.drop_unneeded(peer);
    }

    /// Nobody will tell of the peer any more, nor of the time: what it left goes now.
    pub fn peer_gone(&mut self, peer: IpAddr) {
        self.flush_all(peer);
        if let Some(known) = self.peers.get_mut(&peer) {
            known.up = false;
        }
        self.drop_unneeded(peer);
    }

    /// A peer without a policy is kept for what it announces, or has left for a while.
    fn drop_unneeded(&mut self, peer: IpAddr) {
        let needed = |known: &AdjRibIn| known.up || known.policy.is_some() || known.deadline().is_some();
        if !self.peers.get(&peer).is_some_and(needed) {
            self.peers.remove(&peer);
        }
    }

    /// When [`Learnt::expire`] is due for a peer.
    pub fn deadline(&self, peer: IpAddr) -> Option<Instant> {
        self.peers.get(&peer)?.deadline()
    }

    /// Drops what has been stale for too long, or keeps it as a last resort.
    pub fn expire(&mut self, peer: IpAddr, now: Instant) {
        for family in Family::ALL {
            self.age(peer, family, now);
        }
        self.drop_unneeded(peer);
    }

    /// A peer tells all of a family again, from here on (BoRR).
    pub fn refresh_begins(&mut self, peer: IpAddr, family: Family, now: Instant) {
        let Some(known) = self.peers.get_mut(&peer).filter(|known| known.up) else { return };
        let state = known.family_mut(family);
        // RFC 7313 §4: not before the End-of-RIB that a restarting peer is waited for. Nor twice: each time would let in as much
        // as the limit again.
        if state.stale > 0 {
            return;
        }
        state.refreshing = true;
        state.mark_stale(now);
        state.stale_until = (state.stale > 0).then(|| now + STALE_LIMIT);
    }

    /// It has told all of it (EoRR).
    pub fn refresh_ends(&mut self, peer: IpAddr, family: Family) {
        let Some(known) = self.peers.get_mut(&peer).filter(|known| known.up) else { return };
        if std::mem::take(&mut known.family_mut(family).refreshing) {
            self.told_all(peer, family);
        }
    }

    /// What is stale still is no more.
    fn told_all(&mut self, peer: IpAddr, family: Family) {
        self.flush(peer, family, |held| held.stale);
        let Some(known) = self.peers.get_mut(&peer) else { return };
        known.family_mut(family).end_of_rib = true;
        if let Some(noted) = &mut self.noted {
            noted.told_all.insert((peer, family));
        }
    }

    /// Takes in an UPDATE of a peer. A peer that exceeds its limit is told of; the rest of the message is left out then.
    ///
    /// # Errors
    /// The session is to end.
    pub fn receive(&mut self, peer: IpAddr, update: &Update) -> Result<(), LimitExceeded> {
        let Some(known) = self.peers.get(&peer).filter(|known| known.up) else { return Ok(()) };
        let interface = known.source.as_ref().and_then(|source| source.interface);
        if let Some(family) = update.end_of_rib() {
            // What is told again meanwhile ends with its own mark.
            if !known.family(family).refreshing {
                self.told_all(peer, family);
            }
            return Ok(());
        }
        for nlri in update.unreachable() {
            self.remove(peer, &nlri);
            if let Some(noted) = &mut self.noted {
                // Also of what is not held: it may have been told of when nothing was.
                noted.received.insert((peer, nlri));
            }
        }
        for (path, all) in announced(update, interface) {
            let path = self.paths.intern(path);
            let taken = all.into_iter().try_for_each(|nlri| self.insert(peer, nlri, &path));
            self.paths.forget(&path);
            taken?;
        }
        self.paths.sweep();
        Ok(())
    }

    fn insert(&mut self, peer: IpAddr, nlri: Nlri, path: &Arc<Path>) -> Result<(), LimitExceeded> {
        let Some(known) = self.peers.get_mut(&peer) else { return Ok(()) };
        let family = Family::of(&nlri.prefix);
        let limit = limit(known.policy.as_ref());
        // What is left of an earlier session has other names, and goes.
        let told = || known.paths(nlri.prefix).filter(|(_, held)| !held.stale);
        let crowded = nlri.path_id != 0 && known.get(&nlri).is_none() && told().nth(PATHS - 1).is_some();
        let state = known.family_mut(family);
        if !state.negotiated {
            // RFC 4760 §6: it means nothing on this session.
            return Ok(());
        }
        if crowded {
            if !std::mem::replace(&mut state.crowded, true) {
                tracing::warn!(%peer, prefix = %nlri.prefix, "more than {PATHS} paths to a prefix: further ones are not taken");
            }
            return Ok(());
        }
        let before = state.routes.get(&nlri).map(|held| (held.accepted, held.stale, held.offered));
        let (accepted, again, offered) = before.unwrap_or_default();
        // What is left of an earlier session is not what the peer announces.
        if let Some(limit) = limit.filter(|_| before.is_none() || again) {
            let count = state.told() + 1;
            let retry_after = match limit.action {
                LimitAction::Restart(after) => Some(Some(after)),
                LimitAction::TearDown => Some(None),
                LimitAction::Warn => None,
            };
            if let Some(retry_after) = retry_after.filter(|_| count > limit.limit) {
                return Err(LimitExceeded { limit, family, retry_after });
            }
            let nearness = Nearness::of(count, limit);
            if nearness > state.nearness {
                state.nearness = nearness;
                let over = if nearness == Nearness::Over { "more than" } else { "close to" };
                tracing::warn!(%peer, %family, prefixes = count, limit = limit.limit, "{over} its limit of prefixes");
            }
        }
        state.less_stale(usize::from(again));
        let held = Held { path: Arc::clone(path), stale: false, long_lived: false, accepted, offered };
        let before = state.routes.insert(nlri, held);
        if let Some(noted) = &mut self.noted {
            noted.received.insert((peer, nlri));
        }
        self.judge(peer, nlri);
        if let Some(before) = before {
            self.paths.forget(&before.path);
        }
        Ok(())
    }

    fn remove(&mut self, peer: IpAddr, nlri: &Nlri) {
        let prefix = nlri.prefix;
        let Some(known) = self.peers.get_mut(&peer) else { return };
        let limit = limit(known.policy.as_ref());
        let state = known.family_mut(Family::of(&prefix));
        let Some(gone) = state.routes.remove(nlri) else { return };
        state.accepted -= usize::from(gone.accepted);
        state.less_stale(usize::from(gone.stale));
        // Half of where it is told, so that a count that sways is not told again and again.
        if limit.is_some_and(|limit| state.told() < limit.warn_at / 2) {
            state.nearness = Nearness::Far;
        }
        if let Some(noted) = &mut self.noted {
            noted.received.insert((peer, *nlri));
            if gone.accepted {
                noted.accepted.insert((peer, *nlri));
            }
        }
        if gone.offered {
            self.reflecting.set(nlri, peer, false);
        }
        if gone.accepted {
            self.loc_rib.remove(&prefix, peer, nlri.path_id);
            self.decide(prefix);
        }
        self.paths.forget(&gone.path);
    }

    /// Drops those routes of a peer that `goes` says.
    fn flush(&mut self, peer: IpAddr, family: Family, goes: impl Fn(&Held) -> bool) {
        let Some(known) = self.peers.get(&peer) else { return };
        for nlri in known.family(family).select(goes) {
            self.remove(peer, &nlri);
        }
        // Others may have held a path when its last route went.
        self.paths.sweep();
    }

    fn flush_all(&mut self, peer: IpAddr) {
        Family::ALL.into_iter().for_each(|family| self.flush(peer, family, |_| true));
    }

    /// Whether a peer's route is accepted is found out (again), and what follows from it.
    fn judge(&mut self, peer: IpAddr, nlri: Nlri) {
        let prefix = nlri.prefix;
        let Some(known) = self.peers.get(&peer) else { return };
        let (Some(held), Some(source)) = (known.get(&nlri), &known.source) else { return };
        let valid = !held.path.loops(self.own)
            && held.path.leads_elsewhere(source)
            && held.path.fits(&prefix, source)
            && !held.path.leaks(source);
        let accepted = valid
            && known.policy.as_ref().is_some_and(|policy| {
                policy.takes(&prefix)
                    && (policy.names(&prefix) || is_routable(&prefix) && !self.is_reserved(&prefix))
            });
        let offered = valid
            && self.reflecting.of(source)
            && is_routable(&prefix)
            // It says nothing on other links.
            && !is_link_local(held.path.next_hop.address)
            && !held.path.attributes.communities.contains(&Community::NO_ADVERTISE);
        let Some(known) = self.peers.get_mut(&peer) else { return };
        let source = known.source.clone().filter(|_| accepted);
        let state = known.family_mut(Family::of(&prefix));
        let Some(held) = state.routes.get_mut(&nlri) else { return };
        if std::mem::replace(&mut held.offered, offered) || offered {
            self.reflecting.set(&nlri, peer, offered);
        }
        let before = std::mem::replace(&mut held.accepted, accepted);
        if !before && !accepted {
            return;
        }
        let path = Arc::clone(&held.path);
        state.accepted = state.accepted - usize::from(before) + usize::from(accepted);
        match source {
            Some(source) => self.loc_rib.set(prefix, Route { path, source, path_id: nlri.path_id }),
            None => self.loc_rib.remove(&prefix, peer, nlri.path_id),
        }
        if let Some(noted) = &mut self.noted {
            noted.accepted.insert((peer, nlri));
        }
        self.decide(prefix);
    }

    fn is_reserved(&self, prefix: &IpNet) -> bool {
        supernets(*prefix).any(|net| self.reserved.contains(&net))
            || self.reserved.range(within(prefix)).next().is_some()
    }

    /// Runs the decision process for a prefix.
    fn decide(&mut self, prefix: IpNet) {
        if let Some(noted) = &mut self.noted {
            noted.decided.insert(prefix);
        }
        if self.loc_rib.decide(&prefix, |hop| reached(self.links.as_ref(), hop)) {
            self.changed.insert(prefix);
        }
    }
}

/// How much a peer may announce that has this policy, or none.
fn limit(policy: Option<&ImportPolicy>) -> Option<MaxPrefixes> {
    policy.map_or(Some(REFLECTED), |policy| policy.max_prefixes)
}

/// Whether a next hop can be reached, as far as links are known.
fn reached(links: Option<&Links>, hop: &NextHop) -> bool {
    links.is_none_or(|links| links.reach(hop))
}

/// What an UPDATE announces, by path. On a session between link-local addresses those of the interface's link are preferred
/// (RFC 2545 §3): the link need not have others.
fn announced(update: &Update, interface: Option<u32>) -> Vec<(Path, Vec<Nlri>)> {
    if update.reachable().next().is_none() {
        return Vec::new();
    }
    let path = |address: IpAddr| Path {
        next_hop: NextHop { address, interface: interface.filter(|_| is_link_local(address)) },
        attributes: PathAttributes { next_hop: None, ..update.attributes.clone() },
    };
    fn all<P: Copy>(nlri: &[Nlri<P>]) -> Vec<Nlri>
    where
        IpNet: From<P>,
    {
        nlri.iter().copied().map(Nlri::any).collect()
    }
    let own = update.attributes.next_hop.filter(|_| !update.nlri.is_empty());
    let own = own.map(|next_hop| (path(next_hop.into()), all(&update.nlri)));
    let multiprotocol = update.mp_reach.as_ref().map(|reach| match reach {
        MpReach::Ipv4 { next_hop, prefixes } => (path(*next_hop), all(prefixes)),
        MpReach::Ipv6 { next_hop, link_local, prefixes } => {
            let preferred = link_local.filter(|_| interface.is_some()).unwrap_or(*next_hop);
            (path(preferred.into()), all(prefixes))
        }
    });
    own.into_iter().chain(multiprotocol).collect()
}
