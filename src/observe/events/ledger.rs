//! What there is to tell, what has been told, and when the next is due. Pure: time comes in as an argument.
//!
//! ```text
//! stands(part, object, notices) ──┐            ┌─ first time: a new Event
//!                                 ├─► entries ─┤─ stands on after REPEAT, or happened again: one more in its series
//! happened(notice) ───────────────┘            └─ not ours to tell: looked at again after RECONSIDER
//! ```
//!
//! A limit per object and one for the node hold back what is due; it is not lost, and what happens again meanwhile is
//! counted into it. What ceases to stand before it was told is never told.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::limit::{Rate, Used};
use super::notice::{KnownBy, Notice};
use crate::cluster::ObjectKey;

/// How often something that stands is told again: before the API server drops its Event, after an hour.
const REPEAT: Duration = Duration::from_secs(30 * 60);
/// How often it is asked anew whose it is to tell: nodes come and go.
const RECONSIDER: Duration = Duration::from_secs(5 * 60);
/// What one object gets.
const PER_OBJECT: Rate = Rate { interval: Duration::from_secs(60), burst: 10 };
/// What one node sends.
const PER_NODE: Rate = Rate { interval: Duration::from_secs(2), burst: 25 };
/// How many different happenings are kept: while the API server is away they cannot be told.
const MOST_HAPPENINGS: usize = 256;
/// How many are looked at in one go, so that the loop is not kept.
const MOST_AT_ONCE: usize = 256;

/// Which part of the agent says that something stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Part {
    /// The plan.
    Plan,
    /// The source: objects that it cannot read.
    Source,
    /// Health-check node ports.
    NodePorts,
    /// VIPs that this node cannot forward.
    Vips,
}

/// One thing to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Telling {
    pub(super) notice: Arc<Notice>,
    /// When it was observed last.
    pub(super) at: SystemTime,
    /// How often it was observed since this agent's start.
    pub(super) count: u32,
    /// This agent has sent it before.
    pub(super) again: bool,
}

/// See the module's text.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    entries: HashMap<Arc<Notice>, Entry>,
    standing: HashMap<(Part, ObjectKey), Vec<Arc<Notice>>>,
    agenda: BTreeSet<(Instant, Arc<Notice>)>,
    objects: HashMap<ObjectKey, Used>,
    node: Used,
}

#[derive(Debug)]
struct Entry {
    /// How many parts say that it stands.
    stands: usize,
    observed: u32,
    observed_at: SystemTime,
    /// How many of these have been told.
    told: u32,
    /// Its place in the agenda.
    due: Instant,
}

impl Ledger {
    /// These notices about `object`, and no others, stand as far as `part` knows.
    pub(super) fn stands(
        &mut self,
        part: Part,
        object: &ObjectKey,
        notices: impl IntoIterator<Item = Notice>,
        now: Instant,
        clock: SystemTime,
    ) {
        let mut new: Vec<Arc<Notice>> = notices.into_iter().map(Arc::new).collect();
        new.sort_unstable();
        new.dedup();
        let key = (part, object.clone());
        let old = self.standing.remove(&key).unwrap_or_default();
        for notice in new.iter().filter(|notice| old.binary_search(notice).is_err()) {
            self.entry(notice.clone(), now, clock).stands += 1;
        }
        for notice in old.iter().filter(|notice| new.binary_search(notice).is_err()) {
            self.ceases(notice);
        }
        if !new.is_empty() {
            self.standing.insert(key, new);
        }
    }

    /// The objects about which something stands, as far as `part` knows.
    pub(super) fn objects_of(&self, part: Part) -> impl Iterator<Item = &ObjectKey> {
        self.standing.keys().filter(move |(of, _)| *of == part).map(|(_, object)| object)
    }

    /// Something has happened, once more or for the first time.
    pub(super) fn happened(&mut self, notice: Notice, now: Instant, clock: SystemTime) {
        let known = self.entries.contains_key(&notice);
        let happenings = || self.entries.values().filter(|entry| entry.stands == 0).count();
        if !known && happenings() >= MOST_HAPPENINGS {
            return;
        }
        let notice = Arc::new(notice);
        let entry = self.entry(notice.clone(), now, clock);
        if known {
            entry.observed = entry.observed.saturating_add(1);
            entry.observed_at = clock;
            let due = entry.due.min(now);
            self.schedule(&notice, due);
        }
    }

    /// What is to be sent now, `room` at most. `tells` says whether an object is this agent's to tell about.
    pub(super) fn due(
        &mut self,
        room: usize,
        tells: impl Fn(&ObjectKey) -> bool,
        now: Instant,
        clock: SystemTime,
    ) -> Vec<Telling> {
        let mut tellings = Vec::new();
        for _ in 0..MOST_AT_ONCE {
            if tellings.len() >= room || self.node.admits_at(PER_NODE, now) > now {
                break;
            }
            let Some((_, notice)) = self.agenda.first().filter(|(due, _)| *due <= now) else { break };
            let notice = notice.clone();
            let Some(entry) = self.entries.get_mut(&notice) else {
                self.agenda.pop_first();
                continue;
            };
            if entry.stands == 0 && entry.observed == entry.told {
                // It happened, was told, and has been quiet since.
                self.forget(&notice);
                continue;
            }
            if notice.known_by == KnownBy::Everyone && !tells(&notice.regarding) {
                self.schedule(&notice, now + RECONSIDER);
                continue;
            }
            let of_object = self.objects.entry(notice.regarding.clone()).or_default();
            let admitted_at = of_object.admits_at(PER_OBJECT, now);
            if admitted_at > now {
                self.schedule(&notice, admitted_at);
                continue;
            }
            of_object.take(PER_OBJECT, now);
            self.node.take(PER_NODE, now);
            if entry.stands > 0 && entry.observed == entry.told {
                entry.observed = entry.observed.saturating_add(1);
                entry.observed_at = clock;
            }
            let again = entry.told > 0;
            entry.told = entry.observed;
            tellings.push(Telling {
                notice: notice.clone(),
                at: entry.observed_at,
                count: entry.observed,
                again,
            });
            self.schedule(&notice, now + REPEAT);
        }
        if !tellings.is_empty() {
            // As many as were told lately at most: few.
            self.objects.retain(|_, used| !used.is_whole(now));
        }
        tellings
    }

    /// The entry of a notice; a new one is due at once.
    fn entry(&mut self, notice: Arc<Notice>, now: Instant, clock: SystemTime) -> &mut Entry {
        self.entries.entry(notice).or_insert_with_key(|notice| {
            self.agenda.insert((now, notice.clone()));
            Entry { stands: 0, observed: 1, observed_at: clock, told: 0, due: now }
        })
    }

    fn schedule(&mut self, notice: &Arc<Notice>, due: Instant) {
        if let Some(entry) = self.entries.get_mut(notice) {
            self.agenda.remove(&(entry.due, notice.clone()));
            self.agenda.insert((due, notice.clone()));
            entry.due = due;
        }
    }

    fn ceases(&mut self, notice: &Arc<Notice>) {
        if let Some(entry) = self.entries.get_mut(notice) {
            entry.stands -= 1;
            if entry.stands == 0 {
                self.forget(notice);
            }
        }
    }

    fn forget(&mut self, notice: &Arc<Notice>) {
        if let Some(entry) = self.entries.remove(notice) {
            self.agenda.remove(&(entry.due, notice.clone()));
        }
    }
}
