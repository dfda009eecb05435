//! OPEN: what is offered, and what both offers come to.

use std::time::Duration;

use super::error::PeerIncompatible;
use super::model::{AddPaths, LongLived, Negotiated, PeerGracefulRestart, RoleOffer, SessionConfig};
use crate::wire::{
    AddPathFamily, Capability, ExtendedNextHop, GracefulRestartCapability, GracefulRestartFamily,
    LongLivedFamily, Open,
};
use crate::{Families, Family};

/// This side's OPEN. `again` says that there has been a session before, in this life of the speaker.
pub(super) fn offer(config: &SessionConfig, again: bool) -> Open {
    let mut capabilities: Vec<Capability> = config.families.iter().map(Capability::multiprotocol).collect();
    capabilities.push(Capability::RouteRefresh);
    capabilities.push(Capability::EnhancedRouteRefresh);
    capabilities.push(Capability::ExtendedMessage);
    if config.extended_next_hop && config.families.ipv4_unicast {
        capabilities.push(Capability::ExtendedNextHop(vec![ExtendedNextHop::IPV4_BY_IPV6]));
    }
    if let Some(RoleOffer { role, .. }) = role(config) {
        capabilities.push(Capability::Role(role as u8));
    }
    capabilities.push(Capability::FourOctetAsn(config.asn));
    let AddPaths { receive, send } = config.add_paths;
    if receive || send {
        let family = |f: Family| AddPathFamily { afi: f.afi(), safi: f.safi(), receive, send };
        capabilities.push(Capability::AddPath(config.families.iter().map(family).collect()));
    }
    if let Some(restart) = config.graceful_restart {
        // Forwarding went on if the speaker never stopped, or says so; after a cold start the peer must not keep
        // what it learnt in an earlier life.
        let forwarding = again || restart.restarting;
        let family = |f: Family| GracefulRestartFamily { afi: f.afi(), safi: f.safi(), forwarding };
        capabilities.push(Capability::GracefulRestart(GracefulRestartCapability {
            restarting: restart.restarting && !again,
            notification: true,
            restart_time: restart.restart_time,
            families: config.families.iter().map(family).collect(),
        }));
        if let Some(stale_time) = restart.stale_time {
            let family = |f: Family| LongLivedFamily { afi: f.afi(), safi: f.safi(), forwarding, stale_time };
            let families = config.families.iter().map(family).collect();
            capabilities.push(Capability::LongLivedGracefulRestart(families));
        }
    }
    Open {
        my_as: Open::my_as(config.asn),
        hold_time: config.hold_time,
        router_id: config.router_id,
        capabilities,
    }
}

/// What this side's offer and the peer's come to (RFC 4271 §6.2, RFC 5492 §3).
pub(super) fn negotiate(config: &SessionConfig, open: &Open) -> Result<Negotiated, PeerIncompatible> {
    match config.peer_asn {
        Some(expected) if open.asn() != expected => {
            return Err(PeerIncompatible::Asn { expected, actual: open.asn() });
        }
        None if open.asn() == config.asn => return Err(PeerIncompatible::OwnAsn(config.asn)),
        Some(_) | None => {}
    }
    // RFC 6286: unique within an AS, not beyond.
    let ibgp = config.is_ibgp();
    if open.router_id.is_unspecified() || ibgp && open.router_id == config.router_id {
        return Err(PeerIncompatible::RouterId(open.router_id));
    }
    if matches!(open.hold_time, 1 | 2) {
        return Err(PeerIncompatible::HoldTime(open.hold_time));
    }
    check_role(config, open)?;
    let families = config.families.intersection(offered_families(open));
    if families.is_empty() {
        return Err(PeerIncompatible::Families { offered: config.families });
    }
    // RFC 4724 §3: of several the last alone counts.
    let restart = open.capabilities.iter().rev().find_map(|capability| match capability {
        Capability::GracefulRestart(capability) => Some(capability),
        _ => None,
    });
    Ok(Negotiated {
        asn: open.asn(),
        router_id: open.router_id,
        hold_time: Duration::from_secs(u64::from(config.hold_time.min(open.hold_time))),
        families,
        extended_next_hop: config.extended_next_hop && families.ipv4_unicast && takes_extended_next_hop(open),
        four_octet_asn: open.four_octet_asn().is_some(),
        route_refresh: open.capabilities.contains(&Capability::RouteRefresh),
        enhanced_refresh: open.capabilities.contains(&Capability::EnhancedRouteRefresh),
        extended_messages: open.capabilities.contains(&Capability::ExtendedMessage),
        graceful_restart: restart.map(graceful_restart),
        graceful_notification: config.graceful_restart.is_some()
            && restart.is_some_and(|capability| capability.notification),
        // RFC 9494 §4.1: without the other capability it means nothing.
        long_lived: restart.map(|_| long_lived(config, open)).unwrap_or_default(),
        paths_received: add_paths(open, |theirs| config.add_paths.receive && theirs.send)
            .intersection(families),
        paths_sent: add_paths(open, |theirs| config.add_paths.send && theirs.receive).intersection(families),
    })
}

