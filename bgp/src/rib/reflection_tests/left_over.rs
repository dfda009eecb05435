//! What is left of a peer that is another now.

use super::*;

/// An internal peer that leaves for another AS while its routes are kept: nothing of it is kept from then on, nor passed on.
#[test]
fn of_another_system() {
    for address_of_route in [A, V6] {
        let mut reflector = Reflector::with([2, 3]);
        reflector.up(4, Some(graceful(false)));
        reflector.receive(4, &announce(4, attributes(), &[address_of_route]));
        assert_eq!(reflector.sent(3), [format!("+{address_of_route} via 4")]);
        reflector.down(4, Some(&graceful(false)));
        assert_eq!(reflector.sent(3), [] as [&str; 0], "it may be back");

        let external = Negotiated { asn: 65001, ..negotiated(4, None) };
        let source = Source {
            interface: None,
            peer: address(4),
            router_id: router_id(4),
            asn: external.asn,
            ibgp: false,
            role: None,
            local: address(1),
            extended_next_hop: true,
            client: true,
        };
        reflector.learnt.peer_up(source, &external, reflector.now);
        reflector.follow();
        assert_eq!(reflector.sent(3), [format!("-{address_of_route}")]);
        assert!(!reflector.learnt.keeps(address(4)) && !reflector.learnt.awaits_session(address(4), false));
        reflector.receive(4, &announce(4, attributes(), &[A, B, V6]));
        assert_eq!(reflector.learnt.counts(address(4), Family::Ipv4Unicast), None);
        assert_eq!(reflector.sent(3), [] as [&str; 0]);
    }
}
