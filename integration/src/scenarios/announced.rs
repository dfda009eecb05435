//! Services by the nodes that the leaves send to.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::Result;
use sheave::cluster::Protocol::Tcp;

use crate::cluster::Service;
use crate::lab::{Lab, POD_PORT};
use crate::wait::await_some;

/// How long agents and sessions may take to come up.
const LIMIT: Duration = Duration::from_secs(40);

/// Applies a Service that the nodes of its endpoints alone announce.
pub(super) fn apply_local(lab: &Lab, name: &str, number: u8, pods: &[&str]) -> Result<Service> {
    let pods: Vec<_> = pods.iter().map(|pod| lab.fabric.pod(pod)).collect::<Result<_>>()?;
    let service = Service::new(name, number)
        .port(Tcp, 80, POD_PORT)
        .spec("externalTrafficPolicy", "Local")
        .endpoints(pods);
    lab.source.apply(&service)?;
    Ok(service)
}

/// Waits until both leaves send what comes for these addresses to exactly these nodes.
pub(super) fn await_directors(lab: &Lab, vips: &[IpAddr], expected: &[&str]) -> Result<()> {
    let expected: BTreeSet<String> = expected.iter().map(|name| (*name).to_owned()).collect();
    await_some(LIMIT, &format!("{vips:?} to {expected:?}"), || {
        for leaf in &lab.fabric.leaves {
            for vip in vips {
                let found = lab.fabric.directors(leaf, *vip).map_err(|error| format!("{error:#}"))?;
                if found != expected {
                    return Err(format!("{}: {vip} to {found:?}", leaf.name()));
                }
            }
        }
        Ok(())
    })
}
