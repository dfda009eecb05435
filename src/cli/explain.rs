//! `sheave explain`: every step that a packet takes from this node, and why.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::{Format, failed, print};
use crate::cluster::Severity;
use crate::cluster::manifest::Manifests;
use crate::config::Config;
use crate::observe::explain::{Explanation, Target};
use crate::observe::status;
use crate::plan::Planner;

/// Explain every step that a packet for a Service takes from this node, and why
///
/// Asks the local agent: how clients find the address, who may reach it, which endpoints get connections and which do
/// not and why, how packets are handed to each, what happens where nothing matches, and what the kernel really holds of
/// it now, compared with the plan. Changes nothing.
///
/// With --manifests, the same is planned from a directory, without an agent; kernel and sessions are left out.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
TARGET is one of
  NAMESPACE/SERVICE     all its addresses and ports, such as default/web
  ADDRESS:PORT          one of them, such as 192.0.2.80:80, or a node's address and a node port, such as 10.0.0.11:30443;
                        with /tcp, /udp or /sctp behind it only that protocol
  [ADDRESS]:PORT        the same in IPv6, such as [2001:db8:2::80]:80

Examples:
  Why does nobody answer at that address?
    sheave explain 192.0.2.80:80

  Which endpoints of a Service are not used, and why?
    sheave explain default/web -o json |
      jq -r '.virtualServers[].endpoints[] | select(.external.weight == null) | \"\\(.address) \\(.external.why)\"'

  What would node-a do for it, according to what a cluster says? Needs no agent and no privileges:
    kubectl get services,endpointslices,nodes -A -o yaml > manifests/cluster.yaml
    sheave explain --manifests manifests --node node-a default/web

Exit codes: 0 done, the kernel holds what is planned; 1 it does not, or there is no such target, or no agent answers (or,
with --manifests, a manifest is wrong); 2 usage.")]
pub(super) struct Args {
    /// What to explain: NAMESPACE/SERVICE, ADDRESS:PORT or [ADDRESS]:PORT
    target: Target,

    /// The agent's status socket (`observe.status` in its config)
    #[arg(
        long,
        value_name = "PATH",
        default_value = "/run/sheave/status.sock",
        conflicts_with = "manifests"
    )]
    socket: PathBuf,

    /// Plan from this directory of manifests instead of asking an agent
    #[arg(long, value_name = "DIR", requires = "node")]
    manifests: Option<PathBuf>,

    /// With --manifests: name of the node to plan for
    #[arg(long, requires = "manifests")]
    node: Option<String>,

    /// With --manifests: config file; without it the defaults hold
    #[arg(long, value_name = "FILE", requires = "manifests")]
    config: Option<PathBuf>,

    /// Output format
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

/// Runs the subcommand.
pub(super) fn run(args: Args) -> ExitCode {
    let Args { target, socket, manifests, node, config, output } = args;
    let explained = match (manifests, node) {
        (Some(manifests), Some(node)) => from_manifests(&target, &manifests, node, config),
        _ => from_agent(&target, &socket).map(|explanation| (explanation, true)),
    };
    let (explanation, whole) = match explained {
        Ok(explained) => explained,
        Err(error) => return failed(&error),
    };
    let text = output.text(&explanation, ToString::to_string);
    let printed = text
        .map_err(|error| error.to_string())
        .and_then(|text| print(&text).map_err(|error| error.to_string()));
    match printed {
        Err(error) => failed(&error),
        Ok(()) if whole && explanation.is_as_planned() => ExitCode::SUCCESS,
        Ok(()) => ExitCode::FAILURE,
    }
}

fn from_agent(target: &Target, socket: &Path) -> Result<Explanation, String> {
    let asked = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .and_then(|runtime| runtime.block_on(status::explain(socket, target)));
    asked.map_err(|error| {
        format!(
            "{}: {error}; is the agent running, and is this its `observe.status`? Without an agent: --manifests",
            socket.display()
        )
    })?
}

/// Gives also whether all manifests could be read.
fn from_manifests(
    target: &Target,
    directory: &Path,
    node: String,
    config: Option<PathBuf>,
) -> Result<(Explanation, bool), String> {
    let config = config.map_or_else(|| Ok(Config::default()), |path| Config::load(&path));
    let mut planner = Planner::new(node, config.map_err(|error| error.to_string())?);
    let events = Manifests::new(directory).scan().map_err(|error| {
        format!("{}: {error}; give a directory of manifests to --manifests", directory.display())
    })?;
    planner.handle(events);
    let mut whole = true;
    for problem in planner.problems() {
        let severity = match problem.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        whole &= problem.severity != Severity::Error;
        eprintln!("{severity}: {problem}");
    }
    let explanation = Explanation::planned(&planner, target).map_err(|error| error.to_string())?;
    Ok((explanation, whole))
}
