//! The real agent against an API server: start, memory, rest, changes, and a list read anew.
//!
//! The double is in this process, the agent in one of its own, both in one network namespace; so the agent's figures
//! are its alone, though both have to share the CPUs.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sheave_apiserver::{Api, Options, Reach, Server, StreamingLists};
use sheave_ipvs::{Ipvs, Protocol, ServiceKey};

use super::memory::{Memory, reset_peak};
use super::namespace;
use super::population::{ENDPOINTS, NODE, NODE_ADDRESS, Population, cluster_ip};
use crate::netns::NetNs;
use crate::process::Daemon;
use crate::wait::await_some;

/// How long anything may take; emulation is slow.
const LIMIT: Duration = Duration::from_secs(180);
/// How many changes are timed at each size.
const CHANGES: u32 = 200;
/// How long an agent rests while its CPU time is measured.
const REST: Duration = Duration::from_secs(60);
/// How exactly the kernel is watched for a change.
const LOOK: Duration = Duration::from_micros(500);

/// Where the agent's metrics are (the default of `observe.metrics`).
const METRICS: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 10249);

/// Goals, with the largest number of Services: KiB of memory, CPU time of a minute.
const PEAK: u64 = 120 << 10;
const STEADY: u64 = 80 << 10;
const IDLE: Duration = Duration::from_millis(600);

/// Runs everything with up to this many Services and prints the figures.
///
/// # Errors
/// When the agent does not do what it should.
pub fn run(services: u16, sheave: &Path, work: &Path) -> Result<()> {
    fs::create_dir_all(work)?;
    let services = u32::from(services);
    println!("The agent and an API server with {ENDPOINTS} endpoints for each Service, 1,000 Nodes\n");
    println!(
        "{:>8} {:>10} {:>10} {:>10} {:>10} {:>14} {:>12} {:>12}",
        "Services", "lists", "synced", "peak", "after", "endpoint: p50", "p99", "slowest"
    );
    let (mut among_few, mut among_many) = (Duration::ZERO, Duration::ZERO);
    // The smallest once more at the end: what else this machine does changes meanwhile.
    for count in [100, 1_000, services, 100] {
        let mut bench = Bench::start(count, StreamingLists::Served, sheave, work)?;
        let after = bench.memory()?;
        let times = bench.changes()?;
        row(count, "streaming", bench.synced, after, Some(&times));
        if count == 100 {
            among_few += times.median() / 2;
        }
        if count == services {
            among_many = times.median();
        }
    }
    let mut bench = Bench::start(services, StreamingLists::Rejected, sheave, work)?;
    row(services, "paged", bench.synced, bench.memory()?, None);
    drop(bench);

    bench = Bench::start(services, StreamingLists::Served, sheave, work)?;
    let peak = bench.memory()?.peak;
    let cpu = bench.rest()?;
    let steady = bench.memory()?.resident;
    let (relist, relist_peak, operations) = bench.relist()?;

    println!("\nWith {services} Services");
    let mib = |kib: u64| format!("{:.1} MiB", kib as f64 / 1024.0);
    let verdict = |good: bool| if good { "good" } else { "MISSED" };
    let line = |what: &str, figure: String, goal: String, good: bool| {
        println!("{what:<52} {figure:>14}   goal {goal:<14} {}", verdict(good));
    };
    line("peak memory at the start", mib(peak), mib(PEAK), peak <= PEAK);
    line("memory a minute later", mib(steady), mib(STEADY), steady <= STEADY);
    line("peak memory while all is listed anew", mib(relist_peak), mib(PEAK), relist_peak <= PEAK);
    line("CPU time of a minute at rest", format!("{cpu:.2?}"), format!("{IDLE:.2?}"), cpu <= IDLE);
    let growth = among_many.as_secs_f64() / among_few.as_secs_f64();
    let what = format!("median change among {services} Services against 100");
    line(&what, format!("{growth:.2}×"), "1.5×".into(), growth <= 1.5);
    let what = "list read anew with one endpoint changed: operations";
    line(what, operations.to_string(), "2".into(), operations == 2);
    println!("list read anew, from the server's return to the kernel: {relist:.2?}");
    Ok(())
}

