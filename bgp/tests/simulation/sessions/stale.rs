//! Routes of the peer over a restart (RFC 4724 §4.2, RFC 8538 §4), and what may be lost of them.

use sheave_bgp::session::{Direction, Down, Negotiated};
use sheave_bgp::{Families, Family};

use super::node::family;
use super::{Happening, Simulation};

impl Simulation {
    /// A session stands. Routes of families that the peer has not kept are gone (RFC 4724 §4.2).
    pub(super) fn up(&mut self, node: usize, direction: Direction, negotiated: Negotiated) {
        let kept = negotiated.graceful_restart.as_ref().map_or(&[][..], |restart| &restart.families[..]);
        let other = &self.nodes[1 - node];
        // Unless the OPEN is of a process that is gone already.
        let other_is_there = self.links[self.nodes[node].links[&direction]].open[1 - node];
        let must_be_kept = other.kept && other_is_there;
        let swept = self.nodes[node].sweep(|prefix| !kept.contains(&(family(prefix), true)));
        assert!(swept.is_empty() || !must_be_kept, "a restart with routes kept costs {swept:?}");
        self.nodes[node].complete = Families::NONE;
        self.nodes[node].negotiated = Some(negotiated);
    }

    /// A session, or an attempt at one, is over. Routes stay if the peer has asked for that, and both sides for it where there
    /// was a NOTIFICATION; those that were stale already then do too.
    pub(super) fn down(&mut self, node: usize, reason: &Down) {
        let now = self.now;
        let this = &mut self.nodes[node];
        let Some(negotiated) = this.negotiated.take() else { return };
        this.awaited.clear();
        this.complete = Families::NONE;
        if !negotiated.graceful_notification {
            this.sweep(|_| true);
        }
        this.stale = this.learnt.keys().copied().collect();
        this.stale_since = now;
        let helps = this.config.graceful_restart.is_some();
        match negotiated.graceful_restart {
            Some(restart) if helps && reason.may_be_restart(negotiated.graceful_notification) => {
                let families: Vec<Family> = restart.families.iter().map(|(family, _)| *family).collect();
                this.sweep(|prefix| !families.contains(&family(prefix)));
                self.plan(restart.restart_time, node, Happening::StaleExpire);
            }
            _ => drop(this.sweep(|_| true)),
        }
    }

    /// The peer has told all routes of a family: what it has not is gone, and must not be anything that it still wants. A
    /// process that starts cold makes no such promise until it knows its routes.
    pub(super) fn end_of_rib(&mut self, node: usize, of: Family) {
        let since = self.nodes[node].stale_since;
        self.nodes[node].complete.insert(of);
        let swept = self.nodes[node].sweep(|prefix| family(prefix) == of);
        let other = &self.nodes[1 - node];
        let promised = other.kept || other.all_known.is_some_and(|known| known < since);
        for prefix in swept {
            let unchanged = other.routes.contains_key(&prefix) && other.changed[&prefix] < since;
            assert!(!(promised && unchanged), "End-of-RIB before {prefix}, which was there before");
        }
    }
}
