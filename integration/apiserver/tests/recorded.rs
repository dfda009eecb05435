//! The double, loaded with the recorded objects and asked the recorded questions, answers as the real API server did.
//!
//! The clock is tokio's paused one: what took the recording five minutes takes no time here.

#![expect(clippy::unwrap_used, clippy::panic, reason = "what fails here fails the test")]

mod client;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::Response;
use hyper::body::Incoming;
use serde_json::Value;
use serde_json::value::RawValue;
use sheave_apiserver::{Api, Options};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

const TOKEN: &str = "token-0";

fn read(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("recordings").join(file);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// What was asked, and how it was answered.
#[derive(Clone, Debug)]
struct Recording {
    file: String,
    uri: String,
    status: u64,
    headers: BTreeMap<String, String>,
}

impl Recording {
    fn all() -> Vec<Self> {
        let responses: Vec<Value> = serde_json::from_str(&read("responses.json")).unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let recording = |response: &Value| Self {
            file: text(&response["file"]),
            uri: text(&response["request"]).strip_prefix("GET ").unwrap().to_owned(),
            status: response["status"].as_u64().unwrap(),
            headers: serde_json::from_value(response["headers"].clone()).unwrap(),
        };
        responses.iter().map(recording).collect()
    }

    fn named(file: &str) -> Self {
        Self::all().into_iter().find(|recording| recording.file == file).unwrap()
    }

    /// With whose token it was asked.
    fn token(&self) -> Option<&'static str> {
        match self.file.as_str() {
            "error-401.json" | "watch-401.jsonl" => Some("not-a-token"),
            "error-403-anonymous.json" => None,
            _ => Some(TOKEN),
        }
    }

    /// Asks the double the same; compares status and headers, and returns the body.
    async fn replay(&self, api: &Api) -> String {
        let response = client::send(api, client::get(&self.uri, self.token())).await;
        let file = &self.file;
        assert_eq!(u64::from(response.status().as_u16()), self.status, "{file}");
        for name in
            ["Cache-Control", "Content-Type", "Retry-After", "X-Content-Type-Options", "Transfer-Encoding"]
        {
            let seen = response.headers().get(name).map(|value| value.to_str().unwrap());
            assert_eq!(seen, self.headers.get(name).map(String::as_str), "{file}: {name}");
        }
        assert!(response.headers().contains_key("Audit-Id"), "{file}");
        let told = response.headers().contains_key("Content-Length");
        assert_eq!(told, self.headers.contains_key("Content-Length"), "{file}: Content-Length");
        let (text, clean) = text(response).await;
        assert!(clean, "{file}: the body breaks off");
        text
    }
}

/// The whole body, and whether it ended as it should.
async fn text(response: Response<Incoming>) -> (String, bool) {
    let mut body = response.into_body();
    let mut text = Vec::new();
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => text.extend_from_slice(&frame.into_data().unwrap_or_default()),
            Err(_) => return (String::from_utf8(text).unwrap(), false),
        }
    }
    (String::from_utf8(text).unwrap(), true)
}

/// A line of a recorded stream.
struct Line {
    ms: u64,
    event: String,
}

fn stream(file: &str) -> Vec<Line> {
    let line = |line: &str| {
        let parts: BTreeMap<String, Box<RawValue>> = serde_json::from_str(line).unwrap();
        Line { ms: parts["ms"].get().parse().unwrap(), event: parts["event"].get().to_owned() }
    };
    read(file).lines().map(line).collect()
}

/// An API server as it was when recording began.
fn double() -> Api {
    let user = "system:serviceaccount:kube-system:proxy".to_owned();
    let api = Api::new(Options { user, token: TOKEN.into(), ..Options::default() });
    for file in ["list-services.json", "list-endpointslices.json", "list-nodes.json"] {
        api.load_list(&read(file)).unwrap();
    }
    api
}

/// What was changed during the recording, in its order.
fn changes() -> Vec<Line> {
    let mut lines: Vec<Line> = ["watch-services.jsonl", "watch-endpointslices.jsonl", "watch-nodes.jsonl"]
        .map(stream)
        .into_iter()
        .flatten()
        .collect();
    lines.retain(|line| !is_bookmark(&line.event));
    lines.sort_by_key(|line| line.ms);
    lines
}

