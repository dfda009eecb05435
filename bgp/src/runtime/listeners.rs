//! What the listening sockets are told of those who may connect.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;
use tokio::net::TcpListener;

use super::config::PeerConfig;
use super::md5::Password;
use super::socket;

/// The listening sockets.
#[derive(Debug)]
pub(super) struct Listeners {
    sockets: Vec<Arc<TcpListener>>,
    /// As told last.
    passwords: BTreeMap<IpNet, Password>,
}

impl Listeners {
    pub(super) fn new(sockets: Vec<Arc<TcpListener>>) -> Listeners {
        Listeners { sockets, passwords: BTreeMap::new() }
    }

    /// Makes them expect these peers: their passwords, and how far away they may be where that is the same for all.
    pub(super) fn expect(&mut self, peers: &[(IpNet, &PeerConfig)]) {
        let passwords: BTreeMap<IpNet, Password> =
            peers.iter().filter_map(|(prefix, peer)| Some((*prefix, peer.password.clone()?))).collect();
        let before = std::mem::replace(&mut self.passwords, passwords);
        for prefix in before.keys().filter(|prefix| !self.passwords.contains_key(*prefix)) {
            self.expect_password(*prefix, None);
        }
        for (prefix, password) in &self.passwords {
            if before.get(prefix) != Some(password) {
                self.expect_password(*prefix, Some(password));
            }
        }
        for socket in &self.sockets {
            let ipv4 = socket.local_addr().is_ok_and(|address| address.is_ipv4());
            let those = peers.iter().filter(|(prefix, _)| prefix.addr().is_ipv4() == ipv4);
            let hops: Option<Vec<u8>> = those.map(|(_, peer)| peer.ttl_security).collect();
            if let Err(error) = socket::expect_within(socket, hops.and_then(|hops| hops.into_iter().max())) {
                // Safe: each connection is told too.
                tracing::warn!("listener: {error}");
            }
        }
    }

    fn expect_password(&self, peers: IpNet, password: Option<&Password>) {
        for socket in &self.sockets {
            if let Err(error) = socket::expect_password(socket, peers, password) {
                // Safe: what is accepted nevertheless is given the key too, or closed.
                tracing::warn!(%peers, "listener: {error}");
            }
        }
    }
}
