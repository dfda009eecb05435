//! Every recorded response of a real API server, byte for byte through the real client; what comes of it is kept in
//! `golden/`.
//!
//! `UPDATE_GOLDEN=1 cargo test --test recordings` writes the golden files anew.

#![expect(clippy::unwrap_used, clippy::panic, reason = "what fails here fails the test")]

#[path = "../in_memory/mod.rs"]
mod in_memory;
mod printed;
mod recording;
mod script;

use std::collections::BTreeSet;
use std::time::Duration;

use sheave::cluster::kubernetes::{Pace, follow};
use sheave::cluster::{Event, ObjectKey, Watch, WatchState};
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::time::{Instant, sleep, sleep_until};

use in_memory::Told;
use printed::{changes, golden, lines_of};
use recording::Recording;
use script::Script;

const LISTS: [&str; 3] = ["list-services.json", "list-endpointslices.json", "list-nodes.json"];
const WATCHES: [&str; 3] = ["watch-services.jsonl", "watch-endpointslices.jsonl", "watch-nodes.jsonl"];

/// Watches that outlast the recorded ones.
fn pace() -> Pace {
    Pace { watch: Duration::from_secs(1000), ..Pace::default() }
}

/// A source that follows the script, and what it has told so far.
struct Replay {
    script: Script,
    events: UnboundedReceiver<Vec<Event>>,
    told: Told,
    deleted: Vec<ObjectKey>,
    synced: bool,
    states: Vec<Watch>,
    start: Instant,
}

impl Replay {
    fn start(script: Script, begin: u64) -> Self {
        let (sender, events) = mpsc::unbounded_channel();
        follow(&in_memory::client(&script.serve(begin)), &pace(), sender);
        let start = Instant::now() - Duration::from_millis(begin);
        Self {
            script,
            events,
            told: Told::new(),
            deleted: Vec::new(),
            synced: false,
            states: Vec::new(),
            start,
        }
    }

    /// Takes what is told until a time of the recording. The clock is paused: everything that can happen by then has.
    async fn until(&mut self, ms: u64) {
        sleep_until(self.start + Duration::from_millis(ms)).await;
        self.take();
    }

    /// Takes what is told of what has been asked.
    async fn settle(&mut self) {
        sleep(Duration::from_millis(1)).await;
        self.take();
    }

    fn take(&mut self) {
        while let Ok(events) = self.events.try_recv() {
            for event in &events {
                match event {
                    Event::Delete(key) => self.deleted.push(key.clone()),
                    Event::Synced => self.synced = true,
                    Event::Watch(watch) => self.states.push(watch.clone()),
                    Event::Apply(_) | Event::Problems(_) | Event::TriggeredAt(_) => {}
                }
            }
            self.told.handle(events);
        }
    }

    /// How it stands with a resource.
    fn state(&self, resource: &str) -> &WatchState {
        &self.states.iter().rev().find(|watch| watch.resource == resource).unwrap().state
    }

    /// Objects and plan, in lines.
    fn lines(&self) -> BTreeSet<String> {
        lines_of(&self.told)
    }

    fn plan(&self) -> String {
        sheave::cli::plan_json(&self.told.planner).unwrap()
    }
}

#[tokio::test(start_paused = true)]
async fn lists() {
    let mut replay = Replay::start(Script::new(&LISTS), 0);
    replay.settle().await;
    assert!(replay.synced && replay.script.is_told() && replay.told.planner.problems().is_empty());
    golden("list.objects", &printed::objects(&replay.told));
    golden("list.plan.json", &replay.plan());
}

#[tokio::test(start_paused = true)]
async fn lists_in_pages_come_to_the_same() {
    let files = [
        "paged-services-01.json",
        "paged-services-02.json",
        "paged-services-03.json",
        "paged-services-04.json",
        "paged-services-05.json",
        "paged-services-06.json",
        "paged-endpointslices-01.json",
        "paged-endpointslices-02.json",
        "paged-endpointslices-03.json",
        "paged-endpointslices-04.json",
        "paged-endpointslices-05.json",
        "paged-endpointslices-06.json",
        "paged-endpointslices-07.json",
        "list-nodes.json",
    ];
    let mut replay = Replay::start(Script::new(&files), 0);
    replay.settle().await;
    assert!(replay.synced && replay.script.is_told());
    golden("list.objects", &printed::objects(&replay.told));
    golden("list.plan.json", &replay.plan());
}

