//! What a source and the plan made of it cost in memory: the agent's part that needs no kernel of its own.

use std::path::Path;

use anyhow::{Context, Result};
use sheave::cluster::kubernetes::{Pace, connect, follow};
use sheave::config::Config;
use sheave::plan::Planner;
use tokio::sync::mpsc;

use super::population::NODE;

/// Follows an API server until it is killed. Prints `synced` with the number of virtual servers once all is planned, then
/// `changed` with the number of those that each change touches.
///
/// # Errors
/// When the API server is not known.
pub fn run(kubeconfig: &Path) -> Result<()> {
    // As the agent has them: the source on one, the loop on the other.
    let background = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (events, mut receiver) = mpsc::unbounded_channel();
    let kubeconfig = kubeconfig.to_owned();
    background.block_on(async {
        let client = connect(Some(&kubeconfig)).await?;
        follow(&client, &Pace::default(), events);
        anyhow::Ok(())
    })?;
    runtime.block_on(async {
        let mut planner = Planner::new(NODE, Config::default());
        let mut told = false;
        loop {
            let mut batch = receiver.recv().await.context("the source ended")?;
            while let Ok(more) = receiver.try_recv() {
                batch.extend(more);
            }
            let delta = planner.handle(batch);
            if told && !delta.is_empty() {
                println!("changed {}", delta.virtual_servers.len());
            } else if planner.is_synced() && !told {
                told = true;
                println!("synced {}", planner.plan().virtual_servers.len());
            }
        }
    })
}
