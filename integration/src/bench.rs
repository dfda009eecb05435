//! Measurements, side by side in one run on one kernel.
//!
//! Loading: the same virtual servers into an empty network namespace (a) by the agent's apply path, from objects
//! already parsed, (b) by a replay of the same netlink messages, encoded beforehand, (c) by `ipvsadm -R`.
//! Changing: one endpoint of one Service, among few and among many Services.
//! Resting: what a minute costs in which nothing changes.
//! BGP: a full table to a peer, and from many, by this speaker and others.
//!
//! Every case is a process of its own in a namespace of its own; its memory is the kernel's high-water mark,
//! reset when the clock starts.

pub mod api;
mod bgp;
pub mod memory;
pub mod population;
mod source;

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use clap::{Subcommand, ValueEnum};
use sheave::cluster::{
    Endpoint, EndpointPort, EndpointSlice, Event, Node, Object, Protocol, Service, ServiceName, ServicePort,
    SliceName, TrafficPolicy,
};
use sheave::config::{Config, MarkMask, Services};
use sheave::dataplane::{Dataplane, Settings};
use sheave::plan::{Forwarding, Planner};
use sheave_ipvs::{Ipvs, Operation};

use self::memory::Memory;
use crate::netns::NetNs;
use crate::process;

/// Endpoints of each Service.
const ENDPOINTS: u16 = 10;
/// How many times a change is repeated; odd, for the median.
const CHANGES: usize = 21;
/// The node that is measured; endpoints are spread over it and `REMOTE`.
const NODE: &str = "node-a";
const REMOTE: &str = "node-b";

/// One case, as a process of its own.
#[derive(Clone, Debug, Subcommand)]
#[expect(missing_docs, reason = "how many of what, where to keep files, the other namespace")]
pub enum Case {
    /// (a) the agent's apply path.
    Agent {
        services: u16,
        state: PathBuf,
        /// `services.forwarding: {internal: nat}`.
        #[arg(long)]
        internal_nat: bool,
    },
    /// (b) a replay of what the namespace of that name holds.
    Replay { from: String },
    /// One endpoint changed.
    Change { services: u16, state: PathBuf },
    /// Nothing changed.
    Idle { services: u16, state: PathBuf },
    /// A source and its plan.
    Source { kubeconfig: PathBuf },
    /// A BGP speaker that sends so many prefixes to so many peers.
    Announce { peers: u32, prefixes: u32 },
    /// A BGP speaker that receives.
    Receive,
}

/// A part of the measurements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// The dataplane alone: loading, changing, resting.
    Kernel,
    /// The whole agent against an API server.
    Api,
    /// The BGP speaker beside others.
    Bgp,
}

/// Runs one part or all with this many Services and prints the figures.
///
/// # Errors
/// When a case fails.
pub fn run(part: Option<Part>, services: u16, sheave: &Path, work: &Path) -> Result<()> {
    let wanted = |one| part.is_none_or(|part| part == one);
    if wanted(Part::Kernel) {
        kernel(services, work)?;
    }
    if wanted(Part::Api) {
        api::run(services, sheave, work)?;
    }
    if wanted(Part::Bgp) {
        bgp::run(work)?;
    }
    Ok(())
}

