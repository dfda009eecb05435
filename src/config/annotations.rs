//! What a Service's annotations say about it.
//!
//! kube-router's annotations of the same meaning are read where ours is absent. One that does not parse changes
//! nothing: the last good value stays in force, and a warning says so.

use serde::Deserialize;
use serde::de::IntoDeserializer;
use serde::de::value::{Error as ValueError, StrDeserializer};

use super::Communities;
use super::reader::{Reader, accepted_in, boolean, forwarding, number, prepend, words};
use crate::cluster::Service;
use crate::plan::{AcceptedIn, Forwarding, Scheduler, SchedulerFlags, Warning};

/// Settings of one Service; what is `None` is left to the config.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceSettings {
    /// `sheave.io/forwarding`.
    pub forwarding: Option<Forwarding>,
    /// `sheave.io/acceptance`, or `pod` by kube-router's `service.dsr: tunnel`.
    pub acceptance: Option<AcceptedIn>,
    /// `sheave.io/scheduler`.
    pub scheduler: Option<Scheduler>,
    /// `sheave.io/scheduler-flags`.
    pub scheduler_flags: Option<SchedulerFlags>,
    /// `sheave.io/announce` says something of cluster IPs.
    pub announce_cluster_ips: Option<bool>,
    /// `sheave.io/announce` says something of external IPs.
    pub announce_external_ips: Option<bool>,
    /// `sheave.io/announce` says something of load-balancer IPs.
    pub announce_load_balancer_ips: Option<bool>,
    /// `sheave.io/communities`, besides those of the config.
    pub communities: Option<Communities>,
    /// `sheave.io/local-pref`.
    pub local_pref: Option<u32>,
    /// `sheave.io/med`.
    pub med: Option<u32>,
    /// `sheave.io/path-prepend`.
    pub path_prepend: Option<u8>,
    /// kube-router's `service.local`: both traffic policies are `Local`, whatever the Service says.
    pub local: Option<bool>,
    /// `sheave.io/metrics`: whether its virtual servers have metrics of their own.
    pub metrics: Option<bool>,
}

const ACCEPTANCE: &str = "sheave.io/acceptance";
/// kube-router's.
const DSR: &str = "kube-router.io/service.dsr";

/// Our annotations of a Service.
const KNOWN: [&str; 10] = [
    "sheave.io/forwarding",
    ACCEPTANCE,
    "sheave.io/scheduler",
    "sheave.io/scheduler-flags",
    "sheave.io/announce",
    "sheave.io/communities",
    "sheave.io/local-pref",
    "sheave.io/med",
    "sheave.io/path-prepend",
    "sheave.io/metrics",
];

/// Which kinds of VIP `sheave.io/announce` names.
#[derive(Clone, Copy)]
struct Announced {
    cluster_ips: bool,
    external_ips: bool,
    load_balancer_ips: bool,
}

impl ServiceSettings {
    /// Reads a Service's annotations; `last` is what was in force for it so far.
    pub fn read(service: &Service, last: Option<&Self>) -> (Self, Vec<Warning>) {
        let mut reader = Reader::new(format!("Service {}", service.name), &service.annotations);
        let empty = Self::default();
        let last = last.unwrap_or(&empty);

        let announced = reader.value("sheave.io/announce", announced);
        let mut kind = |all: Option<Result<bool, ()>>, key: &str, last: Option<bool>| match all {
            Some(Ok(announced)) => Some(announced),
            Some(Err(())) => last,
            None => reader.read(key, boolean, &last),
        };
        let of = |field: fn(Announced) -> bool| announced.map(|result| result.map(field));
        let announce_cluster_ips = kind(
            of(|announced| announced.cluster_ips),
            "kube-router.io/service.advertise.clusterip",
            last.announce_cluster_ips,
        );
        let announce_external_ips = kind(
            of(|announced| announced.external_ips),
            "kube-router.io/service.advertise.externalip",
            last.announce_external_ips,
        );
        let announce_load_balancer_ips = kind(
            of(|announced| announced.load_balancer_ips),
            "kube-router.io/service.advertise.loadbalancerip",
            last.announce_load_balancer_ips,
        );

        let settings = Self {
            announce_cluster_ips,
            announce_external_ips,
            announce_load_balancer_ips,
            forwarding: reader.either(
                ("sheave.io/forwarding", forwarding),
                (DSR, forwarding),
                &last.forwarding,
            ),
            acceptance: match reader.value(ACCEPTANCE, accepted_in) {
                Some(Ok(accepted_in)) => Some(accepted_in),
                Some(Err(())) => last.acceptance,
                // kube-router's DSR has its tunnel in the pod.
                None => match reader.text(DSR).map(|text| forwarding(text.trim())) {
                    Some(Ok(Forwarding::Tunnel)) => Some(AcceptedIn::Pod),
                    Some(Err(_)) => last.acceptance,
                    Some(Ok(_)) | None => None,
                },
            },
            scheduler: reader.either(
                ("sheave.io/scheduler", scheduler),
                ("kube-router.io/service.scheduler", scheduler),
                &last.scheduler,
            ),
            scheduler_flags: reader.either(
                ("sheave.io/scheduler-flags", scheduler_flags),
                ("kube-router.io/service.schedflags", scheduler_flags),
                &last.scheduler_flags,
            ),
            communities: reader.read("sheave.io/communities", str::parse, &last.communities),
            local_pref: reader.read("sheave.io/local-pref", number, &last.local_pref),
            med: reader.read("sheave.io/med", number, &last.med),
            path_prepend: reader.read("sheave.io/path-prepend", prepend, &last.path_prepend),
            local: reader.read("kube-router.io/service.local", boolean, &last.local),
            metrics: reader.read("sheave.io/metrics", boolean, &last.metrics),
        };
        reader.warn_of_unknown(&KNOWN);
        (settings, reader.warnings)
    }
}

fn scheduler(text: &str) -> Result<Scheduler, String> {
    let name: StrDeserializer<'_, ValueError> = text.into_deserializer();
    Scheduler::deserialize(name)
        .map_err(|_| format!("`{text}` is not an IPVS scheduler such as mh, rr or wlc"))
}

fn scheduler_flags(text: &str) -> Result<SchedulerFlags, String> {
    let mut flags = SchedulerFlags::default();
    for flag in words(text) {
        match flag {
            "mh-fallback" | "sh-fallback" | "flag-1" => flags.fallback = true,
            "mh-port" | "sh-port" | "flag-2" => flags.port = true,
            _ => {
                return Err(format!(
                    "`{flag}` is not one of mh-fallback, mh-port, sh-fallback, sh-port, flag-1, flag-2"
                ));
            }
        }
    }
    Ok(flags)
}

fn announced(text: &str) -> Result<Announced, String> {
    let mut announced = Announced { cluster_ips: false, external_ips: false, load_balancer_ips: false };
    if text == "none" {
        return Ok(announced);
    }
    let mut any = false;
    for kind in words(text) {
        any = true;
        match kind {
            "clusterIP" => announced.cluster_ips = true,
            "externalIP" => announced.external_ips = true,
            "loadBalancerIP" => announced.load_balancer_ips = true,
            _ => {
                return Err(format!(
                    "`{kind}` is not one of clusterIP, externalIP, loadBalancerIP, or `none` alone"
                ));
            }
        }
    }
    if any { Ok(announced) } else { Err("is empty: use `none` to announce nothing".into()) }
}
