//! The edge: sockets, tasks and the clock.

mod config;
mod status;

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

pub use config::{GracefulRestart, PeerConfig, Shutdown, SpeakerConfig, StartError};
pub use status::{Counters, FamilyStatus, LastError, PeerStatus, SessionStatus, SpeakerStatus};

use crate::RouteChanges;

/// A running speaker. Dropping it closes every connection without a NOTIFICATION.
#[derive(Debug)]
pub struct Speaker {
    config: SpeakerConfig,
    peers: Mutex<Vec<PeerConfig>>,
}

impl Speaker {
    /// Starts to listen, within the tokio runtime it is called from. Peers and routes come later, in any order.
    #[expect(clippy::unused_async, reason = "the signature others build against")]
    pub async fn start(config: SpeakerConfig) -> Result<Speaker, StartError> {
        Ok(Speaker { config, peers: Mutex::default() })
    }

    /// Makes `peers` the peers: adds, removes (CEASE/peer de-configured) and changes; a peer whose configuration is
    /// the same keeps its session. Of two with one address the last counts.
    pub fn set_peers(&self, peers: Vec<PeerConfig>) {
        *self.peers.lock().unwrap_or_else(PoisonError::into_inner) = peers;
    }

    /// Changes what is announced. Returns at once; changes reach each peer in this order, though only the last
    /// one to a prefix need be seen.
    pub fn update(&self, changes: RouteChanges) {
        drop(changes);
    }

    /// Waits until every peer that is Established has been written all updates made before this call; false
    /// if that took longer than `limit`.
    pub async fn flushed(&self, limit: Duration) -> bool {
        tokio::time::sleep(limit).await;
        true
    }

    /// After a restart: all routes are in, peers may drop what they kept of the earlier life.
    pub fn initial_routes_complete(&self) {}

    /// What peers, sessions and routes are like now.
    pub fn status(&self) -> SpeakerStatus {
        SpeakerStatus { asn: self.config.asn, router_id: self.config.router_id, routes: 0, peers: Vec::new() }
    }

    /// Ends every session as `how` says, and the listeners.
    #[expect(clippy::unused_async, reason = "the signature others build against")]
    pub async fn shutdown(self, how: Shutdown) {
        drop((self, how));
    }
}
