use std::os::unix::fs::PermissionsExt as _;

use super::*;
use crate::builders::{mk_announcement, mk_node};
use crate::cluster::Annotations;
use crate::plan::AnnouncementKind;

fn node() -> Node {
    Node {
        annotations: Annotations::from([("sheave.io/asn".into(), "64512".into())]),
        ..mk_node("node-a", &["10.0.0.1"])
    }
}

fn announcement(prefix: IpNet) -> Announcement {
    Announcement {
        communities: BTreeSet::from([1]),
        large_communities: BTreeSet::from([(1, 2, 3)]),
        local_pref: Some(100),
        as_path_prepend: 2,
        ..mk_announcement(prefix, AnnouncementKind::LoadBalancerIP)
    }
}

fn prefix(number: u8) -> IpNet {
    format!("192.0.2.{number}/32").parse().unwrap()
}

fn saved(prefixes: &[u8]) -> Saved {
    let announcements = prefixes.iter().map(|number| (prefix(*number), announcement(prefix(*number))));
    Saved { node: Some(node()), announcements: announcements.collect(), passwords: BTreeMap::new() }
}

fn change(journal: &mut Journal, number: u8, announced: bool, in_force: usize) {
    let wanted = announcement(prefix(number));
    journal.announce([(prefix(number), announced.then_some(&wanted))].into_iter(), in_force);
}

#[test]
fn what_was_noted_is_there_at_the_next_start() {
    let directory = tempfile::tempdir().unwrap();
    let (mut journal, before) = Journal::open(directory.path());
    assert_eq!(before, Saved::default());
    journal.node(&node());
    change(&mut journal, 1, true, 1);
    change(&mut journal, 2, true, 2);
    change(&mut journal, 1, false, 1);
    for _ in 0..2 {
        assert_eq!(Journal::open(directory.path()).1, saved(&[2]));
    }
    let mode = fs::metadata(directory.path().join(FILE)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn what_is_not_announced_again_is_dropped_once_that_is_settled() {
    let directory = tempfile::tempdir().unwrap();
    let (mut journal, _) = Journal::open(directory.path());
    journal.node(&node());
    for number in 1..=3 {
        change(&mut journal, number, true, number.into());
    }
    let (mut journal, before) = Journal::open(directory.path());
    assert_eq!(before, saved(&[1, 2, 3]));
    change(&mut journal, 2, true, 1);
    assert_eq!(Journal::open(directory.path()).1, saved(&[1, 2, 3]));
    let (mut journal, _) = Journal::open(directory.path());
    change(&mut journal, 2, true, 1);
    journal.settle();
    assert_eq!(Journal::open(directory.path()).1, saved(&[2]));
}

#[test]
fn lines_that_do_not_read_are_left_out() {
    let directory = tempfile::tempdir().unwrap();
    let (mut journal, _) = Journal::open(directory.path());
    journal.node(&node());
    change(&mut journal, 1, true, 1);
    let path = directory.path().join(FILE);
    let whole = fs::read(&path).unwrap();
    let first = whole.iter().position(|byte| *byte == b'\n').unwrap();
    for end in first + 1..whole.len() - 1 {
        fs::write(&path, &whole[..end]).unwrap();
        assert_eq!(Saved::read(&path).unwrap(), saved(&[]), "cut off after {end} bytes");
    }
    fs::write(&path, [&b"{\"of\":\"tomorrow\"}\n\xff\n"[..], &whole].concat()).unwrap();
    assert_eq!(Saved::read(&path).unwrap(), saved(&[1]));
}

#[test]
fn passwords_are_kept_as_long_as_they_are_wanted() {
    let passwords = |texts: &[&str]| -> BTreeMap<SecretKey, Password> {
        let password = |text: &&str| {
            let key = SecretKey { name: "sheave-bgp".into(), key: text[..1].into() };
            (key, Password::new(text.as_bytes()).unwrap())
        };
        texts.iter().map(password).collect()
    };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(FILE);
    let (mut journal, _) = Journal::open(directory.path());
    change(&mut journal, 1, true, 1);
    for wanted in [&["a-one"][..], &["a-one", "b-two"], &["a-new", "b-two"], &["b-two"], &[]] {
        journal.passwords_are(passwords(wanted));
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text.matches("password").count(), wanted.len(), "nothing else lies about: {text}");
        let (again, before) = Journal::open(directory.path());
        assert_eq!(before.passwords, passwords(wanted));
        assert_eq!(*again.passwords(), passwords(wanted));
        assert_eq!(before.announcements, saved(&[1]).announcements);
        for printed in [format!("{before:?}"), format!("{again:?}")] {
            assert!(wanted.iter().all(|text| !printed.contains(text)), "{printed}");
        }
        journal = again;
    }
    assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn on_a_full_disk_it_says_nothing_rather_than_what_is_no_longer_so() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(FILE);
    let (mut journal, _) = Journal::open(directory.path());
    journal.node(&node());
    change(&mut journal, 1, true, 1);
    journal.file = Some(OpenOptions::new().write(true).open("/dev/full").unwrap());
    change(&mut journal, 1, false, 0);
    assert!(!path.exists());
    change(&mut journal, 2, true, 1);
    let announced = [announcement(prefix(2))];
    journal.mend(Instant::now(), announced.iter());
    assert!(!path.exists(), "too soon");

    // Draft and file cannot be written either, until they can.
    let obstacle = directory.path().join("announced.draft");
    fs::create_dir(&obstacle).unwrap();
    let later = Instant::now() + AGAIN;
    journal.mend(later, announced.iter());
    assert!(!path.exists());
    fs::remove_dir(&obstacle).unwrap();
    journal.mend(later + AGAIN, announced.iter());
    assert_eq!(Saved::read(&path).unwrap(), saved(&[2]));
    change(&mut journal, 3, true, 2);
    assert_eq!(Saved::read(&path).unwrap(), saved(&[2, 3]));

    // A start that cannot write leaves what is true, and no longer.
    fs::create_dir(&obstacle).unwrap();
    let (mut journal, before) = Journal::open(directory.path());
    assert_eq!(before, saved(&[2, 3]));
    assert_eq!(Saved::read(&path).unwrap(), before);
    change(&mut journal, 3, false, 1);
    assert!(!path.exists());
    fs::remove_dir(&obstacle).unwrap();
    journal.mend(Instant::now() + AGAIN, announced.iter());
    assert_eq!(Saved::read(&path).unwrap(), saved(&[2]));
}

#[test]
fn it_does_not_grow_for_ever() {
    let directory = tempfile::tempdir().unwrap();
    let (mut journal, _) = Journal::open(directory.path());
    journal.node(&node());
    change(&mut journal, 1, true, 1);
    for _ in 0..2000 {
        change(&mut journal, 2, true, 2);
        change(&mut journal, 2, false, 1);
    }
    assert!(journal.lines < 2 * SLACK, "{} lines", journal.lines);
    assert_eq!(Journal::open(directory.path()).1, saved(&[1]));
}

#[test]
fn a_directory_that_cannot_be_written_stops_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (mut journal, before) = Journal::open(&directory.path().join("absent"));
    journal.node(&node());
    change(&mut journal, 1, true, 1);
    assert_eq!(before, Saved::default());
}
