//! `sheave plan`: what a node would do, in the schema that other tools may rely on.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use ipnet::IpNet;
use serde::Serialize;

use super::{failed, print};
use crate::cluster::Severity;
use crate::cluster::manifest::Manifests;
use crate::config::{Config, PeerSource};
use crate::plan::{
    AcceptedIn, AnnouncementKind, Forwarding, Planner, RewriteSide, Scheduler, VipKind, Warning,
};

/// Print what a node would do, from a directory of manifests
///
/// Touches nothing and needs no privileges, no cluster and no kernel: virtual servers with their endpoints, what
/// the node takes in for its own endpoints, prefixes to announce, routes, source ranges, peers, and warnings about
/// what cannot be done as written.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  Save what a cluster says, and ask what node-a would do:
    kubectl get services,endpointslices,nodes -A -o yaml > manifests/cluster.yaml
    sheave plan --manifests manifests --node node-a

  Which prefixes it would announce with a config of yours:
    sheave plan --manifests manifests --node node-a --config sheave.yaml -o json | jq '.announcements[].prefix'

  What a change comes to, before you apply it:
    diff <(sheave plan --manifests now --node node-a) <(sheave plan --manifests then --node node-a)

Exit codes: 0 done; 1 the config, or something in a manifest, is wrong; 2 usage. What is wrong is named on stderr with
file, line and field. In a manifest it costs the object that it is in (of a document that is no YAML: all that are in
it); the plan of everything else is printed.")]
pub(super) struct Args {
    /// Directory of .yaml, .yml and .json files with Services, EndpointSlices, Nodes and ServiceCIDRs (other kinds
    /// are ignored)
    #[arg(long, value_name = "DIR")]
    manifests: PathBuf,

    /// Name of the node to plan for
    #[arg(long)]
    node: String,

