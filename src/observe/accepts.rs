//! Keeps annotation `sheave.io/accepts` on this node's Node as long as acceptance stands here: directors tunnel to
//! the node's endpoints then, by an encapsulation that is listed, and turn to *nat* when it is gone.
//!
//! ```text
//! dataplane: accepts ──► Steady ──wanted──┐
//!                                         ├─► Keeper ──due──► merge patch ──► API server
//! source: own Node ────────────seen───────┘                                      │
//!     ▲                                                                          │
//!     └──────────────────────────────── watch ───────────────────────────────────┘
//! ```
//!
//! It stays when the agent stops: the kernel goes on accepting. `sheave cleanup` takes it away.

use std::cmp::Ordering;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, Error};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tracing::{debug, info, warn};

use crate::cluster::{self, ACCEPTS_ANNOTATION};

/// How long acceptance is broken, or less is taken in, before it is told: directors need not turn to *nat* and back for what
/// the dataplane repairs with its first attempts.
const BROKEN_FOR: Duration = Duration::from_secs(5);
/// How long it stands, or more is taken in, before it is told again, once something else was told.
const STANDS_FOR: Duration = Duration::from_secs(60);
/// How long the API server has for one answer.
const LIMIT: Duration = Duration::from_secs(10);
/// The longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How long what was written stays as it is before a change of it is answered at once again.
const SETTLED: Duration = Duration::from_secs(60);

/// The annotation of this node.
pub struct Accepts {
    steady: Steady,
    told: watch::Sender<Told>,
}

/// What the loop knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Told {
    /// What it is to say, `None` within: it is not to be there. `None` until that is known.
    wanted: Option<Option<cluster::Accepts>>,
    /// What is there; `None` while the Node is not known.
    seen: Option<Option<Arc<str>>>,
}

impl Accepts {
    /// Keeps the annotation on Node `node`, on `runtime`. Nothing is written before [`Accepts::stands`].
    pub fn start(client: Client, node: &str, runtime: &Handle) -> Self {
        let (told, receiver) = watch::channel(Told::default());
        runtime.spawn(keep(client, node.to_owned(), receiver));
        Self { steady: Steady::default(), told }
    }

    /// What the source says of this node's Node: the annotation's value; `None` where there is no such Node.
    pub fn saw(&self, seen: Option<Option<&Arc<str>>>) {
        let seen = seen.map(Option::<&Arc<str>>::cloned);
        self.told.send_if_modified(|told| {
            let changed = told.seen != seen;
            told.seen = seen;
            changed
        });
    }

    /// What this node takes in of what is tunnelled to its endpoints, as of now.
    pub fn stands(&mut self, accepts: Option<cluster::Accepts>) {
        let wanted = self.steady.look(accepts, Instant::now());
        self.told.send_if_modified(|told| std::mem::replace(&mut told.wanted, wanted) != wanted);
    }
}

/// Takes the annotation off a Node. Gives whether it was there.
///
/// # Errors
/// What the API server says, or that it does not answer.
pub async fn remove(client: &Client, node: &str) -> Result<bool, String> {
    let nodes: Api<Node> = Api::all(client.clone());
    let get = within_limit(async { nodes.get_metadata_opt(node).await });
    let annotated = get.await?.is_some_and(|node| {
        node.metadata.annotations.is_some_and(|annotations| annotations.contains_key(ACCEPTS_ANNOTATION))
    });
    if annotated {
        within_limit(write(client, node, None)).await?;
    }
    Ok(annotated)
}

/// The task that writes.
async fn keep(client: Client, node: String, mut told: watch::Receiver<Told>) {
    let mut keeper = Keeper::default();
    let mut failing = false;
    loop {
        keeper.tell(told.borrow_and_update().clone(), Instant::now());
        let Some((wanted, due)) = keeper.due(Instant::now()) else {
            if told.changed().await.is_err() {
                return;
            }
            continue;
        };
        tokio::select! {
            changed = told.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return,
            },
            () = tokio::time::sleep_until(due.into()) => {}
        }
        let result = within_limit(write(&client, &node, wanted)).await;
        keeper.tried(Instant::now(), super::chance());
        match result {
            Ok(()) => {
                failing = false;
                let value = wanted.map_or("taken away", cluster::Accepts::annotation);
                info!(node, "annotation {ACCEPTS_ANNOTATION}: {value}");
            }
            Err(why) if failing => debug!("annotation {ACCEPTS_ANNOTATION} of Node {node}: {why}"),
            Err(why) => {
                failing = true;
                warn!("annotation {ACCEPTS_ANNOTATION} of Node {node} cannot be written, trying on: {why}");
            }
        }
    }
}

