//! The tunnel devices that decapsulate. They never send.
//!
//! Each has a private local address, to which outer packets are rewritten, so that the devices of others
//! (`tunl0`, `ip6tnl0`) stay theirs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt as _;
use rtnetlink::packet_route::IpProtocol;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressScope, CacheInfo};
use rtnetlink::packet_route::link::{
    InfoData, InfoIpTunnel, InfoKind, Ip6TunnelFlags, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use rtnetlink::{Handle, LinkIp6Tnl, LinkIpIp, LinkUnspec};

use super::RouteError;

/// Name of the IPv4-in-IPv4 device.
pub const TUNNEL4: &str = "sheave4";
/// Name of the IPv6-in-IPv6 device.
pub const TUNNEL6: &str = "sheave6";
/// Local address of [`TUNNEL4`], from the prefix of the 6to4 relays that are no more (RFC 7526). Never leaves the node.
///
/// SCTP takes every local address for one of its own (`sctp_v4_scope`), except from such prefixes: with another public
/// address a node whose others are private would use this one as the source of all its SCTP to public peers.
pub const LOCAL4: Ipv4Addr = Ipv4Addr::new(192, 88, 99, 8);
/// Local address of [`TUNNEL6`], in the discard-only prefix (RFC 6666). Never leaves the node.
pub const LOCAL6: Ipv6Addr = Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 8);

/// Routes to stand-ins go out of these devices, and IPVS takes their MTU for the path's, though what it sends
/// there is looped back and forwarded without its outer header: large enough never to matter.
const MTU: u32 = 9200;

/// One of the two devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tunnel {
    /// [`TUNNEL4`].
    V4,
    /// [`TUNNEL6`].
    V6,
}

impl Tunnel {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::V4 => TUNNEL4,
            Self::V6 => TUNNEL6,
        }
    }

    /// The private address of the device: on a node also the one that it takes outer packets for.
    pub fn local(self) -> IpAddr {
        match self {
            Self::V4 => LOCAL4.into(),
            Self::V6 => LOCAL6.into(),
        }
    }

    fn message(self, local: IpAddr) -> LinkMessage {
        match local {
            IpAddr::V4(local) => LinkIpIp::new(self.name()).local(local).mtu(MTU).up().build(),
            IpAddr::V6(local) => LinkIp6Tnl::new(self.name())
                .local(local)
                .mode(IpProtocol::Ipv6)
                .set_flag(Ip6TunnelFlags::IgnEncapLimit, true)
                .set_flag(Ip6TunnelFlags::AllowLocalRemote, true)
                .mtu(MTU)
                .up()
                .build(),
        }
    }

    /// Whether a device of this name is what we would have made to take outer packets for `local`.
    pub fn is_ours(self, link: &LinkMessage, local: IpAddr) -> bool {
        let (mut kind, mut found) = (None, None);
        for attribute in &link.attributes {
            let LinkAttribute::LinkInfo(infos) = attribute else { continue };
            for info in infos {
                match info {
                    LinkInfo::Kind(is) => kind = Some(is.clone()),
                    LinkInfo::Data(InfoData::IpTunnel(data)) => {
                        found = data.iter().find_map(|info| match info {
                            InfoIpTunnel::Local(address) => Some(*address),
                            _ => None,
                        });
                    }
                    _ => {}
                }
            }
        }
        let expected = match self {
            Self::V4 => InfoKind::IpIp,
            Self::V6 => InfoKind::Ip6Tnl,
        };
        kind == Some(expected) && found == Some(local)
    }
}

/// Makes sure that the device exists, takes outer packets for `local`, has its address and is up. Gives its index, and
/// whether it was not so.
///
/// # Errors
/// [`RouteError`]: among others when a device of this name is not ours, which is left alone.
pub async fn ensure(handle: &Handle, tunnel: Tunnel, local: IpAddr) -> Result<(u32, bool), RouteError> {
    let name = tunnel.name();
    let mut changed = false;
    let link = match find(handle, name).await? {
        Some(link) => link,
        None => {
            changed = true;
            handle.link().add(tunnel.message(local)).execute().await.map_err(RouteError::of(name))?;
            find(handle, name)
                .await?
                .ok_or_else(|| RouteError::new(name.into(), "vanished when just made"))?
        }
    };
    if !tunnel.is_ours(&link, local) {
        return Err(RouteError::new(
            name.into(),
            "the interface exists and is not Sheave's: remove it or rename it",
        ));
    }
    let index = link.header.index;
    if !is_up(&link) || mtu(&link) != Some(MTU) {
        changed = true;
        let up = LinkUnspec::new_with_index(index).mtu(MTU).up().build();
        handle.link().set(up).execute().await.map_err(RouteError::of(name))?;
    }
    if !has_address(handle, index, tunnel.local()).await? {
        changed = true;
        let length = if tunnel == Tunnel::V4 { 32 } else { 128 };
        let mut request = handle.address().add(index, tunnel.local(), length).replace();
        let message = request.message_mut();
        match tunnel {
            Tunnel::V4 => message.header.scope = AddressScope::Host,
            Tunnel::V6 => {
                message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
                // Deprecated: never chosen as a source.
                let mut lifetimes = CacheInfo::default();
                lifetimes.ifa_preferred = 0;
                lifetimes.ifa_valid = u32::MAX;
                message.attributes.push(AddressAttribute::CacheInfo(lifetimes));
            }
        }
        request.execute().await.map_err(RouteError::of(name))?;
    }
    Ok((index, changed))
}

/// Removes the device if it is ours. Gives whether it was there.
///
/// # Errors
/// [`RouteError`] naming the device.
pub async fn remove(handle: &Handle, tunnel: Tunnel, local: IpAddr) -> Result<bool, RouteError> {
    let Some(link) = find(handle, tunnel.name()).await?.filter(|link| tunnel.is_ours(link, local)) else {
        return Ok(false);
    };
    handle.link().del(link.header.index).execute().await.map_err(RouteError::of(tunnel.name()))?;
    Ok(true)
}

/// The device of that name.
///
/// # Errors
/// [`RouteError`] naming the device.
pub(crate) async fn find(handle: &Handle, name: &str) -> Result<Option<LinkMessage>, RouteError> {
    let mut answer = std::pin::pin!(handle.link().get().match_name(name).execute());
    match answer.try_next().await {
        Ok(link) => Ok(link),
        Err(error) if super::is_absent(&error) => Ok(None),
        Err(error) => Err(RouteError::of(name)(error)),
    }
}

async fn has_address(handle: &Handle, index: u32, wanted: IpAddr) -> Result<bool, RouteError> {
    let mut answer = std::pin::pin!(handle.address().get().set_link_index_filter(index).execute());
    while let Some(address) = answer.try_next().await.map_err(RouteError::of("list addresses"))? {
        if address.header.index == index && address.attributes.contains(&AddressAttribute::Address(wanted)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether a device is up.
pub(super) fn is_up(link: &LinkMessage) -> bool {
    link.header.flags.contains(LinkFlags::Up)
}

/// The MTU of a device.
pub(super) fn mtu(link: &LinkMessage) -> Option<u32> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    })
}
