//! What leaves the kernel a moment after its VIP was withdrawn. PURE.
//!
//! A peer that has been told of a withdrawal goes on sending until its own tables follow, and so do those that it tells. Until
//! then a VIP that goes is forwarded as before: its clients are neither refused, nor do their packets go back to the router that they
//! came from. A VIP that stays, because its endpoints alone are gone, has nobody to forward to, and is refused at once.
//! Where the whole kernel has to be repaired meanwhile, it follows the plan at once.

use std::collections::{BTreeSet, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;

use crate::plan::{Delta, NodePlan};

/// How long routers may take from being told until they send nothing more.
pub const SETTLE: Duration = Duration::from_secs(1);

/// Parts of changes, and when each is due: the first comes first.
#[derive(Debug, Default)]
pub struct Leaving(VecDeque<(Instant, Delta)>);

impl Leaving {
    /// Takes out of a change what it does to VIPs that are gone and were withdrawn just now. A change of the node itself is left
    /// whole: what it does to the kernel cannot be told apart by VIP.
    pub fn put_off(&mut self, delta: &mut Delta, withdrawn: &BTreeSet<IpNet>, plan: &NodePlan, now: Instant) {
        let gone: BTreeSet<IpAddr> = withdrawn
            .iter()
            .filter(|prefix| **prefix == IpNet::from(prefix.addr()))
            .map(IpNet::addr)
            .filter(|vip| !plan.vips.contains_key(vip))
            .collect();
        if gone.is_empty() || delta.node {
            return;
        }
        let later = Delta {
            virtual_servers: split(&mut delta.virtual_servers, |vip| gone.contains(&vip.address)),
            rewrites: split(&mut delta.rewrites, |key| gone.contains(&key.vip.address)),
            vips: split(&mut delta.vips, |vip| gone.contains(vip)),
            source_ranges: split(&mut delta.source_ranges, |vip| gone.contains(&vip.address)),
            ..Delta::default()
        };
        self.0.push_back((now + SETTLE, later));
    }

    /// When something is due.
    pub fn due(&self) -> Option<Instant> {
        self.0.front().map(|(due, _)| *due)
    }

    /// What is due at `now`.
    pub fn take(&mut self, now: Instant) -> Delta {
        let mut delta = Delta::default();
        while self.due().is_some_and(|due| due <= now)
            && let Some((_, one)) = self.0.pop_front()
        {
            delta.merge(one);
        }
        delta
    }
}

/// Takes out of a set what `belongs`.
fn split<T: Ord>(set: &mut BTreeSet<T>, belongs: impl Fn(&T) -> bool) -> BTreeSet<T> {
    let (out, left) = std::mem::take(set).into_iter().partition(belongs);
    *set = left;
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Protocol;
    use crate::plan::{RewriteKey, RewriteSide, VipPort};

    fn ip(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    /// A change of all that these VIPs have.
    fn change(vips: &[u8]) -> Delta {
        let ports =
            || vips.iter().map(|last| VipPort { address: ip(*last), port: 80, protocol: Protocol::Tcp });
        let rewrite =
            |vip| RewriteKey { endpoint: [10, 244, 1, 10].into(), side: RewriteSide::Endpoint, vip };
        Delta {
            virtual_servers: ports().collect(),
            rewrites: ports().map(rewrite).collect(),
            vips: vips.iter().map(|last| ip(*last)).collect(),
            source_ranges: ports().collect(),
            ..Delta::default()
        }
    }

    #[test]
    fn what_was_withdrawn_and_is_gone_leaves_later() {
        for (name, withdrawn, planned, node, later) in [
            ("two of three", &[1, 2][..], &[3][..], false, &[1, 2][..]),
            ("it was not announced", &[], &[], false, &[]),
            ("endpoints alone are gone", &[1, 2], &[1, 3], false, &[2]),
            ("the node changes", &[1], &[], true, &[]),
        ] {
            let mut plan = NodePlan::new("node-a");
            plan.vips = planned.iter().map(|last| (ip(*last), 1)).collect();
            let withdrawn = withdrawn.iter().map(|last| IpNet::from(ip(*last))).collect();
            let mut delta = Delta { node, ..change(&[1, 2, 3]) };
            let (mut leaving, now) = (Leaving::default(), Instant::now());
            leaving.put_off(&mut delta, &withdrawn, &plan, now);
            let rest: Vec<u8> = [1, 2, 3].into_iter().filter(|last| !later.contains(last)).collect();
            assert_eq!(delta, Delta { node, ..change(&rest) }, "{name}");
            assert_eq!(leaving.due(), (!later.is_empty()).then_some(now + SETTLE), "{name}");
            assert_eq!(leaving.take(now), Delta::default(), "{name}: too soon");
            assert_eq!(leaving.take(now + SETTLE), change(later), "{name}");
            assert_eq!(leaving.due(), None, "{name}");
        }
    }

    #[test]
    fn each_leaves_in_its_own_time_and_together_where_both_are_due() {
        let (mut leaving, now) = (Leaving::default(), Instant::now());
        let plan = NodePlan::new("node-a");
        for (last, after) in [(1, 0), (2, 300), (3, 600)] {
            let withdrawn = [IpNet::from(ip(last))].into();
            leaving.put_off(&mut change(&[last]), &withdrawn, &plan, now + Duration::from_millis(after));
        }
        assert_eq!(leaving.take(now + SETTLE), change(&[1]));
        assert_eq!(leaving.take(now + 2 * SETTLE), change(&[2, 3]));
    }
}
