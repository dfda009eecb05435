//! The fabric with a cluster on it: servers in the pods, an agent on every node.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use serde_json::Value;
use sheave::cluster::Protocol;

use crate::cluster::{Manifests, Service};
use crate::fabric::addresses::{self, Family, NODE_ASN};
use crate::fabric::{Fabric, LEAVES, OWN_TABLE, Routing, Watch};
use crate::figures::Figures;
use crate::kernel;
use crate::process::Daemon;
use crate::source::{ApiServer, Source};
use crate::traffic::Server;
use crate::wait::await_some;

/// Port of the servers in pods and on the external host.
pub const POD_PORT: u16 = 8080;

/// Port of the servers on the nodes' own addresses (hostNetwork).
pub const HOST_PORT: u16 = 9090;

/// How long the agents may take to follow a change; a BGP session may have to come up first.
const CONVERGENCE: Duration = Duration::from_secs(40);

/// How long an agent may take to end after SIGTERM.
const STOP: Duration = Duration::from_secs(10);

/// The nodes' configurations: those that the quick start shows.
const CONFIGS: [(&str, &str); 3] = [
    ("node-a", include_str!("../../examples/quickstart/config/node-a.yaml")),
    ("node-b", include_str!("../../examples/quickstart/config/node-b.yaml")),
    ("node-c", include_str!("../../examples/quickstart/config/node-c.yaml")),
];

const ON: &str = "#!/bin/sh
# on NODE COMMAND...: runs a command on a node of the lab, with its network and its /run/sheave.
node=$1; shift
exec ip netns exec \"$node\" sh -c 'mount --bind \"$0\" /run/sheave && exec \"$@\"' \"DIR/run/$node\" \"$@\"
";

/// What labs there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The agents read manifests; each node's peers are in its config.
    Manifests,
    /// The agents follow an API server; peers are in annotations of the Nodes.
    Api,
    /// As with manifests, and all routing is BGP's, watched by BFD with this interval.
    Watched(Duration),
    /// Without agents.
    Bare,
}

impl Kind {
    fn routing(self) -> Routing {
        match self {
            Self::Manifests | Self::Api | Self::Bare => Routing::Static,
            Self::Watched(interval) => Routing::Bgp { watch: Watch::Strict, interval },
        }
    }
}

/// A running lab.
pub struct Lab {
    agents: BTreeMap<String, Daemon>,
    servers: Vec<Server>,
    /// The network.
    pub fabric: Fabric,
    /// What the agents are told, and how.
    pub source: Source,
    /// What the scenario that runs has measured.
    pub figures: Figures,
    kind: Kind,
    binary: PathBuf,
    upgraded: BTreeMap<String, PathBuf>,
    dir: PathBuf,
    started: Instant,
}

impl Lab {
    /// Builds the network, starts a server in each pod, on each node and on the external host; no agent yet. `binary` is
    /// `sheave`; configuration, logs and manifests go to `dir`, which is emptied.
    pub fn build(binary: &Path, dir: &Path, kind: Kind) -> Result<Self> {
        if dir.exists() {
            std::fs::remove_dir_all(dir).with_context(|| dir.display().to_string())?;
        }
        std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        let fabric = Fabric::build(3, kind.routing(), dir)?;
        let source = match kind {
            Kind::Manifests | Kind::Watched(_) | Kind::Bare => {
                Source::Manifests(Manifests::create(dir.join("manifests"), &fabric.nodes)?)
            }
            // Beside the spine: reached by routing alone, through no virtual IP.
            Kind::Api => {
                let address = addresses::external(Family::V4);
                Source::Api(ApiServer::start(&fabric.external, address, &fabric.nodes, dir)?.into())
            }
        };
        let every = |port| [(Protocol::Tcp, port), (Protocol::Udp, port), (Protocol::Sctp, port)];
        let mut servers =
            vec![Server::start(&fabric.external, "external", &[every(POD_PORT), every(HOST_PORT)].concat())?];
        for node in &fabric.nodes {
            servers.push(Server::start(&node.ns, &node.name, &every(HOST_PORT))?);
            for pod in &node.pods {
                servers.push(Server::start(&pod.ns, &pod.name, &every(POD_PORT))?);
            }
        }
        let lab = Self {
            started: Instant::now(),
            agents: BTreeMap::new(),
            servers,
            fabric,
            source,
            figures: Figures::default(),
            kind,
            binary: binary.to_owned(),
            upgraded: BTreeMap::new(),
            dir: dir.to_owned(),
        };
        lab.write_files()?;
        Ok(lab)
    }

