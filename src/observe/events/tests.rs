//! What is told, and when, over made-up time.

use std::time::Duration;

use super::*;

fn service(name: &str) -> ObjectKey {
    ObjectKey::Service(ServiceName { namespace: "shop".into(), name: name.into() })
}

fn conflict(name: &str, message: &str) -> Notice {
    Notice {
        regarding: service(name),
        kind: Kind::Warning,
        reason: "ConflictingAddress",
        action: "Plan",
        message: message.into(),
        known_by: KnownBy::Everyone,
    }
}

fn of_node(message: &str) -> Notice {
    Notice::of_node("node-a", Kind::Warning, "PeerDown", "Peer", message.into())
}

/// A ledger with a clock of its own.
struct Ledgered {
    ledger: Ledger,
    start: Instant,
    seconds: u64,
}

impl Ledgered {
    fn new() -> Self {
        Self { ledger: Ledger::default(), start: Instant::now(), seconds: 0 }
    }

    fn now(&self) -> (Instant, SystemTime) {
        let since = Duration::from_secs(self.seconds);
        (self.start + since, SystemTime::UNIX_EPOCH + since)
    }

    fn stands(&mut self, part: Part, name: &str, messages: &[&str]) {
        let (now, clock) = self.now();
        let notices = messages.iter().map(|message| conflict(name, message));
        self.ledger.stands(part, &service(name), notices, now, clock);
    }

    fn happened(&mut self, message: &str) {
        let (now, clock) = self.now();
        self.ledger.happened(of_node(message), now, clock);
    }

    fn wait(&mut self, seconds: u64) {
        self.seconds += seconds;
    }

    /// What is due now: message, how often it was observed, whether it was told before.
    fn due(&mut self) -> Vec<(String, u32, bool)> {
        self.due_if(|_| true)
    }

    fn due_if(&mut self, tells: impl Fn(&ObjectKey) -> bool) -> Vec<(String, u32, bool)> {
        let (now, clock) = self.now();
        let tellings = self.ledger.due(usize::MAX, tells, now, clock);
        tellings.iter().map(|t| (t.notice.message.clone(), t.count, t.again)).collect()
    }
}

fn first(message: &str) -> (String, u32, bool) {
    (message.into(), 1, false)
}

fn again(message: &str, count: u32) -> (String, u32, bool) {
    (message.into(), count, true)
}

const HALF_AN_HOUR: u64 = 30 * 60;

#[test]
fn what_stands_is_told_once_and_then_every_half_hour() {
    let mut it = Ledgered::new();
    it.stands(Part::Plan, "web", &["taken"]);
    assert_eq!(it.due(), [first("taken")]);
    it.stands(Part::Plan, "web", &["taken"]);
    assert_eq!(it.due(), []);
    it.wait(HALF_AN_HOUR - 1);
    assert_eq!(it.due(), []);
    it.wait(1);
    assert_eq!(it.due(), [again("taken", 2)]);
    it.wait(HALF_AN_HOUR);
    assert_eq!(it.due(), [again("taken", 3)]);
}

#[test]
fn what_ceases_to_stand_is_not_told() {
    let mut it = Ledgered::new();
    it.stands(Part::Plan, "web", &["taken"]);
    it.stands(Part::Plan, "web", &[]);
    assert_eq!(it.due(), []);
    it.stands(Part::Plan, "web", &["one", "two"]);
    it.stands(Part::Plan, "web", &["two", "three"]);
    assert_eq!(it.due(), [first("three"), first("two")]);
    it.stands(Part::Plan, "web", &[]);
    it.wait(10 * HALF_AN_HOUR);
    assert_eq!(it.due(), []);
    assert_eq!(it.ledger.objects_of(Part::Plan).count(), 0);
}

#[test]
fn what_two_parts_hold_stands_until_neither_does() {
    let mut it = Ledgered::new();
    it.stands(Part::Plan, "web", &["bad"]);
    it.stands(Part::Source, "web", &["bad"]);
    it.stands(Part::Plan, "web", &[]);
    assert_eq!(it.due(), [first("bad")]);
    it.stands(Part::Source, "web", &[]);
    it.wait(HALF_AN_HOUR);
    assert_eq!(it.due(), []);
}

