//! The edge: sockets, tasks and the clock.
//!
//! ```text
//!   Speaker ── set_peers, set_dynamic_peers ──► Peers ◄── connections ── listener (one for each address)
//!                                                 └──► PeerTask (one for each peer)
//!           ── update ─────► Rib ── changed ──► every PeerTask
//!           ── set_reflector ──► Learnt ──► Rib (what is passed on)
//!           ◄─ flushed ──── progress ─────────── every PeerTask
//!           ── set_bmp_stations ──► Stations ◄── Monitor ── what all of these do
//! ```
//!
//! The only module that reads the clock, opens sockets and spawns tasks.

mod bfd;
mod bmp;
mod config;
mod dynamic;
mod learning;
mod listeners;
mod md5;
mod option;
mod peer;
mod peers;
mod routers;
mod shared;
mod socket;
mod status;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use ipnet::IpNet;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::task::JoinSet;

pub use bfd::{Bfd, BfdPeer, BfdSession, BfdStatus, PeerBfd};
pub use bmp::{BmpCounters, BmpStation, BmpStationStatus, BmpTables};
pub use config::{GracefulRestart, PeerConfig, Shutdown, SpeakerConfig, StartError};
pub use dynamic::{DynamicPeers, DynamicPeersStatus};
pub use learning::{LearntRoutes, LearntStatus};
pub use md5::{Password, PasswordLength};
pub use routers::{LinkStatus, RouterDiscovery};
pub use status::{Counters, FamilyStatus, LastError, PeerStatus, SessionStatus, SpeakerStatus};

use crate::rib::{Learnt, RouteChanges};
use crate::session::Farewell;
use crate::wire::{Cease, Notification};
use bmp::Stations;
use listeners::Listeners;
use peers::Peers;
use shared::{Shared, lock};

/// A running speaker. Dropping it closes every connection without a NOTIFICATION.
#[derive(Debug)]
pub struct Speaker {
    shared: Arc<Shared>,
    peers: Arc<Mutex<Peers>>,
    stations: Mutex<Stations>,
    runtime: Handle,
    accepting: JoinSet<()>,
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
        let mut sockets = Vec::new();
        for &address in config.listen.iter().flatten() {
            let socket = socket::listen(address).map_err(|source| StartError::Listen { address, source })?;
            sockets.push(Arc::new(socket));
        }
        let runtime = Handle::current();
        let shared = Arc::new(Shared::new(config));
        let peers = Peers::new(Arc::clone(&shared), Listeners::new(sockets.clone()), runtime.clone());
        let peers = Arc::new(Mutex::new(peers));
        let mut accepting = JoinSet::new();
        for socket in sockets {
            accepting.spawn(accept(socket, Arc::clone(&peers)));
        }
        if let Some(graceful) = shared.config.graceful_restart.filter(|_| shared.config.restarting) {
            accepting.spawn(stop_waiting(graceful.restart_time, Arc::clone(&shared)));
        }
        Ok(Speaker { shared, peers, stations: Mutex::default(), runtime, accepting })
    }

    /// Makes `peers` the peers: adds, removes (CEASE/peer de-configured) and changes. Of two with one address the last counts.
    ///
    /// Sessions go on through changes of port, of who connects, retries, delays, send hold time, of who is a client, of the export
    /// policy, by which what differs is announced again or withdrawn, of BFD, and of next hops, with which everything of ours is announced
    /// again; a new hold time is that of the next session. Any other change ends the peer's session
    /// (CEASE/other configuration change), and another begins.
    pub fn set_peers(&self, peers: Vec<PeerConfig>) {
        lock(&self.peers).set(peers);
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

    /// Makes `ranges` the ranges that further peers may connect from. Of those that have, the ones keep their sessions
    /// that are still of a range, and for which it says the same. Of two with one prefix the last counts.
    pub fn set_dynamic_peers(&self, ranges: Vec<DynamicPeers>) {
        lock(&self.peers).set_dynamic(ranges);
    }

    /// Changes what is announced. Returns at once; changes reach each peer in this order, though only the last
    /// one to a prefix need be seen.
    pub fn update(&self, changes: RouteChanges) {
        let announced = changes.announce.iter().map(|(prefix, _)| prefix);
        let touched: Vec<IpNet> = announced.chain(&changes.withdraw).map(IpNet::trunc).collect();
        let learnt = self.shared.learnt();
        let mut rib = self.shared.rib();
        rib.apply(changes);
        self.shared.monitor.loc_rib_changed(&rib, &learnt, touched.iter());
        drop((rib, learnt));
        self.shared.changed.send_replace(());
    }

    /// Waits until every peer that is Established has been written all updates made before this call; false
    /// if that took longer than `limit`.
    pub async fn flushed(&self, limit: Duration) -> bool {
        let target = self.shared.rib().sequence();
        let mut progress = self.shared.progress.subscribe();
        let all = async {
            while !lock(&self.peers).are_flushed(target) {
                if progress.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::time::timeout(limit, all).await.is_ok()
    }

    /// After a restart: all routes are in, peers may drop what they kept of the earlier life.
    pub fn initial_routes_complete(&self) {
        self.shared.learn(|_| self.shared.rib().initial_routes_complete());
        self.shared.changed.send_replace(());
    }

    /// What peers, sessions and routes are like now.
    pub fn status(&self) -> SpeakerStatus {
        lock(&self.peers).status()
    }

    /// Ends every session as `how` says, the listeners, and what monitoring stations are told. Takes two seconds at most.
    pub async fn shutdown(mut self, how: Shutdown) {
        self.accepting.shutdown().await;
        let farewell = match how {
            Shutdown::GracefulRestart => Farewell::Silent,
            Shutdown::Cease => Farewell::Cease(Notification::cease(Cease::AdministrativeShutdown)),
            Shutdown::CeaseSaying(message) => Farewell::Cease(Notification::shutdown(&message)),
        };
        let stopped = lock(&self.peers).stop(&farewell);
        for task in stopped {
            // However it ended, it has ended.
            let _ = task.await;
        }
        // After the sessions: to a peer that still has one, the end of BFD may be a failure, whatever it is told, which would cost the routes
        // that it keeps over a restart.
        self.shared.leave_bfd().await;
        // Last, so that they are told how sessions ended.
        let stations = lock(&self.stations).stop();
        for task in stations {
            let _ = task.await;
        }
    }
}

/// Ends the wait for what peers tell after a restart: they do not keep longer what they were told before it
/// (Selection_Deferral_Timer, RFC 4724 §4.1).
async fn stop_waiting(after: Duration, shared: Arc<Shared>) {
    tokio::time::sleep(after).await;
    shared.learn(Learnt::stop_waiting);
}

/// Hands each connection to the peer that it comes from.
async fn accept(listener: Arc<TcpListener>, peers: Arc<Mutex<Peers>>) {
    loop {
        match listener.accept().await {
            Ok((stream, from)) => {
                if !lock(&peers).accept(stream, from) {
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
