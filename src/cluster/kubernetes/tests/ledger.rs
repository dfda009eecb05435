//! What follows from lists and changes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use crate::cluster::kubernetes::Resource;
use crate::cluster::kubernetes::item::{Content, Head, Unreadable};
use crate::cluster::kubernetes::ledger::Ledger;
use crate::cluster::{EndpointSlice, Event, Object, Severity, SliceName};

/// Of a text that no other has.
fn head(name: &str) -> Head {
    static TEXT: AtomicU64 = AtomicU64::new(1000);
    let text = TEXT.fetch_add(1, Ordering::Relaxed);
    Head { key: Resource::EndpointSlices.key(None, name.into()), version: None, text, triggered: None }
}

fn text(name: &str, text: u64) -> Head {
    Head { text, ..head(name) }
}

fn at(name: &str, second: u64) -> Head {
    Head { triggered: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(second)), ..head(name) }
}

fn good(name: &str) -> Content {
    let name = SliceName { namespace: "default".into(), name: name.into() };
    let slice = EndpointSlice { name, service: None, endpoints: Vec::new(), ports: Vec::new() };
    Ok((Object::EndpointSlice(slice.into()), None))
}

fn lacking(name: &str) -> Content {
    let left_out = Unreadable { field: "ports[0]".into(), message: "odd".into() };
    good(name).map(|(object, _)| (object, Some(left_out)))
}

fn bad() -> Content {
    Err(Unreadable { field: "ports".into(), message: "wrong".into() })
}

/// `+a` for an object, `-a` for one that is gone, `@7` for a trigger time.
fn short(events: Vec<Event>) -> Vec<String> {
    let mut short: Vec<String> = events
        .into_iter()
        .map(|event| match event {
            Event::Apply(object) => object.key().to_string().replace("EndpointSlice default/", "+"),
            Event::Delete(key) => key.to_string().replace("EndpointSlice default/", "-"),
            Event::TriggeredAt(time) => {
                format!("@{}", time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs())
            }
            other => panic!("{other:?}"),
        })
        .collect();
    short.sort();
    short
}

fn list<const N: usize>(ledger: &mut Ledger, objects: [(Head, Content); N]) -> Vec<String> {
    ledger.begin();
    for (head, content) in objects {
        ledger.listed(head, || content);
    }
    short(ledger.complete())
}

fn apply(ledger: &mut Ledger, head: Head, content: Content) -> Vec<String> {
    let mut events = Vec::new();
    ledger.applied(head, || content, &mut events);
    short(events)
}

fn delete(ledger: &mut Ledger, name: &str) -> Vec<String> {
    let mut events = Vec::new();
    ledger.deleted(head(name).key, &mut events);
    short(events)
}

fn problems(ledger: &mut Ledger) -> Option<Vec<String>> {
    Some(ledger.changed_problems()?.iter().map(ToString::to_string).collect())
}

#[test]
fn a_list_tells_what_it_has_and_what_has_vanished() {
    let mut ledger = Ledger::default();
    assert_eq!(list(&mut ledger, [(head("a"), good("a")), (head("b"), good("b"))]), ["+a", "+b"]);
    assert_eq!(apply(&mut ledger, head("c"), good("c")), ["+c"]);
    assert_eq!(list(&mut ledger, [(head("b"), good("b")), (head("d"), good("d"))]), ["+b", "+d", "-a", "-c"]);
    assert_eq!(list(&mut ledger, []), ["-b", "-d"]);
    assert_eq!(list(&mut ledger, []), [""; 0]);
}

#[test]
fn a_list_that_is_not_completed_changes_nothing() {
    let mut ledger = Ledger::default();
    list(&mut ledger, [(head("a"), good("a")), (head("b"), good("b"))]);
    ledger.begin();
    ledger.listed(head("b"), || good("b"));
    ledger.listed(head("new"), || good("new"));
    ledger.listed(head("a"), bad);
    assert_eq!(problems(&mut ledger), None);
    // Begun anew: `new` was never told and is gone again.
    assert_eq!(list(&mut ledger, [(head("a"), good("a")), (head("b"), good("b"))]), ["+a", "+b"]);
    assert_eq!(delete(&mut ledger, "new"), [""; 0]);
}

#[test]
fn an_object_that_vanishes_during_a_streaming_list_is_gone() {
    let mut ledger = Ledger::default();
    list(&mut ledger, [(head("a"), good("a"))]);
    ledger.begin();
    for name in ["a", "b"] {
        ledger.listed(head(name), || good(name));
        ledger.unlisted(&head(name).key);
    }
    assert_eq!(short(ledger.complete()), ["-a"]);
}