async fn write(client: &Client, node: &str, wanted: Option<cluster::Accepts>) -> Result<(), Error> {
    let nodes: Api<Node> = Api::all(client.clone());
    let annotations = serde_json::json!({ ACCEPTS_ANNOTATION: wanted.map(cluster::Accepts::annotation) });
    let patch = Patch::Merge(serde_json::json!({ "metadata": { "annotations": annotations } }));
    nodes.patch_metadata(node, &PatchParams::default(), &patch).await.map(drop)
}

async fn within_limit<T>(request: impl Future<Output = Result<T, Error>>) -> Result<T, String> {
    match tokio::time::timeout(LIMIT, request).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(Error::Api(status))) => Err(format!("{} ({})", status.message, status.code)),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {LIMIT:?}")),
    }
}

/// Makes of what is so at one moment what is to be told.
#[derive(Debug, Default)]
struct Steady {
    told: Option<Option<cluster::Accepts>>,
    /// Less or more than told, and since when.
    otherwise: Option<(Ordering, Instant)>,
}

impl Steady {
    fn look(&mut self, accepts: Option<cluster::Accepts>, now: Instant) -> Option<Option<cluster::Accepts>> {
        // After a start: what an agent before told may be true or not.
        let than_told = accepts.cmp(&self.told.flatten());
        if self.told.is_some() && than_told == Ordering::Equal {
            self.otherwise = None;
            return self.told;
        }
        let since = match self.otherwise {
            Some((which, since)) if which == than_told => since,
            _ => now,
        };
        self.otherwise = Some((than_told, since));
        let long_enough = match (self.told, accepts) {
            (None, Some(_)) => Duration::ZERO,
            (Some(_), _) if than_told == Ordering::Greater => STANDS_FOR,
            _ => BROKEN_FOR,
        };
        if now >= since + long_enough {
            self.told = Some(accepts);
            self.otherwise = None;
        }
        self.told
    }
}

/// When to write what. Whoever else writes the annotation is answered ever more slowly.
#[derive(Debug, Default)]
struct Keeper {
    told: Told,
    /// Since when all is as wanted.
    settled: Option<Instant>,
    /// Attempts since it was settled for long.
    attempts: u32,
    not_before: Option<Instant>,
}

impl Keeper {
    fn tell(&mut self, told: Told, now: Instant) {
        self.told = told;
        let is_settled = self.to_write().is_none();
        if !is_settled && self.settled.is_some_and(|since| now >= since + SETTLED) {
            self.attempts = 0;
            self.not_before = None;
        }
        self.settled = if is_settled { self.settled.or(Some(now)) } else { None };
    }

    /// What is to be written, and when; `None` until something is told.
    fn due(&self, now: Instant) -> Option<(Option<cluster::Accepts>, Instant)> {
        Some((self.to_write()?, self.not_before.unwrap_or(now)))
    }

    /// It was tried. If it worked, the source will tell; until it does, it is tried again. `chance` is from 0 to 1.
    fn tried(&mut self, now: Instant, chance: f64) {
        let pause = Duration::from_secs(2 << self.attempts.min(5)).min(LONGEST_PAUSE);
        self.attempts += 1;
        self.not_before = Some(now + pause.mul_f64(0.5 + chance / 2.0));
    }

