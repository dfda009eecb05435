//! Messages of a session that stands, or ends.

use super::*;

#[test]
fn bytes_come_in_any_pieces() {
    let mut bench = Bench::connected(config());
    let stream = [Message::Open(peer_open()), Message::Keepalive, Message::Update(Update::default())]
        .iter()
        .flat_map(bytes)
        .collect::<Vec<u8>>();
    let done: Vec<String> =
        stream.iter().flat_map(|byte| words(&bench.event(Event::Received(Outgoing, &[*byte])))).collect();
    assert_eq!(done, ["send KEEPALIVE", "up", "update"]);

    let mut bench = Bench::connected(config());
    assert_eq!(words(&bench.event(Event::Received(Outgoing, &stream))), ["send KEEPALIVE", "up", "update"]);
}

#[test]
fn silent_stop_says_nothing() {
    let mut bench = Bench::established(config());
    assert_eq!(words(&bench.event(Event::ManualStop(Farewell::Silent))), ["close", "stopped"]);
}

#[test]
fn refresh_that_was_not_agreed_on_is_ignored() {
    for enhanced in [false, true] {
        let families = Families { ipv4_unicast: true, ..Families::NONE };
        let mut bench = Bench::connected(SessionConfig { families, ..config() });
        let mut open = peer_open();
        open.capabilities.extend(enhanced.then_some(Capability::EnhancedRouteRefresh));
        bench.told(Outgoing, &Message::Open(open));
        bench.told(Outgoing, &Message::Keepalive);
        for (afi, safi, subtype, expected) in [
            (1, 1, 0, Some("refresh ipv4-unicast")),
            (1, 1, 1, Some("Begin ipv4-unicast").filter(|_| enhanced)),
            (1, 1, 2, Some("End ipv4-unicast").filter(|_| enhanced)),
            (1, 1, 3, None),
            (2, 1, 0, None),
            (2, 1, 1, None),
            (1, 128, 0, None),
        ] {
            let refresh = Message::RouteRefresh(RouteRefresh { afi, subtype, safi });
            let done = words(&bench.told(Outgoing, &refresh));
            assert_eq!(done, expected.as_slice(), "{afi} {safi} {subtype}, enhanced: {enhanced}");
        }
    }
}
