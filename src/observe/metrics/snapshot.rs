//! What the agent's loop tells at a scrape.

use std::collections::BTreeMap;
use std::time::Duration;

use sheave_bgp::{BmpStationStatus, DynamicPeersStatus, LearntStatus, SpeakerStatus};

use super::drain::DrainSnapshot;
use super::exposition::{Families, Labels};
use super::traffic::Traffic;
use super::{bgp, bmp, traffic};
use crate::plan::{ByFamily, WithoutLocalEndpoints};
use crate::tables::ImportCounts;

/// The agent at one moment, in numbers.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// The kernel was brought in line with the source at least once.
    pub ready: bool,
    /// This agent took over from one before, which had left its kernel state.
    pub adopted: bool,
    /// What an agent before announced is announced, for want of a source.
    pub holding: bool,
    /// Planned virtual servers, those without destinations included.
    pub virtual_servers: usize,
    /// Of these, how many have destinations that drain.
    pub draining: usize,
    /// Planned destinations of all virtual servers.
    pub destinations: usize,
    /// Virtual IPs.
    pub vips: usize,
    /// Rewrites: acceptance for this node's endpoints, and *nat* as director.
    pub rewrites: usize,
    /// Health-check node ports.
    pub health_check_node_ports: usize,
    /// Planned prefixes that somebody is to be told of.
    pub announcements: usize,
    /// Of these, how many peers are told now.
    pub announced: usize,
    /// How far this node has drained.
    pub drain: DrainSnapshot,
    /// Service ports with endpoints that a `Local` policy keeps this node from.
    pub without_local_endpoints: WithoutLocalEndpoints,
    /// What users should know of their objects, by reason.
    pub warnings: BTreeMap<&'static str, usize>,
    /// What is not as planned, by kind.
    pub problems: BTreeMap<&'static str, usize>,
    /// What was done to the kernel, by part.
    pub passes: Vec<(&'static str, Passes)>,
    /// Netlink messages sent to IPVS.
    pub ipvs_messages: u64,
    /// Time IPVS took for them.
    pub ipvs_time: Duration,
    /// Counters of virtual servers.
    pub traffic: Traffic,
    /// BGP sessions, where there are peers.
    pub speaker: Option<SpeakerStatus>,
    /// Name and ASN of each peer that is configured and not among these.
    pub absent: Vec<(String, u32)>,
    /// The same of ranges.
    pub empty_ranges: Vec<DynamicPeersStatus>,
    /// Monitoring stations.
    pub bmp: Vec<BmpStationStatus>,
    /// What is learnt of peers, where there are any.
    pub learnt: Option<LearntStatus>,
    /// What of that the kernel holds.
    pub imported: ImportCounts,
}

/// How often a part of the kernel state was looked at or changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passes {
    /// With success.
    pub ok: u64,
    /// Without: each is tried again.
    pub failed: u64,
}

/// Conntrack entries of one family were looked through, and those of endpoints that went deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConntrackPass {
    /// Which family.
    pub ipv4: bool,
    /// How long that took.
    pub took: Duration,
    /// How many were deleted.
    pub deleted: u64,
}

