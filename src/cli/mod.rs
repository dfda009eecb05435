//! The command line: one module per subcommand.
//!
//! Exit codes: 0 done, 1 failed, 2 usage.

mod plan;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Kubernetes Services by IPVS with direct server return, announced over BGP.
///
/// On every node, Sheave turns Services into IPVS virtual servers in tunnel mode, takes in tunnelled packets for
/// the node's own endpoints, and announces the virtual IPs over BGP. It replaces kube-proxy and the BGP speaker.
#[derive(Debug, Parser)]
#[command(name = "sheave", version, propagate_version = true, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Plan(plan::Args),
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let Cli { command } = Cli::parse();
    match command {
        Command::Plan(args) => plan::run(args),
    }
}
