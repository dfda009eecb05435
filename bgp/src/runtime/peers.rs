//! Which peers there are: those that are configured, and those that have connected from a range.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};

use ipnet::IpNet;
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use super::config::PeerConfig;
use super::dynamic::{DynamicPeers, DynamicPeersStatus, Range};
use super::listeners::Listeners;
use super::peer::{Inputs, PeerTask};
use super::shared::{Observed, Shared, lock};
use super::socket;
use super::status::{PeerStatus, SpeakerStatus};
use crate::session::{Farewell, State};
use crate::wire::{Cease, Notification};

/// The tasks of peers by address, and the ranges that more may come from.
#[derive(Debug)]
pub(super) struct Peers {
    shared: Arc<Shared>,
    listeners: Listeners,
    runtime: Handle,
    current: BTreeMap<IpAddr, Peer>,
    /// Removed ones that are not done: the next task for the address waits for them, since they share what the RIB
    /// knows of it.
    leaving: BTreeMap<IpAddr, JoinHandle<()>>,
    /// Those that begin anew after a session: it goes on, to them, but for the connection.
    met: BTreeSet<IpAddr>,
    ranges: BTreeMap<IpNet, Range>,
}

/// A peer's task, seen from outside.
#[derive(Debug)]
struct Peer {
    config: PeerConfig,
    /// The range that it came from, if it is not configured.
    range: Option<IpNet>,
    observed: Arc<Mutex<Observed>>,
    change: watch::Sender<PeerConfig>,
    stop: oneshot::Sender<Farewell>,
    accepted: mpsc::Sender<TcpStream>,
    task: JoinHandle<()>,
}

impl Peers {
    pub(super) fn new(shared: Arc<Shared>, listeners: Listeners, runtime: Handle) -> Peers {
        let (current, leaving, met, ranges) = Default::default();
        Peers { shared, listeners, runtime, current, leaving, met, ranges }
    }

    /// Makes these the configured peers.
    pub(super) fn set(&mut self, peers: Vec<PeerConfig>) {
        let wanted: BTreeMap<IpAddr, PeerConfig> = peers.into_iter().map(|p| (p.address, p)).collect();
        // Before a peer's task is there to take connections.
        let ranges = self.ranges.values().map(Range::expected);
        let expected: Vec<_> = ranges.chain(wanted.iter().map(|(a, peer)| ((*a).into(), peer))).collect();
        self.listeners.expect(&expected);
        self.await_peers(wanted.values());

        self.forget_gone();
        self.dismiss(Cease::PeerDeconfigured, |address, peer| {
            peer.range.is_none() && !wanted.contains_key(address)
        });
        for (address, config) in wanted {
            if let Some(known) = self.current.get_mut(&address) {
                if known.range.is_none() && known.config.survives(&config) {
                    known.change(config);
                    continue;
                }
                self.dismiss(Cease::OtherConfigurationChange, |known, _| *known == address);
            }
            self.spawn(config, None);
        }
    }

    /// Makes these the ranges that peers may connect from.
    pub(super) fn set_dynamic(&mut self, ranges: Vec<DynamicPeers>) {
        let refused = |prefix: &IpNet| self.ranges.get(prefix).map_or(0, |range| range.refused);
        let ranges = ranges
            .into_iter()
            .map(|config| (config.prefix, Range { refused: refused(&config.prefix), config }));
        self.ranges = ranges.collect();
        let configured =
            || self.current.values().filter(|peer| peer.range.is_none()).map(|peer| &peer.config);
        let listed = configured().map(|config| (config.address.into(), config));
        let expected: Vec<_> = self.ranges.values().map(Range::expected).chain(listed).collect();
        self.listeners.expect(&expected);
        self.await_peers(configured());

        self.forget_gone();
        let ranges = std::mem::take(&mut self.ranges);
        let of = |address: &IpAddr| smallest(&ranges, *address).map(|range| &range.config);
        self.dismiss(Cease::PeerDeconfigured, |address, peer| peer.range.is_some() && of(address).is_none());
        self.dismiss(Cease::OtherConfigurationChange, |address, peer| {
            peer.range.is_some()
                && of(address).is_none_or(|range| !peer.config.survives(&range.peer(*address)))
        });
        for (address, peer) in self.current.iter_mut().filter(|(_, peer)| peer.range.is_some()) {
            if let Some(range) = of(address) {
                peer.range = Some(range.prefix);
                peer.change(range.peer(*address));
            }
        }
        self.ranges = ranges;
    }