#[test]
fn what_cannot_be_used_is_a_problem_until_it_is_mended_or_gone_and_its_last_good_version_stays() {
    let kept = "EndpointSlice default/a: ports: wrong; what it said before stays in force";
    let fresh = "EndpointSlice default/b: ports: wrong";
    let mut ledger = Ledger::default();
    list(&mut ledger, [(head("a"), good("a"))]);
    assert_eq!(problems(&mut ledger), None);

    assert_eq!(apply(&mut ledger, head("a"), bad()), [""; 0]);
    assert_eq!(apply(&mut ledger, head("b"), bad()), [""; 0]);
    assert_eq!(problems(&mut ledger).unwrap(), [kept, fresh]);
    assert_eq!(problems(&mut ledger), None, "told once");

    assert_eq!(list(&mut ledger, [(head("a"), bad()), (head("b"), bad())]), [""; 0]);
    assert_eq!(problems(&mut ledger), None, "a relist has the same");

    assert_eq!(apply(&mut ledger, head("b"), good("b")), ["+b"]);
    assert_eq!(problems(&mut ledger).unwrap(), [kept]);

    assert_eq!(delete(&mut ledger, "a"), ["-a"]);
    assert_eq!(problems(&mut ledger).unwrap(), [""; 0]);

    list(&mut ledger, [(head("b"), bad())]);
    assert_eq!(problems(&mut ledger).unwrap().len(), 1);
    assert_eq!(list(&mut ledger, []), ["-b"], "gone while nobody looked");
    assert_eq!(problems(&mut ledger).unwrap(), [""; 0]);
}

#[test]
fn a_trigger_time_is_told_once_and_of_watched_changes_alone() {
    let mut ledger = Ledger::default();
    assert_eq!(list(&mut ledger, [(at("a", 1), good("a"))]), ["+a"]);
    assert_eq!(apply(&mut ledger, at("a", 1), good("a")), ["+a"], "the list had it");
    assert_eq!(apply(&mut ledger, at("a", 2), good("a")), ["+a", "@2"]);
    assert_eq!(apply(&mut ledger, at("a", 2), good("a")), ["+a"]);
    assert_eq!(apply(&mut ledger, head("a"), good("a")), ["+a"], "without one");
    assert_eq!(apply(&mut ledger, at("b", 3), good("b")), ["+b", "@3"], "a new object");
    assert_eq!(list(&mut ledger, [(at("a", 9), good("a"))]), ["+a", "-b"]);
    assert_eq!(apply(&mut ledger, at("a", 9), good("a")), ["+a"]);
}

#[test]
fn what_did_not_change_is_neither_read_nor_told() {
    let unread = || -> Content { panic!("read again") };
    let mut ledger = Ledger::default();
    assert_eq!(list(&mut ledger, [(text("a", 1), good("a")), (text("b", 1), good("b"))]), ["+a", "+b"]);
    assert_eq!(apply(&mut ledger, text("b", 2), good("b")), ["+b"]);
    ledger.begin();
    ledger.listed(text("a", 1), unread);
    ledger.listed(text("b", 2), unread);
    assert_eq!(short(ledger.complete()), [""; 0]);
    ledger.begin();
    ledger.listed(text("a", 1), unread);
    ledger.listed(text("b", 1), || good("b"));
    assert_eq!(short(ledger.complete()), ["+b"], "an earlier text is another one");

    assert_eq!(apply(&mut ledger, text("a", 3), bad()), [""; 0]);
    assert_eq!(problems(&mut ledger).map(|problems| problems.len()), Some(1));
    let mut events = Vec::new();
    ledger.applied(text("a", 1), unread, &mut events);
    assert_eq!(short(events), [""; 0], "mended by what is in force anyway");
    assert_eq!(problems(&mut ledger), Some(Vec::new()));
}

#[test]
fn an_object_that_lacks_something_is_told_with_a_warning_that_stays_over_lists_until_it_is_mended() {
    let warning = "EndpointSlice default/a: ports[0]: odd; this is left out, the rest is used";
    let kept = "EndpointSlice default/a: ports: wrong; what it said before stays in force";
    let mut ledger = Ledger::default();
    assert_eq!(list(&mut ledger, [(text("a", 1), lacking("a"))]), ["+a"]);
    let told = ledger.changed_problems().unwrap();
    assert_eq!((told[0].to_string().as_str(), told[0].severity), (warning, Severity::Warning));

    assert_eq!(list(&mut ledger, [(text("a", 1), lacking("a"))]), ["+a"]);
    assert_eq!(apply(&mut ledger, text("a", 2), lacking("a")), ["+a"]);
    assert_eq!(problems(&mut ledger), None, "the same as before");

    assert_eq!(apply(&mut ledger, text("a", 3), bad()), [""; 0]);
    assert_eq!(problems(&mut ledger).unwrap(), [kept]);
    assert_eq!(list(&mut ledger, [(text("a", 2), lacking("a"))]), ["+a"]);
    assert_eq!(problems(&mut ledger).unwrap(), [warning], "as it was before");

    assert_eq!(apply(&mut ledger, text("a", 4), good("a")), ["+a"]);
    assert_eq!(problems(&mut ledger).unwrap(), [""; 0]);
}