#[test]
fn what_happens_again_is_counted() {
    let mut it = Ledgered::new();
    it.happened("down");
    assert_eq!(it.due(), [first("down")]);
    assert_eq!(it.due(), []);
    it.wait(5);
    it.happened("down");
    it.happened("down");
    assert_eq!(it.due(), [again("down", 3)]);
    // Nothing more: it is told no more, and forgotten.
    it.wait(HALF_AN_HOUR);
    assert_eq!(it.due(), []);
    it.wait(HALF_AN_HOUR);
    it.happened("down");
    assert_eq!(it.due(), [first("down")]);
}

#[test]
fn one_object_gets_a_burst_and_then_one_a_minute() {
    let mut it = Ledgered::new();
    for number in 0..15 {
        it.happened(&format!("down {number:02}"));
    }
    assert_eq!(it.due().len(), 10);
    assert_eq!(it.due().len(), 0);
    it.stands(Part::Plan, "other", &["another object is not kept waiting"]);
    assert_eq!(it.due().len(), 1);
    for minute in 1..=5 {
        it.wait(60);
        assert_eq!(it.due().len(), 1, "in minute {minute}");
    }
    it.wait(60);
    assert_eq!(it.due(), []);
}

#[test]
fn a_node_sends_a_burst_and_then_one_every_two_seconds_and_loses_nothing() {
    let mut it = Ledgered::new();
    for number in 0..1000 {
        it.stands(Part::Plan, &format!("web-{number}"), &["taken"]);
    }
    assert_eq!(it.due().len(), 25);
    let mut told = 25;
    while told < 1000 {
        it.wait(1);
        told += it.due().len();
        assert!(it.seconds < HALF_AN_HOUR + 160, "{told} told");
    }
    // Those at the front of the line were already repeated a few times by then.
    assert!(it.seconds >= 2 * 975 - 2, "{}", it.seconds);
}

#[test]
fn what_others_tell_costs_nothing_and_is_taken_over_when_they_are_gone() {
    let mut it = Ledgered::new();
    for number in 0..100 {
        it.stands(Part::Plan, &format!("web-{number}"), &["taken"]);
    }
    it.happened("down");
    // What only this node knows it tells itself.
    assert_eq!(it.due_if(|_| false), [first("down")]);
    it.wait(60);
    assert_eq!(it.due(), []);
    it.wait(240);
    assert_eq!(it.due().len(), 25);
}

#[test]
fn no_more_than_there_is_room_for() {
    let mut it = Ledgered::new();
    for number in 0..5 {
        it.stands(Part::Plan, &format!("web-{number}"), &["taken"]);
    }
    let (now, clock) = it.now();
    assert_eq!(it.ledger.due(0, |_| true, now, clock), []);
    assert_eq!(it.ledger.due(2, |_| true, now, clock).len(), 2);
    assert_eq!(it.due().len(), 3);
}

#[test]
fn a_flood_of_happenings_is_bounded() {
    let mut it = Ledgered::new();
    for number in 0..10_000 {
        it.happened(&format!("down {number}"));
    }
    assert!(format!("{:?}", it.ledger).matches("observed:").count() <= 256);
}

mod peers {
    use super::*;

    const NAME: &str = "BGP peer 192.0.2.1 (AS 65001)";

    fn peer(established: bool, times: u64, last_error: Option<&str>) -> Peer {
        Peer {
            name: "192.0.2.1".into(),
            interface: None,
            asn: 65001,
            dynamic: false,
            established,
            times,
            last_error: last_error.map(Into::into),
        }
    }

    /// Looks once per step, so many seconds apart; reasons and messages.
    fn told(steps: impl IntoIterator<Item = (u64, Option<Peer>)>) -> Vec<String> {
        let strip = |(reason, message): (&str, String)| {
            format!("{reason}{}", message.strip_prefix(NAME).expect("the peer is named"))
        };
        told_of_all(steps).into_iter().map(strip).collect()
    }

