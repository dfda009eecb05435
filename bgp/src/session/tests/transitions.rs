//! Every state with every event.

use super::*;

/// Every state with every event, on the outgoing connection where it concerns one. `-` is nothing done; a state
/// after `→` only where it changes. "timer" is whichever runs out first.
const TRANSITIONS: &str = include_str!("../transitions.txt");

#[test]
fn transitions() {
    let mut actual = String::new();
    let names =
        ["Idle", "held down", "Connect", "Active", "passive", "OpenSent", "OpenConfirm", "Established"];
    for name in names {
        let events: [(&str, Trigger); 14] = [
            ("ManualStart", |b| b.event(Event::ManualStart)),
            ("ManualStop", |b| {
                let cease = Notification::cease(Cease::AdministrativeShutdown);
                b.event(Event::ManualStop(Farewell::Cease(cease)))
            }),
            ("TcpConnected", |b| b.event(Event::TcpConnected)),
            ("TcpConnectFailed", |b| b.event(Event::TcpConnectFailed("refused".to_owned()))),
            ("TcpAccepted", |b| b.event(Event::TcpAccepted)),
            ("TcpClosed", |b| b.event(Event::TcpClosed(Outgoing))),
            ("OPEN", |b| b.told(Outgoing, &Message::Open(peer_open()))),
            ("KEEPALIVE", |b| b.told(Outgoing, &Message::Keepalive)),
            ("UPDATE", |b| b.told(Outgoing, &Message::Update(Update::default()))),
            ("ROUTE-REFRESH", |b| {
                b.told(Outgoing, &Message::RouteRefresh(RouteRefresh { afi: 1, subtype: 0, safi: 1 }))
            }),
            ("NOTIFICATION", |b| {
                b.told(Outgoing, &Message::Notification(Notification::cease(Cease::AdministrativeReset)))
            }),
            ("garbage", |b| b.event(Event::Received(Outgoing, &[0; 19]))),
            ("too many", |b| b.event(too_many(None))),
            ("timer", |b| {
                if b.session.next_deadline().is_some() { b.expire() } else { b.event(Event::TimerExpired) }
            }),
        ];
        for (event, send) in events {
            let mut bench = match name {
                "Idle" => Bench::new(config()),
                "held down" => {
                    let mut bench = Bench::connected(config());
                    bench.told(Outgoing, &Message::Keepalive);
                    bench
                }
                "Connect" => Bench::started(config()),
                "Active" => {
                    let mut bench = Bench::started(config());
                    bench.event(Event::TcpConnectFailed("refused".to_owned()));
                    bench
                }
                "passive" => Bench::started(SessionConfig { passive: true, ..config() }),
                "OpenSent" => Bench::connected(config()),
                "OpenConfirm" => {
                    let mut bench = Bench::connected(config());
                    bench.told(Outgoing, &Message::Open(peer_open()));
                    bench
                }
                _ => Bench::established(config()),
            };
            let before = bench.session.state();
            let done = words(&send(&mut bench));
            let done = if done.is_empty() { "-".to_owned() } else { done.join(", ") };
            let after = bench.session.state();
            let change = if after == before { String::new() } else { format!(" → {after}") };
            actual += &format!("{name:<12} | {event:<16} | {done}{change}\n");
        }
    }
    assert_eq!(actual, TRANSITIONS, "{actual}");
}
