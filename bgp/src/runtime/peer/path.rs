//! BFD beside a peer's session (RFC 5882).

use super::PeerTask;
use crate::bfd::State;
use crate::runtime::bfd::BfdPeer;
use crate::session::Event;

impl PeerTask {
    /// Has there be BFD as configured.
    pub(super) fn watch_path(&mut self) {
        let Some(bfd) = self.config.bfd.clone() else {
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
            Some(path) if *path.peer() == peer => path.reconfigure(bfd.session, bfd.key),
            path => {
                // The one before goes first: there may be one with each peer.
                *path = None;
                *path = self.shared.bfd().map(|engine| engine.open(peer, bfd.session, bfd.key));
            }
        }
    }

    /// The path is another than before: where it does not work, neither does the session. Of a peer whose connection is lost already
    /// it says nothing new, unless its BFD outlives its control plane (RFC 5882 §4.3.2): then what is kept of its routes leads nowhere.
    pub(super) fn path_changed(&mut self) {
        let Some(status) = self.path.as_mut().map(|path| path.look()) else { return };
        let was_up =
            self.observed().bfd.replace(status.clone()).is_some_and(|before| before.state == State::Up);
        if !(was_up && status.is_failure()) {
            return;
        }
        if self.session.established().is_some() {
            self.event(Event::PathDown(status.diagnostic));
        } else if status.remote_independent {
            self.forget_learnt();
        }
    }
}
