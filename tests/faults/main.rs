//! Clusters that change at random while everything that can go wrong between them and the client does: in the end, the
//! client knows what a fresh one learns from a list; and at no time it is told that something is gone, or takes a virtual
//! server away, which did not go. What it knows of a resource is at any time what that was on the server, never something
//! in between or from before.
//!
//! The real client, the double, and the real plan; in memory, with tokio's clock paused: hours pass in milliseconds.
//! What happens follows from a seed, but for the pauses that the client makes by chance.
//!
//! `FAULTS_SEED=17 cargo test --test faults` runs one seed alone; `FAULTS_SEEDS=5000` so many.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod chance;
mod client;
mod cluster;
mod disorder;
mod history;
#[path = "../in_memory/mod.rs"]
mod in_memory;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sheave_apiserver::{Api, Options};
use tokio::time::{Instant, sleep};

use chance::Chance;
use client::Client;
use cluster::Cluster;
use disorder::Disorder;

/// How many seeds are run: without optimisation, as many as take a few seconds.
const SEEDS: u64 = if cfg!(debug_assertions) { 100 } else { 1_000 };

/// By then, a client has to know everything: a resource that was not served is asked for again after 12 minutes and a
/// half at most, an answer to that may be slow, and a watch that is silent ends after little more than 2 minutes.
const PATIENCE: Duration = Duration::from_secs(20 * 60);

#[test]
fn whatever_goes_wrong_the_client_ends_with_what_a_fresh_list_has() {
    if let Some(seed) = variable("FAULTS_SEED") {
        return run(seed).unwrap_or_else(|complaint| panic!("seed {seed}: {complaint}"));
    }
    let (seeds, next) = (variable("FAULTS_SEEDS").unwrap_or(SEEDS), AtomicU64::new(0));
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds {
                        return;
                    }
                    if let Err(complaint) = run(seed) {
                        failed.lock().unwrap().push((seed, complaint));
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    if let Some((seed, complaint)) = failed.first() {
        panic!(
            "{} of {seeds} seeds fail: {:?}\nseed {seed}: {complaint}\n\
             alone: FAULTS_SEED={seed} cargo test --test faults",
            failed.len(),
            failed.iter().map(|(seed, _)| seed).collect::<Vec<_>>(),
        );
    }
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

/// Runs one seed.
fn run(seed: u64) -> Result<(), String> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(story(seed))
}

async fn story(seed: u64) -> Result<(), String> {
    let mut chance = Chance::new(seed);
    // Histories of all lengths: in the shortest, watches fall behind.
    let history = usize::try_from(chance.of(&[2, 20, 1_000])).unwrap();
    let api = Api::new(Options { history, ..Options::default() });
    let mut cluster = Cluster::new(&api, chance.fork());
    let closely = Client::start_closely(cluster.mirror(), cluster.gone());
    while !closely.is_well() {
        sleep(Duration::from_millis(1)).await;
    }
    let disorder = Disorder::new(&api);
    // Now and then there are two, or there are faults from the beginning.
    let clients = (0..if chance.one_in(8) { 2 } else { 1 }).map(|_| ());
    let mut trouble = chance.one_in(3);
    if trouble {
        disorder.strike(&mut chance);
    }
    let clients: Vec<Client> = clients.map(|()| Client::start(&api, cluster.gone())).collect();
    for _ in 0..chance.number(10..40) {
        for _ in 0..chance.number(0..4) {
            cluster.change();
        }
        if chance.one_in(3) {
            trouble = !trouble;
        }
        if trouble {
            disorder.strike(&mut chance);
        } else if chance.one_in(4) {
            disorder.calm();
        }
        sleep(chance.time()).await;
    }
    disorder.calm();
    cluster.mend();
    let end = end(&api, &cluster, &clients, &closely).await;
    // Whoever asks too often has been stopped: nothing else that follows from it is worth telling.
    disorder.complaint().map_or(end, Err)
}

/// What a fresh client learns, the others come to know, and none was told anything wrong. `closely` is the client of
/// the server to which nothing happened.
async fn end(api: &Api, cluster: &Cluster, clients: &[Client], closely: &Client) -> Result<(), String> {
    let fresh = Client::start(api, cluster.gone());
    let well = Instant::now();
    while !fresh.is_well() {
        if well.elapsed() > PATIENCE {
            return Err(format!("a fresh client is not well: {}", fresh.states()));
        }
        sleep(Duration::from_secs(10)).await;
    }
    let expected = fresh.outcome();
    for client in clients {
        while !(client.is_well() && client.outcome() == expected) {
            if well.elapsed() > PATIENCE {
                let differences = client.outcome().differences(&expected);
                return Err(format!("{}\n{differences}", client.states()));
            }
            sleep(Duration::from_secs(10)).await;
        }
    }
    // What is known of a resource is at any time what it was on the server, in the same order.
    let strays = |client: &Client| client.history().strays_from(&closely.history());
    if let Some(resource) = clients.iter().filter(|_| !cluster.breaks_objects()).find_map(strays) {
        return Err(format!("{resource} were never what they were taken for"));
    }
    let complaints = clients.iter().chain([&fresh]).flat_map(Client::complaints).next();
    complaints.map_or(Ok(()), Err)
}