fn is_bookmark(event: &str) -> bool {
    event.starts_with(r#"{"type":"BOOKMARK""#)
}

/// Without the numbers that depend on what else was going on at the real one.
fn without_revisions(text: &str) -> String {
    text.split(|c: char| c.is_ascii_digit()).filter(|part| !part.is_empty()).collect::<Vec<_>>().join("#")
}

/// Leaves out the bookmarks that come by the clock.
fn without_regular_bookmarks(events: &str) -> String {
    let regular = |line: &&str| is_bookmark(line) && !line.contains("initial-events-end");
    events.lines().filter(|line| !regular(line)).map(|line| format!("{line}\n")).collect()
}

/// Events as they were recorded; of bookmarks the revision may be another.
fn assert_same_events(file: &str, seen: &str, expected: &[Line]) {
    let seen: Vec<&str> = seen.lines().collect();
    for (seen, expected) in seen.iter().zip(expected) {
        if is_bookmark(&expected.event) {
            assert_eq!(without_revisions(seen), without_revisions(&expected.event), "{file}");
        } else {
            assert_eq!(*seen, expected.event, "{file}");
        }
    }
    assert_eq!(seen.len(), expected.len(), "{file}");
}

#[tokio::test(start_paused = true)]
async fn lists_and_pages_are_the_same_byte_for_byte() {
    let api = double();
    let lists: Vec<Recording> = Recording::all()
        .into_iter()
        .filter(|recording| {
            recording.file.starts_with("paged-")
                || recording.file.starts_with("list-") && !recording.file.contains("after-410")
        })
        .collect();
    assert_eq!(lists.len(), 19);
    for recording in lists {
        assert!(recording.replay(&api).await == read(&recording.file), "{} differs", recording.file);
    }
}

#[tokio::test(start_paused = true)]
async fn watches_tell_the_same_events_at_the_same_time() {
    let api = double();
    let start = Instant::now();
    let streams: Vec<(Recording, JoinHandle<String>)> = Recording::all()
        .into_iter()
        .filter(|recording| recording.uri.contains("timeoutSeconds=150"))
        .map(|recording| {
            let (api, asked) = (api.clone(), recording.clone());
            (recording, tokio::spawn(async move { asked.replay(&api).await }))
        })
        .collect();
    assert_eq!(streams.len(), 6);
    for Line { ms, event } in changes() {
        sleep_until(start + Duration::from_millis(ms)).await;
        api.load_event(&event).unwrap();
    }
    for (recording, stream) in streams {
        let seen = stream.await.unwrap();
        assert_same_events(&recording.file, &seen, &self::stream(&recording.file));
    }
    assert_eq!(start.elapsed().as_secs(), 150);
}

#[tokio::test(start_paused = true)]
async fn lists_as_events_are_the_same() {
    let api = double();
    for Line { event, .. } in changes() {
        api.load_event(&event).unwrap();
    }
    for file in ["watchlist-services.jsonl", "watchlist-endpointslices.jsonl", "watchlist-nodes.jsonl"] {
        let recording = Recording::named(file);
        let mut expected = stream(file);
        // The real one told some streams a bookmark in these few seconds, and some not.
        expected.retain(|line| !without_regular_bookmarks(&line.event).is_empty());
        let (api, asked) = (api.clone(), recording.clone());
        let (changed, before) = (api.clone(), Instant::now());
        let replay = tokio::spawn(async move { asked.replay(&api).await });
        for Line { event, .. } in &expected {
            if event.starts_with(r#"{"type":"MODIFIED""#) {
                sleep_until(before + Duration::from_secs(2)).await;
                changed.load_event(event).unwrap();
            }
        }
        let seen = replay.await.unwrap();
        assert_eq!(before.elapsed().as_secs(), 12, "{file}");
        assert_same_events(file, &without_regular_bookmarks(&seen), &expected);
    }
}

#[tokio::test(start_paused = true)]
async fn errors_are_the_same() {
    let api = double();
    api.set_forbidden("list", "secrets", true);
    api.set_forbidden("list", "pods", true);
    let errors: Vec<Recording> = Recording::all()
        .into_iter()
        .filter(|recording| recording.status != 200 && recording.status != 410)
        .collect();
    assert_eq!(errors.len(), 10);
    for recording in errors {
        let start = Instant::now();
        let seen = recording.replay(&api).await;
        let expected = match recording.file.as_str() {
            "watch-401.jsonl" => stream("watch-401.jsonl")[0].event.clone() + "\n",
            file => read(file),
        };
        if recording.status == 504 {
            assert_eq!(without_revisions(&seen), without_revisions(&expected), "{}", recording.file);
            assert_eq!(start.elapsed().as_secs(), 3);
        } else {
            assert_eq!(seen, expected, "{}", recording.file);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_watch_from_the_future_tells_nothing_and_ends_in_time() {
    let (api, start) = (double(), Instant::now());
    let recording = Recording::named("watch-rv-in-the-future.jsonl");
    assert_eq!(recording.replay(&api).await, read("watch-rv-in-the-future.jsonl"));
    assert_eq!(start.elapsed().as_secs(), 6);
}

#[tokio::test(start_paused = true)]
async fn what_is_compacted_is_gone() {
    let api = double();
    for Line { event, .. } in changes() {
        api.load_event(&event).unwrap();
    }
    for Line { event, .. } in stream("watch-server-stop.jsonl") {
        api.load_event(&event).unwrap();
    }
    api.compact();
    for file in ["watch-410.jsonl", "watch-410-endpointslices.jsonl"] {
        let seen = Recording::named(file).replay(&api).await;
        assert_eq!(without_revisions(seen.trim_end()), without_revisions(&stream(file)[0].event), "{file}");
    }
    for file in ["error-410.json", "error-410-continue.json"] {
        assert_eq!(Recording::named(file).replay(&api).await, read(file), "{file}");
    }
    // The rest of the list as it is now: by then, the real one had been changed further.
    let file = "list-after-410-continue.json";
    let seen: Value = serde_json::from_str(&Recording::named(file).replay(&api).await).unwrap();
    let expected: Value = serde_json::from_str(&read(file)).unwrap();
    let names = |list: &Value| -> Vec<String> {
        list["items"].as_array().unwrap().iter().map(|item| item["metadata"]["name"].to_string()).collect()
    };
    assert_eq!(names(&seen), names(&expected));
    assert_eq!(seen["metadata"]["remainingItemCount"], expected["metadata"]["remainingItemCount"]);
    assert!(seen["metadata"]["continue"].is_string());
}
