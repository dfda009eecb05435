//! Many full-sized packets.

use anyhow::{Context, Result};
use sheave::cluster::Protocol::Tcp;

use super::Scenario;
use crate::cluster::Service;
use crate::fabric::addresses::Family;
use crate::lab::{HOST_PORT, Lab, POD_PORT};
use crate::traffic::{Bulk, bulk};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "bulk",
        proves: "50 MB each way arrive unchanged and without a stall over links of 1,500 bytes, to a remote, a local and a hostNetwork endpoint",
        run: |lab| transfer(lab),
    },
    Scenario {
        name: "bulk-icmp-filtered",
        proves: "the same where every router drops the ICMP errors of path MTU discovery, so that only the lowered MSS helps",
        run: |lab| {
            lab.fabric.filter_icmp(true)?;
            let result = transfer(lab);
            lab.fabric.filter_icmp(false)?;
            result
        },
    },
];

const BYTES: u64 = 50_000_000;

fn transfer(lab: &mut Lab) -> Result<()> {
    let pod = Service::new("bulk-pod", 20).port(Tcp, 80, POD_PORT).endpoints([lab.fabric.pod("b1")?]);
    let host =
        Service::new("bulk-host", 21).port(Tcp, 80, HOST_PORT).endpoints([lab.fabric.node("node-b")?]);
    lab.apply(&pod)?;
    lab.apply(&host)?;
    for family in Family::BOTH {
        for (service, director) in [(&pod, "node-a"), (&pod, "node-b"), (&host, "node-a")] {
            let vip = service.vip(family);
            lab.fabric.steer(vip, Some(lab.fabric.node(director)?))?;
            for direction in [Bulk::Upload, Bulk::Download] {
                bulk(&lab.fabric.client, vip, 80, direction, BYTES)
                    .with_context(|| format!("Service {}, director {director}", service.name))?;
            }
            lab.fabric.steer(vip, None)?;
        }
        // A client in a pod has the whole MTU to its node, and the tunnel begins there.
        let client = &lab.fabric.pod("c1")?.ns;
        for direction in [Bulk::Upload, Bulk::Download] {
            bulk(client, pod.cluster_ip(family), 80, direction, BYTES).context("client in a pod")?;
        }
    }
    lab.remove(&pod)?;
    lab.remove(&host)
}