/// The dataplane alone. An error too when the kernels' tables differ.
fn kernel(services: u16, work: &Path) -> Result<()> {
    fs::create_dir_all(work)?;
    // Neither (a) nor (c) shall pay for reading its program from disk.
    let warm = namespace("bench-warm")?;
    warm.run("nft list tables")?;
    warm.run("ipvsadm -Ln")?;
    println!("{services} virtual servers × {ENDPOINTS} destinations into an empty network namespace");
    println!("{:<44} {:>10} {:>12} {:>12}", "", "time", "peak memory", "against (b)");
    let agent = namespace("bench-agent")?;
    let figures = case(&agent, &["agent", &services.to_string(), &path(work, "agent")])?;
    let saved = agent.run("ipvsadm -Sn")?;
    let expected = usize::from(services) * (1 + usize::from(ENDPOINTS));
    ensure!(saved.lines().count() == expected, "the agent made {} entries", saved.lines().count());

    let replay = namespace("bench-replay")?;
    let replayed = case(&replay, &["replay", agent.name()])?;
    ensure!(sorted(&replay.run("ipvsadm -Sn")?) == sorted(&saved), "the replay made another table");

    let ipvsadm = namespace("bench-ipvsadm")?;
    let (time, peak) = restore(&ipvsadm, &saved, work)?;
    ensure!(sorted(&ipvsadm.run("ipvsadm -Sn")?) == sorted(&saved), "ipvsadm made another table");

    let raw = figures_of(&replayed, "time")?;
    let row = |name: &str, time: f64, peak: f64| {
        println!("{name:<44} {time:>8.3} s {:>8.1} MiB {:>11.2}×", peak / 1024.0, time / raw);
    };
    row(
        "(a) agent: plan, nftables, routes, IPVS",
        figures_of(&figures, "time")?,
        figures_of(&figures, "peak")?,
    );
    row("    of that: plan", figures_of(&figures, "plan")?, figures_of(&figures, "peak")?);
    row("    of that: IPVS alone", figures_of(&figures, "ipvs")?, figures_of(&figures, "peak")?);
    row("(b) replay of the same netlink messages", raw, figures_of(&replayed, "peak")?);
    row("(c) ipvsadm -R", time.as_secs_f64(), peak);
    let inside = namespace("bench-inside")?;
    let state = path(work, "inside");
    let figures_inside = case(&inside, &["agent", "--internal-nat", &services.to_string(), &state])?;
    row(
        "(d) as (a), forwarding.internal: nat",
        figures_of(&figures_inside, "time")?,
        figures_of(&figures_inside, "peak")?,
    );
    println!("(c) / (a): {:.1}×", time.as_secs_f64() / figures_of(&figures, "time")?);

    println!("\none endpoint changed (median of {CHANGES})");
    println!(
        "{:>10} {:>16} {:>12} {:>16} {:>12}",
        "Services", "remote endpoint", "messages", "own endpoint", "messages"
    );
    for services in [100, 1_000, services] {
        let namespace = namespace("bench-change")?;
        let figures = case(&namespace, &["change", &services.to_string(), &path(work, "change")])?;
        println!(
            "{services:>10} {:>13.3} ms {:>12.1} {:>13.3} ms {:>12.1}",
            figures_of(&figures, "remote")? * 1e3,
            figures_of(&figures, "remote-messages")?,
            figures_of(&figures, "own")? * 1e3,
            figures_of(&figures, "own-messages")?,
        );
    }

    println!("\nCPU time of a minute in which nothing changes");
    println!("{:>10} {:>16} {:>20}", "Services", "looks and ticks", "were all listed");
    for services in [100, 1_000, services] {
        let namespace = namespace("bench-idle")?;
        let figures = case(&namespace, &["idle", &services.to_string(), &path(work, "idle")])?;
        println!(
            "{services:>10} {:>14.3} s {:>18.3} s",
            figures_of(&figures, "idle")?,
            figures_of(&figures, "listed")?
        );
    }
    Ok(())
}

/// Runs one case in this process and prints its figures as `name value` lines: seconds, KiB.
///
/// # Errors
/// When the kernel refuses something.
pub fn run_case(case: &Case) -> Result<()> {
    match case {
        Case::Agent { services, state, internal_nat } => agent(*services, state, *internal_nat),
        Case::Replay { from } => replay(from),
        Case::Change { services, state } => change(*services, state),
        Case::Idle { services, state } => idle(*services, state),
        Case::Source { kubeconfig } => source::run(kubeconfig),
        Case::Announce { peers, prefixes } => bgp::announce(*peers, *prefixes),
        Case::Receive => bgp::receive(),
    }
}

fn agent(services: u16, state: &Path, internal_nat: bool) -> Result<()> {
    let events = cluster(services);
    let mut config = config();
    if internal_nat {
        config.services.forwarding.internal = Forwarding::Nat;
        // A number for each endpoint.
        config.services.mark_mask = MarkMask::new(0x3_ffff).context("mask")?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        memory::reset_peak(std::process::id())?;
        let began = Instant::now();
        let mut planner = Planner::new(NODE, config);
        planner.handle(events);
        let planned = began.elapsed();
        let mut dataplane = open(&planner.config().services, state)?;
        dataplane.sync(planner.plan(), Instant::now()).await;
        figure("time", began.elapsed());
        figure("plan", planned);
        figure("ipvs", dataplane.ipvs_time());
        print_peak()?;
        ensure!(dataplane.problems().is_empty(), "{:?}", dataplane.problems());
        Ok(())
    })
}

fn replay(from: &str) -> Result<()> {
    let listed = NetNs::open(from)?.enter(|| Ipvs::open()?.dump())??;
    let mut ipvs = Ipvs::open()?;
    let mut batch = ipvs.batch();
    for entry in &listed {
        batch.push(&Operation::AddService(entry.service));
        // The kernel lists the newest first.
        for destination in entry.destinations.iter().rev() {
            batch.push(&Operation::AddDestination(entry.service.key, destination.destination));
        }
    }
    drop(listed);
    memory::reset_peak(std::process::id())?;
    let began = Instant::now();
    let applied = ipvs.apply_batch(&mut batch)?;
    figure("time", began.elapsed());
    print_peak()?;
    ensure!(applied.failures.is_empty(), "{:?}", applied.failures.first());
    Ok(())
}

