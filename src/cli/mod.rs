//! The command line: one module per subcommand.
//!
//! Exit codes: 0 done, 1 failed, 2 usage.

mod agent;
mod check;
mod cleanup;
mod drain;
mod explain;
mod plan;
mod status;

use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use serde::Serialize;

use crate::version;

pub use plan::json as plan_json;

/// Kubernetes Services by IPVS with direct server return, announced over BGP.
///
/// On every node, Sheave turns Services into IPVS virtual servers in tunnel mode, takes in tunnelled packets for
/// the node's own endpoints, and announces the virtual IPs over BGP. It replaces kube-proxy and the BGP speaker.
#[derive(Debug, Parser)]
#[command(name = "sheave", version = version::text(), propagate_version = true, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Agent(agent::Args),
    Plan(plan::Args),
    Check(check::Args),
    Status(status::Args),
    Explain(explain::Args),
    Drain(drain::Args),
    Undrain(drain::UndrainArgs),
    Cleanup(cleanup::Args),
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let Cli { command } = Cli::parse();
    match command {
        Command::Agent(args) => agent::run(args),
        Command::Plan(args) => plan::run(args),
        Command::Check(args) => check::run(args),
        Command::Status(args) => status::run(args),
        Command::Explain(args) => explain::run(args),
        Command::Drain(args) => drain::run(args),
        Command::Undrain(args) => drain::run_undrain(args),
        Command::Cleanup(args) => cleanup::run(args),
    }
}

/// How a subcommand says what it has found.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Format {
    Table,
    Json,
}

impl Format {
    fn text<T: Serialize>(self, found: &T, table: impl FnOnce(&T) -> String) -> serde_json::Result<String> {
        match self {
            Self::Table => Ok(table(found)),
            Self::Json => serde_json::to_string_pretty(found).map(|text| text + "\n"),
        }
    }
}

/// How log lines are written, to standard error.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

impl LogFormat {
    /// Starts logging; `RUST_LOG` selects what, `info` by default.
    fn start(self) {
        let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
        let builder = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(io::stderr)
            .with_ansi(io::stderr().is_terminal());
        match self {
            Self::Text => builder.init(),
            Self::Json => builder.json().init(),
        }
    }
}

/// The name of this node's Node: what was given, or else the host's.
fn node_name(given: Option<String>) -> String {
    given.unwrap_or_else(|| rustix::system::uname().nodename().to_string_lossy().into_owned())
}

/// Whoever closes the pipe has seen enough.
fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

fn failed(error: &str) -> ExitCode {
    eprintln!("error: {error}");
    ExitCode::FAILURE
}
