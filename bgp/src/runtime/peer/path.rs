//! BFD beside a peer's session (RFC 5882).

use super::PeerTask;
use crate::runtime::bfd::BfdPeer;
use crate::session::Event;

impl PeerTask {
    /// Has there be BFD as configured. With a peer from a range only once there has been a session: to connect is all that it takes to be
    /// one, from as many addresses as somebody likes.
    pub(super) fn watch_path(&mut self) {
        let met = self.linger.is_none() || self.observed().counters.established > 0;
        let Some(bfd) = self.config.bfd.clone().filter(|_| met) else {
            self.path = None;
            self.observed().bfd = None;
            return;
        };
        let peer = BfdPeer {
            address: self.config.address,
            interface: self.config.interface.clone(),
            local_address: self.config.local_address,
            multihop: bfd.multihop,
        };
        match &mut self.path {
            Some(path) if *path.peer() == peer => path.reconfigure(bfd.session, bfd.keys),
            path => {
                // The one before goes first: there may be one with each peer.
                *path = None;
                *path = self.shared.bfd().map(|engine| engine.open(peer, bfd.session, bfd.keys));
                let status = self.path.as_mut().map(|path| path.look());
                self.observed().bfd = status;
            }
        }
    }

    /// The path is another than before: where it has failed, so has the session. Of a peer whose connection is lost already, and which
    /// may be restarting, it says nothing new: its BFD went with it. That it does not, a peer says by the C bit (RFC 5882 §4.3): then what
    /// is kept of its routes leads nowhere. Our own bit, never set, is for what the peer may conclude of us.
    pub(super) fn path_changed(&mut self) {
        let Some(status) = self.path.as_mut().map(|path| path.look()) else { return };
        let (failures, diagnostic, independent) =
            (status.failures, status.diagnostic, status.remote_independent);
        let before = self.observed().bfd.replace(status).map_or(0, |before| before.failures);
        if failures == before {
            return;
        }
        if self.session.established().is_some() {
            self.event(Event::PathDown(diagnostic));
        } else if independent {
            self.forget_learnt();
        }
    }
}
