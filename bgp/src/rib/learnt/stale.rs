//! Routes of a peer that is away: graceful restart, this side being the helper.
//!
//! ```text
//!             session lost          restart time over, peer not back        stale time over
//!   in use ────────────────► stale ──────────────────────────────────► long-lived stale ───► gone
//!                              │  (RFC 4724 §4.2, RFC 8538 §4.1)          (RFC 9494 §4.2)
//!                              └─ told again: in use; End-of-RIB, or STALE_LIMIT after the peer is back: gone
//! ```
//!
//! What is stale is used as before; what is long-lived stale carries LLGR_STALE, and is used where there is nothing else.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Learnt, STALE_LIMIT};
use crate::Family;
use crate::session::Negotiated;
use crate::wire::Nlri;

impl Learnt {
    /// The session of a peer is over for a family.
    pub(super) fn lose(
        &mut self,
        peer: IpAddr,
        family: Family,
        restarting: Option<&Negotiated>,
        now: Instant,
    ) {
        let agreed = restarting.and_then(|agreed| Some((agreed, agreed.graceful_restart.as_ref()?)));
        let (time, long_lived) = agreed.map_or((Duration::ZERO, None), |(agreed, restart)| {
            let time = agreed.keeps(family).map_or(Duration::ZERO, |_| restart.restart_time);
            (time, agreed.long_lived(family).map(|offer| offer.stale_time).filter(|time| !time.is_zero()))
        });
        if time.is_zero() && long_lived.is_none() {
            return self.flush(peer, family, |_| true);
        }
        // What was stale already goes with a second restart (RFC 4724 §4.2), but for peers whose sessions may end so often: its time is
        // bounded with them (RFC 8538 §4.1). What is long-lived has a time of its own.
        let often = restarting.is_some_and(|agreed| agreed.graceful_notification);
        let Some(known) = self.peers.get(&peer) else { return };
        if !(often && known.family(family).is_stale_for_less(STALE_LIMIT, now)) {
            self.flush(peer, family, |held| held.stale && !held.long_lived);
        }
        let Some(known) = self.peers.get_mut(&peer) else { return };
        let state = known.family_mut(family);
        state.mark_stale(now);
        state.long_lived = long_lived;
        state.stale_until = (state.stale > 0).then(|| now + time);
        if time.is_zero() {
            self.keep_for_long(peer, family, now);
        }
    }

    /// The time of stale routes may be over.
    pub(super) fn age(&mut self, peer: IpAddr, family: Family, now: Instant) {
        let Some(known) = self.peers.get_mut(&peer) else { return };
        let up = known.up;
        let state = known.family_mut(family);
        let due = |until: &mut Option<Instant>| until.take_if(|until| *until <= now).is_some();
        if due(&mut state.long_lived_until) {
            tracing::warn!(%peer, %family, "routes dropped that were a last resort: their time is over");
            self.flush(peer, family, |held| held.long_lived);
        }
        let Some(known) = self.peers.get_mut(&peer) else { return };
        if !due(&mut known.family_mut(family).stale_until) {
            return;
        }
        if up {
            tracing::warn!(%peer, %family, "stale routes dropped: the peer has not told them again in time");
            self.flush(peer, family, |held| held.stale);
        } else {
            self.keep_for_long(peer, family, now);
        }
    }

    /// A peer is not back in its restart time: what may be kept beyond that is marked, and what may not goes.
    fn keep_for_long(&mut self, peer: IpAddr, family: Family, now: Instant) {
        self.flush(peer, family, |held| held.stale && !held.long_lived && held.path.refuses_long_life());
        let Some(known) = self.peers.get_mut(&peer) else { return };
        let state = known.family_mut(family);
        state.stale_until = None;
        let Some(time) = state.long_lived else {
            tracing::warn!(%peer, %family, "stale routes dropped: the peer is not back in its restart time");
            return self.flush(peer, family, |held| held.stale && !held.long_lived);
        };
        let aged = state.select(|held| held.stale && !held.long_lived);
        if state.stale > 0 {
            // One that runs is not changed (RFC 9494 §4.2).
            state.long_lived_until.get_or_insert(now + time);
            tracing::warn!(%peer, %family, routes = state.stale, "not back in its restart time: its routes stay as a last resort");
        }
        for nlri in aged {
            self.mark_long_lived(peer, nlri);
        }
    }

    fn mark_long_lived(&mut self, peer: IpAddr, nlri: Nlri) {
        let held = |learnt: &Learnt| Some(Arc::clone(&learnt.peers.get(&peer)?.get(&nlri)?.path));
        let Some(path) = held(self) else { return };
        let marked = self.paths.intern(path.long_lived_stale());
        let Some(known) = self.peers.get_mut(&peer) else { return };
        let Some(held) = known.family_mut(Family::of(&nlri.prefix)).routes.get_mut(&nlri) else { return };
        held.long_lived = true;
        held.path = marked;
        self.judge(peer, nlri);
        self.paths.forget(&path);
    }
}
