//! What both sides' ADD-PATH comes to, and how messages are read then (RFC 7911).

use super::*;
use crate::wire::{AddPathFamily, Nlri};

fn established(add_paths: AddPaths, theirs: &[(u16, bool, bool)]) -> Bench {
    let mut open = peer_open();
    let family = |&(afi, receive, send): &(u16, bool, bool)| AddPathFamily { afi, safi: 1, receive, send };
    open.capabilities.push(Capability::AddPath(theirs.iter().map(family).collect()));
    let mut bench = Bench::connected(SessionConfig { add_paths, ..config() });
    bench.told(Outgoing, &Message::Open(open));
    bench.told(Outgoing, &Message::Keepalive);
    bench
}

/// Each direction takes one side that sends and one that receives; families are agreed on apart.
#[test]
fn directions() {
    let v4 = Families { ipv4_unicast: true, ..Families::NONE };
    let both = AddPaths { receive: true, send: true };
    let (receive, send) = (AddPaths { send: false, ..both }, AddPaths { receive: false, ..both });
    let none = AddPaths::default();
    let all = [(1, true, true), (2, true, true)];
    type Case<'a> = (&'a str, AddPaths, &'a [(u16, bool, bool)], Families, Families);
    let cases: [Case<'_>; 8] = [
        ("both, both ways", both, &all, Families::ALL, Families::ALL),
        ("we receive", receive, &all, Families::ALL, Families::NONE),
        ("we send", send, &all, Families::NONE, Families::ALL),
        ("we do neither", none, &all, Families::NONE, Families::NONE),
        ("the peer does neither", both, &[], Families::NONE, Families::NONE),
        ("nobody sends", receive, &[(1, true, false), (2, true, false)], Families::NONE, Families::NONE),
        ("IPv4 alone", both, &[(1, true, true)], v4, v4),
        ("of two of one family the first", both, &[(1, false, true), (1, true, false)], v4, Families::NONE),
    ];
    for (name, ours, theirs, received, sent) in cases {
        let bench = established(ours, theirs);
        let (_, agreed) = bench.session.established().unwrap();
        assert_eq!((agreed.paths_received, agreed.paths_sent), (received, sent), "{name}");
    }
}

/// An OPEN has the capability only where there is something to say, and for the families of the session.
#[test]
fn offers() {
    let v6 = Families { ipv6_unicast: true, ..Families::NONE };
    for (receive, send, families, expected) in [
        (false, false, Families::ALL, None),
        (true, false, Families::ALL, Some(vec![1, 2])),
        (false, true, v6, Some(vec![2])),
    ] {
        let add_paths = AddPaths { receive, send };
        let mut bench = Bench::started(SessionConfig { add_paths, families, ..config() });
        let actions = bench.event(Event::TcpConnected);
        let Some(Action::Send(_, bytes)) = actions.last() else { panic!("{actions:?}") };
        let Ok(Message::Open(open)) = Message::decode(bytes, Context::default()) else { panic!("no OPEN") };
        let told = open.capabilities.iter().find_map(|capability| match capability {
            Capability::AddPath(families) => {
                assert!(families.iter().all(|of| (of.receive, of.send) == (receive, send)));
                Some(families.iter().map(|family| family.afi).collect())
            }
            _ => None,
        });
        assert_eq!(told, expected);
    }
}

/// What comes is read as was agreed on for that direction, whatever was for the other.
#[test]
fn paths_are_read_where_they_are_sent() {
    let prefix = "192.0.2.0/24".parse().unwrap();
    let update = Update { withdrawn: vec![Nlri { prefix, path_id: 7 }], ..Update::default() };
    for (receive, send) in [(true, false), (false, true)] {
        let mut bench = established(AddPaths { receive, send }, &[(1, true, true)]);
        let add_path = if receive { Families::ALL } else { Families::NONE };
        let mut bytes = Vec::new();
        let context = Context { four_octet_asn: true, add_path, ..Context::default() };
        Message::Update(update.clone()).encode(context, &mut bytes).unwrap();
        let actions = bench.event(Event::Received(Outgoing, &bytes));
        let [Action::Update(read)] = actions.as_slice() else { panic!("{actions:?}") };
        let path_id = if receive { 7 } else { 0 };
        assert_eq!(read.withdrawn, [Nlri { prefix, path_id }]);
    }
}
