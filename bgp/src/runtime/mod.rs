//! The edge: sockets, tasks and the clock.
//!
//! ```text
//!   Speaker ── set_peers ──► PeerTask (one for each peer) ◄── connections ── listener (one for each address)
//!           ── update ─────► Rib ── changed ──► every PeerTask
//!           ◄─ flushed ──── progress ─────────── every PeerTask
//!           ── set_bmp_stations ──► Stations ◄── Monitor ── what all of these do
//! ```
//!
//! The only module that reads the clock, opens sockets and spawns tasks.

mod bmp;
mod config;
mod learning;
mod md5;
mod option;
mod peer;
mod shared;
mod socket;
mod status;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};

pub use bmp::{BmpCounters, BmpStation, BmpStationStatus};
pub use config::{GracefulRestart, PeerConfig, Shutdown, SpeakerConfig, StartError};
pub use learning::LearntStatus;
pub use md5::{Password, PasswordLength};
pub use status::{Counters, FamilyStatus, LastError, PeerStatus, SessionStatus, SpeakerStatus};

use crate::rib::RouteChanges;
use crate::session::Farewell;
use crate::wire::Cease;
use bmp::Stations;
use peer::{Inputs, PeerTask};
use shared::{Observed, Shared, lock};

/// A running speaker. Dropping it closes every connection without a NOTIFICATION.
#[derive(Debug)]
pub struct Speaker {
    shared: Arc<Shared>,
    peers: Arc<Mutex<Peers>>,
    stations: Mutex<Stations>,
    listeners: Vec<Arc<TcpListener>>,
    accepting: JoinSet<()>,
    runtime: Handle,
}

/// The tasks of peers by address.
#[derive(Debug, Default)]
struct Peers {
    current: BTreeMap<IpAddr, Peer>,
    /// Removed ones that are not done: the next task for the address waits for them, since they share what the RIB
    /// knows of it.
    leaving: BTreeMap<IpAddr, JoinHandle<()>>,
}

/// A peer's task, seen from outside.
#[derive(Debug)]
struct Peer {
    config: PeerConfig,
    observed: Arc<Mutex<Observed>>,
    stop: oneshot::Sender<Farewell>,
    accepted: mpsc::Sender<TcpStream>,
    task: JoinHandle<()>,
}

impl Speaker {
    /// Starts to listen, within the tokio runtime it is called from. Peers and routes come later, in any order.
    ///
    /// # Errors
    /// A listening socket cannot be made, or a field of `config` is out of range. An address of a family that the
    /// kernel does not have is no error.
    #[expect(clippy::unused_async, reason = "sockets need the runtime that an async caller is sure to have")]
    pub async fn start(config: SpeakerConfig) -> Result<Speaker, StartError> {
        config.check()?;
        let peers = Arc::new(Mutex::new(Peers::default()));
        let mut listeners = Vec::new();
        let mut accepting = JoinSet::new();
        for &address in config.listen.iter().flatten() {
            let listener =
                socket::listen(address).map_err(|source| StartError::Listen { address, source })?;
            let listener = Arc::new(listener);
            accepting.spawn(accept(Arc::clone(&listener), Arc::clone(&peers)));
            listeners.push(listener);
        }
        let runtime = Handle::current();
        let shared = Arc::new(Shared::new(config));
        Ok(Speaker { shared, peers, stations: Mutex::default(), listeners, accepting, runtime })
    }

    /// Makes `peers` the peers: adds, removes (CEASE/peer de-configured) and changes; a peer whose configuration is
    /// the same keeps its session. Of two with one address the last counts.
    pub fn set_peers(&self, peers: Vec<PeerConfig>) {
        let wanted: BTreeMap<IpAddr, PeerConfig> = peers.into_iter().map(|p| (p.address, p)).collect();
        let mut peers = lock(&self.peers);
        let Peers { current, leaving } = &mut *peers;
        leaving.retain(|_, task| !task.is_finished());
        let (staying, gone): (BTreeMap<_, _>, BTreeMap<_, _>) =
            std::mem::take(current).into_iter().partition(|(a, _)| wanted.contains_key(a));
        *current = staying;
        for (address, peer) in gone {
            self.expect_password(address, None, peer.config.password.as_ref());
            leaving.insert(address, peer.stop(Farewell::Cease(Cease::PeerDeconfigured)));
        }
        for (address, config) in wanted {
            let known = current.remove(&address);
            let expected = known.as_ref().and_then(|known| known.config.password.clone());
            // Before the peer's task is there to take connections.
            self.expect_password(address, config.password.as_ref(), expected.as_ref());
            let before = match known {
                Some(same) if same.config == config => {
                    current.insert(address, same);
                    continue;
                }
                Some(changed) => Some(changed.stop(Farewell::Cease(Cease::OtherConfigurationChange))),
                None => leaving.remove(&address),
            };
            current.insert(address, self.spawn(config, before));
        }
    }

    /// Makes `stations` the monitoring stations that are told of all this by BMP; one whose configuration is the same keeps
    /// its connection.
    pub fn set_bmp_stations(&self, stations: Vec<BmpStation>) {
        lock(&self.stations).set(stations, &self.shared, &self.runtime);
    }

