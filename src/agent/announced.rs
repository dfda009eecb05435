//! What may be announced now, and when all of it has been. PURE but for the dataplane's own answer.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use super::PATIENCE;
use crate::cluster::ServiceName;
use crate::dataplane::Dataplane;
use crate::plan::{Announcement, AnnouncementKind, Delta, NodePlan, Warning};

/// Up to how many VIPs users are told of one by one.
const HANDFUL: usize = 5;

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

/// A VIP that is to be announced and is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut<'a> {
    /// The VIP.
    pub vip: IpAddr,
    /// Whose it is.
    pub service: &'a ServiceName,
    /// Why.
    pub why: String,
}

/// VIPs that are to be announced and are not, since the kernel wants for something of theirs alone.
pub fn left_out<'a>(dataplane: &Dataplane, plan: &'a NodePlan) -> Vec<LeftOut<'a>> {
    if !dataplane.is_whole() {
        return Vec::new();
    }
    let vips = plan.announcements.values().filter_map(|planned| Some((planned, planned.service.as_ref()?)));
    let left_out = vips.filter(|(planned, _)| !holds(dataplane, plan, planned));
    left_out
        .map(|(Announcement { prefix, .. }, service)| {
            let vip = prefix.addr();
            LeftOut { vip, service, why: dataplane.obstacles(plan, vip).join("; ") }
        })
        .collect()
}

/// What users are told of them: each Service's owner, but where there are many, whoever has the node. One cause on it may be that of all,
/// and on many nodes at once.
pub fn warnings(node: &str, left_out: &[LeftOut<'_>]) -> Vec<Warning> {
    let reason = "VirtualIPNotForwarded";
    if let [first, ..] = left_out
        && left_out.len() > HANDFUL
    {
        let some = left_out.iter().take(HANDFUL);
        let some: Vec<String> = some.map(|one| format!("{} of {}", one.vip, one.service)).collect();
        let message = format!(
            "{} virtual IPs are not announced, the first of them {}; {}: {}; `sheave status` has all",
            left_out.len(),
            some.join(", "),
            first.vip,
            first.why
        );
        return vec![Warning { object: format!("Node {node}"), reason, message }];
    }
    left_out
        .iter()
        .map(|LeftOut { vip, service, why }| Warning {
            object: format!("Service {service}"),
            reason,
            message: format!("{vip} is not announced: {why}"),
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
    fn many_vips_that_are_left_out_are_one_warning() {
        let services: Vec<ServiceName> = (0..200)
            .map(|number| ServiceName { namespace: "default".into(), name: format!("web-{number}").into() })
            .collect();
        let left_out: Vec<LeftOut<'_>> = (0_u8..)
            .zip(&services)
            .map(|(last, service)| LeftOut {
                vip: [192, 0, 2, last].into(),
                service,
                why: format!("there is no route local 192.0.2.{last}/32"),
            })
            .collect();
        let told = |count| {
            let warnings = warnings("node-a", &left_out[..count]);
            assert!(warnings.iter().all(|warning| warning.reason == "VirtualIPNotForwarded"));
            warnings.into_iter().map(|Warning { object, message, .. }| (object, message)).collect::<Vec<_>>()
        };
        assert_eq!(told(0), []);
        let service = |number: usize| {
            let message =
                format!("192.0.2.{number} is not announced: there is no route local 192.0.2.{number}/32");
            (format!("Service default/web-{number}"), message)
        };
        assert_eq!(told(5), (0..5).map(service).collect::<Vec<_>>());
        let message = "6 virtual IPs are not announced, the first of them 192.0.2.0 of default/web-0, 192.0.2.1 of \
                       default/web-1, 192.0.2.2 of default/web-2, 192.0.2.3 of default/web-3, 192.0.2.4 of \
                       default/web-4; 192.0.2.0: there is no route local 192.0.2.0/32; `sheave status` has all";
        assert_eq!(told(6), [("Node node-a".to_owned(), message.to_owned())]);
        assert_eq!(told(200).len(), 1);
    }

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