    /// The same with an agent on every node, where the lab has them.
    pub fn start(binary: &Path, dir: &Path, kind: Kind) -> Result<Self> {
        let mut lab = Self::build(binary, dir, kind)?;
        let agents = if kind == Kind::Bare { Vec::new() } else { lab.node_names() };
        for name in agents {
            lab.start_agent(&name)?;
        }
        Ok(lab)
    }

    /// Time since the network was complete.
    pub fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// The nodes' names.
    pub fn node_names(&self) -> Vec<String> {
        self.fabric.nodes.iter().map(|node| node.name.clone()).collect()
    }

    /// What the agent of a node runs with.
    pub fn config(&self, node: &str) -> PathBuf {
        self.dir.join(format!("{node}.yaml"))
    }

    /// The script `on NODE COMMAND…`: runs a command as if logged in on that node, with its network and its `/run/sheave`.
    pub fn on(&self) -> PathBuf {
        self.dir.join("bin/on")
    }

    /// A command of `sheave` on a node.
    pub fn sheave(&self, node: &str, command: &str) -> Command {
        let mut sheave = Command::new(self.on());
        sheave.arg(node).arg(self.program(node)).arg(command);
        // A cluster that this machine knows or is part of is none of the lab's business.
        sheave.env("HOME", "/nonexistent").env_remove("KUBECONFIG").env_remove("KUBERNETES_SERVICE_HOST");
        sheave
    }

    fn program(&self, node: &str) -> &Path {
        self.upgraded.get(node).unwrap_or(&self.binary)
    }

    /// What the agent of a node says of itself (`sheave status -o json`). Asked often, so by its socket as it is named here, not as on the node.
    pub fn status(&self, node: &str) -> Result<Value> {
        let mut command = Command::new(self.program(node));
        command
            .args(["status", "-o", "json", "--socket"])
            .arg(self.dir.join("run").join(node).join("status.sock"));
        // Its exit code tells of problems; what it prints is wanted.
        let output = command.output().context("sheave status")?;
        serde_json::from_slice(&output.stdout).with_context(|| {
            format!("sheave status on {node}: {}", String::from_utf8_lossy(&output.stderr).trim_end())
        })
    }

