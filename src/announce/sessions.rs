//! The config's `router` in the words of the speaker.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use sheave_bgp::bfd::{Key, SessionConfig};
use sheave_bgp::session::{AddPaths, RoleOffer};
use sheave_bgp::wire;
use sheave_bgp::{
    BmpStation, BmpTables, DynamicPeers, Families, GracefulRestart, Password, PeerBfd, PeerConfig,
    SpeakerConfig,
};

use super::AnnounceError;
use crate::config::{self, AddressFamily, BmpTable, DynamicPeer, NextHop, Peer, PeerAsn, Role, Router};

/// How long a peer of a range that is down is still shown: for alerts on it to fire, and for somebody to look.
const LINGER: Duration = Duration::from_secs(15 * 60);

/// What all sessions share, not restarting. `auto` is what an automatic router id is.
pub(super) fn speaker_config(
    router: &Router,
    auto: Option<Ipv4Addr>,
    node: &str,
) -> Result<SpeakerConfig, AnnounceError> {
    let Router {
        asn,
        router_id,
        listen,
        graceful_restart,
        shutdown_message: _,
        peers: _,
        dynamic_peers: _,
        bmp: _,
        import: _,
        mesh: _,
        route_reflector: _,
    } = router;
    Ok(SpeakerConfig {
        asn: asn.ok_or(AnnounceError::NoAsn)?,
        router_id: router_id.or(auto).ok_or_else(|| AnnounceError::NoRouterId(node.to_owned()))?,
        listen: (listen.port != 0).then(|| {
            [IpAddr::from(Ipv4Addr::UNSPECIFIED), IpAddr::from([0u16; 8])]
                .map(|address| SocketAddr::new(address, listen.port))
                .into()
        }),
        graceful_restart: graceful_restart.map(|graceful| GracefulRestart {
            restart_time: graceful.restart_time,
            stale_time: graceful.long_lived.map(|long_lived| long_lived.stale_time),
        }),
        restarting: false,
    })
}

/// Monitoring stations, to which this is `node`.
pub(super) fn bmp_stations(router: &Router, node: &str) -> Vec<BmpStation> {
    let station = |station: &config::BmpStation| {
        let config::BmpStation { address, port, statistics_interval, queue_kib, tables } = station;
        BmpStation {
            address: *address,
            port: *port,
            name: node.to_owned(),
            description: concat!("Sheave ", env!("CARGO_PKG_VERSION")).to_owned(),
            // At most a GiB.
            queue: usize::try_from(*queue_kib).unwrap_or(usize::MAX).saturating_mul(1024),
            statistics: *statistics_interval,
            tables: BmpTables {
                adj_rib_in: tables.contains(&BmpTable::AdjRibIn),
                adj_rib_in_post_policy: tables.contains(&BmpTable::AdjRibInPostPolicy),
                loc_rib: tables.contains(&BmpTable::LocRib),
                adj_rib_out: tables.contains(&BmpTable::AdjRibOut),
            },
        }
    };
    router.bmp.iter().map(station).collect()
}

/// The primary IPv4 address of this node.
pub(super) fn first_ipv4(addresses: &[IpAddr]) -> Option<Ipv4Addr> {
    addresses.iter().find_map(|address| match address {
        IpAddr::V4(address) => Some(*address),
        IpAddr::V6(_) => None,
    })
}

/// A range, whose peers are as `template`.
pub(super) fn dynamic_peers(range: &DynamicPeer, template: PeerConfig) -> DynamicPeers {
    DynamicPeers { prefix: range.prefix, limit: range.limit.into(), linger: LINGER, template }
}

fn wire_role(role: Role) -> wire::Role {
    match role {
        Role::Provider => wire::Role::Provider,
        Role::Rs => wire::Role::RouteServer,
        Role::RsClient => wire::Role::RouteServerClient,
        Role::Customer => wire::Role::Customer,
        Role::Peer => wire::Role::Peer,
    }
}

/// A peer at `address`; `addresses` are this node's, for next hops, and `own_asn` its AS.
pub(super) fn peer_config(
    peer: &Peer,
    address: IpAddr,
    password: Option<Password>,
    bfd: Option<PeerBfd>,
    addresses: &[IpAddr],
    own_asn: Option<u32>,
) -> PeerConfig {
    let Peer {
        address: _,
        interface,
        asn,
        port,
        local_address,
        passive,
        multihop,
        ttl_security,
        hold_time,
        send_hold_time,
        delay_open,
        next_hop,
        families,
        ..
    } = peer;
    let fixed = match next_hop {
        NextHop::Address(address) => Some(*address),
        NextHop::Own => None,
    };
    // On a session of the other family there is no local address to take: the node's own it is.
    let next_hop = |v4: bool| {
        fixed.filter(|fixed| fixed.is_ipv4() == v4).or_else(|| {
            let own = || addresses.iter().find(|own| own.is_ipv4() == v4).copied();
            (address.is_ipv4() != v4).then(own).flatten()
        })
    };
    PeerConfig {
        interface: interface.clone(),
        port: *port,
        local_address: *local_address,
        passive: *passive,
        multihop: *multihop,
        ttl_security: *ttl_security,
        hold_time: *hold_time,
        send_hold_time: *send_hold_time,
        delay_open: *delay_open,
        families: Families {
            ipv4_unicast: families.contains(&AddressFamily::Ipv4),
            ipv6_unicast: families.contains(&AddressFamily::Ipv6),
        },
        extended_next_hop: peer.extends_next_hop(),
        add_paths: AddPaths { receive: peer.add_paths.receive, send: peer.add_paths.send },
        role: peer.role.map(|role| RoleOffer { role: wire_role(role), required: peer.require_role }),
        next_hop_v4: match next_hop(true) {
            Some(IpAddr::V4(address)) => Some(address),
            _ => None,
        },
        next_hop_v6: match next_hop(false) {
            Some(IpAddr::V6(address)) => Some(address),
            _ => None,
        },
        export: peer.export.clone(),
        bfd,
        password,
        client: peer.route_reflector_client,
        any_external_asn: *asn == PeerAsn::External,
        ..PeerConfig::new(address, asn.number(own_asn).unwrap_or_default())
    }
}

/// BFD beside the session with a peer.
pub(super) fn peer_bfd(bfd: &config::Bfd, peer: &Peer, keys: Vec<Key>, own_asn: Option<u32>) -> PeerBfd {
    let config::Bfd { transmit_interval, receive_interval, detect_multiplier, multihop: _, passive, keys: _ } =
        bfd;
    let session = SessionConfig {
        transmit: *transmit_interval,
        receive: *receive_interval,
        multiplier: *detect_multiplier,
        passive: *passive,
    };
    PeerBfd { session, multihop: peer.has_multihop_bfd(bfd, own_asn), keys }
}