    fn told_of_all(
        steps: impl IntoIterator<Item = (u64, impl IntoIterator<Item = Peer>)>,
    ) -> Vec<(&'static str, String)> {
        let mut peers = Peers::default();
        let mut now = Instant::now();
        let mut told = Vec::new();
        for (seconds, at) in steps {
            now += Duration::from_secs(seconds);
            for notice in peers.look("node-a", at, now) {
                assert_eq!(notice.regarding, ObjectKey::Node("node-a".into()));
                told.push((notice.reason, notice.message));
            }
        }
        told
    }

    #[test]
    fn up_down_and_up() {
        let steps = [
            (0, Some(peer(false, 0, None))),
            (3, Some(peer(true, 1, None))),
            (1, Some(peer(true, 1, None))),
            (1, Some(peer(false, 1, Some("Hold Timer expired")))),
            (1, Some(peer(false, 1, Some("connection refused")))),
            (90, Some(peer(true, 2, Some("connection refused")))),
        ];
        assert_eq!(
            told(steps),
            [
                "PeerUp: the session is established",
                "PeerDown: the session ended: Hold Timer expired",
                "PeerUp: the session is established"
            ]
        );
    }

    #[test]
    fn a_session_that_came_and_went_between_two_looks() {
        let steps = [(0, Some(peer(false, 0, None))), (1, Some(peer(false, 1, Some("Cease"))))];
        assert_eq!(told(steps), ["PeerUp: the session is established", "PeerDown: the session ended: Cease"]);
        let steps = [(0, Some(peer(true, 1, None))), (1, Some(peer(true, 2, Some("Cease"))))];
        assert_eq!(
            told(steps),
            [
                "PeerUp: the session is established",
                "PeerDown: the session ended: Cease",
                "PeerUp: the session is established"
            ]
        );
    }

    #[test]
    fn one_that_never_comes_is_told_of_once() {
        let refused = || Some(peer(false, 0, Some("connection refused")));
        let steps = [(0, refused()), (59, refused()), (1, refused()), (600, refused())];
        let expected = "PeerDown: there has been no session since it was configured: connection refused";
        assert_eq!(told(steps), [expected]);
    }

    /// A peer that is configured and that there is no session with: not found, no password, no speaker.
    fn absent(name: &str, why: &str) -> Peer {
        Peer::from(Absent { name, asn: 65001, why })
    }

    #[test]
    fn one_that_there_can_be_no_session_with_is_down() {
        let no_speaker = || Some(absent("192.0.2.1", "port 179 is taken"));
        let steps = [
            (0, Some(peer(true, 1, None))),
            (1, no_speaker()),
            // It has been told why, and that there was one is known.
            (100, no_speaker()),
            (1, Some(peer(false, 0, None))),
            (1, Some(peer(true, 1, None))),
        ];
        assert_eq!(
            told(steps),
            [
                "PeerUp: the session is established",
                "PeerDown: the session ended: port 179 is taken",
                "PeerUp: the session is established"
            ]
        );
        assert_eq!(
            told([(0, no_speaker()), (59, no_speaker()), (1, no_speaker()), (600, no_speaker())]),
            ["PeerDown: there has been no session since it was configured: port 179 is taken"]
        );
    }

    #[test]
    fn one_that_is_not_to_be_found_any_more_is_down() {
        let found = |established, times| Peer {
            name: "fe80::1%eth1".into(),
            interface: Some("eth1".into()),
            ..peer(established, times, None)
        };
        let lost = || absent("eth1", "interface eth1 is down, or not there");
        let other =
            || Peer { name: "fe80::2%eth2".into(), interface: Some("eth2".into()), ..peer(true, 1, None) };
        let steps = [
            (0, vec![lost(), other()]),
            (1, vec![found(false, 0), other()]),
            (1, vec![found(true, 1), other()]),
            (1, vec![lost(), other()]),
            (100, vec![lost(), other()]),
            (1, vec![found(true, 1), other()]),
        ];
        let of = |what: &str| format!("BGP peer fe80::{what}");
        assert_eq!(
            told_of_all(steps),
            [
                ("PeerUp", of("2%eth2 (AS 65001): the session is established")),
                ("PeerUp", of("1%eth1 (AS 65001): the session is established")),
                (
                    "PeerDown",
                    of("1%eth1 (AS 65001): the session ended: interface eth1 is down, or not there")
                ),
                ("PeerUp", of("1%eth1 (AS 65001): the session is established")),
            ]
        );
    }

