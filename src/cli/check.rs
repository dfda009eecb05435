//! `sheave check`: whether this node is ready for an agent.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::Serialize;

use super::{Format, failed, print};
use crate::agent;
use crate::cluster::Severity as ProblemSeverity;
use crate::cluster::manifest::Manifests;
use crate::config::Config;
use crate::dataplane::{self, Finding, Severity, Wants};
use crate::plan::{Forwarding, Planner};

/// Look whether this node is ready for an agent, and say what to do where it is not
///
/// Looks at capabilities, the kernel, IPVS and modules, `nft`, sysctls, uplinks and their MTU, names, addresses and the
/// ports of BGP and BFD that the agent needs, other owners of Services (kube-proxy, kube-router, virtual servers of unknown origin),
/// CNIs that Sheave does not work beside (Cilium, Calico's eBPF) or that keep pods from accepting themselves, and
/// nftables rules of others that would drop its packets, or answers of Services to clients here, or use its mark bits
/// (docs/cni.md).
/// Changes nothing (the kernel may load modules when asked what it can do). Run it as the agent will run: the same
/// user, container and network namespace.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  Before the first start on a node:
    sheave check

  With the config and what the cluster says, so that conflicts with virtual servers of others are found:
    sheave check --config sheave.yaml --manifests manifests --node node-a

  What fails, and what to do about it:
    sheave check -o json | jq -r '.findings[] | select(.severity == \"fail\") | .subject + \": \" + .remedy'

Each line begins with `ok`, `warn` (the agent runs; something is not as it seems) or `fail` (it cannot run, or does not
get the traffic); what to do follows `->`.

Exit codes: 0 nothing fails; 1 something does; 2 usage.")]
pub(super) struct Args {
    /// Config file; without it the defaults hold
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Name of this node's Node object; the host's name by default
    #[arg(long, env = "NODE_NAME")]
    node: Option<String>,

    /// Directory of .yaml, .yml and .json files with Services, EndpointSlices, Nodes and ServiceCIDRs
    #[arg(long, value_name = "DIR")]
    manifests: Option<PathBuf>,

    /// Output format
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

/// Runs the subcommand.
pub(super) fn run(args: Args) -> ExitCode {
    let Args { config, node, manifests, output } = args;
    let mut findings = Vec::new();
    let config = config.map_or_else(Config::default, |path| read_config(&path, &mut findings));
    let settings = agent::settings(&config);
    let mut planner = Planner::new(super::node_name(node), config);
    if let Some(directory) = manifests {
        read_manifests(&directory, &mut planner, &mut findings);
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&format!("runtime: {error}")),
    };
    let wants = wants(&planner);
    let looked = dataplane::preflight(&settings, &wants, planner.plan());
    findings.extend(runtime.block_on(looked));

    let report = Report { node: planner.node(), findings };
    let text = output.text(&report, table);
    let printed = text
        .map_err(|error| error.to_string())
        .and_then(|text| print(&text).map_err(|error| format!("standard output: {error}")));
    match printed {
        Err(error) => failed(&error),
        Ok(()) if report.count(Severity::Fail) > 0 => ExitCode::FAILURE,
        Ok(()) => ExitCode::SUCCESS,
    }
}

/// What is printed. Its keys are a contract: none is ever left out.
#[derive(Serialize)]
struct Report<'a> {
    node: &'a str,
    findings: Vec<Finding>,
}

impl Report<'_> {
    fn count(&self, severity: Severity) -> usize {
        self.findings.iter().filter(|finding| finding.severity == severity).count()
    }
}

fn read_config(path: &Path, findings: &mut Vec<Finding>) -> Config {
    match Config::load(path) {
        Ok(config) => {
            findings.push(Finding::ok("config", format!("{} reads well", path.display())));
            config
        }
        Err(error) => {
            let remedy = "put it right; what follows was looked at with the defaults";
            findings.push(Finding::fail("config", error.to_string(), remedy));
            Config::default()
        }
    }
}

fn read_manifests(directory: &Path, planner: &mut Planner, findings: &mut Vec<Finding>) {
    let subject = "manifests";
    match Manifests::new(directory).scan() {
        Ok(events) => drop(planner.handle(events)),
        Err(error) => {
            let found = format!("{}: {error}", directory.display());
            findings.push(Finding::fail(subject, found, "give a directory of manifests to --manifests"));
            return;
        }
    }
    let servers = planner.plan().virtual_servers.len();
    findings
        .push(Finding::ok(subject, format!("{}: {servers} virtual servers planned", directory.display())));
    findings.extend(planner.problems().iter().map(|problem| match problem.severity {
        ProblemSeverity::Error => Finding::fail(subject, problem.to_string(), "put the file right"),
        ProblemSeverity::Warning => {
            Finding::warn(subject, problem.to_string(), "put the file right, or do not rely on it")
        }
    }));
    let warnings = planner.warnings().into_iter();
    findings.extend(warnings.map(|warning| Finding::warn(warning.object, warning.reason, warning.message)));
}

/// What the config and the planned Services ask for.
fn wants(planner: &Planner) -> Wants {
    let Config { router, services, .. } = planner.config();
    let planned = planner.plan().virtual_servers.values().map(|server| server.scheduler);
    Wants {
        schedulers: planned.chain([services.scheduler.external, services.scheduler.internal]).collect(),
        acceptance: services.acceptance,
        bgp_port: router.asn.map(|_| router.listen.port).filter(|port| *port != 0),
        bfd_ports: router.bfd_is_multihop().into_iter().map(sheave_bgp::bfd::port).collect(),
        answering: (services.forwarding.internal == Forwarding::Tunnel)
            .then(|| services.service_cidrs.clone()),
    }
}

fn table(report: &Report) -> String {
    let mut text = String::new();
    // A few subjects are long: they need not widen the column of all.
    const WIDEST: usize = 32;
    let widths = report.findings.iter().map(|finding| finding.subject.len());
    let width = widths.filter(|width| *width <= WIDEST).max().unwrap_or_default();
    for Finding { severity, subject, found, remedy } in &report.findings {
        let _ = write!(text, "{:<4}  {subject:<width$}  {found}", word(*severity));
        if let Some(remedy) = remedy {
            let _ = write!(text, " -> {remedy}");
        }
        text.push('\n');
    }
    let [ok, warn, fail] =
        [Severity::Ok, Severity::Warn, Severity::Fail].map(|severity| report.count(severity));
    let verdict = if fail == 0 { "ready for an agent" } else { "not ready" };
    let _ = writeln!(text, "node {}: {ok} ok, {warn} warn, {fail} fail: {verdict}", report.node);
    text
}

fn word(severity: Severity) -> &'static str {
    match severity {
        Severity::Ok => "ok",
        Severity::Warn => "warn",
        Severity::Fail => "fail",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_finding_per_line_and_the_verdict_last() {
        let findings = vec![
            Finding::ok("IPVS", "version 1.2.1"),
            Finding::warn("uplinks", "eth0 (MTU 9000), eth1 (MTU 1500)", "give all of them the same MTU"),
            Finding::fail("interface sheave4", "there, and not Sheave's", "rename it"),
        ];
        assert_eq!(
            table(&Report { node: "node-a", findings }),
            "\
ok    IPVS               version 1.2.1
warn  uplinks            eth0 (MTU 9000), eth1 (MTU 1500) -> give all of them the same MTU
fail  interface sheave4  there, and not Sheave's -> rename it
node node-a: 1 ok, 1 warn, 1 fail: not ready
"
        );
    }
}