/// So many Services, and the kernel as they want it.
async fn synced(services: u16, state: &Path) -> Result<(Planner, Dataplane)> {
    let mut planner = Planner::new(NODE, config());
    planner.handle(cluster(services));
    let mut dataplane = open(&planner.config().services, state)?;
    dataplane.sync(planner.plan(), Instant::now()).await;
    Ok((planner, dataplane))
}

fn change(services: u16, state: &Path) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (mut planner, mut dataplane) = synced(services, state).await?;
        let index = services / 2;
        for (name, endpoint) in [("remote", 1), ("own", 0)] {
            let mut times = Vec::new();
            let before = dataplane.ipvs_messages();
            for turn in 0..CHANGES {
                let mut slice = slice(index);
                slice.endpoints[endpoint].ready = turn % 2 == 1;
                let began = Instant::now();
                let delta = planner.handle([Event::Apply(Object::EndpointSlice(Arc::new(slice)))]);
                dataplane.apply(planner.plan(), &delta, began).await;
                times.push(began.elapsed());
            }
            times.sort_unstable();
            figure(name, times[CHANGES / 2]);
            let messages = dataplane.ipvs_messages() - before;
            println!("{name}-messages {}", messages as f64 / CHANGES as f64);
        }
        ensure!(dataplane.problems().is_empty(), "{:?}", dataplane.problems());
        Ok(())
    })
}

/// A minute of the agent's loop: 60 ticks, 4 looks.
fn idle(services: u16, state: &Path) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (planner, mut dataplane) = synced(services, state).await?;
        // The first look learns how nft shows our rules.
        dataplane.check(planner.plan(), Instant::now()).await;
        let before = cpu_time()?;
        for _ in 0..4 {
            for _ in 0..15 {
                dataplane.tick(planner.plan(), Instant::now()).await;
            }
            let done = dataplane.check(planner.plan(), Instant::now()).await;
            ensure!(done.is_empty(), "{done:?}");
        }
        figure("idle", cpu_time()? - before);
        let before = cpu_time()?;
        for _ in 0..4 {
            dataplane.sync(planner.plan(), Instant::now()).await;
        }
        figure("listed", cpu_time()? - before);
        ensure!(dataplane.problems().is_empty(), "{:?}", dataplane.problems());
        Ok(())
    })
}

/// CPU time of this process's only thread (schedstat: exact) and of its children that ended (proc_pid_stat(5): in ticks of 10 ms).
fn cpu_time() -> Result<Duration> {
    let own = fs::read_to_string("/proc/thread-self/schedstat")?;
    let own = own.split_whitespace().next().context("schedstat")?.parse()?;
    let stat = fs::read_to_string("/proc/self/stat")?;
    let fields = stat.rsplit_once(')').context("stat")?.1.split_whitespace();
    let ticks: u64 = fields.skip(13).take(2).map(|field| field.parse().unwrap_or(0)).sum();
    Ok(Duration::from_nanos(own) + Duration::from_millis(10 * ticks))
}

/// `ipvsadm -R`, timed, with its peak memory in KiB.
fn restore(namespace: &NetNs, saved: &str, work: &Path) -> Result<(Duration, f64)> {
    let file = work.join("saved");
    fs::write(&file, saved)?;
    let input = fs::File::open(&file)?;
    let mut command = Command::new("ipvsadm");
    command.arg("-R").stdin(input).stdout(Stdio::null());
    let began = Instant::now();
    let mut child = namespace.enter(|| command.spawn())??;
    let mut peak = 0.0;
    let status = loop {
        if let Ok(now) = Memory::of(child.id()) {
            peak = now.peak as f64;
        }
        if let Some(status) = child.try_wait()? {
            break status;
        }
        thread::sleep(Duration::from_millis(5));
    };
    ensure!(status.success(), "ipvsadm -R: {status}");
    Ok((began.elapsed(), peak))
}

fn open(services: &Services, state: &Path) -> Result<Dataplane> {
    let (mark_mask, encapsulation) = (services.mark_mask, services.encapsulation);
    Ok(Dataplane::open(&Settings {
        mark_mask,
        encapsulation,
        strict_arp: false,
        conntrack: services.conntrack.clone(),
        state_directory: state.into(),
    })?)
}

