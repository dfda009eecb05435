use super::*;

const WAIT: u64 = 5;
const LIMIT: u64 = 60;

fn prefixes(last: &[u8]) -> BTreeSet<IpNet> {
    last.iter().map(|last| IpNet::from(std::net::IpAddr::from([192, 0, 2, *last]))).collect()
}

/// What is seen at a second of a run.
#[derive(Clone, Copy)]
struct At {
    second: u64,
    asked: bool,
    whole: bool,
    alone: &'static [u8],
    /// Those of them that have no endpoint here.
    unready: &'static [u8],
    looks: bool,
    connections: Option<usize>,
    /// How many seconds ago it was begun to count them.
    counted_before: u64,
    /// Phase, and what VIPs are announced as.
    expected: &'static str,
}

const fn at(second: u64, expected: &'static str) -> At {
    At {
        second,
        asked: true,
        whole: true,
        alone: &[],
        unready: &[],
        looks: true,
        connections: Some(0),
        counted_before: 0,
        expected,
    }
}

impl At {
    const fn not_asked(self) -> Self {
        Self { asked: false, ..self }
    }

    const fn broken(self) -> Self {
        Self { whole: false, ..self }
    }

    const fn alone(self, alone: &'static [u8]) -> Self {
        Self { alone, ..self }
    }

    const fn unready(self, unready: &'static [u8]) -> Self {
        Self { unready, ..self }
    }

    const fn counted_before(self, seconds: u64) -> Self {
        Self { counted_before: seconds, ..self }
    }

    const fn connections(self, count: usize) -> Self {
        Self { connections: Some(count), ..self }
    }

    const fn not_looked(self) -> Self {
        Self { looks: false, connections: None, ..self }
    }

    const fn unseen(self) -> Self {
        Self { connections: None, ..self }
    }
}