/// The list, then what the watches told, step by step; then the watches have ended and begun anew.
async fn steps(lists: [&'static str; 3], watches: [&'static str; 3]) -> (Replay, String, Vec<String>) {
    let script = Script::new(&lists);
    script.extend(&watches);
    let mut replay = Replay::start(script, 0);
    let steps = recording::steps();
    replay.until(steps[0].ms).await;
    let (mut before, mut text, mut plans) = (replay.lines(), String::new(), vec![replay.plan()]);
    for (index, step) in steps.iter().enumerate().filter(|(_, step)| step.ms < 150_000) {
        replay.until(steps.get(index + 1).map_or(150_000, |next| next.ms).min(150_000)).await;
        let after = replay.lines();
        text += &format!("# {}\n{}\n", step.title, changes(&before, &after));
        before = after;
        plans.push(replay.plan());
    }
    (replay, text, plans)
}

#[tokio::test(start_paused = true)]
async fn every_step_of_the_watches() {
    let (mut replay, text, _) = steps(LISTS, WATCHES).await;
    golden("steps.txt", &text);
    golden("watched.objects", &printed::objects(&replay.told));
    golden("watched.plan.json", &replay.plan());

    // The streams have ended. They go on from the last bookmarks.
    replay.until(151_000).await;
    for (file, resource) in WATCHES.into_iter().zip(["services", "endpointslices", "nodes"]) {
        let asked = replay.script.asked(resource);
        let (_, bookmark) = Recording::of(file).lines().pop().unwrap();
        let bookmark: serde_json::Value = serde_json::from_slice(&bookmark).unwrap();
        assert_eq!(bookmark["type"], "BOOKMARK");
        let version = bookmark["object"]["metadata"]["resourceVersion"].as_str();
        assert_eq!(asked.len(), 3, "a list, a watch, a watch");
        assert_eq!(asked[2].parameter("resourceVersion"), version, "{resource}");
        assert_eq!(*replay.state(resource), WatchState::Watching);
    }
}

#[tokio::test(start_paused = true)]
async fn the_label_selector_takes_nothing_from_the_plan() {
    let (_, _, plans) = steps(LISTS, WATCHES).await;
    let (selected, _, selected_plans) = steps(
        ["list-services-labelselector.json", "list-endpointslices-labelselector.json", "list-nodes.json"],
        [
            "watch-services-labelselector.jsonl",
            "watch-endpointslices-labelselector.jsonl",
            "watch-nodes.jsonl",
        ],
    )
    .await;
    for (step, (plan, selected)) in plans.iter().zip(&selected_plans).enumerate() {
        assert!(plan == selected, "after step {step}: {selected}");
    }
    golden("watched-labelselector.objects", &printed::objects(&selected.told));
}

#[tokio::test(start_paused = true)]
async fn one_node() {
    let script = Script::new(&["list-services.json", "list-endpointslices.json", "list-node-a.json"]);
    script.extend(&["watch-node-a.jsonl"]);
    let mut replay = Replay::start(script, 0);
    replay.settle().await;
    let before = replay.lines();
    replay.until(150_000).await;
    golden("node-a.txt", &changes(&before, &replay.lines()));
}

