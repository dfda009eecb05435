//! Capabilities that a peer tells more than once.

use super::*;
use crate::session::LongLived;
use crate::wire::{GracefulRestartCapability, GracefulRestartFamily, LongLivedFamily};

/// Of graceful restart, and of what goes with it, the last counts (RFC 4724 §3).
#[test]
fn the_last_capability_counts() {
    let restart = |restart_time, notification, forwarding| {
        Capability::GracefulRestart(GracefulRestartCapability {
            restarting: false,
            notification,
            restart_time,
            families: vec![GracefulRestartFamily { afi: 1, safi: 1, forwarding }],
        })
    };
    let long = |stale_time| {
        let family = LongLivedFamily { afi: 1, safi: 1, forwarding: true, stale_time };
        Capability::LongLivedGracefulRestart(vec![family])
    };
    let cases = [
        ("once", vec![restart(30, false, true), long(60)], 30, false, true, 60),
        (
            "twice",
            vec![restart(120, true, false), long(3600), restart(30, false, true), long(60)],
            30,
            false,
            true,
            60,
        ),
        (
            "the other way round",
            vec![restart(30, false, true), restart(120, true, false)],
            120,
            true,
            false,
            0,
        ),
    ];
    for (name, told, restart_time, notification, forwarding, stale_time) in cases {
        let mut open = peer_open();
        open.capabilities.extend(told);
        let offer = RestartOffer { restart_time: 120, restarting: false, stale_time: Some(7200) };
        let mut bench = Bench::connected(SessionConfig { graceful_restart: Some(offer), ..config() });
        bench.told(Outgoing, &Message::Open(open));
        bench.told(Outgoing, &Message::Keepalive);
        let (_, agreed) = bench.session.established().unwrap();
        let restart = agreed.graceful_restart.as_ref().unwrap();
        assert_eq!(restart.restart_time, Duration::from_secs(restart_time), "{name}");
        assert_eq!(agreed.graceful_notification, notification, "{name}");
        assert_eq!(agreed.keeps(Family::Ipv4Unicast), Some(forwarding), "{name}");
        let agreed_on =
            agreed.long_lived(Family::Ipv4Unicast).map(|LongLived { stale_time, .. }| *stale_time);
        assert_eq!(agreed_on.unwrap_or_default(), Duration::from_secs(stale_time), "{name}");
    }
}
