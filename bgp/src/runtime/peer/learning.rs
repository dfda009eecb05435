//! What a peer's task does with what the peer announces.

use std::net::IpAddr;
use std::time::Instant;

use super::PeerTask;
use crate::Family;
use crate::rib::{LimitExceeded, Source};
use crate::session::{Down, Event, Negotiated};
use crate::wire::Update;
use crate::wire::{RefreshKind, pack::write_route_refresh};

impl PeerTask {
    /// The session is Established.
    pub(super) fn learn_from(&mut self, local: IpAddr, negotiated: &Negotiated) {
        let ibgp = negotiated.asn == self.shared.config.asn;
        let source = Source {
            peer: self.config.address,
            router_id: negotiated.router_id,
            asn: negotiated.asn,
            ibgp,
            role: self.config.role.filter(|_| !ibgp).map(|offer| offer.role),
            local,
            extended_next_hop: negotiated.extended_next_hop,
            client: self.config.client,
        };
        let mut learnt = self.shared.learnt();
        learnt.peer_up(source, negotiated, Instant::now());
        self.stale_until = learnt.deadline(source.peer);
        self.shared.follow(learnt);
    }

    /// The session, or an attempt at one, is over. One that was merely lost may be of a peer that restarts (RFC 4724 §4.2); a
    /// NOTIFICATION, either way, means that it does not.
    pub(super) fn lose_learnt(&mut self, reason: &Down) {
        let helps = self.shared.config.graceful_restart.is_some() && *reason == Down::ConnectionClosed;
        let observed = self.observed();
        let negotiated = observed.session.as_ref().filter(|_| helps).map(|session| &session.negotiated);
        let graceful = negotiated.and_then(|negotiated| negotiated.graceful_restart.as_ref());
        let mut learnt = self.shared.learnt();
        learnt.peer_down(self.config.address, graceful, Instant::now());
        drop(observed);
        self.stale_until = learnt.deadline(self.config.address);
        self.shared.follow(learnt);
    }

    /// Takes in what an UPDATE says; tells if that is too much.
    pub(super) fn learn(&self, update: &Update) -> Option<LimitExceeded> {
        let mut learnt = self.shared.learnt();
        let received = learnt.receive(self.config.address, update);
        self.shared.follow(learnt);
        received.err()
    }

    /// All of a family comes again from here on (BoRR).
    pub(super) fn hear_again(&mut self, family: Family) {
        let mut learnt = self.shared.learnt();
        learnt.refresh_begins(self.config.address, family, Instant::now());
        self.stale_until = learnt.deadline(self.config.address);
    }

    /// All of it has come (EoRR).
    pub(super) fn heard_again(&mut self, family: Family) {
        let mut learnt = self.shared.learnt();
        learnt.refresh_ends(self.config.address, family);
        self.shared.follow(learnt);
    }

    /// The task ends: nobody will hear of the peer.
    pub(super) fn forget_learnt(&self) {
        let mut learnt = self.shared.learnt();
        learnt.peer_gone(self.config.address);
        self.shared.follow(learnt);
    }

    /// The peer is a client, or is none any more.
    pub(super) fn set_client(&self) {
        let (peer, client) = (self.config.address, self.config.client);
        let mut learnt = self.shared.learnt();
        self.shared.rib().set_client(peer, client);
        learnt.set_client(peer, client);
        self.shared.follow(learnt);
    }

    /// Ends the session of a peer that announces too much.
    pub(super) fn exceeds(&mut self, exceeded: LimitExceeded) {
        let LimitExceeded { limit, family, retry_after } = exceeded;
        self.torn_down = Some(limit);
        self.event(Event::TooManyPrefixes { limit: limit.limit, family, retry_after });
    }

    /// The import policy may have changed: a session that was without one hears everything again, and one that is
    /// down for a limit begins anew under another.
    pub(super) fn policy_changed(&mut self) {
        let peer = self.config.address;
        if self.torn_down.is_some() && self.torn_down != self.shared.learnt().limit(peer) {
            self.torn_down = None;
            self.event(Event::ManualStart);
        }
        let Some((direction, negotiated)) = self.session.established() else { return };
        let ibgp = negotiated.asn == self.shared.config.asn;
        if !self.shared.learnt().awaits_session(peer, ibgp) {
            return;
        }
        let negotiated = negotiated.clone();
        let Some(connection) = self.connection(direction) else { return };
        if negotiated.route_refresh {
            for family in negotiated.families.iter() {
                write_route_refresh(RefreshKind::Request, family, &mut connection.output);
            }
        } else {
            tracing::warn!(%peer, "it does not take ROUTE-REFRESH: its routes are known from its next session on");
        }
        let local = connection.local.ip();
        self.learn_from(local, &negotiated);
        self.write(direction);
    }

    /// Drops stale routes whose time is over.
    pub(super) fn expire_learnt(&mut self) {
        let mut learnt = self.shared.learnt();
        learnt.expire(self.config.address, Instant::now());
        self.stale_until = learnt.deadline(self.config.address);
        self.shared.follow(learnt);
    }
}