#[tokio::test(start_paused = true)]
async fn streaming_lists() {
    let files = ["watchlist-services.jsonl", "watchlist-endpointslices.jsonl", "watchlist-nodes.jsonl"];
    let mut replay = Replay::start(Script::new(&files), 150_043);
    replay.until(150_100).await;
    assert!(replay.synced && replay.script.is_told() && replay.deleted.is_empty());
    let before = replay.lines();
    golden("watched.objects", &printed::objects(&replay.told));
    golden("watched.plan.json", &replay.plan());
    let step = recording::steps().pop().unwrap();
    replay.until(162_000).await;
    golden("streamed.txt", &format!("# {}\n{}", step.title, changes(&before, &replay.lines())));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_stops_ends_its_watches_cleanly() {
    let script = Script::new(&LISTS);
    script.extend(&["watch-server-stop.jsonl"]);
    let mut replay = Replay::start(script, 199_900);
    replay.until(200_000).await;
    let before = replay.lines();
    replay.until(262_000).await;
    golden("server-stop.txt", &changes(&before, &replay.lines()));
    let asked = replay.script.asked("services");
    assert_eq!(asked.last().unwrap().parameter("resourceVersion"), Some("901"), "the last bookmark");
    assert!(replay.deleted.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_is_too_old_lists_anew_and_nothing_vanishes() {
    let script = Script::new(&LISTS);
    script.extend(&["watch-410.jsonl", "watch-410-endpointslices.jsonl"]);
    script.extend(&["list-services.json", "list-endpointslices.json"]);
    let mut replay = Replay::start(script, 277_600);
    replay.until(277_690).await;
    let before = replay.lines();
    replay.until(277_900).await;
    assert_eq!(*replay.state("services"), WatchState::Listing);
    assert_eq!(replay.lines(), before);
    replay.until(300_000).await;
    assert_eq!(*replay.state("services"), WatchState::Watching);
    assert_eq!(*replay.state("endpointslices"), WatchState::Watching);
    assert_eq!(replay.lines(), before);
    assert!(replay.script.is_told() && replay.deleted.is_empty());
}

#[tokio::test(start_paused = true)]
async fn pages_that_are_too_old() {
    // The client asks for the whole list at once; the server's offer of an inconsistent rest it does not take.
    let script = Script::new(&["paged-services-01.json", "list-endpointslices.json", "list-nodes.json"]);
    let mut replay = Replay::start(script.then("error-410-continue.json"), 0);
    replay.settle().await;
    assert!(replay.synced && replay.script.is_told());
    golden("list.objects", &printed::objects(&replay.told));
    golden("list.plan.json", &replay.plan());
}

#[tokio::test(start_paused = true)]
async fn a_page_of_an_inconsistent_rest_is_a_page() {
    let script = Script::new(&["list-after-410-continue.json"]);
    let mut replay = Replay::start(script, 0);
    replay.settle().await;
    assert!(replay.script.is_told() && replay.told.objects.is_empty(), "the list is not complete");
    let asked = replay.script.asked("services");
    let page: serde_json::Value =
        serde_json::from_slice(&Recording::of("list-after-410-continue.json").body()).unwrap();
    assert_eq!(asked[1].parameter("continue"), page["metadata"]["continue"].as_str());
}

#[tokio::test(start_paused = true)]
async fn errors_change_nothing_and_are_told() {
    let mut told = String::new();
    for file in [
        "error-400-bad-continue.json",
        "error-400-bad-rv.json",
        "error-401.json",
        "error-403-anonymous.json",
        "error-403-pods-in-namespace.json",
        "error-403-secrets.json",
        "error-404-object.json",
        "error-404-resource.json",
        "error-410.json",
        "error-504-rv-in-the-future.json",
        "watch-401.jsonl",
    ] {
        let script = Script::new(&LISTS).then(file);
        let mut replay = Replay::start(script, 0);
        replay.settle().await;
        let before = replay.lines();
        replay.until(2_000_000).await;
        let states = replay.states.iter().filter(|watch| watch.resource == "services");
        told += &format!("# {file}\n");
        for watch in states {
            match &watch.state {
                WatchState::Down { error, .. } => told += &format!("Down: {error}\n"),
                state => told += &format!("{state:?}\n"),
            }
        }
        assert_eq!(replay.lines(), before, "{file}");
        assert!(replay.deleted.is_empty(), "{file}");
        assert!(replay.script.is_told(), "{file}");
    }
    golden("errors.txt", &told);
}

#[tokio::test(start_paused = true)]
async fn a_watch_from_the_future_is_a_silent_one() {
    let script = Script::new(&LISTS);
    script.extend(&["watch-rv-in-the-future.jsonl"]);
    let mut replay = Replay::start(script, 277_700);
    replay.until(290_000).await;
    let before = replay.lines();
    assert_eq!(*replay.state("services"), WatchState::Watching);
    let versions: Vec<_> = replay.script.asked("services").into_iter().skip(1).collect();
    assert!(versions.iter().all(|request| request.parameter("resourceVersion") == Some("543")));
    assert_eq!(replay.lines(), before);
    assert!(replay.deleted.is_empty());
}