/// A namespace with an uplink, emptied if it was there.
fn namespace(name: &str) -> Result<NetNs> {
    let shell = |line: &str| {
        let mut words = line.split_whitespace();
        let mut command = Command::new(words.next().unwrap_or_default());
        command.args(words);
        process::run(command, "")
    };
    if Path::new("/run/netns").join(name).exists() {
        shell(&format!("ip netns del {name}"))?;
    }
    shell(&format!("ip netns add {name}"))?;
    let namespace = NetNs::open(name)?;
    namespace.ip("link set lo up\nlink add up0 type dummy\naddr add 10.0.0.11/24 dev up0\nlink set up0 up\nroute add default via 10.0.0.1\n")?;
    Ok(namespace)
}

/// Runs this program again for one case inside a namespace and returns the figures it printed.
fn case(namespace: &NetNs, arguments: &[&str]) -> Result<BTreeMap<String, f64>> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("bench-case").args(arguments);
    let printed = namespace.enter(|| process::run(command, ""))??;
    printed
        .lines()
        .map(|line| {
            let (name, value) = line.split_once(' ').with_context(|| format!("figure {line:?}"))?;
            Ok((name.to_owned(), value.parse()?))
        })
        .collect()
}

fn figures_of(figures: &BTreeMap<String, f64>, name: &str) -> Result<f64> {
    figures.get(name).copied().with_context(|| format!("no figure {name}"))
}

fn figure(name: &str, time: Duration) {
    println!("{name} {}", time.as_secs_f64());
}

fn print_peak() -> Result<()> {
    println!("peak {}", Memory::of(std::process::id())?.peak);
    Ok(())
}

fn sorted(text: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    lines
}

fn path(work: &Path, name: &str) -> String {
    work.join(name).display().to_string()
}

fn config() -> Config {
    let mut config = Config::default();
    config.services.service_cidrs = vec!["10.96.0.0/12".parse().expect("a prefix")];
    config
}

fn cluster(services: u16) -> Vec<Event> {
    let nodes = [(NODE, [10, 0, 0, 11], "10.244.0.0/16"), (REMOTE, [10, 0, 0, 12], "10.245.0.0/16")];
    let nodes = nodes.map(|(name, address, pods)| {
        Event::Apply(Object::Node(Arc::new(Node {
            name: name.into(),
            annotations: [("sheave.io/accepts".into(), "true".into())].into(),
            addresses: vec![IpAddr::from(address)],
            pod_cidrs: vec![pods.parse().expect("a prefix")],
            zone: None,
            deleting: false,
            to_be_deleted: false,
            excluded_from_load_balancers: false,
            taints: Vec::new(),
        })))
    });
    let objects = (0..services).flat_map(|index| {
        [Object::Service(Arc::new(service(index))), Object::EndpointSlice(Arc::new(slice(index)))]
            .map(Event::Apply)
    });
    nodes.into_iter().chain(objects).chain([Event::Synced]).collect()
}

fn name(index: u16) -> ServiceName {
    ServiceName { namespace: "default".into(), name: format!("service-{index}").into() }
}

fn service(index: u16) -> Service {
    let [high, low] = index.to_be_bytes();
    Service {
        name: name(index),
        created: Some(SystemTime::UNIX_EPOCH),
        annotations: BTreeMap::new(),
        skipped: None,
        cluster_ips: vec![IpAddr::from([10, 96, high, low])],
        external_ips: Vec::new(),
        load_balancer_ips: Vec::new(),
        load_balancer_class: None,
        source_ranges: Vec::new(),
        ports: vec![ServicePort { name: None, protocol: Protocol::Tcp, port: 80, node_port: None }],
        client_ip_affinity: None,
        external_traffic_policy: TrafficPolicy::Cluster,
        internal_traffic_policy: TrafficPolicy::Cluster,
        traffic_distribution: None,
        health_check_node_port: None,
    }
}

/// Endpoint 0 of every fiftieth Service is on the measured node, all others elsewhere: 200 of 10,000.
fn slice(index: u16) -> EndpointSlice {
    let own = index.is_multiple_of(50);
    let endpoints = (0..ENDPOINTS).map(|endpoint| {
        let [high, low] = index.wrapping_mul(ENDPOINTS).wrapping_add(endpoint).to_be_bytes();
        let here = own && endpoint == 0;
        Endpoint {
            address: IpAddr::from([10, if here { 244 } else { 245 }, high, low]),
            ready: true,
            serving: true,
            terminating: false,
            node: Some(if here { NODE } else { REMOTE }.into()),
            hints: None,
        }
    });
    EndpointSlice {
        name: SliceName { namespace: "default".into(), name: format!("service-{index}-a").into() },
        service: Some(name(index)),
        endpoints: endpoints.collect(),
        // The port of the Service: `ipvsadm` knows no other for tunnels.
        ports: vec![EndpointPort { name: None, protocol: Protocol::Tcp, port: 80 }],
    }
}