impl Snapshot {
    /// Adds its families.
    pub fn add_to(&self, families: &mut Families) {
        for (name, help, value) in [
            (
                "sheave_ready",
                "Whether the kernel was brought in line with the source at least once",
                self.ready.into(),
            ),
            (
                "sheave_adopted",
                "Whether this agent took over the kernel state of one before, which went on forwarding",
                self.adopted.into(),
            ),
            (
                "sheave_virtual_servers",
                "Planned virtual servers, those without destinations included",
                self.virtual_servers,
            ),
            (
                "sheave_virtual_servers_draining",
                "Virtual servers with destinations that get no new connections and wait for the end of the old",
                self.draining,
            ),
            ("sheave_destinations", "Planned destinations of all virtual servers", self.destinations),
            ("sheave_vips", "Virtual IPs, addresses of node ports left out", self.vips),
            (
                "sheave_rewrites",
                "Planned rewrites: acceptance for endpoints of this node, and nat as director",
                self.rewrites,
            ),
            (
                "sheave_health_check_node_ports",
                "Services whose health-check node port this node serves",
                self.health_check_node_ports,
            ),
            (
                "sheave_holding",
                "Whether what an agent before announced goes on being announced, because the source is late",
                self.holding.into(),
            ),
            (
                "sheave_announcements",
                "Planned prefixes that the export policy of some peer lets pass",
                self.announcements,
            ),
            (
                "sheave_announced_prefixes",
                "Those of them that are announced now, themselves or by an aggregate",
                self.announced,
            ),
            (
                "sheave_imported_routes",
                "Routes learnt of peers that the kernel holds, to all of their next hops",
                self.imported.in_kernel,
            ),
            (
                "sheave_imported_routes_kept",
                "Routes of sessions before that the kernel keeps until peers have told all",
                self.imported.kept,
            ),
            (
                "sheave_virtual_server_metrics_omitted",
                "Virtual servers left out of sheave_virtual_server_* by observe.virtualServerMetricsLimit",
                self.traffic.omitted,
            ),
        ] {
            families.gauge(name, help, [(&[][..], number(value))]);
        }
        by(
            families,
            "sheave_warnings",
            "What users should know of their objects and the config",
            "reason",
            &self.warnings,
        );
        by(families, "sheave_problems", "What is not as planned", "kind", &self.problems);
        self.drain.add_to(families);
        self.add_without_local_endpoints(families);
        self.add_kernel(families);
        traffic::add_node(families);
        self.traffic.add_to(families);
        let sessions = self.speaker.iter().flat_map(|speaker| &speaker.peers);
        bgp::add_up(sessions, &self.absent, families);
        let ranges = self.speaker.iter().flat_map(|speaker| &speaker.dynamic);
        bgp::add_ranges(ranges.chain(&self.empty_ranges), families);
        if let Some(speaker) = &self.speaker {
            bgp::add_to(speaker, families);
        }
        bmp::add_to(&self.bmp, families);
        if let (Some(learnt), Some(speaker)) = (&self.learnt, &self.speaker) {
            bgp::add_learnt(learnt, speaker, families);
        }
    }

    fn add_without_local_endpoints(&self, families: &mut Families) {
        let WithoutLocalEndpoints { internal, external } = self.without_local_endpoints;
        let samples: Vec<_> = [("internal", internal), ("external", external)]
            .into_iter()
            .flat_map(|(policy, ByFamily { ipv4, ipv6 })| {
                [("IPv4", ipv4), ("IPv6", ipv6)]
                    .map(|(family, count)| ([("traffic_policy", policy), ("ip_family", family)], count))
            })
            .collect();
        families.gauge(
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
            "Number of services with a Local traffic policy and no endpoints",
            samples.iter().map(|(labels, count)| (&labels[..], f64::from(*count))),
        );
    }

    fn add_kernel(&self, families: &mut Families) {
        let labels: Vec<_> = self
            .passes
            .iter()
            .flat_map(|(part, Passes { ok, failed })| {
                [
                    ([("part", *part), ("result", "ok")], *ok),
                    ([("part", *part), ("result", "error")], *failed),
                ]
            })
            .collect();
        families.counter(
            "sheave_kernel_passes_total",
            "How often a part of the kernel state was looked at or changed, and whether that succeeded",
            labels.iter().map(|(labels, count)| (&labels[..], float(*count))),
        );
        families.counter(
            "sheave_ipvs_messages_total",
            "Netlink messages that changed something in IPVS",
            [(&[][..], float(self.ipvs_messages))],
        );
        families.counter(
            "sheave_ipvs_seconds_total",
            "Time that IPVS took for these messages",
            [(&[][..], self.ipvs_time.as_secs_f64())],
        );
    }
}

fn by(families: &mut Families, name: &str, help: &str, label: &str, counts: &BTreeMap<&'static str, usize>) {
    let labels: Vec<_> = counts.iter().map(|(value, count)| ([(label, *value)], *count)).collect();
    families.gauge(name, help, labels.iter().map(|(labels, count)| (labels as Labels<'_>, number(*count))));
}

/// A count as a sample; exact up to 2^53.
#[expect(clippy::cast_precision_loss, reason = "samples are floats")]
pub fn float(count: u64) -> f64 {
    count as f64
}

/// As [`float`].
pub fn number(count: usize) -> f64 {
    float(count as u64)
}