    /// What monitoring stations are like now, by address.
    pub fn bmp_stations(&self) -> Vec<BmpStationStatus> {
        lock(&self.stations).status()
    }

    /// Makes the listeners expect `password` of a peer, of which they expect `before` now.
    fn expect_password(&self, peer: IpAddr, password: Option<&Password>, before: Option<&Password>) {
        if password == before {
            return;
        }
        for listener in &self.listeners {
            if let Err(error) = socket::expect_password(listener, peer, password) {
                // Safe: what is accepted nevertheless is given the key too, or closed.
                tracing::warn!(%peer, "listener: {error}");
            }
        }
    }

    /// Starts a peer's task, which begins once `before` has ended.
    fn spawn(&self, config: PeerConfig, before: Option<JoinHandle<()>>) -> Peer {
        let (stop, stopped) = oneshot::channel();
        // As many as a peer could have in flight; more are dropped.
        let (accepted, connections) = mpsc::channel(4);
        let observed = Arc::new(Mutex::new(Observed::new()));
        let inputs = Inputs { stop: stopped, accepted: connections };
        let task = PeerTask::new(Arc::clone(&self.shared), config.clone(), inputs, Arc::clone(&observed));
        let task = self.runtime.spawn(async move {
            if let Some(before) = before {
                // However it ended, it has ended.
                let _ = before.await;
            }
            task.run().await;
        });
        Peer { config, observed, stop, accepted, task }
    }

    /// Changes what is announced. Returns at once; changes reach each peer in this order, though only the last
    /// one to a prefix need be seen.
    pub fn update(&self, changes: RouteChanges) {
        let mut rib = self.shared.rib();
        self.shared.monitor.loc_rib_changes(&changes);
        rib.apply(changes);
        drop(rib);
        self.shared.changed.send_replace(());
    }

    /// Waits until every peer that is Established has been written all updates made before this call; false
    /// if that took longer than `limit`.
    pub async fn flushed(&self, limit: Duration) -> bool {
        let target = self.shared.rib().sequence();
        let mut progress = self.shared.progress.subscribe();
        let all = async {
            while !lock(&self.peers).current.values().all(|peer| peer.is_flushed(target)) {
                if progress.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::time::timeout(limit, all).await.is_ok()
    }

    /// After a restart: all routes are in, peers may drop what they kept of the earlier life.
    pub fn initial_routes_complete(&self) {
        let mut rib = self.shared.rib();
        if !rib.is_complete() {
            rib.initial_routes_complete();
            self.shared.monitor.loc_rib_complete();
        }
        drop(rib);
        self.shared.changed.send_replace(());
    }

    /// What peers, sessions and routes are like now.
    pub fn status(&self) -> SpeakerStatus {
        let peers = lock(&self.peers);
        let rib = self.shared.rib();
        SpeakerStatus {
            asn: self.shared.config.asn,
            router_id: self.shared.config.router_id,
            routes: rib.len(),
            peers: peers
                .current
                .values()
                .map(|peer| PeerStatus::new(&peer.config, &lock(&peer.observed), &rib))
                .collect(),
        }
    }

    /// Ends every session as `how` says, the listeners, and what monitoring stations are told. Takes two seconds at most.
    pub async fn shutdown(mut self, how: Shutdown) {
        self.accepting.shutdown().await;
        self.listeners.clear();
        let farewell = match how {
            Shutdown::GracefulRestart => Farewell::Silent,
            Shutdown::Cease => Farewell::Cease(Cease::AdministrativeShutdown),
        };
        let peers = std::mem::take(&mut *lock(&self.peers));
        let stopped: Vec<JoinHandle<()>> =
            peers.current.into_values().map(|peer| peer.stop(farewell)).collect();
        for task in stopped.into_iter().chain(peers.leaving.into_values()) {
            // However it ended, it has ended.
            let _ = task.await;
        }
        // Last, so that they are told how sessions ended.
        let stations = lock(&self.stations).stop();
        for task in stations {
            let _ = task.await;
        }
    }
}

impl Peer {
    fn stop(self, farewell: Farewell) -> JoinHandle<()> {
        // A task that has ended needs no telling.
        let _ = self.stop.send(farewell);
        self.task
    }

    fn is_flushed(&self, target: u64) -> bool {
        lock(&self.observed).session.as_ref().is_none_or(|session| session.flushed >= Some(target))
    }
}

/// Hands each connection to the peer that it comes from.
async fn accept(listener: Arc<TcpListener>, peers: Arc<Mutex<Peers>>) {
    loop {
        match listener.accept().await {
            Ok((stream, from)) => {
                let taken = match lock(&peers).current.get(&from.ip()) {
                    Some(peer) => peer.accepted.try_send(stream).is_ok(),
                    None => false,
                };
                if !taken {
                    tracing::debug!(%from, "connection refused: not a peer");
                }
            }
            Err(error) => {
                // Out of file descriptors, most likely; trying again at once would not help.
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}