fn row(count: u32, lists: &str, synced: Duration, memory: Memory, times: Option<&Times>) {
    let mib = |kib: u64| format!("{:.1} MiB", kib as f64 / 1024.0);
    let times = times.map_or_else(String::new, |times| {
        let [median, late, slowest] = [times.median(), times.at(99), times.at(100)].map(ms);
        format!("{median:>14} {late:>12} {slowest:>12}")
    });
    let synced = format!("{:.2} s", synced.as_secs_f64());
    println!(
        "{count:>8} {lists:>10} {synced:>10} {:>10} {:>10} {times}",
        mib(memory.peak),
        mib(memory.resident)
    );
}

fn ms(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

/// How long changes took, sorted.
struct Times(Vec<Duration>);

impl Times {
    fn median(&self) -> Duration {
        self.at(50)
    }

    /// The time that so many percent of the changes took at most.
    fn at(&self, percent: usize) -> Duration {
        self.0[(self.0.len() * percent).div_ceil(100).saturating_sub(1)]
    }
}

/// A running agent and its API server.
struct Bench {
    population: Population,
    server: Server,
    agent: Daemon,
    ipvs: Ipvs,
    namespace: NetNs,
    /// From the agent's start to all that it has to do.
    synced: Duration,
}

impl Bench {
    fn start(services: u32, lists: StreamingLists, sheave: &Path, work: &Path) -> Result<Self> {
        let namespace = namespace("bench-api")?;
        namespace.ip(&format!("addr add {NODE_ADDRESS}/12 dev up0\n"))?;
        let server = serve(&namespace)?;
        let population = Population { services };
        population.load(server.api())?;
        server.api().set_streaming_lists(lists);
        let state = work.join(format!("api-{services}-{lists:?}"));
        let _ = fs::remove_dir_all(&state);
        fs::create_dir_all(&state)?;
        let write = |name: &str, text: &str| -> Result<PathBuf> {
            let path = state.join(name);
            fs::write(&path, text).with_context(|| path.display().to_string())?;
            Ok(path)
        };
        let config = format!(
            "services: {{serviceCIDRs: [10.96.0.0/12]}}\nobserve: {{status: {}}}\n",
            state.join("status.sock").display()
        );
        let mut command = Command::new(sheave);
        command.args(["agent", "--node", NODE]);
        command.arg("--config").arg(write("config.yaml", &config)?);
        command.arg("--kubeconfig").arg(write("kubeconfig", &server.kubeconfig())?);
        // What a released agent logs.
        command.env_remove("RUST_LOG");
        let log = state.join("log");
        let ipvs = namespace.enter(Ipvs::open)??;
        let began = Instant::now();
        let mut agent = namespace.daemon(command, &log)?;
        await_some(LIMIT, "the agent to be ready", || {
            agent.ensure_running().map_err(|error| error.to_string())?;
            let text = fs::read_to_string(&log).map_err(|error| error.to_string())?;
            if text.contains(" ready ") { Ok(()) } else { Err(agent.log_tail(3)) }
        })?;
        let synced = began.elapsed();
        let mut bench = Self { population, server, agent, ipvs, namespace, synced };
        for service in [0, services / 2, services - 1] {
            let held = bench.destinations(service)?;
            ensure!(held == ENDPOINTS as usize, "Service {service} has {held} destinations");
        }
        Ok(bench)
    }

    fn api(&self) -> &Api {
        self.server.api()
    }

    fn memory(&self) -> Result<Memory> {
        Memory::of(self.agent.id())
    }

    fn destinations(&mut self, service: u32) -> Result<usize> {
        let key =
            ServiceKey::Address { protocol: Protocol::Tcp, address: cluster_ip(service).into(), port: 80 };
        Ok(self.ipvs.destinations(&key)?.len())
    }

    /// Changes an endpoint of one Service after the other.
    fn changes(&mut self) -> Result<Times> {
        let mut times = Vec::new();
        for turn in 0..CHANGES {
            // Spread; each Service's endpoint goes first and comes back the next time, if there is one.
            let service = (turn * 7) % self.population.services;
            let ready = (turn * 7) / self.population.services % 2 == 1;
            times.push(self.change(service, ready)?);
        }
        times.sort_unstable();
        Ok(Times(times))
    }

    fn change(&mut self, service: u32, ready: bool) -> Result<Duration> {
        let began = Instant::now();
        self.population.set_ready(self.api(), service, ready)?;
        self.await_change(service, ready)?;
        Ok(began.elapsed())
    }

    fn await_change(&mut self, service: u32, ready: bool) -> Result<()> {
        let expected = ENDPOINTS as usize - usize::from(!ready);
        let end = Instant::now() + LIMIT;
        while self.destinations(service)? != expected {
            ensure!(
                Instant::now() < end,
                "Service {service} has not {expected} destinations within {LIMIT:?}"
            );
            thread::sleep(LOOK);
        }
        Ok(())
    }

    /// CPU time of the agent, and of what it runs, while nothing changes.
    fn rest(&self) -> Result<Duration> {
        let before = self.cpu_time()?;
        thread::sleep(REST);
        Ok(self.cpu_time()? - before)
    }

    /// Of all threads (schedstat: exact) and of children that ended (proc_pid_stat(5): in ticks of 10 ms).
    fn cpu_time(&self) -> Result<Duration> {
        let process = PathBuf::from(format!("/proc/{}", self.agent.id()));
        let mut nanoseconds = 0;
        for thread in fs::read_dir(process.join("task"))? {
            let text = fs::read_to_string(thread?.path().join("schedstat"))?;
            nanoseconds += text.split_whitespace().next().context("schedstat")?.parse::<u64>()?;
        }
        let stat = fs::read_to_string(process.join("stat"))?;
        let fields = stat.rsplit_once(')').context("stat")?.1.split_whitespace();
        let ticks: u64 = fields.skip(13).take(2).map(|field| field.parse().unwrap_or(0)).sum();
        Ok(Duration::from_nanos(nanoseconds) + Duration::from_millis(10 * ticks))
    }

    /// The server goes away, an endpoint changes, history is truncated, the server comes back: everything is listed anew.
    /// Gives the time until the kernel has the change, the peak of memory, and the operations on IPVS.
    fn relist(&mut self) -> Result<(Duration, u64, u64)> {
        let service = self.population.services / 3;
        let before = self.ipvs_messages()?;
        reset_peak(self.agent.id())?;
        self.api().set_reach(Reach::Refused);
        self.population.set_ready(self.api(), service, false)?;
        self.api().compact();
        self.api().set_reach(Reach::Up);
        let began = Instant::now();
        self.await_change(service, false)?;
        let took = began.elapsed();
        let peak = self.memory()?.peak;
        Ok((took, peak, self.ipvs_messages()? - before))
    }

    fn ipvs_messages(&self) -> Result<u64> {
        const NAME: &str = "sheave_ipvs_messages_total ";
        let text = self.namespace.enter(|| -> Result<String> {
            let mut stream = TcpStream::connect(METRICS)?;
            stream.set_read_timeout(Some(LIMIT))?;
            stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        })??;
        let value = text.lines().find_map(|line| line.strip_prefix(NAME)).context(NAME)?;
        Ok(value.parse()?)
    }
}

fn serve(namespace: &NetNs) -> Result<Server> {
    let namespace = namespace.clone();
    let address = SocketAddr::from(([127, 0, 0, 1], 6443));
    let bind = move || namespace.enter(|| TcpListener::bind(address)).map_err(std::io::Error::other)?;
    Server::bind(Options::default(), Box::new(bind))
}
