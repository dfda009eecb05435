//! What may be announced now, and when all of it has been. PURE but for the dataplane's own answer.

use std::collections::BTreeSet;
use std::time::Duration;

use ipnet::IpNet;

use super::PATIENCE;
use crate::dataplane::Dataplane;
use crate::plan::{Announcement, AnnouncementKind, Delta, NodePlan, Warning};

/// Whether all that was announced before can be announced again, so that peers may drop the rest: not before kernel tables have been
/// listed, nor while the kernel could only not be looked at or changed for the moment. Peers do not wait for ever either; but for the
/// tables, of which nothing could be announced again before.
pub fn told_all(tables_known: bool, dataplane_whole: bool, since_start: Duration) -> bool {
    tables_known && (dataplane_whole || since_start >= PATIENCE)
}

/// Whether the kernel does what it takes to announce a VIP or an aggregate.
pub fn holds(dataplane: &Dataplane, plan: &NodePlan, planned: &Announcement) -> bool {
    match planned.kind {
        AnnouncementKind::Aggregate => dataplane.ends(plan, planned.prefix),
        _ => dataplane.holds(plan, planned.prefix.addr()),
    }
}

/// VIPs that are to be announced and are not, since the kernel wants for something of theirs alone.
pub fn left_out(dataplane: &Dataplane, plan: &NodePlan) -> Vec<Warning> {
    if !dataplane.is_whole() {
        return Vec::new();
    }
    let vips = plan.announcements.values().filter_map(|planned| Some((planned, planned.service.as_ref()?)));
    let left_out = vips.filter(|(planned, _)| !holds(dataplane, plan, planned));
    left_out
        .map(|(Announcement { prefix, .. }, service)| Warning {
            object: format!("Service {service}"),
            reason: "VirtualIPNotForwarded",
            message: format!(
                "{} is not announced: {}",
                prefix.addr(),
                dataplane.obstacles(prefix.addr()).join("; ")
            ),
        })
        .collect()
}

/// The prefixes whose announcement a change may concern.
pub fn touched(plan: &NodePlan, delta: &Delta) -> BTreeSet<IpNet> {
    let of_servers = delta.virtual_servers.iter().map(|vip| IpNet::from(vip.address));
    delta
        .announcements
        .iter()
        .copied()
        .chain(of_servers.filter(|net| plan.announcements.contains_key(net)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_peers_may_drop_what_is_left() {
        for (what, tables_known, dataplane_whole, since_start, all) in [
            ("all is there", true, true, 0, true),
            ("the kernel has refused something", true, false, 0, false),
            ("for nearly a minute", true, false, 59, false),
            ("for a minute", true, false, 60, true),
            ("tables have yet to be listed", false, true, 0, false),
            ("however long", false, true, 3600, false),
            ("nothing is there", false, false, 60, false),
        ] {
            let since_start = Duration::from_secs(since_start);
            assert_eq!(told_all(tables_known, dataplane_whole, since_start), all, "{what}");
        }
    }
}
