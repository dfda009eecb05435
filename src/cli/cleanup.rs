//! `sheave cleanup`: removes everything of ours from the kernel, nothing else.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use super::{failed, node_name};
use crate::agent;
use crate::announce;
use crate::cluster::ACCEPTS_ANNOTATION;
use crate::cluster::kubernetes::{ConnectError, connect};
use crate::config::Config;
use crate::dataplane::{self, Lock};
use crate::drain::remove_record;
use crate::observe::accepts;
use crate::tables;

/// How long the other nodes have to hear that this one does not accept any more, and requests under way to be answered.
const GRACE: Duration = Duration::from_secs(5);

/// Remove everything of Sheave's from this node's kernel, and nothing else
///
/// Virtual servers, VIP routes (those written to `announce.exportTable` too), routes learnt of peers, the nftables table `inet sheave` and the interfaces sheave4 and sheave6 go, and the journal of announcements; sysctls
/// get back the values found at first, except those that somebody has changed since. Connections through this
/// node's VIPs end. Stop the agent before: it would put everything back.
///
/// Before that, the annotation sheave.io/accepts is taken off this node's Node, so that the other nodes reach its
/// endpoints without the help of this one, and 5 seconds are waited for them to hear it. Connections that are
/// older and go on for longer end: they are still tunnelled. Where no API server is known (no Pod, no --kubeconfig, no
/// $KUBECONFIG, no ~/.kube/config), the annotation is not looked for, which is said: on a node of a cluster, take it away yourself
/// before, with `kubectl annotate node NODE sheave.io/accepts-`, or the other nodes go on tunnelling to this one. Where the
/// server does not answer, that is said too, the kernel is cleaned all the same, and the exit code is 1.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  sheave cleanup
  sheave cleanup --kubeconfig /etc/sheave/kubeconfig --node node-a

Exit codes: 0 done; 1 something could not be removed, as printed, all else was; 2 usage.")]
pub(super) struct Args {
    /// The agent's config file, if it has one
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Name of this node's Node object; the host's name by default
    #[arg(long, env = "NODE_NAME")]
    node: Option<String>,

    /// How to reach the API server, and as whom
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,

    /// When all is done, wait for SIGTERM: in a DaemonSet, whose containers may not end
    #[arg(long)]
    wait: bool,
}

/// Runs the subcommand.
pub(super) fn run(args: Args) -> ExitCode {
    let Args { config, node, kubeconfig, wait } = args;
    let node = node_name(node);
    let config = match config.map_or_else(|| Ok(Config::default()), |path| Config::load(&path)) {
        Ok(config) => config,
        Err(error) => return failed(&error.to_string()),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&format!("runtime: {error}")),
    };
    runtime.block_on(async {
        // Before anything else: a signal that comes early ends the wait too.
        let terminate = match wait.then(|| signal(SignalKind::terminate())).transpose() {
            Ok(terminate) => terminate,
            Err(error) => return failed(&format!("SIGTERM: {error}")),
        };
        let settings = agent::settings(&config);
        let lock = match Lock::take(&settings.state_directory) {
            Ok(lock) => lock,
            Err(error) => return failed(&error.to_string()),
        };
        // The kernel matters most: what else fails is said, and the rest is done.
        let mut all_done = true;
        if let Err(error) = tell(kubeconfig.as_deref(), &node).await {
            eprintln!("error: {error}; going on: until it is gone, other nodes tunnel to this one in vain");
            all_done = false;
        }
        if let Err(error) = announce::remove_journal(&settings.state_directory) {
            let directory = settings.state_directory.display();
            eprintln!(
                "error: the journal of announcements in {directory}: {error}; going on: remove it by hand"
            );
            all_done = false;
        }
        if let Err(error) = remove_record(&settings.state_directory) {
            let directory = settings.state_directory.display();
            eprintln!("error: the record of a drain in {directory}: {error}; going on: remove it by hand");
            all_done = false;
        }
        let imported = match tables::remove_imported().await {
            Ok(count) => count,
            Err(error) => {
                eprintln!("error: {error}; going on");
                all_done = false;
                0
            }
        };
        if imported > 0 {
            println!("removed {imported} learnt routes");
        }
        match dataplane::cleanup(&settings, &lock).await {
            Ok(done) if done.is_empty() && imported > 0 => {}
            Ok(done) if done.is_empty() => println!("nothing of Sheave's is here"),
            Ok(done) => done.iter().for_each(|what| println!("removed {what}")),
            Err(error) => return failed(&error.to_string()),
        }
        if !all_done {
            return ExitCode::FAILURE;
        }
        drop(lock);
        if let Some(mut terminate) = terminate {
            terminate.recv().await;
        }
        ExitCode::SUCCESS
    })
}

/// Tells the other nodes that this one is about to accept no more, and lets them hear it.
async fn tell(kubeconfig: Option<&Path>, node: &str) -> Result<(), String> {
    let what = format!("annotation {ACCEPTS_ANNOTATION} of Node {node}");
    let client = match connect(kubeconfig).await {
        Ok(client) => client,
        Err(ConnectError::Unknown) => {
            eprintln!(
                "note: no API server is known here, so {what} was not looked for: if this is a node of a cluster, other nodes go on \
                 tunnelling to it until `kubectl annotate node {node} {ACCEPTS_ANNOTATION}-` (or give --kubeconfig FILE)"
            );
            return Ok(());
        }
        Err(error) => return Err(format!("{what}: {error}")),
    };
    if accepts::remove(&client, node).await.map_err(|error| format!("{what}: {error}"))? {
        println!("removed {what}; {} s for the other nodes to follow", GRACE.as_secs());
        tokio::time::sleep(GRACE).await;
    }
    Ok(())
}
