//! `sheave agent`: runs.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use kube::Client;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{self, UnboundedSender};
use tokio::task::JoinHandle;
use tracing::info;

use super::{LogFormat, failed, node_name};
use crate::agent::Agent;
use crate::cluster::Event;
use crate::cluster::kubernetes::{Pace, connect, follow};
use crate::cluster::manifest::{Manifests, watch};
use crate::config::Config;
use crate::observe::{Observer, status};
use crate::version;

/// Run on this node: program the kernel, announce over BGP, follow every change
///
/// Follows Services, EndpointSlices, Nodes and ServiceCIDRs of the cluster's API server. In a Pod it uses the service
/// account, and finds the server by KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT: set both to an address that
/// works without this program, since the `kubernetes` Service is made reachable by it. Elsewhere it uses --kubeconfig,
/// $KUBECONFIG or ~/.kube/config. While the server is away, everything goes on as it was told last.
///
/// With --manifests no cluster is needed: a directory says what there is, and edits apply within a second.
///
/// Needs root (CAP_NET_ADMIN), IPVS in the kernel and `nft`; `sheave check` tells what is missing.
///
/// SIGTERM and SIGINT end it, for a restart or an upgrade: kernel state stays and goes on forwarding, and peers are
/// left in the manner of graceful restart; routes learnt of peers stay too, unless `router.import.onExit` says else. The next start adopts what is there. `sheave cleanup` removes it.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  sheave agent --config /etc/sheave/config.yaml --kubeconfig /etc/sheave/kubeconfig --node node-a
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

    /// How to reach the API server, and as whom
    #[arg(long, value_name = "FILE", conflicts_with = "manifests")]
    kubeconfig: Option<PathBuf>,

    /// Instead of a cluster: directory of .yaml, .yml and .json files with Services, EndpointSlices, Nodes and ServiceCIDRs
    #[arg(long, value_name = "DIR")]
    manifests: Option<PathBuf>,

    /// How log lines are written
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
}

/// How long what waits for a file system may hold up the end.
const BACKGROUND_LIMIT: Duration = Duration::from_secs(1);

/// Runs the subcommand.
pub(super) fn run(args: Args) -> ExitCode {
    let Args { config, node, kubeconfig, manifests, log_format } = args;
    log_format.start();
    let node = node_name(node);
    let config = match config.map_or_else(|| Ok(Config::default()), |path| Config::load(&path)) {
        Ok(config) => config,
        Err(error) => return failed(&error.to_string()),
    };
    let source = manifests.map_or(Source::Cluster { kubeconfig }, Source::Manifests);
    raise_open_files();
    match start(config, &node, source) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

/// A peer takes a connection, and one more socket with BFD, of which there may be thousands: more than programs may have open by default.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    // Without, what cannot be opened says so.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// Where Services and the rest come from.
enum Source {
    Cluster { kubeconfig: Option<PathBuf> },
    Manifests(PathBuf),
}

impl Source {
    /// Begins to tell what there is. The API server need not be up. Gives the client, where it is one.
    async fn follow(
        self,
        background: &Handle,
        events: UnboundedSender<Vec<Event>>,
    ) -> Result<Option<Client>, String> {
        match self {
            Self::Manifests(directory) => {
                watch(Manifests::new(&directory), events)
                    .map_err(|error| format!("{}: {error}", directory.display()))?;
                Ok(None)
            }
            Self::Cluster { kubeconfig } => {
                // A client's connections belong to the runtime that it is made on.
                let following: JoinHandle<Result<Client, String>> = background.spawn(async move {
                    let client = connect(kubeconfig.as_deref()).await.map_err(|error| error.to_string())?;
                    follow(&client, &Pace::default(), events);
                    Ok(client)
                });
                following.await.map_err(|error| error.to_string())?.map(Some)
            }
        }
    }
}

fn start(config: Config, node: &str, source: Source) -> Result<(), String> {
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
    let result = runtime.block_on(async {
        // Before anything else: a signal that comes early ends the agent in order too.
        let mut terminate = signal(SignalKind::terminate()).map_err(text("SIGTERM"))?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(text("SIGINT"))?;
        // A mistake there is told before anything of this node is looked at.
        let (events, receiver) = mpsc::unbounded_channel();
        let client = source.follow(background.handle(), events).await?;
        let observer = Observer::start(&config.observe, background.handle(), question.clone());
        let agent = Agent::new(node, config, background.handle(), observer, client)
            .map_err(|error| error.to_string())?;
        {
            let _guard = background.enter();
            status::serve(&socket, question).map_err(|error| format!("{}: {error}", socket.display()))?;
        }
        let stop = async move {
            tokio::select! {
                _ = terminate.recv() => info!("SIGTERM: kernel state stays, sessions end"),
                _ = interrupt.recv() => info!("SIGINT: kernel state stays, sessions end"),
            }
        };
        info!(node, version = version::text(), "start");
        agent.run(receiver, questions, stop).await.map_err(|error| error.to_string())
    });
    background.shutdown_timeout(BACKGROUND_LIMIT);
    result
}
