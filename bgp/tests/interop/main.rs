//! Interoperation with the BGP daemons of Debian, in network namespaces that the tests make and remove.

#![expect(clippy::unwrap_used, clippy::panic, reason = "what fails here fails the test")]

use std::io::ErrorKind;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use daemon::{Cell, Daemon};
use lab::Lab;
use sheave_bgp::session::Backoff;
use sheave_bgp::{
    Attributes, GracefulRestart, PeerConfig, PeerStatus, RouteChanges, Speaker, SpeakerConfig, StartError,
};

const OUR_ASN: u32 = 4_200_000_001;

/// Tests of a daemon by feature, one for each kind of session: `frr::routes::ebgp_v4_active` and so on. Who connects is
/// seen from our side. A line is `feature: kinds`; docs/interop.md names every feature of every daemon.
macro_rules! cells {
    ($daemon:ident: $($feature:ident: $kinds:ident)+) => { $(cells!(@$kinds $daemon $feature);)+ };
    (@every $daemon:ident $feature:ident) => {
        cells!(@tests $daemon $feature
            ebgp_v4_active ebgp_v4_passive ebgp_v6_active ebgp_v6_passive
            ibgp_v4_active ibgp_v4_passive ibgp_v6_active ibgp_v6_passive);
    };
    (@ebgp $daemon:ident $feature:ident) => {
        cells!(@tests $daemon $feature ebgp_v4_active ebgp_v4_passive ebgp_v6_active ebgp_v6_passive);
    };
    (@active $daemon:ident $feature:ident) => {
        cells!(@tests $daemon $feature ebgp_v4_active ebgp_v6_active ibgp_v4_active ibgp_v6_active);
    };
    (@passive $daemon:ident $feature:ident) => {
        cells!(@tests $daemon $feature ebgp_v4_passive ebgp_v6_passive ibgp_v4_passive ibgp_v6_passive);
    };
    (@tests $daemon:ident $feature:ident $($kind:ident)+) => {
        mod $feature {
            $(#[test]
            fn $kind() {
                crate::in_cell(&super::$daemon, stringify!($kind), crate::features::$feature);
            })+
        }
    };
}

mod alone;
mod bfd;
mod bfd_ends;
mod bfd_limits;
mod bird;
mod daemon;
mod dynamic;
mod exabgp;
mod features;
mod frr;
mod gobgp;
mod hostile;
mod lab;
mod learning;
mod next_hop;
mod paths;
mod reflection;
mod restarts;
mod sessions;
mod unnumbered;

/// Runs `test` in a lab, or says why it cannot.
fn in_lab<F: Future<Output = ()>>(programs: &[&str], test: impl FnOnce(Lab) -> F + Send + 'static) {
    match lab::missing(programs) {
        Some(reason) if std::env::var("SHEAVE_TEST_KERNEL").is_ok_and(|value| value == "required") => {
            panic!("{reason}")
        }
        Some(reason) => eprintln!("skipped: {reason}"),
        None => Lab::new().enter(test),
    }
}

fn in_cell<F: Future<Output = ()>>(
    daemon: &'static dyn Daemon,
    kind: &'static str,
    test: impl FnOnce(Cell) -> F + Send + 'static,
) {
    in_lab(daemon.programs(), move |lab| test(Cell::new(lab, daemon, kind)));
}

/// A speaker. Its address may be taken for a moment: a test beside this one that starts a program hands a copy of an
/// earlier speaker's listener to the new process, until that has become the program.
async fn start(config: SpeakerConfig) -> Speaker {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match Speaker::start(config.clone()).await {
            Err(StartError::Listen { source, .. })
                if source.kind() == ErrorKind::AddrInUse && Instant::now() < deadline =>
            {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            result => return result.unwrap(),
        }
    }
}

fn speaker_config(listen: Option<IpAddr>) -> SpeakerConfig {
    SpeakerConfig {
        asn: OUR_ASN,
        router_id: [10, 0, 0, 1].into(),
        listen: listen.map(|address| vec![(address, 179).into()]),
        graceful_restart: Some(GracefulRestart { restart_time: Duration::from_secs(60), stale_time: None }),
        restarting: false,
    }
}

fn peer_config(address: IpAddr, asn: u32) -> PeerConfig {
    let connect_retry = Backoff { initial: Duration::from_millis(200), max: Duration::from_secs(1) };
    PeerConfig {
        connect_retry,
        hold_time: Duration::from_secs(9),
        next_hop_v4: Some([10, 0, 0, 1].into()),
        next_hop_v6: Some("fd00::1".parse().unwrap()),
        ..PeerConfig::new(address, asn)
    }
}

fn announce(prefixes: &[&str], attributes: &Attributes) -> RouteChanges {
    let announce = prefixes.iter().map(|prefix| (prefix.parse().unwrap(), attributes.clone())).collect();
    RouteChanges { announce, withdraw: Vec::new() }
}

fn withdraw(prefixes: &[&str]) -> RouteChanges {
    RouteChanges {
        announce: Vec::new(),
        withdraw: prefixes.iter().map(|prefix| prefix.parse().unwrap()).collect(),
    }
}

fn only_peer(speaker: &Speaker) -> PeerStatus {
    speaker.status().peers.remove(0)
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(30), async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    assert!(waited.await.is_ok(), "waited in vain for: {what}");
}