    /// Config file; without it the defaults hold
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Output format
    #[arg(short, long, value_enum, default_value_t = Format::Yaml)]
    output: Format,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Format {
    Yaml,
    Json,
}

/// Runs the subcommand.
pub(super) fn run(args: Args) -> ExitCode {
    let Args { manifests: directory, node, config, output } = args;
    let config = match config.map_or_else(|| Ok(Config::default()), |path| Config::load(&path)) {
        Ok(config) => config,
        Err(error) => return failed(&error.to_string()),
    };
    let mut planner = Planner::new(node, config);
    match Manifests::new(&directory).scan() {
        Ok(events) => planner.handle(events),
        Err(error) => {
            return failed(&format!(
                "{}: {error}; give a directory of manifests to --manifests",
                directory.display()
            ));
        }
    };
    for problem in planner.problems() {
        match problem.severity {
            Severity::Error => eprintln!("error: {problem}"),
            Severity::Warning => eprintln!("warning: {problem}"),
        }
    }
    let text = match output {
        Format::Yaml => serde_saphyr::to_string(&Plan::of(&planner)).map_err(|error| error.to_string()),
        Format::Json => json(&planner).map_err(|error| error.to_string()),
    };
    let printed = text.and_then(|text| print(&text).map_err(|error| format!("standard output: {error}")));
    if let Err(error) = printed {
        return failed(&error);
    }
    if planner.problems().iter().any(|problem| problem.severity == Severity::Error) {
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// The plan as `-o json` prints it.
///
/// # Errors
/// None that is known of: everything in it has a form in JSON.
pub fn json(planner: &Planner) -> serde_json::Result<String> {
    serde_json::to_string_pretty(&Plan::of(planner)).map(|text| text + "\n")
}

/// The printed plan. Its keys are a contract: none is ever left out.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Plan<'a> {
    node: &'a str,
    virtual_servers: Vec<VirtualServer>,
    acceptance: Vec<Acceptance>,
    announcements: Vec<Announcement>,
    vip_routes: Vec<IpNet>,
    source_ranges: Vec<SourceRange>,
    health_checks: Vec<HealthCheck>,
    peers: Vec<Peer>,
    warnings: Vec<Warning>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct VirtualServer {
    service: String,
    service_port: Option<String>,
    kind: VipKind,
    protocol: String,
    address: IpAddr,
    port: u16,
    scheduler: Scheduler,
    scheduler_flags: Vec<&'static str>,
    persistence_seconds: Option<u32>,
    destinations: Vec<Destination>,
}

#[derive(Serialize)]
struct Destination {
    address: IpAddr,
    port: u16,
    forwarding: Forwarding,
    weight: u32,
    node: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Acceptance {
    endpoint: IpAddr,
    protocol: String,
    vip: IpAddr,
    port: u16,
    target_port: u16,
    #[serde(rename = "in")]
    accepted_in: AcceptedIn,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Announcement {
    prefix: IpNet,
    kind: AnnouncementKind,
    service: Option<String>,
    communities: Vec<String>,
    large_communities: Vec<String>,
    local_pref: Option<u32>,
    med: Option<u32>,
    as_path_prepend: u8,
}

#[derive(Serialize)]
struct SourceRange {
    protocol: String,
    address: IpAddr,
    port: u16,
    allow: Vec<IpNet>,
}

#[derive(PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
struct HealthCheck {
    service: String,
    port: u16,
    local_endpoints: usize,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Peer {
    /// Or where it is to be found: its interface, or a default gateway.
    address: String,
    /// `None`: whichever the peer says.
    asn: Option<u32>,
    source: &'static str,
    bfd: bool,
    graceful_restart: bool,
}

impl<'a> Plan<'a> {
    fn of(planner: &'a Planner) -> Self {
        let plan = planner.plan();

        let mut virtual_servers: Vec<_> = plan.virtual_servers.values().map(VirtualServer::of).collect();
        virtual_servers.sort_unstable_by(|a, b| {
            let key = |server: &VirtualServer| (server.kind, server.address, server.port);
            a.service
                .cmp(&b.service)
                .then_with(|| key(a).cmp(&key(b)))
                .then_with(|| a.protocol.cmp(&b.protocol))
        });

        let mut acceptance: Vec<_> = plan
            .rewrites
            .iter()
            .filter(|(key, _)| key.side == RewriteSide::Endpoint)
            .map(|(key, rewrite)| Acceptance {
                endpoint: key.endpoint,
                vip: key.vip.address,
                port: key.vip.port,
                protocol: key.vip.protocol.to_string(),
                target_port: rewrite.target_port,
                accepted_in: rewrite.accepted_in,
            })
            .collect();
        acceptance.sort_unstable_by(|a, b| {
            let key = |accepted: &Acceptance| (accepted.endpoint, accepted.vip, accepted.port);
            key(a).cmp(&key(b)).then_with(|| a.protocol.cmp(&b.protocol))
        });

        let alone = |announced: &&crate::plan::Announcement| plan.aggregate_of(&announced.prefix).is_none();
        let mut announcements: Vec<_> =
            plan.announcements.values().filter(alone).map(Announcement::of).collect();
        announcements.sort_unstable_by(|a, b| {
            a.service.cmp(&b.service).then_with(|| (a.kind, a.prefix).cmp(&(b.kind, b.prefix)))
        });

        let mut source_ranges: Vec<_> = plan
            .source_ranges
            .values()
            .map(|range| SourceRange {
                address: range.vip.address,
                port: range.vip.port,
                protocol: range.vip.protocol.to_string(),
                allow: range.allow.iter().copied().collect(),
            })
            .collect();
        source_ranges
            .sort_unstable_by(|a, b| (a.address, a.port, &a.protocol).cmp(&(b.address, b.port, &b.protocol)));

        let mut health_checks: Vec<_> = plan
            .health_checks()
            .map(|check| HealthCheck {
                service: check.service.to_string(),
                port: check.port,
                local_endpoints: check.local_endpoints,
            })
            .collect();
        health_checks.sort_unstable();

        let router = &planner.config().router;
        let mut sorted: Vec<_> = router.peers.iter().collect();
        sorted.sort_unstable_by_key(|peer| (peer.address, &peer.interface));
        let peers = sorted
            .into_iter()
            .map(|peer| Peer {
                address: peer.address.ip().map_or_else(|| peer.name(), |address| address.to_string()),
                asn: peer.asn.number(router.asn),
                source: match peer.source {
                    PeerSource::Config => "config",
                    PeerSource::Annotation => "annotation",
                    PeerSource::Mesh => "mesh",
                },
                bfd: peer.bfd.is_some(),
                graceful_restart: router.graceful_restart.is_some(),
            })
            .collect();

        Self {
            node: planner.node(),
            virtual_servers,
            acceptance,
            announcements,
            vip_routes: plan.vip_routes().into_iter().collect(),
            source_ranges,
            health_checks,
            peers,
            warnings: planner.warnings().into_iter().collect(),
        }
    }
}

impl VirtualServer {
    fn of(server: &crate::plan::VirtualServer) -> Self {
        Self {
            service: server.service.to_string(),
            service_port: server.service_port.as_deref().map(str::to_owned),
            kind: server.kind,
            protocol: server.vip.protocol.to_string(),
            address: server.vip.address,
            port: server.vip.port,
            scheduler: server.scheduler,
            scheduler_flags: server.scheduler_flags.names(server.scheduler),
            persistence_seconds: server.persistence,
            destinations: server
                .destinations
                .iter()
                .map(|destination| Destination {
                    address: destination.address,
                    port: destination.port,
                    forwarding: destination.forwarding,
                    weight: destination.weight,
                    node: destination.node.as_deref().map(str::to_owned),
                })
                .collect(),
        }
    }
}

impl Announcement {
    fn of(announcement: &crate::plan::Announcement) -> Self {
        Self {
            prefix: announcement.prefix,
            kind: announcement.kind,
            service: announcement.service.as_ref().map(ToString::to_string),
            communities: announcement
                .communities
                .iter()
                .map(|community| format!("{}:{}", community >> 16, community & 0xffff))
                .collect(),
            large_communities: announcement
                .large_communities
                .iter()
                .map(|(global, local1, local2)| format!("{global}:{local1}:{local2}"))
                .collect(),
            local_pref: announcement.local_pref,
            med: announcement.med,
            as_path_prepend: announcement.as_path_prepend,
        }
    }
}