fn words(drain: &Drain, now: Instant) -> String {
    let overdue = if drain.is_overdue(now) { ", overdue" } else { "" };
    let stance = match drain.stance() {
        Stance::Planned => "all".to_owned(),
        Stance::LastResort => "last resort".into(),
        Stance::Only(kept) if kept.is_empty() => "nothing".into(),
        Stance::Only(kept) => {
            format!("only {}", kept.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
        }
    };
    format!("{}{overdue}: {stance}", drain.phase().name())
}

fn run(what: &str, mut drain: Drain, start: Instant, steps: &[At]) {
    for At { second, asked, whole, alone, unready, looks, connections, counted_before, expected } in steps {
        let now = start + Duration::from_secs(*second);
        let alone = |among: Option<&BTreeSet<IpNet>>| {
            let (alone, unready) = (prefixes(alone), prefixes(unready));
            let asked = alone.into_iter().filter(|prefix| among.is_none_or(|among| among.contains(prefix)));
            asked.map(|prefix| (prefix, !unready.contains(&prefix))).collect()
        };
        let connections = connections.map(|count| (count, now - Duration::from_secs(*counted_before)));
        let seen = Seen { asked: *asked, whole: *whole, alone: &alone, looks: *looks, connections };
        drain.step(&seen, now);
        assert_eq!(words(&drain, now), *expected, "{what}, second {second}");
    }
}

fn resumed(phase: &str, kept: &[u8], now: Instant) -> Drain {
    let record =
        Record { phase: phase.into(), kept: prefixes(kept).into_iter().collect(), ..Record::default() };
    Drain::resume(&record, Duration::from_secs(WAIT), Duration::from_secs(LIMIT), now)
}

#[test]
fn step_by_step() {
    for (what, steps) in [
        ("nobody asks", &[at(0, "serving: all").not_asked(), at(9, "serving: all").not_asked().broken()][..]),
        (
            "there and back",
            &[
                at(0, "leaving: last resort"),
                at(4, "leaving: last resort"),
                at(5, "emptying: nothing"),
                at(9, "emptying: nothing"),
                at(10, "drained: nothing"),
                at(1000, "drained: nothing"),
                at(1001, "returning: last resort").not_asked(),
                at(1005, "returning: last resort").not_asked(),
                at(1006, "serving: all").not_asked(),
            ],
        ),
        (
            "connections go on through this node, and end",
            &[
                at(0, "leaving: last resort"),
                at(5, "emptying: nothing"),
                at(10, "emptying: nothing").connections(7),
                at(30, "emptying: nothing").connections(1),
                at(31, "emptying: nothing").not_looked(),
                at(32, "drained: nothing"),
            ],
        ),
        (
            "some go on beyond the limit, and are watched on",
            &[
                at(0, "leaving: last resort"),
                at(5, "emptying: nothing"),
                at(64, "emptying: nothing").connections(1),
                at(65, "emptying, overdue: nothing").connections(1),
                at(500, "drained: nothing"),
            ],
        ),
        (
            "what comes through this node cannot be looked at",
            &[
                at(0, "leaving: last resort"),
                at(5, "emptying: nothing"),
                at(20, "emptying: nothing").unseen(),
                at(65, "emptying, overdue: nothing").unseen(),
            ],
        ),
        (
            "VIPs that no other node is to announce go when one has been for a wait",
            &[
                at(0, "leaving: last resort").alone(&[1, 2]),
                at(5, "emptying: only 192.0.2.1/32 192.0.2.2/32").alone(&[1, 2]),
                at(11, "emptying: only 192.0.2.1/32 192.0.2.2/32").alone(&[2]),
                // It was not for long.
                at(12, "emptying: only 192.0.2.1/32 192.0.2.2/32").alone(&[1, 2]),
                at(13, "emptying: only 192.0.2.1/32 192.0.2.2/32").alone(&[2]),
                at(18, "emptying: only 192.0.2.2/32").alone(&[2]),
                // What has been withdrawn does not come back.
                at(20, "emptying: only 192.0.2.2/32").alone(&[1, 2, 3]),
                at(65, "emptying, overdue: only 192.0.2.2/32").alone(&[2]),
                at(70, "emptying, overdue: only 192.0.2.2/32"),
                at(75, "drained: nothing"),
            ],
        ),
        (
            "a count tells nothing that was begun too soon after the withdrawal",
            &[
                at(0, "leaving: last resort"),
                at(5, "emptying: nothing"),
                at(10, "emptying: nothing").counted_before(1),
                at(30, "emptying: nothing").counted_before(21),
                at(31, "drained: nothing").counted_before(21),
            ],
        ),
        (
            "the endpoints of a kept VIP are unready for long, and ready again",
            &[
                at(0, "leaving: last resort").alone(&[1]),
                at(5, "emptying: only 192.0.2.1/32").alone(&[1]),
                at(6, "emptying: nothing").alone(&[1]).unready(&[1]).connections(1),
                at(12, "emptying: nothing").alone(&[1]).unready(&[1]).connections(1),
                at(13, "emptying: only 192.0.2.1/32").alone(&[1]).connections(1),
                at(20, "emptying: only 192.0.2.1/32").alone(&[1]),
            ],
        ),
        (
            "a node does not wait for endpoints, but keeps the VIP that gets one",
            &[
                at(0, "leaving: last resort").alone(&[1]).unready(&[1]),
                at(5, "emptying: nothing").alone(&[1]).unready(&[1]),
                at(10, "drained: nothing").alone(&[1]).unready(&[1]),
                at(600, "drained: nothing").alone(&[1]).not_looked(),
                at(601, "emptying: only 192.0.2.1/32").alone(&[1]),
                at(602, "emptying: nothing").alone(&[1]).unready(&[1]),
                at(606, "drained: nothing").alone(&[1]).unready(&[1]),
            ],
        ),
        (
            "a VIP without endpoints is another node's once that one has some, or nobody's",
            &[
                at(0, "leaving: last resort").alone(&[1, 2]).unready(&[1]),
                at(5, "emptying: only 192.0.2.2/32").alone(&[1, 2]).unready(&[1]),
                at(10, "emptying: only 192.0.2.2/32"),
                at(15, "drained: nothing"),
                at(20, "drained: nothing").alone(&[1, 2]),
            ],
        ),
        (
            "not asked for any more while nothing has been withdrawn",
            &[
                at(0, "leaving: last resort"),
                at(2, "serving: all").not_asked(),
                at(3, "leaving: last resort"),
                at(7, "leaving: last resort"),
                at(8, "emptying: nothing"),
            ],
        ),
        (
            "not asked for any more while it empties: what was kept is as all others",
            &[
                at(0, "leaving: last resort").alone(&[1]),
                at(5, "emptying: only 192.0.2.1/32").alone(&[1]),
                at(6, "returning: last resort").not_asked(),
                at(11, "serving: all").not_asked(),
            ],
        ),
        (
            "it comes back only while the kernel holds all that is planned",
            &[
                at(0, "leaving: last resort"),
                at(5, "emptying: nothing"),
                at(10, "drained: nothing"),
                at(11, "drained: nothing").not_asked().broken(),
                at(12, "returning: last resort").not_asked(),
                at(17, "returning: last resort").not_asked().broken(),
                at(18, "serving: all").not_asked(),
            ],
        ),
        (
            "asked for again on the way back",
            &[
                at(0, "leaving: last resort"),
                at(5, "emptying: nothing"),
                at(6, "returning: last resort").not_asked(),
                at(8, "leaving: last resort"),
                at(12, "leaving: last resort"),
                at(13, "emptying: nothing"),
            ],
        ),
    ] {
        let start = Instant::now();
        run(what, resumed("", &[], start), start, steps);
    }
}

#[test]
fn an_agent_that_starts_goes_on() {
    for (phase, kept, before, steps) in [
        ("", &[][..], "serving: all", &[at(0, "serving: all").not_asked()][..]),
        ("of another version", &[], "serving: all", &[at(0, "serving: all").not_asked()]),
        (
            "leaving",
            &[],
            "leaving: last resort",
            &[at(4, "leaving: last resort"), at(5, "emptying: nothing")],
        ),
        (
            "emptying",
            &[7],
            "emptying: only 192.0.2.7/32",
            &[
                at(0, "emptying: only 192.0.2.7/32").alone(&[7]),
                at(1, "emptying: only 192.0.2.7/32"),
                at(6, "drained: nothing"),
            ],
        ),
        (
            "drained",
            &[],
            "drained: nothing",
            &[at(0, "drained: nothing"), at(1, "returning: last resort").not_asked()],
        ),
        (
            "returning",
            &[],
            "returning: last resort",
            &[at(4, "returning: last resort").not_asked(), at(5, "serving: all").not_asked()],
        ),
    ] {
        let start = Instant::now();
        let drain = resumed(phase, kept, start);
        assert_eq!(words(&drain, start), before, "{phase}");
        run(phase, drain, start, steps);
    }
}

#[test]
fn what_waits_for_endpoints_outlasts_the_agent() {
    let start = Instant::now();
    let record = Record {
        phase: "drained".into(),
        waiting: prefixes(&[7]).into_iter().collect(),
        ..Record::default()
    };
    let drain = Drain::resume(&record, Duration::from_secs(WAIT), Duration::from_secs(LIMIT), start);
    assert_eq!(words(&drain, start), "drained: nothing");
    assert_eq!(drain.waiting().copied().collect::<BTreeSet<_>>(), prefixes(&[7]));
    run("it goes on", drain, start, &[at(1, "emptying: only 192.0.2.7/32").alone(&[7])]);
}

#[test]
fn a_node_that_is_to_drain_from_its_start() {
    for (what, phase, asked, announced, expected) in [
        ("has nothing to leave", "", true, false, "drained: nothing"),
        ("leaves what an agent before announced", "", true, true, "serving: all"),
        ("does not drain", "", false, false, "serving: all"),
        ("goes on with what it had begun", "leaving", true, false, "leaving: last resort"),
        ("comes back", "returning", false, true, "returning: last resort"),
    ] {
        let start = Instant::now();
        let mut drain = resumed(phase, &[], start);
        drain.begin(asked, announced);
        assert_eq!(words(&drain, start), expected, "{what}");
    }
}

#[test]
fn names_of_phases_are_read_back() {
    let now = Instant::now();
    for name in Phase::NAMES {
        assert_eq!(resumed(name, &[], now).phase().name(), name);
    }
}

#[test]
fn a_record_outlasts_the_agent() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("drain");
    let (mut file, record) = RecordFile::open(directory.path());
    assert_eq!(record, Record::default());
    file.write(&record);
    assert!(!path.exists(), "nobody asked for anything");
    let record = Record {
        commanded: true,
        phase: "emptying".into(),
        since: Some(std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(7)),
        kept: prefixes(&[1]).into_iter().collect(),
        waiting: prefixes(&[2]).into_iter().collect(),
    };
    file.write(&record);
    let (mut file, read) = RecordFile::open(directory.path());
    assert_eq!(read, record);
    file.write(&Record::default());
    assert!(!path.exists());

    let earlier = r#"{"commanded":true,"phase":"emptying","since":null,"kept":["192.0.2.1/32"]}"#;
    std::fs::write(&path, earlier).unwrap();
    let read = RecordFile::open(directory.path()).1;
    assert_eq!((read.kept, read.waiting), (record.kept.clone(), vec![]), "of a version before");

    std::fs::write(&path, "{\"phase\":\"drai").unwrap();
    assert_eq!(RecordFile::open(directory.path()).1, Record::default());
    assert!(remove_record(directory.path()).unwrap());
    assert!(!remove_record(directory.path()).unwrap());

    let (mut file, _) = RecordFile::open(&directory.path().join("not there"));
    file.write(&record);
    assert!(
        file.problem().is_some_and(|problem| problem.contains("how far the drain is")),
        "{:?}",
        file.problem()
    );
    std::fs::create_dir(directory.path().join("not there")).unwrap();
    file.write(&record);
    assert_eq!(file.problem(), None);
}