    fn to_write(&self) -> Option<Option<cluster::Accepts>> {
        let wanted = self.told.wanted?;
        let seen = self.told.seen.as_ref()?.as_deref();
        (seen != wanted.map(cluster::Accepts::annotation)).then_some(wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Told = Option<Option<cluster::Accepts>>;

    const NOTHING: Option<cluster::Accepts> = None;
    const IPIP: Option<cluster::Accepts> = Some(cluster::Accepts { gue: false });
    const BOTH: Option<cluster::Accepts> = Some(cluster::Accepts { gue: true });

    /// Looks at (second, what is accepted), and what is told then.
    fn steady(looks: &[(u64, Option<cluster::Accepts>, Told)]) {
        let start = Instant::now();
        let mut steady = Steady::default();
        for (second, accepts, expected) in looks {
            let told = steady.look(*accepts, start + Duration::from_secs(*second));
            assert_eq!(told, *expected, "in second {second}");
        }
    }

    #[test]
    fn it_is_told_at_once_after_a_start() {
        steady(&[(0, IPIP, Some(IPIP))]);
        steady(&[(0, BOTH, Some(BOTH))]);
    }

    #[test]
    fn nothing_is_told_for_what_is_soon_repaired() {
        for (whole, less) in [(IPIP, NOTHING), (BOTH, NOTHING), (BOTH, IPIP)] {
            steady(&[
                (0, whole, Some(whole)),
                (1, less, Some(whole)),
                (5, less, Some(whole)),
                (6, whole, Some(whole)),
                (7, less, Some(whole)),
                (11, less, Some(whole)),
                (12, less, Some(less)),
            ]);
        }
    }

    #[test]
    fn once_broken_it_must_stand_for_long() {
        steady(&[
            (0, NOTHING, None),
            (5, NOTHING, Some(NOTHING)),
            (10, IPIP, Some(NOTHING)),
            (40, NOTHING, Some(NOTHING)),
            (50, IPIP, Some(NOTHING)),
            (109, BOTH, Some(NOTHING)),
            (110, BOTH, Some(BOTH)),
        ]);
    }

    #[test]
    fn what_is_taken_in_more_must_stand_for_long_and_what_less_is_soon_told() {
        steady(&[
            (0, IPIP, Some(IPIP)),
            (10, BOTH, Some(IPIP)),
            (20, NOTHING, Some(IPIP)),
            (21, BOTH, Some(IPIP)),
            (80, BOTH, Some(IPIP)),
            (81, BOTH, Some(BOTH)),
            (90, IPIP, Some(BOTH)),
            (93, NOTHING, Some(BOTH)),
            (95, IPIP, Some(IPIP)),
        ]);
    }

    struct Kept {
        keeper: Keeper,
        start: Instant,
    }

    impl Kept {
        fn new() -> Self {
            Self { keeper: Keeper::default(), start: Instant::now() }
        }

        fn at(&self, second: u64) -> Instant {
            self.start + Duration::from_secs(second)
        }

        fn tell(&mut self, second: u64, wanted: Told, seen: Option<Option<&str>>) {
            let seen = seen.map(|seen| seen.map(Arc::from));
            self.keeper.tell(super::Told { wanted, seen }, self.at(second));
        }

        fn tried(&mut self, second: u64) {
            self.keeper.tried(self.at(second), 1.0);
        }

        /// What is due, and in which second.
        fn due(&self, second: u64) -> Option<(Option<cluster::Accepts>, u64)> {
            let (wanted, due) = self.keeper.due(self.at(second))?;
            Some((wanted, due.duration_since(self.start).as_secs()))
        }
    }

    const SEEN: Option<Option<&str>> = Some(Some("ipip"));
    const ABSENT: Option<Option<&str>> = Some(None);

    #[test]
    fn it_is_written_where_it_is_not_as_wanted() {
        let cases = [
            ("nothing is known", None, None, None),
            ("before the first sync", None, SEEN, None),
            ("the Node is not known", Some(IPIP), None, None),
            ("accepting", Some(IPIP), ABSENT, Some(IPIP)),
            ("accepting, and it is there", Some(IPIP), SEEN, None),
            ("accepting, and somebody wrote something else", Some(IPIP), Some(Some("none")), Some(IPIP)),
            ("accepting more", Some(BOTH), SEEN, Some(BOTH)),
            ("accepting more, and it is there", Some(BOTH), Some(Some("ipip,gue")), None),
            ("accepting less", Some(IPIP), Some(Some("ipip,gue")), Some(IPIP)),
            ("broken, and it is there", Some(NOTHING), SEEN, Some(NOTHING)),
            ("broken, and it is not there", Some(NOTHING), ABSENT, None),
        ];
        for (case, wanted, seen, expected) in cases {
            let mut it = Kept::new();
            it.tell(0, wanted, seen);
            assert_eq!(it.due(0), expected.map(|wanted| (wanted, 0)), "{case}");
        }
    }

    #[test]
    fn it_is_tried_again_ever_later_until_it_is_seen() {
        let mut it = Kept::new();
        it.tell(0, Some(IPIP), ABSENT);
        let mut second = 0;
        let mut pauses = Vec::new();
        for _ in 0..8 {
            it.tried(second);
            let (_, next) = it.due(second).unwrap();
            pauses.push(next - second);
            second = next;
        }
        assert_eq!(pauses, [2, 4, 8, 16, 32, 60, 60, 60]);
        it.tell(second, Some(IPIP), SEEN);
        assert_eq!(it.due(second), None);
    }

    #[test]
    fn a_removal_is_answered_at_once_and_a_quarrel_slowly() {
        let mut it = Kept::new();
        it.tell(0, Some(IPIP), ABSENT);
        it.tried(0);
        it.tell(1, Some(IPIP), SEEN);
        it.tell(100, Some(IPIP), ABSENT);
        assert_eq!(it.due(100), Some((IPIP, 100)));
        it.tried(100);
        it.tell(101, Some(IPIP), SEEN);
        // Told about something else meanwhile: settled all the same.
        it.tell(110, Some(IPIP), SEEN);
        it.tell(120, Some(IPIP), ABSENT);
        it.tried(120);
        it.tell(121, Some(IPIP), SEEN);
        it.tell(122, Some(IPIP), ABSENT);
        assert_eq!(it.due(122), Some((IPIP, 124)));
        it.tell(123, Some(IPIP), SEEN);
        it.tell(183, Some(IPIP), ABSENT);
        assert_eq!(it.due(183), Some((IPIP, 183)));
    }
}
