//! `sheave cleanup`: removes everything of ours from the kernel, nothing else.

use std::path::PathBuf;
use std::process::ExitCode;

use super::failed;
use crate::agent;
use crate::config::Config;
use crate::dataplane::{self, Lock};

/// Remove everything of Sheave's from this node's kernel, and nothing else
///
/// Virtual servers, VIP routes, the nftables table `inet sheave` and the interfaces sheave4 and sheave6 go; sysctls
/// get back the values found at first, except those that somebody has changed since. Connections through this
/// node's VIPs end. Stop the agent before: it would put everything back.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The agent's config file, if it has one
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Runs the subcommand.
pub(super) fn run(args: Args) -> ExitCode {
    let Args { config } = args;
    let config = match config.map_or_else(|| Ok(Config::default()), |path| Config::load(&path)) {
        Ok(config) => config,
        Err(error) => return failed(&error.to_string()),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&format!("runtime: {error}")),
    };
    runtime.block_on(async {
        let settings = agent::settings(&config);
        let lock = match Lock::take(&settings.state_directory) {
            Ok(lock) => lock,
            Err(error) => return failed(&error.to_string()),
        };
        match dataplane::cleanup(&settings, &lock).await {
            Ok(done) if done.is_empty() => println!("nothing of Sheave's is here"),
            Ok(done) => done.iter().for_each(|what| println!("removed {what}")),
            Err(error) => return failed(&error.to_string()),
        }
        ExitCode::SUCCESS
    })
}
