//! OPENs that fit, and those that do not.

use super::*;
use crate::session::RoleOffer;
use crate::wire::Role;

#[test]
fn opens_that_do_not_fit() {
    let ibgp = SessionConfig { peer_asn: Some(US), ..config() };
    let ibgp_open = |router_id: [u8; 4]| Open {
        my_as: 64512,
        capabilities: Vec::new(),
        router_id: router_id.into(),
        ..peer_open()
    };
    let mut v6 = config();
    v6.families = Families { ipv6_unicast: true, ..Families::NONE };
    let only_v4 = Open { capabilities: vec![Capability::FourOctetAsn(PEER)], ..peer_open() };
    let cases = [
        (
            "other ASN",
            config(),
            Open { capabilities: vec![Capability::FourOctetAsn(1)], ..peer_open() },
            "send 2/2",
        ),
        (
            "any other ASN",
            SessionConfig { peer_asn: None, ..config() },
            Open { capabilities: vec![Capability::FourOctetAsn(1)], ..peer_open() },
            "send KEEPALIVE",
        ),
        (
            "our own, where any other would do",
            SessionConfig { peer_asn: None, ..config() },
            ibgp_open([10, 0, 0, 2]),
            "send 2/2",
        ),
        ("id zero", config(), Open { router_id: [0; 4].into(), ..peer_open() }, "send 2/3"),
        ("our id within the AS", ibgp.clone(), ibgp_open([10, 0, 0, 1]), "send 2/3"),
        ("another id within the AS", ibgp, ibgp_open([10, 0, 0, 2]), "send KEEPALIVE"),
        (
            "our id in another AS",
            config(),
            Open { router_id: [10, 0, 0, 1].into(), ..peer_open() },
            "send KEEPALIVE",
        ),
        ("hold time 2", config(), Open { hold_time: 2, ..peer_open() }, "send 2/6"),
        ("no common family", v6, only_v4.clone(), "send 2/7"),
        ("no families is IPv4", config(), only_v4, "send KEEPALIVE"),
    ];
    for (name, config, open, expected) in cases {
        let mut bench = Bench::connected(config);
        assert_eq!(words(&bench.told(Outgoing, &Message::Open(open)))[0], expected, "{name}");
    }
}

/// Roles that make a pair, and others (RFC 9234 §4.2): what a speaker of that role says to a peer that tells those.
#[test]
fn roles() {
    use Role::{Customer, Peer, Provider, RouteServer, RouteServerClient};
    let (fine, mismatch) = ("send KEEPALIVE", "send 2/11");
    let all = [Provider, RouteServer, RouteServerClient, Customer, Peer];
    let pairs = [(Provider, Customer), (RouteServer, RouteServerClient), (Peer, Peer)];
    let mut cases = vec![
        (Some(Customer), false, vec![], fine),
        (Some(Customer), true, vec![], mismatch),
        (Some(Customer), true, vec![0, 0], fine),
        (Some(Customer), false, vec![0, 3], mismatch),
        (Some(Customer), false, vec![77], mismatch),
        (None, false, vec![3], fine),
    ];
    for ours in all {
        for theirs in all {
            let pair = pairs.contains(&(ours, theirs)) || pairs.contains(&(theirs, ours));
            cases.push((Some(ours), true, vec![theirs as u8], if pair { fine } else { mismatch }));
        }
    }
    for (ours, required, theirs, expected) in cases {
        let role = ours.map(|role| RoleOffer { role, required });
        let told = theirs.iter().copied().map(Capability::Role);
        let capabilities = peer_open().capabilities.into_iter().chain(told).collect();
        let open = Open { capabilities, ..peer_open() };
        let mut bench = Bench::connected(SessionConfig { role, ..config() });
        assert_eq!(
            words(&bench.told(Outgoing, &Message::Open(open)))[0],
            expected,
            "{ours:?} {required} {theirs:?}"
        );
    }
    // Within an AS there are none.
    let role = Some(RoleOffer { role: Peer, required: true });
    let mut bench = Bench::connected(SessionConfig { role, peer_asn: Some(US), ..config() });
    let open = Open { my_as: 64512, capabilities: vec![Capability::Role(0)], ..peer_open() };
    assert_eq!(words(&bench.told(Outgoing, &Message::Open(open)))[0], fine);
}
