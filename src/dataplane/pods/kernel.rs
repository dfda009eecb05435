//! What is done within a pod's network namespace. Runs on a thread that was moved there ([`super::enter`]).

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use rtnetlink::Handle;

use super::super::routing::{self, Route};
use super::super::tunnel;
use super::super::{nft, sysctl, uplink};
use super::PodError;
use super::inside::{Inside, Table, tunnel_of};

/// Makes the namespace hold this, whatever there was of ours before. Gives whether something had to be done.
///
/// # Errors
/// [`PodError`]; something of it may be there then.
pub async fn ensure(handle: &Handle, inside: &Inside) -> Result<bool, PodError> {
    let Inside { endpoint, routes, table } = inside;
    if !uplink::local_addresses(handle).await?.contains(endpoint) {
        return Err(PodError::NotFound);
    }
    let (_, mut changed) = tunnel::ensure(handle, inside.tunnel(), *endpoint).await?;
    let name = inside.tunnel().name();
    for setting in sysctl::interface(name, false)? {
        sysctl::write(&setting.path, &setting.value)?;
        changed = true;
    }
    changed |= ensure_table(*endpoint, table)?;
    changed |= ensure_routes(handle, *endpoint, routes).await?;
    Ok(changed)
}

/// Removes what there is of ours for an endpoint, whichever it is. Gives whether there was anything.
///
/// # Errors
/// [`PodError`] of the first that could not be removed.
pub async fn clear(handle: &Handle, endpoint: IpAddr) -> Result<bool, PodError> {
    let mut changed = ensure_routes(handle, endpoint, &BTreeSet::new()).await?;
    changed |= ensure_table(endpoint, &Table::default())?;
    changed |= tunnel::remove(handle, tunnel_of(endpoint), endpoint).await?;
    Ok(changed)
}

fn ensure_table(endpoint: IpAddr, table: &Table) -> Result<bool, PodError> {
    let name = tunnel_of(endpoint).name();
    let Some(objects) = nft::table(name).map_err(PodError::Listing)? else {
        if table.is_empty() {
            return Ok(false);
        }
        nft::transact(&table.transaction(endpoint))?;
        return Ok(true);
    };
    if table.is_empty() {
        nft::transact(&format!("delete table inet {name}\n"))?;
        return Ok(true);
    }
    if Table::parse(&objects, endpoint).as_ref() == Some(table) {
        return Ok(false);
    }
    nft::transact(&table.transaction(endpoint))?;
    Ok(true)
}

async fn ensure_routes(
    handle: &Handle,
    endpoint: IpAddr,
    wanted: &BTreeSet<IpAddr>,
) -> Result<bool, PodError> {
    let mut held = routing::list(handle).await?;
    held.retain(|prefix, _| prefix.addr().is_ipv4() == endpoint.is_ipv4());
    let mut changed = false;
    for (prefix, route) in &held {
        if !wanted.contains(&prefix.addr()) {
            routing::delete(handle, *prefix, route).await?;
            changed = true;
        }
    }
    if wanted.is_empty() {
        return Ok(changed);
    }
    let loopback = tunnel::find(handle, "lo").await?.ok_or(PodError::NoLoopback)?.header.index;
    // With the pod's address as source: its own clients would send from the VIP otherwise.
    let route = Route::local(loopback, Some(endpoint));
    for vip in wanted {
        let prefix = IpNet::from(*vip);
        let present = held.get(&prefix);
        if present != Some(&route) {
            routing::put(handle, prefix, &route, present.is_some()).await?;
            changed = true;
        }
    }
    Ok(changed)
}