    /// Writes what the nodes have on their disks.
    fn write_files(&self) -> Result<()> {
        let write =
            |path: &Path, text: &str| std::fs::write(path, text).with_context(|| path.display().to_string());
        for (node, _) in CONFIGS {
            write(&self.config(node), &self.first_config(node)?)?;
            std::fs::create_dir_all(self.dir.join("run").join(node))?;
        }
        std::fs::create_dir_all(self.dir.join("bin"))?;
        std::fs::create_dir_all("/run/sheave")?;
        write(&self.on(), &ON.replace("DIR", &self.dir.display().to_string()))?;
        std::fs::set_permissions(self.on(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        Ok(())
    }

    /// What the agent of a node is configured with at first.
    fn first_config(&self, node: &str) -> Result<String> {
        let (_, config) = CONFIGS.iter().find(|(name, _)| *name == node).with_context(|| node.to_owned())?;
        let services = config.find("services:").map_or("", |start| &config[start..]);
        Ok(match self.kind {
            Kind::Manifests | Kind::Bare => (*config).to_owned(),
            // Annotations of the Nodes tell all about BGP.
            Kind::Api => services.to_owned(),
            Kind::Watched(interval) => {
                let router = watched_router(self.fabric.node(node)?.number, interval);
                format!("{router}{services}announce: {{podCIDRs: true, kernelTables: [{OWN_TABLE}]}}\n")
            }
        })
    }

    /// Puts another build of the agent in the place of a node's, as an upgrade does: a new file, which the next start runs.
    pub fn upgrade(&mut self, name: &str) -> Result<()> {
        let (draft, path) =
            (self.dir.join(format!("bin/.{name}")), self.dir.join(format!("bin/sheave-{name}")));
        std::fs::copy(&self.binary, &draft).with_context(|| draft.display().to_string())?;
        std::fs::rename(&draft, &path).with_context(|| path.display().to_string())?;
        self.upgraded.insert(name.to_owned(), path);
        Ok(())
    }

    /// Starts the agent of a node.
    pub fn start_agent(&mut self, name: &str) -> Result<()> {
        let mut command = self.sheave(name, "agent");
        command.arg("--config").arg(self.config(name)).arg("--node").arg(name);
        self.source.tell(&mut command);
        command.env("NO_COLOR", "1");
        let agent = Daemon::start(&format!("agent of {name}"), command, &self.log(name))?;
        self.agents.insert(name.to_owned(), agent);
        Ok(())
    }

    /// Ends the agent of a node as an upgrade does (SIGTERM), and waits for that.
    pub fn stop_agent(&mut self, name: &str) -> Result<()> {
        self.agents.remove(name).with_context(|| format!("no agent runs on {name}"))?.terminate(STOP)
    }

    /// Ends the agent of a node as a crash does (SIGKILL).
    pub fn kill_agent(&mut self, name: &str) -> Result<()> {
        self.agents.remove(name).with_context(|| format!("no agent runs on {name}"))?.kill();
        Ok(())
    }

    /// Restarts the agent of a node with more lines at the end of its configuration, which is that of `services`; without any it is
    /// as at first.
    pub fn restart_with(&mut self, name: &str, services: &str) -> Result<()> {
        let text = format!("{}{services}", self.first_config(name)?);
        self.restart_configured(name, &text)
    }

    /// Restarts the agent of a node with another `router` in its configuration.
    pub fn restart_with_router(&mut self, name: &str, router: &str) -> Result<()> {
        let config = self.first_config(name)?;
        let services = config.find("services:").map_or("", |start| &config[start..]);
        self.restart_configured(name, &format!("{router}{services}"))
    }

    /// Restarts the agent of a node with that configuration.
    pub fn restart_configured(&mut self, name: &str, text: &str) -> Result<()> {
        // One that has only just been started does not know of SIGTERM yet.
        await_some(CONVERGENCE, &format!("the agent of {name} answers"), || {
            self.status(name).map_err(|error| format!("{error:#}"))
        })?;
        self.stop_agent(name)?;
        let path = self.config(name);
        std::fs::write(&path, text).with_context(|| path.display().to_string())?;
        self.start_agent(name)
    }

    fn log(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.log"))
    }

    /// An error if an agent or a router's BGP daemon has ended by itself.
    pub fn ensure_running(&mut self) -> Result<()> {
        self.fabric.ensure_running()?;
        self.agents.values_mut().try_for_each(Daemon::ensure_running)
    }

    /// Writes a Service and waits until every agent's kernel holds it and the leaves send its VIPs to all of them (and maybe to
    /// nodes whose agent is restarting: graceful restart).
    pub fn apply(&mut self, service: &Service) -> Result<()> {
        self.source.apply(service)?;
        self.await_applied(service)
    }

    /// Waits for that.
    pub fn await_applied(&mut self, service: &Service) -> Result<()> {
        await_some(CONVERGENCE, &format!("Service {} in force on all nodes", service.name), || {
            // An agent that has ended will not come back: no use to wait on.
            match self.ensure_running() {
                Ok(()) => self.applied(service).map(Ok),
                Err(ended) => Ok(Err(ended)),
            }
        })?
    }

    /// Removes a Service and waits until no agent's kernel holds it.
    pub fn remove(&mut self, service: &Service) -> Result<()> {
        self.source.remove(service)?;
        self.await_applied(&service.clone().without_endpoints())
    }

    /// What is still missing, if anything.
    fn applied(&self, service: &Service) -> Result<(), String> {
        for name in self.agents.keys() {
            let node = self.fabric.node(name).map_err(|error| error.to_string())?;
            let servers = kernel::virtual_servers(&node.ns).map_err(|error| format!("{error:#}"))?;
            for family in Family::BOTH {
                for port in &service.ports {
                    let mut expected =
                        vec![(service.vip(family), port.port), (service.cluster_ip(family), port.port)];
                    expected.extend(port.node_port.map(|node_port| (node.address(family), node_port)));
                    for address in expected.into_iter().map(SocketAddr::from) {
                        let protocol = port.protocol;
                        let active = kernel::active(&servers, protocol, address).len();
                        let wanted = service.usable();
                        if active != wanted {
                            return Err(format!(
                                "{name}: {protocol} {address} has {active} destinations of {wanted}"
                            ));
                        }
                    }
                }
            }
        }
        if service.usable() == 0 {
            return Ok(());
        }
        let expected: BTreeSet<String> = self.agents.keys().cloned().collect();
        for leaf in &self.fabric.leaves {
            for family in Family::BOTH {
                let vip = service.vip(family);
                let directors = self.fabric.directors(leaf, vip).map_err(|error| format!("{error:#}"))?;
                if !expected.is_subset(&directors) {
                    return Err(format!(
                        "{}: {vip} goes to {directors:?}, not to all of {expected:?}",
                        leaf.name()
                    ));
                }
            }
        }
        Ok(())
    }

    /// Adds to an error what was there then: the most important in short, all there is in the file `NAME.txt` of the directory
    /// that `LAB_FAILURES` names.
    pub fn explain(&self, error: &anyhow::Error, name: &str) -> anyhow::Error {
        let full = std::env::var_os("LAB_FAILURES").map(|dir| PathBuf::from(dir).join(format!("{name}.txt")));
        anyhow!("{}\nwhat was there then:\n{}", causes(error), self.dump(full.as_deref()))
    }

    fn dump(&self, full: Option<&Path>) -> String {
        let mut short = String::new();
        let mut long = String::new();
        for node in &self.fabric.nodes {
            let table = node.ns.run("ipvsadm -Ln").unwrap_or_else(|error| format!("{error:#}"));
            let log = crate::process::tail(&self.log(&node.name), 12);
            let _ = writeln!(
                short,
                "--- {}: IPVS\n{}\n--- {}: end of the agent's log\n{log}",
                node.name,
                table.trim_end(),
                node.name
            );
            let log = crate::process::tail(&self.log(&node.name), 5000);
            let _ = writeln!(
                long,
                "--- {}\n{}\n{}\n{}\n--- log\n{log}",
                node.name,
                kernel::dump(&node.ns),
                kernel::connections(&node.ns),
                kernel::sysctls(&node.ns)
            );
        }
        for leaf in &self.fabric.leaves {
            let ask = |question| leaf.birdc(question).unwrap_or_else(|error| format!("{error:#}"));
            let _ = writeln!(short, "--- {}: BIRD\n{}", leaf.name(), ask("show route").trim_end());
            let _ = writeln!(
                long,
                "--- {}\n{}\n{}\n{}",
                leaf.name(),
                ask("show protocols all"),
                ask("show route all"),
                kernel::dump(&leaf.ns)
            );
        }
        if let Some(path) = full {
            match std::fs::write(path, long) {
                Ok(()) => drop(writeln!(
                    short,
                    "--- nftables, routes and whole logs: {}",
                    path.file_name().unwrap_or_default().display()
                )),
                Err(error) => drop(writeln!(short, "--- {}: {error}", path.display())),
            }
        }
        short
    }
}

/// Where all routing is BGP's: sessions that notice a silent leaf, and learn of it that it is a way out.
fn watched_router(node: u8, interval: Duration) -> String {
    let interval = interval.as_millis();
    let mut text = format!("router:\n  asn: {NODE_ASN}\n  peers:\n");
    for (leaf, family) in (1..=LEAVES).flat_map(|leaf| Family::BOTH.map(|family| (leaf, family))) {
        let default = if family == Family::V4 { "0.0.0.0/0" } else { "::/0" };
        let _ = writeln!(
            text,
            "  - {{address: \"{}\", asn: {}, families: [{}], bfd: {{transmitInterval: {interval}ms, receiveInterval: {interval}ms, detectMultiplier: 3}}, \
             import: {{prefixes: [\"{default}\"], maxPrefixes: 10}}}}",
            addresses::leaf_link(family, leaf, node),
            addresses::leaf_asn(leaf),
            family.to_string().to_lowercase()
        );
    }
    text
}

fn causes(error: &anyhow::Error) -> String {
    let causes: Vec<String> = error.chain().map(ToString::to_string).collect();
    causes.join("\n  ")
}

impl Drop for Lab {
    fn drop(&mut self) {
        // Agents first, while the namespaces they work in still exist.
        self.agents.clear();
        self.servers.clear();
    }
}