    /// Has a reflector that has restarted wait for what these tell, and those of ranges (RFC 4724 §4.1).
    fn await_peers<'a>(&self, configured: impl Iterator<Item = &'a PeerConfig>) {
        let asn = self.shared.config.asn;
        let internal = configured.filter(|peer| peer.asn == asn).map(|peer| peer.address);
        let ranges = self.ranges.values().any(|range| range.config.template.asn == asn);
        self.shared.learn(|learnt| learnt.await_peers(internal, ranges));
    }

    /// Ends the sessions of those that `goes` says.
    fn dismiss(&mut self, why: Cease, goes: impl Fn(&IpAddr, &Peer) -> bool) {
        let (gone, staying): (BTreeMap<_, _>, BTreeMap<_, _>) =
            std::mem::take(&mut self.current).into_iter().partition(|(address, peer)| goes(address, peer));
        self.current = staying;
        for (address, peer) in &gone {
            let met = self.met.remove(address) || lock(&peer.observed).counters.established > 0;
            if met && why == Cease::OtherConfigurationChange {
                self.met.insert(*address);
            }
        }
        self.leaving.extend(
            gone.into_iter()
                .map(|(address, peer)| (address, peer.stop(Farewell::Cease(Notification::cease(why))))),
        );
    }

    /// Forgets those that have ended: dynamic ones do by themselves.
    fn forget_gone(&mut self) {
        self.leaving.retain(|_, task| !task.is_finished());
        self.current.retain(|_, peer| peer.range.is_none() || !peer.task.is_finished());
    }

    /// Starts a peer's task, which begins once the one before for that address has ended.
    fn spawn(&mut self, config: PeerConfig, range: Option<&DynamicPeers>) {
        let (stop, stopped) = oneshot::channel();
        // As many as a peer could have in flight; more are dropped.
        let (accepted, connections) = mpsc::channel(4);
        let observed = Arc::new(Mutex::new(Observed::new()));
        let (change, changes) = watch::channel(config.clone());
        let inputs = Inputs { stop: stopped, changes, accepted: connections };
        let linger = range.map(|range| range.linger);
        let address = config.address;
        let again = self.met.contains(&address);
        let (shared, observer) = (Arc::clone(&self.shared), Arc::clone(&observed));
        let task = PeerTask::new(shared, config.clone(), linger, again, inputs, observer);
        let before = self.leaving.remove(&address);
        let task = self.runtime.spawn(async move {
            if let Some(before) = before {
                // However it ended, it has ended.
                let _ = before.await;
            }
            task.run().await;
        });
        let range = range.map(|range| range.prefix);
        self.current.insert(address, Peer { config, range, observed, change, stop, accepted, task });
    }

    /// Hands a connection to the peer that it comes from; false where there is none, or it has no use for it.
    pub(super) fn accept(&mut self, stream: TcpStream, from: SocketAddr) -> bool {
        self.forget_gone();
        let address = from.ip();
        if !self.current.contains_key(&address) {
            self.join(address);
        }
        let peer = self
            .current
            .get(&address)
            .filter(|peer| socket::is_behind(&stream, peer.config.interface.as_deref(), from));
        peer.is_some_and(|peer| peer.accepted.try_send(stream).is_ok())
    }

    /// Takes in a peer from a range, if it is of one, and there is room.
    fn join(&mut self, address: IpAddr) {
        let Some(range) = smallest(&self.ranges, address) else { return };
        let config = range.config.clone();
        let members = || self.current.iter().filter(|(_, peer)| peer.range == Some(config.prefix));
        if members().count() >= config.limit {
            let down = members().filter_map(|(address, peer)| Some((peer.down_since()?, *address)));
            let Some((_, longest)) = down.min() else {
                self.refuse(&config, address);
                return;
            };
            self.dismiss(Cease::PeerDeconfigured, |address, _| *address == longest);
        }
        tracing::info!(peer = %address, range = %config.prefix, "new peer of a range");
        self.spawn(config.peer(address), Some(&config));
    }

    fn refuse(&mut self, DynamicPeers { prefix, limit, .. }: &DynamicPeers, peer: IpAddr) {
        let Some(range) = self.ranges.get_mut(prefix) else { return };
        range.refused += 1;
        // Once: who is refused tries again and again.
        if range.refused == 1 {
            tracing::warn!(
                %peer, range = %prefix, limit,
                "connection refused: the range has as many peers as it may have; raise its limit, or look who they are"
            );
        }
    }

    /// Whether every Established session has been written all changes up to `target`.
    pub(super) fn are_flushed(&self, target: u64) -> bool {
        self.current.values().all(|peer| peer.is_flushed(target))
    }

    pub(super) fn status(&mut self) -> SpeakerStatus {
        self.forget_gone();
        let rib = self.shared.rib();
        let ranges = self.ranges.values().map(|range| DynamicPeersStatus {
            prefix: range.config.prefix,
            limit: range.config.limit,
            peers: self.current.values().filter(|peer| peer.range == Some(range.config.prefix)).count(),
            refused: range.refused,
        });
        let peers = self.current.values();
        SpeakerStatus {
            asn: self.shared.config.asn,
            router_id: self.shared.config.router_id,
            routes: rib.len(),
            reflected: rib.reflected(),
            peers: peers
                .map(|peer| PeerStatus::new(&peer.config, peer.range, &lock(&peer.observed), &rib))
                .collect(),
            dynamic: ranges.collect(),
        }
    }

    /// Ends every session, and the listeners; the tasks that are to be waited for.
    pub(super) fn stop(&mut self, farewell: &Farewell) -> Vec<JoinHandle<()>> {
        self.listeners = Listeners::new(Vec::new());
        let current = std::mem::take(&mut self.current).into_values().map(|peer| peer.stop(farewell.clone()));
        let leaving = std::mem::take(&mut self.leaving).into_values();
        current.chain(leaving).collect()
    }
}

impl Peer {
    fn stop(self, farewell: Farewell) -> JoinHandle<()> {
        // A task that has ended needs no telling.
        let _ = self.stop.send(farewell);
        self.task
    }

    /// Takes a configuration that its session survives.
    fn change(&mut self, config: PeerConfig) {
        if self.config != config {
            self.config = config.clone();
            self.change.send_replace(config);
        }
    }

    /// Since when there is no connection.
    fn down_since(&self) -> Option<std::time::SystemTime> {
        let observed = lock(&self.observed);
        (observed.state < State::OpenSent).then_some(observed.since)
    }

    fn is_flushed(&self, target: u64) -> bool {
        lock(&self.observed).session.as_ref().is_none_or(|session| session.flushed >= Some(target))
    }
}

/// The smallest range that `address` is in.
fn smallest(ranges: &BTreeMap<IpNet, Range>, address: IpAddr) -> Option<&Range> {
    ranges
        .values()
        .filter(|range| range.config.prefix.contains(&address))
        .max_by_key(|range| range.config.prefix.prefix_len())
}