    #[test]
    fn one_that_is_taken_out_of_the_config_is_not_down() {
        let up = || Some(peer(true, 1, None));
        assert_eq!(
            told([(0, up()), (1, None), (1, up())]),
            ["PeerUp: the session is established", "PeerUp: the session is established"]
        );
    }
}

mod sent {
    use super::deliver::event;
    use super::*;
    use crate::plan::EXCLUDED_FROM_LOAD_BALANCERS;

    fn telling(notice: Notice) -> Telling {
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        Telling { notice: Arc::new(notice), at, count: 1, again: false }
    }

    fn name(node: &str, uid: Option<&str>, notice: Notice) -> String {
        event(node, uid.map(Into::into), &telling(notice)).metadata.name.expect("an Event has a name")
    }

    #[test]
    fn about_a_service() {
        let event = event("node-a", Some("u-1".into()), &telling(conflict("web", "taken")));
        assert_eq!(
            serde_json::to_value(&event).unwrap(),
            serde_json::json!({
                "apiVersion": "events.k8s.io/v1", "kind": "Event",
                "metadata": {"namespace": "shop", "name": "web.d4fa8011c621399f"},
                "regarding": {"apiVersion": "v1", "kind": "Service", "namespace": "shop", "name": "web",
                              "uid": "u-1"},
                "type": "Warning", "reason": "ConflictingAddress", "action": "Plan", "note": "taken",
                "eventTime": "2023-11-14T22:13:20.000000Z",
                "reportingController": "sheave.io/agent", "reportingInstance": "node-a",
            })
        );
    }

    #[test]
    fn about_a_node_it_is_in_namespace_default_as_kubelets() {
        let event = event("node-a", Some("node-a".into()), &telling(of_node("down")));
        let regarding = event.regarding.unwrap();
        assert_eq!(event.metadata.namespace.as_deref(), Some("default"));
        assert_eq!((regarding.kind.as_deref(), regarding.namespace), (Some("Node"), None));
        assert_eq!((regarding.name.as_deref(), regarding.uid.as_deref()), (Some("node-a"), Some("node-a")));
    }

    #[test]
    fn its_name_tells_apart_what_is_not_the_same_and_nothing_else() {
        let web = || conflict("web", "taken");
        assert_eq!(name("node-a", Some("u-1"), web()), name("node-b", Some("u-1"), web()));
        assert_ne!(name("node-a", Some("u-1"), web()), name("node-a", Some("u-2"), web()));
        assert_ne!(name("node-a", None, web()), name("node-a", None, conflict("web", "gone")));
        assert_ne!(name("node-a", None, of_node("x")), name("node-b", None, of_node("x")));
    }

    #[test]
    fn what_is_too_long_is_cut() {
        let node = "n".repeat(253);
        let notice = Notice::of_node(&node, Kind::Warning, "PeerDown", "Peer", "ä".repeat(1000));
        let event = event(&node, None, &telling(notice));
        assert!(event.metadata.name.unwrap().len() <= 253);
        assert_eq!(event.reporting_instance.unwrap().len(), 128);
        let note = event.note.unwrap();
        assert!(note.len() <= 1024 && note.ends_with(" …"), "{}", note.len());
    }

    #[test]
    fn a_node_that_is_excluded_on_purpose_is_no_reason_to_worry() {
        for (reason, kind) in [(EXCLUDED_FROM_LOAD_BALANCERS, Kind::Normal), ("NoASN", Kind::Warning)] {
            let warning = Warning { object: "Node node-a".into(), reason, message: "y".into() };
            assert_eq!(Notice::of_warning(warning).map(|notice| notice.kind), Some(kind), "{reason}");
        }
    }

    #[test]
    fn only_what_is_about_an_object_becomes_an_event() {
        let warning = |object: &str| {
            Notice::of_warning(Warning { object: object.into(), reason: "X", message: "y".into() })
                .map(|notice| notice.regarding)
        };
        assert_eq!(warning("Service shop/web"), Some(service("web")));
        assert_eq!(warning("Node node-a"), Some(ObjectKey::Node("node-a".into())));
        assert_eq!(warning("Config"), None);
        assert_eq!(warning("Service web"), None);
    }
}
