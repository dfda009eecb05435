//! The node's side of a pod that accepts itself: its replies have a VIP as source, which is an address of this node.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use futures_util::TryStreamExt as _;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::{Handle, RouteMessageBuilder};

use super::super::sysctl::{self, Sysctls};
use super::super::uplink;
use super::super::{RouteError, tunnel};
use super::PodError;

/// The devices that lead to pods, with what was set there for it.
#[derive(Debug, Default)]
pub struct ReplyPaths(BTreeMap<IpAddr, String>);

impl ReplyPaths {
    /// Lets replies of this pod in. IPv6 has no such checks.
    ///
    /// # Errors
    /// [`PodError`] where the kernel would drop them all the same.
    pub async fn open(
        &mut self,
        handle: &Handle,
        sysctls: &mut Sysctls,
        endpoint: IpAddr,
    ) -> Result<(), PodError> {
        let IpAddr::V4(address) = endpoint else { return Ok(()) };
        let route = route_to(handle, address).await?;
        let via_gateway = |attribute: &RouteAttribute| {
            matches!(attribute, RouteAttribute::Gateway(_) | RouteAttribute::Via(_))
        };
        let device = route.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => Some(*index),
            _ => None,
        });
        let Some(device) = device.filter(|_| !route.attributes.iter().any(via_gateway)) else {
            return Err(PodError::Elsewhere);
        };
        let (name, has_address) = device_of(handle, device).await?;
        for setting in sysctl::interface(&name, false)? {
            // Without an address of its own a device passes no loose check either (`__fib_validate_source`).
            if setting.path.ends_with("/rp_filter") && !has_address {
                return Err(PodError::SourceCheck(name));
            }
            sysctls.ensure(&[setting])?;
        }
        if !has_address && sysctl::checks_sources(&name)? {
            return Err(PodError::SourceCheck(name));
        }
        self.0.insert(endpoint, name);
        Ok(())
    }

    /// Puts back what was found at the device of a pod, unless another one uses it.
    ///
    /// # Errors
    /// [`PodError`] naming the setting.
    pub fn close(&mut self, sysctls: &mut Sysctls, endpoint: IpAddr) -> Result<(), PodError> {
        match self.0.remove(&endpoint) {
            Some(name) if !self.0.values().any(|other| *other == name) => Ok(sysctls.release(&name)?),
            _ => Ok(()),
        }
    }
}

/// Where the kernel would send a packet for this address.
async fn route_to(handle: &Handle, address: Ipv4Addr) -> Result<RouteMessage, PodError> {
    let mut request = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(address, 32).build();
    // With strict checking, which the connection has, nothing else may be asked for.
    request.header.table = RouteHeader::RT_TABLE_UNSPEC;
    request.header.kind = RouteType::Unspec;
    request.header.protocol = RouteProtocol::Unspec;
    request.header.scope = RouteScope::Universe;
    request.attributes.retain(|attribute| matches!(attribute, RouteAttribute::Destination(_)));
    let what = format!("route to {address}");
    let mut answer = std::pin::pin!(handle.route().get(request).execute());
    let route = answer.try_next().await.map_err(RouteError::of(&what))?;
    Ok(route.ok_or_else(|| RouteError::new(what, "no answer"))?)
}

/// Name of a device, and whether it has an IPv4 address.
async fn device_of(handle: &Handle, index: u32) -> Result<(String, bool), PodError> {
    let what = format!("interface {index}");
    let mut answer = std::pin::pin!(handle.link().get().match_index(index).execute());
    let link = answer.try_next().await.map_err(RouteError::of(&what))?;
    let name = link.as_ref().and_then(uplink::name).ok_or_else(|| RouteError::new(what, "has no name"))?;
    if [tunnel::TUNNEL4, tunnel::TUNNEL6, "lo"].contains(&name.as_str()) {
        return Err(PodError::Elsewhere);
    }
    let mut answer = std::pin::pin!(handle.address().get().set_link_index_filter(index).execute());
    let mut has_address = false;
    while let Some(message) = answer.try_next().await.map_err(RouteError::of("list addresses"))? {
        has_address |= message.header.index == index
            && message
                .attributes
                .iter()
                .any(|attribute| matches!(attribute, AddressAttribute::Local(address) if address.is_ipv4()));
    }
    Ok((name, has_address))
}
