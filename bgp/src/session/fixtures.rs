//! What tests of other modules have of a session.

use std::net::Ipv4Addr;
use std::time::Duration;

use super::Negotiated;
use crate::Families;

/// What a session with that peer comes to where nobody offers more than both families.
pub(crate) fn negotiated(asn: u32, router_id: Ipv4Addr) -> Negotiated {
    Negotiated {
        asn,
        router_id,
        hold_time: Duration::from_secs(90),
        families: Families::ALL,
        extended_next_hop: false,
        four_octet_asn: true,
        route_refresh: true,
        enhanced_refresh: false,
        extended_messages: false,
        graceful_restart: None,
        graceful_notification: false,
        long_lived: Vec::new(),
        paths_received: Families::NONE,
        paths_sent: Families::NONE,
    }
}
