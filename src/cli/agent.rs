//! `sheave agent`: runs.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tracing::info;

use super::{LogFormat, failed, node_name};
use crate::agent::Agent;
use crate::cluster::manifest::{Manifests, watch};
use crate::config::Config;
use crate::observe::status;

/// Run on this node: program the kernel, announce over BGP, follow every change
///
/// Reads Services, EndpointSlices and Nodes from a directory of manifests and follows it: edits apply within a
/// second. Needs root (CAP_NET_ADMIN), IPVS in the kernel and `nft`; `sheave check` tells what is missing.
///
/// SIGTERM and SIGINT end it, for a restart or an upgrade: kernel state stays and goes on forwarding, and peers are
/// left in the manner of graceful restart. The next start adopts what is there. `sheave cleanup` removes it.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  sheave agent --config /etc/sheave/config.yaml --manifests /etc/sheave/manifests --node node-a
  RUST_LOG=sheave=debug sheave agent --manifests manifests      more to read: one line per change

Exit codes: 0 ended by a signal; 1 it cannot run here, for the reason printed; 2 usage.")]
pub(super) struct Args {
    /// Config file; without it the defaults hold
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Name of this node's Node object; the host's name by default
    #[arg(long, env = "NODE_NAME")]
    node: Option<String>,

    /// Directory of .yaml, .yml and .json files with Services, EndpointSlices and Nodes
    #[arg(long, value_name = "DIR")]
    manifests: PathBuf,

    /// How log lines are written
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
}

/// Runs the subcommand.
pub(super) fn run(args: Args) -> ExitCode {
    let Args { config, node, manifests, log_format } = args;
    log_format.start();
    let node = node_name(node);
    let config = match config.map_or_else(|| Ok(Config::default()), |path| Config::load(&path)) {
        Ok(config) => config,
        Err(error) => return failed(&error.to_string()),
    };
    match start(config, &node, &manifests) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

fn start(config: Config, node: &str, manifests: &Path) -> Result<(), String> {
    let text = |what: &str| {
        let what = what.to_owned();
        move |error: std::io::Error| format!("{what}: {error}")
    };
    // Sessions and sockets; the agent's own loop has this thread.
    let background = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("background")
        .enable_all()
        .build()
        .map_err(text("runtime"))?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(text("runtime"))?;
    let (question, questions) = mpsc::channel(4);
    let socket = config.observe.status.clone();
    runtime.block_on(async {
        // Before anything else: a signal that comes early ends the agent in order too.
        let mut terminate = signal(SignalKind::terminate()).map_err(text("SIGTERM"))?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(text("SIGINT"))?;
        let agent =
            Agent::new(node, config, background.handle().clone()).map_err(|error| error.to_string())?;
        {
            let _guard = background.enter();
            status::serve(&socket, question).map_err(|error| format!("{}: {error}", socket.display()))?;
        }
        let (events, receiver) = mpsc::unbounded_channel();
        watch(Manifests::new(manifests), events).map_err(text(&manifests.display().to_string()))?;
        let stop = async move {
            tokio::select! {
                _ = terminate.recv() => info!("SIGTERM: kernel state stays, sessions end"),
                _ = interrupt.recv() => info!("SIGINT: kernel state stays, sessions end"),
            }
        };
        info!(node, manifests = %manifests.display(), version = env!("CARGO_PKG_VERSION"), "start");
        agent.run(receiver, questions, stop).await.map_err(|error| error.to_string())
    })
}
