//! What is asked after which answer.

use std::time::{Duration, Instant, SystemTime};

use crate::cluster::WatchState;
use crate::cluster::kubernetes::message::{Failure, Fault};
use crate::cluster::kubernetes::reflector::{Ask, Reflector};
use crate::cluster::kubernetes::{Pace, Resource};

/// What happens to the request under way.
#[derive(Clone, Copy, Debug)]
enum Answer {
    /// A page, with a token of the next.
    Page(&'static str),
    /// The list is complete, in pages or as a stream.
    Listed(&'static str),
    /// A watch begins.
    Watching,
    /// A watch tells of an object of that version.
    Object(&'static str),
    /// A watch or streaming list ends, after that many milliseconds.
    Ends(u64),
    Status(u16),
    Garbage,
    Broken,
    /// Silence during a streaming list.
    Silent,
    /// Time passes until the next request.
    Seconds(u64),
}
use Answer::{Broken, Ends, Garbage, Listed, Object, Page, Seconds, Silent, Status, Watching};

struct Run {
    reflector: Reflector,
    now: Instant,
    /// Of the last answer.
    pause: Duration,
}

impl Run {
    fn new(resource: Resource) -> Self {
        Self {
            reflector: Reflector::new(resource, Pace::default()),
            now: Instant::now(),
            pause: Duration::ZERO,
        }
    }

    fn answer(&mut self, answer: Answer) {
        let (now, wall) = (self.now, SystemTime::UNIX_EPOCH);
        let reflector = &mut self.reflector;
        let fail = |reflector: &mut Reflector, fault| {
            let failure = Failure { fault, message: format!("{fault:?}"), retry_after: None };
            reflector.failed(failure, now, wall, 1.0)
        };
        self.pause = Duration::ZERO;
        match answer {
            Page(token) => reflector.page(token.into()),
            Listed(version) => reflector.complete(version.into()),
            Watching => reflector.watching(),
            Object(version) => {
                reflector.heard();
                reflector.advance(version.into());
            }
            Ends(after) => self.pause = reflector.ended(Duration::from_millis(after), now, wall, 1.0),
            Status(code) => self.pause = fail(reflector, Fault::Status(code)),
            Garbage => self.pause = fail(reflector, Fault::Garbage),
            Broken => self.pause = fail(reflector, Fault::Connection),
            Silent => reflector.streaming_list_ignored(now),
            Seconds(seconds) => self.now += Duration::from_secs(seconds),
        }
    }

    fn ask(&mut self) -> String {
        match self.reflector.ask(self.now) {
            Ask::StreamingList => "stream".into(),
            Ask::Page { token: Some(token), limited: true } => format!("page {token}"),
            Ask::Page { token: None, limited: true } => "pages".into(),
            Ask::Page { token: None, limited: false } => "whole list".into(),
            Ask::Watch { version } => format!("watch {version}"),
            other => panic!("{other:?}"),
        }
    }

    fn state(&self) -> &'static str {
        match self.reflector.state() {
            WatchState::Listing => "listing",
            WatchState::Watching => "watching",
            WatchState::NotServed => "not served",
            WatchState::Down { .. } => "down",
        }
    }
}

/// A simulated day of a server that begins every watch and fails it, whatever the version.
#[test]
fn a_watch_that_fails_on_is_listed_anew_time_and_again() {
    let mut run = Run::new(Resource::Nodes);
    let (mut watches, mut lists) = (0, 0);
    let start = run.now;
    while run.now - start < Duration::from_secs(86_400) {
        if run.ask().starts_with("watch") {
            watches += 1;
            run.answer(Watching);
            run.answer(Status(500));
        } else {
            lists += 1;
            run.answer(Listed("5"));
        }
        run.now += run.pause;
    }
    assert!(lists > 900 && watches <= 3 * lists && watches < 3000, "{watches} watches, {lists} lists");
}

/// Name, resource, answers, then what is asked, in which state, after how many milliseconds.
type Case = (&'static str, Resource, &'static [Answer], &'static str, &'static str, u64);

#[test]
fn what_is_asked_next() {
    use Resource::{Nodes, ServiceCidrs};
    let cases: &[Case] = &[
        ("start", Nodes, &[], "stream", "listing", 0),
        ("streamed", Nodes, &[Listed("5"), Watching, Ends(90_000)], "watch 5", "watching", 0),
        ("watched", Nodes, &[Listed("5"), Watching, Object("7"), Ends(90_000)], "watch 7", "watching", 0),
        ("cut at once", Nodes, &[Listed("5"), Watching, Object("7"), Ends(1)], "watch 7", "watching", 500),
        (
            "ends at once",
            Nodes,
            &[Listed("5"), Watching, Ends(1), Watching, Ends(1)],
            "watch 5",
            "watching",
            1000,
        ),
        (
            "ends each time at once",
            Nodes,
            &[Listed("5"), Watching, Ends(1), Watching, Ends(1), Watching, Ends(1)],
            "watch 5",
            "down",
            2000,
        ),
        ("streaming refused", Nodes, &[Status(422)], "pages", "listing", 0),
        ("streaming refused, otherwise", Nodes, &[Status(400)], "pages", "listing", 0),
        ("streaming ignored", Nodes, &[Silent], "pages", "listing", 0),
        ("streaming cut", Nodes, &[Ends(5000)], "stream", "down", 500),
        ("streaming cut again", Nodes, &[Ends(5000), Ends(5000)], "pages", "down", 1000),
        (
            "an hour after",
            Nodes,
            &[Silent, Listed("5"), Watching, Status(410), Seconds(3600)],
            "stream",
            "listing",
            0,
        ),
        ("pages", Nodes, &[Silent, Page("b")], "page b", "listing", 0),
        ("a page fails", Nodes, &[Silent, Page("b"), Status(500)], "page b", "down", 500),
        ("and comes then", Nodes, &[Silent, Page("b"), Status(500), Page("c")], "page c", "listing", 0),
        ("a page is out of date", Nodes, &[Silent, Page("b"), Status(410)], "whole list", "listing", 0),
        (
            "pages of the whole list too",
            Nodes,
            &[Silent, Page("b"), Status(410), Page("c"), Status(410)],
            "whole list",
            "down",
            500,
        ),
        ("a token is not taken", Nodes, &[Silent, Page("b"), Status(400)], "pages", "down", 500),
        ("garbage instead of a page", Nodes, &[Silent, Page("b"), Garbage], "pages", "down", 500),
        ("no list", Nodes, &[Silent, Status(503)], "pages", "down", 500),
        ("no connection", Nodes, &[Broken], "stream", "down", 500),
        ("nor later", Nodes, &[Broken, Broken, Broken], "stream", "down", 2000),
        (
            "nor ever",
            Nodes,
            &[Broken, Broken, Broken, Broken, Broken, Broken, Broken, Broken],
            "stream",
            "down",
            30_000,
        ),
        ("watch out of date", Nodes, &[Listed("5"), Watching, Status(410)], "stream", "listing", 500),
        (
            "each watch",
            Nodes,
            &[Listed("5"), Watching, Status(410), Listed("6"), Watching, Status(410)],
            "stream",
            "listing",
            1000,
        ),
        (
            "back after long, out of date",
            Nodes,
            &[Listed("5"), Watching, Broken, Broken, Broken, Broken, Broken, Watching, Status(410)],
            "stream",
            "listing",
            500,
        ),
        (
            "back after long, each watch out of date",
            Nodes,
            &[Listed("5"), Broken, Broken, Broken, Watching, Status(410), Listed("6"), Watching, Status(410)],
            "stream",
            "listing",
            1000,
        ),
        ("no watch", Nodes, &[Listed("5"), Status(403)], "watch 5", "down", 500),
        ("no token", Nodes, &[Listed("5"), Watching, Status(401)], "watch 5", "down", 500),
        ("throttled", Nodes, &[Listed("5"), Watching, Status(429)], "watch 5", "down", 500),
        (
            "an ERROR",
            Nodes,
            &[Listed("5"), Watching, Status(500), Watching, Status(500)],
            "watch 5",
            "down",
            1000,
        ),
        (
            "an ERROR each time",
            Nodes,
            &[Listed("5"), Watching, Status(500), Watching, Status(500), Watching, Status(500)],
            "stream",
            "down",
            2000,
        ),
        (
            "an ERROR each time, after news",
            Nodes,
            &[
                Listed("5"),
                Watching,
                Status(500),
                Watching,
                Status(500),
                Watching,
                Object("6"),
                Status(500),
                Watching,
                Status(500),
            ],
            "watch 6",
            "down",
            1000,
        ),
        (
            "refused each time",
            Nodes,
            &[Listed("5"), Watching, Status(500), Status(500), Status(500)],
            "watch 5",
            "down",
            2000,
        ),
        (
            "throttled each time",
            Nodes,
            &[Listed("5"), Watching, Status(429), Watching, Status(429), Watching, Status(429)],
            "watch 5",
            "down",
            2000,
        ),
        (
            "ends each time at once, for long",
            Nodes,
            &[
                Listed("5"),
                Watching,
                Ends(1),
                Watching,
                Ends(1),
                Watching,
                Ends(1),
                Watching,
                Ends(1),
                Watching,
                Ends(1),
            ],
            "stream",
            "down",
            8000,
        ),
        ("version not taken", Nodes, &[Listed("5"), Status(400)], "stream", "down", 500),
        ("garbage in a watch", Nodes, &[Listed("5"), Watching, Garbage], "stream", "down", 500),
        ("away for a while", Nodes, &[Listed("5"), Watching, Broken, Seconds(59)], "watch 5", "down", 0),
        ("away for long", Nodes, &[Listed("5"), Watching, Broken, Seconds(60)], "stream", "down", 0),
        (
            "listed in pages after long",
            Nodes,
            &[Listed("5"), Watching, Broken, Seconds(60), Silent, Listed("9")],
            "watch 9",
            "down",
            0,
        ),
        (
            "away and back",
            Nodes,
            &[Listed("5"), Watching, Broken, Watching, Seconds(60)],
            "watch 5",
            "watching",
            0,
        ),
        ("absent Nodes", Nodes, &[Status(404)], "stream", "down", 500),
        ("absent ServiceCIDRs", ServiceCidrs, &[Status(404)], "stream", "not served", 750_000),
        (
            "ServiceCIDRs that were there",
            ServiceCidrs,
            &[Listed("5"), Watching, Status(404)],
            "stream",
            "down",
            500,
        ),
        ("forbidden ServiceCIDRs", ServiceCidrs, &[Status(403)], "stream", "down", 500),
        (
            "forbidden again and again",
            ServiceCidrs,
            &[Status(403), Status(403), Status(403), Status(403), Status(403)],
            "stream",
            "down",
            750_000,
        ),
        (
            "forbidden after they were there",
            ServiceCidrs,
            &[
                Listed("5"),
                Watching,
                Garbage,
                Status(403),
                Status(403),
                Status(403),
                Status(403),
                Status(403),
            ],
            "stream",
            "down",
            16_000,
        ),
        (
            "and are listed",
            ServiceCidrs,
            &[Listed("5"), Watching, Status(404), Status(404)],
            "stream",
            "down",
            1000,
        ),
    ];
    for (name, resource, answers, ask, state, pause) in cases {
        let mut run = Run::new(*resource);
        run.ask();
        for answer in *answers {
            run.answer(*answer);
            if !matches!(answer, Watching | Object(_)) {
                run.ask();
            }
        }
        assert_eq!(
            (&*run.ask(), run.state(), run.pause.as_millis()),
            (*ask, *state, u128::from(*pause)),
            "{name}"
        );
    }
}

#[test]
fn down_since_the_first_failure_with_the_last_error() {
    let mut run = Run::new(Resource::Nodes);
    let fail = |run: &mut Run, second, message: &str| {
        let wall = SystemTime::UNIX_EPOCH + Duration::from_secs(second);
        run.reflector.ask(run.now);
        run.reflector.failed(Failure::connection(message), run.now, wall, 0.5);
        match run.reflector.state() {
            WatchState::Down { since, error } => {
                (since.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs(), error.clone())
            }
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(fail(&mut run, 100, "refused"), (100, "refused".to_owned()));
    assert_eq!(fail(&mut run, 110, "no route"), (100, "no route".to_owned()));
    run.answer(Silent);
    run.answer(Page("b"));
    assert_eq!(fail(&mut run, 120, "cut"), (100, "cut".to_owned()), "part of a list is not enough");
    run.answer(Listed("5"));
    run.answer(Watching);
    assert_eq!(fail(&mut run, 200, "refused"), (200, "refused".to_owned()));
}

#[test]
fn a_resource_is_complete_when_listed_or_not_served() {
    let complete = |resource, answers: &[Answer]| {
        let mut run = Run::new(resource);
        for answer in answers {
            run.ask();
            run.answer(*answer);
        }
        run.reflector.is_complete()
    };
    assert!(!complete(Resource::Nodes, &[Silent, Page("b")]));
    assert!(!complete(Resource::Nodes, &[Status(404)]));
    assert!(!complete(Resource::ServiceCidrs, &[Status(403)]));
    assert!(complete(Resource::ServiceCidrs, &[Status(403); 5]));
    assert!(!complete(Resource::Nodes, &[Status(403); 5]));
    assert!(complete(Resource::ServiceCidrs, &[Status(404)]));
    assert!(complete(Resource::Nodes, &[Silent, Page("b"), Listed("5")]));
}
