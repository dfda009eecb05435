//! What a peer's task does with what the peer announces.

use std::net::SocketAddr;
use std::time::Instant;

use super::PeerTask;
use crate::Family;
use crate::rib::{LimitExceeded, Source};
use crate::session::{Down, Event, Negotiated};
use crate::wire::Update;
use crate::wire::{RefreshKind, pack::write_route_refresh};

impl PeerTask {
    /// The session is Established.
    pub(super) fn learn_from(&mut self, local: SocketAddr, negotiated: &Negotiated) {
        let ibgp = negotiated.asn == self.shared.config.asn;
        let source = Source {
            peer: self.config.address,
            router_id: negotiated.router_id,
            asn: negotiated.asn,
            ibgp,
            role: self.config.role.filter(|_| !ibgp).map(|offer| offer.role),
            local: local.ip(),
            extended_next_hop: negotiated.extended_next_hop,
            client: self.config.client,
            // The kernel gives link-local addresses alone a scope.
            interface: match local {
                SocketAddr::V6(local) => Some(local.scope_id()).filter(|scope| *scope != 0),
                SocketAddr::V4(_) => None,
            },
        };
        self.stale_until = self.shared.learn(|learnt| {
            learnt.peer_up(source, negotiated, Instant::now());
            learnt.deadline(source.peer)
        });
    }

    /// The session, or an attempt at one, is over. The peer may be one that restarts (RFC 4724 §4.2, RFC 8538 §4.1).
    pub(super) fn lose_learnt(&mut self, reason: &Down) {
        let helps = self.shared.config.graceful_restart.is_some();
        let observed = self.observed();
        let negotiated = observed.session.as_ref().map(|session| &session.negotiated);
        let restarting =
            negotiated.filter(|negotiated| helps && reason.may_be_restart(negotiated.graceful_notification));
        let restarting = restarting.cloned();
        drop(observed);
        let peer = self.config.address;
        self.stale_until = self.shared.learn(|learnt| {
            learnt.peer_down(peer, restarting.as_ref(), Instant::now());
            learnt.deadline(peer)
        });
    }

    /// Takes in what UPDATEs say, those that came together at once: what follows from a change to a prefix follows once. Tells if that
    /// is too much.
    pub(super) fn learn(&self, updates: &mut Vec<Update>) -> Option<LimitExceeded> {
        let updates = std::mem::take(updates);
        if updates.is_empty() {
            return None;
        }
        let peer = self.config.address;
        let received = self.shared.learn(|learnt| {
            learnt.keeps(peer).then(|| updates.iter().try_for_each(|update| learnt.receive(peer, update)))
        });
        if received.is_none() {
            updates.iter().for_each(|update| self.shared.monitor.passed(peer, update));
        }
        received.and_then(Result::err)
    }

    /// All of a family comes again from here on (BoRR).
    pub(super) fn hear_again(&mut self, family: Family) {
        let peer = self.config.address;
        self.stale_until = self.shared.learn(|learnt| {
            learnt.refresh_begins(peer, family, Instant::now());
            learnt.deadline(peer)
        });
    }

    /// All of it has come (EoRR).
    pub(super) fn heard_again(&mut self, family: Family) {
        let peer = self.config.address;
        let kept = self.shared.learn(|learnt| {
            learnt.refresh_ends(peer, family);
            learnt.keeps(peer)
        });
        if !kept {
            self.shared.monitor.passed_all(peer, family);
        }
    }

    /// The task ends: nobody will hear of the peer.
    pub(super) fn forget_learnt(&self) {
        self.shared.learn(|learnt| learnt.peer_gone(self.config.address));
    }

    /// The peer is a client, or is none any more.
    pub(super) fn set_client(&self) {
        let (peer, client) = (self.config.address, self.config.client);
        self.shared.rib().set_client(peer, client);
        self.shared.learn(|learnt| learnt.set_client(peer, client));
    }

    /// Ends the session of a peer that announces too much.
    pub(super) fn exceeds(&mut self, exceeded: LimitExceeded) {
        let LimitExceeded { limit, family, retry_after } = exceeded;
        self.torn_down = Some(limit);
        self.event(Event::TooManyPrefixes { limit: limit.limit, family, retry_after });
    }

    /// The import policy may have changed: a session that was without one hears everything again, and one that is
    /// down for a limit begins anew under another. Or there is a monitoring station that is to be told what the peer announces, and
    /// nothing of it is kept.
    pub(super) fn policy_changed(&mut self) {
        let peer = self.config.address;
        if self.torn_down.is_some() && self.torn_down != self.shared.learnt().limit(peer) {
            self.torn_down = None;
            self.event(Event::ManualStart);
        }
        let Some((direction, negotiated)) = self.session.established() else { return };
        let ibgp = negotiated.asn == self.shared.config.asn;
        let asks = self.shared.monitor.asks();
        let asks_for_station = std::mem::replace(&mut self.asks, asks) != asks;
        let learnt = self.shared.learnt();
        let (learns, keeps) = (learnt.awaits_session(peer, ibgp), learnt.keeps(peer));
        drop(learnt);
        if !learns && (keeps || !asks_for_station) {
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
        let local = connection.local;
        if learns {
            self.learn_from(local, &negotiated);
        }
        self.write(direction);
    }

    /// Drops stale routes whose time is over.
    pub(super) fn expire_learnt(&mut self) {
        let peer = self.config.address;
        self.stale_until = self.shared.learn(|learnt| {
            learnt.expire(peer, Instant::now());
            learnt.deadline(peer)
        });
    }
}