/// RFC 9234 §4: roles are for eBGP.
fn role(config: &SessionConfig) -> Option<RoleOffer> {
    config.role.filter(|_| !config.is_ibgp())
}

/// RFC 9234 §4.2.
fn check_role(config: &SessionConfig, open: &Open) -> Result<(), PeerIncompatible> {
    let Some(RoleOffer { role: ours, required }) = role(config) else { return Ok(()) };
    let mut theirs: Vec<u8> = Vec::new();
    for capability in &open.capabilities {
        match capability {
            Capability::Role(role) if !theirs.contains(role) => theirs.push(*role),
            _ => {}
        }
    }
    match theirs[..] {
        [] if !required => Ok(()),
        [role] if role == ours.counterpart() as u8 => Ok(()),
        _ => Err(PeerIncompatible::Role { ours, theirs }),
    }
}

fn takes_extended_next_hop(open: &Open) -> bool {
    open.capabilities.iter().any(|c| match c {
        Capability::ExtendedNextHop(families) => families.contains(&ExtendedNextHop::IPV4_BY_IPV6),
        _ => false,
    })
}

/// A speaker that says nothing about families speaks IPv4 unicast (RFC 4760 §8).
fn offered_families(open: &Open) -> Families {
    let mut multiprotocol = open.capabilities.iter().filter_map(|c| match c {
        Capability::Multiprotocol { afi, safi } => Some(Family::from_afi_safi(*afi, *safi)),
        _ => None,
    });
    match multiprotocol.next() {
        None => Families { ipv4_unicast: true, ..Families::NONE },
        Some(first) => first.into_iter().chain(multiprotocol.flatten()).collect(),
    }
}

/// Families of which the peer's ADD-PATH capability says what is `wanted`. Of a family that it lists twice, the first counts.
fn add_paths(open: &Open, wanted: impl Fn(&AddPathFamily) -> bool) -> Families {
    let offered = open.capabilities.iter().filter_map(|capability| match capability {
        Capability::AddPath(families) => Some(families),
        _ => None,
    });
    let offered: Vec<&AddPathFamily> = offered.flatten().collect();
    let first = |family: &Family| {
        let of = (family.afi(), family.safi());
        offered.iter().find(|theirs| (theirs.afi, theirs.safi) == of).is_some_and(|theirs| wanted(theirs))
    };
    Family::ALL.into_iter().filter(first).collect()
}

fn long_lived(config: &SessionConfig, open: &Open) -> Vec<LongLived> {
    let Some(ours) = config.graceful_restart.and_then(|restart| restart.stale_time) else {
        return Vec::new();
    };
    // As of the capability that it comes with.
    let offered = open.capabilities.iter().rev().find_map(|capability| match capability {
        Capability::LongLivedGracefulRestart(families) => Some(families),
        _ => None,
    });
    let family = |theirs: &LongLivedFamily| {
        let family = Family::from_afi_safi(theirs.afi, theirs.safi)?;
        let stale_time = Duration::from_secs(theirs.stale_time.min(ours).into());
        Some(LongLived { family, forwarding: theirs.forwarding, stale_time })
    };
    offered.into_iter().flatten().filter_map(family).collect()
}

fn graceful_restart(capability: &GracefulRestartCapability) -> PeerGracefulRestart {
    let family = |f: &GracefulRestartFamily| Some((Family::from_afi_safi(f.afi, f.safi)?, f.forwarding));
    PeerGracefulRestart {
        restarting: capability.restarting,
        restart_time: Duration::from_secs(u64::from(capability.restart_time)),
        families: capability.families.iter().filter_map(family).collect(),
    }
}
