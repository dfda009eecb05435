//! What goes wrong with a request or a watch, by name. Whatever it is: what was told stays, nothing is deleted, and
//! afterwards the Index has what the server has.

use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use sheave::cluster::WatchState;
use sheave_apiserver::{Answer, Fault, Interruption, Request, Resource, Status, StreamingLists};

use crate::lab::{Lab, slice};

fn anything(_: &Request) -> bool {
    true
}

fn watch(request: &Request) -> bool {
    request.verb == "watch"
}

fn list(request: &Request) -> bool {
    request.verb == "list"
}

fn continued(request: &Request) -> bool {
    list(request) && request.parameter("continue").is_some()
}

fn slices(request: &Request) -> bool {
    request.resource() == Some(Resource::EndpointSlices)
}

fn plain(code: u16) -> Fault {
    Fault::Status(Status { code, message: format!("fault {code}"), ..Status::default() })
}

/// What is done, and the error that is told of it; none where it goes unnoticed.
type Case = (&'static str, fn(&Lab), Option<&'static str>);

/// Of the first requests.
const AT_THE_START: &[Case] = &[
    (
        "401",
        |lab| lab.spoil(2, anything, || Fault::Status(Status::unauthorized())),
        Some("401: Unauthorized: is the token"),
    ),
    ("403", |lab| lab.spoil(2, anything, || plain(403)), Some("403: fault 403: does its ClusterRole")),
    (
        "404",
        |lab| lab.spoil(2, anything, || Fault::Status(Status::no_resource())),
        Some("404: the server could not find"),
    ),
    (
        "410 of a streaming list",
        |lab| lab.spoil(1, watch, || Fault::Status(Status::list_expired())),
        Some("410"),
    ),
    ("500", |lab| lab.spoil(2, anything, || plain(500)), Some("500: fault 500")),
    ("503", |lab| lab.spoil(2, anything, || plain(503)), Some("503")),
    (
        "504",
        |lab| lab.spoil(2, anything, || Fault::Status(Status::too_large_version(9, 1))),
        Some("504: Timeout: Too large resource version"),
    ),
    (
        "a web page",
        |lab| lab.spoil(2, anything, || Fault::Answer(Answer::whole(502, "<html>"))),
        Some("502: <html>"),
    ),
    (
        "a web page as if all were well",
        |lab| lab.spoil(2, anything, || Fault::Answer(Answer::whole(200, "<html>\n"))),
        Some("not understood"),
    ),
    (
        "closed without an answer",
        |lab| lab.spoil(3, anything, || Fault::Cut { after: 0, reset: false }),
        Some(""),
    ),
    (
        "reset without an answer",
        |lab| lab.spoil(3, anything, || Fault::Cut { after: 0, reset: true }),
        Some(""),
    ),
    (
        "streaming list cut in an object",
        |lab| lab.spoil(2, watch, || Fault::Cut { after: 100, reset: false }),
        Some("before it was complete"),
    ),
    ("streaming list that stops", |lab| lab.spoil(1, watch, || Fault::Stall { after: 100 }), None),
    ("streaming list refused", |lab| lab.api().set_streaming_lists(StreamingLists::Rejected), None),
    ("streaming list ignored", |lab| lab.api().set_streaming_lists(StreamingLists::Ignored), None),
    (
        "slow",
        |lab| lab.spoil(9, anything, || Fault::Drip { piece: 60, every: Duration::from_millis(20) }),
        None,
    ),
    (
        "no answer",
        |lab| lab.spoil(1, anything, || Fault::Delay(Duration::from_secs(600))),
        Some("no answer within 2s"),
    ),
    (
        "list cut in an object",
        |lab| {
            lab.api().set_streaming_lists(StreamingLists::Rejected);
            lab.spoil(2, list, || Fault::Cut { after: 300, reset: false });
        },
        Some(""),
    ),
    (
        "list that stops",
        |lab| {
            lab.api().set_streaming_lists(StreamingLists::Rejected);
            lab.spoil(1, list, || Fault::Stall { after: 300 });
        },
        Some("an answer stopped for 2s"),
    ),
    (
        "list that is garbage",
        |lab| {
            lab.api().set_streaming_lists(StreamingLists::Rejected);
            lab.spoil(2, list, || {
                Fault::Answer(Answer::whole(200, r#"{"metadata":{"resourceVersion":"5"},"items":[{"#))
            });
        },
        Some("the answer to a list is not understood"),
    ),
    (
        "watch after a list refused",
        |lab| {
            lab.api().set_streaming_lists(StreamingLists::Rejected);
            lab.spoil(
                2,
                |request| watch(request) && request.parameter("sendInitialEvents").is_none(),
                || plain(500),
            );
        },
        Some("500"),
    ),
];

#[tokio::test]
async fn at_the_start() {
    for (name, spoil, error) in AT_THE_START {
        println!("{name}");
        let mut lab = Lab::new();
        spoil(&lab);
        lab.follow().await;
        lab.until(name, |heard| heard.synced && heard.is_watching()).await;
        assert_eq!(lab.heard.endpoints(), ["10.0.0.1"], "{name}");
        check(name, &mut lab, *error).await;
    }
}

/// An error whose body never ends is read as far as it is looked at, and not waited for.
#[tokio::test]
async fn errors_without_end() {
    for piece in ["x", &"x".repeat(16 * 1024)] {
        let mut lab = Lab::new();
        let (sender, body) = tokio::sync::mpsc::unbounded_channel();
        let mut body = Some(body);
        lab.spoil(1, anything, move || {
            let body = body.take().expect("asked once");
            Fault::Answer(Answer { status: 500, headers: Vec::new(), body })
        });
        let piece = Bytes::copy_from_slice(piece.as_bytes());
        let sent = tokio::spawn(async move {
            let mut sent = 0;
            while sender.send(piece.clone()).is_ok() {
                sent += 1;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            sent
        });
        lab.follow().await;
        lab.until("synced", |heard| heard.synced && heard.is_watching()).await;
        assert!(lab.heard.errors.iter().all(|told| told.contains("500")), "{:?}", lab.heard.errors);
        let sent = tokio::time::timeout(Duration::from_secs(10), sent).await.expect("goes on").unwrap();
        assert!(sent < 100, "{sent}");
    }
}

/// Of watches that run.
const WHILE_WATCHING: &[Case] = &[
    ("the end in order", |lab| interrupt(lab, &Interruption::End), None),
    ("closed", |lab| interrupt(lab, &Interruption::Close { partial: false }), None),
    ("closed in an object", |lab| interrupt(lab, &Interruption::Close { partial: true }), None),
    ("reset", |lab| interrupt(lab, &Interruption::Reset), None),
    ("all connections closed", |lab| lab.api().cut(false), None),
    ("all connections reset", |lab| lab.api().cut(true), None),
    ("410", |lab| interrupt(lab, &Interruption::Error(Status::watch_expired(1, 2))), None),
    ("410 of the next watch", |lab| then(lab, 1, watch, || Fault::Status(Status::watch_expired(1, 2))), None),
    ("429", |lab| interrupt(lab, &status(429, "slow down")), Some("429: slow down")),
    ("500", |lab| interrupt(lab, &status(500, "oh")), Some("500: oh")),
    (
        "500 in each watch from that version",
        |lab| {
            let version = lab.api().revision().to_string();
            let line = json!({"type": "ERROR", "object": {"kind": "Status", "code": 500, "message": "oh"}})
                .to_string()
                + "\n";
            lab.spoil(
                usize::MAX,
                move |request| request.parameter("resourceVersion") == Some(&*version),
                move || Fault::Answer(Answer::whole(200, line.clone())),
            );
            interrupt(lab, &Interruption::End);
            lab.api().apply(slice("other", &[])).unwrap();
        },
        Some("500: oh"),
    ),
    ("not JSON", |lab| interrupt(lab, &bytes("%&$\n")), Some("a line of a watch is not understood")),
    (
        "JSON of another form",
        |lab| interrupt(lab, &bytes("[1]\n")),
        Some("a line of a watch is not understood"),
    ),
    (
        "unknown event",
        |lab| interrupt(lab, &bytes("{\"type\":\"NEW\",\"object\":{}}\n")),
        Some("unknown type `NEW`"),
    ),
    ("an empty line", |lab| interrupt(lab, &bytes("\n")), None),
    (
        "bookmarks only",
        |lab| {
            let line = format!(
                r#"{{"type":"BOOKMARK","object":{{"metadata":{{"resourceVersion":"{}"}}}}}}"#,
                lab.api().revision()
            );
            for _ in 0..3 {
                interrupt(lab, &bytes(&format!("{line}\n")));
            }
        },
        None,
    ),
    (
        "history gone meanwhile",
        |lab| {
            lab.spoil(1, watch, || plain(503));
            interrupt(lab, &Interruption::End);
            lab.api().apply(slice("other", &[])).unwrap();
            lab.api().compact();
        },
        Some("503"),
    ),
    (
        "401 of the next watch",
        |lab| then(lab, 2, watch, || Fault::Status(Status::unauthorized())),
        Some("401"),
    ),
    ("403 of the next watch", |lab| then(lab, 2, watch, || plain(403)), Some("403")),
    ("404 of the next watch", |lab| then(lab, 2, anything, || plain(404)), Some("404")),
    (
        "ends each time at once",
        |lab| then(lab, 4, watch, || Fault::Answer(Answer::whole(200, ""))),
        Some("watches end as soon as they have begun"),
    ),
    ("400 for the version", |lab| then(lab, 1, watch, || plain(400)), Some("400")),
];

/// The watch ends in order, and the next requests go wrong.
fn then(lab: &Lab, times: usize, which: fn(&Request) -> bool, fault: fn() -> Fault) {
    lab.spoil(times, which, fault);
    interrupt(lab, &Interruption::End);
}

fn status(code: u16, message: &str) -> Interruption {
    Interruption::Error(Status { code, message: message.into(), ..Status::default() })
}

fn bytes(text: &str) -> Interruption {
    Interruption::Bytes(Bytes::copy_from_slice(text.as_bytes()))
}

fn interrupt(lab: &Lab, interruption: &Interruption) {
    assert!(lab.api().interrupt(slices, interruption) > 0, "there is no watch");
}

#[tokio::test]
async fn while_watching() {
    for (name, spoil, error) in WHILE_WATCHING {
        println!("{name}");
        let mut lab = Lab::synced().await;
        spoil(&lab);
        check(name, &mut lab, *error).await;
    }
}

/// Changes are heard, nothing was deleted, and the error was told, of EndpointSlices alone.
async fn check(name: &str, lab: &mut Lab, error: Option<&str>) {
    lab.hears_changes().await;
    lab.until(name, crate::lab::Heard::is_watching).await;
    lab.hears_changes().await;
    assert_eq!(lab.heard.deleted, [], "{name}");
    assert_eq!(lab.heard.problems, [], "{name}");
    let errors = &lab.heard.errors;
    if name.starts_with("all connections") {
        // A request may be on its way in one of them, and fails: that is told.
        return;
    }
    assert_eq!(errors.is_empty(), error.is_none(), "{name}: {errors:?}");
    assert!(errors.iter().all(|told| told.starts_with("endpointslices: ")), "{name}: {errors:?}");
    assert!(errors.iter().all(|told| told.contains(error.unwrap_or_default())), "{name}: {errors:?}");
    assert!(errors.iter().all(|told| !told.contains("token-0")), "{name}: {errors:?}");
}

#[tokio::test]
async fn pages_that_go_out_of_date() {
    for (name, times) in [("once", 1), ("each time", 99)] {
        let mut lab = Lab::new();
        lab.api().set_streaming_lists(StreamingLists::Rejected);
        let names: Vec<String> = (0..1200).map(|number| format!("many-{number}")).collect();
        for name in &names {
            lab.api().apply(slice(name, &[])).unwrap();
        }
        lab.spoil(times, continued, || Fault::Status(Status::token_expired("rest".into())));
        lab.follow().await;
        lab.until(name, |heard| heard.synced && heard.is_watching()).await;
        assert_eq!(lab.heard.endpoints(), ["10.0.0.1"], "{name}");
        check(name, &mut lab, None).await;
        // A page, one that is refused, and then the list in one piece.
        assert_eq!(lab.count("list", Resource::EndpointSlices, 200), 2, "{name}");
        assert_eq!(lab.count("list", Resource::EndpointSlices, 410), 1, "{name}");
    }
}

#[tokio::test]
async fn many_objects_come_in_pages_and_as_a_stream() {
    for (streaming, pages) in [(StreamingLists::Served, 0), (StreamingLists::Rejected, 3)] {
        let mut lab = Lab::new();
        lab.api().set_streaming_lists(streaming);
        for number in 0..1200 {
            lab.api()
                .apply(slice(
                    &format!("many-{number}"),
                    &[&format!("10.1.{}.{}", number / 250, number % 250)],
                ))
                .unwrap();
        }
        lab.follow().await;
        lab.until("synced", |heard| heard.synced).await;
        assert_eq!(lab.heard.endpoints().len(), 1201, "{streaming:?}");
        assert!(lab.heard.largest >= 1201, "a list is told as one batch");
        assert_eq!(lab.count("list", Resource::EndpointSlices, 200), pages, "{streaming:?}");
    }
}

#[tokio::test]
async fn what_vanished_while_nobody_heard_is_deleted_when_the_list_is_complete() {
    let mut lab = Lab::synced().await;
    lab.api().apply(slice("web-2", &["10.0.0.2"])).unwrap();
    lab.until("both", |heard| heard.endpoints().len() == 2).await;
    lab.spoil(3, anything, || plain(503));
    interrupt(&lab, &Interruption::End);
    lab.api().delete(Resource::EndpointSlices, Some("shop"), "web-2");
    lab.api().compact();
    lab.until("down", |heard| heard.is_down("endpointslices")).await;
    assert_eq!(lab.heard.endpoints().len(), 2, "what was told stays");
    lab.until("one", |heard| heard.endpoints() == ["10.0.0.1"]).await;
    assert_eq!(lab.heard.deleted.len(), 1);
    lab.until("heard again", |heard| heard.is("endpointslices", &WatchState::Watching)).await;
}

#[tokio::test]
async fn retry_after_is_honoured() {
    let mut lab = Lab::synced().await;
    lab.spoil(1, watch, || Fault::Status(Status { code: 429, retry_after: Some(1), ..Status::default() }));
    interrupt(&lab, &Interruption::End);
    lab.until("down", |heard| heard.is_down("endpointslices")).await;
    // Told before the pause begins; the watch is the next request.
    let asked = tokio::time::Instant::now();
    lab.until("again", |heard| heard.is("endpointslices", &WatchState::Watching)).await;
    assert!(asked.elapsed() >= Duration::from_millis(900), "came back after {:?}", asked.elapsed());
    assert_eq!(lab.count("watch", Resource::EndpointSlices, 429), 1);
}
