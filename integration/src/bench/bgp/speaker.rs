//! The speaker of this repository, as a process of its own.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::Result;
use ipnet::IpNet;
use sheave_bgp::{Attributes, ImportPolicy, PeerConfig, PrefixFilter, RouteChanges, Speaker, SpeakerConfig};
use tokio::signal::unix::{SignalKind, signal};

use super::{PEER_ASN, SPEAKER, SPEAKER_ASN, Table, peers, prefix};

/// How many changes are taken at once, as the agent does.
const BATCH: usize = 1_000;
/// Until it is looked at whether there is more, though no change was told: a route that is not used.
const LOOK: Duration = Duration::from_millis(100);

/// Announces so many prefixes to so many peers until SIGUSR1, then withdraws them. Prints how many it has when it has them.
///
/// # Errors
/// When it cannot start.
pub fn announce(peers: u32, prefixes: u32) -> Result<()> {
    let table = Table { peers, prefixes };
    let prefixes = || (0..table.prefixes).map(|number| IpNet::from(prefix(number)));
    run(async {
        let mut withdraw = signal(SignalKind::user_defined1())?;
        let speaker = start().await?;
        let all = prefixes().map(|prefix| (prefix, Attributes::default())).collect();
        speaker.update(RouteChanges { announce: all, withdraw: Vec::new() });
        speaker.set_peers(table.peers().map(passive).collect());
        println!("{}", table.prefixes);
        withdraw.recv().await;
        speaker.update(RouteChanges { announce: Vec::new(), withdraw: prefixes().collect() });
        std::future::pending().await
    })
}

/// Imports what peers announce, and takes each change, as the agent would to write it to the kernel. Prints how many routes
/// it has whenever that changes.
///
/// # Errors
/// When it cannot start.
pub fn receive() -> Result<()> {
    run(async {
        let speaker = start().await?;
        let within = "0.0.0.0/0".parse()?;
        let all = PrefixFilter { within, min_length: 0, max_length: 32 };
        let policy = ImportPolicy { prefixes: vec![all], max_prefixes: None };
        let policies: BTreeMap<_, _> = peers().map(|peer| (peer.into(), policy.clone())).collect();
        speaker.set_imports(&policies);
        speaker.set_peers(peers().map(passive).collect());
        let mut news = speaker.learnt_routes().news();
        let mut printed = None;
        loop {
            while !speaker.learnt_routes().take(BATCH).is_empty() {}
            let status = speaker.learnt();
            let accepted: usize = status.peers.values().flatten().map(|(_, counts)| counts.accepted).sum();
            if printed.replace(accepted) != Some(accepted) {
                println!("{accepted}");
            }
            // However it ends, there is a look.
            let _ = tokio::time::timeout(LOOK, news.changed()).await;
        }
    })
}

fn run(speaker: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(speaker)
}

async fn start() -> Result<Speaker> {
    Ok(Speaker::start(SpeakerConfig {
        asn: SPEAKER_ASN,
        router_id: SPEAKER,
        listen: Some(vec![(SPEAKER, 179).into()]),
        graceful_restart: None,
        restarting: false,
    })
    .await?)
}

fn passive(peer: Ipv4Addr) -> PeerConfig {
    PeerConfig { passive: true, ..PeerConfig::new(peer.into(), PEER_ASN.into()) }
}
